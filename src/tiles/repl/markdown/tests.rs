//! Tests of how a reply is shown.

use proptest::prelude::*;
use unicode_width::UnicodeWidthStr;

use super::layout::strip_styles;
use super::*;

fn show(pieces: &[&str], mode: Mode) -> String {
    let mut markdown = Markdown::new(mode, Styles::new(true), Rc::new(Syntaxes::default()));
    let mut out: String = pieces.iter().map(|piece| markdown.feed(piece)).collect();
    out.push_str(&markdown.finish());
    out
}

fn plain(source: &str, width: usize) -> String {
    strip_styles(&show(&[source], Mode::Rendered { width }))
}

#[track_caller]
fn check(source: &str, width: usize, expected: &str) {
    assert_eq!(plain(source, width), expected);
}

#[test]
fn paragraphs_are_wrapped() {
    check("one two three four", 10, "one two\nthree four\n");
    check("line one\nline two\n\n\nnext", 40, "line one\nline two\n\nnext\n");
    check("averyveryverylongword x", 10, "averyveryv\nerylongwor\nd x\n");
    check("漢字漢字漢字、漢字", 10, "漢字漢字漢\n字、漢字\n");
    check("go 🚀 to the moon 👩‍👩‍👧 now", 10, "go 🚀 to\nthe moon\n👩‍👩‍👧 now\n");
    check("", 40, "");
    check("\n\n", 40, "");
}

#[test]
fn marks_become_styles() {
    let mode = Mode::Rendered { width: 40 };
    assert_eq!(show(&["a **b c** *d*"], mode), "a \x1b[1mb\x1b[0m \x1b[1mc\x1b[0m \x1b[3md\x1b[0m\n");
    assert_eq!(show(&["# Title\ntext"], mode), "\x1b[1mTitle\x1b[0m\n\ntext\n");
    assert_eq!(show(&["`x y`."], mode), "\x1b[36mx\x1b[0m \x1b[36my\x1b[0m.\n");
    check("see [the page](http://x.y/z) now", 40, "see the page (http://x.y/z) now\n");
    check("see <http://x.y> and ![alt](i.png \"T\")", 60, "see http://x.y and alt (i.png \"T\")\n");
    check("a <b>bold</b> &amp; 2 \\* 3", 40, "a <b>bold</b> & 2 * 3\n");
    check("[x]: http://lost\n\n> [^1]: note", 40, "[x]: http://lost\n\n│ [^1]: note\n");
    check("a\n\n---\n\nb", 12, "a\n\n────────────\n\nb\n");
}

#[test]
fn lists_and_quotes_are_indented() {
    check(
        "- one two three\n- b\n  1. x\n  2. y\n\n- c\n\nend",
        12,
        "• one two\n  three\n• b\n  1. x\n  2. y\n• c\n\nend\n",
    );
    check("9. a\n10. b c d e f g h", 15, "9. a\n10. b c d e f g\n    h\n");
    check("- a\n\n  second\n- b", 20, "• a\n\n  second\n• b\n");
    check("> quote one two\n>\n> > deep", 14, "│ quote one\n│ two\n│ │\n│ │ deep\n");
    check("- item \n  - - nested item", 20, "• item\n  • • nested item\n");
    check("-\n- x", 20, "• \n• x\n");
    let deep: String = (0..12).map(|level| format!("{}- w{level}\n", "  ".repeat(level))).collect();
    assert!(plain(&deep, 20).lines().all(|line| line.width() <= 20));
}

#[test]
fn code_keeps_its_lines_and_gets_colours() {
    let source = "Run:\n```rust\nfn main() {\n\tlet s = \"a\"; // x\n}\n```\nDone.";
    check(source, 10, "Run:\n\n```rust\nfn main() {\n    let s = \"a\"; // x\n}\n```\n\nDone.\n");
    let shown = show(&[source], Mode::Rendered { width: 40 });
    assert!(shown.contains("\x1b[35mfn\x1b[0m"), "{shown:?}");
    check("```nolang\nx\n```", 40, "```nolang\nx\n```\n");
    check("```\nopen\n  y", 40, "```\nopen\n  y\n");
    check("- a\n\n  ```sh\n  ls\n  ```\n- b", 40, "• a\n\n  ```sh\n  ls\n  ```\n• b\n");
    check("    indented\n    code", 40, "    indented\n    code\n");
    check("~~~~\n```\n~~~~\nx", 40, "~~~~\n```\n~~~~\n\nx\n");
}

#[test]
fn tables_are_aligned() {
    let source = "| a | 漢字 | n |\n|---|:-:|--:|\n| one | x | 12 |\n| **b** | 🚀 | 3 |\n";
    check(source, 40, "a   │ 漢字 │  n\n────┼──────┼───\none │  x   │ 12\nb   │  🚀  │  3\n");
    let long = "| key | text |\n|---|---|\n| k | several words that wrap |\n";
    check(long, 20, "key │ text\n────┼───────────────\nk   │ several words\n    │ that wrap\n");
    let wide = "| aaaaaaaa | bbbbbbbb | cccccccc |\n|-|-|-|\n| x | y | z |\n";
    check(wide, 20, "aaaaaaaa: x\nbbbbbbbb: y\ncccccccc: z\n────────\n");
}

#[test]
fn a_reply_streams() {
    let mut markdown = Markdown::new(Mode::Rendered { width: 40 }, Styles::new(true), Rc::new(Syntaxes::default()));
    let mut feed = |piece: &str| strip_styles(&markdown.feed(piece));
    assert_eq!(feed("Hello wor"), "Hello");
    assert_eq!(feed("ld **bo"), " world");
    assert_eq!(feed("ld** x "), " bold x");
    assert_eq!(feed("\n\n```py\npri"), "\n\n```py");
    assert_eq!(feed("nt(1)\n"), "\nprint(1)");
    assert_eq!(feed("```\n- item o"), "\n```\n\n• item");
    assert_eq!(feed("ne\n- second one"), " one\n• second");
    assert_eq!(strip_styles(&markdown.finish()), " one\n");
}

#[test]
fn a_line_that_becomes_a_heading_is_not_repeated() {
    let pieces = ["Title here\n", "---\n", "\ntext"];
    assert_eq!(strip_styles(&show(&pieces, Mode::Rendered { width: 40 })), "Title here\n\ntext\n");
}

#[test]
fn raw_is_unchanged_and_escapes_never_reach_a_terminal() {
    let pieces = ["a **b** \x1b", "]52;c;x\x07\r", "\n| t"];
    assert_eq!(show(&pieces, Mode::Raw), pieces.concat());
    assert_eq!(show(&pieces, Mode::Marked), "a **b** ␛]52;c;x␇\n| t");
    assert_eq!(strip_styles(&show(&pieces, Mode::Rendered { width: 40 })), "a b ␛]52;c;x␇\n| t\n");
}

/// Well-formed pieces of Markdown from which documents are put together.
const SNIPPETS: &[&str] = &[
    "plain words in a row",
    "**bold words**",
    "*slanted*",
    "`code here`",
    "[text](http://a.b)",
    "漢字の文章、です。",
    "emoji 🚀👍",
    "supercalifragilisticexpialidocious",
    "\n",
    "\n\n",
    "\n- item",
    "\n1. first",
    "\n\n> quoted",
    "\n  - nested item",
    "\n\n# Heading\n\n",
    "\n\n```rust\nlet x = 1;\n```\n\n",
    "\n\n| h1 | h2 |\n|---|---|\n| c1 | c2 |\n\n",
    "2 * 3",
    "snake_case",
    " <b>html</b> ",
    "a|b",
    "**open",
    "\n---\n",
    "\\* x",
    "[open",
    "\n\n    indented\n\n",
    "\n[ref]: http://r\n",
    "`open",
    "\n```\nunclosed\n",
];

/// The letters of a text in their order, which is what must not be lost. Numbers of list items are counted anew.
fn letters(text: &str) -> String {
    text.chars().filter(|c| c.is_alphabetic()).collect()
}

/// Whether all letters of `part` stand in `whole` in their order; others may stand between.
fn is_contained(part: &str, whole: &str) -> bool {
    let mut rest = whole.chars();
    part.chars().all(|c| rest.any(|other| other == c))
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_is_too_wide(
        picks in prop::collection::vec(0..SNIPPETS.len(), 1..24),
        cuts in prop::collection::vec(1..9_usize, 1..8),
        width in prop::sample::select(vec![20_usize, 40, 80]),
    ) {
        let source = picks.iter().map(|pick| SNIPPETS[*pick]).collect::<Vec<_>>().join(" ");
        let characters: Vec<char> = source.chars().collect();
        let mut pieces = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().cycle() {
            if at >= characters.len() { break; }
            let end = (at + cut).min(characters.len());
            pieces.push(characters[at..end].iter().collect::<String>());
            at = end;
        }
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let streamed = strip_styles(&show(&pieces, Mode::Rendered { width }));
        prop_assert!(is_contained(&letters(&source), &letters(&streamed)), "{source:?}\n{streamed}");
        let mut in_code = false;
        for line in streamed.lines() {
            in_code ^= line.contains("```");
            // Code isn't wrapped, and after an unclosed fence everything is code.
            let is_code = in_code || line.starts_with("    ") || source.contains("unclosed");
            prop_assert!(is_code || line.width() <= width, "{width} {line:?}");
        }
        let whole = plain(&source, width);
        prop_assert_eq!(letters(&whole), letters(&streamed), "{:?}", source);
    }

    #[test]
    fn any_text_is_taken(pieces in prop::collection::vec("[a-c \n*_`#>|\\-\\[\\]()<&!~=:1.\\\\漢\t]{0,12}", 0..12)) {
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let shown = strip_styles(&show(&pieces, Mode::Rendered { width: 20 }));
        prop_assert!(is_contained(&letters(&pieces.concat()), &letters(&shown)), "{:?}\n{}", pieces, shown);
    }
}
