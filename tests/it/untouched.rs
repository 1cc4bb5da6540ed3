//! The host stays untouched: nothing is written outside the bundle, no socket is opened, nothing is read under HOME.
//!
//! Three ways, each with controls that must fail in the same harness: plain, with empty folders that must stay empty;
//! jailed, where all but the bundle is read-only and there is no network; audited, with every file and network call
//! traced. Every command is watched in every way: the list is compared with the program's own. So is the conversation in
//! a terminal, its end by Ctrl-C and by kill -9. Where the host lacks what a way needs, the test says so in one line, and the other ways still run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::drive::{ANSWER, TestBundle};
use crate::every_command::{Entry, Looks, entries, fresh, ours, prepared, words};
use crate::screen::Screen;

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

/// Where a command finds what it is given: beside the bundle, for it may read nothing else.
fn given(bundle: &TestBundle) -> PathBuf {
    ours(bundle).join("given")
}

/// The watched program and its arguments.
fn argv(bundle: &TestBundle, arguments: &[String]) -> Vec<String> {
    let program = bundle.root.join("bin/linux-x86_64/tiles").display().to_string();
    let has_passphrase = arguments.iter().any(|argument| argument.starts_with("--passphrase"));
    let passphrase = given(bundle).join("passphrase").display().to_string();
    let last = if has_passphrase { vec![] } else { vec!["--passphrase-file".to_owned(), passphrase] };
    [program].into_iter().chain(arguments.iter().cloned()).chain(last).collect()
}

fn owned(control: &[&str]) -> Vec<String> {
    control.iter().map(|part| (*part).to_owned()).collect()
}

/// A way to watch a program: gives what it printed, or what it did that it must not.
type Way = fn(&TestBundle, &Host, &[String], Looks) -> Result<Output, String>;

fn finish(bundle: &TestBundle, host: &Host, command: &mut Command, looks: Looks) -> Result<Output, String> {
    let output = dress_for(bundle, host, command, looks).output().map_err(|e| e.to_string())?;
    let left = host.left();
    if !left.is_empty() {
        return Err(format!("left on the host: {left:?}"));
    }
    Ok(output)
}

/// As [`Host::dress`]; where the command looks at the installed Tiles, there is one, among what is ours.
fn dress_for<'a>(bundle: &TestBundle, host: &Host, command: &'a mut Command, looks: Looks) -> &'a mut Command {
    host.dress(command);
    if looks == Looks::AtInstalled {
        command.env("XDG_DATA_HOME", given(bundle).join("installed"));
    }
    command
}

fn plain(bundle: &TestBundle, host: &Host, argv: &[String], looks: Looks) -> Result<Output, String> {
    finish(bundle, host, Command::new(&argv[0]).args(&argv[1..]), looks)
}

fn jailed(bundle: &TestBundle, host: &Host, argv: &[String], looks: Looks) -> Result<Output, String> {
    finish(bundle, host, Command::new(lab("jail")).arg(ours(bundle)).args(argv), looks)
}

fn audited(bundle: &TestBundle, host: &Host, argv: &[String], looks: Looks) -> Result<Output, String> {
    let log = bundle.home.with_file_name("trace");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(lab("audit.py")).arg(ours(bundle)).args(argv).current_dir(&bundle.root);
    dress_for(bundle, host, &mut command, looks).env("AUDIT_LOG", log);
    if looks == Looks::AtNames {
        let folder = host.folder.display();
        command.env("AUDIT_NAMES", format!("{folder}/home:{folder}/tmp:{folder}/run:/tmp:/var/tmp"));
    }
    let output = command.output().map_err(|e| e.to_string())?;
    let left = host.left();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !left.is_empty() || errors.contains("audit: ") {
        return Err(format!("{:?}, left {left:?}: {errors}", output.status.code()));
    }
    Ok(output)
}

/// Runs every command in one way; each must do its work and be clean.
#[track_caller]
fn check_clean(way: Way) {
    let bundle = prepared();
    let host = Host::beside(&bundle);
    for Entry { line, code, says, looks } in entries(&bundle) {
        let arguments = argv(&bundle, &words(line, &given(&bundle)));
        let output = way(&bundle, &host, &arguments, *looks).unwrap_or_else(|e| panic!("tiles {line}: {e}"));
        let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(*code), "tiles {line}: {errors}");
        assert!(printed.contains(says) || errors.contains(says), "tiles {line}: no {says:?} in {printed}{errors}");
    }
    let mut beside: Vec<_> =
        fs::read_dir(ours(&bundle)).expect("it is there").map(|e| e.expect("it is there").file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["Tiles", "given"]);
    // The first run, on a drive without an identity.
    let (fresh, first) = (fresh(), ["account", "create", "Ada", "--no-recovery"].map(String::from));
    let host = Host::beside(&fresh);
    let arguments = argv(&fresh, &first);
    let output = way(&fresh, &host, &arguments, Looks::Nowhere).unwrap_or_else(|e| panic!("tiles {first:?}: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a control in one way; it must be caught, for the reason given.
#[track_caller]
fn check_caught(way: Way, control: &[&str], reason: &str) {
    check_caught_looking(way, control, Looks::Nowhere, reason);
}

/// The same for one that may look somewhere.
#[track_caller]
fn check_caught_looking(way: Way, control: &[&str], looks: Looks, reason: &str) {
    let bundle = TestBundle::quick("ours/Tiles");
    let host = Host::beside(&bundle);
    let error = match way(&bundle, &host, &owned(control), looks) {
        Ok(output) if output.status.success() => panic!("the control wasn't caught"),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error,
    };
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
    let folder = TestBundle::fresh_at("ours/Tiles");
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
        // Who may look at names may read no file, and write none.
        check_caught_looking(audited, READ_HOME, Looks::AtNames, "audit: home: ");
        check_caught_looking(audited, LEAK_HOME, Looks::AtNames, "audit: write: ");
        check_caught(audited, &["/bin/sh", "-c", "read -r line < /etc/passwd"], "audit: read: ");
    }
}

/// A conversation in a terminal, in one way: `command` has the program in it, `is_audited` that it tells findings.
fn talk(bundle: &TestBundle, host: &Host, command: &mut Command) -> Screen {
    host.dress(command).env("TERM", "xterm-256color").env("AUDIT_LOG", bundle.home.with_file_name("trace"));
    let mut screen = Screen::start(command);
    screen.ready();
    assert_eq!(screen.enter("hi"), ANSWER);
    screen
}

/// The program in a terminal in each way that works here: its name, and a command that lacks the program's arguments.
fn terminals(bundle: &TestBundle) -> Vec<(&'static str, Command)> {
    let mut ways = vec![("plain", Command::new(bundle.root.join("bin/linux-x86_64/tiles")))];
    let program = argv(bundle, &[]).swap_remove(0);
    if has_jail() {
        let mut command = Command::new(lab("jail"));
        command.arg(ours(bundle)).arg(&program);
        ways.push(("jailed", command));
    }
    if has_audit() {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(lab("audit.py")).arg(ours(bundle)).arg(&program).current_dir(&bundle.root);
        ways.push(("audited", command));
    }
    ways
}

#[test]
fn a_conversation_leaves_nothing_however_it_ends() {
    let bundle = prepared();
    let host = Host::beside(&bundle);
    for (way, mut command) in terminals(&bundle) {
        command.args(["--passphrase-file".into(), given(&bundle).join("passphrase")]);
        let mut screen = talk(&bundle, &host, &mut command);
        screen.keys("\u{3}");
        screen.wait("Ctrl-C again or /bye leaves.");
        screen.ready();
        screen.keys("\u{3}");
        assert_eq!(screen.end(), 0, "{way}:\n{}", screen.text());
        assert!(!screen.text().contains("audit: "), "{way}:\n{}", screen.text());
        assert_eq!(host.left(), Vec::<PathBuf>::new(), "{way}");
    }
}

#[test]
fn a_killed_program_leaves_no_core_and_no_temporary_file() {
    use std::io::BufRead as _;
    use std::os::unix::process::ExitStatusExt as _;
    let bundle = prepared();
    let host = Host::beside(&bundle);
    let endless = given(&bundle).join("endless");
    crate::scripted::write(&endless, &["One", " more", " word", " and", "\nagain "], true);
    bundle.ok(&["model", "import", &endless.display().to_string(), "--name", "endless"]);
    let names = || -> Vec<PathBuf> {
        let mut found = Vec::new();
        all_below(ours(&bundle), &mut found);
        found
    };
    bundle.ok(&["-p", "hi"]);
    let before = names();
    for signal in ["-QUIT", "-ABRT", "-KILL"] {
        let line = "run endless -p on --set num_predict=-1";
        let arguments = argv(&bundle, &words(line, &given(&bundle)));
        let mut command = Command::new(&arguments[0]);
        command.args(&arguments[1..]).current_dir(&bundle.root).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut running = host.dress(&mut command).spawn().expect("it can be run");
        let mut answer = std::io::BufReader::new(running.stdout.take().expect("it is piped"));
        answer.read_line(&mut String::new()).expect("it answers");
        let limits = fs::read_to_string(format!("/proc/{}/limits", running.id())).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("Linux has it");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        let killed = Command::new("kill").args([signal, &running.id().to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()));
        let status = running.wait().expect("it ends");
        assert!(status.signal().is_some() && !status.core_dumped(), "{signal}: {status}");
        assert_eq!(host.left(), Vec::<PathBuf>::new(), "{signal}");
        // What of the database lies beside it is taken in at the next start.
        let new: Vec<_> = names()
            .into_iter()
            .filter(|name| !before.contains(name) && !name.to_string_lossy().contains("tiles.db-"))
            .collect();
        assert_eq!(new, Vec::<PathBuf>::new(), "{signal}");
    }
    bundle.ok(&["session", "list"]);
    assert_eq!(names(), before, "the next start tidies up");
}

/// The paths of all files below a folder, sorted.
fn all_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("it is there").path();
        if path.is_dir() { all_below(&path, found) } else { found.push(path) }
    }
    found.sort();
}
