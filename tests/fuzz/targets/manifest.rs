//! Any bytes as a bundle's list of files and its signature: an error or a value, never a panic.

#![no_main]

use tilekit::manifest::{Manifest, Signature};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Signature::parse(text);
        if let Ok(manifest) = Manifest::parse(text) {
            assert_eq!(Manifest::parse(&manifest.to_toml()).ok().as_ref(), Some(&manifest));
        }
    }
});
