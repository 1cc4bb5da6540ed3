//! Lays out one top-level block of Markdown.

use anstyle::Style;
use pulldown_cmark::{CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

use super::code::{CodeLines, Syntaxes};
use super::layout::Layout;
use super::table::Table;
use crate::terminal::style::{Styles, paint};

/// The widest rule between sections.
const RULE_WIDTH_MAX: usize = 60;

/// The Markdown we read: CommonMark and tables. Strikethrough is off, because `~5 to ~6` would lose its tildes.
pub(crate) fn options() -> Options {
    Options::ENABLE_TABLES
}

/// Lays out a block, and says where its last word begins.
pub(crate) fn lay_out(source: &str, width: usize, styles: Styles, syntaxes: &Syntaxes) -> (String, usize) {
    let mut blocks = Blocks {
        layout: Layout::new(width),
        styles,
        syntaxes,
        lists: Vec::new(),
        emphasis: Vec::new(),
        links: Vec::new(),
        code: None,
        table: None,
    };
    for event in Parser::new_ext(source, options()) {
        blocks.event(event);
    }
    blocks.layout.finish()
}

struct Blocks<'a> {
    layout: Layout,
    styles: Styles,
    syntaxes: &'a Syntaxes,
    /// The next number of each open list; `None` has bullets. With it, whether the list has an item already.
    lists: Vec<(Option<u64>, bool)>,
    emphasis: Vec<Style>,
    links: Vec<Link>,
    code: Option<Code>,
    table: Option<Table>,
}

/// A link whose text is being laid out.
struct Link {
    /// What is shown behind the text.
    address: String,
    /// The text so far: an address that is its own text isn't repeated.
    text: String,
}

/// A code block whose lines are being collected.
struct Code {
    fenced: Option<String>,
    text: String,
}

impl Blocks<'_> {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => self.text(&text, self.style()),
            Event::Code(text) => self.text(&text, join(self.style(), self.styles.code)),
            Event::Html(text) | Event::InlineHtml(text) => self.lines(&text),
            Event::SoftBreak | Event::HardBreak => self.line_break(),
            Event::Rule => {
                let width = self.layout.content_width().min(RULE_WIDTH_MAX);
                self.begin_block();
                self.layout.text(&"─".repeat(width), self.styles.dim);
                self.layout.owe_breaks(2);
            }
            // Not produced with our options; their text is shown as it is.
            Event::InlineMath(text) | Event::DisplayMath(text) | Event::FootnoteReference(text) => {
                self.text(&text, self.style());
            }
            Event::TaskListMarker(done) => self.text(if done { "[x] " } else { "[ ] " }, self.style()),
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Paragraph | Tag::HtmlBlock => self.begin_block(),
            Tag::Heading { .. } => {
                self.begin_block();
                self.emphasis.push(self.styles.bold);
            }
            Tag::BlockQuote(_) => {
                self.begin_block();
                // Two levels that begin on one line would hide the first bar if it were a bullet.
                self.layout.push_prefix(None, "│ ", self.styles.dim);
            }
            Tag::List(first) => {
                if self.lists.is_empty() {
                    self.begin_block();
                } else if !self.layout.is_fresh() {
                    self.layout.set_breaks(1);
                }
                self.lists.push((first, false));
            }
            Tag::Item => self.item(),
            Tag::CodeBlock(kind) => {
                let fenced = match kind {
                    CodeBlockKind::Fenced(info) => Some(info.into_string()),
                    CodeBlockKind::Indented => None,
                };
                self.code = Some(Code { fenced, text: String::new() });
            }
            Tag::Emphasis => self.emphasis.push(self.styles.italic),
            Tag::Strong => self.emphasis.push(self.styles.bold),
            Tag::Link { link_type, dest_url, title, .. } => {
                let address = if link_type == LinkType::Email { String::new() } else { dest_url.into_string() };
                self.link(address, &title);
            }
            Tag::Image { dest_url, title, .. } => self.link(dest_url.into_string(), &title),
            Tag::Table(alignments) => self.table = Some(Table::new(alignments)),
            Tag::TableCell => {
                if let Some(table) = &mut self.table {
                    table.begin_cell();
                }
            }
            Tag::TableRow | Tag::TableHead => {
                if let Some(table) = &mut self.table {
                    table.begin_row();
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph | TagEnd::HtmlBlock => self.layout.owe_breaks(2),
            TagEnd::Heading(_) => {
                self.emphasis.pop();
                self.layout.owe_breaks(2);
            }
            TagEnd::BlockQuote(_) => {
                self.layout.pop_prefix();
                self.layout.owe_breaks(2);
            }
            TagEnd::List(_) => {
                self.lists.pop();
                self.layout.owe_breaks(if self.lists.is_empty() { 2 } else { 1 });
            }
            TagEnd::Item => {
                self.layout.pop_prefix();
                self.layout.owe_breaks(1);
            }
            TagEnd::CodeBlock => self.code_block(),
            TagEnd::Emphasis | TagEnd::Strong => {
                self.emphasis.pop();
            }
            TagEnd::Link | TagEnd::Image => self.end_link(),
            TagEnd::Table => {
                if let Some(table) = self.table.take() {
                    self.begin_block();
                    let lines = table.lay_out(self.layout.content_width(), self.styles);
                    lines.iter().for_each(|line| self.layout.line(line));
                    self.layout.owe_breaks(2);
                }
            }
            _ => {}
        }
    }

    /// Leaves a blank line before a block, but none between a bullet and its text.
    fn begin_block(&mut self) {
        if !self.layout.is_fresh() {
            self.layout.owe_breaks(2);
        }
    }

    fn item(&mut self) {
        let Some((number, has_items)) = self.lists.last_mut() else { return };
        if std::mem::replace(has_items, true) {
            // Loose and tight lists look the same: which one it is only shows after items were printed.
            self.layout.set_breaks(1);
        }
        let mark = match number {
            Some(number) => {
                let mark = format!("{number}. ");
                *number = number.saturating_add(1);
                mark
            }
            None => "• ".to_owned(),
        };
        let rest = " ".repeat(mark.chars().count());
        self.layout.push_prefix(Some(mark), &rest, self.styles.dim);
    }

    fn link(&mut self, address: String, title: &str) {
        let address = if title.is_empty() { address } else { format!("{address} \"{title}\"") };
        self.links.push(Link { address, text: String::new() });
    }

    fn end_link(&mut self) {
        let Some(link) = self.links.pop() else { return };
        if !link.address.is_empty() && link.address != link.text {
            let space = if link.text.is_empty() { "" } else { " " };
            let style = join(self.style(), self.styles.link);
            self.text(&format!("{space}({})", link.address), style);
        }
    }

    fn style(&self) -> Style {
        self.emphasis.iter().copied().fold(Style::new(), join)
    }

    fn text(&mut self, text: &str, style: Style) {
        if let Some(link) = self.links.last_mut() {
            link.text.push_str(text);
        }
        match (&mut self.code, &mut self.table) {
            (Some(code), _) => code.text.push_str(text),
            (None, Some(table)) => table.text(text, style),
            (None, None) => self.layout.text(text, style),
        }
    }

    /// Adds text whose newlines are kept: a reply's own lines, and HTML, which is shown as it is written.
    fn lines(&mut self, text: &str) {
        for (idx, line) in text.split('\n').enumerate() {
            if idx > 0 {
                self.line_break();
            }
            self.text(line, self.style());
        }
    }

    fn line_break(&mut self) {
        match &mut self.table {
            Some(table) => table.text(" ", Style::new()),
            None => self.layout.owe_breaks(1),
        }
    }

    fn code_block(&mut self) {
        let Some(code) = self.code.take() else { return };
        self.begin_block();
        let mut lines = CodeLines::new(code.fenced.as_deref().unwrap_or(""), self.syntaxes);
        if let Some(info) = &code.fenced {
            self.layout.line(&paint(self.styles.dim, &format!("```{info}")));
        }
        for line in code.text.strip_suffix('\n').unwrap_or(&code.text).split('\n') {
            let painted = lines.line(line, self.syntaxes);
            let indent = if code.fenced.is_some() { "" } else { "    " };
            self.layout.line(&format!("{indent}{painted}"));
        }
        if code.fenced.is_some() {
            self.layout.line(&paint(self.styles.dim, "```"));
        }
        self.layout.owe_breaks(2);
    }
}

/// Both styles at once; the colour is the second's where it has one.
fn join(outer: Style, inner: Style) -> Style {
    let color = inner.get_fg_color().or(outer.get_fg_color());
    Style::new().fg_color(color).effects(outer.get_effects() | inner.get_effects())
}
