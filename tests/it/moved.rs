//! A drive that is plugged in elsewhere: any path, any working folder, with or without a home, renamed, copied, offline.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::commands::beside;
use crate::drive::{ANSWER, TestBundle};

/// `ünï` in one character each, and in letters with combining marks, as a Mac's disk may have it.
const NFC: &str = "My Stick \u{fc}n\u{ef}/T 1";
const NFD: &str = "My Stick u\u{308}ni\u{308}/T 1";

/// Runs a command, which must answer as the scripted model does.
#[track_caller]
fn answers(command: &mut Command, bundle: &TestBundle) {
    let output = command.args(["-p", "hi", "--passphrase-file", bundle.passphrase()]).output();
    let output = output.expect("it can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{ANSWER}\n"), "{:?} {errors}", output.status);
}

fn messages(bundle: &TestBundle) -> u64 {
    let sessions = bundle.json(&["session", "list"]);
    sessions.as_array().expect("a list").iter().filter_map(|session| session["messages"].as_u64()).sum()
}

#[test]
fn any_path_and_any_working_folder_will_do() {
    for path in [NFC, NFD] {
        let bundle = TestBundle::at(path);
        for folder in [Path::new("/"), &bundle.root, &bundle.root.join("data"), &bundle.home] {
            answers(bundle.command().current_dir(folder), &bundle);
        }
        // From its own folder by a relative path, and by the launcher.
        let mut launcher = Command::new("sh");
        launcher.env_clear().arg("tiles").current_dir(&bundle.root);
        answers(&mut launcher, &bundle);
        assert_eq!(messages(&bundle), 10);
        let root = bundle.json(&["doctor"])["bundle"]["root"].as_str().expect("a path").to_owned();
        assert_eq!(root, bundle.root.to_str().expect("it is text"), "the path keeps its form");
    }
}

#[test]
fn no_home_and_a_read_only_home_will_do() {
    let bundle = TestBundle::at(NFC);
    answers(bundle.command().env_remove("HOME"), &bundle);
    answers(bundle.command().env("HOME", "/nonexistent"), &bundle);
    answers(bundle.command().env("HOME", ""), &bundle);
    fs::set_permissions(&bundle.home, fs::Permissions::from_mode(0o555)).expect("it is ours");
    answers(&mut bundle.command(), &bundle);
    fs::set_permissions(&bundle.home, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[test]
fn no_network_will_do() {
    let bundle = TestBundle::new();
    let works = Command::new("unshare").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("not checked here: a run without a network needs `unshare -n`, which needs root");
        return;
    }
    let mut offline = Command::new("unshare");
    offline.env_clear().arg("-n").arg(bundle.root.join("bin/linux-x86_64/tiles"));
    answers(&mut offline, &bundle);
}

#[test]
fn a_renamed_and_a_copied_drive_keep_everything() {
    let mut bundle = TestBundle::at("First");
    answers(&mut bundle.command(), &bundle);
    for name in ["Second drive", NFD] {
        let to = beside(&bundle, name);
        fs::create_dir_all(to.parent().expect("it has one")).expect("target can be written");
        fs::rename(&bundle.root, &to).expect("target can be written");
        bundle.root = to;
        answers(&mut bundle.command(), &bundle);
    }
    assert_eq!(messages(&bundle), 6);
    let copy = beside(&bundle, "Copy");
    let copied = Command::new("cp").arg("-r").args([&bundle.root, &copy]).status().expect("cp is there");
    assert!(copied.success());
    let original = std::mem::replace(&mut bundle.root, copy);
    answers(&mut bundle.command(), &bundle);
    assert_eq!(messages(&bundle), 8, "the copy has it all and goes on");
    bundle.root = original;
    assert_eq!(messages(&bundle), 6, "the original doesn't know of it");
}

#[test]
fn the_default_model_answers_after_a_move() {
    let mut bundle = TestBundle::with_smollm2("First");
    for (name, question) in [(NFC, "What is the capital of France?"), ("Elsewhere", "")] {
        let to = beside(&bundle, name);
        fs::create_dir_all(to.parent().expect("it has one")).expect("target can be written");
        fs::rename(&bundle.root, &to).expect("target can be written");
        bundle.root = to;
        if !question.is_empty() {
            let answer = bundle.json(&["run", "smollm2", "-p", question, "--set", "temperature=0"]);
            assert!(answer["text"].as_str().expect("a text").contains("Paris"), "{answer}");
            assert_eq!(answer["finish_reason"], "stop", "{answer}");
        }
    }
    assert_eq!(messages(&bundle), 2);
    let found = bundle.json(&["session", "search", "Paris"]);
    let id = found[0]["session"].as_str().expect("an id").to_owned();
    assert!(bundle.ok(&["session", "show", &id]).contains("What is the capital of France?"));
}
