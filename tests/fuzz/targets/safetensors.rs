//! Any bytes as a checkpoint's header: an error or a value, never a panic.

#![no_main]

use tilekit::engine::checkpoint::Checkpoint;
use tilekit::verified::VerifiedFolder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/safetensors");
    std::fs::create_dir_all(&folder).expect("target can be written");
    let config = include_bytes!("../../vectors/goldens/tiny/llama-tied/q4-g32/config.json");
    std::fs::write(folder.join("config.json"), config).expect("target can be written");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("target can be written");
    let _ = Checkpoint::open(&VerifiedFolder::unlisted(&folder), None);
});
