//! Installed mode: only where no marker is around the program, only when asked for, and never mixed with a drive.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::drive::TestBundle;
use crate::screen::Screen;

/// A program outside of any bundle, with a home of its own.
pub(crate) struct Computer {
    /// Where its program comes from, and a drive of somebody's.
    pub(crate) bundle: TestBundle,
    /// The program.
    pub(crate) program: PathBuf,
    /// The home of its user.
    pub(crate) home: PathBuf,
}

impl Computer {
    pub(crate) fn new() -> Self {
        Self::with(TestBundle::new())
    }

    /// One whose program comes from this bundle.
    pub(crate) fn with(bundle: TestBundle) -> Self {
        let [folder, home] = ["programs", "somebody"].map(|name| bundle.home.with_file_name(name));
        fs::create_dir_all(&folder).expect("target can be written");
        fs::create_dir_all(&home).expect("target can be written");
        let program = folder.join("tiles");
        fs::hard_link(bundle.root.join("bin/linux-x86_64/tiles"), &program).expect("target is one file system");
        Self { bundle, program, home }
    }

    pub(crate) fn command(&self, program: &PathBuf) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", &self.home).stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(&self.program).args(arguments).output().expect("it can be run")
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(&[arguments, &["--passphrase-file", self.bundle.passphrase()]].concat());
        assert!(output.status.success(), "tiles {arguments:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it is text")
    }

    fn home_is_empty(&self) -> bool {
        fs::read_dir(&self.home).expect("it is there").next().is_none()
    }
}

#[track_caller]
pub(crate) fn check_fails(output: &Output, code: i32, part: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(code) && errors.contains(part),
        "{:?}, no {part:?} in:\n{errors}",
        output.status
    );
}

#[test]
fn nothing_is_made_in_a_home_that_nobody_asked_for() {
    let computer = Computer::new();
    for arguments in [&["account", "create"][..], &["-p", "hi"], &["doctor"], &["key", "status"], &["model", "list"]] {
        let output = computer.run(&[arguments, &["--passphrase-file", computer.bundle.passphrase()]].concat());
        check_fails(&output, 1, "--installed");
    }
    let mut command = computer.command(&computer.program);
    command.env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.wait("Set it up there? [y/N]");
    assert!(screen.text().contains("/somebody/.local/share/tiles"), "it says where: {}", screen.text());
    screen.keys("n\r");
    assert_eq!(screen.end(), 1);
    assert!(computer.home_is_empty());
}

#[test]
fn an_installed_tiles_keeps_everything_in_one_folder_of_the_home() {
    let computer = Computer::new();
    let made = ["account", "create", "Eve", "--no-recovery", "--installed"];
    assert!(computer.ok(&made).contains("Eve"));
    let root = computer.home.join(".local/share/tiles");
    let model = computer.bundle.home.with_file_name("second");
    crate::scripted::write(&model, &["An", " answer."], false);
    computer.ok(&["model", "import", model.to_str().expect("it is text"), "--name", "second"]);
    // From now on nothing has to be said.
    assert_eq!(computer.ok(&["run", "second", "-p", "hi"]).trim(), "An answer.");
    assert!(computer.ok(&["session", "list"]).contains("hi"));
    let doctor = computer.ok(&["doctor"]);
    for part in ["/.local/share/tiles", "installed for this user: no marker is around the program", "both copies whole"]
    {
        assert!(doctor.contains(part), "no {part:?} in:\n{doctor}");
    }
    let names: Vec<_> =
        fs::read_dir(&computer.home).expect("it is there").map(|e| e.expect("it is").file_name()).collect();
    assert_eq!(names, [".local"]);
    assert!(root.join("data/key.a").exists() && root.join("models/second").is_dir());
    let copy = computer.run(&["bundle", "copy", "/nowhere"]);
    check_fails(&copy, 2, "isn't a bundle that could be sealed or copied");
    // What has a list is verified, and what hasn't is said.
    assert!(computer.ok(&["bundle", "verify"]).contains("every byte"));
    let weights = root.join("models/second/model.safetensors");
    let mut rotten = fs::read(&weights).expect("it is there");
    rotten[100] ^= 1;
    fs::write(&weights, rotten).expect("it can be written");
    let found = computer.run(&["bundle", "verify", "--passphrase-file", computer.bundle.passphrase()]);
    check_fails(&found, 5, "models/second/model.safetensors");
    check_fails(&found, 5, "the program itself isn't covered");
    // Mended out of a bundle that has the same model.
    let drive = computer.bundle.root.display().to_string();
    let passphrase = computer.bundle.passphrase();
    let lacking = computer.run(&["bundle", "repair", "--from", &drive, "--passphrase-file", passphrase]);
    check_fails(&lacking, 5, "couldn't be mended");
    computer.bundle.ok(&["model", "import", model.to_str().expect("it is text"), "--name", "second"]);
    assert!(computer.ok(&["bundle", "repair", "--from", &drive, "--dry-run"]).contains("would mend 1 place"));
    assert!(computer.ok(&["bundle", "repair", "--from", &drive]).contains("mended 1 place"));
    assert!(computer.ok(&["bundle", "verify"]).contains("every byte"));
    // Where a setting comes from is said as it is here.
    computer.ok(&["config", "set", "model", "second"]);
    let shown = computer.ok(&["config", "show"]);
    let row = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(row("bundle ").contains("installed for this user"), "{shown}");
    assert!(row("model ").contains("`tiles config set`"), "{shown}");
    computer.ok(&["config", "unset", "model"]);
    // Another folder where XDG_DATA_HOME says so.
    let other = computer.command(&computer.program).env("XDG_DATA_HOME", "/nonexistent").arg("doctor").output();
    check_fails(&other.expect("it can be run"), 1, "--installed");
}

#[test]
fn a_marker_always_wins_and_a_lost_or_damaged_one_is_an_error() {
    let computer = Computer::new();
    computer.ok(&["account", "create", "Eve", "--no-recovery", "--installed"]);
    let drive = |arguments: &[&str]| {
        let program = computer.bundle.root.join("bin/linux-x86_64/tiles");
        let with = [arguments, &["--passphrase-file", computer.bundle.passphrase()]].concat();
        computer.command(&program).args(with).output().expect("it can be run")
    };
    let ada = drive(&["account"]);
    assert!(String::from_utf8_lossy(&ada.stdout).contains("Ada"), "{ada:?}");
    check_fails(&drive(&["account", "--installed"]), 2, "whose bundle always wins");
    let marker = computer.bundle.root.join("MANIFEST.toml");
    let whole = fs::read(&marker).expect("it is there");
    fs::write(&marker, b"damaged").expect("it can be written");
    check_fails(&drive(&["account"]), 5, "can't be believed");
    // Lost: neither Ada's drive nor Eve's computer, silently.
    fs::remove_file(&marker).expect("it is there");
    check_fails(&drive(&["account"]), 5, "has lost its `MANIFEST.toml`");
    check_fails(&drive(&["account", "--installed"]), 5, "has lost its `MANIFEST.toml`");
    fs::write(&marker, whole).expect("it can be written");
    assert!(String::from_utf8_lossy(&drive(&["account"]).stdout).contains("Ada"));
    assert!(computer.ok(&["account"]).contains("Eve"));
}

#[test]
fn a_database_without_its_keys_gets_no_new_ones() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "hi"]);
    for name in ["key.a", "key.b"] {
        fs::rename(bundle.root.join("data").join(name), bundle.home.with_file_name(name)).expect("it is there");
    }
    let output = bundle.unlocked(&["account", "create", "Eve", "--no-recovery"]);
    check_fails(&output, 5, "the key file that opens it isn't");
    assert!(!bundle.root.join("data/key.a").exists());
}
