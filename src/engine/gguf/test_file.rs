//! GGUF files made for tests, right ones and wrong ones.

use std::path::{Path, PathBuf};

/// A GGUF file being put together.
#[derive(Clone)]
pub(crate) struct TestFile {
    pub(crate) version: u32,
    pub(crate) pairs: Vec<(String, Vec<u8>)>,
    /// Name, dimensions (fastest first), ggml's number of the type, bytes.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    pub(crate) alignment: usize,
}

/// The bytes of a text as the format has it.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn text_value(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(value)].concat()
}

pub(crate) fn u32_value(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn f32_value(value: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn texts_value(values: &[&str]) -> Vec<u8> {
    let head = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
    values.iter().fold(head, |bytes, value| [bytes, text(value)].concat())
}

pub(crate) fn i32s_value(values: &[i32]) -> Vec<u8> {
    let head = [&9u32.to_le_bytes()[..], &5u32.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
    values.iter().fold(head, |bytes, value| [&bytes[..], &value.to_le_bytes()].concat())
}

fn f32s(count: u64, value: impl Fn(u64) -> f32) -> Vec<u8> {
    (0..count).flat_map(|i| value(i).to_le_bytes()).collect()
}

impl TestFile {
    /// A llama with one layer: hidden 64, 4 heads of 16 that share 2, inner 96, 8 tokens; all F32.
    pub(crate) fn llama() -> Self {
        let tokens = ["a", "b", "c", "d", "ab", "<e>", "<x>", "abc"];
        let number = |key: &str, value: u32| (format!("llama.{key}"), u32_value(value));
        let tokenizer = |key: &str, value: Vec<u8>| (format!("tokenizer.ggml.{key}"), value);
        let pairs = vec![
            ("general.architecture".into(), text_value("llama")),
            ("general.license".into(), text_value("apache-2.0")),
            number("block_count", 1),
            number("context_length", 128),
            number("embedding_length", 64),
            number("feed_forward_length", 96),
            number("attention.head_count", 4),
            number("attention.head_count_kv", 2),
            ("llama.attention.layer_norm_rms_epsilon".into(), f32_value(1e-5)),
            ("llama.rope.freq_base".into(), f32_value(10_000.0)),
            tokenizer("model", text_value("gpt2")),
            tokenizer("pre", text_value("smollm")),
            tokenizer("tokens", texts_value(&tokens)),
            tokenizer("token_type", i32s_value(&[1, 1, 1, 1, 1, 3, 4, 1])),
            tokenizer("merges", texts_value(&["a b", "ab c"])),
            tokenizer("bos_token_id", u32_value(5)),
            tokenizer("eos_token_id", u32_value(5)),
            ("tokenizer.chat_template".into(), text_value("{{ messages[0].content }}")),
        ];
        let mut file = Self { version: 3, pairs, tensors: Vec::new(), alignment: 32 };
        let shapes: [(&str, &[u64]); 11] = [
            ("token_embd", &[64, 8]),
            ("output_norm", &[64]),
            ("blk.0.attn_norm", &[64]),
            ("blk.0.ffn_norm", &[64]),
            ("blk.0.attn_q", &[64, 64]),
            ("blk.0.attn_k", &[64, 32]),
            ("blk.0.attn_v", &[64, 32]),
            ("blk.0.attn_output", &[64, 64]),
            ("blk.0.ffn_gate", &[64, 96]),
            ("blk.0.ffn_up", &[64, 96]),
            ("blk.0.ffn_down", &[96, 64]),
        ];
        for (name, dimensions) in shapes {
            // Each element tells its place; small whole numbers are exact in any type.
            let bytes = f32s(dimensions.iter().product(), |i| (i / dimensions[0]) as f32);
            file.tensors.push((format!("{name}.weight"), dimensions.to_vec(), 0, bytes));
        }
        file
    }

    /// Replaces or adds a metadata value.
    pub(crate) fn set(mut self, key: &str, value: Vec<u8>) -> Self {
        self.pairs.retain(|(known, _)| known != key);
        self.pairs.push((key.into(), value));
        self
    }

    /// Replaces or adds a tensor.
    pub(crate) fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.retain(|(known, ..)| known != name);
        self.tensors.push((name.into(), dimensions.to_vec(), kind, bytes));
        self
    }

    /// Leaves a key or a tensor out.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.pairs.retain(|(known, _)| known != name);
        self.tensors.retain(|(known, ..)| known != name);
        self
    }

    /// The header, up to the tensors' data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            out.extend(text(key));
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, dimensions, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += bytes.len().next_multiple_of(self.alignment) as u64;
        }
        out
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(bytes);
        }
        out
    }

    /// Writes it as `name` into `folder`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.bytes()).expect("the folder can be written");
        path
    }
}
