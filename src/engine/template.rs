//! The checkpoint's own Jinja chat template: messages in, the prompt's text out, as transformers renders it.

use std::fmt::Write as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use crate::hint::Hint;
use crate::time::Timestamp;
use crate::verified::{IntegrityError, VerifiedFolder};

/// The longest template that is read, in bytes. The longest published ones have about 20 kB.
pub const TEMPLATE_BYTES_MAX: u64 = 1024 * 1024;
/// The longest `tokenizer_config.json` that is read, in bytes.
pub const TOKENIZER_CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What one rendering may spend: instructions, and 64 bytes of text that is made count as one.
pub const TEMPLATE_FUEL_MAX: u64 = 5_000_000;

const NAME: &str = "chat_template";

/// A chat template can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of the model can't be read or is damaged.
    #[error(transparent)]
    Read(#[from] IntegrityError),
    /// A file of the model isn't what its name promises.
    #[error("`{name}` of the model can't be used: {reason}")]
    Malformed {
        /// Which file.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The model brings no chat template.
    #[error("the model has no chat template")]
    Missing,
    /// The template is no Jinja that this program understands.
    #[error("the chat template has an error: {0}")]
    Syntax(String),
    /// The template refuses the conversation, or it fails while it runs.
    #[error("the chat template refuses this conversation: {0}")]
    Render(String),
}

impl Hint for TemplateError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Malformed { .. } => Some("import the model again from its source".into()),
            Self::Missing => Some("add a `TEMPLATE` to the Modelfile, or use an instruction-tuned model".into()),
            Self::Syntax(_) => Some("correct the `TEMPLATE` of the Modelfile, or import the model again".into()),
            Self::Render(_) => Some("start a new session, or check the roles of the `MESSAGE` lines".into()),
        }
    }
}

/// How much a model shall think before it answers, where its template knows of thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Think {
    /// Not at all.
    Off,
    /// As much as the model wants.
    On,
    /// Little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
}

impl Think {
    /// The variables that published templates look at: Qwen's `enable_thinking` and gpt-oss's `reasoning_effort`.
    fn variables(self) -> Vec<(&'static str, Value)> {
        let effort = match self {
            Self::Off | Self::On => None,
            Self::Low => Some("low"),
            Self::Medium => Some("medium"),
            Self::High => Some("high"),
        };
        let mut variables = vec![("enable_thinking", Value::from(self != Self::Off))];
        variables.extend(effort.map(|effort| ("reasoning_effort", Value::from(effort))));
        variables
    }
}

/// What one rendering is made of.
#[derive(Clone, Debug)]
pub struct Rendering {
    /// The messages, each a mapping with `role`, `content` and whatever else the template knows.
    pub messages: Vec<Value>,
    /// Whether the prompt ends with the opening of the model's turn.
    pub add_generation_prompt: bool,
    /// How much the model shall think; `None` leaves it to the template.
    pub think: Option<Think>,
    /// What else the template can see, such as `tools`.
    pub variables: Vec<(String, Value)>,
    /// What `strftime_now` tells, in UTC: the library doesn't look at the host's time zone.
    pub now: Timestamp,
}

/// A chat template that is ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: Vec<(String, Value)>,
}

impl ChatTemplate {
    /// Loads the template of a model: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TemplateError::Missing`], and what reading and compiling can meet.
    pub fn load(folder: &VerifiedFolder) -> Result<Self, TemplateError> {
        let config = read_tokenizer_config(folder)?;
        let file = folder.read("chat_template.jinja", TEMPLATE_BYTES_MAX)?;
        let source = match file {
            Some(bytes) => String::from_utf8(bytes).map_err(|_| TemplateError::Malformed {
                name: "chat_template.jinja",
                reason: "it is not UTF-8".into(),
            })?,
            None => source_in(&config).ok_or(TemplateError::Missing)?.to_owned(),
        };
        Self::compile(source, special_tokens(&config))
    }

    /// Makes a template from another source, such as a Modelfile's `TEMPLATE`, for the same model.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn with_source(&self, source: &str) -> Result<Self, TemplateError> {
        Self::compile(source.to_owned(), self.special_tokens.clone())
    }

    /// Makes a template from its source alone; `bos_token` and its like are undefined in it.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn from_source(source: &str) -> Result<Self, TemplateError> {
        Self::compile(source.to_owned(), Vec::new())
    }

    fn compile(source: String, special_tokens: Vec<(String, Value)>) -> Result<Self, TemplateError> {
        if source.len() as u64 > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::Syntax(format!("it is longer than {TEMPLATE_BYTES_MAX} bytes")));
        }
        let environment = environment(&source).map_err(|error| TemplateError::Syntax(error_text(&error)))?;
        Ok(Self { environment, source, special_tokens })
    }

    /// The template's source, as it was loaded.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Render`]: the template raised, failed, or used up its [`TEMPLATE_FUEL_MAX`].
    pub fn render(&self, rendering: &Rendering) -> Result<String, TemplateError> {
        let now = rendering.now;
        let mut context = self.special_tokens.clone();
        context.push(("messages".into(), rendering.messages.iter().cloned().collect()));
        context.push(("add_generation_prompt".into(), rendering.add_generation_prompt.into()));
        let strftime_now = Value::from_function(move |format: &str| strftime(now, format));
        context.push(("strftime_now".into(), strftime_now));
        let think = rendering.think.map(Think::variables).unwrap_or_default();
        context.extend(think.into_iter().map(|(name, value)| (name.to_owned(), value)));
        context.extend(rendering.variables.iter().cloned());
        let render = || self.environment.get_template(NAME)?.render(Value::from_pairs(context));
        render().map_err(|error| TemplateError::Render(error_text(&error)))
    }
}

/// Jinja as transformers sets it up (`utils/chat_template_utils.py`, `_compile_jinja_template`).
fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(TEMPLATE_FUEL_MAX));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
    });
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// Says what went wrong and where, without the template's text.
fn error_text(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// Turns `{% generation %}` blocks, which only mark text for training, into blocks that always hold, so that the
/// whitespace around them is treated as before.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        // `{%}` is a tag that isn't closed yet, not one that closes itself.
        let Some(len) = tag[2..].find("%}").map(|end| end + 4) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(len);
        match tag[2..len - 2].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn strftime(now: Timestamp, format: &str) -> Result<String, Error> {
    let fail = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let moment = jiff::Timestamp::from_millisecond(now.as_ms()).map_err(fail)?;
    jiff::fmt::strtime::format(format, moment).map_err(fail)
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it; `indent` as there.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // What else transformers' `tojson` takes; these are its defaults or change nothing that a prompt shows.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(&mut out, value, indent.map(|indent| indent.min(16)), 0)?;
    Ok(out)
}

/// How deep a value is written; the templates' values are far flatter.
const JSON_DEPTH_MAX: usize = 64;

fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    let fail = |what| Error::new(ErrorKind::BadSerialization, what);
    if depth > JSON_DEPTH_MAX {
        return Err(fail("a value is nested too deep for JSON"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_json_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let is_map = value.kind() == ValueKind::Map;
            let (open, close) = if is_map { ('{', '}') } else { ('[', ']') };
            out.push(open);
            let mut is_empty = true;
            for item in value.try_iter()? {
                out.push_str(if is_empty { "" } else { separator });
                is_empty = false;
                line(out, depth + 1);
                if is_map {
                    write_json_string(out, item.as_str().ok_or_else(|| fail("a key of a mapping is no text"))?);
                    out.push_str(": ");
                    write_json(out, &value.get_item(&item)?, indent, depth + 1)?;
                } else {
                    write_json(out, &item, indent, depth + 1)?;
                }
            }
            if !is_empty {
                line(out, depth);
            }
            out.push(close);
        }
        _ => return Err(fail("a value has no form in JSON")),
    }
    Ok(())
}

fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                // Writing to a string can't fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Reads `tokenizer_config.json`; an empty object where the model has none.
pub(crate) fn read_tokenizer_config(folder: &VerifiedFolder) -> Result<serde_json::Value, TemplateError> {
    let name = "tokenizer_config.json";
    match folder.read(name, TOKENIZER_CONFIG_BYTES_MAX)? {
        Some(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| TemplateError::Malformed { name, reason: error.to_string() })
        }
        None => Ok(serde_json::Value::Object(serde_json::Map::new())),
    }
}

/// The template in `tokenizer_config.json`: a text, or the one called `default` of a list of named ones.
fn source_in(config: &serde_json::Value) -> Option<&str> {
    match config.get("chat_template")? {
        serde_json::Value::String(source) => Some(source),
        serde_json::Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"))?;
            default.get("template")?.as_str()
        }
        _ => None,
    }
}

/// `bos_token` and its like, which templates may print: a text, or an object with the text as `content`.
fn special_tokens(config: &serde_json::Value) -> Vec<(String, Value)> {
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), Value::from(special_token(config, name)?))))
        .collect()
}

/// The text of one of the special tokens that `tokenizer_config.json` names.
pub(crate) fn special_token<'a>(config: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

#[cfg(test)]
mod tests;
