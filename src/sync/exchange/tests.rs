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

/// What a hostile linked drive does after both have said hello, against an honest one; gives how that ends for it.
fn against<F: Future<Output = ()> + Send>(
    honest: &Drive,
    hostile: Did,
    attack: impl FnOnce(tokio::io::ReadHalf<DuplexStream>, tokio::io::WriteHalf<DuplexStream>) -> F + Send + 'static,
) -> Ended
where
    F: 'static,
{
    serving(&[honest], move |mut sides| {
        Box::pin(async move {
            let (near, far) = duplex(WIRE_BYTES);
            let side = sides.pop().expect("one was given");
            let (mut reader, mut writer) = tokio::io::split(far);
            let attacking = async move {
                frame::write(&mut writer, Frame::Hello { version: SYNC_VERSION, mesh_keys: vec![] })
                    .await
                    .expect("hello");
                let _ = frame::read(&mut reader).await;
                attack(reader, writer).await;
            };
            tokio::join!(run(side, hostile, near), attacking).0
        })
    })
}

/// Goes through the beginning of a round honestly, with these heads.
async fn begin_round(
    reader: &mut tokio::io::ReadHalf<DuplexStream>,
    writer: &mut tokio::io::WriteHalf<DuplexStream>,
    vector: Vector,
) {
    for frame in [Frame::Vector(vector), Frame::Wants(Wants::default()), Frame::Offer { ops: 1 }] {
        if frame::write(writer, frame).await.is_err() || frame::read(reader).await.is_err() {
            return;
        }
    }
}

/// A run of one message by `key`, `at` a time.
fn run_by(identity: &Identity, at: Timestamp) -> Run {
    let log = LogId { device: identity.did(), epoch: [1; 16] };
    let ops = [
        Body::Session { id: SessionId([9; 16]), model: "small".into(), created_at: NOW },
        Body::Title { session: SessionId([9; 16]), title: Some("from elsewhere".into()), at: NOW },
    ];
    let op = |body: &Body| {
        let (salt, bytes) = ([2; 16], body.to_bytes());
        let hlc = Hlc::next(at, None).expect("it is early");
        RunOp { head: OpHead { hlc, kind: body.kind(), digest: body_digest(&salt, &bytes) }, body: Some((salt, bytes)) }
    };
    let mut run =
        Run { log, first: 0, before: chain_start(&log), ops: ops.iter().map(op).collect(), signature: [0; 64] };
    run.signature = identity.sign(&signed_text(&log, run.next(), &run.chain()));
    run
}

/// What a linked drive sends as a chunk, and how that ends.
fn chunk_from(hostile: &Drive, honest: &Drive, chunk: Vec<u8>) -> Ended {
    against(honest, hostile.did(), move |mut reader, mut writer| async move {
        begin_round(&mut reader, &mut writer, Vector::default()).await;
        for frame in [Frame::Chunk(chunk), Frame::Done, Frame::Outcome { again: false }] {
            let _ = frame::write(&mut writer, frame).await;
        }
        let _ = writer.shutdown().await;
        while frame::read(&mut reader).await.is_ok() {}
    })
}

#[test]
fn no_forgery_and_no_stranger_gets_through_a_linked_drive() {
    let stranger = Identity::generate(NOW).expect("there is chance");
    const YEAR_MS: i64 = 365 * 86_400_000;
    type Forge<'a> = dyn Fn(&Drive, &Drive) -> Run + 'a;
    let of_the_hostile: &Forge<'_> = &|hostile, _| run_by(&hostile.identity, NOW);
    let cases: [(&str, &Forge<'_>, Option<&str>); 9] = [
        ("the control", of_the_hostile, None),
        (
            "ten years ago: a clock may be wrong",
            &|hostile, _| run_by(&hostile.identity, Timestamp::from_ms(NOW.as_ms() - 10 * YEAR_MS)),
            None,
        ),
        (
            "in ten years",
            &|hostile, _| run_by(&hostile.identity, Timestamp::from_ms(NOW.as_ms() + 10 * YEAR_MS)),
            Some("ahead of this device's clock"),
        ),
        ("a stranger's", &|_, _| run_by(&stranger, NOW), Some("isn't linked")),
        (
            "in the honest one's name",
            &|hostile, honest| Run {
                log: LogId { device: honest.did(), epoch: [1; 16] },
                ..run_by(&hostile.identity, NOW)
            },
            Some("signed"),
        ),
        (
            "a flipped signature",
            &|hostile, _| {
                let mut run = run_by(&hostile.identity, NOW);
                run.signature[7] ^= 1;
                run
            },
            Some("signed"),
        ),
        (
            "a gap",
            &|hostile, _| {
                let mut run = run_by(&hostile.identity, NOW);
                run.first = 5;
                run.signature = hostile.identity.sign(&signed_text(&run.log, run.next(), &run.chain()));
                run
            },
            Some("what comes before them isn't here"),
        ),
        (
            "another beginning",
            &|hostile, _| {
                let mut run = run_by(&hostile.identity, NOW);
                run.before = Sha256Digest([1; 32]);
                run
            },
            Some("signed"),
        ),
        ("nothing", &|hostile, _| Run { ops: vec![], ..run_by(&hostile.identity, NOW) }, Some("no operations")),
    ];
    for (what, forge, refused) in cases {
        let [honest, hostile] = linked();
        honest.say("Own", &["kept"]);
        let before = honest.state();
        let run = forge(&hostile, &honest);
        let chunk = chunk::compress(&run.to_bytes()).expect("it can be");
        let (report, outcome) = chunk_from(&hostile, &honest, chunk);
        outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
        match refused {
            None => assert_eq!(report.received.ops, 2, "{what}: {report:?}"),
            Some(why) => {
                assert_eq!(report.received.ops, 0, "{what}");
                let told: Vec<_> = report.refused.keys().collect();
                assert!(told.len() == 1 && told[0].contains(why), "{what}: {told:?}");
            }
        }
        assert_eq!(honest.state(), before, "{what}: no session without messages");
    }
}

#[test]
fn who_was_unlinked_is_refused_through_others_and_cut_off_itself() {
    let [ada, bob] = linked();
    let eve = Drive::new();
    for drive in [&ada, &bob] {
        drive.link(&eve);
        eve.link(drive);
    }
    eve.say("Before", &["counts"]);
    sync(&eve, &bob);
    ada.store.unlink_peer(eve.did(), NOW).expect("it is linked");
    eve.say("After", &["doesn't"]);
    // Bob doesn't know yet, and takes it.
    sync(&eve, &bob);
    let [at_ada, _] = sync(&ada, &bob);
    assert!(ada.state().iter().all(|session| session.title.as_deref() != Some("After")), "{at_ada:?}");
    assert!(at_ada.refused.contains_key(&Refusal::Unlinked.to_string()), "{at_ada:?}");
    // Now he knows; what she says isn't sent in vain again.
    let [again, _] = sync(&ada, &bob);
    assert!(again.refused.is_empty() && again.received.ops == 0, "{again:?}");

    // In the middle of an exchange somebody else's word arrives that this peer is unlinked: it ends there.
    let [bob_after, _] = sync_cut(&bob, &eve, None, ROUND_BYTES);
    assert!(bob_after.1.is_ok(), "the gate stands before the exchange: {:?}", bob_after.1);
    let (side, jobs) = bob.side();
    assert!(!side.gate.is_open_for(&eve.did()), "and it is shut for her");
    drop((side, jobs));
}

#[test]
fn a_peer_that_is_unlinked_by_what_it_brings_is_cut_off() {
    let [ada, bob] = linked();
    let carol = Drive::new();
    for (one, other) in [(&ada, &carol), (&carol, &ada)] {
        one.link(other);
    }
    ada.store.unlink_peer(bob.did(), Timestamp::from_ms(NOW.as_ms() + 1)).expect("it is linked");
    sync(&ada, &carol);
    // Carol had linked Bob herself, earlier; he comes to her before she has synced with Ada again.
    let log = carol.store.vector().expect("it can be read");
    assert!(log.0.len() >= 2);
    let linked = LinkedDrives::read(&carol.store, carol.did()).expect("it can be read");
    assert!(linked.of(&bob.did()).is_none());
    // He brings Ada's log to somebody who links both and knows of nothing: it ends when he is read to be unlinked.
    let dave = Drive::new();
    for other in [&ada, &bob] {
        dave.link(other);
    }
    let messenger =
        Drive { identity: crate::identity::tests::same(&bob.identity), store: carol.store, folder: carol.folder };
    let [(report, outcome), _] = sync_cut(&dave, &messenger, None, ROUND_BYTES);
    assert!(matches!(outcome, Err(SyncError::NotLinked)), "{outcome:?} {report:?}");
}

#[test]
fn what_does_not_keep_to_the_protocol_ends_the_exchange_and_changes_nothing() {
    type Say = fn() -> Vec<Frame>;
    let bomb = || chunk::compress(&vec![0; 32 << 20]).expect("it can be");
    assert!(bomb().len() < 64 << 10);
    let cases: [(&str, bool, Say); 9] = [
        ("hello again", false, || vec![Frame::Hello { version: SYNC_VERSION, mesh_keys: vec![] }]),
        ("a chunk before its time", false, || vec![Frame::Chunk(vec![1])]),
        ("an outcome before the end", true, || vec![Frame::Outcome { again: true }]),
        ("two ends", true, || vec![Frame::Done, Frame::Done]),
        ("a chunk after the end", true, || vec![Frame::Done, Frame::Chunk(vec![1])]),
        ("no chunk", true, || vec![Frame::Chunk(vec![1, 2, 3])]),
        ("a bomb", true, || vec![Frame::Chunk(chunk::compress(&vec![0; 32 << 20]).expect("it can be"))]),
        ("an empty chunk", true, || vec![Frame::Chunk(chunk::compress(&[]).expect("it can be"))]),
        ("junk in a chunk", true, || vec![Frame::Chunk(chunk::compress(&[7; 500]).expect("it can be"))]),
    ];
    for (what, in_round, say) in cases {
        let [honest, hostile] = linked();
        honest.say("Own", &["kept"]);
        let before = honest.state();
        let (_, outcome) = against(&honest, hostile.did(), move |mut reader, mut writer| async move {
            if in_round {
                begin_round(&mut reader, &mut writer, Vector::default()).await;
            }
            for frame in say() {
                let _ = frame::write(&mut writer, frame).await;
            }
            while frame::read(&mut reader).await.is_ok() {}
        });
        assert!(matches!(outcome, Err(SyncError::Malformed { .. } | SyncError::Run(_))), "{what}: {outcome:?}");
        assert_eq!(honest.state(), before, "{what}");
    }
}

#[test]
fn who_always_says_there_is_more_and_brings_nothing_is_left() {
    let [honest, hostile] = linked();
    let rounds = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&rounds);
    let (report, outcome) = against(&honest, hostile.did(), move |mut reader, mut writer| async move {
        loop {
            // It has everything, it says, so that nothing is sent to it either.
            let Ok((Frame::Vector(theirs), _)) = frame::read(&mut reader).await else { break };
            *counted.lock().expect("nobody panics") += 1;
            for frame in [Frame::Vector(theirs), Frame::Wants(Wants::default()), Frame::Offer { ops: 1 << 60 }] {
                let _ = frame::write(&mut writer, frame).await;
            }
            for frame in [Frame::Done, Frame::Outcome { again: true }] {
                let _ = frame::write(&mut writer, frame).await;
            }
            while !matches!(frame::read(&mut reader).await, Ok((Frame::Outcome { .. }, _)) | Err(_)) {}
        }
        let _ = writer.shutdown().await;
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((report.rounds, *rounds.lock().expect("nobody panics")), (1, 1));
}

#[test]
fn a_lie_about_my_own_log_makes_no_new_epoch() {
    let [honest, hostile] = linked();
    honest.say("Own", &["kept"]);
    honest.store.seal_log(&honest.identity).expect("it can be signed");
    let before = honest.store.vector().expect("it can be read");
    let log = *before.0.keys().next().expect("it has one");
    let lie = Vector([(log, Head { next: 1, chain: Sha256Digest([5; 32]) })].into());
    let asked = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&asked);
    let (report, outcome) = against(&honest, hostile.did(), move |mut reader, mut writer| async move {
        let _ = frame::read(&mut reader).await;
        let _ = frame::write(&mut writer, Frame::Vector(lie)).await;
        if let Ok((Frame::Wants(wants), _)) = frame::read(&mut reader).await {
            *heard.lock().expect("nobody panics") = Some(wants);
        }
        for frame in
            [Frame::Wants(Wants::default()), Frame::Offer { ops: 0 }, Frame::Done, Frame::Outcome { again: false }]
        {
            let _ = frame::write(&mut writer, frame).await;
        }
        let _ = writer.shutdown().await;
        while frame::read(&mut reader).await.is_ok() {}
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(!report.has_new_epoch);
    let wants = asked.lock().expect("nobody panics").take().expect("it was heard");
    assert_eq!(wants.from_start, [log], "it asks for a proof");
    assert_eq!(honest.store.vector().expect("it can be read"), before);
}

#[test]
fn another_version_is_told_as_that() {
    let [honest, _] = linked();
    let peer = Drive::new().did();
    let (_, outcome) = serving(&[&honest], move |mut sides| {
        Box::pin(async move {
            let (near, mut far) = duplex(WIRE_BYTES);
            let side = sides.pop().expect("one was given");
            let newer = async {
                let _ = frame::write(&mut far, Frame::Hello { version: 9, mesh_keys: vec![] }).await;
                let _ = frame::read(&mut far).await;
            };
            tokio::join!(run(side, peer, near), newer).0
        })
    });
    assert!(matches!(outcome, Err(SyncError::Newer { version: 9, .. })), "{outcome:?}");
}
