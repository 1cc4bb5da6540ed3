//! What is wrong with a Modelfile, and where: the line itself with a caret below it.

use std::fmt;
use std::ops::Range;

use unicode_width::UnicodeWidthChar as _;

use crate::excerpt::{excerpt, visible};
use crate::hint::Hint;

/// How many errors are listed; the last one says whether there are more.
pub const DIAGNOSTICS_MAX: usize = 100;
/// How many warnings are listed; the last one says how many more there are.
pub const WARNINGS_MAX: usize = 100;

/// How much of a line is shown, in characters.
const SHOWN_CHARS_MAX: usize = 100;
/// How much of a long line is shown before the caret, in characters.
const SHOWN_BEFORE_CHARS: usize = 40;

/// One error in a Modelfile.
///
/// Displayed as what is wrong and where, and below it the line with a caret:
/// ```text
/// line 2, column 11: `temprature` is not a parameter
///   2 | PARAMETER temprature 0.5
///     |           ^^^^^^^^^^
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The line, from 1. `\r\n`, `\r` and `\n` each end one.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The beginning of the offending text; empty at the end of the file.
    pub text: String,
    /// What was expected there.
    pub expected: String,
    /// A name that was probably meant.
    pub near: Option<String>,
    message: String,
    hint: Option<String>,
    /// The part of the line that is shown, and below it the caret.
    shown: String,
    caret: String,
}

impl Diagnostic {
    /// What is wrong, without the place and the line.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, message, shown, caret, .. } = self;
        let number = line.to_string();
        write!(f, "line {line}, column {column}: {message}\n  {number} | {shown}\n  {:1$} | {caret}", "", number.len())
    }
}

impl std::error::Error for Diagnostic {}

impl Hint for Diagnostic {
    fn hint(&self) -> Option<String> {
        match (&self.hint, &self.near) {
            (Some(hint), _) => Some(hint.clone()),
            (None, Some(near)) => Some(format!("write `{near}`")),
            (None, None) => Some(format!("write {} there", self.expected)),
        }
    }
}

/// Everything that is wrong with a Modelfile, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, diagnostic) in self.0.iter().enumerate() {
            let between = if idx == 0 { "" } else { "\n" };
            write!(f, "{between}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl Hint for Diagnostics {
    fn hint(&self) -> Option<String> {
        match self.0.as_slice() {
            [only] => only.hint(),
            several => {
                Some(format!("correct the {} places, then check again with `tiles modelfile check`", several.len()))
            }
        }
    }
}

/// Something in a Modelfile that was probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The line, from 1.
    pub line: usize,
    /// What is to be told.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// A [`Diagnostic`] in the making: it knows its bytes, not yet its line.
#[derive(Clone, Debug)]
pub(super) struct Flaw {
    pub span: Range<usize>,
    pub expected: String,
    pub near: Option<String>,
    /// Instead of ``expected …, found `…` ``.
    pub message: Option<String>,
    /// Instead of one made of `near` and `expected`.
    pub hint: Option<String>,
}

impl Flaw {
    /// At `span`, `expected` was expected instead.
    pub(super) fn at(span: Range<usize>, expected: impl Into<String>) -> Self {
        Self { span, expected: expected.into(), near: None, message: None, hint: None }
    }

    /// Finds the line in `text`.
    pub(super) fn locate(self, text: &str) -> Diagnostic {
        self.locate_with(text, &Lines::of(text))
    }

    /// Finds the line in `text`, whose lines are known.
    pub(super) fn locate_with(self, text: &str, lines: &Lines) -> Diagnostic {
        let (line, line_span) = lines.at(self.span.start, text);
        let line_text = &text[line_span.clone()];
        let start = self.span.start.min(line_span.end);
        let end = self.span.end.clamp(start, line_span.end);
        let found = excerpt(&text[start..end]);
        let message = self.message.unwrap_or_else(|| {
            let found = match found.as_str() {
                "" if self.span.start >= text.len() => "the end of the file".to_owned(),
                "" => "the end of the line".to_owned(),
                found => format!("`{found}`"),
            };
            format!("expected {}, found {found}", self.expected)
        });
        let before = line_text[..start - line_span.start].chars().count();
        let (shown, caret) = shown_with_caret(line_text, before, text[start..end].chars().count());
        let Self { expected, near, hint, .. } = self;
        Diagnostic { line, column: before + 1, text: found, expected, near, message, hint, shown, caret }
    }
}

/// The flaws of a file. Once it is full, looking for more ends: nobody reads a hundred of them.
#[derive(Default)]
pub(super) struct Flaws {
    list: Vec<Flaw>,
    more: bool,
    /// Whether there may be a `FROM` that couldn't be read.
    pub hide_from: bool,
}

impl Flaws {
    pub(super) fn push(&mut self, flaw: Flaw) {
        match self.list.len() {
            DIAGNOSTICS_MAX.. => self.more = true,
            _ => self.list.push(flaw),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.more
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Finds the lines, and puts the flaws in their order.
    pub(super) fn locate(mut self, text: &str, lines: &Lines) -> Diagnostics {
        self.list.sort_by_key(|flaw| flaw.span.start);
        let mut diagnostics: Vec<_> = self.list.into_iter().map(|flaw| flaw.locate_with(text, lines)).collect();
        if let (Some(last), true) = (diagnostics.last_mut(), self.more) {
            last.message.push_str(" (and there are more errors)");
        }
        Diagnostics(diagnostics)
    }
}

/// The part of `line` around the character `at`, and carets below `marked` characters of it.
fn shown_with_caret(line: &str, at: usize, marked: usize) -> (String, String) {
    let cut = if at >= SHOWN_CHARS_MAX { at - SHOWN_BEFORE_CHARS } else { 0 };
    let mut shown = String::from(if cut > 0 { "…" } else { "" });
    let mut caret = " ".repeat(usize::from(cut > 0));
    let mut chars = line.chars().skip(cut).map(visible);
    for (idx, char) in chars.by_ref().take(SHOWN_CHARS_MAX).enumerate() {
        let width = char.width().unwrap_or(0);
        let sign = match (idx + cut).checked_sub(at) {
            None => " ",
            Some(idx) if idx < marked => "^",
            Some(_) => "",
        };
        caret.push_str(&sign.repeat(width));
        shown.push(char);
    }
    if chars.next().is_some() {
        shown.push('…');
    }
    // The end of a line, and characters without a width, have no place of their own.
    if !caret.ends_with('^') {
        caret.push('^');
    }
    (shown, caret)
}

/// Where the lines of a text begin.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let ends = |idx: &usize| match bytes[*idx] {
            b'\n' => true,
            b'\r' => bytes.get(idx + 1) != Some(&b'\n'),
            _ => false,
        };
        let bom = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self(std::iter::once(bom).chain((0..bytes.len()).filter(ends).map(|idx| idx + 1)).collect())
    }

    /// The line, from 1, that the byte at `offset` lies on.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset).max(1)
    }

    /// The line, from 1, and where its text lies without the line's end.
    fn at(&self, offset: usize, text: &str) -> (usize, Range<usize>) {
        let line = self.line(offset);
        let start = self.0[line - 1];
        let end = self.0.get(line).copied().unwrap_or(text.len());
        (line, start..start + text[start..end].trim_end_matches(['\r', '\n']).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, found: &str, expected: &str) {
        let start = text.find(found).expect("it is in the text");
        let diagnostic = Flaw::at(start..start + found.len(), "a thing").locate(text);
        assert_eq!(diagnostic.to_string(), expected);
    }

    #[test]
    fn the_caret_is_below_what_is_wrong() {
        check("FROM a\nBAD b", "BAD", "line 2, column 1: expected a thing, found `BAD`\n  2 | BAD b\n    | ^^^");
        check("a\r\nb\rc\n\td", "d", "line 4, column 2: expected a thing, found `d`\n  4 |  d\n    |  ^");
        check("你好 x", "x", "line 1, column 4: expected a thing, found `x`\n  1 | 你好 x\n    |      ^");
        check("a 你好", "你好", "line 1, column 3: expected a thing, found `你好`\n  1 | a 你好\n    |   ^^^^");
        check("\u{feff}a", "a", "line 1, column 1: expected a thing, found `a`\n  1 | a\n    | ^");
        check(
            "a\u{1b}[2J",
            "\u{1b}",
            "line 1, column 2: expected a thing, found `\u{fffd}`\n  1 | a\u{fffd}[2J\n    |  ^",
        );
        check("a\nb", "a\nb", "line 1, column 1: expected a thing, found `a`\n  1 | a\n    | ^");
        let ten = "\n".repeat(9) + "x";
        check(&ten, "x", "line 10, column 1: expected a thing, found `x`\n  10 | x\n     | ^");
    }

    #[test]
    fn ends_have_names() {
        for (text, at, message) in [
            ("", 0, "line 1, column 1: expected a thing, found the end of the file\n  1 | \n    | ^"),
            ("ab\n", 2, "line 1, column 3: expected a thing, found the end of the line\n  1 | ab\n    |   ^"),
            ("ab\n", 3, "line 2, column 1: expected a thing, found the end of the file\n  2 | \n    | ^"),
        ] {
            assert_eq!(Flaw::at(at..at, "a thing").locate(text).to_string(), message);
        }
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let text = "a".repeat(300) + "!" + &"b".repeat(300);
        let shown = format!("…{}!{}…", "a".repeat(40), "b".repeat(59));
        let expected =
            format!("line 1, column 301: expected a thing, found `!`\n  1 | {shown}\n    | {}^", " ".repeat(41));
        check(&text, "!", &expected);
    }

    #[test]
    fn hints_prefer_what_is_known() {
        let flaw = Flaw::at(0..1, "a thing");
        assert_eq!(flaw.clone().locate("x").hint().as_deref(), Some("write a thing there"));
        let near = Flaw { near: Some("this".into()), ..flaw };
        assert_eq!(near.clone().locate("x").hint().as_deref(), Some("write `this`"));
        let hint = Flaw { hint: Some("do that".into()), ..near };
        assert_eq!(hint.locate("x").hint().as_deref(), Some("do that"));
    }
}
