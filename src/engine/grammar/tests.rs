//! Masks over a byte-level vocabulary, under logits that prefer anything.

use serde_json::{Value, json};

use super::*;
use crate::engine::sampler::Sampler;
use crate::engine::test_model::{self, IM_END, VOCAB_SIZE};
use crate::sampling::Sampling;

fn vocabulary() -> (Tokenizer, Vocabulary) {
    let (_folder, verified) = test_model::folder("", &[]);
    let tokenizer = Tokenizer::load(&verified, "", VOCAB_SIZE).expect("it is sound");
    let vocabulary = Vocabulary::new(&tokenizer, &[IM_END]).expect("it is byte-level");
    (tokenizer, vocabulary)
}

/// Answers with logits that a seed makes, until the grammar is complete or the model ends.
fn answer(grammar: &Grammar, seed: u64) -> String {
    let (tokenizer, vocabulary) = vocabulary();
    let mut constraint = Constraint::new(&vocabulary, grammar).expect("it is a grammar");
    let mut sampler = Sampler::new(&Sampling { temperature: 1.0, ..Sampling::default() }, seed);
    let mut tokens = Vec::new();
    let mut noise = seed;
    loop {
        let mut logits: Vec<f32> = (0..VOCAB_SIZE)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (noise >> 40) as f32 / (1 << 24) as f32
            })
            .collect();
        // It would rather end, or close a string, than go on for ever.
        logits[IM_END as usize] = 9.0;
        logits[usize::from(b'"')] = 4.0;
        constraint.mask(&mut logits).expect("there is always a next token");
        let token = sampler.choose(&logits, &tokens).expect("there is one");
        if token == IM_END {
            break;
        }
        tokens.push(token);
        if constraint.take(token).expect("it was allowed") {
            break;
        }
        assert!(tokens.len() < 4_000, "{:?}", tokenizer.decode(&tokens));
    }
    tokenizer.decode(&tokens).expect("it decodes")
}

fn schema(value: Value) -> Grammar {
    Grammar::JsonSchema(value)
}

#[test]
fn any_logits_make_json_of_the_schema() {
    let person = schema(json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": { "type": "string", "maxLength": 12 }, "age": { "type": "integer", "minimum": 0, "maximum": 130 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 }
        }
    }));
    for seed in 0..30 {
        let text = answer(&person, seed);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["name", "age", "tags"], "{text}");
        assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 12), "{text}");
        assert!(value["age"].as_u64().is_some_and(|age| age <= 130), "{text}");
        assert!(value["tags"].as_array().is_some_and(|tags| tags.iter().all(|t| t == "a" || t == "b")), "{text}");
    }
}

#[test]
fn expressions_and_grammars_hold_too() {
    for seed in 0..10 {
        let text = answer(&Grammar::Regex("(yes|no), [0-9]{2}".into()), seed);
        assert!(["yes, ", "no, "].iter().any(|start| text.starts_with(start)) && text.len() <= 7, "{text}");
        let text = answer(&Grammar::Lark("start: \"<\" WORD \">\"\nWORD: /[a-c]{1,4}/\n".into()), seed);
        let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).expect("its form");
        assert!((1..=4).contains(&inner.len()) && inner.bytes().all(|b| (b'a'..=b'c').contains(&b)), "{text}");
    }
}

#[test]
fn what_is_no_grammar_is_refused_with_its_reason() {
    let (_, vocabulary) = vocabulary();
    let deep = (0..1_000).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    for (grammar, kind) in [
        (schema(json!({"type": "objekt"})), "schema"),
        (schema(json!({"$ref": "https://example.com/schema.json"})), "schema"),
        (schema(json!({"type": "string", "pattern": "(("})), "schema"),
        (schema(json!({"type": "string", "minLength": 5, "maxLength": 2})), "schema"),
        (schema(deep), "schema"),
        (Grammar::Lark("start: nothing".into()), "grammar"),
        (Grammar::Lark(String::new()), "grammar"),
        (Grammar::Regex("(".into()), "expression"),
    ] {
        let made = Constraint::new(&vocabulary, &grammar);
        let error = made.expect_err(&format!("{grammar:?}"));
        assert!(matches!(&error, GrammarError::Unusable { kind: found, why } if *found == kind && !why.is_empty()));
        assert!(error.hint().is_some());
    }
    // However wide: an error or a constraint, soon, and never the end of the program.
    let wide = schema(json!({"type": "string", "pattern": "^([a-z]{1,100000}){1,100000}$"}));
    if let Ok(mut constraint) = Constraint::new(&vocabulary, &wide) {
        let _ = constraint.mask(&mut [0.0; VOCAB_SIZE]);
    }
    let error = Grammar::from_json_schema("{").expect_err("it is cut").to_string();
    assert!(error.starts_with("the schema can't be used: "), "{error}");
}

#[test]
fn control_tokens_are_no_text() {
    let (_, vocabulary) = vocabulary();
    let mut constraint = Constraint::new(&vocabulary, &Grammar::Regex(".*".into())).expect("it is a grammar");
    let mut logits = vec![0.0; VOCAB_SIZE];
    constraint.mask(&mut logits).expect("anything goes");
    assert!(logits[usize::from(b'x')].is_finite() && logits[IM_END as usize].is_finite());
    for token in [test_model::IM_START, test_model::HARMONY[0], 300] {
        assert!(logits[token as usize].is_infinite(), "{token}");
    }
}
