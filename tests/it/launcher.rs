//! The launcher on the drive: picks the program for the host, from any path, through links, in any POSIX shell.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with the launcher and, for each host given, a program that says which it is and what it was given.
struct Drive(PathBuf);

impl Drive {
    fn new(name: &str, hosts: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("launcher-{}-{name}", std::process::id()));
        let root = folder.join("My drive/-Tiles caf\u{e9} $x");
        fs::create_dir_all(&root).expect("target can be written");
        for name in ["tiles", "Tiles.command"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundle").join(name);
            fs::copy(source, root.join(name)).expect("it is in the tree");
        }
        for host in hosts {
            let program = root.join("bin").join(host).join("tiles");
            fs::create_dir_all(program.parent().expect("below the root")).expect("target can be written");
            fs::write(&program, format!("#!/bin/sh\nprintf '{host}'\nprintf '|%s' \"$@\"\nexit 42\n"))
                .expect("written");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        let drive = Self(folder);
        // A `uname` that says what the test wants, before the real one on the path.
        let fake = drive.0.join("fake");
        fs::create_dir_all(&fake).expect("target can be written");
        for (name, variable) in [("uname", "SYSTEM"), ("sysctl", "APPLE")] {
            fs::write(fake.join(name), format!("#!/bin/sh\nprintf '%s\\n' \"${variable}\"\n")).expect("written");
            fs::set_permissions(fake.join(name), fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        drive
    }

    fn root(&self) -> PathBuf {
        self.0.join("My drive/-Tiles caf\u{e9} $x")
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>, system: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.0.join("fake").display());
        command.env_clear().env("PATH", path).env("SYSTEM", system).env("CDPATH", "/usr").current_dir("/");
        command
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn check(output: Output, expected: &str) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((stdout.as_ref(), output.status.code()), (expected, Some(42)), "{stderr}");
    assert_eq!(stderr, "");
}

fn refused(output: Output, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("error: ") && stderr.contains("\n\nhint: ") && stderr.contains(expected), "{stderr}");
    assert_eq!((output.stdout.len(), output.status.code()), (0, Some(6)), "{stderr}");
}

#[test]
fn the_program_of_the_host_gets_all_arguments() {
    let drive = Drive::new("hosts", &["linux-x86_64", "linux-arm64", "macos-arm64"]);
    for (system, host) in [
        ("Linux x86_64", "linux-x86_64"),
        ("Linux aarch64", "linux-arm64"),
        ("Linux arm64", "linux-arm64"),
        ("Darwin arm64", "macos-arm64"),
    ] {
        let args = ["run", "two  words", "", "*", "$HOME", "-p", "line\nbreak"];
        let output = drive.command(drive.root().join("tiles"), system).args(args).output().expect("it starts");
        check(output, &format!("{host}|run|two  words||*|$HOME|-p|line\nbreak"));
    }
    let output = drive.command(drive.root().join("tiles"), "Darwin x86_64").env("APPLE", "1").output();
    check(output.expect("it starts"), "macos-arm64|");
}

#[test]
fn it_starts_through_links_in_any_folder_and_shell() {
    let drive = Drive::new("links", &["linux-x86_64"]);
    let (root, system) = (drive.root(), "Linux x86_64");
    let links = drive.0.join("links and more");
    fs::create_dir_all(&links).expect("target can be written");
    symlink(root.join("tiles"), links.join("absolute")).expect("it can be linked");
    symlink("../My drive/-Tiles caf\u{e9} $x/tiles", links.join("relative")).expect("it can be linked");
    symlink("relative", links.join("-chain")).expect("it can be linked");
    for link in ["absolute", "relative", "-chain"] {
        check(drive.command(links.join(link), system).arg("a").output().expect("it starts"), "linux-x86_64|a");
    }
    check(drive.command("./-chain", system).current_dir(&links).output().expect("it starts"), "linux-x86_64|");
    check(drive.command("./tiles", system).current_dir(&root).output().expect("it starts"), "linux-x86_64|");
    check(drive.command(root.join("Tiles.command"), system).arg("a").output().expect("it starts"), "linux-x86_64|a");

    let shells = ["/bin/sh", "/bin/dash", "/bin/bash", "/bin/zsh", "/bin/ksh"].map(Path::new);
    for shell in shells.into_iter().filter(|shell| shell.exists()) {
        for script in ["tiles", "Tiles.command"] {
            let output = drive.command(shell, system).arg(script).arg("b c").current_dir(&root).output();
            check(output.expect("it starts"), "linux-x86_64|b c");
        }
    }

    symlink("circle", links.join("circle")).expect("it can be linked");
    let script = fs::read_to_string(root.join("tiles")).expect("it is there");
    let output = drive.command("/bin/sh", system).args(["-c", &script]).arg(links.join("circle")).output();
    refused(output.expect("it starts"), "a link that leads in a circle");
}

#[test]
fn a_host_that_can_not_run_it_is_told_what_to_do() {
    let drive = Drive::new("refused", &["linux-arm64", "macos-arm64"]);
    let tiles = drive.root().join("tiles");
    for (system, expected) in [
        ("Linux x86_64", "this drive has no program for linux-x86_64, only for: linux-arm64 macos-arm64"),
        ("Darwin x86_64", "Tiles doesn't run on Darwin x86_64"),
        ("Linux riscv64", "Tiles doesn't run on Linux riscv64"),
        ("FreeBSD amd64", "Tiles doesn't run on FreeBSD amd64"),
    ] {
        refused(drive.command(&tiles, system).output().expect("it starts"), expected);
    }
    // As on a drive that is mounted so that nothing on it is executable.
    let program = drive.root().join("bin/linux-arm64/tiles");
    fs::set_permissions(program, fs::Permissions::from_mode(0o644)).expect("it is ours");
    refused(drive.command(&tiles, "Linux aarch64").output().expect("it starts"), "mount the drive without `noexec`");

    // As on a drive that is pulled out before the program is in memory.
    let program = drive.root().join("bin/linux-arm64/tiles");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    for (end, code, said) in [
        ("kill -BUS $$", 1, "plug the drive in again and start Tiles again"),
        ("kill -INT $$", 130, ""),
        ("kill -KILL $$", 137, ""),
        ("exit 70", 70, ""),
    ] {
        fs::write(&program, format!("#!/bin/sh\n{end}\n")).expect("it is ours");
        let output = drive.command(&tiles, "Linux aarch64").output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{end}: {errors}");
        assert!(errors.contains(said) && errors.contains("hint: ") != said.is_empty(), "{end}: {errors}");
    }

    let empty = Drive::new("empty", &[]);
    let output = empty.command(empty.root().join("tiles"), "Linux x86_64").output().expect("it starts");
    refused(output, "no program for linux-x86_64, only for: none");
}
