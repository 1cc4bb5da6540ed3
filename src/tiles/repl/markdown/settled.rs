//! How much of a block that is still being written can be shown: the part that later text can't reinterpret.

/// Gives the length of the part of an open block that is settled.
///
/// Not settled are: a line that holds only marks so far (`-`, `12.`, `##`), a heading, a table, code inside a list, and
/// everything from emphasis, code or a link that was opened and not closed.
pub(crate) fn settled(source: &str) -> usize {
    let mut leaf = 0;
    let mut end = source.len();
    let mut fence = None;
    let mut table = None;
    let mut start = 0;
    for line in source.split_inclusive('\n') {
        let content = strip_marks(line);
        let is_fence = content.starts_with("```") || content.starts_with("~~~");
        match (fence, is_fence) {
            (None, true) => fence = Some(start),
            (Some(_), true) => {
                fence = None;
                leaf = start + line.len();
            }
            (Some(_), false) => {}
            (None, false) if line.ends_with('\n') && line.trim().is_empty() => {
                leaf = start + line.len();
                table = None;
            }
            (None, false) => {
                if begins_item(line) {
                    leaf = start;
                    table = None;
                }
                if line.contains('|') {
                    table.get_or_insert(start);
                }
                if !line.ends_with('\n') && (content.trim().is_empty() || content.starts_with('#')) {
                    end = end.min(start);
                }
            }
        }
        start += line.len();
    }
    end = end.min(fence.unwrap_or(end)).min(table.unwrap_or(end));
    let inline = source.get(leaf..end).unwrap_or("");
    if inline.is_empty() { end } else { leaf + settled_inline(inline) }
}

/// A line without the marks that may begin it.
fn strip_marks(line: &str) -> &str {
    line.trim_start_matches(|c: char| c.is_ascii_digit() || " \t>*+-_=.)\n".contains(c))
}

fn begins_item(line: &str) -> bool {
    let line = line.trim_start_matches([' ', '\t', '>']);
    let numbered = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let marks: &[char] = if numbered.len() < line.len() { &['.', ')'] } else { &['-', '*', '+'] };
    numbered.strip_prefix(marks).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// The same inside a paragraph.
fn settled_inline(text: &str) -> usize {
    let mut open: Vec<(char, usize, usize)> = Vec::new();
    let mut at = 0;
    while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
        let run = text.get(at..).map_or("", |rest| &rest[..rest.len() - rest.trim_start_matches(c).len()]).len();
        let first_open = || open.first().map_or(at, |(_, _, position)| *position);
        match c {
            '\\' => at += 1 + text.get(at + 1..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8),
            '`' => match closing_backticks(text, at + run, run) {
                Some(end) => at = end,
                None => return first_open(),
            },
            '[' => match closing_bracket(text, at) {
                true => at += 1,
                false => return first_open().min(if text[..at].ends_with('!') { at - 1 } else { at }),
            },
            '*' | '_' => {
                emphasis(&mut open, text, (c, run, at));
                at += run;
            }
            c => at += c.len_utf8(),
        }
    }
    open.first().map_or(text.len(), |(_, _, position)| *position)
}

/// Finds the end of a code span; a run that touches the end of the text may still grow.
fn closing_backticks(text: &str, from: usize, length: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = text.get(at..)?.find('`') {
        let start = at + found;
        let rest = text.get(start..)?;
        let run = rest.len() - rest.trim_start_matches('`').len();
        at = start + run;
        if run == length && at < text.len() {
            return Some(at);
        }
    }
    None
}

/// Says whether a link that may begin at a bracket is complete, or none.
fn closing_bracket(text: &str, at: usize) -> bool {
    let Some(rest) = text.get(at..).and_then(|rest| rest.split_once(']')).map(|(_, rest)| rest) else { return false };
    match rest.chars().next() {
        None => false,
        Some('(') => rest.contains(')'),
        Some(_) => true,
    }
}

/// Opens or closes emphasis at a run of marks.
fn emphasis(open: &mut Vec<(char, usize, usize)>, text: &str, (mark, run, at): (char, usize, usize)) {
    let before = text[..at].chars().next_back();
    let after = text[at + run..].chars().next();
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    if mark == '_' && is_word(before) && is_word(after) {
        return;
    }
    let mut left = run;
    if before.is_some_and(|c| !c.is_whitespace()) {
        while let Some((same, length, _)) = open.last_mut().filter(|(same, ..)| *same == mark && left > 0) {
            debug_assert_eq!(*same, mark);
            let closed = left.min(*length);
            left -= closed;
            *length -= closed;
            if *length == 0 {
                open.pop();
            }
        }
    }
    if left > 0 && after.is_none_or(|c| !c.is_whitespace()) {
        open.push((mark, left, at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, expected: &str) {
        assert_eq!(&source[..settled(source)], expected, "{source:?}");
    }

    #[test]
    fn only_what_cannot_change_is_settled() {
        check("plain text", "plain text");
        check("a **bold", "a ");
        check("a **bold**", "a **bold**");
        check("a **bold*", "a ");
        check("2 * 3 * 4", "");
        check("a 2 * 3 * 4", "a 2 * 3 * 4");
        check("snake_case_name", "snake_case_name");
        check("a `code", "a ");
        check("a `code`", "a ");
        check("a `code` b", "a `code` b");
        check("see [text", "see ");
        check("see [text]", "see ");
        check("see [text](http://x", "see ");
        check("see [text](http://x) b", "see [text](http://x) b");
        check("see ![alt](x", "see ");
        check("array[1] x", "array[1] x");
        check("text\n-", "text\n");
        check("`open x\n ", "");
        check("- item\n- **open", "- item\n- ");
        check("- **open\n- item", "- **open\n- item");
        check("12", "");
        check("12 apples", "12 apples");
        check("# Head", "");
        check("- a\n\n  ```rust\n  let x", "- a\n\n");
        check("a | b", "");
        check("escaped \\* star", "escaped \\* star");
        check("漢字 *強調", "漢字 ");
    }
}
