//! Constrained output: what the answer must look like, and the mask over the vocabulary that keeps it so.
//!
//! The grammars are llguidance's: a JSON schema, a grammar in Lark's notation, a regular expression. The mask says for each
//! token whether the text may go on with its bytes, so an answer is of the grammar whatever the model prefers. It
//! applies to the answer alone; thoughts before it are free.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::tokenizer::Tokenizer;
use crate::hint::Hint;

/// The longest grammar or schema that is read, in bytes.
pub const GRAMMAR_BYTES_MAX: u64 = 1024 * 1024;
/// How deep a schema may be nested: as deep as `serde_json` reads; llguidance goes through it by recursion.
const SCHEMA_DEPTH_MAX: usize = 128;
/// White space between the parts of JSON: enough to be indented, and never without end, as small models like it.
const JSON_WHITESPACE: &str = r"[\x20\x0A]{0,16}";

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON of this schema (JSON Schema, draft 2020-12, as far as llguidance knows it; the rest is refused).
    JsonSchema(serde_json::Value),
    /// A grammar in Lark's notation.
    Lark(String),
    /// The whole answer matches this regular expression.
    Regex(String),
}

/// A grammar can't be used, or not be kept to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrammarError {
    /// It is none.
    #[error("the {kind} can't be used: {why}")]
    Unusable {
        /// What it was taken for.
        kind: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The tokenizer's tokens have no bytes of their own, which a mask needs.
    #[error("this model's tokenizer can't be held to a grammar")]
    Tokenizer,
    /// The mask can't be computed any more, or no token is left.
    #[error("the answer can't be held to its grammar: {why}")]
    Failed {
        /// What went wrong.
        why: String,
    },
}

impl Hint for GrammarError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unusable { .. } => {
                "correct the schema or grammar; `x-guidance` and remote `$ref`s are not read".into()
            }
            Self::Tokenizer => "use another model, or leave the schema out".into(),
            Self::Failed { .. } => "simplify the schema or grammar".into(),
        })
    }
}

impl Grammar {
    /// The schema in a JSON text.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`] where it is no JSON.
    pub fn from_json_schema(text: &str) -> Result<Self, GrammarError> {
        let schema = serde_json::from_str(text);
        schema.map(Self::JsonSchema).map_err(|e| GrammarError::Unusable { kind: "schema", why: e.to_string() })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "schema",
            Self::Lark(_) => "grammar",
            Self::Regex(_) => "expression",
        }
    }

    fn compiled(&self) -> TopLevelGrammar {
        match self {
            Self::JsonSchema(schema) => {
                let mut schema = schema.clone();
                if let Some(schema) = schema.as_object_mut() {
                    let options = serde_json::json!({ "whitespace_pattern": JSON_WHITESPACE });
                    schema.insert("x-guidance".into(), options);
                }
                TopLevelGrammar::from_json_schema(schema)
            }
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Regex(text) => TopLevelGrammar::from_regex(text),
        }
    }
}

/// A tokenizer's tokens as bytes, in a tree; made once for a model.
#[derive(Clone)]
pub struct Vocabulary(TokEnv);

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Makes the tree. `ends` are the tokens that end an answer; one at least.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`].
    pub fn new(tokenizer: &Tokenizer, ends: &[u32]) -> Result<Self, GrammarError> {
        let words = tokenizer.token_bytes().ok_or(GrammarError::Tokenizer)?;
        let first = *ends.first().ok_or(GrammarError::Tokenizer)?;
        let count = u32::try_from(words.len()).map_err(|_| GrammarError::Tokenizer)?;
        let trie = TokTrie::from(&TokRxInfo::new(count, first), &words).with_eos_tokens(ends);
        Ok(Self(Arc::new(ApproximateTokEnv::new(trie))))
    }
}

/// How far one answer has come in its grammar.
pub struct Constraint {
    matcher: Matcher,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// Begins an answer.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`].
    pub fn new(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self, GrammarError> {
        let unusable = |why: String| GrammarError::Unusable { kind: grammar.kind(), why: first_line(&why) };
        if matches!(grammar, Grammar::JsonSchema(schema) if is_deeper(schema, SCHEMA_DEPTH_MAX)) {
            return Err(unusable(format!("it is nested deeper than {SCHEMA_DEPTH_MAX}")));
        }
        let mut factory = ParserFactory::new_simple(&vocabulary.0).map_err(|error| unusable(error.to_string()))?;
        // It would write to standard error, which belongs to the program.
        factory.set_stderr_log_level(0);
        factory.limits_mut().verbose_errors = false;
        let parser = factory.create_parser(grammar.compiled());
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(why) => Err(unusable(why)),
            None => Ok(Self { matcher }),
        }
    }

    /// Takes the logits of all tokens that may not come next away.
    ///
    /// # Errors
    /// [`GrammarError::Failed`].
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| failed(&error.to_string()))?;
        let mut is_any = false;
        for (token, logit) in logits.iter_mut().enumerate() {
            match token < allowed.len() && allowed.get(token) {
                true => is_any = true,
                false => *logit = f32::NEG_INFINITY,
            }
        }
        if is_any { Ok(()) } else { Err(failed("no token is left")) }
    }

    /// Takes the token that was chosen. Says whether the answer is complete.
    ///
    /// # Errors
    /// [`GrammarError::Failed`].
    pub fn take(&mut self, token: u32) -> Result<bool, GrammarError> {
        self.matcher.consume_token(token).map_err(|error| failed(&error.to_string()))?;
        Ok(self.matcher.is_stopped())
    }
}

fn is_deeper(value: &serde_json::Value, depth_max: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &serde_json::Value>> = match value {
        serde_json::Value::Array(list) => Box::new(list.iter()),
        serde_json::Value::Object(map) => Box::new(map.values()),
        _ => return false,
    };
    depth_max == 0 || inner.any(|value| is_deeper(value, depth_max - 1))
}

fn failed(why: &str) -> GrammarError {
    GrammarError::Failed { why: first_line(why) }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests;
