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

/// Four turns, each a process of its own: each computes its own tokens alone, and says what one process would say.
#[test]
fn a_resumed_session_computes_only_what_is_new() {
    let bundle = TestBundle::with_smollm2("Tiles");
    let system = "You are a gardener. You answer in one short sentence. You like roses, lilies, tulips and old trees. You \
                  never talk about the weather, about money or about politics, and you greet nobody by name. If you don't know \
                  an answer you say so, and you never invent the name of a plant, of a place or of a person.";
    let ask = |question: &str, session: Option<&str>| {
        let set = ["--set", "temperature=0", "--set", "num_predict=24", "--system", system];
        let mut arguments = vec!["run", "smollm2", "-p", question];
        arguments.extend(set);
        arguments.extend(session.iter().flat_map(|id| ["--session", *id]));
        bundle.json(&arguments)
    };
    let usage = |answer: &serde_json::Value, name: &str| answer["usage"][name].as_u64().expect("a number");
    let questions = ["Which flower blooms in winter?", "And in spring?", "Which one do you like best?", "Why?"];
    let mut id: Option<String> = None;
    let mut texts = Vec::new();
    for question in questions {
        let answer = ask(question, id.as_deref());
        let new = usage(&answer, "input_tokens") - usage(&answer, "cached_tokens");
        // The question, the tags around it, and the tag that ends the answer before.
        assert!(id.is_none() || new < 24, "{new} new tokens: {answer}");
        id = answer["session"].as_str().map(Into::into);
        texts.push(answer["text"].clone());
    }
    // Another session with the same instructions computes only its own question.
    let other = ask("Which tree grows old?", None);
    assert!(usage(&other, "cached_tokens") > 64, "{other}");
    assert!(usage(&other, "input_tokens") - usage(&other, "cached_tokens") < 24, "{other}");

    let kept = |bundle: &TestBundle| fs::read_dir(bundle.root.join("data/cache")).map_or(0, Iterator::count);
    assert_eq!(kept(&bundle), 3, "two sessions and one opening");
    // Without the states, everything is computed, and is the same.
    fs::remove_dir_all(bundle.root.join("data/cache")).expect("it is there");
    let again = TestBundle::with_smollm2("Tiles");
    let mut id: Option<String> = None;
    for (question, text) in questions.iter().zip(&texts) {
        let set = ["--set", "temperature=0", "--set", "num_predict=24", "--system", system];
        let mut arguments = vec!["run", "smollm2", "-p", question];
        arguments.extend(set);
        arguments.extend(id.iter().flat_map(|id| ["--session", id.as_str()]));
        let _ = fs::remove_dir_all(again.root.join("data/cache"));
        let answer = again.json(&arguments);
        assert_eq!((&answer["text"], usage(&answer, "cached_tokens")), (text, 0));
        id = answer["session"].as_str().map(Into::into);
    }
    // A deleted session takes its state with it; nothing of a private conversation is kept.
    let before = kept(&again);
    again.ok(&["session", "delete", &id.expect("it has one"), "--yes"]);
    assert_eq!(kept(&again), before - 1);
    again.ok(&["run", "smollm2", "--no-save", "-p", &"long ".repeat(90), "--set", "num_predict=2"]);
    assert_eq!(kept(&again), before - 1);
}
