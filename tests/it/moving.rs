//! Another bundle made of this one, a copy with everything, an archive and back, and repair: with the real program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use ed25519_dalek::SigningKey;
use tilekit::manifest::Signature;

use crate::commands::refused;
use crate::drive::{ANSWER, TestBundle};

const MODEL: &str = "models/scripted/model.safetensors";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A place beside the bundle, as an argument.
fn beside(bundle: &TestBundle, name: &str) -> (PathBuf, String) {
    let path = bundle.root.parent().expect("it is below the test's folder").join(name);
    let text = path.display().to_string();
    (path, text)
}

/// Flips a bit of a file, which is made anew: other bundles may share the old one's bytes.
fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    content[at] ^= 0x10;
    fs::remove_file(path).expect("target can be written");
    fs::write(path, content).expect("target can be written");
}

#[test]
fn a_created_bundle_starts_its_own_life() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "hi"]);
    let (path, dest) = beside(&bundle, "new stick/Tiles");
    let would = bundle.json(&["bundle", "create", &dest, "--dry-run"]);
    assert_eq!((would["dry_run"].as_bool(), path.exists()), (Some(true), false));
    // No passphrase is needed: nothing personal is in it.
    let made = bundle.run(&["bundle", "create", &dest]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(stderr(&made).contains("safe to remove"), "{}", stderr(&made));
    assert!(fs::read_dir(path.join("data")).expect("it is there").next().is_none());
    let verified = bundle.json(&["--bundle", &dest, "bundle", "verify", "--full"]);
    assert_eq!(verified["whole"], true);
    refused(&bundle.run(&["bundle", "create", &dest]), 1, "--replace");
    bundle.ok(&["bundle", "create", &dest, "--replace"]);
    refused(&bundle.run(&["bundle", "create", &format!("{}/data/x", bundle.root.display())]), 1, "in each other");
}

#[test]
fn a_copy_has_everything_and_nothing_is_lost_on_either_side() {
    let bundle = TestBundle::with_smollm2("Tiles");
    bundle.ok(&["-p", "hi"]);
    let (path, dest) = beside(&bundle, "copy");
    refused(&bundle.run(&["bundle", "copy", &dest, "--no-input"]), 3, "--passphrase-file");
    assert!(!path.exists(), "nothing is begun before the passphrase");
    let copied = bundle.json(&["bundle", "copy", &dest]);
    assert_eq!((copied["data"].as_bool(), copied["read_back"].as_bool()), (Some(true), Some(true)));
    for root in [&dest, &bundle.root.display().to_string()] {
        assert_eq!(bundle.json(&["--bundle", root, "session", "list"])[0]["messages"], 2);
        assert_eq!(bundle.ok(&["--bundle", root, "run", "scripted", "-p", "hi"]), format!("{ANSWER}\n"));
        let whole = bundle.json(&["--bundle", root, "bundle", "verify", "--full"]);
        assert_eq!((&whole["whole"], &whole["added_models"]), (&true.into(), &"verified".into()));
    }
    // A bundle with data is never copied over.
    refused(&bundle.unlocked(&["bundle", "copy", &dest]), 1, "is a bundle already");

    // The added model is verified and mended too, out of the copy.
    let weights = bundle.root.join("models/smollm2/model.safetensors");
    flip(&weights, 9 << 20);
    fs::remove_file(bundle.root.join("models/smollm2/config.json")).expect("it is there");
    let found = bundle.unlocked(&["bundle", "verify", "--full"]);
    refused(&found, 5, "from byte 8388608");
    refused(&found, 5, "`models/smollm2/config.json` is missing");
    refused(&found, 5, "bundle repair --from");
    assert!(bundle.run(&["bundle", "verify", "--full", "--shipped"]).status.success());
    refused(&bundle.run(&["bundle", "verify", "--full", "--no-input"]), 3, "--shipped");
    let mended = bundle.json(&["bundle", "repair", "--from", &dest]);
    assert_eq!(mended["mended"].as_array().map(Vec::len), Some(2), "{mended}");
    assert_eq!(bundle.json(&["bundle", "verify", "--full"])["whole"], true);
}

#[test]
fn two_exports_are_the_same_bytes_and_import_makes_the_bundle() {
    let bundle = TestBundle::new();
    let ((first, a), (second, b)) = (beside(&bundle, "a.tar.zst"), beside(&bundle, "b.tar.zst"));
    let report = bundle.json(&["bundle", "export", &a]);
    bundle.ok(&["bundle", "export", &b]);
    let piped = bundle.run(&["bundle", "export", "-"]);
    let bytes = fs::read(&first).expect("it is there");
    assert!(bytes == fs::read(&second).expect("it is there"), "two runs are byte-identical");
    assert!(bytes == piped.stdout, "and so is the stream");
    assert_eq!(report["sha256"], tilekit::digest::Sha256Digest::of(&bytes).to_string());
    refused(&bundle.run(&["bundle", "export", &a]), 1, "exists already");

    let (path, dest) = beside(&bundle, "imported");
    let would = bundle.json(&["bundle", "import", &a, &dest, "--dry-run"]);
    assert_eq!((would["dry_run"].as_bool(), path.exists()), (Some(true), false));
    let made = bundle.json(&["bundle", "import", &a, &dest]);
    assert_eq!(made["read_back"], true);
    let told = bundle.run(&["--bundle", &dest, "bundle", "info"]);
    assert!(told.status.success(), "{}", stderr(&told));

    // An archive that was changed leaves nothing.
    flip(&first, bytes.len() / 2);
    let (path, dest) = beside(&bundle, "refused");
    refused(&bundle.run(&["bundle", "import", &a, &dest]), 5, "a.tar.zst");
    assert!(!path.exists());
    refused(&bundle.run(&["bundle", "import", &dest, &dest]), 1, "doesn't exist");
}

#[test]
fn repair_mends_what_is_damaged_out_of_a_folder_and_an_archive() {
    let bundle = TestBundle::new();
    let (_, archive) = beside(&bundle, "a.tar.zst");
    let (_, other) = beside(&bundle, "other");
    bundle.ok(&["bundle", "export", &archive]);
    bundle.ok(&["bundle", "create", &other]);
    for from in [&archive, &other] {
        flip(&bundle.root.join(MODEL), 40);
        flip(&bundle.root.join("bin/linux-x86_64/tiles.chunks"), 40);
        fs::remove_file(bundle.root.join("README.txt")).expect("it is there");
        flip(&bundle.root.join("MANIFEST.toml"), 70);
        let planned = bundle.json(&["bundle", "repair", "--from", from, "--dry-run"]);
        assert_eq!(planned["list_restored"], "MANIFEST.toml");
        refused(&bundle.run(&["bundle", "verify"]), 5, "MANIFEST.toml");
        let mended = bundle.json(&["bundle", "repair", "--from", from]);
        assert_eq!(mended["mended"].as_array().map(Vec::len), Some(3), "{mended}");
        assert_eq!(bundle.ok(&["-p", "hi"]), format!("{ANSWER}\n"));
        let again = bundle.run(&["bundle", "repair", "--from", from]);
        assert_eq!(String::from_utf8_lossy(&again.stdout), "nothing is damaged\n");
    }
    // What the other has damaged too stays, by name; and what doesn't belong is named.
    flip(&bundle.root.join(MODEL), 40);
    flip(&Path::new(&other).join(MODEL), 41);
    fs::write(bundle.root.join("models/scripted/extra.json"), "{}").expect("target can be written");
    let left = bundle.run(&["bundle", "repair", "--from", &other]);
    refused(&left, 5, "isn't this bundle's either");
    refused(&left, 5, "extra.json");
    refused(&bundle.run(&["bundle", "repair", "--from", "nowhere"]), 1, "doesn't exist");
}

#[test]
fn another_seal_and_an_older_state_are_refused_until_they_are_accepted() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "hi"]);
    let list = bundle.root.join("MANIFEST.toml");
    let text = fs::read_to_string(&list).expect("it is there");
    let seal = |generation: u32, seed: u8| {
        let text = text.replace("generation = 1\n", &format!("generation = {generation}\n"));
        let signature = Signature::sign(&SigningKey::from_bytes(&[seed; 32]), text.as_bytes());
        fs::write(&list, text).expect("target can be written");
        fs::write(bundle.root.join("MANIFEST.sig"), signature.to_toml()).expect("target can be written");
    };
    seal(3, 7);
    for arguments in [["-p", "hi"], ["session", "list"]] {
        let output = bundle.unlocked(&arguments);
        refused(&output, 5, "was sealed by");
        refused(&output, 5, "tiles bundle accept");
    }
    // A bundle that is sound by itself is no reason to believe it.
    assert!(bundle.run(&["bundle", "verify"]).status.success());
    refused(&bundle.unlocked(&["bundle", "accept", "--no-input"]), 2, "--yes");
    refused(&bundle.unlocked(&["-p", "hi"]), 5, "was sealed by");
    assert_eq!(bundle.json(&["bundle", "accept", "--yes"])["accepted"], true);
    assert_eq!(bundle.ok(&["-p", "hi"]), format!("{ANSWER}\n"));
    // The same key and a higher generation is a renewal; a lower one isn't.
    seal(4, 7);
    assert_eq!(bundle.ok(&["-p", "hi"]), format!("{ANSWER}\n"));
    seal(3, 7);
    refused(&bundle.unlocked(&["-p", "hi"]), 5, "generation 3 instead of 4");
    bundle.ok(&["bundle", "accept", "--yes"]);
    assert_eq!(bundle.json(&["session", "list"])[0]["messages"], 2, "nothing was lost meanwhile");
}
