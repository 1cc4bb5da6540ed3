//! What linking and syncing cost: two drives in two processes, over real sockets of this machine.
//!
//! `cargo bench --bench sync -- FOLDER [--messages N] [--runs N]` makes its drives in FOLDER, which must be empty or not
//! there, and prints a line of JSON a case. `tools/bench-sync` runs it.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::error::Error;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tilekit::did::Did;
use tilekit::digest::Sha256Digest;
use tilekit::identity::{Identity, KeyFile, KeyStore as _, Passphrase, WorkFactor};
use tilekit::library::HandedModel;
use tilekit::message::{Message, MessageId, Role, SessionId};
use tilekit::peer::link::{Card, Digits};
use tilekit::peer::mesh::MeshKey;
use tilekit::peer::{Approver, Myself, Network, PeerError, Target, Ticket, keep, link_drive};
use tilekit::store::{Access, Store};
use tilekit::sync::{
    Handover, Offered, Outcome, Plan, Progress, Report, SyncError, Watcher, give_model, sync_drives, take_model,
};
use tilekit::time::{Clock, FixedClock, Timestamp};
use tilekit::transcript::{StoredMessage, Transcript};

type Fallible<T> = Result<T, Box<dyn Error>>;

const NOW: Timestamp = Timestamp::from_ms(1_795_688_340_000);
/// Messages of a session.
const SESSION_MESSAGES: usize = 1_000;
/// Bytes of a message: 100,000 of them are 44 MB.
const MESSAGE_BYTES: usize = 440;
/// Bytes of the model that is handed over.
const BULK_BYTES: usize = 128 << 20;
const BULK_FILE: &str = "model.safetensors";

fn main() -> Fallible<()> {
    let (mut folder, mut messages, mut runs, mut side, mut is_bulk) = (None, 100_000, 7, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number =
            || arguments.next().ok_or("a number is missing")?.parse::<usize>().map_err(Box::<dyn Error>::from);
        match argument.as_str() {
            "--messages" => messages = number()?,
            "--runs" => runs = number()?.max(1),
            "--side" => side = Some(arguments.next()),
            "--bulk" => {
                side = Some(arguments.next());
                is_bulk = true;
            }
            // Cargo says this to every benchmark.
            "--bench" => {}
            path => folder = Some(PathBuf::from(path)),
        }
    }
    match (folder, side) {
        (Some(folder), Some(port)) if is_bulk => one_side_of_bulk(&folder, port.as_deref()),
        (Some(folder), Some(port)) => one_side(&folder, port.as_deref()),
        (Some(folder), None) => measure(&folder, messages, runs),
        // `cargo test --benches` gives no folder: that it starts is all that is asked.
        (None, _) => Ok(()),
    }
}

/// A drive's keys and store.
fn open(folder: &Path) -> Fallible<(Identity, Store)> {
    let keys = KeyFile::with_work_factor(folder, WorkFactor::MIN);
    let passphrase = Passphrase::new("for a benchmark".into())?;
    if !keys.exists()? {
        std::fs::create_dir_all(folder)?;
        keys.create(&Identity::generate(NOW)?, &passphrase, None)?;
    }
    let identity = keys.unlock(&passphrase)?;
    let store = Store::open(&folder.join("tiles.db"), identity.database_key(), Access::ReadWrite)?;
    Ok((identity, store))
}

fn link(one: &Path, other: &Path) -> Fallible<()> {
    let opened = [open(one)?, open(other)?];
    let keys = [MeshKey::draw()?];
    for (me, other) in [(0, 1), (1, 0)] {
        let card = Card { nickname: "other".into(), did: opened[other].0.did() };
        keep(&opened[me].1, opened[me].0.did(), &card, &keys, NOW)?;
    }
    Ok(())
}

/// Text that is no more compressible than English, from a counter.
fn text(state: &mut u64) -> String {
    const WORDS: [&str; 32] = [
        "the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with",
        "his", "they", "I", "light", "scatters", "because", "molecule", "evening", "harbour", "question", "answer",
        "number", "seven", "please", "explain",
    ];
    let mut text = String::with_capacity(MESSAGE_BYTES + 16);
    while text.len() < MESSAGE_BYTES {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(*state >> 59) as usize]);
        // Names and numbers, which no dictionary has.
        if *state >> 40 & 3 == 0 {
            text.push_str(&format!(" {:x}", *state >> 44));
        }
        text.push(' ');
    }
    text.truncate(MESSAGE_BYTES);
    text
}

fn fill(store: &Store, messages: usize) -> Fallible<()> {
    let mut state = 1;
    let mut left = messages;
    let mut number = 0_u64;
    while left > 0 {
        let count = left.min(SESSION_MESSAGES);
        left -= count;
        let said = (0..count).map(|at| {
            number += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&number.to_be_bytes());
            StoredMessage {
                id: MessageId(id),
                role: if at % 2 == 0 { Role::User } else { Role::Assistant },
                content: text(&mut state),
                reasoning: None,
                created_at: Timestamp::from_ms(NOW.as_ms() + at as i64),
                finish_reason: None,
                model: None,
                usage: None,
            }
        });
        let messages: Vec<StoredMessage> = said.collect();
        let mut id = [1; 16];
        id[..8].copy_from_slice(&(left as u64).to_be_bytes());
        let (title, model) = (Some(format!("{left} left")), "small".into());
        store.import(&[Transcript { id: SessionId(id), title, model, created_at: NOW, updated_at: NOW, messages }])?;
    }
    Ok(())
}

/// Hears of one exchange, prints the port, and what it came to.
#[derive(Default)]
struct Prints {
    /// When the exchange was over and what came began to be made searchable.
    indexing_since: OnceLock<Instant>,
}

impl Watcher for Prints {
    fn waiting(&self, port: Option<u16>, _: usize) {
        println!("{}", port.unwrap_or(0));
    }
    fn met(&self, _: Did) {}
    fn progress(&self, _: &Progress) {}
    fn indexing(&self, _: u64) {
        self.indexing_since.get_or_init(Instant::now);
    }
    fn ended(&self, _: Did, _: &Report, _: Option<&SyncError>) {}
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// One of the two processes: waits, or goes to the port that it is given.
fn one_side(folder: &Path, port: Option<&str>) -> Fallible<()> {
    let (identity, store) = open(folder)?;
    let at = port.map(|port| format!("127.0.0.1:{port}").parse()).transpose()?;
    let network = Network { loopback_only: true, ..Network::default() };
    let plan = Plan { only: None, at, watch: false, patience: Duration::from_secs(60), network };
    let prints = Arc::new(Prints::default());
    let outcomes = sync_drives(&store, &identity, plan, Arc::new(FixedClock(NOW)), Arc::clone(&prints) as _)?;
    let indexing = prints.indexing_since.get().map_or(Duration::ZERO, Instant::elapsed);
    let Outcome { report, error, .. } = outcomes.into_iter().next().ok_or("nobody was linked")?;
    if let Some(error) = error {
        return Err(error.into());
    }
    println!(
        "{}",
        json!({
            "ms": report.took.as_secs_f64() * 1e3, "indexing_ms": indexing.as_secs_f64() * 1e3, "received_ops": report.received.ops, "sent_ops": report.sent.ops,
            "received_bytes": report.received.bytes, "sent_bytes": report.sent.bytes, "peak_mb": peak_mb(),
        })
    );
    Ok(())
}

/// Hears of a model that is handed over, and prints the port.
struct PrintsPort;

impl Handover for PrintsPort {
    fn waiting(&self, port: Option<u16>) {
        println!("{}", port.unwrap_or(0));
    }
    fn bytes(&self, _: u64) {}
    fn asked(&self, _: Did) {}
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// One of the two processes of a model's transfer: gives one of random bytes, or fetches it and prints how long that took, from
/// the yes until each byte is on the drive and was checked on the way.
fn one_side_of_bulk(folder: &Path, port: Option<&str>) -> Fallible<()> {
    let (identity, store) = open(folder)?;
    let at = port.map(|port| format!("127.0.0.1:{port}").parse()).transpose()?;
    let network = Network { loopback_only: true, ..Network::default() };
    let plan = Plan { only: None, at, watch: false, patience: Duration::from_secs(60), network };
    let clock = Arc::new(FixedClock(NOW));
    let handover: Arc<dyn Handover> = Arc::new(PrintsPort);
    let folder = std::path::absolute(folder)?;
    let model = folder.join("bulk");
    std::fs::create_dir_all(&model)?;
    if at.is_none() {
        let mut state = 1_u64;
        let mut bytes = Vec::with_capacity(BULK_BYTES);
        while bytes.len() < BULK_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        std::fs::write(model.join(BULK_FILE), &bytes)?;
        let files = vec![(BULK_FILE.into(), BULK_BYTES as u64, Sha256Digest::of(&bytes))];
        let handed = HandedModel { name: "bulk".into(), source: "bulk".into(), revision: None, licence: None, files };
        give_model(&store, &identity, &plan, (handed, &model, &folder.join("scratch")), clock, &handover)?;
        return Ok(());
    }
    let began = Mutex::new(Instant::now());
    let start = || began.lock().map(|mut began| *began = Instant::now());
    let choose = |_: &Offered| {
        start().map_err(|_| SyncError::Declined)?;
        Ok(Some((vec![BULK_FILE.into()], model.clone())))
    };
    take_model::<SyncError>(&store, &identity, &plan, clock, &handover, choose, || {
        let seconds = began.lock().map_err(|_| SyncError::Declined)?.elapsed().as_secs_f64();
        println!("{}", json!({ "s": seconds }));
        Ok(())
    })?;
    Ok(())
}

/// The most memory that this process had at once, in megabytes; nothing where the system doesn't say.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1_024.0 / 1e6)
}

fn start(folder: &Path, side: &str, port: Option<&str>) -> Fallible<(Child, BufReader<std::process::ChildStdout>)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(folder).arg(side).args(port).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let output = BufReader::new(child.stdout.take().ok_or("it was asked for")?);
    Ok((child, output))
}

fn line(output: &mut impl std::io::BufRead) -> Fallible<String> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    Ok(line.trim().into())
}

/// Syncs two drives in two processes, and gives what each says of it: who waited, who came.
fn sync(waits: &Path, comes: &Path) -> Fallible<[Value; 2]> {
    let (mut here, mut heard) = start(waits, "--side", None)?;
    let port = line(&mut heard)?;
    let (mut there, mut told) = start(comes, "--side", Some(&port))?;
    line(&mut told)?;
    let reports = [serde_json::from_str(&line(&mut heard)?)?, serde_json::from_str(&line(&mut told)?)?];
    here.wait()?;
    there.wait()?;
    Ok(reports)
}

/// How long a model of random bytes takes from one drive to the other, in seconds.
fn bulk(gives: &Path, takes: &Path) -> Fallible<f64> {
    for folder in [gives, takes] {
        let _ = std::fs::remove_dir_all(folder.join("bulk"));
    }
    let (mut here, mut heard) = start(gives, "--bulk", None)?;
    let port = line(&mut heard)?;
    let (mut there, mut told) = start(takes, "--bulk", Some(&port))?;
    line(&mut told)?;
    let took: Value = serde_json::from_str(&line(&mut told)?)?;
    here.wait()?;
    there.wait()?;
    Ok(number(&took, "s"))
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(folder: &Path, messages: usize, runs: usize) -> Fallible<()> {
    let [one, other] = ["one", "other"].map(|name| folder.join(name));
    link(&one, &other)?;
    {
        let (_, store) = open(&one)?;
        fill(&store, messages)?;
        store.close()?;
    }
    let [_, got] = sync(&one, &other)?;
    let seconds = number(&got, "ms") / 1e3;
    println!(
        "{}",
        json!({
            "case": "all", "messages": messages, "goal_s": 3.0 * messages as f64 / 1e5, "s": seconds,
            "then_indexed_s": number(&got, "indexing_ms") / 1e3,
            "ops_per_s": number(&got, "received_ops") / seconds, "peak_mb": got["peak_mb"], "goal_peak_mb": 150,
            "wire_mb": number(&got, "received_bytes") / 1e6, "wire_mb_per_s": number(&got, "received_bytes") / 1e6 / seconds,
            "text_mb_per_s": (messages * MESSAGE_BYTES) as f64 / 1e6 / seconds,
        })
    );
    let mut empty = Vec::new();
    let mut bytes = 0.0_f64;
    for _ in 0..runs {
        let [_, got] = sync(&one, &other)?;
        empty.push(number(&got, "ms"));
        bytes = bytes.max(number(&got, "received_bytes") + number(&got, "sent_bytes"));
    }
    println!("{}", json!({ "case": "empty", "ms": median(empty), "goal_ms": 20, "bytes": bytes, "goal_bytes": 1_024 }));
    let mut behind = Vec::new();
    for _ in 0..runs {
        let (_, store) = open(&one)?;
        let id = store.create(NOW, None, "small")?;
        // A session and its title come with the first message.
        for _ in 0..97 {
            store.append_turn(id, &[Message::new(Role::User, "and another thing").into()], NOW)?;
        }
        store.close()?;
        let [_, got] = sync(&one, &other)?;
        if number(&got, "received_ops") < 97.0 {
            return Err("what was said didn't arrive".into());
        }
        behind.push(number(&got, "ms"));
    }
    println!("{}", json!({ "case": "99 behind", "ms": median(behind), "goal_ms": 10 }));
    let mb = BULK_BYTES as f64 / 1e6;
    let rates: Vec<f64> = (0..runs).map(|_| Ok(mb / bulk(&one, &other)?)).collect::<Fallible<_>>()?;
    println!("{}", json!({ "case": "bulk, a model", "mb": mb, "mb_per_s": median(rates), "goal_mb_per_s": 60 }));
    let links: Vec<f64> = (0..runs).map(|_| link_ms()).collect::<Fallible<_>>()?;
    println!("{}", json!({ "case": "link after approval", "ms": median(links), "goal_ms": 50 }));
    Ok(())
}

/// Says yes at once, and notes when.
struct Yes {
    ticket: Mutex<Option<std::sync::mpsc::Sender<Ticket>>>,
    began: Instant,
    approved_us: AtomicU64,
}

impl Approver for Yes {
    fn show_offer(&self, ticket: &Ticket, _: bool) {
        if let Some(sender) = self.ticket.lock().ok().and_then(|mut sender| sender.take()) {
            let _ = sender.send(ticket.clone());
        }
    }
    fn approve(&self, _: &Card, _: Digits) -> Result<bool, PeerError> {
        self.approved_us.store(self.began.elapsed().as_micros() as u64, Ordering::Relaxed);
        Ok(true)
    }
    fn show_digits(&self, _: &Card, _: Digits) {}
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// From the yes until both sides have kept the link, in memory.
fn link_ms() -> Fallible<f64> {
    let (sender, tickets) = std::sync::mpsc::channel();
    let yes =
        |ticket| Arc::new(Yes { ticket: Mutex::new(ticket), began: Instant::now(), approved_us: AtomicU64::new(0) });
    let approver = yes(Some(sender));
    let run = |target: Option<&Target>, approver: &Arc<Yes>, kept: &AtomicU64, began: Instant| -> Fallible<()> {
        let identity = Identity::generate(NOW)?;
        let myself = Myself { identity: &identity, nickname: "bench", mesh_keys: Vec::new() };
        let network = Network { loopback_only: true, ..Network::default() };
        let mut keep = |_: &Card, _: &[MeshKey]| {
            kept.store(began.elapsed().as_micros() as u64, Ordering::Relaxed);
            Ok(())
        };
        let clock: &dyn Clock = &FixedClock(NOW);
        link_drive(target, network, &myself, approver, clock, &mut keep)?;
        Ok(())
    };
    let kept = [AtomicU64::new(0), AtomicU64::new(0)];
    let began = approver.began;
    std::thread::scope(|scope| -> Fallible<()> {
        let listening = scope.spawn(|| run(None, &approver, &kept[0], began).map_err(|error| error.to_string()));
        let ticket = tickets.recv_timeout(Duration::from_secs(10))?;
        run(Some(&Target::Ticket(ticket)), &yes(None), &kept[1], began)?;
        listening.join().map_err(|_| "the waiting side panicked")??;
        Ok(())
    })?;
    let last = kept.iter().map(|kept| kept.load(Ordering::Relaxed)).max().unwrap_or(0);
    Ok(last.saturating_sub(approver.approved_us.load(Ordering::Relaxed)) as f64 / 1e3)
}
