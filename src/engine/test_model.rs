//! A tiny checkpoint for tests whose layers do nothing: each token decides the next one, by a table.
//!
//! The tokenizer is byte-level without merges: token `b` is the byte `b`, then come the control tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::test_folder::TestFolder;
use crate::verified::VerifiedFolder;

pub(crate) const VOCAB_SIZE: usize = 320;
pub(crate) const IM_START: u32 = 256;
pub(crate) const IM_END: u32 = 257;
pub(crate) const THINK: u32 = 258;
pub(crate) const THINK_END: u32 = 259;
/// Harmony's `<|start|>`, `<|end|>`, `<|message|>`, `<|channel|>`.
pub(crate) const HARMONY: [u32; 4] = [260, 261, 262, 263];
pub(crate) const RETURN: u32 = 264;

/// ChatML, our own wording.
pub(crate) const CHATML: &str = "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What the model says after the `\n` that ends every prompt: one byte leads to the next, the last to the end.
pub(crate) fn saying(text: &str) -> Vec<(u32, u32)> {
    let bytes = text.bytes().map(u32::from);
    [u32::from(b'\n')].into_iter().chain(bytes.clone()).zip(bytes.chain([IM_END])).collect()
}

/// GPT-2's printable stand-in of a byte (`bytes_to_unicode`).
fn byte_char(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match is_printable(byte) {
        true => char::from(byte),
        false => {
            let rank = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
            char::from_u32(256 + rank).expect("68 characters from U+0100 on")
        }
    }
}

pub(crate) fn tokenizer_json() -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_char(byte).to_string(), json!(byte));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [
            added(IM_START, "<|im_start|>", true), added(IM_END, "<|im_end|>", true),
            added(THINK, "<think>", false), added(THINK_END, "</think>", false),
            added(260, "<|start|>", true), added(261, "<|end|>", true), added(262, "<|message|>", true),
            added(263, "<|channel|>", true), added(RETURN, "<|return|>", true),
        ],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}

/// Writes the checkpoint: with `table`, the token of each pair's left side leads to that of the right side.
pub(crate) fn write(folder: &Path, template: &str, table: &[(u32, u32)]) {
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("target can be written");
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": VOCAB_SIZE,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 5, "num_key_value_heads": 5,
        "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512, "tie_word_embeddings": false, "eos_token_id": IM_END, "hidden_act": "silu",
    });
    put("config.json", config.to_string().as_bytes());
    put("tokenizer.json", tokenizer_json().to_string().as_bytes());
    put("tokenizer_config.json", json!({"eos_token": "<|im_end|>"}).to_string().as_bytes());
    put("chat_template.jinja", template.as_bytes());

    let hidden = VOCAB_SIZE;
    let mut embed = vec![0.0f32; VOCAB_SIZE * hidden];
    let mut head = vec![0.0f32; VOCAB_SIZE * hidden];
    for token in 0..VOCAB_SIZE {
        embed[token * hidden + token] = 1.0;
    }
    for &(from, to) in table {
        head[to as usize * hidden + from as usize] = 4.0;
    }
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    tensors.insert("model.embed_tokens.weight".into(), (vec![VOCAB_SIZE, hidden], embed));
    tensors.insert("lm_head.weight".into(), (vec![VOCAB_SIZE, hidden], head));
    tensors.insert("model.norm.weight".into(), (vec![hidden], vec![1.0; hidden]));
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.insert(format!("model.layers.0.{norm}.weight"), (vec![hidden], vec![1.0; hidden]));
    }
    for (name, rows, columns) in [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", hidden, hidden),
        ("self_attn.v_proj", hidden, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", 64, hidden),
        ("mlp.up_proj", 64, hidden),
        ("mlp.down_proj", hidden, 64),
    ] {
        tensors.insert(format!("model.layers.0.{name}.weight"), (vec![rows, columns], vec![0.0; rows * columns]));
    }
    put("model.safetensors", &safetensors_bytes(&tensors));
}

/// Writes an adapter beside the checkpoint, `adapters.safetensors`, that adds nothing to it.
pub(crate) fn write_adapter(folder: &Path) {
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("target can be written");
    let config = json!({"fine_tune_type": "lora", "lora_parameters": {"rank": 1, "scale": 1.0}});
    put("adapter_config.json", config.to_string().as_bytes());
    let mut tensors = BTreeMap::new();
    tensors.insert("lm_head.lora_a".into(), (vec![VOCAB_SIZE, 1], vec![0.0; VOCAB_SIZE]));
    tensors.insert("lm_head.lora_b".into(), (vec![1, VOCAB_SIZE], vec![0.0; VOCAB_SIZE]));
    put("adapters.safetensors", &safetensors_bytes(&tensors));
}

fn safetensors_bytes(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "mlx"}));
    for (name, (shape, values)) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// Writes the checkpoint into a folder of its own.
pub(crate) fn folder(template: &str, table: &[(u32, u32)]) -> (TestFolder, VerifiedFolder) {
    let folder = TestFolder::new();
    write(folder.path(), template, table);
    let verified = VerifiedFolder::unlisted(folder.path());
    (folder, verified)
}
