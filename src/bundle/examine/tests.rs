//! Tests of the full verification: everything damaged is listed, and an interrupted one goes on.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::bundle::tests::{bundle, release};
use crate::bundle::{Bundle, Found, Sealed};
use crate::test_folder::TestFolder;
use crate::time::Timestamp;

const WEIGHTS: &str = "models/m/model.safetensors";

fn sealed(root: &Path) -> Bundle<Sealed> {
    Bundle::<Found>::find(Some(root), root).expect("it is a bundle").sealed(release()).expect("it is sealed")
}

fn all(root: &Path) -> Examination {
    let entries = sealed(root).manifest().files.clone();
    examine(root, &entries, true, None, &mut |_| ControlFlow::Continue(())).expect("the drive answers")
}

fn damages(found: &Examination) -> Vec<(&str, Flaw)> {
    found.damaged.iter().map(|damage| (damage.path.as_str(), damage.flaw.clone())).collect()
}

fn change(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(&path).expect("it is there");
    change(&mut content);
    fs::write(path, content).expect("it can be written");
}

#[test]
fn everything_that_is_damaged_is_listed() {
    let folder = TestFolder::new();
    let root = folder.path();
    bundle(root);
    assert!(all(root).is_whole());

    change(root.join(WEIGHTS), |bytes| {
        bytes[5] ^= 1;
        bytes[8 << 20] ^= 1;
    });
    change(root.join("README.txt"), |bytes| bytes[0] ^= 1);
    fs::remove_file(root.join("tiles")).expect("it is there");
    change(root.join("models/m/tokenizer.json"), |bytes| bytes.truncate(9));
    fs::write(root.join("models/m/planted.json"), "{}").expect("it can be written");
    fs::write(root.join("notes.txt"), "mine").expect("it can be written");
    let found = all(root);
    assert_eq!(
        damages(&found),
        [
            ("README.txt", Flaw::Content),
            ("models/m/tokenizer.json", Flaw::Size { found: 9 }),
            ("tiles", Flaw::Missing),
            (WEIGHTS, Flaw::Chunk { offset: 0 }),
            (WEIGHTS, Flaw::Chunk { offset: 8 << 20 }),
        ]
    );
    assert_eq!((found.unlisted, found.strangers), (vec!["models/m/planted.json".into()], vec!["notes.txt".into()]));
}

#[test]
fn a_lost_sidecar_does_not_hide_whether_the_file_is_whole() {
    let folder = TestFolder::new();
    let root = folder.path();
    bundle(root);
    change(root.join(format!("{WEIGHTS}.chunks")), |bytes| bytes[40] ^= 1);
    assert_eq!(damages(&all(root)), [(WEIGHTS, Flaw::Sidecar)]);
    change(root.join(WEIGHTS), |bytes| bytes[9] ^= 1);
    assert_eq!(damages(&all(root)), [(WEIGHTS, Flaw::Sidecar), (WEIGHTS, Flaw::Content)]);
    change(root.join(WEIGHTS), |bytes| bytes.truncate(5 << 20));
    assert_eq!(damages(&all(root))[1], (WEIGHTS, Flaw::Size { found: 5 << 20 }));
    fs::remove_file(root.join(format!("{WEIGHTS}.chunks"))).expect("it is there");
    assert_eq!(damages(&all(root))[0], (WEIGHTS, Flaw::Sidecar));
}

#[test]
fn a_file_that_was_cut_short_is_listed_with_the_chunks_that_are_gone() {
    let folder = TestFolder::new();
    let root = folder.path();
    bundle(root);
    change(root.join(WEIGHTS), |bytes| bytes.truncate(5 << 20));
    let expected = [
        (WEIGHTS, Flaw::Size { found: 5 << 20 }),
        (WEIGHTS, Flaw::Chunk { offset: 4 << 20 }),
        (WEIGHTS, Flaw::Chunk { offset: 8 << 20 }),
    ];
    assert_eq!(damages(&all(root)), expected);
}

#[test]
fn an_interrupted_verification_goes_on_and_forgets_nothing() {
    let folder = TestFolder::new();
    let root = folder.path();
    bundle(root);
    fs::create_dir_all(root.join("data")).expect("it can be made");
    let entries = sealed(root).manifest().files.clone();
    let state = root.join("data/verify.state");
    let day_ms = 24 * 60 * 60 * 1000;
    change(root.join(WEIGHTS), |bytes| bytes[5] ^= 1);
    // The program has three chunks too; the first chunk of the weights is the fourth.
    let run = |entries: &[Entry], now_ms: i64, chunks_max: usize| {
        let mut resume = Resume::new(&state, entries, Timestamp::from_ms(now_ms));
        let mut read = 0;
        let result = examine(root, entries, true, Some(&mut resume), &mut |bytes| {
            read += usize::from(bytes >= 1 << 20);
            if read > chunks_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (result, read)
    };
    let (stopped, _) = run(&entries, day_ms, 4);
    assert!(matches!(stopped, Err(ExamineError::Stopped)));
    assert!(fs::metadata(&state).expect("it is kept").len() < 1024);

    let kept = fs::read(&state).expect("it is kept");
    let (found, _) = run(&entries, day_ms + 60_000, 100);
    let found = found.expect("it comes to its end");
    assert!(found.continued_bytes > 8 << 20, "{found:?}");
    assert_eq!(damages(&found), [(WEIGHTS, Flaw::Chunk { offset: 0 })]);
    assert!(!state.exists(), "what is done is forgotten");

    // Another list, a state of yesterday or of tomorrow, or a damaged one: from the beginning.
    let fewer = &entries[1..];
    let damaged = String::from_utf8_lossy(&kept).replace("chunk = 2", "chunk = 3");
    assert_ne!(damaged.as_bytes(), kept);
    for (content, entries, now_ms) in [
        (kept.as_slice(), fewer, day_ms),
        (&kept, &entries, day_ms * 3),
        (&kept, &entries, 0),
        (damaged.as_bytes(), &entries, day_ms),
        (b"", &entries, day_ms),
    ] {
        fs::write(&state, content).expect("it can be written");
        assert_eq!(run(entries, now_ms, 100).0.expect("it ends").continued_bytes, 0);
    }
}
