//! Whole files: converted right, and refused by name where they are wrong.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::test_file::{TestFile, f32_value, i32s_value, text, text_value, texts_value, u32_value};
use super::*;
use crate::manifest::Entry;
use crate::model_folder::ModelFolderWriter;
use crate::model_folder::weights::WeightsFile;
use crate::test_folder::TestFolder;

fn convert(path: &Path, out: &Path, shard_bytes_max: u64) -> Result<(Vec<Entry>, Vec<TensorLoss>, String), GgufError> {
    let gguf = Gguf::open(path)?;
    let conversion = Conversion::plan(gguf, shard_bytes_max, &mut |_| ControlFlow::Continue(()))?;
    let mut sink = |_| ControlFlow::Continue(());
    let mut writer = ModelFolderWriter::create(out, conversion.bytes(), &mut sink)?;
    let losses = conversion.write(&mut writer)?;
    let entries = writer.finish()?;
    assert_eq!(entries.iter().map(|entry| entry.size).sum::<u64>(), conversion.bytes(), "the plan says the size");
    let mut planned: Vec<(String, u64)> = conversion.files().map(|(name, bytes)| (name.into(), bytes)).collect();
    planned.sort();
    let written: Vec<(String, u64)> = entries.iter().map(|entry| (entry.path.clone(), entry.size)).collect();
    assert_eq!(planned, written);
    Ok((entries, losses, conversion.quantisation()))
}

fn refusal(file: &TestFile) -> String {
    refusal_of_bytes(&file.bytes())
}

fn refusal_of_bytes(bytes: &[u8]) -> String {
    let folder = TestFolder::new();
    let path = folder.path().join("t.gguf");
    std::fs::write(&path, bytes).expect("the folder can be written");
    let started = Instant::now();
    let error = convert(&path, &folder.path().join("out"), 1 << 31).map(|_| ()).expect_err("it is wrong");
    assert!(started.elapsed() < Duration::from_secs(5), "{error}");
    assert!(error.hint().is_some());
    error.to_string()
}

/// Reads one tensor of the only weights file: its bytes.
fn tensor(folder: &Path, name: &str) -> (String, Vec<u64>, Vec<u8>) {
    for file in crate::disk::list(folder).expect("it is there").iter().filter(|name| name.ends_with(".safetensors")) {
        let weights = WeightsFile::open(&folder.join(file)).expect("it is right");
        let mut start = 0;
        for layout in &weights.tensors {
            if layout.name == name {
                let mut bytes = vec![0; layout.bytes as usize];
                weights.read(start, &mut bytes).expect("it is inside");
                return (layout.dtype.to_string(), layout.shape.clone(), bytes);
            }
            start += layout.bytes;
        }
    }
    panic!("there is no {name}");
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
}

#[test]
fn a_small_llama_is_converted() {
    let folder = TestFolder::new();
    let path = TestFile::llama().write(folder.path(), "t.gguf");
    let out = folder.path().join("out");
    let (entries, losses, quantisation) = convert(&path, &out, 1 << 31).expect("it is right");
    let names: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(
        names,
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    );
    assert_eq!(losses.len(), 11);
    assert!(losses.iter().all(|loss| loss.error_max == 0.0 && loss.form == "f16"), "whole numbers are exact in f16");
    assert_eq!(quantisation, "none");

    // Rows of a head of q: 0, 2, 4 … then 1, 3, 5 …; v stays.
    let (dtype, shape, bytes) = tensor(&out, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!((dtype.as_str(), shape), ("F16", vec![64, 64]));
    let rows: Vec<f32> = halves(&bytes).chunks(64).map(|row| row[0]).collect();
    let head = |first: u64| (0..8).map(move |i| first + 2 * i).chain((0..8).map(move |i| first + 2 * i + 1));
    let expected: Vec<f32> = (0..4).flat_map(|h| head(16 * h)).map(|row| row as f32).collect();
    assert_eq!(rows, expected);
    let (_, _, bytes) = tensor(&out, "model.layers.0.self_attn.v_proj.weight");
    let rows: Vec<f32> = halves(&bytes).chunks(64).map(|row| row[0]).collect();
    assert_eq!(rows, (0..32).map(|row| row as f32).collect::<Vec<_>>());

    let config = std::fs::read_to_string(out.join("config.json")).expect("it is there");
    let config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    let expected = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1,
        "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": 8, "max_position_embeddings": 128,
        "tie_word_embeddings": true, "bos_token_id": 5, "eos_token_id": 5,
    });
    assert_eq!(config, expected);
}

#[test]
fn the_small_tokenizer_encodes() {
    let folder = TestFolder::new();
    let path = TestFile::llama().write(folder.path(), "t.gguf");
    convert(&path, &folder.path().join("out"), 1 << 31).expect("it is right");
    let bytes = std::fs::read(folder.path().join("out/tokenizer.json")).expect("it is there");
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).expect("it is a tokenizer");
    let ids = |text: &str| tokenizer.encode(text, false).expect("it encodes").get_ids().to_vec();
    assert_eq!(ids("abcab<e>d<x>a"), [7, 4, 5, 3, 6, 0]);
    assert_eq!(tokenizer.decode(&[7, 5, 6], true).expect("it decodes"), "abc<x>", "a user's token isn't special");
}

#[test]
fn a_beginning_is_added_where_the_file_says_so() {
    let folder = TestFolder::new();
    let yes = [&7u32.to_le_bytes()[..], &[1]].concat();
    for pre in ["llama-bpe", "qwen2", "gpt-2", "default"] {
        let file = TestFile::llama()
            .set("tokenizer.ggml.add_bos_token", yes.clone())
            .set("tokenizer.ggml.pre", text_value(pre));
        let path = file.write(folder.path(), "t.gguf");
        convert(&path, &folder.path().join(pre), 1 << 31).expect("it is right");
        let bytes = std::fs::read(folder.path().join(pre).join("tokenizer.json")).expect("it is there");
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).expect("it is a tokenizer");
        assert_eq!(tokenizer.encode("ab", true).expect("it encodes").get_ids(), [5, 4], "{pre}");
    }
}

#[test]
fn quantised_tensors_keep_their_codes_and_say_what_is_lost() {
    let folder = TestFolder::new();
    let d = |value: f32| half::f16::from_f32(value).to_le_bytes();
    // 64 rows of two blocks of Q8_0, in whose first a scale is too large for a half bias.
    let block = |scale: f32| [&d(scale)[..], &(0..32).map(|i| i * 8).collect::<Vec<u8>>()].concat();
    let q8: Vec<u8> = (0..128).flat_map(|i| block(if i == 0 { 1000.0 } else { 0.5 })).collect();
    let q4_1: Vec<u8> = (0..192).flat_map(|i| [&d(0.25)[..], &d(-1.0), &[i as u8; 16]].concat()).collect();
    let mut q6 = vec![0x5a; 210 * 2];
    q6[208..210].copy_from_slice(&d(0.01));
    q6[418..420].copy_from_slice(&d(0.02));
    let file = TestFile::llama()
        .set("llama.feed_forward_length", u32_value(256))
        .tensor("blk.0.attn_q.weight", &[64, 64], 8, q8)
        .tensor("blk.0.ffn_gate.weight", &[64, 256], 3, [&q4_1[..], &q4_1, &q4_1[..128 * 20]].concat())
        .tensor("blk.0.ffn_up.weight", &[64, 256], 1, d(1.5).repeat(64 * 256))
        .tensor("blk.0.ffn_down.weight", &[256, 64], 14, q6.repeat(32));
    let path = file.write(folder.path(), "t.gguf");
    let out = folder.path().join("out");
    let (_, losses, quantisation) = convert(&path, &out, 1 << 31).expect("it is right");
    assert_eq!(quantisation, "4-bit and 8-bit affine, groups of 32");
    let loss = |name: &str| losses.iter().find(|loss| loss.name == name).expect("it is listed");
    assert_eq!(loss("blk.0.attn_q.weight").form, "8-bit in groups of 32, f32 scales");
    assert_eq!(loss("blk.0.attn_q.weight").error_max, 0.0);
    assert_eq!(loss("blk.0.ffn_gate.weight").error_max, 0.0);
    let q6 = loss("blk.0.ffn_down.weight");
    assert_eq!(q6.form, "8-bit in groups of 32, f16 scales");
    assert!(q6.error_max > 0.0 && q6.error_max < q6.element_max / 250.0, "{q6:?}");
    let config = std::fs::read_to_string(out.join("config.json")).expect("it is there");
    let config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    assert_eq!(config["quantization"]["bits"], 8, "two tensors of three");
    assert_eq!(config["quantization"]["model.layers.0.mlp.gate_proj"]["bits"], 4);
    let (dtype, shape, _) = tensor(&out, "model.layers.0.mlp.gate_proj.weight");
    assert_eq!((dtype.as_str(), shape), ("U32", vec![256, 8]));
    let (dtype, shape, bytes) = tensor(&out, "model.layers.0.self_attn.q_proj.biases");
    assert_eq!((dtype.as_str(), shape), ("F32", vec![64, 2]));
    assert_eq!(bytes[..4], (-128_000.0f32).to_le_bytes());
}

#[test]
fn shards_are_cut_between_tensors() {
    let folder = TestFolder::new();
    let path = TestFile::llama().write(folder.path(), "t.gguf");
    let out = folder.path().join("out");
    let (entries, ..) = convert(&path, &out, 20_000).expect("it is right");
    let shards: Vec<&Entry> = entries.iter().filter(|entry| entry.path.ends_with(".safetensors")).collect();
    assert!(shards.len() > 2 && shards.iter().all(|shard| shard.size <= 20_000), "{shards:?}");
    let index = std::fs::read_to_string(out.join("model.safetensors.index.json")).expect("it is there");
    let index: serde_json::Value = serde_json::from_str(&index).expect("it is JSON");
    let mut count = 0;
    for (name, file) in index["weight_map"].as_object().expect("it is a map") {
        let weights = WeightsFile::open(&out.join(file.as_str().expect("it is text"))).expect("it is right");
        assert!(weights.tensors.iter().any(|tensor| &tensor.name == name));
        count += 1;
    }
    assert_eq!(count, 11);
}

#[test]
fn llama3_rope_is_recognised_by_its_factors() {
    let factors = |factor: f32| {
        // As llama.cpp's converter computes them, for base 500,000 and heads of 16.
        let value = |i: i32| {
            let wavelength = std::f32::consts::TAU * 500_000f32.powf(i as f32 / 8.0);
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            match wavelength {
                w if w < 2048.0 => 1.0,
                w if w > 8192.0 => factor,
                _ => 1.0 / ((1.0 - smooth) / factor + smooth),
            }
        };
        (0..8).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>()
    };
    let file = TestFile::llama().set("llama.rope.freq_base", f32_value(500_000.0));
    let folder = TestFolder::new();
    let path = file.clone().tensor("rope_freqs.weight", &[8], 0, factors(32.0)).write(folder.path(), "t.gguf");
    let out = folder.path().join("out");
    convert(&path, &out, 1 << 31).expect("it is right");
    let config = std::fs::read_to_string(out.join("config.json")).expect("it is there");
    let config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    let expected = serde_json::json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    assert_eq!(config["rope_scaling"], expected);

    let mut other = factors(32.0);
    other[12..16].copy_from_slice(&7f32.to_le_bytes());
    let error = refusal(&file.tensor("rope_freqs.weight", &[8], 0, other));
    assert!(error.contains("`rope_freqs.weight` isn't the scaling of Llama 3"), "{error}");
}

#[test]
fn what_would_change_answers_is_refused_by_name() {
    let llama = TestFile::llama;
    let zeros = |count: usize| vec![0; count];
    let table: Vec<(TestFile, &str)> = vec![
        (
            llama().set("general.architecture", text_value("mamba")),
            "architecture is `mamba`; known are llama, qwen2, qwen3",
        ),
        (
            llama().set("llama.attention.sliding_window", u32_value(9)),
            "key `llama.attention.sliding_window` isn't known",
        ),
        (llama().set("llama.expert_count", u32_value(8)), "mixture of experts"),
        (llama().set("llama.rope.scaling.type", text_value("yarn")), "scaled by `yarn`"),
        (llama().set("llama.rope.dimension_count", u32_value(8)), "is 8, but its heads are 16 wide"),
        (llama().set("llama.attention.head_count", u32_value(0)), "isn't a number from 1"),
        (llama().set("llama.block_count", u32_value(4_000_000)), "layers are more than 1024"),
        (llama().set("llama.block_count", u32_value(2)), "no tensor `blk.1.attn_norm.weight`"),
        (llama().without("llama.context_length"), "no key `llama.context_length`"),
        (llama().without("output_norm.weight"), "no tensor `output_norm.weight`"),
        (llama().tensor("blk.0.attn_sinks.weight", &[4], 0, zeros(16)), "no tensor `blk.0.attn_sinks.weight`"),
        (llama().tensor("blk.0.attn_q.weight", &[64, 32], 0, zeros(8192)), "shape [32, 64] instead of [64, 64]"),
        (llama().tensor("token_embd.weight", &[64, 7], 0, zeros(1792)), "have [7] rows for 8 tokens"),
        (llama().tensor("blk.0.attn_q.weight", &[64, 64], 23, zeros(9)), "type IQ4_XS; known are F32, F16, Q4_0"),
        (llama().tensor("output_norm.weight", &[64], 8, zeros(68)), "quantised, which a vector can't be"),
        (llama().set("tokenizer.ggml.model", text_value("llama")), "tokenizer is `llama`; only `gpt2`"),
        (llama().set("tokenizer.ggml.pre", text_value("tekken")), "splits words as `tekken`; known are smollm"),
        (llama().set("tokenizer.ggml.merges", texts_value(&["a b", "b x"])), "merge 1, `b x`, isn't of two tokens"),
        (llama().set("tokenizer.ggml.token_type", i32s_value(&[1])), "8 tokens and 1 types"),
        (llama().set("tokenizer.ggml.eos_token_id", u32_value(8)), "eos_token_id` is 8, but there are 8 tokens"),
        (
            llama().set("tokenizer.ggml.tokens", texts_value(&["a", "b", "c", "d", "ab", "<e>", "a", "abc"])),
            "token 6 is the same as token 0",
        ),
    ];
    for (file, expected) in table {
        let error = refusal(&file);
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn numbers_that_are_none_are_found_where_they_are() {
    let mut bytes = vec![0; 64 * 64 * 4];
    bytes[5 * 256..5 * 256 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = refusal(&TestFile::llama().tensor("blk.0.attn_v.weight", &[64, 32], 0, bytes[..8192].to_vec()));
    assert!(error.contains("in tensor `blk.0.attn_v.weight`: a number isn't finite"), "{error}");
}

/// A whole file with some of its bytes changed.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = TestFile::llama().bytes();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn wrong_headers_are_refused_with_their_place() {
    let llama = TestFile::llama;
    let huge = u64::MAX.to_le_bytes();
    let value = |kind: u32, rest: &[u8]| [&kind.to_le_bytes()[..], rest].concat();
    let array = |kind: u32, count: u64| value(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat());
    let nested =
        (0..6).fold(Vec::new(), |inner: Vec<u8>, _| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &inner].concat());
    let deep = value(9, &nested);
    let mut twice = llama();
    twice.pairs.push(("general.license".into(), text_value("mit")));
    let mut tensor_twice = llama();
    tensor_twice.tensors.push(tensor_twice.tensors[1].clone());
    let last = llama().header().len();
    let table: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "isn't a GGUF file"),
        (b"GGU".to_vec(), "isn't a GGUF file"),
        (b"GGML\x03\0\0\0".to_vec(), "isn't a GGUF file"),
        (patched(4, &[0, 0, 0, 3]), "big-endian byte order"),
        (patched(4, &[1, 0, 0, 0]), "version 1 of the format"),
        (patched(4, &[4, 0, 0, 0]), "version 4 of the format"),
        (patched(8, &huge), "the count of tensors: 18446744073709551615"),
        (patched(16, &huge), "the count of keys: 18446744073709551615"),
        (patched(16, &4000u64.to_le_bytes()), "damaged at byte"),
        (patched(24, &huge), "key 0: a text has 18446744073709551615 bytes"),
        (patched(24, &65_000u64.to_le_bytes()), "damaged at byte"),
        (patched(34, &[0xff]), "key 0: a text isn't UTF-8"),
        (llama().set("k", value(13, &[])).bytes(), "key `k`: its type 13 isn't one of 0 to 12"),
        (llama().set("k", value(7, &[2])).bytes(), "key `k`: 2 is neither true nor false"),
        (llama().set("k", value(8, &huge)).bytes(), "key `k`: a text has"),
        (llama().set("k", array(5, u64::MAX)).bytes(), "key `k`: 18446744073709551615 items"),
        (llama().set("k", array(0, 3_000_000)).bytes(), "key `k`: 3000000 items"),
        (llama().set("k", array(8, 4_000_000)).bytes(), "key `k`: 4000000 items"),
        (llama().set("k", array(77, 1)).bytes(), "key `k`: its item type 77"),
        (llama().set("k", deep).bytes(), "key `k`: arrays lie more than 4 deep"),
        (twice.bytes(), "key `general.license`: it is there twice"),
        (tensor_twice.bytes(), "tensor `output_norm.weight`: it is there twice"),
        (llama().tensor("a\nb", &[1], 0, vec![0; 4]).bytes(), "tensor `a?b`: its name has a control character"),
        (llama().tensor(&"n".repeat(300), &[1], 0, vec![0; 4]).bytes(), "a text has 300 bytes, more than the 256"),
        (llama().tensor("t", &[], 0, vec![]).bytes(), "tensor `t`: it has 0 dimensions"),
        (llama().tensor("t", &[1; 5], 0, vec![0; 4]).bytes(), "tensor `t`: it has 5 dimensions"),
        (llama().tensor("t", &[0], 0, vec![]).bytes(), "tensor `t`: its shape [0]"),
        (llama().tensor("t", &[1 << 40, 1 << 40], 0, vec![]).bytes(), "tensor `t`: its shape"),
        (llama().tensor("t", &[1 << 62], 0, vec![]).bytes(), "tensor `t`: its shape"),
        (llama().tensor("t", &[33], 8, vec![0; 34]).bytes(), "tensor `t`: its shape [33]"),
        (llama().tensor("t", &[1 << 30], 0, vec![0; 4]).bytes(), "reach past the file's"),
        (patched(last - 8, &huge), "isn't a multiple of 32"),
        (patched(last - 8, &(u64::MAX - 31).to_le_bytes()), "reach past the file's"),
        (patched(last - 8, &[0; 8]), "it overlaps"),
        (llama().set("general.alignment", u32_value(0)).bytes(), "isn't a power of two"),
        (llama().set("general.alignment", u32_value(24)).bytes(), "isn't a power of two"),
        (llama().set("general.alignment", text_value("32")).bytes(), "isn't a power of two"),
    ];
    for (bytes, expected) in table {
        let error = refusal_of_bytes(&bytes);
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = TestFile::llama().bytes();
    let header = TestFile::llama().header().len();
    let folder = TestFolder::new();
    let path = folder.path().join("t.gguf");
    for length in (0..header).chain((header..whole.len()).step_by(997)) {
        std::fs::write(&path, &whole[..length]).expect("the folder can be written");
        assert!(Gguf::open(&path).is_err(), "{length} of {} bytes", whole.len());
    }
}

#[test]
fn other_alignments_and_version_2_are_read() {
    let folder = TestFolder::new();
    let mut file = TestFile::llama().set("general.alignment", u32_value(256));
    (file.alignment, file.version) = (256, 2);
    file.pairs.push(("nested".into(), {
        let inner = [&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &7u32.to_le_bytes()].concat();
        [&9u32.to_le_bytes()[..], &9u32.to_le_bytes(), &1u64.to_le_bytes(), &inner].concat()
    }));
    assert_eq!(text("ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
    convert(&file.write(folder.path(), "t.gguf"), &folder.path().join("out"), 1 << 31).expect("it is right");
}

#[test]
fn a_conversion_can_be_stopped() {
    let folder = TestFolder::new();
    let path = TestFile::llama().write(folder.path(), "t.gguf");
    let gguf = Gguf::open(&path).expect("it is right");
    let error = Conversion::plan(gguf, 1 << 31, &mut |_| ControlFlow::Break(())).expect_err("it is stopped");
    let gguf = Gguf::open(&path).expect("it is right");
    assert!(error.to_string().contains("stopped"));
    let conversion = Conversion::plan(gguf, 1 << 31, &mut |_| ControlFlow::Continue(())).expect("it is right");
    let mut sink = |progress: crate::model_folder::Progress| match progress.done_bytes > 20_000 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let mut writer = ModelFolderWriter::create(&folder.path().join("out"), conversion.bytes(), &mut sink)
        .expect("it can be written");
    assert!(conversion.write(&mut writer).expect_err("it is stopped").to_string().contains("stopped"));
}

/// The corpus of the fuzz target: what begins with `good` is read, the rest is refused, and nothing takes long.
#[test]
fn the_corpus_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/gguf");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).expect("it is in the repository") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let started = Instant::now();
        assert_eq!(Gguf::open(&path).is_ok(), name.starts_with("good"), "{name}");
        assert!(started.elapsed() < Duration::from_secs(5), "{name}");
        count += 1;
    }
    assert!(count >= 20, "{count}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in 0usize..2000, with in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..16)) {
        let folder = TestFolder::new();
        let mut bytes = TestFile::llama().bytes();
        bytes[at..at + with.len()].copy_from_slice(&with);
        let path = folder.path().join("t.gguf");
        std::fs::write(&path, bytes).expect("the folder can be written");
        // Whether it is refused depends on what was hit; that it ends is what counts.
        let _ = convert(&path, &folder.path().join("out"), 1 << 31);
    }
}
