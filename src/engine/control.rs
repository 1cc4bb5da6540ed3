//! Control tokens, and a prompt that knows which of them its template wrote.

use std::collections::BTreeSet;
use std::ops::Range;

/// A control token.
#[derive(Clone, Debug)]
pub(crate) struct ControlToken {
    /// Its number.
    pub(crate) id: u32,
    /// How it is written.
    pub(crate) text: String,
    /// Whether it swallows the whitespace before it.
    pub(crate) lstrip: bool,
    /// Whether it swallows the whitespace after it.
    pub(crate) rstrip: bool,
}

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptText {
    /// The text as the template writes it.
    pub(crate) text: String,
    /// Where the template wrote control tokens, and which: places in the tokenizer's list of them.
    pub(crate) control: Vec<(Range<usize>, usize)>,
}

impl PromptText {
    /// The text as the template writes it.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Finds the control tokens in a text: from left to right, the longest of those that begin at the same place.
/// `control` has the longest first.
pub(crate) fn find_control(text: &str, control: &[ControlToken]) -> Vec<(Range<usize>, usize)> {
    let firsts: BTreeSet<char> = control.iter().filter_map(|token| token.text.chars().next()).collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(start) = text[at..].find(|c| firsts.contains(&c)).map(|offset| at + offset) {
        let rest = &text[start..];
        match control.iter().position(|token| rest.starts_with(&token.text)) {
            Some(i) => {
                at = start + control[i].text.len();
                found.push((start..at, i));
            }
            None => at = start + rest.chars().next().map_or(1, char::len_utf8),
        }
    }
    found
}
