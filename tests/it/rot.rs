//! Bit rot as a property: fifty random flips in each kind of file are each named or harmless, and none changes an answer.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use secrecy::SecretBox;
use tilekit::bundle::build::{BuildPlan, Pieces};
use tilekit::bundle::{Bundle, Found, Holder, Preferences, Trust, Verified};
use tilekit::digest::Sha256Digest;
use tilekit::engine::checkpoint::Dtype;
use tilekit::engine::prefix::{LayerState, PrefixState};
use tilekit::host::{Host, SystemClock};
use tilekit::identity::WorkFactor;
use tilekit::identity::{DerivedKey, Identity, KeyFile, KeyStore as _, Passphrase};
use tilekit::library::added;
use tilekit::logbook::{Event, Logbook};
use tilekit::manifest::signature::SealPublicKey;
use tilekit::manifest::{Entry, FileRole};
use tilekit::message::{Message, Role, SessionId};
use tilekit::prefix_cache::PrefixCache;
use tilekit::store::{Access, Store};
use tilekit::time::{Clock as _, Timestamp};

/// How many bits are flipped in each kind of file.
const FLIPS: u64 = 50;

/// Numbers that look random and are the same each time (SplitMix64).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// A folder for one test, removed when it ends well.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rot-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("target can be written");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Flips bits of the file one after the other, calls `check` with each, and flips them back.
fn flips(path: &Path, seed: u64, mut check: impl FnMut(&str)) {
    let mut random = Seeded(seed);
    let bytes = fs::metadata(path).expect("it is there").len();
    for _ in 0..FLIPS {
        let (at, bit) = (random.below(bytes), random.below(8));
        let flip = || {
            // Opened anew each time: what is checked may have replaced the file.
            let file = OpenOptions::new().read(true).write(true).open(path).expect("it is there");
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("it is that long");
            file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("target can be written");
        };
        flip();
        check(&format!("{} byte {at} bit {bit} (seed {seed})", path.display()));
        flip();
    }
}

/// An error with its causes, as a person sees it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn holder() -> Holder {
    Holder::new(SystemClock.now(), &Host::probe().expect("this machine answers"), std::process::id())
}

/// A sealed bundle with a program and weights of more than two chunks.
fn build(scratch: &Scratch) -> PathBuf {
    let tree = scratch.0.join("tree");
    fs::create_dir_all(tree.join("model")).expect("target can be written");
    let mut recipe = String::from("recipe = 1\nproduct = \"Tiles\"\n");
    for (path, role, source) in [
        ("tiles", "launcher", "tree:tiles"),
        ("README.txt", "doc", "tree:README.txt"),
        ("bin/linux-x86_64/tiles", "program", "build:x86_64-unknown-linux-gnu"),
        ("models/m/", "model", "pypi:m==1/m"),
    ] {
        recipe.push_str(&format!(
            "[[file]]\npath = \"{path}\"\nrole = \"{role}\"\nsource = \"{source}\"\nlicence = \"MIT\"\n"
        ));
    }
    let large: Vec<u8> = (0..9_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, content) in [
        ("MANIFEST.toml", recipe.as_bytes()),
        ("tiles", b"#!/bin/sh\nexec bin/linux-x86_64/tiles\n"),
        ("README.txt", b"Read me before anything else.\n"),
        ("program", &large),
        ("model/config.json", b"{\"model_type\": \"llama\", \"hidden_size\": 64}\n"),
        ("model/model.safetensors", &large[77..]),
    ] {
        fs::write(tree.join(name), content).expect("target can be written");
    }
    let pieces = Pieces {
        version: "1.0.0".into(),
        programs: BTreeMap::from([("linux-x86_64".to_owned(), tree.join("program"))]),
        models: BTreeMap::from([("m".to_owned(), tree.join("model"))]),
    };
    let root = scratch.0.join("Tiles");
    let plan = BuildPlan::new(&tree.join("MANIFEST.toml"), &root, &pieces, seal()).expect("it can be built");
    plan.execute(&signing_key(), holder(), &mut |_| {}).expect("it can be built");
    root
}

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn seal() -> SealPublicKey {
    SealPublicKey(signing_key().verifying_key().to_bytes())
}

/// The first thing that a start or the full verification says.
fn verify(root: &Path) -> Result<Bundle<Verified>, String> {
    let found = Bundle::<Found>::find(Some(root), root).map_err(|error| told(&error))?;
    let bundle = found.verify(Trust::Release(seal())).map_err(|error| told(&error))?;
    bundle.verify_large(&mut |_| {}).map_err(|error| told(&error))?;
    Ok(bundle)
}

#[test]
fn each_flip_in_a_sealed_file_is_named() {
    let scratch = Scratch::new("sealed");
    let root = build(&scratch);
    verify(&root).expect("it is whole");
    for (seed, (path, named)) in [
        ("MANIFEST.toml", "MANIFEST"),
        ("MANIFEST.sig", "MANIFEST"),
        ("tiles", "Tiles/tiles`"),
        ("README.txt", "README.txt"),
        ("models/m/config.json", "config.json"),
        ("models/m/model.safetensors.chunks", "model.safetensors.chunks"),
        ("models/m/model.safetensors", "model.safetensors` is damaged in the"),
        ("bin/linux-x86_64/tiles", "bin/linux-x86_64/tiles` is damaged in the"),
        ("bin/linux-x86_64/tiles.chunks", "bin/linux-x86_64/tiles.chunks"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut harmless = 0;
        flips(&root.join(path), seed as u64, |which| match verify(&root) {
            Err(error) => assert!(error.contains(named), "{which}: {error}"),
            // The comment in the signature's file is no part of the signature.
            Ok(_) if path == "MANIFEST.sig" => harmless += 1,
            Ok(_) => panic!("{which}: nothing was noticed"),
        });
        assert!(harmless < FLIPS, "{path}");
    }
    verify(&root).expect("all bits are back");
}

#[test]
fn each_flip_in_the_list_of_added_models_is_named() {
    let scratch = Scratch::new("added");
    let (path, key) = (scratch.0.join("models.toml"), [9; 32]);
    let digest = Sha256Digest::of(b"weights");
    let entry = Entry { path: "w".into(), size: 7, sha256: digest, role: FileRole::Model, chunks_sha256: None };
    added::write(&path, &key, &added::Added::from([("mine".to_owned(), vec![entry])])).expect("it can be written");
    let list = added::read(&path, &key).expect("it is whole");
    let other = scratch.0.join("models.b.toml");
    for copy in [&path, &other] {
        flips(copy, 100, |which| {
            assert_eq!(added::read(&path, &key).expect(which), list, "{which}");
            assert_eq!(added::mend(&path, &key, false).expect(which).as_ref(), Some(copy), "{which}");
        });
    }
    fs::remove_file(&other).expect("it is there");
    flips(&path, 100, |which| {
        let error = added::read(&path, &key).expect_err(which);
        assert!(told(&error).contains("models.toml"), "{which}: {error}");
    });
}

#[test]
fn each_flip_in_a_key_slot_is_told_and_the_other_slot_opens() {
    let scratch = Scratch::new("key");
    let key_file = KeyFile::with_work_factor(&scratch.0, WorkFactor::MIN);
    let passphrase = Passphrase::new("correct horse battery staple".into()).expect("it is long enough");
    let identity = Identity::generate(Timestamp::from_ms(0)).expect("there is randomness");
    key_file.create(&identity, &passphrase, None).expect("target can be written");
    for (seed, name) in [(200, "key.a"), (201, "key.b")] {
        flips(&scratch.0.join(name), seed, |which| {
            let opened = key_file.open(&passphrase).unwrap_or_else(|error| panic!("{which}: {}", told(&error)));
            assert_eq!(opened.identity.did(), identity.did(), "{which}");
            assert!(opened.flaw.is_some(), "{which}: nothing was noticed");
        });
    }
}

/// What a store has, as text.
fn said(path: &Path, key: &SecretBox<[u8; 32]>) -> Result<String, String> {
    let store = Store::open(path, key, Access::ReadOnly).map_err(|error| told(&error))?;
    let mut text = String::new();
    for session in store.list().map_err(|error| told(&error))? {
        let messages = store.messages(session.id).map_err(|error| told(&error))?;
        messages.iter().for_each(|message| text.push_str(&format!("{:?}: {}\n", message.role, message.content)));
    }
    Ok(text)
}

#[test]
fn each_flip_in_the_database_and_its_backup_is_named_or_changes_nothing() {
    let scratch = Scratch::new("store");
    let key = SecretBox::new(Box::new([5; 32]));
    let (path, backup) = (scratch.0.join("tiles.db"), scratch.0.join("backup.db"));
    let store = Store::open(&path, &key, Access::ReadWrite).expect("it can be made");
    for session in 0..5 {
        let id = store.create(Timestamp::from_ms(session), None, "m").expect("it can be made");
        for turn in 0..4 {
            let message = |role, text: &str| Message::new(role, format!("{text} {session} {turn} {}", "x".repeat(900)));
            let turn = [message(Role::User, "question").into(), message(Role::Assistant, "answer").into()];
            store.append_turn(id, &turn, Timestamp::from_ms(session)).expect("it is stored");
        }
    }
    store.backup(&backup, &key).expect("it can be written");
    store.close().expect("it is stored");
    let expected = said(&path, &key).expect("it is whole");
    assert!(expected.len() > 30_000);
    for (seed, (path, name)) in [(&path, "tiles.db"), (&backup, "backup.db")].into_iter().enumerate() {
        let mut noticed = 0;
        flips(path, 300 + seed as u64, |which| match said(path, &key) {
            Ok(found) => assert!(found == expected, "{which}: another answer"),
            Err(error) => {
                assert!(error.contains(name), "{which}: {error}");
                noticed += 1;
            }
        });
        // What is said is a third of the file: the log has it again, and the index its words.
        assert!(noticed > FLIPS / 8, "{name}: {noticed} of {FLIPS}");
    }
}

#[test]
fn a_flip_in_the_lock_or_a_kept_state_is_harmless() {
    let scratch = Scratch::new("place");
    let root = build(&scratch);
    let bundle = verify(&root).expect("it is whole");
    drop(bundle.lock(holder()).expect("nobody has it"));
    flips(&bundle.lock_path(), 400, |which| {
        let lock = bundle.lock(holder()).unwrap_or_else(|error| panic!("{which}: {}", told(&error)));
        assert!(lock.is_held(), "{which}");
    });

    let cache = PrefixCache::new(&scratch.0.join("cache"), DerivedKey::init(|key| *key = [3; 32]), 1 << 20);
    let layer = LayerState { dtype: Dtype::F16, width: 100, first: 0, keys: vec![5; 8000], values: vec![6; 8000] };
    let state = PrefixState { origin: Sha256Digest([1; 32]), tokens: (0..40).collect(), layers: vec![layer] };
    let id = SessionId([3; 16]);
    cache.keep_session(id, &state).expect("target can be written");
    let file = fs::read_dir(scratch.0.join("cache")).expect("it is there").next().expect("one is kept");
    let file = file.expect("it can be listed").path();
    let kept = fs::read(&file).expect("it is there");
    flips(&file, 401, |which| {
        let found = cache.session(id);
        assert!(found.is_none() || found == Some(state.clone()), "{which}: another state");
        // What can't be read may have been removed.
        if !file.exists() {
            fs::write(&file, &kept).expect("target can be written");
        }
    });
}

#[test]
fn each_flip_in_the_settings_is_named_or_changes_nothing() {
    let scratch = Scratch::new("settings");
    let path = scratch.0.join("settings.toml");
    let set = [("color", "never"), ("model", "small-1.5"), ("relay", "https://relay.example.org:8443")];
    let set = set.into_iter().try_fold(Preferences::default(), |set, (name, value)| set.with(name, Some(value)));
    let set = set.expect("each can be set");
    set.write(&path).expect("target can be written");
    let mut noticed = 0;
    flips(&path, 500, |which| match Preferences::read(&path) {
        Ok(read) => assert!(read == set, "{which}: other settings"),
        Err(error) => {
            assert!(told(&error).contains("settings.toml"), "{which}: {error}");
            noticed += 1;
        }
    });
    assert!(noticed > FLIPS / 2, "{noticed} of {FLIPS}");
}

#[test]
fn a_flip_in_a_log_is_harmless() {
    let scratch = Scratch::new("logs");
    let log = || Logbook::open(&scratch.0).expect("target can be written");
    let [first, second] = ["tiles.log", "tiles.1.log"].map(|name| scratch.0.join(name));
    log().add(Timestamp::from_ms(0), Event::Started { version: "1.0.0" }).expect("target can be written");
    fs::copy(&first, &second).expect("target can be written");
    for (seed, path) in [(600, &first), (601, &second)] {
        flips(path, seed, |which| {
            let (before, other) = (fs::read(&first).expect("it is there"), fs::read(&second).expect("it is there"));
            log().add(Timestamp::from_ms(1), Event::Unclean).unwrap_or_else(|error| panic!("{which}: {error}"));
            let after = fs::read(&first).expect("it is there");
            // What is in it is nobody's business but a person's; it is neither read nor changed, only added to.
            assert_eq!(
                after.strip_prefix(&*before),
                Some(&b"1970-01-01T00:00:00Z unclean the last exit\n"[..]),
                "{which}"
            );
            assert_eq!(fs::read(&second).expect("it is there"), other, "{which}");
        });
    }
}
