//! Foreign text as part of a message: short, on one line, without control characters.

/// How many characters of foreign text a message shows at most.
pub(crate) const EXCERPT_CHARS_MAX: usize = 48;

/// The beginning of `text` as messages show it, so that a value of a megabyte or one with terminal sequences does no harm.
pub(crate) fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT_CHARS_MAX).map(visible).collect();
    if text.chars().nth(EXCERPT_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The character itself, or what stands for it where it would move the cursor or hide what follows.
pub(crate) fn visible(char: char) -> char {
    match char {
        '\n' | '\r' => '⏎',
        '\t' => ' ',
        // Directional overrides and their like make text read other than it is (Unicode TR 36, 3.3).
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => '\u{fffd}',
        char if char.is_control() => '\u{fffd}',
        char => char,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_and_harmless() {
        let long = "é".repeat(EXCERPT_CHARS_MAX + 1);
        for (text, shown) in [
            ("", "".to_owned()),
            ("plain 日本", "plain 日本".to_owned()),
            ("\u{1b}[2J\ta\r\nb\u{202e}c", "\u{fffd}[2J a⏎⏎b\u{fffd}c".to_owned()),
            (&long[2..], "é".repeat(EXCERPT_CHARS_MAX)),
            (&long, "é".repeat(EXCERPT_CHARS_MAX) + "…"),
        ] {
            assert_eq!(excerpt(text), shown);
        }
    }
}
