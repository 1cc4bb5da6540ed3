//! `tiles doctor` proves what it says: it looks at what is there, and each kind of trouble has its line.

use std::fs;

use serde_json::Value;

use crate::commands::refused;
use crate::drive::TestBundle;

/// The finding about `what`.
#[track_caller]
fn finding<'a>(shown: &'a Value, what: &str) -> &'a Value {
    let all = shown["findings"].as_array().expect("a list");
    all.iter().find(|finding| finding["what"] == what).unwrap_or_else(|| panic!("nothing about {what}: {shown:#}"))
}

#[track_caller]
fn check(shown: &Value, what: &str, level: &str, text: &str) {
    let found = finding(shown, what);
    assert_eq!(found["level"], level, "{found}");
    assert!(found["text"].as_str().is_some_and(|said| said.contains(text)), "{found}");
    assert_eq!(found["advice"].is_null(), level == "ok", "{found}");
}

#[test]
fn each_line_is_looked_at() {
    let bundle = TestBundle::new();
    let shown = bundle.json(&["doctor"]);
    for (what, text) in [
        ("bundle", "because of the folder around the program"),
        ("seal", "self-built"),
        ("key", "both copies whole"),
        ("engine", "cpu"),
        ("crashes", "core dumps are off"),
        ("snooping", "can't read"),
        ("lock", "closed properly"),
        ("leftovers", "none"),
    ] {
        check(&shown, what, "ok", text);
    }
    for what in ["drive", "space", "speed", "swap", "locking", "memory", "backups"] {
        finding(&shown, what);
    }
    let printed = bundle.ok(&["doctor"]);
    assert!(
        printed.lines().all(|line| line.starts_with("ok  ") || line.starts_with("warn") || line.starts_with("  ")),
        "{printed}"
    );
}

#[test]
fn trouble_is_named_with_what_to_do() {
    let bundle = TestBundle::new();
    let data = bundle.root.join("data");
    let holder = "host = \"kitchen\"\npid = 1\nboot_id = \"before\"\nsince_ms = 1795688340000\n";
    fs::write(data.join("lock"), format!("{holder:\n<512}")).expect("it can be written");
    let before = fs::read(data.join("lock")).expect("it is there");
    fs::write(data.join("key.b"), b"rotten").expect("it can be written");
    fs::create_dir_all(bundle.root.join("models/pull+mine.partial")).expect("it can be made");
    fs::write(bundle.root.join("models/pull+mine.partial/x.partial"), b"12345").expect("it can be written");
    fs::write(data.join("db/tiles.db.recovered.partial"), b"123").expect("it can be written");
    let shown = bundle.json(&["doctor"]);
    check(&shown, "lock", "warn", "kitchen");
    check(&shown, "key", "warn", "1 of 2 copies");
    check(&shown, "leftovers", "warn", "an unfinished pull of mine");
    assert_eq!(fs::read(data.join("lock")).expect("it is there"), before, "looking changes nothing");

    assert_eq!(bundle.json(&["doctor", "--clean", "--dry-run"])["bytes"], 8);
    refused(&bundle.run(&["doctor", "--clean"]), 2, "--yes");
    let removed = bundle.json(&["doctor", "--clean", "--yes"]);
    assert_eq!(removed["removed"].as_array().expect("a list").len(), 2);
    assert!(!bundle.root.join("models/pull+mine.partial").exists());
    let shown = bundle.json(&["doctor"]);
    check(&shown, "leftovers", "ok", "none");
    // Tidying up is no check of the database, and neither is a passphrase that doesn't open it.
    check(&shown, "lock", "warn", "kitchen");
    let wrong = bundle.home.with_file_name("wrong");
    fs::write(&wrong, "sesame-opens-nothing\n").expect("it can be written");
    refused(&bundle.run(&["account", "--passphrase-file", &wrong.display().to_string()]), 3, "passphrase");
    check(&bundle.json(&["doctor"]), "lock", "warn", "kitchen");
    bundle.ok(&["account"]);
    check(&bundle.json(&["doctor"]), "lock", "ok", "closed properly");

    // Something bad gives an exit code of its own.
    fs::write(data.join("key.b"), b"rotten").expect("it can be written");
    fs::write(data.join("key.a"), b"rotten").expect("it can be written");
    let output = bundle.run(&["doctor"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("bad   key"));
}

#[test]
fn a_child_without_a_network_answers_and_leaves_no_trace() {
    let bundle = TestBundle::new();
    let temporary = bundle.home.with_file_name("temporary");
    fs::create_dir_all(&temporary).expect("target can be written");
    let run = |flag: &str| {
        let mut command = bundle.command();
        command.args(["doctor", flag, "--json"]).env("TMPDIR", &temporary);
        let output = command.output().expect("the program can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        shown
    };
    let shown = run("--offline");
    let offline = finding(&shown, "offline");
    let said = offline["text"].as_str().expect("a text");
    // Where this host allows no namespace the doctor must say so, and not claim it.
    match offline["level"].as_str() {
        Some("ok") => assert!(said.starts_with("proved: ") && said.contains("net:["), "{said}"),
        level => assert!(level == Some("warn") && said.starts_with("not proved: "), "{said}"),
    }
    let shown = run("--traces");
    assert_eq!(shown["traces"]["answered"], true);
    let changed = shown["traces"]["changed"].as_array().expect("a list");
    let ours = |path: &&Value| {
        path.as_str().is_some_and(|path| {
            [&bundle.home, &temporary].iter().any(|folder| path.starts_with(&*folder.to_string_lossy()))
        })
    };
    assert_eq!(changed.iter().find(ours), None, "nothing in the folders that are only this program's");
    assert!(shown["traces"]["machine_remembers"].as_array().is_some_and(|lines| lines.len() > 5));
}
