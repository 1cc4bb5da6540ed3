//! Texts that come from outside don't steer the terminal, other installations are left alone, and deleting the folder
//! deletes everything.

use std::fs;
use std::path::{Path, PathBuf};

use crate::drive::{ANSWER, PASSPHRASE, TestBundle};
use crate::screen::Screen;

/// Colours the screen, and names the window.
const STEERING: &str = "\u{1b}[31mred\u{1b}]0;owned\u{7}";

/// Whether bytes have what steers a terminal as [`STEERING`] would.
fn steers(shown: &[u8]) -> bool {
    let shown = String::from_utf8_lossy(shown);
    shown.contains("\u{1b}[31mred") || shown.contains("\u{1b}]0;owned") || shown.contains('\u{9b}')
}

/// Runs the program in a terminal to its end, and gives every byte that the terminal was sent.
#[track_caller]
fn shown(bundle: &TestBundle, arguments: &[&str]) -> Vec<u8> {
    let mut command = bundle.command();
    command.args(arguments).args(["--passphrase-file", bundle.passphrase()]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.end();
    assert!(!screen.text().is_empty());
    screen.raw.clone()
}

#[test]
fn a_models_answer_steers_no_terminal() {
    let bundle = TestBundle::quick("Tiles");
    let folder = bundle.home.with_file_name("steering");
    // Byte-level BPE writes ESC as \u{11b} and BEL as \u{107}.
    crate::scripted::write(&folder, &["Look", " \u{11b}[31mred", "\u{11b}]0;owned\u{107}", " here"], false);
    bundle.ok(&["model", "import", &folder.display().to_string(), "--name", "steering"]);
    let raw = shown(&bundle, &["run", "steering", "-p", "hi"]);
    let text = String::from_utf8_lossy(&raw);
    assert!(text.contains("Look") && text.contains("here") && text.contains("red"), "{text:?}");
    assert!(!steers(&raw), "{text:?}");
    // Nor when it is shown again later. To a program it goes as it is.
    let id = bundle.json(&["session", "list"])[0]["id"].as_str().expect("it has one").to_owned();
    for arguments in [&["session", "show", &id][..], &["session", "search", "Look"], &["session", "export", &id]] {
        assert!(!steers(&shown(&bundle, arguments)), "{arguments:?}");
    }
    let kept = bundle.json(&["session", "show", &id]).to_string();
    assert!(kept.contains("\\u001b[31mred") || kept.contains("\u{1b}[31mred"), "{kept}");
}

#[test]
fn names_and_titles_steer_no_terminal() {
    let bundle = TestBundle::quick("Tiles");
    bundle.ok(&["-p", "given"]);
    let talk = bundle.ok(&["session", "export", "given", "--format", "json"]);
    let hostile = talk.replace("given", "given\\u001b[31mred\\u001b]0;owned\\u0007");
    let file = bundle.home.with_file_name(format!("talk {STEERING}.json"));
    fs::write(&file, &hostile).expect("target can be written");
    fs::write(bundle.root.join(STEERING), "a stranger").expect("target can be written");
    fs::create_dir(bundle.root.join("models").join(STEERING)).expect("target can be written");
    let file = file.display().to_string();
    for arguments in [
        &["session", "import", &file][..],
        &["session", "list"],
        &["model", "import", &file],
        &["model", "list"],
        &["model", "show", STEERING],
        &["modelfile", "check", &file],
        &["bundle", "verify", "--full"],
        &["bundle", "info", "--verbose"],
        &["session", "rename", "given", STEERING],
        &["session", "show", STEERING],
        &["account", "set-nickname", STEERING],
        &["account"],
        &["run", STEERING, "-p", "hi"],
        &["-p", STEERING, "--set", STEERING],
        &["--bundle", STEERING, "doctor"],
        &[STEERING],
    ] {
        let raw = shown(&bundle, arguments);
        assert!(!steers(&raw), "tiles {arguments:?}: {:?}", String::from_utf8_lossy(&raw));
    }
    assert!(steers(format!("a {STEERING} b").as_bytes()), "the check can fail");
}

/// The names and sizes of all that is below a folder.
fn listed(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("it is there") {
        let entry = entry.expect("it is there");
        let metadata = entry.metadata().expect("it is there");
        found.push((entry.path(), if metadata.is_dir() { 0 } else { metadata.len() }));
        if metadata.is_dir() {
            found.extend(listed(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn an_installed_tiles_and_a_portable_one_never_mix() {
    let bundle = TestBundle::quick("Tiles");
    let home = bundle.home.with_file_name("lived-in");
    // What an installed Tiles keeps, wherever it may look for it: the data of another person.
    let other = TestBundle::quick("Tiles");
    other.ok(&["-p", "of the installed one"]);
    for place in [".local/share/tiles", ".config/tiles", ".tiles", "Library/Application Support/Tiles"] {
        let place = home.join(place).join("data");
        fs::create_dir_all(place.join("db")).expect("target can be written");
        for name in ["key.a", "key.b", "db/tiles.db"] {
            fs::copy(other.root.join("data").join(name), place.join(name)).expect("target can be written");
        }
    }
    let before = listed(&home);
    let run = |bundle: &TestBundle, arguments: &[&str]| {
        let mut command = bundle.command();
        command.env("HOME", &home).args(arguments).args(["--passphrase-file", bundle.passphrase()]);
        command.output().expect("it can be run")
    };
    let did = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(did(&run(&bundle, &["account"])), bundle.ok(&["account"]));
    assert_ne!(did(&run(&bundle, &["account"])), other.ok(&["account"]));
    assert_eq!(did(&run(&bundle, &["-p", "hi"])).trim(), ANSWER);
    assert!(!did(&run(&bundle, &["session", "list"])).contains("of the installed one"));
    // A bundle that lost its data asks for a first run; it doesn't take up what lies on the host.
    fs::remove_dir_all(bundle.root.join("data")).expect("it is there");
    let lost = run(&bundle, &["--no-input", "account"]);
    assert_eq!(lost.status.code(), Some(3), "{}", String::from_utf8_lossy(&lost.stderr));
    assert!(String::from_utf8_lossy(&lost.stderr).contains("no identity yet"));
    // A bundle that can't be trusted is refused; there is no falling back.
    fs::write(bundle.root.join("MANIFEST.sig"), "nobody's").expect("target can be written");
    let broken = run(&bundle, &["account"]);
    assert_eq!(broken.status.code(), Some(5), "{}", String::from_utf8_lossy(&broken.stderr));
    assert_eq!(listed(&home), before);
}

#[test]
fn deleting_the_folder_deletes_everything() {
    let bundle = TestBundle::fresh_at("ours/Tiles");
    let around = bundle.home.parent().expect("it is in a folder").to_path_buf();
    let elsewhere = |around: &Path| -> Vec<_> {
        listed(around).into_iter().filter(|(path, _)| !path.starts_with(&bundle.root)).collect()
    };
    let before = elsewhere(&around);
    bundle.ok(&["account", "create", "Ada", "--no-recovery"]);
    bundle.ok(&["-p", "hi"]);
    let mut command = bundle.command();
    command.args(["--passphrase-file", bundle.passphrase()]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.ready();
    assert_eq!(screen.enter(PASSPHRASE), ANSWER);
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    fs::remove_dir_all(&bundle.root).expect("it is there");
    assert_eq!(elsewhere(&around), before);
    assert_eq!(listed(&around.join("ours")), Vec::new());
}
