//! Any bytes as a slot of the key file: an error or a header, never a panic. Nothing is derived: that takes a passphrase.

#![no_main]

use tilekit::identity::KeyFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz-key");
    std::fs::create_dir_all(&folder).expect("target can be written");
    let file = KeyFile::new(&folder);
    std::fs::write(folder.join("key.a"), bytes).expect("target can be written");
    let _ = file.headers();
});
