//! `tiles key`: status, passphrase, recovery words, restore, export and a new database key, as a person and a script use them.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tilekit::identity::{Identity, KeyFile, KeyStore as _, Passphrase, WorkFactor};
use tilekit::time::Timestamp;

use crate::drive::{ANSWER, PASSPHRASE, TestBundle};
use crate::screen::Screen;

/// Another passphrase.
const CHOSEN: &str = "otter plum lantern gravel";

/// A bundle with recovery words: it, and the file with them.
fn with_words() -> (TestBundle, PathBuf) {
    let bundle = TestBundle::fresh();
    let words = bundle.home.with_file_name("words");
    bundle.ok(&["account", "create", "Ada", "--recovery-file", words.to_str().expect("it is text")]);
    (bundle, words)
}

/// A file of the test's own with one line.
fn file(bundle: &TestBundle, name: &str, line: &str) -> String {
    let path = bundle.home.with_file_name(name);
    fs::write(&path, format!("{line}\n")).expect("target can be written");
    path.display().to_string()
}

fn slots(bundle: &TestBundle) -> [Vec<u8>; 2] {
    ["key.a", "key.b"].map(|name| fs::read(bundle.root.join("data").join(name)).expect("it is there"))
}

#[track_caller]
fn check_fails(output: &Output, code: i32, parts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    parts.iter().for_each(|part| assert!(errors.contains(part), "no {part:?} in:\n{errors}"));
}

fn starts(bundle: &TestBundle, arguments: &[&str]) -> Screen {
    let mut command = bundle.command();
    command.args(arguments).env("TERM", "xterm-256color");
    Screen::start(&command)
}

#[test]
fn status_needs_no_passphrase_and_tells_each_flaw_in_words() {
    let fresh = TestBundle::fresh();
    let none = String::from_utf8(fresh.run(&["key", "status"]).stdout).expect("it is text");
    assert!(none.contains("none yet"), "{none}");
    let bundle = TestBundle::new();
    let shown = |parts: &[&str]| {
        let output = bundle.run(&["key", "status", "--no-input"]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("it is text");
        parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in:\n{text}"));
    };
    shown(&[
        "whole, generation 1",
        "argon2id with 268.4 MB, 3 passes, 4 lanes",
        "`tiles key recovery`",
        "sealed inside",
    ]);
    let status = bundle.json(&["key", "status"]);
    assert_eq!((&status["slots"][1]["state"], &status["generation"]), (&"whole".into(), &1.into()), "{status}");
    assert_eq!((&status["has_recovery_words"], &status["work"]["memory_kib"]), (&false.into(), &262_144.into()));
    assert_eq!(status["did"], bundle.json(&["account"])["did"], "who gives the passphrase sees who it is");
    let [old, _] = slots(&bundle);
    let chosen = file(&bundle, "chosen", CHOSEN);
    bundle.ok(&["key", "passphrase", "--new-passphrase-file", &chosen]);
    let at = bundle.root.join("data/key.b");
    fs::write(&at, &old).expect("it can be written");
    shown(&["is older than the other: a change was cut", "writes the other one anew"]);
    let mut torn = old.clone();
    torn[3000] ^= 1;
    fs::write(&at, &torn).expect("it can be written");
    shown(&["is damaged: its content isn't what was written"]);
    fs::remove_file(&at).expect("it is there");
    shown(&["is missing"]);
    fs::write(bundle.root.join("data/key.a"), &torn).expect("it can be written");
    shown(&["No copy is whole"]);
}

#[test]
fn unlocking_says_what_is_wrong_with_a_slot_in_words_and_mends_it() {
    let bundle = TestBundle::new();
    let at = bundle.root.join("data/key.b");
    let [whole, _] = slots(&bundle);
    for (content, words) in [(&whole[..2000], "is damaged: "), (b"", "is damaged: it has lost the form of a key file")]
    {
        fs::write(&at, content).expect("it can be written");
        let output = bundle.unlocked(&["account"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && errors.contains("`key.b`") && errors.contains(words), "{errors}");
        assert!(errors.contains("written anew from the good copy"), "{errors}");
        assert_eq!(slots(&bundle)[1], whole);
    }
    // A change that was cut after its first copy, and somebody who still uses the old passphrase.
    bundle.ok(&["key", "passphrase", "--new-passphrase-file", &file(&bundle, "chosen", CHOSEN)]);
    fs::write(&at, &whole).expect("it can be written");
    let output = bundle.unlocked(&["account"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("`key.a` is newer and opens with another passphrase"), "{errors}");
    assert!(errors.contains("tiles key passphrase"), "{errors}");
    assert_eq!(slots(&bundle)[1], whole, "nobody's keys are overwritten");
    let [a, b, newer] = ["wrong", "damaged", "newer"].map(|what| {
        let broken = match what {
            "wrong" => whole.clone(),
            "damaged" => whole[..4000].to_vec(),
            _ => {
                let text = String::from_utf8_lossy(&whole[..60]).into_owned();
                assert!(text.contains("tiles-slot 1 "), "{text}");
                newer_format(&whole)
            }
        };
        for name in ["key.a", "key.b"] {
            fs::write(bundle.root.join("data").join(name), &broken).expect("it can be written");
        }
        let passphrase = file(&bundle, "given", if what == "wrong" { "nothing like it" } else { PASSPHRASE });
        bundle.run(&["account", "--passphrase-file", &passphrase])
    });
    check_fails(&a, 3, &["error: the passphrase is wrong", "hint: "]);
    check_fails(&b, 5, &["is damaged: ", "hint: "]);
    check_fails(&newer, 1, &["has format 7, which this Tiles doesn't know", "the Tiles that wrote it"]);
}

/// The slot as a later Tiles writes it: another first line, and the digest that fits.
fn newer_format(whole: &[u8]) -> Vec<u8> {
    use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
    let start = b"age-encryption.org/v1\n-> tiles-slot ".len();
    let mut bytes = [&whole[..start], b"7", &whole[start + 1..]].concat();
    let line_end =
        |bytes: &[u8], from: usize| from + bytes[from..].iter().position(|b| *b == b'\n').expect("it is there");
    let digest = line_end(&bytes, start) + 1;
    let mac = digest + bytes[digest..].windows(5).position(|w| w == b"\n--- ").expect("it is there") + 5;
    let covered = [&bytes[..digest], &bytes[digest + 43..mac], &bytes[mac + 43..]].concat();
    let text = BASE64_STANDARD_NO_PAD.encode(tilekit::digest::Sha256Digest::of(&covered).0);
    bytes[digest..digest + 43].copy_from_slice(text.as_bytes());
    bytes
}

#[test]
fn a_script_changes_the_passphrase() {
    let bundle = TestBundle::new();
    let answered = bundle.ok(&["-p", "hi"]);
    assert_eq!(answered.trim(), ANSWER);
    let chosen = file(&bundle, "chosen", CHOSEN);
    let before = slots(&bundle);
    check_fails(&bundle.run(&["key", "passphrase", "--no-input"]), 3, &["--passphrase-file"]);
    check_fails(&bundle.unlocked(&["key", "passphrase", "--no-input"]), 2, &["--new-passphrase-file"]);
    let same = bundle.unlocked(&["key", "passphrase", "--new-passphrase-file", bundle.passphrase()]);
    check_fails(&same, 2, &["nothing was changed"]);
    assert_eq!(slots(&bundle), before);
    let changed = bundle.unlocked(&["key", "passphrase", "--no-input", "--new-passphrase-file", &chosen, "--json"]);
    let told = String::from_utf8_lossy(&changed.stderr).into_owned();
    assert!(changed.status.success() && told.contains("made before still open with the old passphrase"), "{told}");
    let json: serde_json::Value = serde_json::from_slice(&changed.stdout).expect("it is one JSON value");
    assert_eq!((&json["changed"], &json["generation"]), (&true.into(), &2.into()));
    check_fails(&bundle.unlocked(&["session", "list"]), 3, &["the passphrase is wrong"]);
    let listed = bundle.run(&["session", "list", "--passphrase-file", &chosen]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("hi"));
    // From an open descriptor.
    let path = bundle.root.join("bin/linux-x86_64/tiles");
    let script = "exec \"$1\" key passphrase --passphrase-file \"$2\" --new-passphrase-fd 3 3<\"$3\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).args([&path, Path::new(&chosen), &bundle.passphrase]);
    let output = shell.env_clear().env("HOME", &bundle.home).stdin(Stdio::null()).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(bundle.ok(&["session", "list"]).contains("hi"));
}

#[test]
fn a_person_changes_the_passphrase_and_ctrl_c_changes_nothing() {
    let bundle = TestBundle::new();
    let before = slots(&bundle);
    let questions = ["Passphrase: ", "New passphrase: ", "The same again: "];
    for stop in 0..questions.len() {
        let mut screen = starts(&bundle, &["key", "passphrase"]);
        for (at, question) in questions.iter().enumerate() {
            screen.wait_until(question, |screen| screen.text().ends_with(question.trim_end()));
            if at == stop {
                screen.keys("\u{3}");
                break;
            }
            screen.keys(&format!("{}\r", if at == 0 { PASSPHRASE } else { CHOSEN }));
        }
        assert_eq!(screen.end(), 130);
        assert_eq!(slots(&bundle), before, "Ctrl-C at {:?}", questions[stop]);
    }
    let mut screen = starts(&bundle, &["key", "passphrase"]);
    for (question, answer) in [
        ("Passphrase:", PASSPHRASE),
        ("New passphrase:", "password1"),
        ("The same again:", "password2"),
        ("New passphrase:", CHOSEN),
        ("The same again:", CHOSEN),
    ] {
        screen.wait_until(question, |screen| screen.text().ends_with(question));
        screen.keys(&format!("{answer}\r"));
    }
    assert_eq!(screen.end(), 0);
    let text = screen.text();
    for part in ["For example, four words drawn by lot: ", "strength 0 of 4: ", "strength 4 of 4", "not the same"] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(!String::from_utf8_lossy(&screen.raw).contains(CHOSEN), "it was shown");
    check_fails(&bundle.unlocked(&["account"]), 3, &["the passphrase is wrong"]);
}

#[test]
fn recovery_words_are_made_shown_asked_back_and_replace_the_former() {
    let (bundle, former) = with_words();
    let before = slots(&bundle);
    let mut screen = starts(&bundle, &["key", "recovery", "--passphrase-file", bundle.passphrase()]);
    screen.wait_until("a question", |screen| screen.text().contains("\nWord "));
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 130);
    assert_eq!(slots(&bundle), before, "who didn't write them down keeps the former words");
    let mut screen = starts(&bundle, &["key", "recovery", "--passphrase-file", bundle.passphrase()]);
    let words = screen.answer_words();
    assert_eq!(screen.end(), 0);
    assert!(screen.text().contains("The former words don't any more."), "{}", screen.text());
    let chosen = file(&bundle, "chosen", CHOSEN);
    let restore =
        |words: &str| bundle.run(&["key", "restore", "--recovery-file", words, "--new-passphrase-file", &chosen]);
    check_fails(
        &restore(former.to_str().expect("it is text")),
        3,
        &["these aren't the recovery words of this key file"],
    );
    let output = restore(&file(&bundle, "new", &words.join(" ")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // For a script, to standard output.
    let arguments = ["key", "recovery", "--passphrase-file", &chosen, "--recovery-file", "-", "--json"];
    let made: serde_json::Value = serde_json::from_slice(&bundle.run(&arguments).stdout).expect("it is one JSON value");
    assert_eq!(made["recovery_words"].as_array().map(Vec::len), Some(24), "{made}");
    check_fails(&bundle.run(&["key", "recovery", "--passphrase-file", &chosen]), 2, &["--recovery-file"]);
}

#[test]
fn words_restore_and_each_mistake_has_its_own_message() {
    let (bundle, words) = with_words();
    let phrase = fs::read_to_string(&words).expect("it was written");
    let listed: Vec<&str> = phrase.split_whitespace().collect();
    let chosen = file(&bundle, "chosen", CHOSEN);
    let restore = |phrase: &str| {
        let words = file(&bundle, "typed", phrase);
        bundle.run(&["key", "restore", "--recovery-file", &words, "--new-passphrase-file", &chosen])
    };
    let before = slots(&bundle);
    let with = |at: usize, word: &str| {
        let mut changed = listed.clone();
        changed[at] = word;
        changed.join(" ")
    };
    check_fails(&restore(&with(6, "trumpte")), 3, &["word 7 isn't one of the recovery words", "`trumpet`"]);
    check_fails(&restore(&listed[..23].join(" ")), 3, &["the recovery words are 24, here are 23"]);
    // One of 256 wrong words passes the checksum.
    let wrong =
        ["zoo", "art", "vote"].into_iter().filter(|word| *word != listed[2]).map(|word| restore(&with(2, word)));
    let errors: Vec<_> = wrong.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).collect();
    assert!(errors.iter().any(|error| error.contains("one is wrong or two have changed places")), "{errors:?}");
    let other = tilekit::identity::RecoveryWords::generate().expect("random bytes are there").words().join(" ");
    check_fails(&restore(&other), 3, &["these aren't the recovery words of this key file"]);
    assert_eq!(slots(&bundle), before);
    let damaged =
        |name: &str| fs::write(bundle.root.join("data").join(name), &before[0][..3000]).expect("it can be written");
    damaged("key.a");
    damaged("key.b");
    check_fails(&restore(&phrase), 5, &["is damaged: ", "backup"]);
    // One good copy is enough.
    fs::write(bundle.root.join("data/key.b"), &before[1]).expect("it can be written");
    let output = restore(&phrase);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(bundle.run(&["account", "--passphrase-file", &chosen]).status.success());
    check_fails(&bundle.unlocked(&["account"]), 3, &["the passphrase is wrong"]);
    let bare = TestBundle::new();
    let words = words.to_str().expect("it is text");
    let none = bare.run(&["key", "restore", "--recovery-file", words, "--new-passphrase-file", &chosen]);
    check_fails(&none, 3, &["this key file has no recovery words"]);
    check_fails(&bare.run(&["key", "restore", "--no-input"]), 2, &["--recovery-file"]);
}

#[test]
fn words_are_typed_checked_at_once_and_taken_off_the_screen() {
    let (bundle, words) = with_words();
    let phrase = fs::read_to_string(&words).expect("it was written");
    let listed: Vec<&str> = phrase.split_whitespace().collect();
    let mut screen = starts(&bundle, &["key", "restore"]);
    screen.wait("Word 1 of 24:");
    screen.keys(&format!("{} {}\r", listed[0], listed[1]));
    screen.wait("Word 3 of 24:");
    screen.keys("xqzzzz\r");
    screen.wait("word 3 isn't one of the recovery words");
    screen.wait_until("the same question", |screen| screen.text().ends_with("Word 3 of 24:"));
    let wrong = if listed[2] == "zoo" { "art" } else { "zoo" };
    screen.keys(&format!("{wrong}\r"));
    screen.wait("Word 4 of 24:");
    screen.keys("\r");
    screen.wait_until("the word before", |screen| screen.text().ends_with("Word 3 of 24:"));
    screen.keys(&format!("{}\r", listed[2..23].join(" ")));
    screen.wait("Word 24 of 24:");
    screen.keys(&format!("{}\r", listed[23]));
    screen.wait("These are the right words.");
    for question in ["New passphrase:", "The same again:"] {
        screen.wait_until(question, |screen| screen.text().ends_with(question));
        screen.keys(&format!("{CHOSEN}\r"));
    }
    assert_eq!(screen.end(), 0);
    let text = screen.text();
    let left = listed.iter().filter(|word| text.lines().any(|l| l.contains(" of 24:") && l.contains(*word))).count();
    assert_eq!(left, 0, "words stay on the screen:\n{text}");
    assert!(bundle.run(&["account", "--passphrase-file", &file(&bundle, "chosen", CHOSEN)]).status.success());
}

/// Runs a program of the host where there is one.
#[expect(clippy::print_stderr, reason = "a test says what it can't do here")]
fn stock(name: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(name).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("`{name}` isn't installed here: only its library stands in for it");
            None
        }
    }
}

#[test]
fn stock_age_opens_what_is_exported() {
    let (bundle, words) = with_words();
    let at = |name: &str| bundle.home.with_file_name(name).display().to_string();
    let (slot, sealed, identity) = (at("slot.age"), at("scrypt.age"), at("recovery.txt"));
    bundle.ok(&["key", "export", &slot]);
    bundle.ok(&["key", "export", "--age-scrypt", &sealed]);
    let words = words.to_str().expect("it is text");
    bundle.ok(&["key", "export", "--recovery-identity", &identity, "--recovery-file", words]);
    let copy = fs::read(&slot).expect("it was written");
    assert_eq!(copy, slots(&bundle)[0]);
    check_fails(&bundle.unlocked(&["key", "export", &slot]), 1, &["exists"]);
    check_fails(&bundle.unlocked(&["key", "export"]), 2, &[]);
    let seed = {
        let key: age::x25519::Identity =
            fs::read_to_string(&identity).expect("it was written").trim().parse().expect("it is an age key");
        let text = age::decrypt(&key, &copy).expect("the recovery key opens the slot");
        let text = String::from_utf8(text).expect("it is text");
        let passphrase = age::scrypt::Identity::new(PASSPHRASE.to_owned().into());
        let scrypt =
            age::decrypt(&passphrase, &fs::read(&sealed).expect("it was written")).expect("the passphrase opens it");
        assert_eq!(String::from_utf8(scrypt).expect("it is text").trim_end(), text.trim_end());
        text.lines().find(|line| line.starts_with("identity_seed")).expect("it is there").to_owned()
    };
    // The programs themselves, where they are.
    for program in ["age", "rage"] {
        let Some(output) = stock(program, &["-d", "-i", &identity, &slot]) else { continue };
        assert!(String::from_utf8_lossy(&output.stdout).contains(&seed), "{program}: {output:?}");
        let mut command = Command::new(program);
        command.args(["-d", &sealed]).env("TERM", "dumb");
        let mut screen = Screen::start(&command);
        screen.wait("assphrase");
        screen.keys(&format!("{PASSPHRASE}\r"));
        screen.wait(&seed[..40]);
        screen.end();
    }
}

#[test]
fn the_raw_database_key_is_shown_only_on_purpose() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "What is kept?"]);
    check_fails(&bundle.unlocked(&["key", "export", "--raw-database-key"]), 2, &["--yes"]);
    let mut screen = starts(&bundle, &["key", "export", "--raw-database-key"]);
    screen.wait("[y/N]");
    screen.keys("\r");
    assert_eq!(screen.end(), 1);
    let shown = bundle.json(&["key", "export", "--raw-database-key", "--yes"]);
    let key = shown["database_key"].as_str().expect("it is text").to_owned();
    assert!(key.len() == 64 && bundle.ok(&["key", "export", "--raw-database-key", "--yes"]).trim() == key);
    let database = shown["database"].as_str().expect("it is text");
    // SQLCipher 4's own shell, where it is; Debian 12 has version 3, which can't read what 4 wrote.
    let script = format!("PRAGMA key = \"x'{key}'\"; SELECT count(*) || ' of ' || max(content) FROM message;");
    let Some(version) = stock("sqlcipher", &[":memory:", "PRAGMA cipher_version;"]) else { return };
    if !String::from_utf8_lossy(&version.stdout).trim().starts_with('4') {
        eprintln!("`sqlcipher` here is of version 3: it isn't asked");
        return;
    }
    let output = stock("sqlcipher", &[database, &script]).expect("it was there");
    assert!(String::from_utf8_lossy(&output.stdout).contains("2 of What is kept?"), "{output:?}");
}

#[test]
fn a_new_database_key_keeps_everything_readable() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "What is kept?"]);
    let model = bundle.home.with_file_name("second");
    crate::scripted::write(&model, &["Another", " model."], false);
    bundle.ok(&["model", "import", model.to_str().expect("it is text"), "--name", "second"]);
    let key = || bundle.ok(&["key", "export", "--raw-database-key", "--yes"]);
    let (before, did) = (key(), bundle.json(&["account"])["did"].clone());
    let planned = bundle.unlocked(&["key", "rotate-db", "--dry-run"]);
    assert!(planned.status.success() && String::from_utf8_lossy(&planned.stdout).contains("would draw a new key"));
    assert_eq!(key(), before);
    let old_keys = slots(&bundle);
    // Everything but the key file, as the power going would leave it: also the mark that tells which database belongs here.
    let data = bundle.root.join("data");
    let listed = [data.clone(), data.join("db")].map(|folder| fs::read_dir(folder).expect("it is there"));
    let files = listed.into_iter().flatten().map(|entry| entry.expect("it is").path());
    let files = files.filter(|path| path.is_file() && !path.ends_with("key.a") && !path.ends_with("key.b"));
    let before_rotation: Vec<_> = files.map(|path| (path.clone(), fs::read(path).expect("it is there"))).collect();
    bundle.ok(&["key", "rotate-db"]);
    assert_ne!(key(), before);
    assert_eq!(bundle.json(&["account"])["did"], did);
    assert!(bundle.ok(&["session", "search", "kept"]).contains("kept"));
    assert!(bundle.ok(&["model", "list"]).contains("second"), "the list of models stays authentic");
    assert_eq!(bundle.ok(&["run", "second", "-p", "hi"]).trim(), "Another model.");
    // Each step's end, as a cut leaves it: the new keys in one slot or both, and the database as it was.
    let [new_a, new_b] = slots(&bundle);
    for (a, b) in [(&old_keys[0], &new_b), (&new_a, &old_keys[1]), (&new_a, &new_b)] {
        fs::write(bundle.root.join("data/key.a"), a).expect("it can be written");
        fs::write(bundle.root.join("data/key.b"), b).expect("it can be written");
        for (path, content) in &before_rotation {
            fs::write(path, content).expect("it can be written");
        }
        let output = bundle.unlocked(&["session", "search", "kept"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.contains("it is finished now"), "{told}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("kept"));
        let again = bundle.unlocked(&["session", "list"]);
        assert!(again.status.success() && !String::from_utf8_lossy(&again.stderr).contains("finished"));
    }
}

/// The folder of the child that changes passphrases; without it, the test that is the child does nothing.
const CHILD_FOLDER: &str = "TILES_TEST_KEY_FOLDER";

/// The passphrase after this many changes.
fn nth_passphrase(changes: usize) -> Passphrase {
    Passphrase::new(format!("passphrase {}", changes % 2)).expect("it isn't empty")
}

/// Changes the passphrase over and over, and says so after each time: what the next test starts and kills.
#[test]
fn child_that_changes_passphrases() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let key_file = KeyFile::with_work_factor(Path::new(&folder), WorkFactor::MIN);
    let begin = usize::from(key_file.unlock(&nth_passphrase(0)).is_err());
    for change in begin..100_000 {
        key_file.change_passphrase(&nth_passphrase(change), &nth_passphrase(change + 1)).expect("it is right");
        let mut out = std::io::stdout().lock();
        writeln!(out, "changed {}", change + 1).and_then(|()| out.flush()).expect("the parent reads it");
    }
}

/// kill -9 at any moment, over and over the same key file: it opens, and with the acknowledged passphrase or the next.
#[test]
fn killed_in_the_middle_of_a_change_the_key_opens() {
    const ROUNDS: usize = 60;
    let bundle = TestBundle::fresh();
    let folder = bundle.home.with_file_name("keys");
    fs::create_dir_all(&folder).expect("target can be written");
    let key_file = KeyFile::with_work_factor(&folder, WorkFactor::MIN);
    let identity = Identity::generate(Timestamp::from_ms(0)).expect("random bytes are there");
    key_file.create(&identity, &nth_passphrase(0), None).expect("the folder is empty");
    let mut differing = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "keys::child_that_changes_passphrases", "--nocapture"])
            .env(CHILD_FOLDER, &folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be run");
        let mut lines = std::io::BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut next =
            || lines.by_ref().map_while(Result::ok).find_map(|line| line.split_once("changed ")?.1.parse().ok());
        let first: usize = next().expect("the child changes the passphrase");
        // Somewhere within the change that follows: 13 is no part of what a change takes, so the moments spread.
        let end = std::time::Instant::now() + std::time::Duration::from_micros(13_000 * round as u64 % 90_000);
        while std::time::Instant::now() < end {
            std::hint::spin_loop();
        }
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        let acknowledged = std::iter::from_fn(next).last().unwrap_or(first);
        let opens = |changes: usize| key_file.open(&nth_passphrase(changes)).ok();
        let unlocked = opens(acknowledged).or_else(|| opens(acknowledged + 1));
        let unlocked = unlocked.unwrap_or_else(|| panic!("round {round}: no passphrase opens the key file"));
        assert_eq!(unlocked.identity.did(), identity.did());
        differing += usize::from(unlocked.flaw.is_some());
    }
    eprintln!("{differing} of {ROUNDS} kills left the two slots different");
}
