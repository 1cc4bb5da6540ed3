//! Tests of finding and verifying: every kind of damage is told, by the name of the damaged file.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Instant;

use ed25519_dalek::SigningKey;

use super::*;
use crate::digest::{CHUNKED_ABOVE_BYTES, Sha256Digest, StreamHasher};
use crate::manifest::{FileRole, Signature};
use crate::test_folder::TestFolder;
use crate::verified::sidecar_path;

const PROGRAM: &str = "bin/linux-x86_64/tiles";

pub(super) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(super) fn release() -> Trust {
    Trust::Release(SealPublicKey(key().verifying_key().to_bytes()))
}

/// Writes a file as a bundle has it, and describes it.
pub(super) fn write(root: &Path, path: &str, content: &[u8]) -> Entry {
    let mut hasher = StreamHasher::new();
    hasher.update(content);
    let (size, sha256, chunks) = hasher.finish();
    let file = root.join(path);
    fs::create_dir_all(file.parent().expect("a path below the root")).expect("it can be made");
    fs::write(&file, content).expect("it can be written");
    let role = if path.starts_with("bin/") { FileRole::Program } else { FileRole::Model };
    let mut entry = Entry { path: path.into(), size, sha256, role, chunks_sha256: None };
    if size > CHUNKED_ABOVE_BYTES {
        fs::write(sidecar_path(&file), chunks.to_sidecar()).expect("it can be written");
        entry.chunks_sha256 = Some(Sha256Digest::of(&chunks.to_sidecar()));
    }
    entry
}

pub(super) fn seal(root: &Path, files: Vec<Entry>) {
    let list = Manifest { format: 1, product: "Tiles".into(), version: "1.2.3".into(), generation: 4, files };
    let text = list.to_toml();
    fs::write(root.join(MANIFEST_NAME), &text).expect("it can be written");
    fs::write(root.join(SIGNATURE_NAME), Signature::sign(&key(), text.as_bytes()).to_toml())
        .expect("it can be written");
}

/// A bundle as a drive has it: launcher, a program and weights with sidecars, some thirty small files.
pub(super) fn bundle(root: &Path) {
    fs::create_dir_all(root).expect("it can be made");
    let large: Vec<u8> = (0..CHUNKED_ABOVE_BYTES + 9).map(|i| (i % 251) as u8).collect();
    let mut files = vec![
        write(root, "tiles", b"#!/bin/sh\n"),
        write(root, "README.txt", b"read me"),
        write(root, PROGRAM, &large),
        write(root, "models/m/model.safetensors", &large[1..]),
        write(root, "models/m/tokenizer.json", &large[..2_100_000]),
    ];
    files.extend((0..26).map(|i| write(root, &format!("models/m/config-{i}.json"), &large[..i * 100])));
    seal(root, files);
    fs::create_dir(root.join("data")).expect("it can be made");
}

fn open(root: &Path, trust: Trust) -> Result<Bundle<Verified>, BundleError> {
    Bundle::find(Some(root), Path::new("/nowhere/tiles"))?.verify(trust)
}

/// The whole error, causes too, as a person sees it.
fn text_of(error: &BundleError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).expect("it is there");
    bytes[offset] ^= 1;
    fs::write(path, bytes).expect("it can be written");
}

#[test]
fn a_bundle_is_found_verified_and_laid_out() {
    let folder = TestFolder::new();
    // As a person may call it: spaces, and an accent both composed and not.
    for name in ["Tiles", "My drive/Tiles 2", "caf\u{e9}", "cafe\u{301}", "磁碟/$HOME `x` \"y\""] {
        let root = folder.path().join(name);
        bundle(&root);
        let found = Bundle::find(None, &root.join(PROGRAM)).expect("the program is in it");
        let bundle = found.verify(release()).expect("it is whole");
        assert_eq!(bundle.root(), fs::canonicalize(&root).expect("it is there"));
        assert_eq!(bundle.seal(), &Seal::Release);
        assert_eq!(bundle.manifest().generation, 4);
        assert!(bundle.strangers().is_empty());
        assert_eq!(bundle.shipped_models().len(), 28);
        assert_eq!(bundle.program("linux-x86_64"), bundle.root().join(PROGRAM));
        let model = bundle.shipped_model("m").expect("it is shipped");
        assert_eq!(model.read("config-1.json", 100).expect("it is whole").map(|bytes| bytes.len()), Some(100));
        assert!(bundle.shipped_model("other").is_none());
        assert!(!bundle.is_read_only());
        let mut bytes = 0;
        bundle.verify_large(&mut |more| bytes += more).expect("it is whole");
        assert_eq!(bytes, 2 * CHUNKED_ABOVE_BYTES + 17);
    }
}

#[test]
fn the_marker_is_looked_for_in_four_folders_and_through_links() {
    let folder = TestFolder::new();
    let root = folder.path().join("drive");
    bundle(&root);
    fs::create_dir_all(root.join("data/1/2/3")).expect("it can be made");
    for (executable, is_found) in
        [("tiles", true), (PROGRAM, true), ("data/1/2/tiles", true), ("data/1/2/3/tiles", false)]
    {
        let executable = root.join(executable);
        if !executable.exists() {
            fs::write(&executable, b"").expect("it can be written");
        }
        let found = Bundle::find(None, &executable);
        assert_eq!(found.is_ok(), is_found, "{found:?}");
        if let Err(error) = found {
            assert!(matches!(error, BundleError::NotFound { .. }));
            assert!(error.hint().is_some_and(|hint| hint.contains("--bundle DIR")));
        }
    }
    let link = folder.path().join("link to tiles");
    symlink(root.join(PROGRAM), &link).expect("it can be linked");
    assert_eq!(Bundle::find(None, &link).expect("it leads there").root(), fs::canonicalize(&root).expect("is there"));

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("it can be made");
    let error = Bundle::find(Some(&empty), &root.join(PROGRAM)).expect_err("what was given counts");
    assert!(matches!(&error, BundleError::NotABundle { .. }), "{error}");
    let missing = Bundle::find(Some(&folder.path().join("none")), &root.join(PROGRAM)).expect_err("nothing is there");
    assert!(matches!(&missing, BundleError::Disk(error) if error.is_not_found()), "{missing}");
}

#[test]
fn a_marker_always_wins() {
    let folder = TestFolder::new();
    let root = folder.path().join("drive");
    bundle(&root);
    // A damaged marker further in is the error, though the bundle around it is whole.
    let inner = root.join("bin/linux-x86_64").join(MANIFEST_NAME);
    fs::write(&inner, b"\xff").expect("it can be written");
    let error = Bundle::find(None, &root.join(PROGRAM)).and_then(|found| found.verify(release())).expect_err("damaged");
    assert!(text_of(&error).contains("MANIFEST.sig` is missing"), "{error}");
    fs::remove_file(&inner).expect("it is there");
    symlink("/nowhere", &inner).expect("it can be linked");
    let error = Bundle::find(None, &root.join(PROGRAM)).expect_err("a link is no marker");
    assert!(matches!(error, BundleError::WrongKind { .. }));
    fs::remove_file(&inner).expect("it is there");

    fs::write(root.join(MANIFEST_NAME), "recipe = 1\nproduct = \"Tiles\"\n").expect("it can be written");
    let error = Bundle::find(None, &root.join(PROGRAM)).expect_err("a source tree");
    assert!(text_of(&error).contains("is Tiles' source tree, not a bundle"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("tools/start")));
}

#[test]
fn the_source_tree_of_this_program_is_told_from_a_bundle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let error = Bundle::find(Some(root), root).expect_err("a source tree");
    assert!(matches!(error, BundleError::SourceTree { .. }), "{error}");
}

#[test]
fn only_a_trusted_seal_is_accepted() {
    let folder = TestFolder::new();
    bundle(folder.path());
    let short_key = SealPublicKey(key().verifying_key().to_bytes()).short();
    let seal = open(folder.path(), Trust::Any).expect("anybody's will do").seal().clone();
    assert_eq!(seal, Seal::SelfBuilt { short_key: short_key.clone() });
    let error = open(folder.path(), Trust::Release(SealPublicKey([8; 32]))).expect_err("it is another's");
    assert!(error.to_string().contains(&format!("sealed by {short_key}")), "{error}");
}

#[test]
fn every_damage_is_told_by_the_name_of_the_file() {
    type Damage = fn(&Path);
    let rows: &[(&str, Damage, &str)] = &[
        ("MANIFEST.toml", |path| flip(path, 40), "the signature doesn't fit the list"),
        ("MANIFEST.toml", |path| fs::write(path, b"").expect("written"), "the signature doesn't fit"),
        ("MANIFEST.toml", |path| fs::write(path, vec![b'#'; 1 << 21]).expect("written"), "more than the 1048576"),
        ("MANIFEST.sig", |path| flip(path, 150), "the signature"),
        ("MANIFEST.sig", |path| fs::write(path, b"\xff\xff").expect("written"), "it isn't text"),
        ("MANIFEST.sig", |path| fs::write(path, vec![b'#'; 5000]).expect("written"), "more than the 1024"),
        ("MANIFEST.sig", |path| fs::remove_file(path).expect("removed"), "is missing"),
        ("tiles", |path| flip(path, 0), "its SHA-256 is"),
        ("README.txt", |path| flip(path, 6), "its SHA-256 is"),
        ("README.txt", |path| fs::write(path, b"read me!").expect("written"), "has 8 bytes instead of 7"),
        ("README.txt", |path| fs::remove_file(path).expect("removed"), "is missing"),
        ("models/m/tokenizer.json", |path| flip(path, 2_000_000), "its SHA-256 is"),
        ("models/m/config-0.json", |path| fs::write(path, b"x").expect("written"), "has 1 bytes instead of 0"),
        (
            "models/m/tokenizer.json",
            |path| fs::write(path, vec![0; 9 << 20]).expect("written"),
            "more than the 8388608",
        ),
        (PROGRAM, |path| fs::write(path, b"short").expect("written"), "has 5 bytes instead of 8388617"),
        (PROGRAM, |path| fs::remove_file(path).expect("removed"), "is missing"),
        ("bin/linux-x86_64/tiles.chunks", |path| fs::remove_file(path).expect("removed"), "is missing"),
        ("bin/linux-x86_64/tiles.chunks", |path| fs::write(path, b"").expect("written"), "has 0 bytes instead of 96"),
        ("models/m/model.safetensors.chunks", |path| flip(path, 33), "its SHA-256 is"),
        ("models/m/model.safetensors", |path| flip(path, 5_000_000), "damaged in the 4194304 bytes from byte 4194304"),
        (PROGRAM, |path| flip(path, 8_388_616), "damaged in the 4194304 bytes from byte 8388608"),
        ("bin/linux-x86_64/evil.so", |path| fs::write(path, b"").expect("written"), "doesn't belong to the bundle"),
        ("bin/windows", |path| fs::create_dir(path).expect("made"), "doesn't belong to the bundle"),
        ("models/m/chat_template.jinja", |path| fs::write(path, b"").expect("written"), "doesn't belong to the bundle"),
        ("models/m/Tokenizer.json", |path| fs::write(path, b"").expect("written"), "doesn't belong to the bundle"),
        ("tiles", |path| replace(path, |path| symlink("README.txt", path).is_ok()), "is a link or something else"),
        ("bin", |path| move_and_link(path), "is a link or something else"),
        ("models/m", |path| move_and_link(path), "is a link or something else"),
        ("data", |path| replace(path, |path| symlink("/var", path).is_ok()), "is a link or something else"),
        ("data/lock", |path| symlink("/nowhere", path).expect("linked"), "is a link or something else"),
        ("README.txt", |path| replace(path, pipe), "is a link or something else"),
        ("MANIFEST.sig", |path| replace(path, pipe), "is a link or something else"),
        ("models/m/config-3.json", |path| replace(path, |path| fs::create_dir(path).is_ok()), "is a link or something"),
    ];
    let folder = TestFolder::new();
    for (idx, (path, damage, expected)) in rows.iter().enumerate() {
        let root = folder.path().join(idx.to_string());
        bundle(&root);
        damage(&root.join(path));
        let started = Instant::now();
        let error = open(&root, release()).and_then(|bundle| bundle.verify_large(&mut |_| {}));
        let error = error.expect_err(expected);
        let text = text_of(&error);
        let name = if text.contains("the signature doesn't fit") { "MANIFEST.toml" } else { path };
        assert!(text.contains(expected), "{path}: `{text}` instead of `{expected}`");
        assert!(text.contains(&format!("{name}`")), "`{text}` doesn't name `{name}`");
        assert!(error.hint().is_some(), "{text}");
        assert!(started.elapsed().as_secs() < 5, "{text}");
        fs::remove_dir_all(&root).expect("it can be removed");
    }
}

/// Puts something else where a file or an empty folder was.
fn replace(path: &Path, with: fn(&Path) -> bool) {
    if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }.expect("it was there");
    assert!(with(path), "it can be replaced");
}

fn pipe(path: &Path) -> bool {
    std::process::Command::new("mkfifo").arg(path).status().is_ok_and(|status| status.success())
}

fn move_and_link(path: &Path) {
    let elsewhere = path.with_file_name("elsewhere");
    fs::rename(path, &elsewhere).expect("it was there");
    symlink(&elsewhere, path).expect("it can be linked");
}

#[test]
fn what_a_person_or_a_system_leaves_beside_is_left_alone() {
    let folder = TestFolder::new();
    let root = folder.path();
    bundle(root);
    for path in [
        "letter to mum.txt",
        "holidays/photo.jpg",
        "._tiles",
        ".DS_Store",
        ".metadata_never_index",
        "models/m/._config-1.json",
        "bin/linux-x86_64/tiles.partial",
        "models/mine/config.json",
        "models/notes.txt",
        "data/anything",
    ] {
        fs::create_dir_all(root.join(path).parent().expect("below the root")).expect("it can be made");
        fs::write(root.join(path), b"mine").expect("it can be written");
    }
    let bundle = open(root, release()).expect("nothing of it is used");
    assert_eq!(bundle.strangers(), ["holidays", "letter to mum.txt"]);
    assert!(bundle.shipped_model("mine").is_none());
}

#[test]
fn opening_is_quick() {
    let folder = TestFolder::new();
    bundle(folder.path());
    open(folder.path(), release()).expect("it is whole");
    let mut quickest_ms = u128::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        open(folder.path(), release()).expect("it is whole");
        quickest_ms = quickest_ms.min(started.elapsed().as_millis());
    }
    // The promise is 50 ms; a loaded machine and a test build get some more.
    assert!(quickest_ms < 250, "{quickest_ms} ms");
}

#[test]
fn two_openings_and_a_read_only_drive() {
    let folder = TestFolder::new();
    bundle(folder.path());
    let first = open(folder.path(), release()).expect("it is whole");
    let second = open(folder.path(), release()).expect("reading is free");
    let holder = |host: &str| Holder {
        host: host.into(),
        pid: std::process::id(),
        boot_id: "b".into(),
        since: crate::time::Timestamp::from_ms(0),
    };
    let lock = first.lock(holder("kitchen")).expect("nobody has it");
    let error = second.lock(holder("desk")).expect_err("it is in use");
    assert!(error.to_string().starts_with("the bundle is in use by `kitchen` since 1970"), "{error}");
    drop(lock);
    assert!(second.lock(holder("desk")).expect("it was given back").is_held());
}
