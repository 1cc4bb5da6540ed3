//! The Modelfile's parser against hostile input: the corpus is replayed, and a megabyte is read in linear time.

use std::time::{Duration, Instant};

use tilekit::modelfile::{MODELFILE_BYTES_MAX, Modelfile, Parsed};

#[test]
fn a_megabyte_is_read_in_linear_time() {
    let lines = |line: &str| line.repeat(MODELFILE_BYTES_MAX / line.len());
    let after = |begin: &str, line: &str| format!("{begin}{}", lines(line))[..MODELFILE_BYTES_MAX].to_owned();
    for (what, text) in [
        ("quotes", lines("\"")),
        ("newlines", lines("\n")),
        ("carriage returns", lines("\r")),
        ("quotes in a value", after("SYSTEM \"", "\"")),
        ("quotes before text", after("SYSTEM \"", "\"x\n")),
        ("an open value of blank lines", after("SYSTEM \"\"\"", " \n")),
        ("unknown words", lines("x\n")),
        ("spaces", after("SYSTEM ", " ")),
        ("braces", after("FROM m\nTEMPLATE ", "{{ .System }}")),
        ("open braces", after("FROM m\nTEMPLATE {{ .System }}", "{{")),
        ("open comments", after("FROM m\nTEMPLATE {{ .System }}", "{{/*")),
    ] {
        // The best of three: other work on the machine isn't measured.
        let took = (0..3).map(|_| {
            let start = Instant::now();
            let _ = Modelfile::parse(&text);
            start.elapsed()
        });
        let took = took.min().expect("three times");
        assert!(took < Duration::from_millis(100), "{what}: {took:?}");
    }
}

#[test]
fn the_corpus_is_read_without_a_panic() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/modelfile");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is there") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        let is_good = path.to_string_lossy().contains("good");
        let result = Modelfile::from_bytes(&bytes);
        assert_eq!(result.is_ok(), is_good, "{}: {result:?}", path.display());
        if let Ok(Parsed { modelfile, .. }) = result {
            let printed = Modelfile::parse(&modelfile.to_canonical()).map(|parsed| parsed.modelfile);
            assert_eq!(printed, Ok(modelfile), "{}", path.display());
        }
        files += 1;
    }
    assert!(files >= 12, "{files}");
}
