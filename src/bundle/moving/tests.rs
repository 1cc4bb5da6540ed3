//! Tests of moving bundles: what arrives, what is refused before a byte is written, and going on after an interruption.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::*;
use crate::bundle::tests::{bundle, key, release, seal, write};
use crate::bundle::{Bundle, Found, MANIFEST_NAME, Verified};
use crate::test_folder::TestFolder;

mod hostile;

const WEIGHTS: &str = "models/m/model.safetensors";

fn verified(root: &Path) -> Bundle<Verified> {
    Bundle::<Found>::find(Some(root), root).expect("it is a bundle").verify(release()).expect("it is whole")
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Every file below a folder with its content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it is there") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).expect("it is there");
                files.insert(path.strip_prefix(root).expect("below").to_path_buf(), content);
            }
        }
    }
    files
}

struct Place {
    folder: TestFolder,
}

impl Place {
    fn new() -> Self {
        let folder = TestFolder::new();
        bundle(&folder.path().join("drive"));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn source(&self) -> Bundle<Verified> {
        verified(&self.path("drive"))
    }

    fn create(&self, name: &str, rules: Rules) -> Result<Bundle<Verified>, MoveError> {
        let source = self.source();
        let plan = source.plan_move(&self.path(name), &[], 0, rules)?;
        copy(&source, plan, None, &mut go_on).map(|(bundle, _)| bundle)
    }

    fn import(&self, archive: &str, name: &str, rules: Rules) -> Result<Bundle<Verified>, MoveError> {
        let (archive, plan) = preview(&self.path(archive), &self.path(name), release(), rules)?;
        import(&archive, plan, &mut go_on).map(|(bundle, _)| bundle)
    }
}

const REPLACE: Rules = Rules { replace: true, allow_older: false, with_data: false };

#[test]
fn a_created_bundle_is_the_same_without_data() {
    let place = Place::new();
    fs::create_dir_all(place.path("drive/data")).expect("it can be made");
    fs::write(place.path("drive/data/key.a"), "secret").expect("it can be written");
    fs::write(place.path("drive/notes.txt"), "mine").expect("it can be written");
    let made = place.create("new/place", Rules::default()).expect("there is room");
    let mut expected = tree(&place.path("drive"));
    expected.remove(Path::new("data/key.a"));
    expected.remove(Path::new("notes.txt"));
    expected.insert(".metadata_never_index".into(), Vec::new());
    assert_eq!(tree(made.root()), expected);
    assert!(made.data().is_dir());
}

#[test]
fn an_archive_is_the_same_each_time_and_comes_out_the_same() {
    let place = Place::new();
    let first = export_file(&place.source(), &place.path("a.tar.zst"), &mut go_on).expect("there is room");
    place.create("again", Rules::default()).expect("there is room");
    let again = verified(&place.path("again"));
    let second = export_file(&again, &place.path("b.tar.zst"), &mut go_on).expect("there is room");
    assert_eq!((first.bytes, first.sha256), (second.bytes, second.sha256));
    let mut piped = Vec::new();
    export(&again, &mut piped, Path::new("out"), &mut go_on).expect("memory takes it");
    assert!(fs::read(place.path("a.tar.zst")).expect("it is there") == piped);
    assert!(piped.len() as u64 <= archive_bytes_max(&again));

    place.import("a.tar.zst", "c", Rules::default()).expect("it is whole");
    assert_eq!(tree(&place.path("c")), tree(&place.path("again")));
    let error = export_file(&again, &place.path("a.tar.zst"), &mut go_on).expect_err("it is there");
    assert!(matches!(error, MoveError::Disk(DiskError::Exists { .. })));
    let inside = export_file(&again, &place.path("again/x.tar.zst"), &mut go_on).expect_err("it is in the bundle");
    assert!(matches!(inside, MoveError::Inside { .. }));
}

#[test]
fn a_damaged_file_is_not_passed_on() {
    let place = Place::new();
    let source = place.source();
    let mut weights = fs::read(place.path("drive").join(WEIGHTS)).expect("it is there");
    weights[5 << 20] ^= 1;
    fs::write(place.path("drive").join(WEIGHTS), weights).expect("it can be written");
    let plan = source.plan_move(&place.path("new"), &[], 0, Rules::default()).expect("there is room");
    let error = copy(&source, plan, None, &mut go_on).expect_err("it is damaged");
    assert!(matches!(error, MoveError::Integrity(IntegrityError::Chunk { offset: 4_194_304, .. })), "{error}");
    assert!(!place.path("new").join(MANIFEST_NAME).exists(), "half a bundle isn't one");
    let error = export_file(&source, &place.path("a.tar.zst"), &mut go_on).expect_err("it is damaged");
    assert!(matches!(error, MoveError::Integrity(_)), "{error}");
    assert!(!place.path("a.tar.zst").exists() && !place.path("a.tar.zst.partial").exists());
}

#[test]
fn what_is_interrupted_is_no_bundle_and_is_gone_on_with() {
    for is_import in [false, true] {
        let place = Place::new();
        let source = place.source();
        export_file(&source, &place.path("a.tar.zst"), &mut go_on).expect("there is room");
        for stop_at in [1, 3, 6, 20, 40] {
            let mut steps = 0;
            let mut stop = |progress| {
                steps += usize::from(matches!(progress, Progress::Written(_) | Progress::ReadBack(_)));
                if steps == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let result = if is_import {
                let previewed = preview(&place.path("a.tar.zst"), &place.path("new"), release(), Rules::default());
                let (archive, plan) = previewed.expect("it can go on");
                import(&archive, plan, &mut stop)
            } else {
                let plan = source.plan_move(&place.path("new"), &[], 0, Rules::default()).expect("it can go on");
                copy(&source, plan, None, &mut stop)
            };
            assert!(matches!(result, Err(MoveError::Stopped)), "{stop_at}");
            assert!(Bundle::<Found>::find(Some(&place.path("new")), Path::new("")).is_err(), "{stop_at}");
        }
        let plan = source.plan_move(&place.path("new"), &[], 0, Rules::default()).expect("it can go on");
        assert!(plan.goes_on && plan.needed_bytes < plan.bytes / 5, "{} of {}", plan.needed_bytes, plan.bytes);
        // A whole file with another bit in it doesn't count.
        fs::write(place.path("new/README.txt"), "Read me").expect("it can be written");
        if is_import {
            place.import("a.tar.zst", "new", Rules::default()).expect("it goes on");
        } else {
            place.create("new", Rules::default()).expect("it goes on");
        }
        verified(&place.path("new")).verify_large(&mut |_| {}).expect("it is whole");
        assert!(!tree(&place.path("new")).keys().any(|path| path.to_string_lossy().contains("partial")));
    }
}

#[test]
fn only_an_empty_folder_is_taken_unless_asked() {
    let place = Place::new();
    let refuse = |name: &str, rules: Rules| place.create(name, rules).expect_err("it is refused");
    fs::create_dir_all(place.path("full")).expect("it can be made");
    fs::write(place.path("full/thesis.txt"), "mine").expect("it can be written");
    assert!(matches!(refuse("full", Rules::default()), MoveError::Occupied { .. }));
    assert!(matches!(refuse("full", REPLACE), MoveError::Occupied { .. }));
    assert!(matches!(refuse("full/thesis.txt", REPLACE), MoveError::Occupied { .. }));
    assert_eq!(tree(&place.path("full")).len(), 1, "nothing was written");
    for inside in ["drive", "drive/new", "drive/data/new", "drive/../drive/x/y", "."] {
        assert!(matches!(refuse(inside, REPLACE), MoveError::Inside { .. }), "{inside}");
    }
    let begun = tree(&place.path("drive"));
    place.create("other", Rules::default()).expect("there is room");
    assert!(matches!(refuse("other", Rules::default()), MoveError::IsBundle { .. }));
    // A link in the way would lead out of the folder.
    fs::create_dir_all(place.path("linked")).expect("it can be made");
    fs::create_dir_all(place.path("victim")).expect("it can be made");
    std::os::unix::fs::symlink(place.path("victim"), place.path("linked/models")).expect("it can be linked");
    fs::write(place.path("linked/MANIFEST.toml"), fs::read(place.path("drive/MANIFEST.toml")).expect("there"))
        .expect("it can be written");
    let error = refuse("linked", REPLACE);
    assert!(matches!(error, MoveError::Bundle(BundleError::WrongKind { .. })), "{error}");
    assert!(tree(&place.path("victim")).is_empty());
    assert_eq!(tree(&place.path("drive")), begun, "the source is untouched");
}

#[test]
fn replacing_keeps_data_and_goes_only_forward_under_the_same_seal() {
    let place = Place::new();
    let old = place.path("old");
    // A bundle of the same key and generation 4, with a file more.
    let files = vec![write(&old, "bin/linux-x86_64/tiles", b"old"), write(&old, "old.txt", b"old")];
    seal(&old, files);
    fs::create_dir_all(old.join("data")).expect("it can be made");
    fs::write(old.join("data/key.a"), "precious").expect("it can be written");
    fs::create_dir_all(old.join("models/mine")).expect("it can be made");
    fs::write(old.join("models/mine/config.json"), "{}").expect("it can be written");
    let made = place.create("old", REPLACE).expect("it is of the same key");
    assert_eq!(fs::read(old.join("data/key.a")).expect("it stays"), b"precious");
    assert_eq!(fs::read(old.join("models/mine/config.json")).expect("it stays"), b"{}");
    assert!(!old.join("old.txt").exists());
    assert_eq!(made.manifest(), place.source().manifest());

    let newer = |generation: u64, seed: u8| {
        let text = fs::read_to_string(place.path("drive/MANIFEST.toml")).expect("it is there");
        let text = text.replace("generation = 4", &format!("generation = {generation}"));
        let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let signature = crate::manifest::Signature::sign(&key, text.as_bytes());
        fs::write(old.join("MANIFEST.toml"), text).expect("it can be written");
        fs::write(old.join("MANIFEST.sig"), signature.to_toml()).expect("it can be written");
    };
    newer(9, 7);
    let before = tree(&old);
    assert!(matches!(place.create("old", REPLACE), Err(MoveError::Older { found: 9, generation: 4, .. })));
    newer(4, 8);
    assert!(matches!(place.create("old", REPLACE), Err(MoveError::OtherSeal { .. })));
    newer(9, 7);
    assert_eq!(tree(&old), before, "nothing was written");
    // Data of somebody is never replaced by a copy.
    let with_data = Rules { with_data: true, allow_older: true, ..REPLACE };
    assert!(matches!(place.create("old", with_data), Err(MoveError::HasData { .. })));
    place.create("old", Rules { allow_older: true, ..REPLACE }).expect("it was asked for");
    assert_eq!(key().to_bytes(), [7; 32], "the key that the fixtures are sealed with");
}

#[test]
fn what_does_not_fit_is_said_before_the_first_byte() {
    let place = Place::new();
    let error = place.source().plan_move(&place.path("new"), &[], u64::MAX / 2, Rules::default());
    assert!(matches!(error, Err(MoveError::Space { .. })));
    assert!(!place.path("new").exists());
}

#[test]
fn a_drive_that_keeps_something_else_fails() {
    let place = Place::new();
    let source = place.source();
    let plan = source.plan_move(&place.path("new"), &[], 0, Rules::default()).expect("there is room");
    // The moment that reading back begins, the medium has other bits than were written.
    let mut is_changed = false;
    let weights = place.path("new").join(WEIGHTS);
    let error = copy(&source, plan, None, &mut |progress| {
        if matches!(progress, Progress::ReadBack(_)) && !is_changed {
            is_changed = true;
            let mut content = fs::read(&weights).expect("it is there");
            content[5 << 20] ^= 1;
            fs::write(&weights, content).expect("it can be written");
        }
        ControlFlow::Continue(())
    });
    let error = error.expect_err("it isn't what was written");
    assert!(matches!(&error, MoveError::NotKept { path } if path.ends_with(WEIGHTS)), "{error}");
    assert!(Bundle::<Found>::find(Some(&place.path("new")), Path::new("")).is_err(), "it isn't a bundle");
}

#[test]
fn a_copy_carries_data_along_and_what_belongs_to_the_place_stays() {
    let place = Place::new();
    let data = place.path("drive/data");
    fs::create_dir_all(data.join("memory/notes")).expect("it can be made");
    fs::create_dir_all(data.join("db")).expect("it can be made");
    for (name, content) in [
        ("key.a", "slot a"),
        ("key.b", "slot b"),
        ("models.toml", "list"),
        ("db/tiles.db", "database"),
        ("memory/notes/one.md", "note"),
        ("lock", "held"),
        ("verify.state", "state"),
        ("mine.txt", "?"),
    ] {
        fs::write(data.join(name), content).expect("it can be written");
    }
    let source = place.source();
    assert_eq!(source.personal().expect("it can be listed").1, ["mine.txt"]);
    let rules = Rules { with_data: true, ..Rules::default() };
    let added = vec![write(&place.path("drive"), "models/added/config.json", b"{\"a\":1}")];
    let plan = source.plan_move(&place.path("new"), &added, 99, rules).expect("there is room");
    let mut database = |path: &Path| Ok(fs::write(path, "consistent copy")?);
    copy(&source, plan, Some(Personal { database: &mut database }), &mut go_on).expect("there is room");
    let copied: Vec<String> =
        tree(&place.path("new/data")).into_keys().map(|path| path.display().to_string()).collect();
    assert_eq!(copied, ["db/tiles.db", "key.a", "key.b", "memory/notes/one.md", "models.toml"]);
    assert_eq!(fs::read(place.path("new/data/db/tiles.db")).expect("it is there"), b"consistent copy");
    assert_eq!(fs::read(place.path("new/models/added/config.json")).expect("it is there"), b"{\"a\":1}");

    let plan = source.plan_move(&place.path("third"), &[], 0, rules).expect("there is room");
    let mut database = |_: &Path| Err("the database is damaged".into());
    let error = copy(&source, plan, Some(Personal { database: &mut database }), &mut go_on);
    assert!(matches!(error, Err(MoveError::Data(_))));
    assert!(!place.path("third/data").exists() && !place.path("third/MANIFEST.toml").exists());
}

#[test]
fn data_of_a_cut_copy_is_replaced_and_data_that_was_opened_is_not() {
    let place = Place::new();
    let data = place.path("drive/data");
    fs::create_dir_all(&data).expect("it can be made");
    fs::write(data.join("key.a"), "slot a").expect("it can be written");
    let source = place.source();
    let rules = Rules { with_data: true, ..Rules::default() };
    let go = || {
        let plan = source.plan_move(&place.path("new"), &[], 0, rules)?;
        let mut database = |path: &Path| Ok(fs::write(path, "database")?);
        copy(&source, plan, Some(Personal { database: &mut database }), &mut go_on)
    };
    go().expect("there is room");
    let new = |name: &str| place.path("new").join(name);
    assert!(!new("data/copy.partial").exists());
    // As a power cut leaves it between the two last names.
    let cut = || fs::rename(new("MANIFEST.toml"), new("MANIFEST.toml.partial")).expect("it is there");
    cut();
    assert!(matches!(go(), Err(MoveError::HasData { .. })), "nothing says that it is a copy's");
    fs::write(new("data/copy.partial"), "").expect("it can be written");
    fs::write(new("data/key.a"), "torn").expect("it can be written");
    go().expect("it goes on");
    assert_eq!(fs::read(new("data/key.a")).expect("it is there"), b"slot a");
    // As one leaves it in the middle of the last: both names, one of them empty.
    cut();
    fs::write(new("MANIFEST.toml"), "").expect("it can be written");
    assert!(matches!(go(), Err(MoveError::HasData { .. })));
    fs::write(new("data/copy.partial"), "").expect("it can be written");
    go().expect("it goes on");
    assert!(!new("MANIFEST.toml.partial").exists());
    // Somebody used it since.
    cut();
    fs::write(new("data/copy.partial"), "").expect("it can be written");
    fs::write(new("data/lock"), "").expect("it can be written");
    assert!(matches!(go(), Err(MoveError::HasData { .. })));
}

#[test]
fn data_that_cannot_be_listed_stops_a_copy() {
    let place = Place::new();
    let source = place.source();
    assert_eq!(source.personal().expect("there is none").0, 0);
    fs::remove_dir(place.path("drive/data")).expect("it is there");
    // After it was verified, as when the drive changes under us.
    fs::write(place.path("drive/data"), "a file where a folder belongs").expect("it can be written");
    assert!(source.personal().is_err());
}
