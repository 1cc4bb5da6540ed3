//! Logits and answers equal to mlx-lm's (mlx 0.32.2, mlx-lm 0.32.0, float32 arithmetic on the stored weights).
//!
//! `tests/vectors/goldens/tiny/MODEL/VARIANT/` holds random checkpoints with mlx-lm's numbers, `adapters/NAME/` LoRA
//! adapters for some of them; `smollm2.json` has its answers on the default model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tilekit::engine::backend::BackendChoice;
use tilekit::engine::backend::cpu::{Activations, InstructionSet};
use tilekit::engine::models::{AdapterFiles, ForwardError, LoadOptions, Model};
use tilekit::verified::VerifiedFolder;

/// How far a float32 engine's logits may be from the goldens: the bound that mlx-lm's own float32 runs keep.
const FLOAT32_TOLERANCE: f32 = 5e-4;
/// How far they may be with 16-bit activations; random weights spread errors more than trained ones.
const INT16_TOLERANCE: f32 = 0.05;

/// The same for one model: in gpt-oss the router's close calls weigh errors anew (0.11 was seen; in a bfloat16 engine 5.7).
fn int16_tolerance(model: &str) -> f32 {
    if model == "gpt_oss" { 5.0 * INT16_TOLERANCE } else { INT16_TOLERANCE }
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/goldens")
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("goldens are JSON")
}

/// Our own engine; blocks of 7 so that prompts have several.
fn cpu(activations: Activations, instruction_set: InstructionSet) -> LoadOptions {
    let backend = BackendChoice::Cpu;
    LoadOptions { backend, activations, instruction_set, num_ctx: 1024, num_batch: Some(7), ..LoadOptions::default() }
}

fn fastest(activations: Activations) -> LoadOptions {
    cpu(activations, InstructionSet::default())
}

/// Without vector instructions.
fn scalar(activations: Activations) -> LoadOptions {
    cpu(activations, *InstructionSet::all().last().expect("there is one"))
}

fn load(folder: &Path, options: &LoadOptions) -> Model {
    let loaded = Model::load(&VerifiedFolder::unlisted(folder), options, &mut |_| ControlFlow::Continue(()));
    loaded.unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

fn tokens(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("tokens are numbers")
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, idx| if logits[idx] > logits[best] { idx } else { best }) as u32
}

fn forward(model: &mut Model, tokens: &[u32]) -> Vec<f32> {
    model.forward(tokens, &|| false).expect("the tokens are the model's").to_vec()
}

fn assert_near(found: &[f32], expected: &Value, tolerance: f32, what: &str) {
    let expected: Vec<f32> = serde_json::from_value(expected.clone()).expect("logits are numbers");
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: a logit differs by {worst}");
}

/// What mlx-lm computes with the checkpoint in `folder`.
fn check_tiny(folder: &Path, options: &LoadOptions, tolerance: f32) {
    check_against(&read(&folder.join("golden.json")), folder, options, tolerance);
}

/// Prefill in one go, token by token, after truncation, and 32 greedy tokens.
fn check_against(golden: &Value, folder: &Path, options: &LoadOptions, tolerance: f32) {
    let prompt = tokens(&golden["prompt"]);
    let mut model = load(folder, options);
    let what = format!("{} {:?}, {}", folder.display(), options.activations, model.engine());
    let vocabulary = model.config().vocab_size;

    let all = model.forward_all(&prompt).expect("the tokens are the model's");
    let rows: Vec<&[f32]> = all.chunks_exact(vocabulary).collect();
    for (position, expected) in
        tokens(&golden["positions"]).into_iter().zip(golden["logits"].as_array().expect("a list"))
    {
        assert_near(rows[position as usize], expected, tolerance, &format!("{what}, position {position}"));
    }
    if options.activations == Activations::Float32 {
        let best: Vec<u32> = rows.iter().map(|row| argmax(row)).collect();
        assert_eq!(best, tokens(&golden["argmax"]), "{what}");
    }

    model.truncate(7);
    let mut last = Vec::new();
    for token in &prompt[7..] {
        last = forward(&mut model, &[*token]);
    }
    let whole = *rows.last().expect("the prompt isn't empty");
    let worst = last.iter().zip(whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: token by token differs by {worst}");

    let mut greedy = vec![argmax(&last)];
    while greedy.len() < 32 {
        last = forward(&mut model, &[greedy[greedy.len() - 1]]);
        greedy.push(argmax(&last));
    }
    assert_eq!(greedy, tokens(&golden["greedy"]), "{what}");
    assert_near(&last, &golden["last_logits"], tolerance, &format!("{what}, last"));
}

/// Every checkpoint of `tests/vectors/goldens/tiny`, with its model's name.
fn tiny() -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    let entries = |folder: &Path| {
        let read = std::fs::read_dir(folder).expect("the goldens are in the tree");
        let mut paths: Vec<PathBuf> = read.map(|entry| entry.expect("it can be listed").path()).collect();
        paths.sort();
        paths
    };
    for model in entries(&vectors().join("tiny")) {
        let name = model.file_name().expect("it has a name").to_string_lossy().into_owned();
        all.extend(entries(&model).into_iter().map(|variant| (name.clone(), variant)));
    }
    assert_eq!(all.len(), 24, "six models in four forms each");
    all
}

#[test]
fn tiny_models_compute_what_mlx_lm_computes() {
    for (model, folder) in tiny() {
        for instruction_set in InstructionSet::all() {
            check_tiny(&folder, &cpu(Activations::Float32, instruction_set), FLOAT32_TOLERANCE);
            check_tiny(&folder, &cpu(Activations::Int16, instruction_set), int16_tolerance(&model));
        }
    }
}

/// A checkpoint of a Gemma 3 that sees, made of the text model in `folder`: names begin as in `names`, `more` are its others.
fn seeing(folder: &Path, names: [&str; 2], more: &[&str]) -> PathBuf {
    let seeing = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("seeing-{}{}", names[0], more.len()));
    std::fs::create_dir_all(&seeing).expect("target can be written");
    let mut text = read(&folder.join("config.json"));
    let mut config = serde_json::json!({ "model_type": "gemma3", "vision_config": { "model_type": "siglip" } });
    for name in ["quantization", "quantization_config"] {
        config[name] = text.as_object_mut().expect("an object").remove(name).expect("it is quantised");
    }
    config["text_config"] = text;
    std::fs::write(seeing.join("config.json"), config.to_string()).expect("target can be written");

    let file = std::fs::read(folder.join("model.safetensors")).expect("it is in the tree");
    let header_len = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let (header, data) = file[8..].split_at(header_len);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).expect("it is JSON");
    let mut header: serde_json::Map<String, Value> = header
        .into_iter()
        .map(|(name, value)| {
            (name.strip_prefix(names[1]).map_or(name.clone(), |rest| format!("{}{rest}", names[0])), value)
        })
        .collect();
    for (idx, name) in more.iter().enumerate() {
        let from = data.len() + idx * 8;
        header.insert(
            (*name).into(),
            serde_json::json!({ "dtype": "F32", "shape": [2], "data_offsets": [from, from + 8] }),
        );
    }
    let header = Value::Object(header).to_string();
    let tail = vec![0xff; more.len() * 8];
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data, &tail].concat();
    std::fs::write(seeing.join("model.safetensors"), file).expect("target can be written");
    seeing
}

#[test]
fn the_text_part_of_a_model_that_sees_is_the_text_model() {
    let text = vectors().join("tiny/gemma3_text/q4-g32");
    let golden = read(&text.join("golden.json"));
    let published =
        ["vision_tower.vision_model.post_layernorm.weight", "multi_modal_projector.mm_soft_emb_norm.weight"];
    let renamed = ["model.vision_tower.vision_model.post_layernorm.weight"];
    let options = fastest(Activations::Float32);
    for (names, more) in
        [(["language_model.model.", "model."], &published[..]), (["model.language_model.", "model."], &renamed[..])]
    {
        check_against(&golden, &seeing(&text, names, more), &options, FLOAT32_TOLERANCE);
    }
    // Only what is known to be for pictures is left out.
    let strange = seeing(
        &text,
        ["language_model.model.", "model."],
        &["audio_tower.a.weight", "vision_tower.b", "vision_tower.c"],
    );
    let loaded = Model::load(&VerifiedFolder::unlisted(&strange), &options, &mut |_| ControlFlow::Continue(()));
    let error = loaded.map(drop).expect_err("it hears too");
    assert_eq!(error.to_string(), "tensor `audio_tower.a`: this architecture has no such part");
}

/// Drafts are verified several at once: that must not change a single bit.
fn check_exact(golden: &Value, folder: &Path, options: &LoadOptions) {
    let prompt = tokens(&golden["prompt"]);
    let (mut one, mut several) = (load(folder, options), load(folder, options));
    assert!(one.is_exact_in_batches());
    forward(&mut one, &prompt[..7]);
    forward(&mut several, &prompt[..7]);
    for (from, to) in [(7, 9), (9, 10), (10, 13), (13, 17), (17, 22), (22, 28), (28, 35), (32, 40)] {
        // A draft of which some were wrong was in between.
        several.truncate(from);
        one.truncate(from);
        let found = several.forward_each(&prompt[from..to], &|| false).expect("the tokens are the model's");
        let alone: Vec<f32> = prompt[from..to].iter().flat_map(|token| forward(&mut one, &[*token])).collect();
        let what = format!("{} {:?}, {from}..{to}", folder.display(), options.activations);
        assert!(found.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
        assert_eq!(found.len(), alone.len(), "{what}");
    }
}

#[test]
fn several_tokens_at_once_are_what_one_after_another_is() {
    let ways = || {
        let int16 = InstructionSet::all().into_iter().map(|instruction_set| cpu(Activations::Int16, instruction_set));
        int16.chain([fastest(Activations::Float32)]).collect::<Vec<_>>()
    };
    for (_, folder) in tiny() {
        let golden = read(&folder.join("golden.json"));
        ways().iter().for_each(|options| check_exact(&golden, &folder, options));
    }
    for (adapter, golden, model) in adapters() {
        ways().into_iter().for_each(|options| check_exact(&golden, &model, &adapted(&adapter, options)));
    }
}

#[test]
fn the_default_model_answers_what_mlx_lm_answers() {
    let golden = read(&vectors().join("smollm2.json"));
    let mut model = load(&crate::model::folder(), &fastest(Activations::Int16));
    for chat in golden["chats"].as_array().expect("a list") {
        model.truncate(0);
        let expected = tokens(&chat["tokens"]);
        let leads: Vec<f32> = serde_json::from_value(chat["leads"].clone()).expect("leads are numbers");
        let mut logits = forward(&mut model, &tokens(&chat["prompt"]));
        for (idx, token) in expected.iter().enumerate() {
            assert_eq!(argmax(&logits), *token, "token {idx} of {}, which leads by {}", chat["answer"], leads[idx]);
            logits = forward(&mut model, &[*token]);
        }
    }
}

/// MLX, whose float32 is what the goldens were made with.
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
fn mlx() -> LoadOptions {
    LoadOptions { backend: BackendChoice::Mlx, ..fastest(Activations::Float32) }
}

#[test]
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
fn tiny_models_compute_over_mlx_what_mlx_lm_computes() {
    for (_, folder) in tiny() {
        check_tiny(&folder, &mlx(), FLOAT32_TOLERANCE);
        // The whole prompt at once: with experts, its tokens are sorted by them.
        check_tiny(&folder, &LoadOptions { num_batch: None, ..mlx() }, FLOAT32_TOLERANCE);
    }
}

/// The first tokens of each answer: MLX's quantised kernels for the processor are slow.
#[test]
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
fn the_default_model_begins_its_answers_over_mlx_as_mlx_lm_does() {
    let golden = read(&vectors().join("smollm2.json"));
    let mut model = load(&crate::model::folder(), &LoadOptions { num_batch: None, ..mlx() });
    for chat in golden["chats"].as_array().expect("a list") {
        model.truncate(0);
        let mut logits = forward(&mut model, &tokens(&chat["prompt"]));
        for (idx, token) in tokens(&chat["tokens"]).into_iter().take(8).enumerate() {
            assert_eq!(argmax(&logits), token, "token {idx} of {}", chat["answer"]);
            logits = forward(&mut model, &[token]);
        }
    }
}

/// Every adapter of `tests/vectors/goldens/adapters`, with its golden and the folder of its model.
fn adapters() -> Vec<(PathBuf, Value, PathBuf)> {
    let all = ["llama-bf16", "llama-q4", "qwen3-q8"].map(|name| {
        let folder = vectors().join("adapters").join(name);
        let golden = read(&folder.join("golden.json"));
        let model = vectors().join(golden["model"].as_str().expect("it names its model"));
        (folder, golden, model)
    });
    all.into()
}

fn adapted(folder: &Path, options: LoadOptions) -> LoadOptions {
    LoadOptions { adapter: Some(AdapterFiles::new(VerifiedFolder::unlisted(folder), "")), ..options }
}

#[test]
fn adapters_change_what_mlx_lm_says_they_change() {
    for (adapter, golden, model) in adapters() {
        let float32 = || fastest(Activations::Float32);
        check_against(&golden, &model, &adapted(&adapter, float32()), FLOAT32_TOLERANCE);
        check_against(&golden, &model, &adapted(&adapter, scalar(Activations::Float32)), FLOAT32_TOLERANCE);
        let int16 = LoadOptions { threads: Some(3), ..fastest(Activations::Int16) };
        check_against(&golden, &model, &adapted(&adapter, int16), INT16_TOLERANCE);
        // Without it, the model says what it says without it.
        let mut plain = load(&model, &float32());
        let mut greedy = vec![argmax(&forward(&mut plain, &tokens(&golden["prompt"])))];
        while greedy.len() < 32 {
            greedy.push(argmax(&forward(&mut plain, &[greedy[greedy.len() - 1]])));
        }
        assert_eq!(greedy, tokens(&golden["base_greedy"]), "{}", model.display());
        assert_ne!(greedy, tokens(&golden["greedy"]), "{}", adapter.display());
        let memory = |options: &LoadOptions| {
            Model::memory_bytes(&VerifiedFolder::unlisted(&model), options).expect("the headers are right")
        };
        assert!(memory(&adapted(&adapter, float32())) > memory(&float32()));
    }
}

#[test]
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
fn adapters_change_over_mlx_what_mlx_lm_says_they_change() {
    for (adapter, golden, model) in adapters() {
        check_against(&golden, &model, &adapted(&adapter, mlx()), FLOAT32_TOLERANCE);
    }
}

#[test]
fn a_model_refuses_what_it_cannot_compute() {
    let mut model = load(&vectors().join("tiny/llama-tied/bf16"), &fastest(Activations::Int16));
    forward(&mut model, &[1, 2, 3]);
    let outside = model.config().vocab_size as u32;
    let error = model.forward(&[1, outside], &|| false).expect_err("there is no such token");
    assert_eq!(error, ForwardError::Token { token: outside, vocab_size: outside as usize });
    let error = model.forward(&vec![1; model.num_ctx()], &|| false).expect_err("three are in already");
    assert_eq!(error, ForwardError::Full { num_ctx: model.num_ctx() });
    assert_eq!(model.forward(&[], &|| false), Err(ForwardError::Empty));
    assert_eq!(model.forward(&[1, 2], &|| true), Err(ForwardError::Cancelled));
    assert_eq!(model.len(), 3, "what fails leaves the cache as it was");
}
