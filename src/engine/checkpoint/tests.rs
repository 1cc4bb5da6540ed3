//! Damaged checkpoints and the errors they get.

use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::engine::models::{LoadOptions, Model};
use crate::test_folder::TestFolder;

/// A configuration of a small llama.
fn config() -> Value {
    json!({ "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10 })
}

/// The bytes of a safetensors file with this header.
fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

/// A file of zeros with these tensors, one after another.
fn tensors(list: &[(&str, &str, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, dtype, shape) in list {
        let size = if *dtype == "F32" || *dtype == "U32" { 4 } else { 2 };
        let end = at + shape.iter().product::<usize>() * size;
        header.insert((*name).into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    safetensors(&Value::Object(header).to_string(), at)
}

/// All tensors of the small llama.
fn whole() -> Vec<(&'static str, &'static str, Vec<usize>)> {
    vec![
        ("model.embed_tokens.weight", "F32", vec![10, 32]),
        ("model.norm.weight", "F32", vec![32]),
        ("model.layers.0.input_layernorm.weight", "BF16", vec![32]),
        ("model.layers.0.post_attention_layernorm.weight", "F32", vec![32]),
        ("model.layers.0.self_attn.q_proj.weight", "F16", vec![32, 32]),
        ("model.layers.0.self_attn.k_proj.weight", "F32", vec![16, 32]),
        ("model.layers.0.self_attn.v_proj.weight", "F32", vec![16, 32]),
        ("model.layers.0.self_attn.o_proj.weight", "F32", vec![32, 32]),
        ("model.layers.0.mlp.gate_proj.weight", "F32", vec![64, 32]),
        ("model.layers.0.mlp.up_proj.weight", "F32", vec![64, 32]),
        ("model.layers.0.mlp.down_proj.weight", "F32", vec![32, 64]),
    ]
}

fn write(folder: &Path, config: &str, weights: &[u8]) {
    std::fs::write(folder.join("config.json"), config).expect("target can be written");
    std::fs::write(folder.join("model.safetensors"), weights).expect("target can be written");
}

fn open(weights: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let folder = TestFolder::new();
    write(folder.path(), &config().to_string(), weights);
    Checkpoint::open(&VerifiedFolder::unlisted(folder.path()), None)
}

/// What loading a whole model says.
fn load(config: &str, weights: &[u8]) -> String {
    let folder = TestFolder::new();
    write(folder.path(), config, weights);
    let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
    let loaded = Model::load(&VerifiedFolder::unlisted(folder.path()), &options, &mut |_| ControlFlow::Continue(()));
    loaded.map_or_else(|error| error.to_string(), |_| "loaded".into())
}

#[test]
fn damaged_headers_say_what_is_wrong() {
    let one = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"{first}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"{second}":{{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}}}"#
        )
    };
    let claims = |bytes: u64| [&bytes.to_le_bytes()[..], b"{}"].concat();
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let nul = (u64::MAX, "18446744073709551615");
    let cases: Vec<(Vec<u8>, String)> = vec![
        (vec![], "it has no header".into()),
        (vec![1, 0, 0], "it has no header".into()),
        (claims(1 << 60), "its header claims 1152921504606846976 bytes".into()),
        (claims(nul.0), format!("its header claims {} bytes", nul.1)),
        (claims(3), "its header claims 3 bytes".into()),
        (safetensors("", 4), "its header: EOF while parsing a value at line 1 column 0".into()),
        (safetensors("{", 4), "its header: EOF while parsing an object at line 1 column 1".into()),
        (
            safetensors("[]", 4),
            "its header: invalid type: sequence, expected an object of tensors at line 1 column 0".into(),
        ),
        (
            safetensors(r#"{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}"#, 4),
            "its header: unknown variant `F7`, expected one of `F16`, `BF16`, `F32`, `U32`, `U8` at line 1 column 18"
                .into(),
        ),
        (
            safetensors(&one("[-1]", 0, 4), 4),
            "its header: invalid value: integer `-1`, expected usize at line 1 column 38".into(),
        ),
        (safetensors(&deep, 4), "its header: expected value at line 1 column 7".into()),
        (safetensors(&one("[1]", 4, 0), 4), "tensor `a.weight` ends before it begins".into()),
        (safetensors(&one("[]", 0, 4), 4), "tensor `a.weight` has the shape []".into()),
        (safetensors(&one("[0]", 0, 0), 4), "tensor `a.weight` has the shape [0]".into()),
        (safetensors(&one("[1,1,1,1,1]", 0, 4), 4), "tensor `a.weight` has the shape [1, 1, 1, 1, 1]".into()),
        (safetensors(&one("[2]", 0, 4), 4), "tensor `a.weight` has 4 bytes, which its shape [2] doesn't".into()),
        (
            safetensors(&one("[4294967296,4294967297]", 0, 4), 4),
            "tensor `a.weight` has 4 bytes, which its shape [4294967296, 4294967297] doesn't".into(),
        ),
        (
            safetensors(&one("[9223372036854775808,2]", 0, 4), 4),
            "tensor `a.weight` has 4 bytes, which its shape [9223372036854775808, 2] doesn't".into(),
        ),
        (safetensors(&one("[2]", 0, 8), 4), "tensor `a.weight` ends after the file".into()),
        (safetensors(&one("[1]", u64::MAX - 4, u64::MAX), 4), "tensor `a.weight` ends after the file".into()),
        (safetensors(&two("a.weight", "b.weight"), 12), "tensor `b.weight` overlaps another".into()),
        (safetensors(&two("a.weight", "a.weight"), 12), "tensor `a.weight` is there twice".into()),
    ];
    for (bytes, expected) in cases {
        let error = open(&bytes).expect_err(&expected);
        assert_eq!(error.to_string(), format!("`model.safetensors` isn't valid: {expected}"));
        assert_eq!(error.hint().as_deref(), Some("import the model again from its source"));
    }
}

#[test]
fn damaged_configurations_say_what_is_wrong() {
    let with = |name: &str, value: Value| {
        let mut config = config();
        config[name] = value;
        config.to_string()
    };
    let invalid = |why: &str| format!("`config.json` isn't valid: {why}");
    let needs = |what: &str| format!("the model needs {what}, which isn't supported");
    let scaled = |scaling: Value| with("rope_scaling", scaling);
    let quantised =
        |bits: Value, group_size: u32| with("quantization", json!({ "bits": bits, "group_size": group_size }));
    let cases = [
        ("".into(), invalid("EOF while parsing a value at line 1 column 0")),
        ("[]".into(), invalid("invalid type: sequence, expected a map at line 1 column 0")),
        ("{}".into(), invalid("it has no `model_type`")),
        ("[".repeat(100_000), invalid("invalid type: sequence, expected a map at line 1 column 0")),
        (format!("{{\"a\":{}", "[".repeat(100_000)), invalid("recursion limit exceeded at line 1 column 132")),
        (
            with("model_type", "mamba".into()),
            format!(
                "the architecture `mamba` isn't supported (supported: {})",
                ModelType::ALL.map(ModelType::name).join(", ")
            ),
        ),
        (with("model_type", "gemma3".into()), invalid("it has no object `text_config`")),
        (
            json!({ "model_type": "gemma3", "text_config": { "model_type": "t5" } }).to_string(),
            needs("another text part than `gemma3_text`"),
        ),
        (
            json!({ "model_type": "gemma3", "text_config": { "hidden_size": -1 } }).to_string(),
            invalid("it has no whole number `hidden_size`"),
        ),
        (with("hidden_act", "relu".into()), needs("the activation `relu`")),
        (with("hidden_size", 0.into()), invalid("`hidden_size` is 0, not within 1 to 1048576")),
        (with("hidden_size", 1.5.into()), invalid("it has no whole number `hidden_size`")),
        (with("hidden_size", "32".into()), invalid("it has no whole number `hidden_size`")),
        (with("num_attention_heads", 0.into()), invalid("`num_attention_heads` is 0, not within 1 to 1048576")),
        (with("num_attention_heads", 64.into()), invalid("64 heads, 1 for keys, 0 wide, don't go together")),
        (with("num_key_value_heads", 0.into()), invalid("`num_key_value_heads` is 0, not within 1 to 1048576")),
        (with("num_key_value_heads", 3.into()), invalid("2 heads, 3 for keys, 16 wide, don't go together")),
        (with("head_dim", 5.into()), invalid("2 heads, 1 for keys, 5 wide, don't go together")),
        (with("num_hidden_layers", 5_000.into()), invalid("`num_hidden_layers` is 5000, not within 1 to 1024")),
        (with("vocab_size", u64::MAX.into()), invalid("`vocab_size` is 18446744073709551615, not within 1 to 4194304")),
        (with("rms_norm_eps", (-1).into()), invalid("`rms_norm_eps` isn't a number within 0.000000000001 to 1")),
        (with("rope_theta", 0.into()), invalid("`rope_theta` isn't a number within 1 to 1000000000000")),
        (with("eos_token_id", json!(["a"])), invalid("`eos_token_id` isn't a token or a list of tokens")),
        (scaled(json!(1)), invalid("`rope_scaling` isn't an object")),
        (scaled(json!({ "type": "longrope" })), needs("rope scaling of type `longrope`")),
        (scaled(json!({ "type": "yarn" })), invalid("it has no number `factor`")),
        (
            scaled(json!({ "type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 1 })),
            invalid("`beta_fast` isn't above `beta_slow`"),
        ),
        (scaled(json!({ "type": "yarn", "factor": 2, "mscale": 1 })), needs("YaRN with `mscale`")),
        (with("rope_parameters", json!(7)), invalid("`rope_parameters` isn't an object")),
        (
            with("rope_parameters", json!({ "rope_theta": 0, "rope_type": "default" })),
            invalid("`rope_theta` isn't a number within 1 to 1000000000000"),
        ),
        (with("rope_parameters", json!({ "rope_type": "longrope" })), needs("rope scaling of type `longrope`")),
        (with("use_sliding_window", true.into()), needs("a sliding window of `llama`")),
        (scaled(json!({ "type": "linear" })), invalid("it has no number `factor`")),
        (with("quantization", json!(4)), invalid("`quantization` isn't an object")),
        (quantised(7.into(), 64), needs("quantisation to 7 bits in groups of 64")),
        (quantised(Value::Null, 48), needs("quantisation to ? bits in groups of 48")),
        (
            with("quantization", json!({ "bits": 4, "group_size": 16, "mode": "nvfp4" })),
            needs("quantisation of mode `nvfp4`"),
        ),
        (
            with("quantization", json!({ "bits": 4, "group_size": 64, "mode": "mxfp4" })),
            needs("quantisation to 4 bits in groups of 64"),
        ),
        (
            with("quantization_config", json!({ "quant_method": "mxfp4" })),
            needs("a checkpoint quantised as transformers does it; import its MLX conversion"),
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(load(&config, &tensors(&whole())), expected);
    }
}

#[test]
fn what_one_architecture_alone_has_is_checked() {
    let parsed = |kind: &str, values: Value| {
        let mut config = config();
        config["model_type"] = kind.into();
        config.as_object_mut().expect("an object").extend(values.as_object().expect("an object").clone());
        ModelConfig::parse(config.to_string().as_bytes())
    };
    let gpt_oss = |values: Value| {
        let mut all = json!({ "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3 });
        all.as_object_mut().expect("an object").extend(values.as_object().expect("an object").clone());
        parsed("gpt_oss", all)
    };
    let gemma = |values: Value| {
        let mut all = json!({ "hidden_act": null, "num_hidden_layers": 7 });
        all.as_object_mut().expect("an object").extend(values.as_object().expect("an object").clone());
        parsed("gemma3_text", all)
    };
    let windows = |config: &ModelConfig| (0..config.layers).map(|layer| config.window_of(layer)).collect::<Vec<_>>();
    let config = gpt_oss(json!({})).expect("it is whole");
    assert_eq!(windows(&config), [Some(128), None, Some(128)]);
    let types = json!(["full_attention", "sliding_attention", "full_attention"]);
    let config = gpt_oss(json!({ "layer_types": types, "sliding_window": 9 })).expect("it is whole");
    assert_eq!(windows(&config), [None, Some(9), None]);
    let config = gemma(json!({})).expect("it is whole");
    assert_eq!(windows(&config), [Some(512), Some(512), Some(512), Some(512), Some(512), None, Some(512)]);
    // As transformers 5 writes it.
    let own = json!({ "sliding_attention": { "rope_type": "default", "rope_theta": 9_000.0 },
                      "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 } });
    let config = gemma(json!({ "rope_parameters": own })).expect("it is whole");
    assert_eq!((config.rope_theta, config.rope_scaling), (5e5, Some(RopeScaling::Linear { factor: 8.0 })));
    assert!(matches!(config.particular, Particular::Gemma3(own) if own.rope_local_base_freq == 9_000.0));
    let own = json!({ "rope_type": "default", "rope_theta": 5e5 });
    let config = parsed("llama", json!({ "rope_parameters": own })).expect("it is whole");
    assert_eq!((config.rope_theta, config.rope_scaling), (5e5, None));
    let message = |config: Result<ModelConfig, CheckpointError>| config.expect_err("it can't be").to_string();
    for (config, expected) in [
        (gpt_oss(json!({ "num_local_experts": 0 })), "`num_local_experts` is 0, not within 1 to 1024"),
        (gpt_oss(json!({ "num_experts_per_tok": 1 })), "`num_experts_per_tok` is 1, not within 2 to 4"),
        (gpt_oss(json!({ "num_experts_per_tok": 5 })), "`num_experts_per_tok` is 5, not within 2 to 4"),
        (gpt_oss(json!({ "layer_types": ["full_attention"] })), "`layer_types` names 1 of 3 layers"),
        (gpt_oss(json!({ "layer_types": ["a", "b", "c"] })), "`layer_types` names another kind than"),
        (gpt_oss(json!({ "layer_types": 7 })), "`layer_types` isn't a list of layers"),
        (gpt_oss(json!({ "sliding_window": 0 })), "`sliding_window` is 0, not within"),
        (gpt_oss(json!({ "swiglu_limit": -1 })), "`swiglu_limit` isn't a number within"),
        (gemma(json!({ "sliding_window_pattern": 0 })), "`sliding_window_pattern` is 0, not within"),
        (gemma(json!({ "final_logit_softcapping": 30.0 })), "the model needs `final_logit_softcapping`"),
        (gemma(json!({ "hidden_act": "silu" })), "the model needs the activation `silu`"),
        (gemma(json!({ "layer_types": ["full_attention"] })), "the model needs other `layer_types`"),
        (gemma(json!({ "query_pre_attn_scalar": 0 })), "`query_pre_attn_scalar` isn't a number within"),
    ] {
        let message = message(config);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn tensors_that_do_not_fit_say_which() {
    assert_eq!(load(&config().to_string(), &tensors(&whole())), "loaded", "the others fail for their own reason");
    for left_out in 0..whole().len() {
        let mut list = whole();
        let (name, ..) = list.remove(left_out);
        let name = if name.contains("norm") { name.trim_end_matches(".weight") } else { name };
        assert_eq!(load(&config().to_string(), &tensors(&list)), format!("tensor `{name}`: it is missing"));
    }
    let mut quantised = config();
    quantised["quantization"] = json!({ "bits": 4, "group_size": 32 });
    let quantised = quantised.to_string();
    let q_proj = "model.layers.0.self_attn.q_proj";
    let with = |parts: [(&'static str, Vec<usize>); 3]| {
        let mut list = whole();
        list.remove(4);
        list.push(("model.layers.0.self_attn.q_proj.weight", parts[0].0, parts[0].1.clone()));
        list.push(("model.layers.0.self_attn.q_proj.scales", parts[1].0, parts[1].1.clone()));
        list.push(("model.layers.0.self_attn.q_proj.biases", parts[2].0, parts[2].1.clone()));
        tensors(&list)
    };
    let (words, one) = (("U32", vec![32, 4]), ("F16", vec![32, 1]));
    assert_eq!(load(&quantised, &with([words.clone(), one.clone(), one.clone()])), "loaded");
    let shape = "its shape doesn't fit 4 bits in groups of 32";
    let types = "its `scales` and `biases` must be floats of one type";
    let cases = [
        (with([("U32", vec![32, 3]), one.clone(), one.clone()]), shape),
        (with([words.clone(), ("F16", vec![32, 2]), one.clone()]), shape),
        (with([words.clone(), one.clone(), ("F16", vec![1, 32])]), shape),
        (with([words.clone(), one.clone(), ("BF16", vec![32, 1])]), types),
        (with([words.clone(), ("U32", vec![32, 1]), ("U32", vec![32, 1])]), types),
        (
            with([("U32", vec![32, 8]), ("F16", vec![32, 2]), ("F16", vec![32, 2])]),
            "its shape is [32, 64] where `config.json` asks for [32, 32]",
        ),
    ];
    for (weights, why) in cases {
        assert_eq!(load(&quantised, &weights), format!("tensor `{q_proj}.weight`: {why}"));
    }
    let weights = with([words, one.clone(), one]);
    assert_eq!(
        load(&config().to_string(), &weights),
        format!("tensor `{q_proj}.weight`: `config.json` has no `quantization`")
    );
    let mut list = whole();
    list.push(("model.layers.1.mlp.up_proj.weight", "F32", vec![64, 32]));
    let found = load(&config().to_string(), &tensors(&list));
    assert!(found.starts_with("tensor `model.layers.1.mlp.up_proj"), "{found}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = tensors(&whole()[..3]);
    for len in (0..600.min(bytes.len())).chain((600..bytes.len()).step_by(97)) {
        open(&bytes[..len]).expect_err("something is missing");
    }
    open(&bytes).expect("nothing is missing");
    let folder = TestFolder::new();
    let error = Checkpoint::open(&VerifiedFolder::unlisted(folder.path()), None).expect_err("it is empty");
    assert_eq!(error.to_string(), "the model has no `config.json`");
    std::fs::write(folder.path().join("config.json"), config().to_string()).expect("target can be written");
    let error = Checkpoint::open(&VerifiedFolder::unlisted(folder.path()), None).expect_err("there are no weights");
    assert_eq!(error.to_string(), "the model has no `model.safetensors`");
}

/// Whole rows arrive, each once, in order and unchanged, though chunks of 4 MiB end within rows and between tensors.
#[test]
fn rows_arrive_whole_over_the_borders_of_chunks() {
    let list = [("a", vec![3]), ("b", vec![1_000, 1_501]), ("c", vec![2, 1_600_000]), ("d", vec![5, 7, 3])];
    let mut bytes = tensors(&list.clone().map(|(name, shape)| (name, "F32", shape)));
    let elements: usize = list.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let data_start = bytes.len() - elements * 4;
    for (idx, four) in bytes[data_start..].chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&(idx as u32).to_le_bytes());
    }
    let checkpoint = open(&bytes).expect("it is valid");
    assert_eq!(checkpoint.weight_bytes(), elements as u64 * 4);
    let mut found: Vec<u8> = Vec::new();
    let mut next = (0, 0);
    let mut pieces = 0;
    let mut heard = Vec::new();
    let mut progress = |progress: LoadProgress| {
        heard.push(progress.bytes_read);
        ControlFlow::Continue(())
    };
    let streamed = checkpoint.stream(&mut progress, &mut |idx, row, piece| {
        let shape = &checkpoint.tensors()[idx].shape;
        let rows = if shape.len() > 1 { shape[0] } else { 1 };
        let row_bytes = shape.iter().product::<usize>() * 4 / rows;
        assert_eq!((idx, row), next, "pieces follow each other");
        assert!(!piece.is_empty() && piece.len() % row_bytes == 0, "pieces are whole rows");
        let end = row + piece.len() / row_bytes;
        next = if end == rows { (idx + 1, 0) } else { (idx, end) };
        found.extend(piece);
        pieces += 1;
    });
    streamed.expect("it can be read");
    assert_eq!(next, (4, 0));
    assert!(pieces >= 7, "chunks were cut");
    assert!(found == bytes[data_start..], "every byte arrived");
    assert!(heard.len() > 3 && heard.last() == Some(&(bytes.len() as u64)));
    let cancelled = checkpoint.stream(&mut |_| ControlFlow::Break(()), &mut |_, _, _| ());
    assert!(matches!(cancelled, Err(CheckpointError::Cancelled)));
}

/// Every file that a fuzzer or a person found worth keeping: its name says whether it opens.
#[test]
fn the_corpus_is_answered() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/safetensors");
    let (mut whole, mut damaged) = (0, 0);
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("it can be listed").path();
        let opened = open(&std::fs::read(&path).expect("it can be read"));
        let stated = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("whole"));
        assert_eq!(opened.is_ok(), stated, "{}: {opened:?}", path.display());
        if stated { whole += 1 } else { damaged += 1 }
    }
    assert!(whole >= 2 && damaged >= 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_headers_never_panic(header in prop::collection::vec(any::<u8>(), 0..200), data in 0_usize..64) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.resize(bytes.len() + data, 0);
        let _ = open(&bytes);
    }

    #[test]
    fn changed_bytes_never_panic(at in 0_usize..700, value in any::<u8>()) {
        let mut bytes = tensors(&whole());
        bytes[at] = value;
        let _ = load(&config().to_string(), &bytes);
    }
}
