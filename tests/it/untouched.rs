//! The host stays untouched: nothing is written outside the bundle, no socket is opened, nothing is read under HOME.
//!
//! Three ways, each with controls that must fail in the same harness: plain, with empty folders that must stay empty;
//! jailed, where all but the bundle is read-only and there is no network; audited, with every file and network call
//! traced. Where the host lacks what a way needs, the test says so in one line, and the other ways still run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::drive::{ANSWER, TestBundle};

/// The commands that are watched.
const COMMANDS: &[&[&str]] = &[
    &["run", "-p", "hi"],
    &["session", "list"],
    &["model", "list"],
    &["model", "list", "--available"],
    &["privacy"],
    &["doctor"],
    &["account"],
    &["bundle", "verify"],
    &["bundle", "verify", "--full"],
];
/// A program that leaves a file in HOME.
const LEAK_HOME: &[&str] = &["/bin/sh", "-c", "echo x > \"$HOME/leak\""];
/// A program that leaves a file in the temporary folder.
const LEAK_TEMPORARY: &[&str] = &["/bin/sh", "-c", "echo x > \"$TMPDIR/leak\""];
/// A program that opens a socket; nobody listens there, the attempt counts.
const LEAK_SOCKET: &[&str] = &["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9"];
/// A program that reads under HOME.
const READ_HOME: &[&str] = &["/bin/sh", "-c", "read -r line < \"$HOME/.profile\"; true"];

/// The folders of the host that a program is given, all empty.
struct Host {
    folder: PathBuf,
}

impl Host {
    fn beside(bundle: &TestBundle) -> Self {
        let folder = bundle.home.with_file_name("host");
        for name in ["home", "tmp", "config", "cache", "data", "state", "run"] {
            fs::create_dir_all(folder.join(name)).expect("target can be written");
        }
        Self { folder }
    }

    /// Points the environment to these folders.
    fn dress<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let place = |name: &str| self.folder.join(name);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", place("home")).env("TMPDIR", place("tmp"));
        command.env("XDG_CONFIG_HOME", place("config")).env("XDG_CACHE_HOME", place("cache"));
        command.env("XDG_DATA_HOME", place("data")).env("XDG_STATE_HOME", place("state"));
        command.env("XDG_RUNTIME_DIR", place("run")).stdin(Stdio::null())
    }

    /// What was left in them.
    fn left(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(&self.folder).expect("it is there").map(|entry| entry.expect("it is there").path());
        folders
            .flat_map(|folder| fs::read_dir(folder).expect("it is there"))
            .map(|e| e.expect("it is there").path())
            .collect()
    }
}

fn lab(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(name)
}

/// The watched program and its arguments, with the passphrase in the bundle's own folder, for it may read nothing else.
fn argv(bundle: &TestBundle, arguments: &[&str]) -> Vec<String> {
    let passphrase = bundle.root.join("passphrase.txt");
    fs::copy(&bundle.passphrase, &passphrase).expect("target can be written");
    let program = bundle.root.join("bin/linux-x86_64/tiles").display().to_string();
    let given = ["--passphrase-file".to_owned(), passphrase.display().to_string()];
    [program].into_iter().chain(arguments.iter().map(|a| (*a).to_owned())).chain(given).collect()
}

fn owned(control: &[&str]) -> Vec<String> {
    control.iter().map(|part| (*part).to_owned()).collect()
}

/// A way to watch a program: gives what it printed, or what it did that it must not.
type Way = fn(&TestBundle, &Host, &[String]) -> Result<Output, String>;

fn finish(host: &Host, command: &mut Command) -> Result<Output, String> {
    let output = host.dress(command).output().map_err(|e| e.to_string())?;
    let left = host.left();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !left.is_empty() {
        return Err(format!("left on the host: {left:?}"));
    }
    if !output.status.success() {
        return Err(format!("{:?}: {errors}", output.status.code()));
    }
    Ok(output)
}

fn plain(_: &TestBundle, host: &Host, argv: &[String]) -> Result<Output, String> {
    finish(host, Command::new(&argv[0]).args(&argv[1..]))
}

fn jailed(bundle: &TestBundle, host: &Host, argv: &[String]) -> Result<Output, String> {
    finish(host, Command::new(lab("jail")).arg(&bundle.root).args(argv))
}

fn audited(bundle: &TestBundle, host: &Host, argv: &[String]) -> Result<Output, String> {
    let log = bundle.home.with_file_name("trace");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(lab("audit.py")).arg(&bundle.root).args(argv).current_dir(&bundle.root);
    host.dress(&mut command).env("AUDIT_LOG", log);
    let output = command.output().map_err(|e| e.to_string())?;
    let left = host.left();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !left.is_empty() || !output.status.success() || errors.contains("audit: ") {
        return Err(format!("{:?}, left {left:?}: {errors}", output.status.code()));
    }
    Ok(output)
}

/// Runs every command in one way; each must do its work and be clean.
#[track_caller]
fn check_clean(way: Way) {
    let bundle = TestBundle::new();
    let host = Host::beside(&bundle);
    for command in COMMANDS {
        let output = way(&bundle, &host, &argv(&bundle, command)).unwrap_or_else(|e| panic!("tiles {command:?}: {e}"));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(!printed.trim().is_empty() || command[0] == "bundle", "tiles {command:?} printed nothing");
        if command[0] == "run" {
            assert_eq!(printed.trim(), ANSWER);
        }
    }
}

/// Runs a control in one way; it must be caught, for the reason given.
#[track_caller]
fn check_caught(way: Way, control: &[&str], reason: &str) {
    let bundle = TestBundle::new();
    let host = Host::beside(&bundle);
    let error = way(&bundle, &host, &owned(control)).expect_err("the control must be caught");
    assert!(error.contains(reason), "caught, but not for {reason:?}: {error}");
}

/// Whether a way works here at all; says in one line where it doesn't.
fn has(what: &str, probe: &mut Command) -> bool {
    let works = probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !works {
        // Straight to the terminal: what a test that passes prints with `println` is not shown.
        let _ = writeln!(std::io::stderr(), "untouched: skipped, {what} doesn't work on this host");
    }
    works
}

fn has_jail() -> bool {
    let folder = TestBundle::new();
    has("unshare with mount and network namespaces", Command::new(lab("jail")).arg(&folder.root).arg("/bin/true"))
}

fn has_audit() -> bool {
    has("strace", Command::new("strace").args(["-qq", "-e", "trace=none", "/bin/true"]))
        && has("python3", Command::new("/usr/bin/python3").arg("--version"))
}

#[test]
fn plain_run_leaves_the_hosts_folders_empty() {
    check_clean(plain);
    check_caught(plain, LEAK_HOME, "home/leak");
    check_caught(plain, LEAK_TEMPORARY, "tmp/leak");
}

#[test]
fn in_a_jail_everything_works() {
    if has_jail() {
        check_clean(jailed);
        check_caught(jailed, LEAK_HOME, "Read-only file system");
        check_caught(jailed, LEAK_TEMPORARY, "Read-only file system");
        check_caught(jailed, LEAK_SOCKET, "Network is unreachable");
    }
}

#[test]
fn the_audit_finds_nothing() {
    if has_audit() {
        check_clean(audited);
        check_caught(audited, LEAK_HOME, "audit: write: ");
        check_caught(audited, LEAK_SOCKET, "audit: network: ");
        check_caught(audited, READ_HOME, "audit: home: ");
        check_caught(audited, &["/bin/sh", "-c", "read -r line < /etc/passwd"], "audit: read: ");
    }
}
