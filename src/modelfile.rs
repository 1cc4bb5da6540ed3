//! The Modelfile: what a person writes about a model, as checked values that know where they were written.
//!
//! Parsing keeps the text, so that a new `SYSTEM` leaves every other byte as it was. A file with an error is refused
//! whole, with all of its errors.

mod check;
mod diagnostic;
mod explain;
mod form;
mod parser;
mod print;
mod source;
pub mod template;
mod text;
mod version;

use std::ops::Range;

use crate::message::{Message, Role};
use crate::mir::Mir;
use crate::sampling::Parameters;

pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Diagnostics, WARNINGS_MAX, Warning};
pub use explain::Explained;
pub use form::Form;
pub use print::UnprintableError;
pub use source::Source;
pub use text::Encoding;
pub use version::{ParseVersionError, Version};

/// The longest Modelfile that is read, in bytes.
pub const MODELFILE_BYTES_MAX: usize = 1024 * 1024;

/// The word that begins an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keyword {
    /// Which model it is about.
    From,
    /// A licence of the model.
    License,
    /// How messages become the prompt.
    Template,
    /// What the model is told before the talk.
    System,
    /// A LoRA adapter.
    Adapter,
    /// A parameter's value.
    Parameter,
    /// A message before the first turn.
    Message,
    /// The version of Tiles that is needed.
    Requires,
    /// How the prompt is made, where no template says it.
    Renderer,
    /// How the answer is taken apart.
    Parser,
    /// A draft model.
    Draft,
    /// The model's identity.
    Mir,
    /// A chain of models for some prompts.
    Intent,
}

impl Keyword {
    /// Every keyword.
    pub const ALL: [Self; 13] = [
        Self::From,
        Self::License,
        Self::Template,
        Self::System,
        Self::Adapter,
        Self::Parameter,
        Self::Message,
        Self::Requires,
        Self::Renderer,
        Self::Parser,
        Self::Draft,
        Self::Mir,
        Self::Intent,
    ];

    /// The keyword in capitals, as it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::From => "FROM",
            Self::License => "LICENSE",
            Self::Template => "TEMPLATE",
            Self::System => "SYSTEM",
            Self::Adapter => "ADAPTER",
            Self::Parameter => "PARAMETER",
            Self::Message => "MESSAGE",
            Self::Requires => "REQUIRES",
            Self::Renderer => "RENDERER",
            Self::Parser => "PARSER",
            Self::Draft => "DRAFT",
            Self::Mir => "MIR",
            Self::Intent => "INTENT",
        }
    }

    fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|keyword| keyword.as_str().eq_ignore_ascii_case(word))
    }
}

/// One instruction as it was written.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its first word.
    pub keyword: Keyword,
    /// The name of a `PARAMETER` or the role of a `MESSAGE`; empty for the others.
    pub argument: String,
    /// Its value without quotes.
    pub value: String,
    /// The line it begins on, from 1.
    pub line: usize,
    /// Where all of it lies in the text, in bytes.
    pub span: Range<usize>,
    argument_span: Range<usize>,
    /// Where the value lies in the text, with its quotes.
    value_span: Range<usize>,
}

/// Instructions are equal if they say the same, wherever and however they are written.
impl PartialEq for Instruction {
    fn eq(&self, other: &Self) -> bool {
        (self.keyword, &self.argument, &self.value) == (other.keyword, &other.argument, &other.value)
    }
}

impl Eq for Instruction {}

/// A Modelfile without errors.
#[derive(Clone, Debug)]
pub struct Modelfile {
    text: String,
    encoding: Encoding,
    instructions: Vec<Instruction>,
    from: Source,
    parameters: Parameters,
    jinja: Option<String>,
    requires: Option<Version>,
    parser: Form,
    mir: Option<Mir>,
}

/// Modelfiles are equal if their instructions are.
impl PartialEq for Modelfile {
    fn eq(&self, other: &Self) -> bool {
        self.instructions == other.instructions
    }
}

/// A Modelfile and what is worth telling about it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The Modelfile.
    pub modelfile: Modelfile,
    /// What was probably not meant, in the order of the lines; at most [`WARNINGS_MAX`].
    pub warnings: Vec<Warning>,
}

impl Modelfile {
    /// Parses and checks a Modelfile.
    ///
    /// # Errors
    /// All errors of the file in the order of their lines, at most [`DIAGNOSTICS_MAX`] of them.
    pub fn parse(text: &str) -> Result<Parsed, Diagnostics> {
        check::parse(text, Encoding::Utf8)
    }

    /// Parses a Modelfile from a file's bytes: UTF-8 with or without a byte order mark, or UTF-16 with one.
    ///
    /// # Errors
    /// As [`Modelfile::parse`], and where the bytes are no text or more than [`MODELFILE_BYTES_MAX`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Parsed, Diagnostics> {
        let (text, encoding) = text::decode(bytes).map_err(|diagnostic| Diagnostics(vec![*diagnostic]))?;
        check::parse(&text, encoding)
    }

    /// Which model it is about.
    pub fn from(&self) -> &Source {
        &self.from
    }

    /// The path of a LoRA adapter: a folder or a `.safetensors` file, relative to the Modelfile unless it is absolute.
    pub fn adapter(&self) -> Option<&str> {
        self.last(Keyword::Adapter).map(|instruction| instruction.value.as_str())
    }

    /// What the model is told before the talk.
    pub fn system(&self) -> Option<&str> {
        self.last(Keyword::System).map(|instruction| instruction.value.as_str())
    }

    /// The messages before the first turn, in their order.
    pub fn messages(&self) -> Vec<Message> {
        let role = |said: &Instruction| said.argument.parse::<Role>().expect("the check refused other roles");
        self.all(Keyword::Message).map(|said| Message::new(role(said), said.value.clone())).collect()
    }

    /// The chat template as Jinja over `messages` and `add_generation_prompt`: that of `TEMPLATE` (see
    /// [`template::to_jinja`]) or of `RENDERER`; `None` where the checkpoint's own is to be used.
    pub fn template(&self) -> Option<String> {
        self.jinja.clone()
    }

    /// The chat template as it was written.
    pub fn template_source(&self) -> Option<&str> {
        self.last(Keyword::Template).map(|instruction| instruction.value.as_str())
    }

    /// How the answer is taken apart.
    pub fn parser(&self) -> Form {
        self.parser
    }

    /// What the model is.
    pub fn mir(&self) -> Option<&Mir> {
        self.mir.as_ref()
    }

    /// The parameters: those that the file sets, the others as they are by default.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The licences of the model, in their order.
    pub fn licences(&self) -> Vec<&str> {
        self.all(Keyword::License).map(|instruction| instruction.value.as_str()).collect()
    }

    /// The version of Tiles that is needed at least.
    pub fn requires(&self) -> Option<Version> {
        self.requires
    }

    /// Checks that `current_version`, that of the running program, is new enough.
    ///
    /// # Errors
    /// [`Diagnostics`] with one entry, at the `REQUIRES`.
    pub fn check_requires(&self, current_version: &str) -> Result<(), Diagnostics> {
        check::requires(self, current_version)
    }

    /// The instructions in their order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The text as it was parsed, with its byte order mark if there was one.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How the file that it was parsed from writes characters.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn all(&self, keyword: Keyword) -> impl DoubleEndedIterator<Item = &Instruction> {
        self.instructions.iter().filter(move |instruction| instruction.keyword == keyword)
    }

    /// The instruction that counts where the last one wins.
    fn last(&self, keyword: Keyword) -> Option<&Instruction> {
        self.all(keyword).next_back()
    }
}

#[cfg(test)]
mod tests;
