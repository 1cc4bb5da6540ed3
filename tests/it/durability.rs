//! The person's data lasts: backups at exit, recovery of what is damaged or lost, and copies that are told apart.

use std::fs;
use std::path::PathBuf;

use crate::commands::refused;
use crate::drive::TestBundle;

const PAGE: usize = 4096;

fn database(bundle: &TestBundle) -> PathBuf {
    bundle.root.join("data/db/tiles.db")
}

fn chat(bundle: &TestBundle, question: &str) {
    bundle.ok(&["run", "-p", question]);
}

fn sessions(bundle: &TestBundle) -> usize {
    bundle.json(&["session", "list"]).as_array().expect("a list").len()
}

fn names(bundle: &TestBundle, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(bundle.root.join(folder)) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Damages a page of the database.
fn damage(bundle: &TestBundle, page: usize) {
    let mut bytes = fs::read(database(bundle)).expect("it is there");
    bytes[page * PAGE + 1000] ^= 0x40;
    fs::write(database(bundle), bytes).expect("it can be written");
}

/// Which page holds the roots of nothing but messages is SQLite's affair; the last one isn't the first.
fn last_page(bundle: &TestBundle) -> usize {
    fs::metadata(database(bundle)).expect("it is there").len() as usize / PAGE - 1
}

#[test]
fn a_backup_is_made_at_the_first_exit_of_a_day_and_by_hand() {
    let bundle = TestBundle::new();
    bundle.ok(&["session", "list"]);
    assert_eq!(names(&bundle, "data/backup"), Vec::<String>::new(), "nothing was said");
    chat(&bundle, "one");
    chat(&bundle, "two");
    assert_eq!(names(&bundle, "data/backup"), ["tiles-000001.db"]);
    bundle.ok(&["data", "backup"]);
    bundle.ok(&["data", "backup"]);
    assert_eq!(names(&bundle, "data/backup"), ["tiles-000002.db", "tiles-000003.db"], "two are kept");
    let shown = bundle.json(&["data"]);
    assert_eq!(shown["backups"].as_array().expect("a list").len(), 2);
    assert!(shown["parts"][0]["bytes"].as_u64().expect("a number") > 4096);
    assert_eq!(bundle.json(&["data", "backup", "--replace"])["removed"], 1);
    assert_eq!(names(&bundle, "data/backup"), ["tiles-000004.db"]);

    let file = bundle.home.with_file_name("mine.db");
    let path = file.to_str().expect("target's path is text");
    bundle.ok(&["data", "backup", path]);
    refused(&bundle.unlocked(&["data", "backup", path]), 1, "exists already");
    refused(&bundle.unlocked(&["data", "backup", "-"]), 2, "standard output");
    refused(&bundle.unlocked(&["data", "set-path", "/elsewhere"]), 2, "belongs to the bundle's folder");
    let bytes = fs::read(&file).expect("it was written");
    assert!(!bytes.starts_with(b"SQLite format 3"), "it is encrypted");
    // Going back to it: asked for, and nothing is thrown away.
    chat(&bundle, "three");
    refused(&bundle.unlocked(&["data", "recover", "--from", path]), 2, "--yes");
    let recovered = bundle.json(&["data", "recover", "--from", path, "--yes"]);
    assert_eq!((&recovered["source"], &recovered["sessions"]), (&"backup".into(), &2.into()));
    assert_eq!(sessions(&bundle), 2);
    assert!(names(&bundle, "data/db").contains(&"tiles-aside-1.db".into()));
}

#[test]
fn a_damaged_database_is_recovered_and_kept_aside() {
    let bundle = TestBundle::new();
    assert_eq!(bundle.json(&["data", "recover"])["source"], "sound");
    (0..4).for_each(|n| chat(&bundle, &format!("question {n}")));
    damage(&bundle, last_page(&bundle));
    let before = fs::read(database(&bundle)).expect("it is there");
    let plan = bundle.json(&["data", "recover", "--dry-run"]);
    assert_eq!(fs::read(database(&bundle)).expect("it is there"), before, "a dry run changes nothing");
    assert_eq!(plan["dry_run"], true);
    let done = bundle.json(&["doctor", "--recover"]);
    assert_eq!((&done["sessions"], &done["messages"]), (&plan["sessions"], &plan["messages"]));
    let aside = PathBuf::from(done["kept_aside"].as_str().expect("a path"));
    assert_eq!(fs::read(aside).expect("it is kept"), before);
    assert_eq!(sessions(&bundle) as u64, done["sessions"].as_u64().expect("a number"));
    chat(&bundle, "it goes on");

    // The first page leads to all others: only a backup helps, and without one the error stays what it is.
    bundle.ok(&["data", "backup"]);
    damage(&bundle, 0);
    let error = bundle.unlocked(&["session", "list"]);
    refused(&error, 5, "tiles data recover");
    let done = bundle.json(&["data", "recover"]);
    assert_eq!(done["source"], "backup");
    chat(&bundle, "again");
    fs::remove_dir_all(bundle.root.join("data/backup")).expect("it is there");
    damage(&bundle, 0);
    refused(&bundle.unlocked(&["data", "recover"]), 5, "begin anew with `tiles data accept`");
}

#[test]
fn a_lost_database_is_never_silently_begun_anew() {
    let bundle = TestBundle::new();
    chat(&bundle, "one");
    for lost in ["gone", "empty"] {
        match lost {
            "gone" => fs::remove_file(database(&bundle)).expect("it is there"),
            _ => fs::write(database(&bundle), b"").expect("it can be written"),
        }
        refused(&bundle.unlocked(&["run", "-p", "hello"]), 5, "is gone: it was last changed at");
        assert_eq!(bundle.json(&["data", "recover"])["source"], "backup", "{lost}");
        assert_eq!(sessions(&bundle), 1);
    }
    fs::remove_file(database(&bundle)).expect("it is there");
    refused(&bundle.unlocked(&["data", "accept"]), 2, "--yes");
    bundle.ok(&["data", "accept", "--yes"]);
    assert_eq!(sessions(&bundle), 0);
}

#[test]
fn copies_that_were_both_used_are_told_apart_when_they_meet() {
    // Both are copies of one drive.
    let (first, second) = (TestBundle::new(), TestBundle::new());
    (0..2).for_each(|n| chat(&first, &format!("first {n}")));
    (0..3).for_each(|n| chat(&second, &format!("second {n}")));
    assert_eq!((sessions(&first), sessions(&second)), (2, 3), "each alone is accused of nothing");
    fs::copy(database(&second), database(&first)).expect("it can be copied");
    let refusal = first.unlocked(&["run", "-p", "hello"]);
    refused(&refusal, 5, "both copies were used since they parted");
    let told = String::from_utf8_lossy(&refusal.stderr).into_owned();
    assert!(told.contains("here now was used 3 times") && told.contains("was here twice"), "{told}");
    assert!(told.contains("tiles data accept") && told.contains("session import"), "{told}");
    first.ok(&["data", "accept", "--yes"]);
    assert_eq!(sessions(&first), 3);
    chat(&first, "it goes on");

    // An older backup put back by hand is told, too.
    let backup = first.root.join("data/backup/tiles-000001.db");
    fs::copy(backup, database(&first)).expect("it can be copied");
    refused(&first.unlocked(&["session", "list"]), 5, "an older database was put in place");
}

#[test]
fn a_killed_program_is_told_of_and_its_database_checked() {
    let bundle = TestBundle::new();
    chat(&bundle, "one");
    let holder = "host = \"kitchen\"\npid = 1\nboot_id = \"before\"\nsince_ms = 1795688340000\n";
    fs::write(bundle.root.join("data/lock"), format!("{holder:\n<512}")).expect("it can be written");
    let output = bundle.unlocked(&["session", "list"]);
    assert!(output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("was not closed properly"), "{told}");
    // It says that everything was checked, so it was: damage without anything left to take in is found.
    damage(&bundle, last_page(&bundle));
    fs::write(bundle.root.join("data/lock"), format!("{holder:\n<512}")).expect("it can be written");
    refused(&bundle.unlocked(&["account"]), 5, "tiles data recover");
    bundle.ok(&["data", "recover"]);
    let again = bundle.unlocked(&["session", "list"]);
    assert!(!String::from_utf8_lossy(&again.stderr).contains("properly"));
}

/// The key file of a bundle.
fn keys(bundle: &TestBundle) -> [Vec<u8>; 2] {
    ["key.a", "key.b"].map(|name| fs::read(bundle.root.join("data").join(name)).expect("it is there"))
}

fn put_keys(bundle: &TestBundle, keys: &[Vec<u8>; 2]) {
    for (name, key) in ["key.a", "key.b"].into_iter().zip(keys) {
        fs::write(bundle.root.join("data").join(name), key).expect("it can be written");
    }
}

/// Changes the passphrase to that of a new file, whose path is given.
fn change_passphrase(bundle: &TestBundle, from: &str, name: &str) -> String {
    let path = bundle.home.with_file_name(name);
    fs::write(&path, format!("another horse, another {name}\n")).expect("target can be written");
    let path = path.display().to_string();
    let output = bundle.run(&["key", "passphrase", "--passphrase-file", from, "--new-passphrase-file", &path]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

#[test]
fn an_older_key_file_and_one_of_another_copy_are_told_apart() {
    let (first, second) = (TestBundle::new(), TestBundle::new());
    chat(&first, "one");
    let older = keys(&first);
    let battery = change_passphrase(&first, first.passphrase(), "battery");
    let list = |passphrase: &str| first.run(&["session", "list", "--passphrase-file", passphrase]);
    let said = first.run(&["-p", "two", "--passphrase-file", &battery]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let newer = keys(&first);

    // An older one was put back: the old passphrase opens it, and that is no reason to go on silently.
    put_keys(&first, &older);
    refused(&list(&battery), 3, "passphrase");
    let refusal = list(first.passphrase());
    refused(&refusal, 5, "an older key file was put in place (change 1; the database was last opened with change 2)");
    let told = String::from_utf8_lossy(&refusal.stderr).into_owned();
    assert!(told.contains("tiles data accept") && told.contains("put the newer `data/key.a`"), "{told}");
    put_keys(&first, &newer);
    assert!(list(&battery).status.success(), "the newer one is back");
    put_keys(&first, &older);
    first.ok(&["data", "accept", "--yes"]);
    assert!(list(first.passphrase()).status.success(), "it was gone on with");
    let staple = change_passphrase(&first, first.passphrase(), "staple");
    let said = first.run(&["-p", "three", "--passphrase-file", &staple]);
    assert!(said.status.success(), "and its passphrase was set again");

    // The other copy's, on which it was changed as often.
    let lemon = change_passphrase(&second, second.passphrase(), "lemon");
    put_keys(&first, &keys(&second));
    refused(&list(&lemon), 5, "the key file comes from another copy of what is here");
    let again = change_passphrase(&first, &lemon, "again");
    assert!(list(&again).status.success(), "setting it again is what the hint says");
}
