//! Identity, conversations and models carried from a drive onto a computer and back, with the real program: what becomes
//! of the old place, what is never overwritten, and what a cut leaves.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::drive::{ANSWER, TestBundle};
use crate::installed::{Computer, check_fails};
use crate::screen::Screen;

fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}

impl Computer {
    fn root(&self) -> PathBuf {
        self.home.join(".local/share/tiles")
    }

    fn carried(&self, arguments: &[&str]) -> std::process::Output {
        self.run(&[arguments, &["--passphrase-file", self.bundle.passphrase()]].concat())
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).expect("it is JSON")
    }
}

/// A computer without an identity, and a drive with one that opens at once, a conversation and a model that was added.
fn with_drive() -> (Computer, String) {
    let computer = Computer::with(TestBundle::quick("Tiles"));
    let model = computer.bundle.home.with_file_name("second");
    crate::scripted::write(&model, &["An", " answer."], false);
    computer.bundle.ok(&["model", "import", &text(&model), "--name", "second"]);
    computer.bundle.ok(&["-p", "kept"]);
    let drive = text(&computer.bundle.root);
    (computer, drive)
}

#[test]
fn a_drive_is_carried_onto_a_computer_and_both_go_on() {
    let (computer, drive) = with_drive();
    check_fails(&computer.carried(&["--installed", "data", "adopt", &drive]), 2, "`--move`");
    let would = computer.json(&["--installed", "data", "adopt", &drive, "--copy", "--dry-run"]);
    assert!(would["dry_run"] == true && !computer.root().join("data/key.a").exists(), "{would}");
    check_fails(
        &computer.run(&["--installed", "data", "adopt", &drive, "--copy", "--no-input"]),
        3,
        "--passphrase-file",
    );
    let carried = computer.json(&["--installed", "data", "adopt", &drive, "--copy"]);
    assert!(carried["moved"] == false && carried["read_back"] == true, "{carried}");
    let did = |printed: serde_json::Value| printed["did"].as_str().expect("it is text").to_owned();
    assert_eq!(did(computer.json(&["account"])), did(computer.bundle.json(&["account"])));
    // The models that came with the drive are there too, verified as added ones.
    assert_eq!(computer.ok(&["run", "scripted", "-p", "hi"]).trim(), ANSWER);
    assert_eq!(computer.ok(&["run", "second", "-p", "hi"]).trim(), "An answer.");
    computer.ok(&["model", "verify"]);
    assert_eq!(computer.json(&["session", "list"]).as_array().map(Vec::len), Some(3));
    assert_eq!(
        computer.bundle.json(&["session", "list"]).as_array().map(Vec::len),
        Some(1),
        "the drive goes its own way"
    );
    assert!(!computer.root().join("data.partial").exists() && !computer.root().join("data.before").exists());
    check_fails(&computer.carried(&["data", "adopt", &drive, "--copy"]), 1, "never overwritten");
    computer.bundle.ok(&["-p", "on the drive"]);
    check_fails(&computer.carried(&["data", "adopt", &drive, "--move"]), 1, "never overwritten");
    assert!(computer.bundle.root.join("data/key.a").exists(), "a refused move retires nothing");

    // Their databases meet: nothing is merged, and it is said.
    fs::copy(computer.bundle.root.join("data/db/tiles.db"), computer.root().join("data/db/tiles.db"))
        .expect("both are there");
    check_fails(&computer.carried(&["session", "list"]), 5, "another copy of what is here");
}

#[test]
fn a_computer_is_moved_onto_a_drive_and_goes_out_of_use() {
    let computer = Computer::with(TestBundle::fresh());
    let none = ["bundle", "create", "x", "--from-installed", "--move"];
    check_fails(&computer.carried(&none), 1, "no Tiles is installed");
    computer.ok(&["account", "create", "Eve", "--no-recovery", "--installed"]);
    let model = computer.bundle.home.with_file_name("second");
    crate::scripted::write(&model, &["An", " answer."], false);
    computer.ok(&["model", "import", &text(&model), "--name", "second"]);
    computer.ok(&["run", "second", "-p", "kept"]);
    let dest = computer.bundle.home.with_file_name("stick");
    let create = ["bundle", "create", &text(&dest), "--from-installed", "--move"];
    let own = computer.bundle.home.with_file_name("own");
    let of_own = ["bundle", "create", &text(&own), "--from-installed", "--copy"];
    let would = computer.json(&[&of_own[..], &["--dry-run"]].concat());
    assert!(would["dry_run"] == true && !own.exists(), "{would}");
    // No bundle is around the program: the new one has this program, sealed with a key of the person's.
    computer.ok(&of_own);
    assert!(!computer.root().join("source.partial").exists() && computer.root().join("seal.key").exists());
    let answer = computer.command(&own.join("bin/linux-x86_64/tiles"));
    let answer =
        { answer }.args(["run", "second", "-p", "hi", "--passphrase-file", computer.bundle.passphrase()]).output();
    assert_eq!(String::from_utf8_lossy(&answer.expect("it runs").stdout).trim(), "An answer.");
    assert!(own.join("LICENSE-MIT").exists() && !dest.exists() && computer.root().join("data/key.a").exists());
    check_fails(
        &computer.carried(&["bundle", "create", &text(&own), "--from-installed", "--copy"]),
        1,
        "never overwritten",
    );
    let moved = computer.json(&[&["--bundle", &text(&computer.bundle.root)][..], &create].concat());
    assert_eq!((&moved["moved"], &moved["read_back"]), (&true.into(), &true.into()));
    // The drive's own program: no question about its seal, and everything is there.
    let drive = |arguments: &[&str]| {
        let with = [arguments, &["--passphrase-file", computer.bundle.passphrase()]].concat();
        let output = computer.command(&dest.join("bin/linux-x86_64/tiles")).args(with).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it is text")
    };
    assert!(drive(&["account"]).contains("Eve") && drive(&["session", "list"]).contains("kept"));
    assert_eq!(drive(&["run", "second", "-p", "hi"]).trim(), "An answer.");
    drive(&["bundle", "verify", "--full"]);
    // The computer has none any more, and what it had is aside.
    assert!(computer.root().join("data.retired/key.a").exists() && !computer.root().join("data").exists());
    assert!(!computer.root().join("models/second").exists());
    check_fails(&computer.carried(&["account"]), 1, "was moved away");
}

#[test]
fn a_move_that_was_cut_before_its_end_is_finished() {
    let (computer, drive) = with_drive();
    // Cut after the new place counts, a move has done what a copy does.
    computer.ok(&["--installed", "data", "adopt", &drive, "--copy"]);
    computer.ok(&["-p", "later"]);
    let finish = ["data", "adopt", &drive, "--move"];
    computer.ok(&[&finish[..], &["--dry-run"]].concat());
    assert!(computer.bundle.root.join("data/key.a").exists());
    assert_eq!(computer.json(&finish)["moved"], true);
    assert!(computer.bundle.root.join("data.retired/key.a").exists() && !computer.bundle.root.join("data").exists());
    assert!(computer.ok(&["session", "list"]).contains("later"));
}

#[test]
fn a_person_is_asked_whether_it_is_a_move() {
    let (computer, drive) = with_drive();
    let mut command = computer.command(&computer.program);
    command.env("TERM", "xterm-256color").args(["--installed", "data", "adopt", &drive]);
    command.args(["--passphrase-file", computer.bundle.passphrase()]);
    let mut screen = Screen::start(&command);
    screen.wait("Move or copy? [move/copy]");
    assert!(screen.text().contains("is a fork"), "{}", screen.text());
    screen.keys("perhaps\r");
    screen.wait("Type `move` or `copy`");
    screen.keys("move\r");
    screen.wait("is out of use");
    assert_eq!(screen.end(), 0);
    assert!(computer.bundle.root.join("data.retired/key.a").exists());
    assert!(computer.ok(&["session", "list"]).contains("kept"));
    check_fails(&computer.bundle.run(&["account", "--no-input"]), 3, "no identity yet");
}

#[test]
fn a_cut_leaves_the_source_whole_and_the_destination_nobodys_or_whole() {
    let (computer, drive) = with_drive();
    let mut cut = 0;
    for round in 0..30 {
        let arguments =
            ["--installed", "data", "adopt", &drive, "--copy", "--passphrase-file", computer.bundle.passphrase()];
        let mut command = computer.command(&computer.program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = command.spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(8 * round));
        let _ = running.kill();
        let ended = running.wait().expect("it ends");
        assert!(computer.bundle.ok(&["session", "list"]).contains("kept"), "round {round}: the source is whole");
        if computer.root().join("data/key.a").exists() {
            assert!(computer.ok(&["session", "list"]).contains("kept"), "round {round}: what counts is whole");
            fs::remove_dir_all(computer.root().join("data")).expect("it is there");
        } else {
            cut += usize::from(!ended.success());
            assert!(!computer.root().join("data/db/tiles.db").exists(), "round {round}: half of it counts");
        }
    }
    assert!(cut > 2, "only {cut} of 30 rounds were cut before their end");
    // A cut between the two renames: the same command goes on.
    fs::create_dir_all(computer.root().join("data.before")).expect("it can be made");
    let _ = fs::remove_dir_all(computer.root().join("data"));
    computer.ok(&["--installed", "data", "adopt", &drive, "--copy"]);
    assert!(computer.ok(&["session", "list"]).contains("kept"));
}

#[test]
fn an_installation_is_moved_to_another_folder() {
    let (computer, drive) = with_drive();
    computer.ok(&["--installed", "data", "adopt", &drive, "--copy"]);
    let there = computer.home.join("big disk/tiles");
    let path = text(&there);
    computer.ok(&["data", "set-path", &path, "--dry-run"]);
    assert!(!there.exists());
    fs::create_dir_all(computer.home.join("full")).expect("it can be made");
    fs::write(computer.home.join("full/x"), b"x").expect("it can be written");
    check_fails(&computer.carried(&["data", "set-path", &text(&computer.home.join("full"))]), 2, "isn't empty");
    assert!(computer.ok(&["data", "set-path", &path]).contains("read back and opened"));
    assert!(computer.ok(&["data", "path"]).contains("big disk/tiles/data"));
    assert!(computer.ok(&["session", "list"]).contains("kept"));
    assert_eq!(computer.ok(&["run", "second", "-p", "hi"]).trim(), "An answer.");
    assert!(computer.root().join("data.retired/key.a").exists() && !computer.root().join("data").exists());
    // Its disk isn't mounted: nothing is begun anew.
    fs::rename(&there, computer.home.join("unmounted")).expect("it is there");
    check_fails(&computer.carried(&["--installed", "account"]), 1, "that folder isn't there");
    assert!(!computer.root().join("data").exists());
}
