//! From instructions to text: the canonical form, and a new `SYSTEM` in a text that otherwise stays as it was.

use super::parser::read_value;
use super::{Instruction, Keyword, Modelfile};
use crate::hint::Hint;

/// A text can't be written as a value: the grammar has no escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line within the text ends with `\"\"\"`, which would end the value there")]
pub struct UnprintableError;

impl Hint for UnprintableError {
    fn hint(&self) -> Option<String> {
        Some("take the `\"\"\"` from the end of that line".into())
    }
}

/// Writes a value so that it is read back unchanged: bare, else between `"`, else between `"""`.
pub(super) fn quote(value: &str) -> Result<String, UnprintableError> {
    ["", "\"", "\"\"\""]
        .into_iter()
        // Quotes within quotes are legal, but three of them are easier to read.
        .filter(|quote| quote.len() != 1 || !value.contains('"'))
        .map(|quote| format!("{quote}{value}{quote}"))
        .find(|written| {
            read_value(written)
                .is_ok_and(|(rest, read)| rest.is_empty() && read.text == value && read.source == *written)
        })
        .ok_or(UnprintableError)
}

/// Prints what lies between two instructions: the comments, and one empty line where there were any.
fn print_gap(gap: &str, printed: &mut String) {
    let gap = gap.trim_start_matches('\u{feff}');
    let mut lines = gap.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r')).peekable();
    // What is left of the line before is white space, as is what stands before the next instruction on its line.
    if !printed.is_empty() {
        lines.next();
    }
    while let Some(line) = lines.next() {
        match line.trim() {
            "" if lines.peek().is_none() || printed.is_empty() || printed.ends_with("\n\n") => {}
            "" => printed.push('\n'),
            comment => {
                printed.push_str(comment);
                printed.push('\n');
            }
        }
    }
}

impl Instruction {
    fn to_canonical(&self) -> String {
        let value = quote(&self.value).expect("a value that was read can be written");
        match self.argument.as_str() {
            "" => format!("{} {value}\n", self.keyword.as_str()),
            argument => format!("{} {argument} {value}\n", self.keyword.as_str()),
        }
    }
}

impl Modelfile {
    /// Prints the instructions in their order with the comments between them, and one empty line where there were any.
    /// Parsing the result gives an equal Modelfile, and printing that gives the same text.
    pub fn to_canonical(&self) -> String {
        let mut printed = String::with_capacity(self.text.len());
        let mut end = 0;
        for instruction in &self.instructions {
            print_gap(&self.text[end..instruction.span.start], &mut printed);
            printed.push_str(&instruction.to_canonical());
            end = instruction.span.end;
        }
        print_gap(&self.text[end..], &mut printed);
        printed.truncate(printed.trim_end_matches('\n').len() + 1);
        printed
    }

    /// The text with `system` as the value of the last `SYSTEM`, or with a `SYSTEM` at the end if there was none. Every
    /// other byte stays as it was.
    ///
    /// # Errors
    /// [`UnprintableError`] where the grammar can't express `system`.
    pub fn with_system(&self, system: &str) -> Result<String, UnprintableError> {
        self.with(Keyword::System, system)
    }

    /// The text with `path` as the value of the last `ADAPTER`, as [`Self::with_system`] does it.
    ///
    /// # Errors
    /// [`UnprintableError`] where the grammar can't express `path`.
    pub fn with_adapter(&self, path: &str) -> Result<String, UnprintableError> {
        self.with(Keyword::Adapter, path)
    }

    fn with(&self, keyword: Keyword, value: &str) -> Result<String, UnprintableError> {
        let value = quote(value)?;
        let text = &self.text;
        Ok(match self.last(keyword) {
            Some(instruction) => {
                let span = &instruction.value_span;
                [&text[..span.start], &value, &text[span.end..]].concat()
            }
            None => {
                let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
                let before = if text.ends_with(['\n', '\r']) { "" } else { line_end };
                [text, before, keyword.as_str(), " ", &value, line_end].concat()
            }
        })
    }
}
