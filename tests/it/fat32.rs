//! A drive with FAT32: bundles arrive and are used there, and what FAT32 can't hold is refused before a byte is written.
//!
//! Few machines of a continuous integration have FAT in their kernel, so another kernel runs here as a process: user-mode
//! Linux, with the image as its disk (`tests/lab/fat32.sh`).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ed25519_dalek::SigningKey;
use tilekit::digest::Sha256Digest;
use tilekit::manifest::signature::Signature;
use tilekit::manifest::{Entry, FileRole, MANIFEST_FORMAT, Manifest};

use crate::drive::{ANSWER, PASSPHRASE, build, identify, scratch};
use crate::stick::has_program;

/// What is done on the drive: a command of the program with its bundle, and what must come of it.
enum Step<'a> {
    /// The bundle, the arguments, the exit code, and something that is said.
    Tiles(&'a Path, Vec<String>, i32, &'a str),
    /// The drive is unmounted, and mounted again.
    Remount,
}

/// Does the steps on a new drive with FAT32, and gives the names on it at the end; `None` where this host can't.
fn on_fat32(folder: &Path, steps: &[Step<'_>]) -> Option<String> {
    let missing = ["linux.uml", "mkfs.vfat", "fsck.vfat", "python3"].into_iter().find(|name| !has_program(name));
    if let Some(missing) = missing {
        let _ = writeln!(std::io::stderr(), "FAT32: skipped, this host has no {missing}");
        return None;
    }
    for name in ["mount", "home"] {
        fs::create_dir_all(folder.join(name)).expect("target can be written");
    }
    let image = folder.join("image");
    let made = fs::File::create(&image).and_then(|file| file.set_len(160 << 20));
    made.expect("target can be written");
    assert!(run(Command::new("mkfs.vfat").args(["-F", "32", "-s", "1"]).arg(&image)), "mkfs.vfat");
    fs::write(folder.join("passphrase"), format!("{PASSPHRASE}\n")).expect("target can be written");
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let mut script = String::new();
    for (number, step) in steps.iter().enumerate() {
        let Step::Tiles(bundle, arguments, ..) = step else {
            script.push_str("remount\n");
            continue;
        };
        let mut words = vec![env!("CARGO_BIN_EXE_tiles").into(), "--bundle".into(), text(bundle)];
        words.extend(arguments.iter().cloned());
        words.extend(["--passphrase-file".into(), text(&folder.join("passphrase"))]);
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let said = quoted(&text(&folder.join(format!("said-{number}"))));
        script.push_str(&format!("{} >{said} 2>&1 </dev/null; echo \"exit=$?\" >>{said}\n", line.join(" ")));
    }
    script.push_str("ls -R \"$FAT_FOLDER/mount\" >\"$FAT_FOLDER/names\"\n");
    fs::write(folder.join("commands"), script).expect("target can be written");
    let mut machine = Command::new("timeout");
    machine.args(["120", "linux.uml", "rootfstype=hostfs", "rootflags=/", "rw", "mem=1G", "con=null", "con0=null"]);
    machine.arg(format!("ubd0={}", image.display())).arg(format!("FAT_FOLDER={}", folder.display()));
    machine.arg(format!("init={}/tests/lab/fat32.sh", env!("CARGO_MANIFEST_DIR"))).env("TMPDIR", folder);
    run(machine.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").stdin(Stdio::null()));
    for (number, step) in steps.iter().enumerate() {
        let Step::Tiles(_, arguments, code, says) = step else { continue };
        let said = fs::read_to_string(folder.join(format!("said-{number}"))).unwrap_or_default();
        assert!(said.contains(says) && said.ends_with(&format!("exit={code}\n")), "tiles {arguments:?}: {said}");
    }
    assert!(folder.join("end").exists(), "the machine didn't come to its end");
    assert!(run(Command::new("fsck.vfat").arg("-n").arg(&image)), "the file system isn't whole");
    Some(fs::read_to_string(folder.join("names")).expect("it was written"))
}

fn run(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_bundle_lives_on_fat32() {
    let folder = scratch().join("fat32");
    let program = folder.join("program");
    fs::create_dir_all(&folder).expect("target can be written");
    fs::write(&program, vec![7; 9 << 20]).expect("target can be written");
    let source = build(&folder, &program);
    identify(&source);
    let [copied, created] = ["A Copy of Tiles, d\u{e9}j\u{e0}", "created"].map(|name| folder.join("mount").join(name));
    let model = text(&folder.join("checkpoint"));
    let tiles = |bundle, arguments: &[&str], code, says| {
        Step::Tiles(bundle, arguments.iter().map(|word| (*word).to_owned()).collect(), code, says)
    };
    let steps = [
        tiles(&source, &["-p", "kept"], 0, ANSWER),
        tiles(&source, &["bundle", "copy", &text(&copied)], 0, "was read back"),
        tiles(&source, &["bundle", "create", &text(&created)], 0, "was read back"),
        Step::Remount,
        tiles(&copied, &["bundle", "verify", "--full"], 0, "every byte"),
        tiles(&created, &["bundle", "verify", "--full"], 0, "every byte"),
        tiles(&copied, &["-p", "said on FAT32"], 0, ANSWER),
        tiles(&copied, &["model", "import", &model, "--name", "added"], 0, "added"),
        tiles(&copied, &["data", "backup"], 0, "read back and checked"),
        Step::Remount,
        tiles(&copied, &["session", "search", "kept"], 0, "kept"),
        tiles(&copied, &["session", "search", "FAT32"], 0, "said on FAT32"),
        tiles(&copied, &["run", "added", "-p", "hi"], 0, ANSWER),
        tiles(&copied, &["doctor"], 0, "vfat: no file past"),
    ];
    let names = on_fat32(&folder, &steps);
    assert!(names.is_none_or(|names| !names.contains(".partial")), "something is left");
}

/// A sealed bundle with weights of more than 4 GiB in all, that aren't there: the files are sparse, and nobody has to read
/// them to know what an archive of them would take.
fn large(folder: &Path) -> PathBuf {
    let root = folder.join("Tiles");
    let shard = 2_000_000_000_u64;
    let sidecar = vec![0; (shard.div_ceil(4 << 20) * 32) as usize];
    let program = b"a program";
    let mut files = BTreeMap::from([("bin/linux-x86_64/tiles".to_owned(), None)]);
    files.extend((1..=3).map(|number| (format!("models/m/{number}.safetensors"), Some(shard))));
    let entries = files.iter().map(|(path, shard)| {
        let file = root.join(path);
        fs::create_dir_all(file.parent().expect("below the root")).expect("target can be written");
        match shard {
            Some(bytes) => {
                let sparse = fs::File::create(&file).and_then(|file| file.set_len(*bytes));
                sparse.expect("target can be written");
                fs::write(root.join(format!("{path}.chunks")), &sidecar).expect("target can be written");
            }
            None => fs::write(&file, program).expect("target can be written"),
        }
        Entry {
            path: path.clone(),
            size: shard.unwrap_or(program.len() as u64),
            sha256: Sha256Digest::of(program),
            role: if shard.is_some() { FileRole::Model } else { FileRole::Program },
            chunks_sha256: shard.map(|_| Sha256Digest::of(&sidecar)),
        }
    });
    let list = Manifest {
        format: MANIFEST_FORMAT,
        product: "Tiles".into(),
        version: "1.0.0".into(),
        generation: 1,
        files: entries.collect(),
    };
    let text = list.to_toml();
    let signature = Signature::sign(&SigningKey::from_bytes(&[7; 32]), text.as_bytes()).to_toml();
    fs::write(root.join("MANIFEST.sig"), signature).expect("target can be written");
    fs::write(root.join("MANIFEST.toml"), text).expect("target can be written");
    root
}

#[test]
fn an_archive_past_4_gib_is_refused_before_a_byte_is_written() {
    let folder = scratch().join("fat32-large");
    let root = large(&folder);
    let archive = vec!["bundle".into(), "export".into(), text(&folder.join("mount/Tiles.tar.zst"))];
    let Some(names) = on_fat32(&folder, &[Step::Tiles(&root, archive, 1, "format the drive with exFAT")]) else {
        return;
    };
    assert_eq!(names.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).count(), 0, "{names}");
    let said = fs::read_to_string(folder.join("said-0")).expect("it was written");
    assert!(said.contains("4294967295"), "{said}");
}
