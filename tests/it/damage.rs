//! Bit rot: one flipped bit in each kind of file is found, named, and nothing computed from it is shown.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tilekit::digest::CHUNK_BYTES;

use crate::commands::refused;
use crate::drive::{ANSWER, TestBundle};

/// Flips one bit of a file. The file is made anew: other bundles may share the old one's bytes.
fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    content[at] ^= 0x10;
    fs::remove_file(path).expect("target can be written");
    fs::write(path, content).expect("target can be written");
}

/// The first, the middle and the last byte of a file.
fn places(path: &Path) -> [usize; 3] {
    let bytes = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).len();
    let bytes = usize::try_from(bytes).expect("it fits into memory");
    [0, bytes / 2, bytes - 1]
}

#[test]
fn a_flipped_bit_in_a_small_file_is_named_before_anything_is_said() {
    let bundle = TestBundle::new();
    for (path, named) in [
        // A list that was changed and a signature that was changed can't be told apart.
        ("MANIFEST.toml", "MANIFEST"),
        ("MANIFEST.sig", "MANIFEST"),
        ("tiles", "/tiles`"),
        ("README.txt", "README.txt"),
        ("models/scripted/config.json", "config.json"),
        ("models/scripted/tokenizer.json", "tokenizer.json"),
        ("models/scripted/tokenizer_config.json", "tokenizer_config.json"),
        ("models/scripted/model.toml", "model.toml"),
        ("models/scripted/model.safetensors", "model.safetensors"),
    ] {
        let file = bundle.root.join(path);
        for at in places(&file) {
            flip(&file, at);
            let start = Instant::now();
            refused(&bundle.unlocked(&["-p", "hi"]), 5, named);
            assert!(start.elapsed() < Duration::from_secs(2), "{path}: it took {:?}", start.elapsed());
            refused(&bundle.run(&["bundle", "verify"]), 5, named);
            flip(&file, at);
        }
    }
    assert_eq!(bundle.ok(&["-p", "hi"]), format!("{ANSWER}\n"), "all bits are back");
}

#[test]
fn a_flipped_bit_in_the_program_is_found_by_a_full_verification() {
    let bundle = TestBundle::new();
    let program = bundle.root.join("bin/linux-x86_64/tiles");
    let middle = places(&program)[1];
    let chunk = middle / CHUNK_BYTES as usize * CHUNK_BYTES as usize;
    flip(&program, middle);
    // The damaged program can't judge itself: another one does.
    let mut other = Command::new(env!("CARGO_BIN_EXE_tiles"));
    other.env_clear().arg("--bundle").arg(&bundle.root).args(["bundle", "verify", "--full"]);
    let output = other.output().expect("the program can be run");
    refused(&output, 5, "bin/linux-x86_64/tiles");
    refused(&output, 5, &format!("from byte {chunk}"));
}

#[test]
fn one_damaged_key_slot_is_mended_and_two_are_refused() {
    let bundle = TestBundle::new();
    let (a, b) = (bundle.root.join("data/key.a"), bundle.root.join("data/key.b"));
    for slot in [&a, &b] {
        let whole = fs::read(slot).expect("it is there");
        flip(slot, 300);
        let output = bundle.unlocked(&["-p", "hi"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.contains("copies of the key file"), "{errors}");
        assert!(errors.contains("written anew"), "{errors}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{ANSWER}\n"));
        assert_ne!(fs::read(slot).expect("it is there"), {
            let mut bad = whole;
            bad[300] ^= 0x10;
            bad
        });
        assert_eq!(bundle.json(&["doctor"])["key"]["whole_copies"], 2);
    }
    flip(&a, 300);
    flip(&b, 300);
    let start = Instant::now();
    refused(&bundle.unlocked(&["-p", "hi"]), 5, "data/key.");
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
}

#[test]
fn a_damaged_database_is_named_and_nothing_is_answered() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "hi"]);
    let database = bundle.root.join("data/db/tiles.db");
    // The salt, the first page's content and its authentication code.
    for at in [3, 1_000, 4_090] {
        flip(&database, at);
        refused(&bundle.unlocked(&["-p", "again"]), 5, "tiles.db");
        refused(&bundle.unlocked(&["session", "list", "--json"]), 5, "tiles.db");
        flip(&database, at);
    }
    assert_eq!(bundle.json(&["session", "list"])[0]["messages"], 2, "nothing was lost or made anew");
}

#[test]
fn a_damaged_list_of_added_models_is_mended_from_its_other_copy() {
    let bundle = TestBundle::with_smollm2("Tiles");
    let copies = ["models.toml", "models.b.toml"].map(|name| bundle.root.join("data").join(name));
    let whole = fs::read(&copies[0]).expect("it is there");
    for (copy, at) in [(&copies[0], 0), (&copies[0], 90), (&copies[1], 40)] {
        flip(copy, at);
        let output = bundle.unlocked(&["model", "list"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = copy.file_name().expect("it has one").to_string_lossy().into_owned();
        assert!(output.status.success() && errors.contains(&format!("`{name}` is damaged")), "{errors}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("smollm2"), "{errors}");
        assert!(copies.iter().all(|copy| fs::read(copy).expect("it is there") != whole), "a new edition");
        assert!(!String::from_utf8_lossy(&bundle.unlocked(&["model", "list"]).stderr).contains("damaged"), "said once");
    }
    copies.iter().for_each(|copy| flip(copy, 40));
    refused(&bundle.unlocked(&["run", "smollm2", "-p", "hi"]), 5, "models.toml");
    let verified = bundle.unlocked(&["model", "verify", "smollm2"]);
    assert_eq!(verified.status.code(), Some(5));
}

#[test]
fn damage_to_an_added_model_is_named_down_to_the_chunk() {
    let bundle = TestBundle::with_smollm2("Tiles");
    let model = bundle.root.join("models/smollm2");
    let third = 3 * CHUNK_BYTES as usize;
    for (file, at, named) in [
        (model.join("config.json"), 9, "config.json".to_owned()),
        (model.join("tokenizer.json"), 700_000, "tokenizer.json".into()),
        (model.join("model.safetensors.chunks"), 100, "model.safetensors.chunks".into()),
        (model.join("model.safetensors"), third + 5, "model.safetensors`".into()),
        (model.join("model.safetensors"), third + 5, format!("from byte {third}")),
    ] {
        flip(&file, at);
        refused(&bundle.unlocked(&["run", "smollm2", "-p", "hi"]), 5, &named);
        let verified = bundle.unlocked(&["model", "verify", "smollm2"]);
        assert_eq!(verified.status.code(), Some(5), "{named}");
        flip(&file, at);
    }
    assert_eq!(bundle.json(&["model", "verify", "smollm2"])[0]["whole"], true, "all bits are back");
}
