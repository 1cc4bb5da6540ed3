//! Power goes while the drive is written: nothing acknowledged is lost, and the key always opens.
//!
//! Each kind of work goes on until a cut at a random write; what was not synced stays or goes sector by sector. Then the
//! drive is plugged in again, mended as an operating system would, and looked at. Two controls, one for the database and
//! one for small files, show that the same cuts on the same drive destroy what is written in the usual way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use tilekit::identity::{KeyError, KeyFile, KeyStore as _, Passphrase, WorkFactor};

use crate::drive::{ANSWER, PASSPHRASE, build, identify, scratch};
use crate::screen::{READY, Screen};
use crate::stick::{Stick, counted, rounds};

mod mending;

/// After so many cuts the drive is made anew, so that a round stays short.
const ROUNDS_A_DRIVE: u32 = 25;
/// How many questions a conversation has at most.
const QUESTIONS_MAX: u32 = 8;

/// Random numbers that are the same in each run (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        for shift in [13, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        self.0 % limit
    }
}

/// What a number of cuts came to.
#[derive(Default)]
struct Tally {
    cuts: u32,
    acknowledged: u64,
    sectors_lost: u64,
}

/// Goes through `count` cuts, each within the next `within` writes: `work` goes on until the drive is gone and gives how
/// much it acknowledged; `check` looks at the drive afterwards.
fn cut(name: &str, times: (u32, u64), work: impl FnMut(&mut Stick, u32) -> u64, check: impl FnMut(&mut Stick, u32)) {
    cut_prepared(name, times, |_, _| {}, work, check);
}

/// The same; `prepare` makes ready, before each round, what is worked on.
fn cut_prepared(
    name: &str,
    (count, within): (u32, u64),
    mut prepare: impl FnMut(&mut Stick, u32),
    mut work: impl FnMut(&mut Stick, u32) -> u64,
    mut check: impl FnMut(&mut Stick, u32),
) {
    let Some(mut stick) = Stick::new() else { return };
    let (mut dice, mut tally) = (Dice(0x9e37_79b9_7f4a_7c15), Tally::default());
    for round in 0..count {
        if round > 0 && round % ROUNDS_A_DRIVE == 0 {
            stick.renew();
        }
        let (at, seed, kept) = (1 + dice.below(within), dice.below(1 << 30), [0, 50, 90][dice.below(3) as usize]);
        prepare(&mut stick, round);
        stick.tell(&format!("cut {at} {seed} {kept}"));
        tally.acknowledged += work(&mut stick, round);
        let told = stick.replug();
        tally.cuts += u32::from(told.contains("dead=1"));
        tally.sectors_lost += counted(&told, "lost");
        check(&mut stick, round);
    }
    let Tally { cuts, acknowledged, sectors_lost } = tally;
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {cuts} cuts in {count} rounds, {sectors_lost} sectors lost, {acknowledged} acknowledged"
    );
    assert!(cuts * 2 > count && sectors_lost > 0 && acknowledged > 0, "{name}: hardly anything was cut");
}

fn new_drive(round: u32) -> bool {
    round.is_multiple_of(ROUNDS_A_DRIVE)
}

/// Asks at the prompt until the program ends; gives the questions that were answered.
fn converse(stick: &Stick, begin: &str) -> Vec<String> {
    let mut command = stick.host_command();
    command.args(["--passphrase-file", &stick.passphrase()]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    let mut answered = Vec::new();
    if !screen.wait_or_end(|screen| screen.text().ends_with(READY)) {
        return answered;
    }
    for number in 0..QUESTIONS_MAX {
        let question = format!("{begin} {number}");
        if !screen.say(&question, ANSWER) {
            break;
        }
        answered.push(question);
    }
    if screen.wait_or_end(|screen| screen.text().ends_with(READY)) {
        screen.keys("/bye\r");
    }
    screen.wait("modes=");
    answered
}

/// Asks one question a process; gives those that were answered with success.
fn ask_singly(stick: &Stick, begin: &str) -> Vec<String> {
    let questions = (0..3).map(|number| format!("{begin} {number}"));
    let is_answered = |question: &String| {
        let mut command = stick.host_command();
        let output = command.args(["--passphrase-file", &stick.passphrase(), "-p", question]).output();
        output.is_ok_and(|output| output.status.success())
    };
    questions.take_while(is_answered).collect()
}

/// The questions on the drive that have their answer.
fn kept(stick: &Stick) -> BTreeSet<String> {
    let mut command = stick.host_command();
    command.args(["--passphrase-file", &stick.passphrase(), "session", "export", "--format", "json"]);
    let output = command.output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let mut texts = Vec::new();
    collect(&value, &mut texts);
    let pairs = texts.windows(2).filter(|pair| pair[0].starts_with("question ") && pair[1] == ANSWER);
    pairs.map(|pair| pair[0].clone()).collect()
}

/// All texts named `content`, in their order.
fn collect(value: &serde_json::Value, texts: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, texts)),
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == "content" => texts.push(text.into()),
                    _ => collect(value, texts),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn no_answered_message_is_lost() {
    let acked = RefCell::new(BTreeSet::new());
    cut(
        "power cuts while chatting",
        (rounds("CHAT", 8), 400),
        |stick, round| {
            if new_drive(round) {
                acked.borrow_mut().clear();
            }
            let mut count = 0;
            for attempt in 0.. {
                let begin = format!("question {round} {attempt}");
                let new = if attempt % 2 == 0 { converse(stick, &begin) } else { ask_singly(stick, &begin) };
                count += new.len() as u64;
                acked.borrow_mut().extend(new);
                if stick.count("dead") == 1 {
                    break;
                }
            }
            count
        },
        |stick, round| {
            let (kept, acked) = (kept(stick), acked.borrow());
            let lost: Vec<_> = acked.difference(&kept).collect();
            assert!(lost.is_empty(), "round {round}: {lost:?} were answered, and are lost");
        },
    );
}

fn passphrase(number: u64) -> Passphrase {
    Passphrase::new(if number == 0 { PASSPHRASE.into() } else { format!("{PASSPHRASE} {number}") }).expect("it is one")
}

#[test]
fn the_key_opens_after_each_cut() {
    // The number of the passphrase that was last acknowledged.
    let current = Cell::new(0_u64);
    let key_file = |stick: &Stick| KeyFile::with_work_factor(&stick.outside("Tiles/data"), WorkFactor::MIN);
    cut(
        "power cuts over passphrase changes",
        (rounds("PASSPHRASE", 8), 60),
        |stick, round| {
            if new_drive(round) {
                current.set(0);
            }
            let (keys, before) = (key_file(stick), current.get());
            while keys.change_passphrase(&passphrase(current.get()), &passphrase(current.get() + 1)).is_ok() {
                current.set(current.get() + 1);
            }
            current.get() - before
        },
        |stick, round| {
            let (keys, number) = (key_file(stick), current.get());
            // The change under way may have come through; it was not acknowledged.
            let opened = match keys.open(&passphrase(number)) {
                Ok(unlocked) => Ok((number, unlocked)),
                Err(KeyError::WrongPassphrase) => {
                    keys.open(&passphrase(number + 1)).map(|unlocked| (number + 1, unlocked))
                }
                Err(error) => Err(error),
            };
            let (number, _) = opened.unwrap_or_else(|e| panic!("round {round}: passphrase {number} doesn't open: {e}"));
            keys.mend(&passphrase(number)).expect("the drive is there");
            current.set(number);
        },
    );
}

/// The same by the command that a person types; each change derives keys in earnest, so only the long form has it.
#[test]
fn the_key_command_survives_cuts() {
    let count = rounds("KEY_COMMAND", 0);
    if count == 0 {
        return;
    }
    let current = Cell::new(0_u64);
    let file = |stick: &Stick, number: u64| {
        let path = stick.beside(&format!("passphrase-{number}"));
        let text = if number == 0 { PASSPHRASE.into() } else { format!("{PASSPHRASE} {number}") };
        std::fs::write(&path, text).expect("target can be written");
        path.display().to_string()
    };
    let tiles = |stick: &Stick, number: u64, arguments: &[&str]| {
        let mut command = stick.host_command();
        command.args(arguments).args(["--passphrase-file", &file(stick, number)]);
        command.output().expect("it can be run").status.success()
    };
    cut(
        "power cuts over `key passphrase`",
        (count, 40),
        |stick, round| {
            if new_drive(round) {
                current.set(0);
            }
            let before = current.get();
            while tiles(
                stick,
                current.get(),
                &["key", "passphrase", "--new-passphrase-file", &file(stick, current.get() + 1)],
            ) {
                current.set(current.get() + 1);
            }
            current.get() - before
        },
        |stick, round| {
            let number = current.get();
            let opens = [number, number + 1].into_iter().find(|number| tiles(stick, *number, &["account"]));
            current.set(opens.unwrap_or_else(|| panic!("round {round}: passphrase {number} doesn't open")));
        },
    );
}

#[test]
fn no_half_import_counts_as_a_model() {
    let tiles = |stick: &Stick, arguments: &[&str]| {
        let mut command = stick.host_command();
        command.args(arguments).args(["--passphrase-file", &stick.passphrase()]);
        command.output().expect("it can be run")
    };
    let import = |stick: &Stick, name: &str| {
        let folder = stick.beside("added");
        crate::scripted::write(&folder, &["Added", " one."], false);
        tiles(stick, &["model", "import", &folder.display().to_string(), "--name", name])
    };
    let acked = RefCell::new(Vec::new());
    cut(
        "power cuts over imports",
        (rounds("IMPORT", 4), 600),
        |stick, round| {
            if new_drive(round) {
                acked.borrow_mut().clear();
            }
            let names = (0..).map(|number| format!("added-{round}-{number}"));
            let before = acked.borrow().len();
            acked.borrow_mut().extend(names.take_while(|name| import(stick, name).status.success()));
            (acked.borrow().len() - before) as u64
        },
        |stick, round| {
            let succeed = |arguments: &[&str]| {
                let output = tiles(stick, arguments);
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "round {round}: tiles {arguments:?}: {errors}");
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let listed = succeed(&["model", "list", "--json"]);
            let lost: Vec<_> =
                acked.borrow().iter().filter(|name| !listed.contains(&format!("\"{name}\""))).cloned().collect();
            assert!(lost.is_empty(), "round {round}: {lost:?} were imported, and are lost");
            // What is listed, acknowledged or not, is whole.
            succeed(&["model", "verify"]);
            // What is left of the one under way stands in nobody's way.
            let interrupted = format!(
                "added-{round}-{}",
                acked.borrow().iter().filter(|n| n.starts_with(&format!("added-{round}-"))).count()
            );
            if !listed.contains(&format!("\"{interrupted}\"")) {
                let again = import(stick, &interrupted);
                let errors = String::from_utf8_lossy(&again.stderr);
                assert!(again.status.success(), "round {round}: it can't be imported again: {errors}");
            }
            assert_eq!(succeed(&["run", &interrupted, "-p", "hi"]).trim(), "Added one.", "round {round}");
            succeed(&["model", "remove", &interrupted, "--yes"]);
        },
    );
}

#[test]
fn no_half_copy_counts_as_a_bundle() {
    let folder = scratch().join("copied");
    std::fs::create_dir_all(&folder).expect("target can be written");
    let program = folder.join("program");
    std::fs::write(&program, "a small one").expect("target can be written");
    let source = build(&folder, &program);
    identify(&source);
    let tiles = |stick: &Stick, bundle: &Path, arguments: &[&str]| {
        let mut command = stick.inside(Path::new(env!("CARGO_BIN_EXE_tiles")));
        command.arg("--bundle").arg(bundle).args(arguments).args(["--passphrase-file", &stick.passphrase()]);
        command.output().expect("it can be run")
    };
    let copy = |stick: &Stick, dest: &Path| tiles(stick, &source, &["bundle", "copy", &dest.display().to_string()]);
    let dest = |stick: &Stick, round: u32, number: u32| stick.root().with_file_name(format!("copy-{round}-{number}"));
    let (acked, lost) = (RefCell::new((0, 0)), Cell::new(0));
    cut(
        "power cuts over copies of the bundle",
        (rounds("COPY", 4), 700),
        |stick, round| {
            let done = (0..).take_while(|number| copy(stick, &dest(stick, round, *number)).status.success()).count();
            *acked.borrow_mut() = (round, done as u32);
            done as u64
        },
        |stick, round| {
            let succeed = |bundle: &Path, arguments: &[&str]| {
                let output = tiles(stick, bundle, arguments);
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "round {round}: tiles {arguments:?}: {errors}");
            };
            let done = acked.borrow().1;
            for number in 0..done {
                succeed(&dest(stick, round, number), &["bundle", "verify", "--full"]);
            }
            let interrupted = dest(stick, round, done);
            // Whole, or nobody takes it for a bundle.
            let looked_at = tiles(stick, &interrupted, &["-p", "hi"]);
            let verified = tiles(stick, &interrupted, &["bundle", "verify", "--full"]);
            assert_eq!(looked_at.status.success(), verified.status.success(), "round {round}: half a copy answers");
            if !verified.status.success() {
                // The same command again goes on, and ends; unless the file system has lost the folder itself, which is said.
                let again = copy(stick, &interrupted);
                let errors = String::from_utf8_lossy(&again.stderr).into_owned();
                let whole = match again.status.success() {
                    true => interrupted.clone(),
                    false => interrupted.with_extension("anew"),
                };
                if whole != interrupted {
                    assert!(errors.contains("its file system is damaged there"), "round {round}: {errors}");
                    lost.set(lost.get() + 1);
                    succeed(&source, &["bundle", "copy", &whole.display().to_string()]);
                }
                succeed(&whole, &["bundle", "verify", "--full"]);
            }
            // So that there is space for the next; what leads nowhere can't be removed.
            let _ = std::fs::remove_dir_all(stick.outside("").join(interrupted.file_name().expect("it has one")));
        },
    );
    println!("of them the file system lost {} folders", lost.get());
    assert!(lost.get() * 10 <= rounds("COPY", 4), "the file system lost {} folders", lost.get());
}

/// SQLite as it comes: a rollback journal that is deleted. Says each number that it has written.
const JOURNAL: &str = r#"import sqlite3, sys
connection = sqlite3.connect(sys.argv[1] + "/control.db")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("PRAGMA journal_mode = DELETE")
connection.execute("CREATE TABLE IF NOT EXISTS said (number INTEGER)")
number = connection.execute("SELECT coalesce(max(number), 0) FROM said").fetchone()[0]
print(number, flush=True)
while len(sys.argv) == 2:
    number += 1
    connection.execute("INSERT INTO said VALUES (?)", (number,))
    connection.commit()
    print(number, flush=True)"#;

/// A small file as it is usually replaced: another one is written, synced, and takes its name.
const RENAME: &str = r#"import os, sys
name = sys.argv[1] + "/control"
number = int(open(name).read()) if os.path.exists(name) else 0
print(number, flush=True)
while len(sys.argv) == 2:
    number += 1
    with open(name + ".partial", "w") as file:
        file.write(f"{number:>4096}")
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".partial", name)
    print(number, flush=True)"#;

/// Cuts a program that should fail: how often what it acknowledged was lost.
#[track_caller]
fn check_loses(name: &str, program: &str, within: u64) {
    let Some(mut stick) = Stick::new() else { return };
    let (mut dice, mut lost, count) = (Dice(0x9e37_79b9_7f4a_7c15), 0, rounds("CONTROL", 16));
    let said = |stick: &Stick, more: &[&str]| {
        let mut command = stick.inside(Path::new("/usr/bin/python3"));
        let output = command.args(["-c", program]).arg(stick.root()).args(more).output().expect("python3 is there");
        let said = String::from_utf8_lossy(&output.stdout).lines().last().and_then(|line| line.parse().ok());
        said.filter(|_: &u64| more.is_empty() || output.status.success())
    };
    for _ in 0..count {
        stick.tell(&format!("cut {} {} 50", 1 + dice.below(within), dice.below(1 << 30)));
        let acknowledged = said(&stick, &[]);
        stick.replug();
        let found = said(&stick, &["read"]);
        if found < acknowledged {
            lost += 1;
            stick.renew();
        }
    }
    let _ = writeln!(std::io::stderr(), "control, {name}: {lost} of {count} cuts lost what was acknowledged");
    assert!(lost > 0, "the cuts harm nothing: the harness is broken");
}

#[test]
fn control_a_deleted_journal_loses_messages() {
    check_loses("journal_mode = DELETE", JOURNAL, 120);
}

#[test]
fn control_a_renamed_file_is_lost() {
    check_loses("rename", RENAME, 40);
}
