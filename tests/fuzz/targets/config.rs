//! Any bytes as `config.json`: an error or a value, never a panic.

#![no_main]

use tilekit::engine::models::ModelConfig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ModelConfig::parse(bytes);
});
