//! Two drives over a stream: what they end with, what a hostile one can't do, and what a cut costs.

use std::sync::Mutex;

use secrecy::SecretBox;
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::digest::Sha256Digest;
use crate::identity::Identity;
use crate::message::{Message, Role};
use crate::oplog::{Head, Hlc, LogId, OpHead, Run, RunOp, body_digest, chain_start, signed_text};
use crate::peer::mesh::MeshKey;
use crate::store::{Access, Store};
use crate::sync::store_handle::{Jobs, store_handle};
use crate::test_folder::TestFolder;
use crate::time::{FixedClock, Timestamp};
use crate::transcript::Transcript;

const NOW: Timestamp = Timestamp::from_ms(1_795_688_340_000);

/// How much may be under way between two drives, as in a network's buffers.
const WIRE_BYTES: usize = 64 << 10;

struct Nobody;

impl Watcher for Nobody {
    fn waiting(&self, _: Option<u16>, _: usize) {}
    fn met(&self, _: Did) {}
    fn progress(&self, _: &Progress) {}
    fn indexing(&self, _: u64) {}
    fn ended(&self, _: Did, _: &Report, _: Option<&SyncError>) {}
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// A drive: its keys and its store, which a thread of its own serves while it is exchanged with.
struct Drive {
    identity: Identity,
    store: Store,
    folder: TestFolder,
}

fn open(folder: &TestFolder) -> Store {
    let key = SecretBox::new(Box::new([7; 32]));
    Store::open(&folder.path().join("tiles.db"), &key, Access::ReadWrite).expect("it can be made")
}

impl Drive {
    fn new() -> Self {
        let folder = TestFolder::new();
        Self { identity: Identity::generate(NOW).expect("there is chance"), store: open(&folder), folder }
    }

    fn did(&self) -> Did {
        self.identity.did()
    }

    fn link(&self, other: &Self) {
        self.store.link_peer(other.did(), "other", NOW).expect("it is a name");
    }

    fn say(&self, title: &str, texts: &[&str]) -> SessionId {
        let id = self.store.create(NOW, Some(title), "small").expect("it is a title");
        for text in texts {
            self.store.append_turn(id, &[Message::new(Role::User, *text).into()], NOW).expect("it is stored");
        }
        id
    }

    fn state(&self) -> Vec<Transcript> {
        let list = self.store.list().expect("it can be read");
        let mut all: Vec<_> = list.iter().map(|session| self.store.export(session.id).expect("it is there")).collect();
        all.sort_by_key(|transcript| transcript.id);
        all
    }

    fn side(&self) -> (Side, Jobs) {
        let (store, jobs) = store_handle();
        let linked: Vec<Did> = LinkedDrives::read(&self.store, self.did())
            .expect("it can be read")
            .iter()
            .map(|drive| drive.did)
            .collect();
        let side = Side {
            me: self.did(),
            store,
            gate: Gate::of(linked),
            clock: Arc::new(FixedClock(NOW)),
            watcher: Arc::new(Nobody),
            round_bytes: ROUND_BYTES,
        };
        (side, jobs)
    }
}

fn linked() -> [Drive; 2] {
    let drives = [Drive::new(), Drive::new()];
    drives[0].link(&drives[1]);
    drives[1].link(&drives[0]);
    drives
}

type Ended = (Report, Result<(), SyncError>);

async fn run(side: Side, peer: Did, stream: DuplexStream) -> Ended {
    let mut report = Report::default();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let outcome = exchange(&side, peer, &mut reader, &mut writer, &mut report).await;
    (report, outcome)
}

/// Serves `drive` on this thread while `work` runs.
fn serving<T: Send + 'static>(
    drives: &[&Drive],
    work: impl FnOnce(Vec<Side>) -> std::pin::Pin<Box<dyn Future<Output = T> + Send>>,
) -> T {
    let (sides, jobs): (Vec<_>, Vec<_>) = drives.iter().map(|drive| drive.side()).unzip();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let running = runtime.spawn(work(sides));
    // One store after the other is asked, as long as anybody asks.
    while !running.is_finished() {
        for (drive, jobs) in drives.iter().zip(&jobs) {
            jobs.serve_waiting(&drive.store, &drive.identity);
        }
    }
    runtime.block_on(running).expect("it doesn't panic")
}

/// Syncs two drives. `wire` bytes get through before it is cut.
fn sync_cut(one: &Drive, other: &Drive, wire: Option<usize>, round_bytes: u64) -> [Ended; 2] {
    let (here, there) = (one.did(), other.did());
    serving(&[one, other], move |mut sides| {
        Box::pin(async move {
            let (near, far) = duplex(WIRE_BYTES);
            let mut second = sides.pop().expect("two were given");
            let mut first = sides.pop().expect("two were given");
            (first.round_bytes, second.round_bytes) = (round_bytes, round_bytes);
            let Some(bytes) = wire else {
                let ended = tokio::join!(run(first, there, near), run(second, here, far));
                return [ended.0, ended.1];
            };
            // Between the two stands somebody who passes on so many bytes, and then goes away.
            let (mut from, mut to) = (far, duplex(WIRE_BYTES));
            let passing = tokio::spawn(async move {
                let mut left = bytes;
                let mut buffers = ([0; 4_096], [0; 4_096]);
                while left > 0 {
                    let passed = tokio::select! {
                        read = from.read(&mut buffers.0) => match read {
                            Ok(0) | Err(_) => break,
                            Ok(read) => to.0.write_all(&buffers.0[..read.min(left)]).await.map(|()| read),
                        },
                        read = to.0.read(&mut buffers.1) => match read {
                            Ok(0) | Err(_) => break,
                            Ok(read) => from.write_all(&buffers.1[..read.min(left)]).await.map(|()| read),
                        },
                    };
                    let Ok(passed) = passed else { break };
                    left = left.saturating_sub(passed);
                }
            });
            let ended = tokio::join!(run(first, there, near), run(second, here, to.1));
            passing.abort();
            [ended.0, ended.1]
        })
    })
}

#[track_caller]
fn sync(one: &Drive, other: &Drive) -> [Report; 2] {
    sync_cut(one, other, None, ROUND_BYTES).map(|(report, outcome)| {
        outcome.unwrap_or_else(|error| panic!("{error}"));
        report
    })
}

#[test]
fn both_have_the_same_afterwards_and_a_second_time_sends_next_to_nothing() {
    let [ada, bob] = linked();
    let sky = ada.say("Sky", &["why is it blue?", "and at dusk?"]);
    bob.say("Sea", &["why is it salty?"]);
    let [at_ada, at_bob] = sync(&ada, &bob);
    assert_eq!(ada.state(), bob.state());
    assert_eq!((at_ada.received.messages, at_ada.sent.messages, at_ada.sessions), (1, 2, 1));
    assert_eq!((at_bob.received.messages, at_bob.sent.messages, at_bob.sessions), (2, 1, 1));
    assert!(at_ada.refused.is_empty() && at_bob.refused.is_empty() && at_ada.rounds == 1);
    assert!(ada.store.peer(bob.did()).expect("it can be read").expect("it is linked").last_sync_at.is_some());

    let [again, _] = sync(&ada, &bob);
    assert_eq!((again.received.ops, again.sent.ops), (0, 0));
    assert!(again.received.bytes < 512 && again.sent.bytes < 512, "{again:?}");

    bob.store.rename(sky, "Skies", Timestamp::from_ms(NOW.as_ms() + 5)).expect("it is a title");
    ada.store.delete(sky).expect("it is there");
    sync(&bob, &ada);
    assert_eq!(ada.state(), bob.state());
    assert_eq!(ada.state().len(), 1, "deleting wins over renaming");
}

#[test]
fn the_keys_by_which_drives_find_each_other_are_exchanged() {
    let [ada, bob] = linked();
    let keys = [MeshKey::from_bytes([1; 32]), MeshKey::from_bytes([2; 32])];
    keep_mesh_keys(&ada.store, &keys[..1]).expect("it can be kept");
    keep_mesh_keys(&bob.store, &keys).expect("it can be kept");
    sync(&ada, &bob);
    assert!(mesh_keys(&ada.store).expect("they are there") == keys);
}

#[test]
fn a_third_drive_gets_everything_through_the_second_in_one_exchange() {
    let [ada, bob] = linked();
    ada.say("Sky", &["why?"]);
    sync(&ada, &bob);
    let eve = Drive::new();
    eve.link(&bob);
    bob.link(&eve);
    let [at_eve, _] = sync(&eve, &bob);
    // The log of the one who linked says whose the other logs are, and comes first.
    assert!(at_eve.refused.is_empty(), "{at_eve:?}");
    assert_eq!(eve.state(), ada.state());
    let linked = LinkedDrives::read(&eve.store, eve.did()).expect("it can be read");
    assert!(linked.of(&ada.did()).is_some(), "it is linked with her now, too");
}

#[test]
fn what_does_not_fit_into_a_round_comes_in_the_next() {
    let [ada, bob] = linked();
    fill(&ada);
    let [(report, outcome), _] = sync_cut(&ada, &bob, None, 512 << 10);
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(report.rounds >= 3, "{report:?}");
    assert_eq!(ada.state(), bob.state());
}

#[test]
fn a_cut_anywhere_loses_nothing_and_the_next_sync_goes_on_from_there() {
    let whole = {
        let [ada, bob] = linked();
        fill(&ada);
        let [report, _] = sync(&ada, &bob);
        report.sent.bytes + report.received.bytes
    };
    let mut gained = 0;
    for cut in 0..12 {
        let [ada, bob] = linked();
        fill(&ada);
        bob.say("Own", &["kept"]);
        let _ = sync_cut(&ada, &bob, Some((whole * cut / 12) as usize), ROUND_BYTES);
        assert!(bob.state().iter().any(|session| session.title.as_deref() == Some("Own")), "cut {cut}");
        let kept = bob.state().len();
        let [_, after] = sync(&ada, &bob);
        assert_eq!(ada.state(), bob.state(), "cut {cut}");
        gained += u64::from(kept > 1 && after.received.ops > 0);
    }
    assert!(gained > 2, "only {gained} cuts came between two chunks");
}

/// Some chunks' worth of messages that don't compress to nothing.
fn fill(drive: &Drive) {
    let mut state = 1_u64;
    for n in 0..40 {
        let word = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{:08x} ", state >> 32)
        };
        drive.say(&format!("{n}"), &[&(0..9_000).map(word).collect::<String>()]);
    }
}

#[test]
fn a_copied_drive_loses_nothing_and_goes_on_under_a_log_of_its_own() {
    let [ada, bob] = linked();
    let shared = ada.say("Shared", &["before the copy"]);
    sync(&ada, &bob);
    let Drive { identity, store, folder } = ada;
    store.close().expect("it closes");
    let copy = TestFolder::new();
    std::fs::copy(folder.path().join("tiles.db"), copy.path().join("tiles.db")).expect("it can be copied");
    let again = crate::identity::tests::same(&identity);
    let one = Drive { identity, store: open(&folder), folder };
    let two = Drive { identity: again, store: open(&copy), folder: copy };
    for (drive, text) in [(&one, "on one"), (&two, "on two")] {
        drive.store.append_turn(shared, &[Message::new(Role::User, text).into()], NOW).expect("it is stored");
    }
    sync(&one, &bob);
    let [at_two, _] = sync(&two, &bob);
    assert!(at_two.has_new_epoch, "{at_two:?}");
    assert_eq!(two.state(), bob.state());
    sync(&one, &bob);
    assert_eq!(one.state(), bob.state());
    assert_eq!(one.state()[0].messages.len(), 3);
    let [last, _] = sync(&one, &bob);
    assert_eq!((last.sent.ops, last.received.ops), (0, 0), "it comes to an end");
}

mod hostile;
