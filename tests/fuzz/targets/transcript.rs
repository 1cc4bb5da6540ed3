//! Any bytes as exported sessions: an error or a value, never a panic.

#![no_main]

use tilekit::transcript;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = transcript::parse_json(text);
    }
});
