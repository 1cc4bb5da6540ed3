//! The same for what changes a bundle as a whole: repair in place, what `data adopt` carries, and a build.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::{cut, cut_prepared, new_drive};
use crate::drive::{ANSWER, build, identify, scratch};
use crate::stick::{Stick, rounds};

/// A sealed bundle on the host with an identity, and the folder that it was built in; first that folder.
fn source(name: &str, program_bytes: u32) -> (PathBuf, PathBuf) {
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).expect("target can be written");
    let program = folder.join("program");
    let content: Vec<u8> = (0..program_bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&program, content).expect("target can be written");
    let root = build(&folder, &program);
    identify(&root);
    (folder, root)
}

/// Runs the host's program with a bundle, where the drive can be seen.
fn tiles(stick: &Stick, bundle: &Path, arguments: &[&str]) -> Output {
    let mut command = stick.inside(Path::new(env!("CARGO_BIN_EXE_tiles")));
    command.arg("--bundle").arg(bundle).args(arguments).args(["--passphrase-file", &stick.passphrase()]);
    command.output().expect("it can be run")
}

#[track_caller]
fn succeed(stick: &Stick, bundle: &Path, round: u32, arguments: &[&str]) -> String {
    let output = tiles(stick, bundle, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "round {round}: tiles {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Flips a bit in each of these places; says whether the drive was there all the time.
fn damage(path: &Path, places: &[u64]) -> bool {
    let flip = || {
        let file = fs::File::options().read(true).write(true).open(path)?;
        for at in places {
            let mut byte = [0];
            file.read_exact_at(&mut byte, *at)?;
            file.write_all_at(&[byte[0] ^ 4], *at)?;
        }
        file.sync_all()
    };
    flip().is_ok()
}

#[test]
fn a_repair_that_was_cut_is_repaired_again() {
    let (_, source) = source("donor", 9 << 20);
    let root = |stick: &Stick| stick.root().with_file_name("damaged");
    let repair = |stick: &Stick| tiles(stick, &root(stick), &["bundle", "repair", "--from", &text(&source)]);
    cut_prepared(
        "power cuts over repairs",
        (rounds("REPAIR", 4), 9_000),
        |stick, round| {
            if new_drive(round) {
                succeed(stick, &source, round, &["bundle", "copy", &text(&root(stick))]);
            }
        },
        |stick, round| {
            let below = stick.outside("damaged");
            let (config, program) = (below.join("models/scripted/config.json"), below.join("bin/linux-x86_64/tiles"));
            let places = [&[77, 5 << 20, (8 << 20) + 5][..], &[4 << 20], &[9_000_000, 3]].into_iter().cycle();
            let mut done = 0;
            for places in places {
                if !damage(&program, places) || !damage(&config, &[places[0] % 100]) || !repair(stick).status.success()
                {
                    break;
                }
                done += 1;
                // The drive may be gone by now; that it is whole and isn't can't be.
                let verified = tiles(stick, &root(stick), &["bundle", "verify", "--full"]);
                assert_ne!(verified.status.code(), Some(5), "round {round}: it was mended");
            }
            done
        },
        |stick, round| {
            // Whole, or told as damaged; then the same command ends what was begun.
            let verified = tiles(stick, &root(stick), &["bundle", "verify", "--full"]);
            if !verified.status.success() {
                assert_eq!(verified.status.code(), Some(5), "round {round}");
                let repaired = repair(stick);
                assert!(repaired.status.success(), "round {round}: {}", String::from_utf8_lossy(&repaired.stderr));
                succeed(stick, &root(stick), round, &["bundle", "verify", "--full"]);
            }
            // What is the person's isn't touched by it.
            assert_eq!(succeed(stick, &root(stick), round, &["-p", "hi"]).trim(), ANSWER, "round {round}");
        },
    );
}

/// So many homes wait to be carried into.
const HOMES: u64 = 4;

#[test]
fn what_is_carried_arrives_whole_or_not_at_all() {
    let (_, from) = source("carried", 100);
    let home = |stick: &Stick, number: u64| stick.root().with_file_name(format!("home-{number}"));
    let adopt =
        |stick: &Stick, number: u64| tiles(stick, &home(stick, number), &["data", "adopt", &text(&from), "--copy"]);
    let has_said = |stick: &Stick, bundle: &Path, round: u32| {
        assert!(succeed(stick, bundle, round, &["session", "search", "kept"]).contains("kept"), "round {round}");
    };
    let is_begun = Cell::new(false);
    let done = Cell::new(0);
    cut_prepared(
        "power cuts over `data adopt`",
        (rounds("ADOPT", 4), 250),
        |stick, round| {
            if !is_begun.replace(true) {
                succeed(stick, &from, round, &["-p", "kept"]);
            }
            for number in 0..HOMES {
                if new_drive(round) {
                    succeed(stick, &from, round, &["bundle", "create", &text(&home(stick, number))]);
                }
                let below = stick.outside(&format!("home-{number}"));
                for name in ["data", "data.partial", "data.before"] {
                    let _ = fs::remove_dir_all(below.join(name));
                }
                fs::create_dir_all(below.join("data")).expect("it is plugged in");
            }
            // So that nothing of this is lost with what follows.
            stick.replug();
        },
        |stick, _| {
            done.set((0..HOMES).take_while(|number| adopt(stick, *number).status.success()).count() as u64);
            done.get()
        },
        |stick, round| {
            for number in 0..HOMES.min(done.get() + 1) {
                // One that was acknowledged is there; the one under way is, or isn't, and then the same command carries it.
                let is_there = stick.outside(&format!("home-{number}/data/key.a")).exists();
                assert!(is_there || number == done.get(), "round {round}: home {number} is lost");
                let again = adopt(stick, number);
                let errors = String::from_utf8_lossy(&again.stderr);
                assert_ne!(again.status.success(), is_there, "round {round}: {errors}");
                assert!(!is_there || errors.contains("never overwritten"), "round {round}: {errors}");
                has_said(stick, &home(stick, number), round);
            }
            has_said(stick, &from, round);
        },
    );
}

#[test]
fn a_build_that_was_cut_goes_on() {
    let (folder, _) = source("recipe", 100);
    let (recipe, program) = (text(&folder.join("source/MANIFEST.toml")), text(&folder.join("program")));
    let (model, seal) = (format!("scripted={}", text(&folder.join("checkpoint"))), text(&folder.join("seal.key")));
    let dest = |stick: &Stick, round: u32, number: u64| stick.root().with_file_name(format!("built-{round}-{number}"));
    let build = |stick: &Stick, dest: &Path| {
        let mut command = stick.inside(Path::new(env!("CARGO_BIN_EXE_tiles")));
        command.args(["bundle", "build", &recipe, &text(dest), "--program", &program]);
        command.args(["--model", &model, "--seal-key", &seal]).output().expect("it can be run")
    };
    let (acked, lost) = (Cell::new(0), Cell::new(0));
    cut(
        "power cuts over `bundle build`",
        (rounds("BUILD", 4), 700),
        |stick, round| {
            let is_built = |number: &u64| build(stick, &dest(stick, round, *number)).status.success();
            acked.set((0..).take_while(is_built).count() as u64);
            acked.get()
        },
        |stick, round| {
            for number in 0..=acked.get() {
                let root = dest(stick, round, number);
                if number == acked.get() {
                    // The one under way: the same command goes on with it, unless the file system lost the folder itself.
                    let again = build(stick, &root);
                    let errors = String::from_utf8_lossy(&again.stderr);
                    if !again.status.success()
                        && fs::read_dir(stick.outside("").join(root.file_name().expect("it has one"))).is_err()
                    {
                        lost.set(lost.get() + 1);
                        continue;
                    }
                    assert!(again.status.success(), "round {round}: {errors}");
                }
                succeed(stick, &root, round, &["bundle", "verify", "--full", "--shipped"]);
                let _ = fs::remove_dir_all(stick.outside("").join(root.file_name().expect("it has one")));
            }
        },
    );
    println!("of them the file system lost {} folders", lost.get());
    assert!(lost.get() * 10 <= rounds("BUILD", 4).max(10), "the file system lost {} folders", lost.get());
}
