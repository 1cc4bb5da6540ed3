//! The tokenizer in a GGUF file's metadata, as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Source: llama.cpp's `llama-vocab.cpp` for the patterns that each `tokenizer.ggml.pre` stands for, and the format of the
//! `tokenizers` crate. A `pre` that isn't known is refused: with the wrong pattern a model only seems to work.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::GgufError;
use super::architecture::shown;
use super::reader::{Gguf, Value};

/// The most tokens a vocabulary may have.
pub const TOKENS_MAX: usize = 1_000_000;
/// The longest chat template that is taken, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 1024 * 1024;

/// The kinds of token (`tokenizer.ggml.token_type`) that text can't be split into.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The values of `tokenizer.ggml.pre` that are known, with the same splitting in a row.
const PRES: [(&str, Splitting); 11] = [
    ("smollm", Splitting::DigitsThenGpt2),
    ("starcoder", Splitting::DigitsThenGpt2),
    ("refact", Splitting::DigitsThenGpt2),
    ("gpt-2", Splitting::Gpt2),
    ("default", Splitting::Default),
    ("llama-bpe", Splitting::Llama3),
    ("llama3", Splitting::Llama3),
    ("llama-v3", Splitting::Llama3),
    ("qwen2", Splitting::Qwen2),
    ("deepseek-r1-qwen", Splitting::Qwen2),
    ("megrez", Splitting::Qwen2),
];

/// How text is cut into words before pairs are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Splitting {
    DigitsThenGpt2,
    Gpt2,
    Default,
    Llama3,
    Qwen2,
}

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp splits by, one after another, where the converter knew nothing better.
const DEFAULT_PATTERNS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// The files of a tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`.
    pub config: Json,
    /// How many tokens there are.
    pub tokens: u64,
    /// The token that begins a text.
    pub bos: Option<u64>,
    /// The tokens that end an answer.
    pub eos: Vec<u64>,
}

/// Reads the tokenizer; `context` is the model's longest context in tokens.
///
/// # Errors
/// [`GgufError::Unsupported`] for a kind that isn't known, and for lists that don't fit together.
pub fn read(gguf: &Gguf, context: u64) -> Result<TokenizerFiles, GgufError> {
    let refused = |what: String| GgufError::unsupported(gguf.path(), what);
    let model = gguf.text("tokenizer.ggml.model").unwrap_or_default();
    if model != "gpt2" {
        let what = format!("its tokenizer is `{}`; only `gpt2` (byte-level pairs) is converted", shown(model));
        return Err(refused(what));
    }
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let Some(&(_, splitting)) = PRES.iter().find(|&&(name, _)| name == pre) else {
        let known = PRES.map(|(name, _)| name).join(", ");
        return Err(refused(format!("its tokenizer splits words as `{}`; known are {known}", shown(pre))));
    };
    let Some(Value::Texts(tokens)) = gguf.value("tokenizer.ggml.tokens") else {
        return Err(refused("it has no key `tokenizer.ggml.tokens`".into()));
    };
    let Some(Value::Integers(types)) = gguf.value("tokenizer.ggml.token_type") else {
        return Err(refused("it has no key `tokenizer.ggml.token_type`".into()));
    };
    let Some(Value::Texts(merges)) = gguf.value("tokenizer.ggml.merges") else {
        return Err(refused("it has no key `tokenizer.ggml.merges`".into()));
    };
    if tokens.is_empty() || tokens.len() > TOKENS_MAX || types.len() != tokens.len() {
        let what = format!("it has {} tokens and {} types of tokens", tokens.len(), types.len());
        return Err(refused(what));
    }
    let vocab = vocabulary(gguf, tokens)?;
    let merges = check_merges(gguf, merges, &vocab)?;
    let special = |key: &str| special_token(gguf, key, tokens);
    let (bos, eos) = (special("bos_token_id")?, special("eos_token_id")?);
    let adds_bos = gguf.value("tokenizer.ggml.add_bos_token") == Some(&Value::Bool(true));
    let post = bos.filter(|_| adds_bos).map(|(id, text)| begin_with(id, text));
    let mut ends: Vec<u64> = eos.iter().map(|&(id, _)| id).collect();
    for key in ["eot_token_id", "eom_token_id"] {
        if let Some((id, _)) = special(key)?.filter(|(id, _)| !ends.contains(id)) {
            ends.push(id);
        }
    }
    let template = gguf.text("tokenizer.chat_template");
    if template.is_some_and(|template| template.len() > TEMPLATE_BYTES_MAX) {
        return Err(refused(format!("its chat template is longer than {TEMPLATE_BYTES_MAX} bytes")));
    }
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    let named = [("bos_token", bos), ("eos_token", eos), ("pad_token", special("padding_token_id")?)];
    for (key, token) in named.into_iter().chain([("unk_token", special("unknown_token_id")?)]) {
        if let Some((_, text)) = token {
            config[key] = json!(text);
        }
    }
    config["model_max_length"] = json!(context);
    if let Some(template) = template {
        config["chat_template"] = json!(template);
    }
    let tokenizer = tokenizer_json(splitting, added_tokens(tokens, types), post, vocab, merges);
    Ok(TokenizerFiles { tokenizer, config, tokens: tokens.len() as u64, bos: bos.map(|(id, _)| id), eos: ends })
}

/// The numbers of the tokens.
fn vocabulary<'a>(gguf: &Gguf, tokens: &'a [String]) -> Result<HashMap<&'a str, usize>, GgufError> {
    let mut vocab = HashMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = vocab.insert(token.as_str(), id) {
            let what = format!("token {id} is the same as token {first}, `{}`", shown(token));
            return Err(GgufError::unsupported(gguf.path(), what));
        }
    }
    Ok(vocab)
}

/// The merges as pairs, each of tokens that make a token.
fn check_merges(gguf: &Gguf, merges: &[String], vocab: &HashMap<&str, usize>) -> Result<Vec<Json>, GgufError> {
    let pair = |(rank, merge): (usize, &String)| {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            vocab.contains_key(left)
                && vocab.contains_key(right)
                && vocab.contains_key(format!("{left}{right}").as_str())
        });
        pair.map(|(left, right)| json!([left, right])).ok_or_else(|| {
            let what = format!("merge {rank}, `{}`, isn't of two tokens that make a token", shown(merge));
            GgufError::unsupported(gguf.path(), what)
        })
    };
    merges.iter().enumerate().map(pair).collect()
}

/// The token that a key of the tokenizer names.
fn special_token<'a>(gguf: &Gguf, key: &str, tokens: &'a [String]) -> Result<Option<(u64, &'a str)>, GgufError> {
    match gguf.value(&format!("tokenizer.ggml.{key}")) {
        None => Ok(None),
        Some(&Value::Integer(id)) => match usize::try_from(id).ok().and_then(|id| tokens.get(id)) {
            Some(text) => Ok(Some((id as u64, text))),
            None => {
                let what = format!("`tokenizer.ggml.{key}` is {id}, but there are {} tokens", tokens.len());
                Err(GgufError::unsupported(gguf.path(), what))
            }
        },
        Some(_) => Err(GgufError::unsupported(gguf.path(), format!("`tokenizer.ggml.{key}` isn't a number"))),
    }
}

/// Tokens that are recognised before text is split.
fn added_tokens(tokens: &[String], types: &[i64]) -> Vec<Json> {
    let added = tokens.iter().zip(types).enumerate();
    let added =
        added.filter(|(_, (token, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty());
    let entry = |(id, (token, &kind)): (usize, (&String, &i64))| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": kind != USER_DEFINED,
        })
    };
    added.map(entry).collect()
}

/// A post-processor that puts a token in front.
fn begin_with(id: u64, text: &str) -> Json {
    let token = json!({"SpecialToken": {"id": text, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [token, {"Sequence": {"id": "A", "type_id": 0}}, token, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    })
}

fn pre_tokenizer(splitting: Splitting) -> Json {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let steps = match splitting {
        Splitting::Gpt2 => return bytes(true),
        Splitting::DigitsThenGpt2 => vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
        Splitting::Llama3 => vec![split(LLAMA3_PATTERN), bytes(false)],
        Splitting::Qwen2 => vec![split(QWEN2_PATTERN), bytes(false)],
        Splitting::Default => DEFAULT_PATTERNS.into_iter().map(split).chain([bytes(false)]).collect(),
    };
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn tokenizer_json(
    splitting: Splitting,
    added: Vec<Json>,
    post: Option<Json>,
    vocab: HashMap<&str, usize>,
    merges: Vec<Json>,
) -> Json {
    let mut by_id: Vec<(&str, usize)> = vocab.into_iter().collect();
    by_id.sort_by_key(|&(_, id)| id);
    let vocab: Map<String, Json> = by_id.into_iter().map(|(token, id)| (token.to_owned(), json!(id))).collect();
    let normalizer = if splitting == Splitting::Qwen2 { json!({"type": "NFC"}) } else { Json::Null };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer(splitting),
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            // Llama 3 takes a word that is a token whole, whatever its merges say.
            "ignore_merges": splitting == Splitting::Llama3,
            "vocab": vocab, "merges": merges,
        },
    })
}
