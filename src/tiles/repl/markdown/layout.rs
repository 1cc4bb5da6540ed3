//! Fills lines: words wrapped to a width, behind the marks of lists and quotes.
//!
//! Breaks and spaces are written only when something follows them, and each word carries its own style from begin to end.
//! So the output up to any word is whole by itself, and text that is laid out later only ever appends.

use anstyle::Style;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// The narrowest column that text is squeezed into; deeper lists and quotes are not indented further.
const CONTENT_WIDTH_MIN: usize = 10;
/// What must not begin a line after a wide character.
const CLOSING: &str = "、。，．！？：；）」』】》〉”’,.!?:;)]}'\"";

/// What stands before each line of a list item or quote.
struct Prefix {
    /// Before the first line, once: a bullet or number.
    first: Option<String>,
    /// Before the other lines.
    rest: String,
    style: Style,
}

/// Text being laid out.
pub(crate) struct Layout {
    out: String,
    width: usize,
    /// Columns used in the current line.
    column: usize,
    prefixes: Vec<Prefix>,
    /// Line breaks owed before the next word: 2 leave a blank line.
    breaks: usize,
    /// A space is owed before the next word.
    space: bool,
    /// The word that is being collected: pieces of different styles with no space between.
    word: Vec<(Style, String)>,
    /// Where the last word began, with the breaks and marks before it.
    last_word: usize,
}

impl Layout {
    /// Starts at the left edge of `width` columns.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            out: String::new(),
            width: width.max(1),
            column: 0,
            prefixes: Vec::new(),
            breaks: 0,
            space: false,
            word: Vec::new(),
            last_word: 0,
        }
    }

    /// Gives the text, and where in it the last word begins.
    pub(crate) fn finish(mut self) -> (String, usize) {
        self.flush();
        (self.out, self.last_word)
    }

    /// The columns that are left for text behind the prefixes.
    pub(crate) fn content_width(&self) -> usize {
        self.width.saturating_sub(self.prefixes.iter().map(|prefix| prefix.rest.width()).sum()).max(1)
    }

    /// Owes at least so many line breaks; none before the first word of all.
    pub(crate) fn owe_breaks(&mut self, breaks: usize) {
        self.flush();
        self.space = false;
        self.breaks = self.breaks.max(breaks);
    }

    /// Owes exactly so many line breaks.
    pub(crate) fn set_breaks(&mut self, breaks: usize) {
        self.owe_breaks(0);
        self.breaks = breaks;
    }

    /// Says whether a bullet or number waits for the first word behind it.
    pub(crate) fn is_fresh(&self) -> bool {
        self.word.is_empty() && self.prefixes.last().is_some_and(|prefix| prefix.first.is_some())
    }

    /// Begins a list item or quote.
    pub(crate) fn push_prefix(&mut self, first: Option<String>, rest: &str, style: Style) {
        self.flush();
        let narrow = self.content_width() < rest.width() + CONTENT_WIDTH_MIN;
        let rest = if narrow { String::new() } else { rest.to_owned() };
        self.prefixes.push(Prefix { first, rest, style });
    }

    /// Ends it; an item without words still shows its mark.
    pub(crate) fn pop_prefix(&mut self) {
        self.flush();
        if self.is_fresh() {
            self.begin_line();
        }
        self.prefixes.pop();
    }

    /// Adds text, whose white space is where lines may break.
    pub(crate) fn text(&mut self, text: &str, style: Style) {
        for cluster in text.graphemes(true) {
            if cluster.chars().all(char::is_whitespace) {
                self.flush();
                self.space = true;
                continue;
            }
            let last = self.word.last().and_then(|(_, piece)| piece.graphemes(true).next_back());
            let wide = cluster.width() > 1 || last.is_some_and(|last| last.width() > 1);
            if wide && last.is_some() && !CLOSING.contains(cluster) {
                self.flush();
            }
            match self.word.last_mut() {
                Some((last, piece)) if *last == style => piece.push_str(cluster),
                _ => self.word.push((style, cluster.to_owned())),
            }
        }
    }

    /// Adds a line that is not wrapped, such as code; `painted` holds its styles already.
    pub(crate) fn line(&mut self, painted: &str) {
        self.owe_breaks(1);
        self.last_word = self.out.len();
        self.begin_line();
        self.out.push_str(painted);
        self.column = self.width;
        self.breaks = 1;
    }

    /// Writes the collected word.
    fn flush(&mut self) {
        let word = std::mem::take(&mut self.word);
        if word.is_empty() {
            return;
        }
        self.last_word = self.out.len();
        let width: usize = word.iter().map(|(_, piece)| piece.width()).sum();
        let at_start = self.out.is_empty() || self.breaks > 0 || self.is_fresh();
        if at_start {
            self.begin_line();
        } else if self.column + usize::from(self.space) + width > self.width {
            self.breaks = 1;
            self.begin_line();
        } else if self.space {
            self.out.push(' ');
            self.column += 1;
        }
        self.space = false;
        for (style, piece) in word {
            self.piece(style, &piece);
        }
    }

    /// Writes a piece of a word; one that is longer than the line is cut between characters.
    fn piece(&mut self, style: Style, piece: &str) {
        let mut fitting = String::new();
        for cluster in piece.graphemes(true) {
            if self.column + cluster.width() > self.width && self.column > 0 {
                self.paint(style, &fitting);
                fitting.clear();
                self.breaks = 1;
                self.begin_line();
            }
            fitting.push_str(cluster);
            self.column += cluster.width();
        }
        self.paint(style, &fitting);
    }

    fn paint(&mut self, style: Style, text: &str) {
        if !text.is_empty() {
            self.out.push_str(&crate::terminal::style::paint(style, text));
        }
    }

    /// Writes the owed breaks and the prefixes of the new line.
    fn begin_line(&mut self) {
        let breaks = if self.out.is_empty() { 0 } else { self.breaks };
        for blank in (0..breaks).rev() {
            self.out.push('\n');
            if blank > 0 {
                // The bar of a quote goes through its blank lines.
                let bars = self.prefixes.iter().take_while(|prefix| prefix.first.is_none());
                let bars: String = bars.map(|prefix| prefix.rest.as_str()).collect();
                self.out.push_str(bars.trim_end());
            }
        }
        self.breaks = 0;
        self.space = false;
        self.column = 0;
        for prefix in &mut self.prefixes {
            let mark = prefix.first.take().unwrap_or_else(|| prefix.rest.clone());
            self.column += mark.width();
            match mark.trim_end() {
                "" => self.out.push_str(&mark),
                _ => self.out.push_str(&crate::terminal::style::paint(prefix.style, &mark)),
            }
        }
    }
}

/// The columns of a text without its styles.
pub(crate) fn visible_width(painted: &str) -> usize {
    strip_styles(painted).width()
}

/// A text without its styles.
pub(crate) fn strip_styles(painted: &str) -> String {
    let mut plain = String::with_capacity(painted.len());
    let mut rest = painted;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}
