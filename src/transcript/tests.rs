//! Transcripts: printed and parsed again, and every way in which a file can be wrong.

use proptest::prelude::*;

use super::*;

fn message() -> impl Strategy<Value = StoredMessage> {
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant]);
    let reason =
        prop::option::of(prop::sample::select(vec![FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled]));
    let usage = prop::option::of((0..1u64 << 40, 0..1u64 << 40));
    let texts = (any::<String>(), prop::option::of(any::<String>()), prop::option::of("[a-z ü]{0,9}"));
    (any::<[u8; 16]>(), role, texts, 0..1i64 << 45, reason, usage).prop_map(
        |(id, role, (content, reasoning, model), ms, finish_reason, usage)| StoredMessage {
            id: MessageId(id),
            role,
            content,
            reasoning,
            created_at: Timestamp::from_ms(ms),
            finish_reason,
            model,
            usage: usage.map(|(input_tokens, output_tokens)| TokenCount { input_tokens, output_tokens }),
        },
    )
}

fn transcript() -> impl Strategy<Value = Transcript> {
    let names = (prop::option::of("[a-zü🦀]{1,9}"), "[a-z:.]{0,9}");
    (any::<[u8; 16]>(), names, 0..1i64 << 45, 0..1i64 << 45, prop::collection::vec(message(), 0..4)).prop_map(
        |(id, (title, model), created, updated, messages)| Transcript {
            id: SessionId(id),
            title,
            model,
            created_at: Timestamp::from_ms(created),
            updated_at: Timestamp::from_ms(updated),
            messages,
        },
    )
}

proptest! {
    #[test]
    fn json_reads_back(transcripts in prop::collection::vec(transcript(), 0..3)) {
        prop_assert_eq!(parse_json(&to_json(&transcripts)).expect("we wrote it"), transcripts);
    }
}

fn example() -> Transcript {
    let at = |ms: i64| Timestamp::from_ms(1_795_688_340_000 + ms);
    let said = |byte, role, content: &str, ms| StoredMessage {
        id: MessageId([byte; 16]),
        role,
        content: content.into(),
        reasoning: None,
        created_at: at(ms),
        finish_reason: None,
        model: None,
        usage: None,
    };
    let mut answer = said(2, Role::Assistant, "Flour, water, salt.\n\nThen", 900);
    answer.reasoning = Some("They want\n\na list.".into());
    answer.finish_reason = Some(FinishReason::Cancelled);
    answer.model = Some("small".into());
    answer.usage = Some(TokenCount { input_tokens: 12, output_tokens: 7 });
    Transcript {
        id: SessionId([0xab; 16]),
        title: Some("Bread".into()),
        model: "small".into(),
        created_at: at(0),
        updated_at: at(900),
        messages: vec![said(1, Role::User, "How do I bake bread?", 0), answer],
    }
}

#[test]
fn markdown_is_for_people() {
    let expected = "# Bread

Session abababababababababababababababab, 2026-11-26T10:19:00Z, small

## You

How do I bake bread?

## Assistant

> They want
>
> a list.

Flour, water, salt.

Then

*(interrupted)*
";
    assert_eq!(to_markdown(&example()), expected);
    assert!(example().messages[1].is_interrupted() && !example().messages[0].is_interrupted());
}

#[test]
fn a_wrong_file_is_named() {
    let good = to_json(&[example()]);
    parse_json(&good).expect("we wrote it");
    for (from, to, expected) in [
        ("\"tiles_sessions\": 1", "\"tiles_sessions\": 2", "format 2, and this version reads format 1"),
        ("\"tiles_sessions\": 1", "\"tiles_sessions\": -1", "isn't a file of Tiles sessions"),
        ("\"tiles_sessions\": 1,", "", "isn't a file of Tiles sessions"),
        ("\"title\"", "\"titel\"", "isn't a file of Tiles sessions"),
        ("\"Bread\"", "7", "isn't a file of Tiles sessions"),
        ("\"Bread\"", "\"\"", "session 1 is wrong: its `title` is empty"),
        ("\"Bread\"", "\"two\\nlines\"", "its `title` is empty, too long or has control"),
        ("\"ab", "\"AB", "session 1 is wrong: its `id` isn't 32 hex"),
        ("\"01", "\"", "a message's `id` isn't 32 hex"),
        ("\"0202020202020202", "\"0101010101010101", ""),
        ("\"02020202020202020202020202020202\"", "\"01010101010101010101010101010101\"", "`id` is in the file twice"),
        ("\"user\"", "\"tool\"", "`role` is none that is known"),
        ("\"cancelled\"", "\"tired\"", "`finish_reason` is none that is known"),
        ("\"created_at_ms\": 1795688340000", "\"created_at_ms\": -1", "outside the years"),
        ("\"updated_at_ms\": 1795688340900", "\"updated_at_ms\": 9223372036854775807", "outside the years"),
        ("\"input_tokens\": 12", "\"input_tokens\": 18446744073709551615", "more than can be counted"),
        ("\"input_tokens\": 12", "\"input_tokens\": 1.5", "isn't a file of Tiles sessions"),
        ("\"model\": \"small\"", "\"model\": \"\\u0007\"", "`model` is too long or has control"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = parse_json(&good.replacen(from, to, 1));
        match error {
            Err(error) => {
                assert!(error.to_string().contains(expected), "{from} → {to}: {error}");
                assert!(error.hint().is_some());
            }
            Ok(_) => assert!(expected.is_empty(), "{from} → {to}"),
        }
    }
    let twice = to_json(&[example(), example()]);
    assert_eq!(parse_json(&twice).expect_err("twice").to_string(), "session 2 is wrong: its `id` is in the file twice");
    let long = Transcript { title: Some("t".repeat(TITLE_BYTES_MAX + 1)), ..example() };
    assert!(parse_json(&to_json(&[long])).is_err());
    for text in ["", "[]", "null", "{", "{\"tiles_sessions\":1}", &"[".repeat(100_000), &good[..good.len() / 2]] {
        assert!(matches!(parse_json(text), Err(TranscriptError::Shape(_))));
    }
}
