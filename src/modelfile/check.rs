//! What the grammar can't say: which values an instruction takes, what may repeat, and what isn't supported yet.

use std::collections::HashMap;

use super::diagnostic::{Diagnostics, Flaw, Flaws, Lines, WARNINGS_MAX, Warning};
use super::text::too_long;
use super::{
    Encoding, Form, Instruction, Keyword, MODELFILE_BYTES_MAX, Modelfile, Parsed, Source, Version, parser, template,
};
use crate::excerpt::excerpt;
use crate::hint::Hint as _;
use crate::message::Role;
use crate::mir::{Mir, ParseMirError};
use crate::sampling::{Effect, ParameterError, Parameters, nearest};

/// The roles a `MESSAGE` may have.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Parses and checks a text.
pub(super) fn parse(text: &str, encoding: Encoding) -> Result<Parsed, Diagnostics> {
    if text.len() > MODELFILE_BYTES_MAX && encoding == Encoding::Utf8 {
        return Err(Diagnostics(vec![too_long(text.len())]));
    }
    let lines = Lines::of(text);
    let mut flaws = Flaws::default();
    let mut instructions = parser::read(text, &mut flaws);
    for instruction in &mut instructions {
        instruction.line = lines.line(instruction.span.start);
    }
    let mut check = Check {
        text,
        lines: &lines,
        flaws,
        warnings: Warnings::default(),
        parameters: Parameters::default(),
        jinja: None,
        requires: None,
        renderer: Form::Auto,
        parser: Form::Auto,
        mir: None,
    };
    for instruction in &instructions {
        if check.flaws.is_full() {
            break;
        }
        check.instruction(instruction);
    }
    check.repeats(&instructions);
    check.both(&instructions);
    let from = instructions.iter().rev().find(|instruction| instruction.keyword == Keyword::From);
    if from.is_none() && !check.flaws.hide_from {
        let end = text.len();
        let message = Some("the file has no `FROM`".to_owned());
        let hint = Some("add a line such as `FROM smollm2-135m`, with the name of a model of the bundle".to_owned());
        check.flaws.push(Flaw { message, hint, ..Flaw::at(end..end, "`FROM` and a model") });
    }
    let Check { flaws, warnings, parameters, jinja, requires, renderer, parser, mir, .. } = check;
    match from {
        Some(from) if flaws.is_empty() => {
            let from = Source::of(&from.value);
            let text = text.to_owned();
            let jinja = jinja.or_else(|| renderer.jinja().map(Into::into));
            let modelfile = Modelfile { text, encoding, instructions, from, parameters, jinja, requires, parser, mir };
            Ok(Parsed { modelfile, warnings: warnings.finish() })
        }
        _ => Err(flaws.locate(text, &lines)),
    }
}

/// Checks the version of the running program.
pub(super) fn requires(modelfile: &Modelfile, current_version: &str) -> Result<(), Diagnostics> {
    let (Some(requires), Some(instruction)) = (modelfile.requires, modelfile.last(Keyword::Requires)) else {
        return Ok(());
    };
    // A version that can't be compared is refused: to guess that it is new enough would be a silent fallback.
    let current = current_version.parse::<Version>();
    if current.as_ref().is_ok_and(|current| *current >= requires) {
        return Ok(());
    }
    let flaw = Flaw {
        message: Some(format!("this Modelfile needs Tiles {requires} or newer; this is {}", excerpt(current_version))),
        hint: Some("use a newer Tiles".into()),
        ..Flaw::at(instruction.value_span.clone(), format!("a version up to {}", excerpt(current_version)))
    };
    Err(Diagnostics(vec![flaw.locate(&modelfile.text)]))
}

/// Warnings, up to a limit.
#[derive(Default)]
struct Warnings {
    list: Vec<Warning>,
    more: usize,
}

impl Warnings {
    fn push(&mut self, line: usize, message: impl FnOnce() -> String) {
        match self.list.len() {
            WARNINGS_MAX.. => self.more += 1,
            _ => self.list.push(Warning { line, message: message() }),
        }
    }

    fn finish(mut self) -> Vec<Warning> {
        self.list.sort_by_key(|warning| warning.line);
        if let (Some(last), 1..) = (self.list.last_mut(), self.more) {
            last.message.push_str(&format!(" (and {} more warnings)", self.more));
        }
        self.list
    }
}

struct Check<'a> {
    text: &'a str,
    lines: &'a Lines,
    flaws: Flaws,
    warnings: Warnings,
    parameters: Parameters,
    jinja: Option<String>,
    requires: Option<Version>,
    renderer: Form,
    parser: Form,
    mir: Option<Mir>,
}

impl Check<'_> {
    fn instruction(&mut self, instruction: &Instruction) {
        self.odd_quotes(instruction);
        match instruction.keyword {
            Keyword::License | Keyword::System => {}
            Keyword::From => self.from(instruction),
            Keyword::Parameter => self.parameter(instruction),
            Keyword::Message => self.role(instruction),
            Keyword::Requires => match instruction.value.parse() {
                Ok(version) => self.requires = Some(version),
                Err(_) => self.flaws.push(Flaw::at(instruction.value_span.clone(), "a version such as `0.1.0`")),
            },
            Keyword::Template => self.template(instruction),
            Keyword::Renderer => self.renderer = self.form(instruction),
            Keyword::Parser => self.parser = self.form(instruction),
            Keyword::Mir => self.mir(instruction),
            Keyword::Adapter => self.adapter(instruction),
            Keyword::Draft | Keyword::Intent => {
                self.unsupported(instruction, instruction.keyword.as_str().to_owned());
            }
        }
    }

    /// A `"` that closes only lines further down has swallowed what stands between, as in Ollama. It is told.
    fn odd_quotes(&mut self, instruction: &Instruction) {
        let source = &self.text[instruction.value_span.clone()];
        let spans_lines = instruction.value.contains(['\n', '\r']);
        if spans_lines && instruction.value.contains('"') && !source.starts_with("\"\"\"") {
            let last = self.lines.line(instruction.value_span.end);
            self.warnings.push(instruction.line, || {
                format!("the value reaches to line {last}, for a quote ends a value only at the end of a line")
            });
        }
    }

    fn from(&mut self, instruction: &Instruction) {
        if instruction.value.trim().is_empty() || instruction.value.contains(char::is_control) {
            self.flaws.push(Flaw::at(instruction.value_span.clone(), "a model's name, `org/name` or path"));
        }
    }

    fn adapter(&mut self, instruction: &Instruction) {
        let path = instruction.value.as_str();
        if path.trim().is_empty() || path.contains(char::is_control) {
            self.flaws.push(Flaw::at(instruction.value_span.clone(), "an adapter's folder or `.safetensors` file"));
        } else if path.to_ascii_lowercase().ends_with(".gguf") {
            self.flaws.push(Flaw {
                message: Some("an adapter in GGUF isn't supported".into()),
                hint: Some("name the folder of an adapter as mlx-lm or PEFT wrote it".into()),
                ..Flaw::at(instruction.value_span.clone(), "an adapter's folder or `.safetensors` file")
            });
        }
    }

    fn parameter(&mut self, instruction: &Instruction) {
        match self.parameters.set(&instruction.argument, &instruction.value) {
            Ok(Effect::Acts) => {}
            Ok(Effect::NoEffectHere { warning }) => self.warnings.push(instruction.line, || warning),
            Err(error) => {
                let (span, expected, near) = match &error {
                    ParameterError::Unknown { nearest, .. } => {
                        (&instruction.argument_span, "the name of a parameter".to_owned(), nearest.map(Into::into))
                    }
                    ParameterError::Value { expected, .. } => (&instruction.value_span, expected.clone(), None),
                    _ => (&instruction.value_span, "fewer stop texts".to_owned(), None),
                };
                let (message, hint) = (Some(error.to_string()), error.hint());
                self.flaws.push(Flaw { span: span.clone(), expected, near, message, hint });
            }
        }
    }

    fn role(&mut self, instruction: &Instruction) {
        if instruction.argument.parse::<Role>().is_err() {
            let near = nearest(&instruction.argument, ROLES.into_iter()).map(Into::into);
            let expected = "`system`, `user` or `assistant`";
            self.flaws.push(Flaw { near, ..Flaw::at(instruction.argument_span.clone(), expected) });
        }
    }

    fn template(&mut self, instruction: &Instruction) {
        match template::to_jinja(&instruction.value) {
            Ok(jinja) => self.jinja = Some(jinja),
            Err(error) => {
                let quotes = (instruction.value_span.len() - instruction.value.len()) / 2;
                let start = instruction.value_span.start + quotes;
                let span = start + error.span.start..start + error.span.end;
                let message = Some(error.to_string());
                self.flaws.push(Flaw { message, hint: error.hint(), ..Flaw::at(span, "the Go subset or Jinja") });
            }
        }
    }

    fn form(&mut self, instruction: &Instruction) -> Form {
        let form = instruction.value.as_str();
        Form::ALL.into_iter().find(|known| known.as_str() == form).unwrap_or_else(|| {
            let near = nearest(form, Form::ALL.into_iter().map(Form::as_str)).map(Into::into);
            let expected = "`auto`, `chatml`, `harmony` or `passthrough`";
            self.flaws.push(Flaw { near, ..Flaw::at(instruction.value_span.clone(), expected) });
            Form::Auto
        })
    }

    fn mir(&mut self, instruction: &Instruction) {
        match instruction.value.parse() {
            Ok(mir) => self.mir = Some(mir),
            Err(error) => {
                let error: ParseMirError = error;
                let (message, hint) = (Some(error.to_string()), error.hint());
                self.flaws.push(Flaw {
                    message,
                    hint,
                    ..Flaw::at(instruction.value_span.clone(), "a model's identity")
                });
            }
        }
    }

    /// A template and a renderer both say how the prompt is made: that can't be meant.
    fn both(&mut self, instructions: &[Instruction]) {
        let last = |keyword| instructions.iter().rfind(|instruction| instruction.keyword == keyword);
        if let (Some(template), Some(renderer)) = (last(Keyword::Template), last(Keyword::Renderer))
            && self.renderer != Form::Auto
        {
            let hint = format!("remove the `TEMPLATE` of line {}, or write `RENDERER auto`", template.line);
            self.flaws.push(Flaw {
                message: Some("`TEMPLATE` and `RENDERER` both say how the prompt is made".into()),
                hint: Some(hint),
                ..Flaw::at(renderer.value_span.clone(), "`auto`")
            });
        }
    }

    fn unsupported(&mut self, instruction: &Instruction, what: String) {
        let word_end = instruction.span.start + instruction.keyword.as_str().len();
        self.flaws.push(Flaw {
            message: Some(format!("`{what}` isn't supported yet")),
            hint: Some("remove the line, or put `#` before it".into()),
            ..Flaw::at(instruction.span.start..word_end, "an instruction that is supported")
        });
    }

    /// Names the earlier line where the last one of several wins.
    fn repeats(&mut self, instructions: &[Instruction]) {
        let mut earlier = HashMap::new();
        for instruction in instructions {
            let Instruction { keyword, argument, line, .. } = instruction;
            if matches!(keyword, Keyword::License | Keyword::Message) || argument == "stop" {
                continue;
            }
            if let Some(before) = earlier.insert((keyword, argument.as_str()), *line) {
                self.warnings.push(*line, || {
                    let space = if argument.is_empty() { "" } else { " " };
                    format!("`{}{space}{argument}` replaces that of line {before}", keyword.as_str())
                });
            }
        }
    }
}
