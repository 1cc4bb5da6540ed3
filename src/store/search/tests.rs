//! Search: what is found, where in the text, and that any text is a legal query.

use proptest::prelude::*;

use super::*;
use crate::message::Message;
use crate::store::{Access, NewMessage};
use crate::test_folder::TestFolder;

const NOW: Timestamp = Timestamp::from_ms(1_795_688_340_123);

fn store_with(folder: &TestFolder, contents: &[&str]) -> Store {
    let key = secrecy::SecretBox::new(Box::new([7; 32]));
    let store = Store::open(&folder.path().join("tiles.db"), &key, Access::ReadWrite).expect("it opens");
    let id = store.create(NOW, Some("Title"), "m").expect("it begins");
    let messages: Vec<NewMessage> = contents.iter().map(|content| Message::new(Role::User, *content).into()).collect();
    store.append_turn(id, &messages, NOW).expect("it is stored");
    store.append_turn(id, &[Message::new(Role::System, "be brief about bread").into()], NOW).expect("it is stored");
    store
}

#[test]
fn words_symbols_and_scripts_without_spaces_are_found() {
    let folder = TestFolder::new();
    let store = store_with(
        &folder,
        &[
            "How do I bake bread with a café crème?",
            "Ünïcode Straße, C++ and NEAR(x)",
            "日本語を話しますか。",
            "A crab 🦀 and a \"quoted\" word; 100% * sure",
            "ภาษาไทยไม่มีช่องว่าง",
            "bread again: BREAD bread",
        ],
    );
    for (query, expected) in [
        (
            "bread",
            vec![
                ("bread again: BREAD bread", "bread|BREAD|bread"),
                ("How do I bake bread with a café crème?", "bread"),
            ],
        ),
        ("BAKE bread", vec![("How do I bake bread with a café crème?", "bake|bread")]),
        ("creme cafe", vec![("How do I bake bread with a café crème?", "café|crème")]),
        ("unicode", vec![("Ünïcode Straße, C++ and NEAR(x)", "Ünïcode")]),
        (
            "brea",
            vec![
                ("bread again: BREAD bread", "bread|BREAD|bread"),
                ("How do I bake bread with a café crème?", "bread"),
            ],
        ),
        ("brea bake", vec![]),
        ("NEAR(x", vec![("Ünïcode Straße, C++ and NEAR(x)", "NEAR(x")]),
        ("本語", vec![("日本語を話しますか。", "本語")]),
        ("ไทย", vec![("ภาษาไทยไม่มีช่องว่าง", "ไทย")]),
        ("🦀", vec![("A crab 🦀 and a \"quoted\" word; 100% * sure", "🦀")]),
        ("🦀 crab", vec![("A crab 🦀 and a \"quoted\" word; 100% * sure", "crab|🦀")]),
        ("\"quoted\"", vec![("A crab 🦀 and a \"quoted\" word; 100% * sure", "quoted")]),
        ("* sure", vec![("A crab 🦀 and a \"quoted\" word; 100% * sure", "*|sure")]),
        ("brief", vec![]),
        ("nothing like it", vec![]),
        ("", vec![]),
        ("  \t\n", vec![]),
    ] {
        let hits = store.search(query, 10).unwrap_or_else(|error| panic!("{query}: {error}"));
        let found: Vec<(&str, String)> = hits
            .iter()
            .map(|hit| {
                let parts: Vec<&str> = hit.matches.iter().map(|range| &hit.snippet[range.clone()]).collect();
                (hit.snippet.as_str(), parts.join("|"))
            })
            .collect();
        let found: Vec<(&str, &str)> = found.iter().map(|(snippet, parts)| (*snippet, parts.as_str())).collect();
        assert_eq!(found, expected, "{query}");
        assert!(hits.iter().all(|hit| hit.title.as_deref() == Some("Title") && hit.created_at == NOW));
    }
    assert_eq!(store.search("bread", 1).expect("it is text").len(), 1);
    assert_eq!(store.search("bread", 0).expect("it is text").len(), 0);
    assert_eq!(store.search("a", usize::MAX).expect("it is text").len(), 4);
}

#[test]
fn a_snippet_is_the_part_around() {
    let folder = TestFolder::new();
    let filler = "filler ".repeat(400);
    let long = format!("{filler}needle {filler}🦀 {filler}");
    let store = store_with(&folder, &[&long]);
    for (query, part) in [("needle", "needle"), ("🦀", "🦀")] {
        let hit = store.search(query, 1).expect("it is text").remove(0);
        assert!(hit.snippet.starts_with('…') && hit.snippet.ends_with('…'), "{}", hit.snippet);
        assert!(hit.snippet.len() < 300, "{}", hit.snippet);
        assert_eq!(hit.matches.iter().map(|range| &hit.snippet[range.clone()]).collect::<Vec<_>>(), [part]);
    }
}

#[test]
fn any_text_is_a_legal_query() {
    let folder = TestFolder::new();
    let store = store_with(&folder, &["some words", "\u{1}marks\u{2} in\u{2} a\u{1} text"]);
    for query in [
        "\"",
        "\" OR \"",
        "NEAR(",
        "a NEAR b",
        "AND",
        "OR NOT",
        "a OR b AND",
        "content:x",
        "^a",
        "a*",
        "-a",
        "+a",
        "{a b}: c",
        "(",
        ")",
        "'",
        "';--",
        "%",
        "_",
        "\\",
        "\0",
        "a\0b",
        "\u{1}",
        "\u{feff}",
        "e\u{301}",
        "ü",
        "日本語",
        "🦀",
        "Ⓐ",
        "ª",
        "\u{300}",
        "½",
        "٣",
        "a\u{200b}b",
        "\u{10ffff}",
        "\u{e000}",
    ] {
        if let Err(error) = store.search(query, 5) {
            panic!("{query:?}: {error}");
        }
    }
    let hit = store.search("marks", 1).expect("it is text").remove(0);
    assert!(hit.matches.iter().all(|range| hit.snippet.get(range.clone()).is_some()), "{hit:?}");
    assert!(matches!(store.search(&"x".repeat(QUERY_BYTES_MAX + 1), 1), Err(StoreError::TooLarge { .. })));
    assert!(matches!(store.search(&"x ".repeat(QUERY_WORDS_MAX + 1), 1), Err(StoreError::TooLarge { .. })));
    store.search(&"x".repeat(QUERY_BYTES_MAX), 1).expect("it is as long as may be");
    let folder = TestFolder::new();
    let store = store_with(&folder, &["some words"]);
    proptest!(ProptestConfig::with_cases(300), |(query in "\\PC{0,24}|[\"*()^:+{}\\-a NEARORT]{0,16}")| {
        let hits = store.search(&query, 5);
        prop_assert!(hits.is_ok(), "{:?}: {:?}", query, hits);
    });
}

#[test]
fn ranges_and_snippets_are_whole_characters() {
    proptest!(|(content in "\\PC{0,80}", at in 0usize..80, count in 1usize..4)| {
        let word: String = content.chars().skip(at).take(count).collect();
        let words = [word.clone()];
        let shown = around(&content, &words);
        prop_assert!(shown.contains(&word));
    });
    for (ranges, expected) in [
        (vec![], vec![]),
        (vec![3..4, 0..2], vec![0..2, 3..4]),
        (vec![0..2, 1..5, 5..6, 8..9], vec![0..6, 8..9]),
        (vec![2..2, 7..7], vec![]),
    ] {
        assert_eq!(merged(ranges), expected);
    }
    let (snippet, matches) = without_marks("a\u{1}b\u{2}c\u{2}\u{1}de\u{2}");
    assert_eq!((snippet.as_str(), matches), ("abcde", vec![1..2, 3..5]));
}
