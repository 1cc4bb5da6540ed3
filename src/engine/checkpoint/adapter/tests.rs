//! Adapters that can't be used and the errors they get; and PEFT's layout, which must say the same as mlx-lm's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::engine::backend::BackendChoice;
use crate::engine::backend::cpu::Activations;
use crate::engine::models::{LoadOptions, Model};
use crate::test_folder::TestFolder;
use crate::verified::VerifiedFolder;

/// What is in a safetensors file: names, types, shapes and bytes.
type Tensors = Vec<(String, &'static str, Vec<usize>, Vec<u8>)>;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/goldens")
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut body) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = body.len() + bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [body.len(), end] }));
        body.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &body].concat()
}

/// A tensor of zeros.
fn zeros(name: &str, shape: &[usize]) -> (String, &'static str, Vec<usize>, Vec<u8>) {
    (name.into(), "F32", shape.into(), vec![0; shape.iter().product::<usize>() * 4])
}

/// A configuration as mlx-lm writes it, of rank 8.
fn config() -> Value {
    json!({ "fine_tune_type": "lora", "num_layers": 3,
            "lora_parameters": { "rank": 8, "scale": 20.0, "dropout": 0.0 } })
}

fn with(mut config: Value, at: &str, value: Value) -> String {
    *config.pointer_mut(at).expect("it is in the configuration") = value;
    config.to_string()
}

/// What loading the model `tiny/MODEL` with this adapter says.
fn load_with(model: &str, config: &str, weights: &[u8]) -> String {
    let folder = TestFolder::new();
    std::fs::write(folder.path().join(ADAPTER_CONFIG), config).expect("target can be written");
    std::fs::write(folder.path().join("adapters.safetensors"), weights).expect("target can be written");
    let options = options(folder.path());
    let model = VerifiedFolder::unlisted(&goldens().join("tiny").join(model));
    Model::load(&model, &options, &mut |_| ControlFlow::Continue(())).map_or_else(
        |error| {
            assert!(error.hint().is_some_and(|hint| !hint.contains("import the model")), "{error}");
            error.to_string()
        },
        |_| "loaded".into(),
    )
}

fn options(adapter: &Path) -> LoadOptions {
    LoadOptions {
        backend: BackendChoice::Cpu,
        activations: Activations::Float32,
        threads: Some(1),
        num_ctx: 64,
        adapter: Some(AdapterFiles::new(VerifiedFolder::unlisted(adapter), ".")),
        ..LoadOptions::default()
    }
}

const LLAMA: &str = "llama-untied/q4-g64";
const Q_PROJ: &str = "model.layers.1.self_attn.q_proj";

/// A pair of matrices of rank 8.
fn pair(module: &str, columns: usize, rows: usize) -> Tensors {
    vec![zeros(&format!("{module}.lora_a"), &[columns, 8]), zeros(&format!("{module}.lora_b"), &[8, rows])]
}

#[test]
fn configurations_say_what_is_wrong() {
    let invalid = |why: &str| format!("the adapter's `adapter_config.json` isn't valid: {why}");
    let unsupported = |what: &str| format!("the adapter is {what}, which isn't supported");
    let peft = || json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "use_dora": false });
    let cases = [
        (String::new(), invalid("EOF while parsing a value at line 1 column 0")),
        ("[]".into(), invalid("invalid type: sequence, expected a map at line 1 column 0")),
        (format!("{{\"a\":{}", "[".repeat(100_000)), invalid("recursion limit exceeded at line 1 column 132")),
        ("{}".into(), invalid("it has no `lora_parameters`")),
        (with(config(), "/fine_tune_type", "dora".into()), unsupported("of the type `dora`")),
        (with(config(), "/fine_tune_type", "full".into()), unsupported("of the type `full`")),
        (
            with(config(), "/fine_tune_type", "qora".into()),
            invalid("`fine_tune_type` is none of `lora`, `dora`, `full`"),
        ),
        (with(config(), "/lora_parameters", json!([1])), invalid("it has no `lora_parameters`")),
        (with(config(), "/lora_parameters/rank", 0.into()), invalid("`rank` is 0, not within 1 to 1024")),
        (
            with(config(), "/lora_parameters/rank", u64::MAX.into()),
            invalid("`rank` is 18446744073709551615, not within 1 to 1024"),
        ),
        (with(config(), "/lora_parameters/rank", json!(1.5)), invalid("it has no whole number `rank`")),
        (with(config(), "/lora_parameters/rank", json!(-8)), invalid("it has no whole number `rank`")),
        (with(config(), "/lora_parameters/scale", Value::Null), invalid("it has no number `scale`")),
        (with(config(), "/lora_parameters/scale", json!(1e300)), invalid("`scale` isn't within -10000 to 10000")),
        // What Python's json writes for what is no number.
        (config().to_string().replace("20.0", "NaN"), invalid("expected value at line 1 column 77")),
        (with(peft(), "/peft_type", "IA3".into()), unsupported("of PEFT's type `IA3`")),
        (with(peft(), "/use_dora", true.into()), unsupported("one with PEFT's `use_dora`")),
        (with(peft(), "/bias", "all".into()), unsupported("one with PEFT's `bias`")),
        (with(peft(), "/r", 2_000.into()), invalid("`r` is 2000, not within 1 to 1024")),
        (with(peft(), "/lora_alpha", Value::Null), invalid("it has no number `lora_alpha`")),
    ];
    for (config, expected) in cases {
        let error = AdapterConfig::parse(config.as_bytes()).expect_err(&expected);
        assert_eq!(error.to_string(), expected, "{}", &config[..config.len().min(200)]);
    }
    let infinite = AdapterConfig::parse(config().to_string().replace("20.0", "1e999").as_bytes());
    let error = infinite.expect_err("it is no number").to_string();
    assert!(error.starts_with(&invalid("number out of range at line 1")), "{error}");
    let good = AdapterConfig::parse(config().to_string().as_bytes()).expect("it is good");
    assert_eq!(good, AdapterConfig { layout: AdapterLayout::Mlx, rank: 8, scale: 20.0 });
    let good = AdapterConfig::parse(peft().to_string().as_bytes()).expect("it is good");
    assert_eq!(good, AdapterConfig { layout: AdapterLayout::Peft, rank: 8, scale: 2.0 });
    let mut stabilised = peft();
    stabilised["use_rslora"] = true.into();
    stabilised["r"] = 16.into();
    let good = AdapterConfig::parse(stabilised.to_string().as_bytes()).expect("it is good");
    assert_eq!(good, AdapterConfig { layout: AdapterLayout::Peft, rank: 16, scale: 4.0 });
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let misfit = |name: &str, why: &str| format!("the adapter's tensor `{name}` doesn't fit the model: {why}");
    let unsupported = |what: &str| format!("the adapter is {what}, which isn't supported");
    let invalid = |why: &str| format!("the adapter's `adapters.safetensors` isn't valid: {why}");
    let load = |tensors: &Tensors| load_with(LLAMA, &config().to_string(), &safetensors(tensors));
    let (a, b) = (format!("{Q_PROJ}.lora_a"), format!("{Q_PROJ}.lora_b"));
    let whole = pair(Q_PROJ, 64, 64);
    assert_eq!(load(&whole), "loaded");
    let shaped = |name: &str, shape: &[usize]| {
        let mut tensors = whole.clone();
        let at = tensors.iter().position(|tensor| tensor.0 == name).expect("it is there");
        tensors[at] = zeros(name, shape);
        tensors
    };
    let mut integers = whole.clone();
    integers[0].1 = "U32";
    let beyond = "model.layers.3.self_attn.q_proj";
    let far = "model.layers.99999999999999999999.self_attn.q_proj";
    let cases = [
        (vec![], invalid("it has no tensors")),
        (whole[..1].to_vec(), misfit(&a, "its `lora_b` is missing")),
        (whole[1..].to_vec(), misfit(&b, "its `lora_a` is missing")),
        (shaped(&a, &[64, 7]), misfit(&a, "its shape is [64, 7] where [64, 8] is needed")),
        (shaped(&a, &[8, 64]), misfit(&a, "its shape is [8, 64] where [64, 8] is needed")),
        (shaped(&a, &[64]), misfit(&a, "its shape is [64] where [64, 8] is needed")),
        (shaped(&b, &[8, 63]), misfit(&b, "its shape is [8, 63] where [8, 64] is needed")),
        (shaped(&b, &[8, 64, 1]), misfit(&b, "its shape is [8, 64, 1] where [8, 64] is needed")),
        (integers, misfit(&a, "its numbers aren't floats")),
        (pair(beyond, 64, 64), misfit(&format!("{beyond}.lora_a"), "the model has 3 layers")),
        (pair(far, 64, 64), misfit(&format!("{far}.lora_a"), "the model has no such part")),
        (pair("model.layers.1.x_proj", 64, 64), {
            misfit("model.layers.1.x_proj.lora_a", "the model has no such part")
        }),
        (pair("model.norm", 64, 64), misfit("model.norm.lora_a", "that part of the model is no matrix")),
        (pair("model.embed_tokens", 320, 64), unsupported("for the embedding")),
        (vec![zeros(&format!("{Q_PROJ}.m"), &[64])], unsupported("of the type `dora`")),
        (
            vec![zeros(&format!("{Q_PROJ}.weight"), &[64, 64])],
            misfit(&format!("{Q_PROJ}.weight"), "it isn't one of the two matrices of a LoRA"),
        ),
        (vec![whole[0].clone(), whole[0].clone()], misfit(&a, "its `lora_b` is missing")),
    ];
    for (tensors, expected) in cases {
        assert_eq!(load(&tensors), expected);
    }
    let bytes = safetensors(&whole);
    assert_eq!(
        load_with(LLAMA, &config().to_string(), &bytes[..bytes.len() - 1]),
        invalid(&format!("tensor `{b}` ends after the file"))
    );
    assert_eq!(load_with(LLAMA, &config().to_string(), b""), invalid("it has no header"));
    for (model, module) in [("gpt_oss/bf16", "gate_proj"), ("gpt_oss/mxfp4", "down_proj")] {
        let experts = pair(&format!("model.layers.0.mlp.experts.{module}"), 64, 64);
        assert_eq!(load_with(model, &config().to_string(), &safetensors(&experts)), unsupported("for experts"));
    }
}

/// The head that a tied model leaves aside can't be adapted: no layer would take it.
#[test]
fn a_part_that_no_layer_takes_is_refused() {
    let folder = TestFolder::new();
    let tied = goldens().join("tiny/llama-untied/bf16");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(tied.join(name), folder.path().join(name)).expect("target can be written");
    }
    let config_path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config_path).expect("it was written");
    std::fs::write(&config_path, text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"))
        .expect("target can be written");
    std::fs::write(folder.path().join(ADAPTER_CONFIG), config().to_string()).expect("target can be written");
    std::fs::write(folder.path().join("adapters.safetensors"), safetensors(&pair("lm_head", 64, 320)))
        .expect("target can be written");
    let model = VerifiedFolder::unlisted(folder.path());
    let error = Model::load(&model, &options(folder.path()), &mut |_| ControlFlow::Continue(()));
    assert_eq!(
        error.expect_err("the head is the embedding").to_string(),
        "the adapter's tensor `lm_head.lora_a` doesn't fit the model: this architecture has no such part"
    );
}

#[test]
fn missing_files_are_named() {
    let folder = TestFolder::new();
    let open = |path: &str| {
        let files = AdapterFiles::new(VerifiedFolder::unlisted(folder.path()), path);
        let model = VerifiedFolder::unlisted(&goldens().join("tiny").join(LLAMA));
        Checkpoint::open(&model, Some(&files)).map_or_else(|error| error.to_string(), |_| "opened".into())
    };
    assert_eq!(open("a"), "the adapter has no `adapter_config.json`");
    std::fs::create_dir(folder.path().join("a")).expect("target can be written");
    std::fs::write(folder.path().join("a/adapter_config.json"), config().to_string()).expect("target can be written");
    for (path, name) in
        [("a", "adapters.safetensors"), ("./a//", "adapters.safetensors"), ("a/b.safetensors", "b.safetensors")]
    {
        assert_eq!(open(path), format!("the adapter has no `{name}`"));
    }
    let weights = safetensors(&pair(Q_PROJ, 64, 64));
    std::fs::write(folder.path().join("a/b.safetensors"), weights).expect("target can be written");
    assert_eq!(open("./a/b.safetensors"), "opened");
    let files = AdapterFiles::new(VerifiedFolder::unlisted(folder.path()), "./a/");
    assert_eq!(files.paths().expect("it is good"), ["a/adapter_config.json", "a/adapters.safetensors"]);
    // Where a list vouches for files, no other counts.
    let files = AdapterFiles::new(VerifiedFolder::listed(folder.path(), []), "a");
    assert_eq!(files.paths().expect_err("nothing is listed").to_string(), "the adapter has no `adapter_config.json`");
}

/// The same adapter in PEFT's layout, its factor as alpha over rank, computes the same.
#[test]
fn peft_says_the_same_as_mlx_lm() {
    let (adapter, model) = (goldens().join("adapters/llama-bf16"), goldens().join("tiny/llama-untied/bf16"));
    let model = VerifiedFolder::unlisted(&model);
    let files = AdapterFiles::new(VerifiedFolder::unlisted(&adapter), "adapters.safetensors");
    let checkpoint = Checkpoint::open(&model, Some(&files)).expect("it is whole");
    let own = *checkpoint.adapter().expect("it was given");
    let mut values: Vec<Vec<u8>> = vec![Vec::new(); checkpoint.tensors().len()];
    checkpoint
        .stream(&mut |_| ControlFlow::Continue(()), &mut |idx, _, bytes| values[idx].extend(bytes))
        .expect("it is whole");
    let mut tensors = Tensors::new();
    for (idx, tensor) in checkpoint.tensors().iter().enumerate().filter(|(idx, _)| own.has(*idx)) {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let at = |row: usize, column: usize| &values[idx][(row * columns + column) * 4..][..4];
        let turned: Vec<u8> =
            (0..columns).flat_map(|column| (0..rows).flat_map(move |row| at(row, column))).copied().collect();
        let name = tensor.name.replace(".lora_a", ".lora_A.weight").replace(".lora_b", ".lora_B.weight");
        tensors.push((format!("base_model.model.{name}"), "F32", vec![columns, rows], turned));
    }
    assert_eq!(tensors.len(), 42, "seven matrices of three layers");
    let folder = TestFolder::new();
    let config = json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 160, "task_type": "CAUSAL_LM", "bias": "none" });
    std::fs::write(folder.path().join(ADAPTER_CONFIG), config.to_string()).expect("target can be written");
    std::fs::write(folder.path().join("adapter_model.safetensors"), safetensors(&tensors))
        .expect("target can be written");
    let logits = |adapter: &Path| {
        let mut loaded = Model::load(&model, &options(adapter), &mut |_| ControlFlow::Continue(())).expect("it fits");
        loaded.forward(&[1, 2, 3, 200], &|| false).expect("the tokens are the model's").to_vec()
    };
    assert_eq!(logits(folder.path()), logits(&adapter));
}
