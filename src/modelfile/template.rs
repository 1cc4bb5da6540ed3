//! `TEMPLATE`: Jinja as it is, or a subset of Go's `text/template` translated to Jinja over a list of messages.
//!
//! The subset: `{{ .System }}`, `.Prompt`, `.Response`, `.Messages` with `.Role` and `.Content` within
//! `{{ range .Messages }}`, `$` before any of the first four, `if`, `else if`, `else`, `end`, `eq`, `ne`, `and`, `or`,
//! `not`, parentheses, texts between quotes, comments, and the trim markers `{{-` and `-}}`.
//!
//! How the messages become `.System`, `.Prompt` and `.Response` (Ollama, `template/template.go`, `Execute`):
//! - Without `.Messages` the template describes one turn and is rendered once for each: a system message, a user's and
//!   the assistant's answer. A turn ends where a message comes that would stand before one that it already has.
//!   Neighbours of the same role are joined by an empty line. Of the last turn, with `add_generation_prompt`, what
//!   follows `.Response` is left out, so that the model goes on there. A template without `.Response` gets one at its end.
//! - With `.Messages` it is rendered once. `.System` is then all system messages, joined by empty lines; `.Prompt` and
//!   `.Response` are empty; `range` meets neighbours of the same role as one message, joined likewise.

use std::ops::Range;

use crate::excerpt::excerpt;
use crate::hint::Hint;

mod expression;

use expression::{Scope, translate};

/// How deep blocks and parentheses may be nested.
pub const TEMPLATE_DEPTH_MAX: usize = 32;

/// A template is neither Jinja nor in the subset of Go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the template's `{text}` {reason}")]
pub struct TemplateError {
    /// The offending text.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
    /// Where it lies in the template, in bytes.
    pub span: Range<usize>,
}

impl Hint for TemplateError {
    fn hint(&self) -> Option<String> {
        Some("write the template as Jinja over `messages` and `add_generation_prompt`, or leave `TEMPLATE` out to use the model's own".into())
    }
}

impl TemplateError {
    fn at(source: &str, span: Range<usize>, reason: impl Into<String>) -> Self {
        Self { text: excerpt(&source[span.clone()]), reason: reason.into(), span }
    }
}

/// Gives the Jinja of a `TEMPLATE`: the text itself if it is Jinja, else its translation from Go.
///
/// It is Go if it has no `{%` and an action that begins with `.`, `$`, `/*` or a word of Go's language.
///
/// # Errors
/// [`TemplateError`] at the first action outside the subset.
pub fn to_jinja(source: &str) -> Result<String, TemplateError> {
    match is_go(source) {
        true => from_go(source),
        false => Ok(source.to_owned()),
    }
}

fn is_go(source: &str) -> bool {
    const WORDS: [&str; 12] =
        ["if", "else", "range", "end", "with", "define", "template", "block", "break", "continue", "slice", "json"];
    !source.contains("{%")
        && source.split("{{").skip(1).any(|action| {
            let action = action.strip_prefix('-').unwrap_or(action).trim_start();
            let word = action.split(|char: char| !char.is_ascii_alphanumeric()).next().unwrap_or("");
            action.starts_with(['.', '$']) || action.starts_with("/*") || WORDS.contains(&word)
        })
}

/// A piece of a Go template.
enum Piece<'a> {
    Text(&'a str),
    /// What stands between the braces, trimmed, and where the whole action lies.
    Action(&'a str, Range<usize>),
}

/// Cuts a template into texts and actions, and applies the trim markers.
fn pieces(source: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim = false;
    while let Some(found) = source[at..].find("{{") {
        let start = at + found;
        let end = action_end(source, start)?;
        let inner = &source[start + 2..end - 2];
        let (inner, trim_before) = match inner.strip_prefix('-') {
            Some(rest) if rest.starts_with(char::is_whitespace) => (rest, true),
            _ => (inner, false),
        };
        let (inner, trim_after) = match inner.strip_suffix('-') {
            Some(rest) if rest.ends_with(char::is_whitespace) => (rest, true),
            _ => (inner, false),
        };
        let mut text = &source[at..start];
        text = if trim { text.trim_start() } else { text };
        text = if trim_before { text.trim_end() } else { text };
        pieces.push(Piece::Text(text));
        pieces.push(Piece::Action(inner.trim(), start..end));
        trim = trim_after;
        at = end;
    }
    let text = &source[at..];
    pieces.push(Piece::Text(if trim { text.trim_start() } else { text }));
    Ok(pieces)
}

/// The end of the action that begins at `start`, behind its `}}`; braces within a quoted text don't count.
fn action_end(source: &str, start: usize) -> Result<usize, TemplateError> {
    let mut quote = None;
    let mut escaped = false;
    let bytes = source.as_bytes();
    let body = source[start + 2..].trim_start_matches('-').trim_start();
    if body.starts_with("/*") {
        let close = source[start..].find("*/").and_then(|found| {
            let after = &source[start + found..];
            after.find("}}").map(|braces| start + found + braces + 2)
        });
        return close.ok_or_else(|| TemplateError::at(source, start..start + 2, "is never closed"));
    }
    for idx in start + 2..bytes.len() {
        match (quote, bytes[idx]) {
            (Some(_), _) if escaped => escaped = false,
            (Some(b'"'), b'\\') => escaped = true,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'`')) => quote = Some(byte),
            (None, b'}') if bytes.get(idx + 1) == Some(&b'}') => return Ok(idx + 2),
            (None, _) => {}
        }
    }
    Err(TemplateError::at(source, start..start + 2, "is never closed"))
}

/// An open block.
struct Frame {
    end: &'static str,
    is_range: bool,
    has_else: bool,
    span: Range<usize>,
    /// Whether a guard is open in it that leaves out what follows `.Response`.
    guarded: bool,
}

/// The translation under way.
struct Go<'a> {
    source: &'a str,
    out: String,
    frames: Vec<Frame>,
    scope: Scope,
    /// Whether `.Response` was printed: what follows is left out of the last turn.
    cut: bool,
    /// Whether `.Response` stands anywhere, so that none is added at the end.
    has_response: bool,
}

fn from_go(source: &str) -> Result<String, TemplateError> {
    let pieces = pieces(source)?;
    let scope = Scope { is_turn: !uses_messages(&pieces), in_range: false };
    let root = Frame { end: "", is_range: false, has_else: true, span: 0..0, guarded: false };
    let mut go = Go { source, out: String::new(), frames: vec![root], scope, cut: false, has_response: false };
    for piece in pieces {
        match piece {
            Piece::Text(text) => go.text(text),
            Piece::Action(action, span) => go.action(action, span)?,
        }
    }
    if let [_, .., open] = go.frames.as_slice() {
        return Err(TemplateError::at(source, open.span.clone(), "has no `{{ end }}`"));
    }
    let is_turn = go.scope.is_turn;
    if is_turn && !go.has_response {
        go.out.push_str("{{ Response }}");
    }
    if go.frames[0].guarded {
        go.out.push_str("{% endif %}");
    }
    Ok(match is_turn {
        true => TURNS.replace("BODY", &go.out),
        false => format!("{MESSAGES}{}", go.out),
    })
}

/// One turn as a macro, and the messages dealt into turns. No line ends stand between the tags, so none are printed.
const TURNS: &str = concat!(
    "{% macro turn(System, Prompt, Response, last) %}BODY{% endmacro %}",
    "{% set ns = namespace(system='', prompt='', response='') %}",
    "{% for message in messages %}",
    "{% if message.role == 'system' %}",
    "{% if ns.prompt or ns.response %}",
    "{{ turn(ns.system, ns.prompt, ns.response, false) }}",
    "{% set ns.system = '' %}{% set ns.prompt = '' %}{% set ns.response = '' %}",
    "{% endif %}",
    "{% set ns.system = ns.system ~ ('\\n\\n' if ns.system else '') ~ message.content %}",
    "{% elif message.role == 'user' %}",
    "{% if ns.response %}",
    "{{ turn(ns.system, ns.prompt, ns.response, false) }}",
    "{% set ns.system = '' %}{% set ns.prompt = '' %}{% set ns.response = '' %}",
    "{% endif %}",
    "{% set ns.prompt = ns.prompt ~ ('\\n\\n' if ns.prompt else '') ~ message.content %}",
    "{% else %}",
    "{% set ns.response = ns.response ~ ('\\n\\n' if ns.response else '') ~ message.content %}",
    "{% endif %}",
    "{% endfor %}",
    "{{ turn(ns.system, ns.prompt, ns.response, add_generation_prompt) }}",
);

/// What a template with `.Messages` can see besides them.
const MESSAGES: &str = concat!(
    "{% set ns = namespace(system='') %}",
    "{% for message in messages %}{% if message.role == 'system' %}",
    "{% set ns.system = ns.system ~ ('\\n\\n' if ns.system else '') ~ message.content %}",
    "{% endif %}{% endfor %}",
    "{% set System = ns.system %}{% set Prompt = '' %}{% set Response = '' %}",
);

/// A loop that acts at the last of several messages of one role in a row, with the texts of all of them.
const RANGE: &str = concat!(
    "{% set at = namespace(role='', content='') %}",
    "{% for message in messages %}",
    "{% set at.content = (at.content ~ '\\n\\n' if message.role == at.role else '') ~ message.content %}",
    "{% set at.role = message.role %}",
    "{% if loop.last or loop.nextitem.role != message.role %}",
);

/// Whether a `range` goes over the messages. Variables may be declared; using them is refused where they stand.
fn is_messages(range: &str) -> bool {
    let over = match range.split_once(":=") {
        Some((names, over)) if names.split(',').all(|name| name.trim().starts_with('$')) => over.trim(),
        _ => range,
    };
    matches!(over, ".Messages" | "$.Messages")
}

fn uses_messages(pieces: &[Piece<'_>]) -> bool {
    pieces.iter().any(|piece| matches!(piece, Piece::Action(action, _) if action.contains(".Messages")))
}

impl Go<'_> {
    /// Writes a text as an expression, for Jinja trims texts beside its tags.
    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.out.push_str("{{ ");
            self.out.push_str(&expression::literal(text));
            self.out.push_str(" }}");
        }
    }

    fn action(&mut self, action: &str, span: Range<usize>) -> Result<(), TemplateError> {
        let fail = |reason: &str| TemplateError::at(self.source, span.clone(), reason);
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
        let rest = rest.trim();
        match word {
            _ if action.starts_with("/*") && action.ends_with("*/") => {}
            "if" => {
                let condition = self.condition(rest, &span)?;
                self.open(Frame { end: "{% endif %}", is_range: false, has_else: false, span, guarded: false })?;
                self.out.push_str(&format!("{{% if {condition} %}}"));
            }
            "range" if is_messages(rest) && !self.scope.in_range => {
                self.open(Frame {
                    end: "{% endif %}{% endfor %}",
                    is_range: true,
                    has_else: false,
                    span,
                    guarded: false,
                })?;
                self.scope.in_range = true;
                self.out.push_str(RANGE);
            }
            "range" => return Err(fail("isn't supported: only `range .Messages` is")),
            "else" if self.frames.last().is_some_and(|frame| frame.has_else) => {
                return Err(fail("has no `if` before it"));
            }
            "else" if rest.is_empty() => {
                self.leave_branch();
                if let Some(frame) = self.frames.last_mut() {
                    if frame.is_range {
                        self.out.push_str("{% endif %}");
                        frame.end = "{% endfor %}";
                    }
                    frame.has_else = true;
                    self.scope.in_range &= !frame.is_range;
                }
                self.out.push_str("{% else %}");
                self.guard();
            }
            "else" if rest.starts_with("if ") && self.frames.last().is_some_and(|frame| !frame.is_range) => {
                let condition = self.condition(&rest[3..], &span)?;
                self.leave_branch();
                self.out.push_str(&format!("{{% elif {condition} %}}"));
                self.guard();
            }
            "end" if rest.is_empty() && self.frames.len() > 1 => {
                self.leave_branch();
                let frame = self.frames.pop().expect("there are more than one");
                self.scope.in_range &= !frame.is_range;
                self.out.push_str(frame.end);
                self.guard();
            }
            "end" if rest.is_empty() => return Err(fail("has no block before it")),
            _ => {
                let expression = translate(action, self.scope).map_err(|reason| fail(&reason))?;
                self.out.push_str(&format!("{{{{ {expression} }}}}"));
                self.meet_response(action);
            }
        }
        Ok(())
    }

    /// Translates a condition. One that looks at `.Response` doesn't cut the last turn: only printing it does.
    fn condition(&mut self, condition: &str, span: &Range<usize>) -> Result<String, TemplateError> {
        self.has_response |= expression::mentions_response(condition);
        translate(condition, self.scope).map_err(|reason| TemplateError::at(self.source, span.clone(), reason))
    }

    fn open(&mut self, frame: Frame) -> Result<(), TemplateError> {
        if self.frames.len() >= TEMPLATE_DEPTH_MAX {
            return Err(TemplateError::at(self.source, frame.span, "is nested too deep"));
        }
        self.frames.push(frame);
        Ok(())
    }

    fn meet_response(&mut self, action: &str) {
        if self.scope.is_turn && expression::mentions_response(action) {
            self.has_response = true;
            self.cut = true;
            self.guard();
        }
    }

    /// Opens a guard in the innermost block, if the template is cut and none is open there.
    fn guard(&mut self) {
        // Only this block needs to be asked: one that opens within a guard lies within it whole.
        let is_guarded = self.frames.iter().any(|frame| frame.guarded);
        if let (true, false, Some(frame)) = (self.cut, is_guarded, self.frames.last_mut()) {
            frame.guarded = true;
            self.out.push_str("{% if not last %}");
        }
    }

    /// Closes the innermost block's guard before its branch ends.
    fn leave_branch(&mut self) {
        if let Some(frame) = self.frames.last_mut()
            && std::mem::take(&mut frame.guarded)
        {
            self.out.push_str("{% endif %}");
        }
    }
}

#[cfg(test)]
mod tests;
