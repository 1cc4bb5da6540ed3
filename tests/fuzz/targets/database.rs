//! Any bytes as the encrypted database: an error, never a panic, and never a database. Only whoever has the key can make
//! one that opens; what such a database may do is in `src/store/tests/hostile.rs`.

#![no_main]

use secrecy::SecretBox;
use tilekit::store::{Access, Store};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz-database");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("target can be written");
    let file = folder.join("tiles.db");
    std::fs::write(&file, bytes).expect("target can be written");
    let opened = Store::open(&file, &SecretBox::new(Box::new([7; 32])), Access::ReadWrite);
    // An empty file is a new database; so is one byte, which SQLite itself leaves on FAT when a Mac makes a new one.
    assert!(opened.is_err() || bytes.len() <= 1);
});
