//! The grammar of the Modelfile: text to instructions, each with the place where it was written.
//!
//! It is that of Ollama's `parser/parser.go`. A quoted value ends where a line ends with its closing quote, so quotes
//! within a line are text, and what follows a quote on its line is never lost.

use std::ops::Range;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_while, take_while1};
use nom::character::complete::{alpha1, char, line_ending};
use nom::combinator::{recognize, value};
use nom::multi::fold_many0;
use nom::sequence::preceded;
use nom::{IResult, Parser as _};

use super::diagnostic::{Flaw, Flaws};
use super::{Instruction, Keyword};
use crate::excerpt::excerpt;
use crate::sampling::nearest;

/// A value and the bytes it takes with its quotes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Value<'a> {
    pub text: &'a str,
    pub source: &'a str,
}

/// Why there is no value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoValue {
    /// The line ends before it begins.
    Empty,
    /// Its opening quote, of this many bytes, is never closed.
    Unterminated(usize),
}

fn is_line_end(char: char) -> bool {
    char == '\n' || char == '\r'
}

fn is_space(char: char) -> bool {
    char == ' ' || char == '\t'
}

fn spaces(input: &str) -> IResult<&str, &str> {
    take_while(is_space)(input)
}

fn rest_of_line(input: &str) -> IResult<&str, &str> {
    take_while(|char| !is_line_end(char))(input)
}

/// Blank lines, spaces before a command, and comments where a command could start.
fn gap(input: &str) -> IResult<&str, ()> {
    let blank = value((), take_while1(|char: char| is_space(char) || is_line_end(char)));
    let comment = value((), preceded(char('#'), rest_of_line));
    fold_many0(alt((blank, comment)), || (), |(), ()| ()).parse(input)
}

/// A word up to white space: the name of a parameter, or a role.
fn word(input: &str) -> IResult<&str, &str> {
    take_while1(|char: char| !char.is_whitespace())(input)
}

fn opening_quote(input: &str) -> IResult<&str, &str> {
    alt((tag("\"\"\""), tag("\""))).parse(input)
}

/// Reads a value: the rest of the line trimmed, or what stands between quotes. The rest begins at the line's end.
pub(super) fn read_value(input: &str) -> Result<(&str, Value<'_>), NoValue> {
    let start = input.len() - input.trim_start_matches(|char: char| char.is_whitespace() && !is_line_end(char)).len();
    let input = &input[start..];
    match opening_quote(input) {
        Ok((_, quote)) => read_quoted(input, quote),
        Err(_) => {
            let (rest, line) = rest_of_line(input).unwrap_or((input, ""));
            match line.trim_end() {
                "" => Err(NoValue::Empty),
                text => Ok((rest, Value { text, source: text })),
            }
        }
    }
}

/// Reads on from an opening `quote` to the first line that ends with it. Each byte is looked at once or twice.
fn read_quoted<'a>(input: &'a str, quote: &str) -> Result<(&'a str, Value<'a>), NoValue> {
    let mut line_start = 0;
    loop {
        let (rest, line) = rest_of_line(&input[line_start..]).unwrap_or(("", ""));
        let end = line_start + line.trim_end().len();
        // The opening quote doesn't close itself; an all-white line ends where its predecessor was already looked at.
        if end >= line_start.max(2 * quote.len()) && line.trim_end().ends_with(quote) {
            let text = &input[quote.len()..end - quote.len()];
            return Ok((rest, Value { text, source: &input[..end] }));
        }
        match alt((line_ending::<_, nom::error::Error<_>>, recognize(char('\r')))).parse(rest) {
            Ok((after, _)) => line_start = input.len() - after.len(),
            Err(_) => return Err(NoValue::Unterminated(quote.len())),
        }
    }
}

/// Reads all instructions; what is wrong goes to `flaws`, and reading goes on at the next line.
pub(super) fn read(text: &str, flaws: &mut Flaws) -> Vec<Instruction> {
    let mut instructions = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    loop {
        rest = gap(rest).map_or(rest, |(rest, ())| rest);
        if rest.is_empty() {
            return instructions;
        }
        let begin = text.len() - rest.len();
        match command(text, rest) {
            Ok((after, instruction)) => {
                instructions.push(instruction);
                rest = after;
            }
            Err(Refusal { flaw, unterminated, hides_from }) => {
                flaws.push(flaw);
                flaws.hide_from |= hides_from || unterminated || flaws.is_full();
                if unterminated || flaws.is_full() {
                    return instructions;
                }
                rest = behind(&text[begin..]);
            }
        }
    }
}

/// What follows a command that can't be read: the next line, or what stands behind its quoted value, lest each line of
/// that be taken for a command.
fn behind(input: &str) -> &str {
    let mut rest = input;
    for _ in 0..2 {
        rest = word(rest).map_or(rest, |(rest, _)| rest);
        let (value, _) = spaces(rest).unwrap_or((rest, ""));
        if value.len() < rest.len() && value.starts_with('"') {
            if let Ok((rest, _)) = read_value(value) {
                return rest;
            }
            break;
        }
        rest = value;
    }
    rest_of_line(input).map_or("", |(rest, _)| rest)
}

/// Why a command can't be read, whether all that follows belongs to its open quote, and whether it was meant as `FROM`.
struct Refusal {
    flaw: Flaw,
    unterminated: bool,
    hides_from: bool,
}

impl From<Flaw> for Refusal {
    fn from(flaw: Flaw) -> Self {
        let hides_from = flaw.near.as_deref() == Some(Keyword::From.as_str());
        Self { flaw, unterminated: false, hides_from }
    }
}

fn command<'a>(text: &str, input: &'a str) -> Result<(&'a str, Instruction), Refusal> {
    let at = |rest: &str| text.len() - rest.len();
    let begin = at(input);
    let (rest, keyword) = keyword(begin, input)?;
    let (rest, _) = spaces(rest).unwrap_or((rest, ""));
    let (rest, argument) = match keyword {
        Keyword::Parameter | Keyword::Message => {
            let (expected, missing) = match keyword {
                Keyword::Parameter => ("the name of a parameter", "a value after it"),
                _ => ("`system`, `user` or `assistant`", "a text after it"),
            };
            let (rest, argument) = word(rest).map_err(|_| Flaw::at(at(rest)..at(rest), expected))?;
            if rest_of_line(rest).is_ok_and(|(_, line)| line.trim().is_empty()) {
                let end = at(rest);
                return Err(Flaw::at(end..end, missing).into());
            }
            (rest, argument)
        }
        _ => (rest, ""),
    };
    let argument_end = at(rest);
    let value_at = at(rest.trim_start_matches(|char: char| char.is_whitespace() && !is_line_end(char)));
    let (rest, value) = read_value(rest).map_err(|why| match why {
        NoValue::Empty => Refusal {
            flaw: Flaw::at(value_at..value_at, format!("a value after `{}`", keyword.as_str())),
            unterminated: false,
            hides_from: keyword == Keyword::From,
        },
        NoValue::Unterminated(quote_bytes) => {
            Refusal { flaw: unterminated(value_at, quote_bytes), unterminated: true, hides_from: true }
        }
    })?;
    let value_span = value_at..value_at + value.source.len();
    let instruction = Instruction {
        keyword,
        argument: argument.to_owned(),
        value: value.text.to_owned(),
        line: 0,
        span: begin..value_span.end,
        argument_span: argument_end - argument.len()..argument_end,
        value_span,
    };
    Ok((rest, instruction))
}

fn unterminated(at: usize, quote_bytes: usize) -> Flaw {
    let quote = "\"".repeat(quote_bytes);
    let expected = format!("`{quote}` at the end of a line");
    Flaw {
        message: Some(format!("the value that begins here is never closed: no line ends with `{quote}`")),
        hint: Some(format!("end the value with `{quote}`; nothing but spaces may follow on that line")),
        ..Flaw::at(at..at + quote_bytes, expected)
    }
}

/// Reads the letters of a keyword; a space, a tab or the line's end must follow them.
fn keyword(begin: usize, input: &str) -> Result<(&str, Keyword), Flaw> {
    let whole = input.find(|char| is_space(char) || is_line_end(char)).unwrap_or(input.len());
    let span: Range<usize> = begin..begin + whole;
    let letters = alpha1::<_, nom::error::Error<_>>(input).map_or("", |(_, letters)| letters);
    match Keyword::named(letters) {
        Some(keyword) if letters.len() == whole => Ok((&input[whole..], keyword)),
        Some(keyword) => Err(Flaw {
            near: Some(keyword.as_str().to_owned()),
            hint: Some(format!("write a space after `{}`", keyword.as_str())),
            ..Flaw::at(span, "an instruction")
        }),
        None => {
            let near = nearest(&input[..whole], Keyword::ALL.into_iter().map(Keyword::as_str));
            let hint = match near {
                Some(near) => format!("write `{near}`"),
                None => "begin the line with an instruction such as `SYSTEM`, or with `#` for a comment; a text of several lines stands between `\"\"\"`".into(),
            };
            let message = near.is_none().then(|| format!("`{}` is not an instruction", excerpt(&input[..whole])));
            Err(Flaw { near: near.map(Into::into), hint: Some(hint), message, ..Flaw::at(span, "an instruction") })
        }
    }
}
