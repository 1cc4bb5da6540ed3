//! Text to tokens and back: control tokens only where the template put them, characters never split.
//!
//! A *control token* is one that the checkpoint marks as special, or one of its other added tokens that its chat
//! template writes, such as `<think>` or `<tool_call>`. Text from outside never becomes one; see [`super::prompt`].

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::AddedToken;
use toktrie::TokTrie;

use super::control::{ControlToken, PromptText, find_control};
use super::template::{self, TemplateError};
use crate::hint::Hint;
use crate::verified::{IntegrityError, VerifiedFolder};

/// The longest `tokenizer.json` that is read, in bytes. Gemma's, one of the longest, has 33 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The longest `generation_config.json` that is read, in bytes.
const GENERATION_CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// How many added tokens a tokenizer may have. Llama 3 has 256, Gemma 6,242.
const ADDED_TOKENS_MAX: usize = 65_536;
/// How many tokens may wait for the rest of a character; a character has at most four bytes.
const PENDING_TOKENS_MAX: usize = 4;

/// What the bytes of a control token begin with where grammars are matched: no UTF-8 has it (toktrie's convention).
const CONTROL_MARK: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// Tokens that end the model's turn, or begin another, in one of the published chat formats.
const TURN_ENDS: [&str; 13] = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<eos>",
    "</s>",
    "<|return|>",
    "<|call|>",
];

/// The tokenizer can't be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file of the model can't be read or is damaged.
    #[error(transparent)]
    Read(#[from] IntegrityError),
    /// The model has no `tokenizer.json`.
    #[error("the model has no `tokenizer.json`")]
    Missing,
    /// A file of the model isn't what its name promises.
    #[error("`{name}` of the model can't be used: {reason}")]
    Malformed {
        /// Which file.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// `tokenizer_config.json` can't be used.
    #[error(transparent)]
    Config(#[from] TemplateError),
    /// The tokenizer speaks of a token that the model doesn't have.
    #[error("the tokenizer has a token {token}, but the model knows only {vocab_size}")]
    BeyondVocabulary {
        /// The token.
        token: u32,
        /// How many tokens the model knows.
        vocab_size: usize,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer fails on this text: {0}")]
    Failed(String),
    /// Ordinary text can't be written without a control token.
    #[error("the tokenizer turns ordinary text into the control token `{0}`")]
    ControlInText(String),
}

impl Hint for TokenizerError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Config(error) => error.hint(),
            _ => Some("import the model again from its source, or use another one".into()),
        }
    }
}

/// A checkpoint's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    /// The longest text first, so that the first match is the one that counts.
    control: Vec<ControlToken>,
    control_of: HashMap<u32, usize>,
    /// Tokens that are never shown: those the checkpoint itself marks as special.
    hidden: HashSet<u32>,
    turn_ends: HashSet<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads a model's tokenizer. `template` is the source of its chat template, `vocab_size` from its `config.json`.
    ///
    /// # Errors
    /// What reading can meet, and a tokenizer that isn't one or doesn't fit the model.
    pub fn load(folder: &VerifiedFolder, template: &str, vocab_size: usize) -> Result<Self, TokenizerError> {
        let name = "tokenizer.json";
        let bytes = folder.read(name, TOKENIZER_BYTES_MAX)?.ok_or(TokenizerError::Missing)?;
        let mut inner = unpanicked(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|reason| TokenizerError::Malformed { name, reason })?;
        drop(bytes);
        // A prompt is never cut or filled up silently, whatever the file says.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TokenizerError::Failed(error.to_string()))?;

        let added = inner.get_added_tokens_decoder();
        if added.len() > ADDED_TOKENS_MAX {
            let reason = format!("it has {} added tokens instead of at most {ADDED_TOKENS_MAX}", added.len());
            return Err(TokenizerError::Malformed { name, reason });
        }
        if let Some(&token) = added.keys().find(|&&id| id as usize >= vocab_size) {
            return Err(TokenizerError::BeyondVocabulary { token, vocab_size });
        }
        let hidden: HashSet<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let written: Vec<AddedToken> =
            added.values().filter(|token| !token.special && is_written(token, template)).cloned().collect();
        let mut control: Vec<ControlToken> = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty() && (token.special || written.contains(token)))
            .map(|(&id, token)| ControlToken {
                id,
                text: token.content.clone(),
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            })
            .collect();
        control.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        // Marked as special, they too are left out where ordinary text is encoded.
        let written = written.into_iter().map(|token| token.special(true));
        unpanicked(|| inner.add_special_tokens(written)).map_err(TokenizerError::Failed)?;

        let control_of = control.iter().enumerate().map(|(i, token)| (token.id, i)).collect();
        let turn_ends = turn_ends(folder, &control)?;
        Ok(Self { inner, vocab_size, control, control_of, hidden, turn_ends })
    }

    /// Whether the token ends the model's turn, by the tokenizer's files or by one of the published chat formats.
    pub fn ends_turn(&self, token: u32) -> bool {
        self.turn_ends.contains(&token)
    }

    /// The tokens that end the model's turn.
    pub(crate) fn turn_ends(&self) -> impl Iterator<Item = u32> {
        self.turn_ends.iter().copied()
    }

    /// Whether the token is never shown.
    pub fn is_hidden(&self, token: u32) -> bool {
        self.hidden.contains(&token)
    }

    /// The control tokens, the longest first.
    pub(crate) fn control(&self) -> &[ControlToken] {
        &self.control
    }

    /// Encodes ordinary text: no control token comes out, whatever the text says.
    ///
    /// # Errors
    /// A tokenizer that fails, or that can't keep the promise.
    pub fn encode(&mut self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.inner.set_encode_special_tokens(true);
        let ids = self.encode_raw(text)?;
        if !ids.iter().any(|id| self.control_of.contains_key(id)) {
            return Ok(ids);
        }
        // The tokenizer's vocabulary itself holds the control token as a word: a character at a time it can't match.
        let mut ids = Vec::new();
        for c in text.chars() {
            ids.extend(self.encode_raw(c.encode_utf8(&mut [0; 4]))?);
        }
        match ids.iter().find_map(|id| self.control_of.get(id)) {
            Some(&i) => Err(TokenizerError::ControlInText(self.control[i].text.clone())),
            None => Ok(ids),
        }
    }

    /// Encodes a prompt: exactly the control tokens that its template wrote come out as such.
    ///
    /// Where the text has no others, which is nearly always, this is what the tokenizer makes of the whole text. Else
    /// the text is cut at the template's control tokens and what is between them is encoded as ordinary text.
    /// That is how the tokenizer itself goes about it, but for one thing: a tokenizer that puts a
    /// space before the very first word puts one before each of those pieces.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_prompt(&mut self, prompt: &PromptText) -> Result<Vec<u32>, TokenizerError> {
        let expected = prompt.control.iter().map(|(_, token)| self.control[*token].id);
        if prompt.control == find_control(&prompt.text, &self.control) {
            self.inner.set_encode_special_tokens(false);
            let ids = self.encode_raw(&prompt.text)?;
            // A normaliser may have made a control token of something that wasn't one.
            if ids.iter().copied().filter(|id| self.control_of.contains_key(id)).eq(expected) {
                return Ok(ids);
            }
        }
        let (mut ids, mut at, mut strips) = (Vec::new(), 0, false);
        for (range, i) in &prompt.control {
            let token = self.control[*i].clone();
            let piece = trimmed(&prompt.text[at..range.start], strips, token.lstrip);
            ids.extend(self.encode(piece)?);
            ids.push(token.id);
            (at, strips) = (range.end, token.rstrip);
        }
        ids.extend(self.encode(trimmed(&prompt.text[at..], strips, false))?);
        Ok(ids)
    }

    fn encode_raw(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = unpanicked(|| self.inner.encode_fast(text, false)).map_err(TokenizerError::Failed)?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&token) => Err(TokenizerError::BeyondVocabulary { token, vocab_size: self.vocab_size }),
            None => Ok(ids),
        }
    }

    /// The bytes of each token, one a token of the model's vocabulary: empty where there is no such token; a control
    /// token's begin with a byte that no text has. `None` where tokens have no bytes of their own.
    pub(crate) fn token_bytes(&self) -> Option<Vec<Vec<u8>>> {
        let decoder = serde_json::to_value(self.inner.get_decoder()?).ok()?;
        let spelling = Spelling::of(&decoder)?;
        let added = self.inner.get_added_tokens_decoder();
        let bytes = (0..u32::try_from(self.vocab_size).ok()?).map(|id| match self.inner.id_to_token(id) {
            Some(text) if self.control_of.contains_key(&id) || self.hidden.contains(&id) => {
                [&[CONTROL_MARK], text.as_bytes()].concat()
            }
            // Added tokens are written as they are.
            Some(text) if added.contains_key(&id) => text.into_bytes(),
            Some(text) => spelling.bytes(&text),
            None => Vec::new(),
        });
        Some(bytes.collect())
    }

    /// Decodes tokens whole. Bytes that are no character become U+FFFD.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        unpanicked(|| self.inner.decode(tokens, false)).map_err(TokenizerError::Failed)
    }
}

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// One character a byte, as GPT-2 does.
    ByteLevel,
    /// Text with `▁` for a space, and `<0x0A>` for bytes that no other token has, as SentencePiece does.
    ByteFallback,
}

impl Spelling {
    /// The spelling that a decoder of `tokenizer.json` undoes.
    fn of(decoder: &serde_json::Value) -> Option<Self> {
        match decoder["type"].as_str()? {
            "ByteLevel" => Some(Self::ByteLevel),
            "ByteFallback" => Some(Self::ByteFallback),
            "Sequence" => decoder["decoders"].as_array()?.iter().find_map(Self::of),
            _ => None,
        }
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // A character that stands for no byte is none that the decoder could make text of.
            Self::ByteLevel => token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_default(),
            Self::ByteFallback => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
        }
    }
}

/// The byte that a character stands for in GPT-2's vocabulary (`bytes_to_unicode`).
fn byte_of(character: char) -> Option<u8> {
    let is_itself = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    if is_itself(code) {
        return u8::try_from(code).ok();
    }
    let rank = code.checked_sub(256)? as usize;
    (0..=255).filter(|&byte| !is_itself(byte)).nth(rank).and_then(|byte| u8::try_from(byte).ok())
}

fn trimmed(text: &str, start: bool, end: bool) -> &str {
    let text = if start { text.trim_start() } else { text };
    if end { text.trim_end() } else { text }
}

/// Whether a template writes an added token that isn't marked as special: `<think>`, `[TOOL_CALLS]`. Others, such as
/// Gemma's for runs of newlines, are ordinary text.
fn is_written(token: &AddedToken, template: &str) -> bool {
    let text = token.content.as_str();
    let has_form = (text.starts_with('<') && text.ends_with('>')) || (text.starts_with('[') && text.ends_with(']'));
    has_form && text.len() > 2 && template.contains(text)
}

/// The tokens that end a turn: `eos_token` of `tokenizer_config.json`, `eos_token_id` of `generation_config.json`,
/// and those of [`TURN_ENDS`] that are control tokens here.
fn turn_ends(folder: &VerifiedFolder, control: &[ControlToken]) -> Result<HashSet<u32>, TokenizerError> {
    let config = template::read_tokenizer_config(folder)?;
    let eos = template::special_token(&config, "eos_token");
    let named = control.iter().filter(|token| Some(&*token.text) == eos || TURN_ENDS.contains(&&*token.text));
    let mut ids: HashSet<u32> = named.map(|token| token.id).collect();
    let name = "generation_config.json";
    if let Some(bytes) = folder.read(name, GENERATION_CONFIG_BYTES_MAX)? {
        let config: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| TokenizerError::Malformed { name, reason: error.to_string() })?;
        let eos = config.get("eos_token_id").cloned().unwrap_or_default();
        let eos = if let serde_json::Value::Array(eos) = eos { eos } else { vec![eos] };
        ids.extend(eos.iter().filter_map(serde_json::Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
    }
    Ok(ids)
}

/// Runs a call into the `tokenizers` crate, whose models and decoders index and unwrap on what `tokenizer.json` says.
/// A hostile file must not end the program, so a panic becomes an error here; nothing that it could have left half
/// done outlives the call, since the tokenizer is only read.
fn unpanicked<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it is inconsistent".into()),
    }
}

/// Decodes tokens one by one; what it gives out, put together, is what [`Tokenizer::decode`] makes of all of them.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The tokens of the last text given out, which a decoder may need to see, then those that wait.
    window: Vec<u32>,
    /// How many of `window` were given out.
    given_tokens: usize,
    /// How many bytes of the window's text were given out.
    given_bytes: usize,
}

impl TextStream {
    /// Takes the next token and gives out the text that is complete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TokenizerError> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window)?;
        match text.strip_suffix(char::REPLACEMENT_CHARACTER) {
            None => {
                let given = self.rest_of(tokenizer, &text)?;
                self.window.drain(..self.given_tokens);
                self.given_tokens = self.window.len();
                self.given_bytes = tokenizer.decode(&self.window)?.len();
                Ok(given)
            }
            // Too many for one character: all but the last bytes are broken for good.
            Some(complete) if self.window.len() - self.given_tokens > PENDING_TOKENS_MAX => {
                let given = self.rest_of(tokenizer, complete)?;
                self.given_bytes = self.given_bytes.max(complete.len());
                Ok(given)
            }
            Some(_) => Ok(String::new()),
        }
    }

    /// Gives out what waits: no more tokens come.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let text = tokenizer.decode(&self.window)?;
        let given = self.rest_of(tokenizer, &text)?;
        *self = Self::default();
        Ok(given)
    }

    fn rest_of(&self, tokenizer: &Tokenizer, text: &str) -> Result<String, TokenizerError> {
        match text.get(self.given_bytes..) {
            Some(rest) => Ok(rest.to_owned()),
            // A decoder that made something else of the tokens before: only the new ones count.
            None if text.len() < self.given_bytes => Ok(String::new()),
            None => tokenizer.decode(&self.window[self.given_tokens..]),
        }
    }
}

#[cfg(test)]
mod tests;
