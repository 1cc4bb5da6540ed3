//! What another process finds in the memory of Tiles: the keys while a drive is open, nothing of them after `/lock`.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use secrecy::ExposeSecret as _;
use tilekit::identity::{Identity, KeyFile, KeyStore as _, Passphrase, RecoveryWords, WorkFactor};
use tilekit::store::{Access, Store};

use crate::drive::{PASSPHRASE, TestBundle};
use crate::screen::Screen;

/// What is said in the test's conversation.
const SAID: &str = "zebra-quartz-lagoon is what I said";

/// Secrets by name, to be looked for.
struct Needles(Vec<(&'static str, Vec<u8>)>);

fn hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("it is hexadecimal");
    (0..text.len()).step_by(2).map(digit).collect()
}

impl Needles {
    /// The keys of a bundle, from its payload's text, and the passphrase.
    fn of_payload(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'));
            line.expect("it is there").to_owned()
        };
        let database = field("db_key");
        let mut needles = vec![("database key in hexadecimal", database.clone().into_bytes())];
        for (name, text) in
            [("database key", database), ("seed", field("identity_seed")), ("bundle key", field("bundle_key"))]
        {
            needles.push((name, hex(&text)));
        }
        needles.push(("passphrase", PASSPHRASE.into()));
        needles.push(("what was said", SAID.into()));
        Self(needles)
    }

    /// How often each is in the readable memory of a process; `None` where that can't be read.
    fn found_in(&self, process: u32) -> Option<Vec<(&'static str, usize)>> {
        let folder = PathBuf::from(format!("/proc/{process}"));
        let maps = fs::read_to_string(folder.join("maps")).ok()?;
        let memory = fs::File::open(folder.join("mem")).ok()?;
        let longest = self.0.iter().map(|(_, needle)| needle.len()).max().unwrap_or(0) as u64;
        let mut counts: Vec<_> = self.0.iter().map(|(name, _)| (*name, 0)).collect();
        let mut buffer = vec![0; 4 << 20];
        for line in maps.lines().filter(|line| line.contains(" r") && !line.ends_with("[vvar]")) {
            let (start, end) =
                line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range is first");
            let [mut at, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).expect("it is hexadecimal"));
            while at < end {
                let count = (end - at).min(buffer.len() as u64);
                let piece = &mut buffer[..count as usize];
                // What was unmapped meanwhile isn't there to be found.
                if memory.read_exact_at(piece, at).is_ok() {
                    self.count(piece, &mut counts);
                }
                // Overlapping, for what lies across two pieces.
                at += if at + count == end { count } else { count - longest };
            }
        }
        Some(counts)
    }

    fn count(&self, piece: &[u8], counts: &mut [(&'static str, usize)]) {
        let mut starts = [false; 256];
        self.0.iter().for_each(|(_, needle)| starts[usize::from(needle[0])] = true);
        for (at, byte) in piece.iter().enumerate() {
            if starts[usize::from(*byte)] {
                for ((_, needle), (_, count)) in self.0.iter().zip(counts.iter_mut()) {
                    *count += usize::from(piece[at..].starts_with(needle));
                }
            }
        }
    }
}

/// Those that were found, with how often.
fn present(counts: &[(&'static str, usize)]) -> Vec<(&'static str, usize)> {
    counts.iter().filter(|(_, count)| *count > 0).copied().collect()
}

/// The process that runs the program of this bundle.
fn process_of(bundle: &TestBundle) -> Option<u32> {
    let program = bundle.root.join("bin/linux-x86_64/tiles");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.into_iter().find(|id| fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe == program))
}

#[test]
fn after_lock_no_key_is_in_memory() {
    let bundle = TestBundle::fresh();
    let words = bundle.home.with_file_name("words");
    bundle.ok(&["account", "create", "Ada", "--recovery-file", words.to_str().expect("it is text")]);
    let words = RecoveryWords::parse(&fs::read_to_string(&words).expect("it was written"))
        .unwrap_or_else(|error| panic!("{error}"));
    let recovery: age::x25519::Identity = words.to_age_key().expose_secret().parse().expect("it is an age key");
    let slot = fs::read(bundle.root.join("data/key.a")).expect("it is there");
    let payload = age::decrypt(&recovery, &slot).expect("the words open it");
    let needles = Needles::of_payload(std::str::from_utf8(&payload).expect("it is text"));

    let mut command = bundle.command();
    command.env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.wait("Passphrase:");
    let Some(process) = process_of(&bundle) else {
        eprintln!("Tiles' memory can't be read here (it isn't dumpable, and this isn't root): nothing was looked for");
        return;
    };
    let found = || needles.found_in(process).expect("it was readable a moment ago");
    // All but Return: a control, because a search that finds nothing proves nothing.
    screen.keys(PASSPHRASE);
    let begun = std::time::Instant::now();
    while present(&found()).iter().all(|(name, _)| *name != "passphrase") {
        assert!(begun.elapsed().as_secs() < 20, "the typed passphrase is in memory before Return");
    }
    screen.keys("\r");
    screen.ready();
    screen.enter(SAID);
    let open = present(&found());
    eprintln!("while open: {open:?}");
    let is_open = |name: &str| open.iter().any(|(found, _)| *found == name);
    for name in ["database key", "seed", "bundle key", "what was said"] {
        assert!(is_open(name), "the control: `{name}` isn't found while the drive is open: {open:?}");
    }
    assert!(!is_open("passphrase"), "the passphrase is kept after unlocking");
    screen.keys("/lock\r");
    screen.wait("Locked: ");
    screen.wait_until("the question", |screen| screen.text().ends_with("Passphrase:"));
    assert_eq!(process_of(&bundle), Some(process), "it is the same process");
    assert_eq!(present(&found()), [], "found after lock");
    screen.keys(&format!("{PASSPHRASE}\r"));
    screen.wait("Resumed with 2 messages.");
    screen.ready();
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
}

#[test]
fn what_a_conversation_changed_is_there_again_after_lock() {
    let bundle = TestBundle::quick("Tiles");
    let folder = bundle.home.with_file_name("other");
    crate::scripted::write(&folder, &["Another", " answer."], false);
    bundle.ok(&["model", "import", &folder.display().to_string(), "--name", "other"]);
    let mut command = bundle.command();
    command.args(["--set", "top_k=7", "--passphrase-file", bundle.passphrase()]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.ready();
    let lock = |screen: &mut Screen, times: usize| {
        screen.keys("/lock\r");
        screen.wait_until("the question", |screen| screen.text().matches("Passphrase:").count() == times);
        screen.keys(&format!("{PASSPHRASE}\r"));
        screen.wait_until("greeting", |screen| screen.text().matches("/help lists commands").count() == times + 1);
        screen.ready();
    };
    screen.enter("/system Be as brief as a telegram.");
    screen.enter("/set temperature 0.25");
    for times in [1, 2] {
        lock(&mut screen, times);
        assert_eq!(screen.enter("/system"), "Be as brief as a telegram.");
        let parameters = screen.enter("/show parameters");
        let has = |name: &str, value: &str| {
            parameters.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == [name, value])
        };
        assert!(has("temperature", "0.25") && has("top_k", "7"), "{parameters}");
    }
    screen.enter("/model other");
    screen.enter("/system Be long.");
    lock(&mut screen, 3);
    assert_eq!((screen.enter("/model").as_str(), screen.enter("/system").as_str()), ("other", "Be long."));
    assert_eq!(screen.enter("hi"), "Another answer.");
    lock(&mut screen, 4);
    assert_eq!((screen.enter("/model").as_str(), screen.enter("/system").as_str()), ("other", "Be long."));
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    // Of a conversation that is begun anew it is no part.
    let mut screen = Screen::start(&command);
    screen.ready();
    assert_eq!(screen.enter("/model"), "scripted");
    // What isn't to be kept isn't, and that is said.
    screen.enter("/private");
    screen.enter("/system Hush.");
    screen.keys("/lock\r");
    screen.wait_until("the question", |screen| screen.text().ends_with("Passphrase:"));
    assert!(screen.text().contains("/think changed isn't kept."), "{}", screen.text());
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 130);
}

#[test]
fn lock_never_unlocks_itself() {
    let bundle = TestBundle::new();
    let mut command = bundle.command();
    command.args(["--passphrase-file", bundle.passphrase(), "--stats"]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.ready();
    screen.enter("/private");
    screen.enter("hush");
    screen.keys("/lock\r");
    screen.wait_until("the question", |screen| screen.text().ends_with("Passphrase:"));
    assert!(!screen.text().contains("goes on with the passphrase"), "{}", screen.text());
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 130);
    let mut command = bundle.command();
    command.args(["--no-save"]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&command);
    screen.ready();
    assert!(screen.enter("/lock").contains("nothing is kept here"), "{}", screen.text());
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
}

/// The folder of the child that opens and closes a store; without it, the test that is the child does nothing.
const CHILD_FOLDER: &str = "TILES_TEST_STORE_FOLDER";

/// Opens keys and store, then closes them, and waits for a line after each: what the next test starts and looks into.
#[test]
fn child_that_opens_and_closes() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let folder = Path::new(&folder);
    let mut lines = std::io::stdin().lines();
    let mut pause = |what: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "it is {what}").and_then(|()| out.flush()).expect("the parent reads it");
        lines.next().expect("the parent answers").expect("it is text");
    };
    let passphrase = Passphrase::new(PASSPHRASE.into()).expect("it isn't empty");
    let identity = KeyFile::new(folder).unlock(&passphrase).expect("it is right");
    let store = Store::open(&folder.join("tiles.db"), identity.database_key(), Access::ReadWrite).expect("it opens");
    drop(passphrase);
    store.set_setting("said", SAID).expect("it can be written");
    pause("open");
    store.close().expect("it closes");
    drop(identity);
    pause("closed");
}

/// Keys that are dropped in a process that goes on: what our own code holds is gone, and what SQLCipher and OpenSSL held.
#[test]
fn closing_leaves_no_key_in_a_process_that_goes_on() {
    let bundle = TestBundle::fresh();
    let folder = bundle.home.with_file_name("keys");
    fs::create_dir_all(&folder).expect("target can be written");
    let identity = Identity::generate(tilekit::time::Timestamp::from_ms(0)).expect("random bytes are there");
    let passphrase = Passphrase::new(PASSPHRASE.into()).expect("it isn't empty");
    let words = RecoveryWords::generate().expect("random bytes are there");
    KeyFile::with_work_factor(&folder, WorkFactor::MIN)
        .create(&identity, &passphrase, Some(&words))
        .expect("it is empty");
    let recovery: age::x25519::Identity = words.to_age_key().expose_secret().parse().expect("it is an age key");
    let payload = age::decrypt(&recovery, &fs::read(folder.join("key.a")).expect("it is there")).expect("they fit");
    let mut needles = Needles::of_payload(std::str::from_utf8(&payload).expect("it is text"));
    // The test's own binary holds these two as constants.
    needles.0.retain(|(name, _)| !matches!(*name, "passphrase" | "what was said"));
    let mut child = Command::new(std::env::current_exe().expect("it runs"))
        .args(["--exact", "memory::child_that_opens_and_closes", "--nocapture"])
        .env(CHILD_FOLDER, &folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let mut keyboard = child.stdin.take().expect("it is piped");
    let mut lines = std::io::BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let mut found = |what: &str| {
        lines.find(|line| line.ends_with(what)).expect("the child comes that far");
        let found = needles.found_in(child.id()).map(|counts| present(&counts));
        writeln!(keyboard, "go on").expect("the child reads it");
        found
    };
    let Some(open) = found("it is open") else {
        eprintln!("a child's memory can't be read here: nothing was looked for");
        let _ = child.kill().and_then(|()| child.wait());
        return;
    };
    let closed = found("it is closed").expect("it was readable a moment ago");
    eprintln!("while open: {open:?}; after closing: {closed:?}");
    for name in ["database key", "seed", "bundle key"] {
        assert!(open.iter().any(|(found, _)| *found == name), "the control: `{name}` isn't found while open: {open:?}");
    }
    assert!(child.wait().expect("it is ours").success());
    assert_eq!(closed, [], "left behind");
}
