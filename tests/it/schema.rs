//! `tiles run --schema`: the default model answers with JSON of a schema, whatever it would rather say.

use crate::commands::{beside, refused};
use crate::drive::TestBundle;

#[test]
fn the_default_model_is_held_to_a_schema() {
    let bundle = TestBundle::with_smollm2("Tiles");
    let file = beside(&bundle, "schema.json").display().to_string();
    let write = |text: &str| std::fs::write(&file, text).expect("target can be written");
    write(
        r#"{"type": "object", "additionalProperties": false, "required": ["city", "country", "is_capital"],
            "properties": {"city": {"type": "string", "maxLength": 30}, "country": {"type": "string", "maxLength": 30},
                           "is_capital": {"type": "boolean"}}}"#,
    );
    let ask =
        ["run", "smollm2", "-p", "Name the capital of France as JSON.", "--set", "temperature=0", "--schema", &file];
    let answer = bundle.json(&ask);
    let text = answer["text"].as_str().expect("a text");
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(value["city"].is_string() && value["country"].is_string() && value["is_capital"].is_boolean(), "{text}");
    assert_eq!(answer["finish_reason"], "stop");

    let cut = bundle.unlocked(&[&ask[..], &["--set", "num_predict=3"]].concat());
    assert_eq!(cut.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&cut.stderr).contains("was cut before it was complete"));

    write("{\"type\": ");
    refused(&bundle.unlocked(&ask), 2, "the schema can't be used");
    write(r#"{"type": "objekt"}"#);
    refused(&bundle.unlocked(&ask), 2, "the schema can't be used");
    std::fs::remove_file(&file).expect("it is there");
    refused(&bundle.unlocked(&ask), 1, "schema.json");
}
