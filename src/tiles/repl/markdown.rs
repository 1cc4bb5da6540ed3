//! Shows a reply while it comes: Markdown as styled text, wrapped to the width.
//!
//! What is printed is never taken back, so it works on any terminal. A paragraph appears word by word and code line by
//! line; a table, a heading or a phrase in emphasis appears when it is complete.

pub(crate) mod layout;
pub(crate) mod code;
pub(crate) mod settled;
pub(crate) mod table;
pub(crate) mod blocks;

use std::borrow::Cow;
use std::rc::Rc;

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag};

use self::code::{CodeLines, Syntaxes};
use crate::terminal::escape::Neutraliser;
use crate::terminal::style::{Styles, paint};
use crate::terminal::{Stream, Terminal};

/// The narrowest width that is laid out.
const WIDTH_MIN: usize = 10;
/// An open block larger than this is shown when it is complete: it is laid out anew for each piece.
const OPEN_BLOCK_BYTES_MAX: usize = 16 << 10;
/// How many definitions of one name are looked for.
const SAME_DEFINITIONS_MAX: usize = 32;

/// How a reply is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it is, for a file or another program.
    Raw,
    /// As it is, with control characters shown as marks: a terminal without colour.
    Marked,
    /// As styled text.
    Rendered {
        /// The columns of the terminal.
        width: usize,
    },
}

impl Mode {
    /// Decides for what stdout is.
    pub(crate) fn of(terminal: &Terminal) -> Self {
        match terminal.width(Stream::Out) {
            Some(width) if terminal.has_color(Stream::Out) => Self::Rendered { width },
            Some(_) => Self::Marked,
            None => Self::Raw,
        }
    }
}

/// One reply that is being shown.
pub(crate) struct Markdown {
    mode: Mode,
    styles: Styles,
    syntaxes: Rc<Syntaxes>,
    neutraliser: Neutraliser,
    /// What came and isn't part of a finished block.
    pending: String,
    /// What of the open block is printed.
    printed: String,
    /// A block was printed before the open one.
    has_blocks: bool,
    code: Option<OpenCode>,
}

/// A fenced code block that is being written.
struct OpenCode {
    fence: String,
    indent: usize,
    lines: CodeLines,
}

impl OpenCode {
    /// Reads the line that opens a block.
    fn new(line: &str, syntaxes: &Syntaxes) -> Self {
        let content = line.trim_start();
        let mark = content.chars().next().unwrap_or('`');
        let info = content.trim_start_matches(mark);
        let fence = content[..content.len() - info.len()].to_owned();
        Self { fence, indent: line.len() - content.len(), lines: CodeLines::new(info.trim(), syntaxes) }
    }

    fn is_closed_by(&self, line: &str) -> bool {
        let content = line.trim_start_matches(' ');
        line.len() - content.len() < 4
            && content
                .strip_prefix(&self.fence)
                .is_some_and(|rest| rest.trim_end().chars().all(|c| self.fence.starts_with(c)))
    }
}

impl Markdown {
    /// Begins a reply.
    pub(crate) fn new(mode: Mode, styles: Styles, syntaxes: Rc<Syntaxes>) -> Self {
        let mode = match mode {
            Mode::Rendered { width } => Mode::Rendered { width: width.max(WIDTH_MIN) },
            mode => mode,
        };
        Self {
            mode,
            styles,
            syntaxes,
            neutraliser: Neutraliser::default(),
            pending: String::new(),
            printed: String::new(),
            has_blocks: false,
            code: None,
        }
    }

    /// Takes the next piece and gives what is to be printed now.
    pub(crate) fn feed(&mut self, piece: &str) -> String {
        match self.mode {
            Mode::Raw => piece.to_owned(),
            Mode::Marked => self.neutraliser.feed(piece),
            Mode::Rendered { width } => {
                let shown = self.neutraliser.feed(piece);
                self.pending.push_str(&shown);
                self.advance(width, false)
            }
        }
    }

    /// Ends the reply, also an interrupted one: gives the rest and the end of the last line. It can then begin another.
    pub(crate) fn finish(&mut self) -> String {
        let held = self.neutraliser.finish();
        let Mode::Rendered { width } = self.mode else { return held.to_owned() };
        self.pending.push_str(held);
        let mut out = self.advance(width, true);
        if self.has_blocks {
            out.push('\n');
        }
        self.code = None;
        self.has_blocks = false;
        out
    }

    fn advance(&mut self, width: usize, last: bool) -> String {
        let mut out = String::new();
        while !self.pending.is_empty() {
            if self.code.is_some() {
                let Some(line) = self.take_line(last) else { break };
                self.code_line(&line, &mut out);
                continue;
            }
            if let Cow::Owned(escaped) = escape_definitions(&self.pending) {
                self.pending = escaped;
            }
            let blocks = top_level(&self.pending);
            if blocks.is_empty() {
                // Blank lines belong to no block; they only part those that do.
                if last {
                    self.pending.clear();
                }
                break;
            }
            if !self.blocks(&blocks, width, last, &mut out) {
                break;
            }
        }
        out
    }

    /// Shows finished blocks, and the settled part of the open one. Says whether to look at the rest again.
    fn blocks(&mut self, blocks: &[Block], width: usize, last: bool, out: &mut String) -> bool {
        for (idx, block) in blocks.iter().enumerate() {
            let next = blocks.get(idx + 1);
            if block.fenced {
                self.pending.drain(..block.start);
                let Some(line) = self.take_line(last) else { return false };
                let code = OpenCode::new(&line, &self.syntaxes);
                let text = line.trim();
                self.print("", out, |styles| paint(styles.dim, text));
                self.code = Some(code);
                return true;
            }
            let end = next.map_or(self.pending.len(), |next| next.start);
            let source = self.pending.get(block.start..end).unwrap_or("").to_owned();
            if next.is_none() && !last {
                self.open_block(&source, width, out);
                self.pending.drain(..block.start);
                return false;
            }
            let (text, _) = blocks::lay_out(&source, width, self.styles, &self.syntaxes);
            let printed = std::mem::take(&mut self.printed);
            if !text.is_empty() {
                self.print(&printed, out, |_| text);
            }
        }
        self.pending.clear();
        false
    }

    /// Prints a finished block but for what is printed of it.
    fn print(&mut self, printed: &str, out: &mut String, text: impl FnOnce(Styles) -> String) {
        let whole = format!("{}{}", self.parting(), text(self.styles));
        out.push_str(&rest(&whole, printed));
        self.has_blocks = true;
    }

    fn open_block(&mut self, source: &str, width: usize, out: &mut String) {
        if source.len() > OPEN_BLOCK_BYTES_MAX {
            return;
        }
        let source = source.get(..settled::settled(source)).unwrap_or("");
        let (text, last_word) = blocks::lay_out(source, width, self.styles, &self.syntaxes);
        // The last word may go on; how long it gets decides which line it stands in.
        let end = if source.ends_with(char::is_whitespace) { text.len() } else { last_word };
        let shown = text.get(..end).unwrap_or("");
        let whole = if shown.is_empty() { String::new() } else { format!("{}{shown}", self.parting()) };
        // Where the new text reinterprets what is printed, the rest waits for the end of the block.
        if let Some(more) = whole.strip_prefix(&self.printed) {
            out.push_str(more);
            self.printed = whole;
        }
    }

    fn parting(&self) -> &'static str {
        if self.has_blocks { "\n\n" } else { "" }
    }

    /// Takes the next line of the pending text, without its end; an unfinished one only if it is the last.
    fn take_line(&mut self, last: bool) -> Option<String> {
        let end = match self.pending.find('\n') {
            Some(end) => end,
            None if last => self.pending.len(),
            None => return None,
        };
        let line = self.pending.get(..end).unwrap_or("").to_owned();
        self.pending.drain(..(end + 1).min(self.pending.len()));
        Some(line)
    }

    fn code_line(&mut self, line: &str, out: &mut String) {
        let Some(code) = &mut self.code else { return };
        out.push('\n');
        if code.is_closed_by(line) {
            out.push_str(&paint(self.styles.dim, line.trim()));
            self.code = None;
            return;
        }
        let spaces = line.len() - line.trim_start_matches(' ').len();
        let line = line.get(spaces.min(code.indent)..).unwrap_or(line);
        out.push_str(&code.lines.line(line, &self.syntaxes));
    }
}

/// A block that stands in no other.
struct Block {
    /// Where its first line begins.
    start: usize,
    fenced: bool,
}

fn top_level(source: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut depth = 0_usize;
    for (event, range) in Parser::new_ext(source, blocks::options()).into_offset_iter() {
        if depth == 0 && !matches!(event, Event::End(_)) {
            let start =
                source.get(..range.start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
            let fenced = matches!(event, Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_))));
            blocks.push(Block { start, fenced });
        }
        match event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    blocks
}

/// Escapes what Markdown would take for the definition of a link and not show: `[name]: address`.
fn escape_definitions(source: &str) -> Cow<'_, str> {
    let mut escaped = Cow::Borrowed(source);
    // A definition that repeats a name is only found once the one before it is escaped.
    for _ in 0..SAME_DEFINITIONS_MAX {
        if !escaped.contains("]:") {
            break;
        }
        let parser = Parser::new_ext(&escaped, blocks::options());
        let mut starts: Vec<usize> = parser.reference_definitions().iter().map(|(_, found)| found.span.start).collect();
        if starts.is_empty() {
            break;
        }
        starts.sort_unstable();
        let text = escaped.to_mut();
        starts.iter().rev().for_each(|start| text.insert(*start, '\\'));
    }
    escaped
}

/// Gives what of a text is not printed yet, also where its beginning was printed in other styles.
fn rest<'a>(whole: &'a str, printed: &str) -> Cow<'a, str> {
    if let Some(rest) = whole.strip_prefix(printed) {
        return Cow::Borrowed(rest);
    }
    // A line printed as a paragraph turned out to be a heading: skip its letters, whatever their style.
    let printed = layout::strip_styles(printed);
    let mut left = printed.chars().filter(|c| !c.is_whitespace()).peekable();
    let mut at = 0;
    while left.peek().is_some() {
        let remaining = whole.get(at..).unwrap_or("");
        if remaining.starts_with("\x1b[") {
            at += remaining.find('m').map_or(remaining.len(), |end| end + 1);
            continue;
        }
        let Some(c) = remaining.chars().next() else { break };
        if !c.is_whitespace() {
            // A mark that was printed and is none of the text any more is passed over.
            while left.next_if(|printed| *printed != c).is_some() {}
            if left.next().is_none() {
                break;
            }
        }
        at += c.len_utf8();
    }
    let (skipped, rest) = whole.split_at(at);
    if layout::strip_styles(rest).trim().is_empty() {
        return Cow::Borrowed("");
    }
    if rest.starts_with('\n') {
        return Cow::Borrowed(rest);
    }
    // The style that was open there goes on. The line was filled for other words before it, so it begins anew.
    let open = skipped.rfind("\x1b[").and_then(|start| skipped.get(start..));
    let style = open.and_then(|style| style.get(..=style.find('m')?)).unwrap_or("");
    Cow::Owned(format!("\n{style}{}", rest.trim_start()))
}

#[cfg(test)]
mod tests;
