//! Any bytes as Modelfiles: an error or a value, never a panic.

#![no_main]

use tilekit::modelfile::Modelfile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(parsed) = Modelfile::from_bytes(bytes) {
        assert!(Modelfile::parse(&parsed.modelfile.to_canonical()).is_ok());
    }
});
