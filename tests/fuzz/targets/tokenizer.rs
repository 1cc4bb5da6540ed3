//! Any bytes as `tokenizer.json`: an error, or a tokenizer that gives tokens of the vocabulary; never a panic.

#![no_main]

use tilekit::engine::tokenizer::Tokenizer;
use tilekit::verified::VerifiedFolder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The crate behind it panics on inconsistent files, which the tokenizer catches and tells; libFuzzer's own hook would
    // end the process before that. A panic that isn't caught still ends it.
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz-tokenizer");
    std::fs::create_dir_all(&folder).expect("target can be written");
    std::fs::write(folder.join("tokenizer.json"), bytes).expect("target can be written");
    if let Ok(mut tokenizer) = Tokenizer::load(&VerifiedFolder::unlisted(&folder), "<think>", 320)
        && let Ok(tokens) = tokenizer.encode("Aé <|im_end|>\n")
    {
        assert!(tokens.iter().all(|&token| token < 320));
        let _ = tokenizer.decode(&tokens);
    }
});
