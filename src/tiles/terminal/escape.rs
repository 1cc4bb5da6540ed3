//! Neutralises what could steer a terminal in text that we didn't write.
//!
//! What the model says, nicknames and file names can hold escape sequences: to write the clipboard (OSC 52), to set the
//! title, to move the cursor over what was printed before, or to swap the order of letters (bidirectional overrides).
//! Every control character is shown as a visible mark instead. Nothing is dropped, so that the person sees what was tried.

use std::borrow::Cow;

/// The mark of a character that has no picture of its own.
const REPLACEMENT: char = '\u{FFFD}';

/// Shows the control characters of a text of several lines as marks; newlines and tabs stay.
///
/// A carriage return before a newline is dropped; alone it would let the text paint over its own line, so it is marked.
pub(crate) fn neutralise(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut stream = Neutraliser::default();
    let mut shown = stream.feed(text);
    shown.push_str(stream.finish());
    Cow::Owned(shown)
}

/// Shows all control characters as marks, newlines and tabs too: for names, which stand in the middle of a line.
pub(crate) fn neutralise_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| is_dangerous(c) || matches!(c, '\n' | '\t')) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| push_mark(&mut shown, c));
    Cow::Owned(shown)
}

/// Neutralises a text that comes in pieces.
///
/// Each control character is replaced by itself, so a sequence that is split over two pieces is as harmless as a whole
/// one. What is carried over is a carriage return at the end of a piece: the next piece says whether it ends a line.
#[derive(Debug, Default)]
pub(crate) struct Neutraliser {
    carriage_return: bool,
}

impl Neutraliser {
    /// Takes the next piece and gives what can be shown of it.
    pub(crate) fn feed(&mut self, piece: &str) -> String {
        let mut shown = String::with_capacity(piece.len());
        for c in piece.chars() {
            if self.carriage_return && c != '\n' {
                push_mark(&mut shown, '\r');
            }
            self.carriage_return = c == '\r';
            match c {
                '\r' => {}
                '\n' | '\t' => shown.push(c),
                c => push_mark(&mut shown, c),
            }
        }
        shown
    }

    /// Gives what was held back when there are no more pieces.
    pub(crate) fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.carriage_return) { "\u{240D}" } else { "" }
    }
}

/// Says whether a character is one of those that `push_mark` replaces, in a text of several lines.
fn is_dangerous(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t')) || is_override(c)
}

/// The characters that change the order in which others are shown: embeddings, overrides and isolates.
fn is_override(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Appends a character, or its mark if it is a control character.
fn push_mark(shown: &mut String, c: char) {
    match c {
        // Unicode has a picture for each of these, such as U+241B for escape.
        '\0'..='\u{1F}' => shown.push(char::from_u32(0x2400 + u32::from(c)).unwrap_or(REPLACEMENT)),
        '\u{7F}' => shown.push('\u{2421}'),
        c if c.is_control() || is_override(c) => shown.push_str(&format!("<U+{:04X}>", u32::from(c))),
        c => shown.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(neutralise(text), expected);
    }

    #[test]
    fn marks_what_steers_a_terminal() {
        check("plain\n\ttext é 漢字 👩‍👩‍👧 שלום", "plain\n\ttext é 漢字 👩‍👩‍👧 שלום");
        check("\x1b[2J\x1b[31mred", "␛[2J␛[31mred");
        check("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇");
        check("\x1b]0;title\x1b\\", "␛]0;title␛\\");
        check("\x1bP+q\x1b\\", "␛P+q␛\\");
        check("a\u{9b}31m\u{9d}0;t\u{9c}", "a<U+009B>31m<U+009D>0;t<U+009C>");
        check("a\x08b\x7f\0", "a␈b␡␀");
        check("safe\rgone", "safe␍gone");
        check("line\r\nline\r", "line\nline␍");
        check("a\r\r\nb", "a␍\nb");
        check("exe.\u{202E}txt\u{2066}", "exe.<U+202E>txt<U+2066>");
        assert_eq!(neutralise_line("a\nb\tc\r\x1b"), "a␊b␉c␍␛");
        assert!(matches!(neutralise("untouched\n"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn pieces_and_whole_are_the_same_and_harmless(pieces in prop::collection::vec("(\\PC|[\x00-\x20\u{7f}-\u{9f}\r\n\u{202e}]){0,8}", 0..8)) {
            let mut stream = Neutraliser::default();
            let mut shown: String = pieces.iter().map(|piece| stream.feed(piece)).collect();
            shown.push_str(stream.finish());
            prop_assert!(!shown.chars().any(is_dangerous));
            let whole = pieces.concat();
            prop_assert_eq!(neutralise(&whole), shown);
            prop_assert!(!neutralise_line(&whole).chars().any(char::is_control));
        }
    }
}
