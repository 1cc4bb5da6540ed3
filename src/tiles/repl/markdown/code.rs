//! Colours code line by line, in the terminal's own sixteen colours, which fit dark and light backgrounds alike.

use std::cell::OnceCell;

use anstyle::{AnsiColor, Style};
use syntect::parsing::{ParseState, Scope, ScopeStack, SyntaxSet};

use crate::terminal::style::paint;

/// The longest line that is coloured: the time of a regular expression may grow faster than its text.
const LINE_BYTES_MAX: usize = 1000;
/// How many lines of a block are coloured.
const LINES_MAX: usize = 2000;

/// The grammars of programming languages; loaded when the first code appears, and then kept for later replies.
#[derive(Default)]
pub(crate) struct Syntaxes {
    loaded: OnceCell<Loaded>,
}

struct Loaded {
    set: SyntaxSet,
    colors: Vec<(Scope, Style)>,
}

impl Loaded {
    fn new() -> Self {
        let color = |color: AnsiColor| color.on_default();
        let colors = [
            ("comment", Style::new().dimmed()),
            ("string", color(AnsiColor::Green)),
            ("constant", color(AnsiColor::Cyan)),
            ("keyword.operator", Style::new()),
            ("keyword", color(AnsiColor::Magenta)),
            ("storage", color(AnsiColor::Magenta)),
            ("entity.name", color(AnsiColor::Blue)),
            ("support", color(AnsiColor::Blue)),
            ("entity.other.attribute-name", color(AnsiColor::Yellow)),
            ("markup.deleted", color(AnsiColor::Red)),
            ("markup.inserted", color(AnsiColor::Green)),
        ];
        let colors = colors.into_iter().filter_map(|(name, style)| Some((Scope::new(name).ok()?, style))).collect();
        Self { set: SyntaxSet::load_defaults_newlines(), colors }
    }

    /// The style of the innermost scope that has one.
    fn style(&self, stack: &ScopeStack) -> Style {
        let style = |scope: &Scope| self.colors.iter().find(|(known, _)| known.is_prefix_of(*scope));
        stack.as_slice().iter().rev().find_map(style).map_or(Style::new(), |(_, style)| *style)
    }
}

/// The lines of one code block, as they come.
pub(crate) struct CodeLines {
    /// `None` once the language is unknown, the block too long or the grammar failed: the rest is plain.
    state: Option<(ParseState, ScopeStack)>,
    lines: usize,
}

impl CodeLines {
    /// Begins a block; `info` is the text behind its fence.
    pub(crate) fn new(info: &str, syntaxes: &Syntaxes) -> Self {
        let language = info.split([' ', ',', '{']).next().unwrap_or("");
        let state = (!language.is_empty()).then(|| syntaxes.loaded.get_or_init(Loaded::new)).and_then(|loaded| {
            let syntax = loaded.set.find_syntax_by_token(language)?;
            Some((ParseState::new(syntax), ScopeStack::new()))
        });
        Self { state, lines: 0 }
    }

    /// Colours the next line, given without its end. Every character stays, tabs become four spaces.
    pub(crate) fn line(&mut self, line: &str, syntaxes: &Syntaxes) -> String {
        self.lines += 1;
        if line.len() > LINE_BYTES_MAX || self.lines > LINES_MAX {
            self.state = None;
        }
        let painted = self.paint(line, syntaxes);
        if painted.is_none() {
            self.state = None;
        }
        painted.unwrap_or_else(|| line.to_owned()).replace('\t', "    ")
    }

    fn paint(&mut self, line: &str, syntaxes: &Syntaxes) -> Option<String> {
        let loaded = syntaxes.loaded.get()?;
        let (parse, stack) = self.state.as_mut()?;
        let operations = parse.parse_line(&format!("{line}\n"), &loaded.set).ok()?;
        let mut painted = String::new();
        let mut from = 0;
        for (at, operation) in operations {
            let at = at.min(line.len());
            push(&mut painted, loaded.style(stack), line.get(from..at)?);
            from = at;
            stack.apply(&operation).ok()?;
        }
        push(&mut painted, loaded.style(stack), line.get(from..)?);
        Some(painted)
    }
}

fn push(painted: &mut String, style: Style, text: &str) {
    match text.trim().is_empty() {
        true => painted.push_str(text),
        false => painted.push_str(&paint(style, text)),
    }
}
