//! Any text as a chat template: an error, or a prompt made within its fuel; never a panic.

#![no_main]

use minijinja::Value;
use tilekit::engine::template::{ChatTemplate, Rendering};
use tilekit::time::Timestamp;

libfuzzer_sys::fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::from_source(source) else { return };
    let message = Value::from_pairs([("role", Value::from("user")), ("content", Value::from("a <b>"))]);
    let _ = template.render(&Rendering {
        messages: vec![message],
        add_generation_prompt: true,
        think: None,
        variables: Vec::new(),
        now: Timestamp::from_ms(1_769_860_800_000),
    });
});
