//! Any bytes as GGUF files: an error or a value, never a panic.

#![no_main]

use tilekit::engine::gguf::Gguf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz.gguf");
    std::fs::write(&file, bytes).expect("target can be written");
    let _ = Gguf::open(&file);
});
