//! The settings of a bundle and where each comes from; and the log, which never has a word of what was said.

use std::fs;

use serde_json::Value;

use crate::commands::refused;
use crate::drive::TestBundle;

/// What no log may have.
const MARKER: &str = "zebra-crossing-marker";

fn value(shown: &Value, name: &str) -> (String, String) {
    let row = shown.as_array().expect("a list").iter().find(|row| row["name"] == name).expect("it is listed");
    let text = |key: &str| row[key].as_str().expect("a text").to_owned();
    (text("value"), text("origin"))
}

#[test]
fn flag_before_environment_before_bundle_before_default() {
    let bundle = TestBundle::new();
    let show = |flags: &[&str], environment: &[(&str, &str)]| -> Value {
        let mut command = bundle.command();
        command.args(["config", "show", "--json"]).args(flags).envs(environment.iter().copied());
        serde_json::from_slice(&command.output().expect("the program can be run").stdout).expect("it is JSON")
    };
    assert_eq!(value(&show(&[], &[]), "color").1, "the terminal");
    bundle.ok(&["config", "set", "color", "always"]);
    let from_bundle = value(&show(&[], &[]), "color");
    assert!(from_bundle.0 == "true" && from_bundle.1.contains("tiles config"), "{from_bundle:?}");
    assert_eq!(value(&show(&[], &[("NO_COLOR", "1")]), "color"), ("false".into(), "environment".into()));
    assert_eq!(value(&show(&["--color", "never"], &[]), "color"), ("false".into(), "flag".into()));
    bundle.ok(&["config", "unset", "color"]);
    assert_eq!(value(&show(&[], &[]), "color").1, "the terminal");

    let relay = "https://relay.example.org:8443";
    bundle.ok(&["config", "set", "relay", relay]);
    assert_eq!(value(&show(&[], &[]), "relay").0, relay);
    bundle.ok(&["config", "unset", "relay"]);
    refused(&bundle.run(&["config", "set", "relay", "http://x"]), 2, "isn't a value of `relay`");
    refused(&bundle.run(&["config", "set", "colour", "never"]), 2, "no setting `colour`");
    refused(&bundle.run(&["config", "set", "color", "red"]), 2, "isn't a value of `color`");
    refused(&bundle.run(&["config", "set", "model", "../../etc/passwd"]), 2, "isn't a value of `model`");
}

#[test]
fn the_default_model_is_the_one_that_was_set() {
    let bundle = TestBundle::new();
    let folder = bundle.home.with_file_name("other");
    crate::scripted::write(&folder, &["Another", " answer."], false);
    bundle.ok(&["model", "import", &folder.display().to_string(), "--name", "other"]);
    bundle.ok(&["config", "set", "model", "other"]);
    assert_eq!(bundle.ok(&["run", "-p", "hi"]).trim(), "Another answer.");
    let shown = bundle.json(&["config", "show"]);
    assert_eq!(value(&shown, "model").0, "other");
    assert_eq!(bundle.ok(&["run", "scripted", "-p", "hi"]).trim(), crate::drive::ANSWER, "a name given wins");
    bundle.ok(&["config", "set", "model", "nowhere"]);
    refused(&bundle.unlocked(&["run", "-p", "hi"]), 4, "nowhere");
    bundle.ok(&["config", "unset", "model"]);
    assert_eq!(bundle.ok(&["run", "-p", "hi"]).trim(), crate::drive::ANSWER);
    fs::write(bundle.root.join("data/settings.toml"), "model = \"\u{1b}[2J\"").expect("it can be written");
    refused(&bundle.unlocked(&["run", "-p", "hi"]), 1, "isn't a file of settings");
}

#[test]
fn the_log_tells_how_it_ended_and_no_word_of_what_was_said() {
    let bundle = TestBundle::new();
    bundle.ok(&["run", "-p", &format!("tell me of {MARKER}")]);
    refused(&bundle.unlocked(&["session", "show", MARKER]), 1, MARKER);
    let file = bundle.home.with_file_name(MARKER);
    fs::write(&file, "x").expect("target can be written");
    refused(&bundle.unlocked(&["session", "import", &file.display().to_string()]), 1, "isn't a file of Tiles sessions");
    let log = fs::read_to_string(bundle.root.join("data/logs/tiles.log")).expect("there is a log");
    for expected in [" started version=", " ended code=0", " failed code=1 error=StoreError", "error=TranscriptError"] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
    let answer = crate::drive::ANSWER;
    for secret in [MARKER, answer, crate::drive::PASSPHRASE, &*bundle.home.to_string_lossy()] {
        assert!(!log.contains(secret), "{secret:?} in {log}");
    }
}
