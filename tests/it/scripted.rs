//! A tiny checkpoint whose weights are a script: attention and MLP are zero, so the next token depends on the last alone.
//!
//! With `lm_head(embed(token))` as a transition table, the product's own loader, tokenizer, template, engine and sampler
//! run end to end in milliseconds and say a text that the test knows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;

const WIDTH: usize = 128;
const VOCABULARY: usize = 128;

/// The chat template of the scripted checkpoint: ChatML, as the default model's.
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Control tokens first, then single bytes, then the words of the script.
fn vocabulary(words: &[&str]) -> Vec<String> {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).into();
    // Byte-level BPE writes a newline as Ċ and a space as Ġ.
    tokens.extend(["Ċ".into(), "Ġ".into()]);
    tokens.extend((b'!'..=b'~').map(|byte| char::from(byte).to_string()));
    tokens.extend(words.iter().map(|word| word.replace(' ', "Ġ").replace('\n', "Ċ")));
    assert!(tokens.len() <= VOCABULARY, "the script has too many words");
    tokens
}

/// Writes a checkpoint into `folder` that answers every prompt with `words`, one token each.
///
/// No word may occur twice, nor be a single character: the last token alone decides the next one. With `endless` the
/// last word leads back to the first.
pub(crate) fn write(folder: &Path, words: &[&str], endless: bool) {
    write_sized(folder, words, endless, 32);
}

/// As [`write`], with an MLP of that width: 1536 bytes of weights each, which come to nothing.
pub(crate) fn write_sized(folder: &Path, words: &[&str], endless: bool, width: usize) {
    fs::create_dir_all(folder).expect("target can be written");
    let tokens = vocabulary(words);
    let id_of = |word: &str| tokens.iter().position(|token| token == word).expect("it is in the vocabulary");
    let first = tokens.len() - words.len();
    let end = id_of("<|im_end|>");
    // Every prompt ends with "assistant\n", so the newline starts the answer.
    let mut next: BTreeMap<usize, usize> = [(id_of("Ċ"), first)].into();
    for idx in 0..words.len() {
        let last = idx + 1 == words.len();
        next.insert(
            first + idx,
            if !last {
                first + idx + 1
            } else if endless {
                first
            } else {
                end
            },
        );
    }
    let text = |name: &str, value: &serde_json::Value| {
        fs::write(folder.join(name), value.to_string()).expect("target can be written");
    };
    text(
        "config.json",
        &json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "num_hidden_layers": 1,
            "intermediate_size": width, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
            "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
        }),
    );
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let control: Vec<_> = (0..3)
        .map(|id| {
            json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    text(
        "tokenizer.json",
        &json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": control, "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
        }),
    );
    text("tokenizer_config.json", &json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}));
    fs::write(folder.join("model.safetensors"), weights(&next, width)).expect("target can be written");
}

/// As [`write`], with a template that knows of thoughts: `<think>` and `</think>` may be among the words.
pub(crate) fn write_thinker(folder: &Path, words: &[&str]) {
    write(folder, words, false);
    let config = folder.join("tokenizer_config.json");
    let text = fs::read_to_string(&config).expect("it was written");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    value["chat_template"] = format!("{{# thoughts stand between <think> and </think> #}}{TEMPLATE}").into();
    fs::write(config, value.to_string()).expect("target can be written");
}

/// The element of a matrix at a row and a column.
type Value<'a> = &'a dyn Fn(usize, usize) -> f32;

/// All weights of the checkpoint, as a safetensors file.
fn weights(next: &BTreeMap<usize, usize>, width: usize) -> Vec<u8> {
    let eye = |row: usize, column: usize| f32::from(u8::from(row == column));
    let script = |row: usize, column: usize| if next.get(&column) == Some(&row) { 10.0 } else { 0.0 };
    let zero = |_: usize, _: usize| 0.0;
    let one = |_: usize, _: usize| 1.0;
    // No two are the same, so that a piece of the file can be found on a drive; what they come to is multiplied by zero.
    let unlike = |row: usize, column: usize| (row * WIDTH + column) as f32 / 4_000_000.0;
    let negative = |row: usize, column: usize| -unlike(row, column);
    let layer = "model.layers.0.";
    let tensors: [(String, Vec<usize>, Value<'_>); 12] = [
        ("model.embed_tokens.weight".into(), vec![VOCABULARY, WIDTH], &eye),
        ("lm_head.weight".into(), vec![VOCABULARY, WIDTH], &script),
        ("model.norm.weight".into(), vec![WIDTH], &one),
        (format!("{layer}input_layernorm.weight"), vec![WIDTH], &one),
        (format!("{layer}post_attention_layernorm.weight"), vec![WIDTH], &one),
        (format!("{layer}self_attn.q_proj.weight"), vec![128, WIDTH], &zero),
        (format!("{layer}self_attn.k_proj.weight"), vec![64, WIDTH], &zero),
        (format!("{layer}self_attn.v_proj.weight"), vec![64, WIDTH], &zero),
        (format!("{layer}self_attn.o_proj.weight"), vec![WIDTH, 128], &zero),
        (format!("{layer}mlp.gate_proj.weight"), vec![width, WIDTH], &unlike),
        (format!("{layer}mlp.up_proj.weight"), vec![width, WIDTH], &negative),
        (format!("{layer}mlp.down_proj.weight"), vec![WIDTH, width], &zero),
    ];
    safetensors(&tensors)
}

/// Writes a LoRA adapter into `folder`, for the checkpoint that says `words`: with it, every answer begins with `first`.
pub(crate) fn write_adapter(folder: &Path, words: &[&str], first: &str) {
    fs::create_dir_all(folder).expect("target can be written");
    let tokens = vocabulary(words);
    let id_of = |word: &str| tokens.iter().position(|token| token == word).expect("it is in the vocabulary");
    let (newline, first) = (id_of("Ċ"), id_of(&first.replace(' ', "Ġ")));
    let a = |row: usize, _: usize| f32::from(u8::from(row == newline));
    let b = |_: usize, column: usize| f32::from(u8::from(column == first));
    let tensors: [(String, Vec<usize>, Value<'_>); 2] =
        [("lm_head.lora_a".into(), vec![WIDTH, 1], &a), ("lm_head.lora_b".into(), vec![1, VOCABULARY], &b)];
    fs::write(folder.join("adapters.safetensors"), safetensors(&tensors)).expect("target can be written");
    let parameters = json!({"rank": 1, "scale": 20.0, "dropout": 0.0, "keys": ["lm_head"]});
    let config = json!({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters});
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("target can be written");
}

/// The bytes of a safetensors file, float32 throughout.
fn safetensors(tensors: &[(String, Vec<usize>, Value<'_>)]) -> Vec<u8> {
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "mlx"}));
    for (name, shape, value) in tensors {
        let start = body.len();
        let columns = shape.last().copied().unwrap_or(1);
        let rows = if shape.len() == 2 { shape[0] } else { 1 };
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            body.extend(value(row, column).to_le_bytes());
        }
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, body.len()]}));
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &body].concat()
}
