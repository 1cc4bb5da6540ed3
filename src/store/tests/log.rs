//! The operation log between devices: whatever they do and however it travels, all end with the same, and no forgery counts.

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::did::Did;
use crate::identity::Identity;
use crate::identity::tests::same;
use crate::oplog::{Body, CheckedRun, Hlc, LogId, OpHead, Run, RunError, RunOp, body_digest, chain_start, signed_text};
use crate::transcript::Transcript;

/// A device: its keys, and its database in a folder of its own.
pub(super) struct Device {
    pub(super) identity: Identity,
    pub(super) folder: TestFolder,
    pub(super) store: Store,
}

impl Device {
    fn new() -> Self {
        let folder = TestFolder::new();
        let store = opened(&folder);
        Self { identity: Identity::generate(NOW).expect("there is chance"), folder, store }
    }

    pub(super) fn did(&self) -> Did {
        self.identity.did()
    }

    /// What a person sees: every session with its messages, the latest first.
    fn state(&self) -> Vec<Transcript> {
        let mut all: Vec<Transcript> = self
            .store
            .list()
            .expect("it can be read")
            .into_iter()
            .map(|session| self.store.export(session.id).expect("it is there"))
            .collect();
        all.sort_by_key(|transcript| transcript.id);
        all
    }

    fn link(&self, other: &Self, name: &str) {
        self.store.link_peer(other.did(), name, NOW).expect("it is a name");
    }
}

/// What `to` lacks of what `from` has, as they say it to each other.
fn lacking(from: &Device, to: &Device) -> Vec<Run> {
    for device in [from, to] {
        device.store.seal_log(&device.identity).expect("it can be signed");
    }
    let [has, wants] = [from, to].map(|device| device.store.vector().expect("it can be read"));
    let (disputed, forked) = (to.store.disputed(&has), to.store.forked_logs());
    let (from_start, unwanted) = (disputed.expect("it can be read"), forked.expect("it can be read"));
    let parts = from.store.lacking(&wants, &from_start, &unwanted, from.did()).expect("it can be read");
    let mut runs = Vec::new();
    for Lacking { log, mut first, end } in parts {
        while let Some(run) = from.store.run_after(log, first).expect("it can be read").filter(|run| run.next() <= end)
        {
            first = run.next();
            runs.push(run);
        }
    }
    runs
}

fn take(to: &Device, run: &Run) -> Result<Import, Refusal> {
    let read = Run::from_bytes(&run.to_bytes()).expect("it was written by us");
    let read = CheckedRun::new(read, later(1_000))?;
    to.store.import_runs(&[read], to.did(), later(1_000)).expect("the drive is there").remove(0)
}

/// One exchange in one direction. Gives how many operations were new.
pub(super) fn send(from: &Device, to: &Device) -> usize {
    let new = |run: &Run| take(to, run).map_or(0, |taken| taken.ops + usize::from(taken.has_new_epoch));
    lacking(from, to).iter().map(new).sum()
}

/// Exchanges until nobody learns anything.
fn settle(devices: &[&Device]) {
    for _ in 0..20 {
        let mut new = 0;
        for from in devices {
            for to in devices {
                if !std::ptr::eq(*from, *to) {
                    new += send(from, to);
                }
            }
        }
        if new == 0 {
            return;
        }
    }
    panic!("they never come to an end");
}

/// All linked with all.
pub(super) fn family(count: usize) -> Vec<Device> {
    let devices: Vec<Device> = (0..count).map(|_| Device::new()).collect();
    for device in &devices {
        for (number, other) in devices.iter().enumerate() {
            if other.did() != device.did() {
                device.link(other, &format!("device {number}"));
            }
        }
    }
    devices
}

#[track_caller]
fn check_same(devices: &[&Device]) {
    for device in &devices[1..] {
        assert_eq!(device.state(), devices[0].state());
    }
}

#[test]
fn a_third_device_gets_everything_through_the_second() {
    let devices = family(3);
    let [a, b, c] = [&devices[0], &devices[1], &devices[2]];
    let id = talk(&a.store, "Sky", "why is it blue?");
    assert!(send(a, b) > 0);
    assert_eq!(send(a, b), 0, "nothing comes twice");
    b.store.append_turn(id, &[user("and at dusk?"), answer("Red.")], later(9)).expect("stored");
    b.store.rename(id, "Skies", later(9)).expect("it is a title");
    assert!(send(b, c) > 0);
    assert_eq!(c.state(), b.state());
    assert!(send(c, a) > 0);
    check_same(&[a, b, c]);
    assert_eq!(contents(&a.store, id), ["why is it blue?", "An answer.", "and at dusk?", "Red."]);
    assert_eq!(a.store.summary(id).expect("it is there").title.as_deref(), Some("Skies"));
    assert_eq!(a.store.search("dusk", 9).expect("it can be searched").len(), 1);
}

#[test]
fn what_is_deleted_is_deleted_everywhere_with_its_body_and_the_chain_still_holds() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    let (kept, deleted) = (talk(&a.store, "Kept", "stays"), talk(&a.store, "Secret", "goes away"));
    a.store.append_turn(kept, &[user("a slip"), answer("Oh.")], later(1)).expect("stored");
    settle(&[a, b]);
    // A concurrent message doesn't bring the session back.
    b.store.append_turn(deleted, &[user("late")], later(5_000)).expect("stored");
    a.store.delete(deleted).expect("it is there");
    a.store.undo_last_turn(kept).expect("there is one");
    settle(&[a, b]);
    check_same(&[a, b]);
    assert_eq!(contents(&b.store, kept), ["stays", "An answer."]);
    for device in [a, b] {
        let bodies: i64 = device
            .store
            .connection
            .query_row(
                "SELECT count(*) FROM op WHERE instr(body, 'goes away') + instr(body, 'a slip') + instr(body, 'late')",
                (),
                |row| row.get(0),
            )
            .expect("it can be read");
        assert_eq!(bodies, 0, "no body is left");
    }
    // Somebody who joins later gets the same, and every chain holds without the words.
    let c = Device::new();
    for device in [a, b] {
        device.link(&c, "new");
        c.link(device, "old");
    }
    settle(&[a, b, &c]);
    check_same(&[a, b, &c]);
}

#[test]
fn a_deleted_session_that_is_imported_again_is_a_new_one_on_all_devices() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    let id = talk(&a.store, "Once", "more");
    let exported = a.store.export(id).expect("it is there");
    settle(&[a, b]);
    a.store.delete(id).expect("it is there");
    a.store.import(&[exported]).expect("it can be taken in");
    settle(&[a, b]);
    check_same(&[a, b]);
    let list = b.store.list().expect("it can be read");
    assert!(list.len() == 1 && list[0].id != id && list[0].title.as_deref() == Some("Once"), "{list:?}");
    assert_eq!(contents(&b.store, list[0].id), ["more", "An answer."]);
}

/// A stranger's run that is right in itself.
fn forged_run(key: u8, bodies: &[Body]) -> Run {
    let key = SigningKey::from_bytes(&[key; 32]);
    let device = Did::from_public_key(key.verifying_key().to_bytes()).expect("a real key");
    let log = LogId { device, epoch: [1; 16] };
    let op = |body: &Body| {
        let bytes = body.to_bytes();
        let hlc = Hlc::next(later(500), None).expect("it is early");
        RunOp {
            head: OpHead { hlc, kind: body.kind(), digest: body_digest(&[2; 16], &bytes) },
            body: Some(([2; 16], bytes)),
        }
    };
    let mut run =
        Run { log, first: 0, before: chain_start(&log), ops: bodies.iter().map(op).collect(), signature: [0; 64] };
    run.signature = key.sign(&signed_text(&log, run.next(), &run.chain())).to_bytes();
    run
}

#[test]
fn only_linked_devices_are_believed_whoever_brings_what_they_say() {
    let devices = family(3);
    let [a, b, c] = [&devices[0], &devices[1], &devices[2]];
    let nickname = [Body::Nickname { nickname: "Mallory".into() }];
    assert_eq!(take(a, &forged_run(9, &nickname)), Err(Refusal::Stranger));
    // The honest control: linked, it counts.
    let mallory = forged_run(9, &nickname).log.device;
    a.store.link_peer(mallory, "friend", NOW).expect("it is a name");
    assert_eq!(take(a, &forged_run(9, &nickname)).map(|taken| taken.ops), Ok(1));
    assert_eq!(a.store.peer(mallory).expect("it can be read").expect("it is linked").nickname, "Mallory");

    talk(&c.store, "Before", "counts");
    settle(&[a, b, c]);
    a.store.unlink_peer(c.did(), later(50)).expect("it is linked");
    assert!(a.store.unlink_peer(c.did(), later(50)).is_err(), "it isn't linked any more");
    send(a, b);
    assert!(!b.store.peer(c.did()).expect("it can be read").expect("it was").is_linked(), "all devices know");
    let before = b.state();
    let late = talk(&c.store, "After", "doesn't count");
    let runs = lacking(c, b);
    assert!(runs.iter().all(|run| take(b, run) == Err(Refusal::Unlinked)));
    assert_eq!(b.state(), before);
    assert!(b.store.summary(late).is_err());
    // A third device that doesn't know yet passes it on, and it doesn't count all the same.
    let d = Device::new();
    for other in [c, b] {
        d.link(other, "x");
    }
    b.link(&d, "d");
    for run in lacking(c, &d) {
        take(&d, &run).expect("c is linked there");
    }
    for run in lacking(&d, b) {
        let _ = take(b, &run);
    }
    assert!(b.store.summary(late).is_err());
    // What it said before reaches those who hadn't got it.
    let e = Device::new();
    e.link(a, "a");
    a.link(&e, "e");
    send(a, &e);
    assert_eq!(e.state().iter().filter(|session| session.title.as_deref() == Some("Before")).count(), 1);
}

#[test]
fn runs_that_do_not_fit_are_refused_and_change_nothing() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    let id = talk(&a.store, "Long", "one");
    for n in 0..600 {
        a.store.append_turn(id, &[user(&format!("{n}"))], later(n)).expect("stored");
    }
    let runs = lacking(a, b);
    assert!(runs.len() >= 2, "{} runs", runs.len());
    assert_eq!(take(b, &runs[1]), Err(Refusal::Gap));
    let mut torn = runs[0].clone();
    torn.signature[3] ^= 1;
    assert_eq!(take(b, &torn), Err(Refusal::Run(RunError::Signature)));
    let mut other = runs[0].clone();
    other.ops[3].body.as_mut().expect("it has one").1[4] ^= 1;
    // On the wire the digest of a body that is there isn't sent, so another body is another chain.
    assert_eq!(take(b, &other), Err(Refusal::Run(RunError::Signature)));
    assert!(b.state().is_empty() && b.store.vector().expect("it can be read").next(&runs[0].log) == 0);
    for run in &runs {
        take(b, run).expect("they fit in their order");
        assert_eq!(take(b, run).expect("again is fine").ops, 0);
    }
    check_same(&[a, b]);
}

#[test]
fn a_full_drive_takes_nothing_of_a_chunk_and_all_of_it_once_there_is_room() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    for n in 0..40 {
        talk(&a.store, &format!("{n}"), &"words enough for some pages ".repeat(200));
    }
    let runs: Vec<CheckedRun> =
        lacking(a, b).into_iter().map(|run| CheckedRun::new(run, later(1_000)).expect("it is right")).collect();
    let before = (b.state(), b.store.vector().expect("it can be read"));
    let pages: i64 = b.store.connection.query_row("PRAGMA page_count", (), |row| row.get(0)).expect("it has some");
    let limit = |pages: i64| b.store.connection.pragma_update(None, "max_page_count", pages).expect("it can be set");
    limit(pages + 8);
    let full = b.store.import_runs(&runs, b.did(), later(1_000)).expect_err("there is no room");
    assert!(full.hint().is_some(), "{full}");
    assert_eq!((b.state(), b.store.vector().expect("it can be read")), before);
    limit(1 << 30);
    let taken = b.store.import_runs(&runs, b.did(), later(1_000)).expect("there is room");
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    check_same(&[a, b]);
}

/// The database as it lies on the drive, in another folder: a copied drive.
fn copied(device: Device) -> (Device, Device) {
    let Device { identity, folder, store } = device;
    store.close().expect("it closes");
    let copy = TestFolder::new();
    fs::copy(database(&folder), database(&copy)).expect("it can be copied");
    let identity_again = same(&identity);
    let (first, second) = (opened(&folder), opened(&copy));
    (Device { identity, folder, store: first }, Device { identity: identity_again, folder: copy, store: second })
}

#[test]
fn a_copied_drive_that_is_used_on_both_sides_loses_nothing() {
    let mut devices = family(3);
    let shared = talk(&devices[0].store, "Shared", "before the copy");
    settle(&[&devices[0], &devices[1], &devices[2]]);
    let (one, two) = copied(devices.remove(0));
    let [b, c] = [&devices[0], &devices[1]];
    one.store.append_turn(shared, &[user("said on one")], later(10)).expect("stored");
    two.store.append_turn(shared, &[user("said on two")], later(11)).expect("stored");
    talk(&two.store, "Only on two", "x");
    // Each meets another device first; then those two meet.
    settle(&[&one, b]);
    settle(&[&two, c]);
    settle(&[b, c]);
    assert!(!b.store.forked_logs().expect("it can be read").is_empty(), "it is noticed");
    // Meeting anybody who has the other way, each copy goes on under a log of its own, and all is everywhere.
    settle(&[&one, &two, b, c]);
    check_same(&[&one, &two, b, c]);
    let said = contents(&b.store, shared);
    assert!(said.contains(&"said on one".into()) && said.contains(&"said on two".into()), "{said:?}");
    assert_eq!(b.state().len(), 2);
}

#[test]
fn a_backup_that_was_put_back_gets_what_it_lacks_from_the_others() {
    for says_something_before in [false, true] {
        let mut devices = family(2);
        let id = talk(&devices[0].store, "T", "in the backup");
        settle(&[&devices[0], &devices[1]]);
        let (a, backup) = copied(devices.remove(0));
        let b = &devices[0];
        a.store.append_turn(id, &[user("since then"), answer("Yes.")], later(5)).expect("stored");
        settle(&[&a, b]);
        let expected = b.state();
        drop(a);
        if says_something_before {
            talk(&backup.store, "After it was put back", "x");
        }
        settle(&[&backup, b]);
        check_same(&[&backup, b]);
        assert!(b.state().len() == 1 + usize::from(says_something_before));
        assert!(expected.iter().all(|session| b.state().contains(session)), "nothing is lost");
        // It can go on.
        backup.store.append_turn(id, &[user("and on")], later(6)).expect("stored");
        settle(&[&backup, b]);
        check_same(&[&backup, b]);
    }
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

fn act(device: &Device, dice: &mut Dice, now: Timestamp) {
    let store = &device.store;
    let sessions = store.list().expect("it can be read");
    let Some(session) = (!sessions.is_empty()).then(|| sessions[dice.throw(sessions.len())].id) else {
        talk(store, "First", "hello");
        return;
    };
    match dice.throw(9) {
        0 => drop(talk(store, &format!("Session {}", dice.throw(100)), "hello")),
        1 => store.delete(session).expect("it is there"),
        2 | 3 => store.rename(session, &format!("Title {}", dice.throw(5)), now).expect("it is a title"),
        4 => match store.undo_last_turn(session) {
            Ok(_) | Err(StoreError::Nothing { .. }) => {}
            Err(error) => panic!("{error}"),
        },
        5 => match store.replace_last_answer(session, &answer("another"), now) {
            Ok(_) | Err(StoreError::Nothing { .. }) => {}
            Err(error) => panic!("{error}"),
        },
        _ => {
            let said = format!("turn {}", dice.throw(1_000));
            store.append_turn(session, &[user(&said), answer("yes")], now).expect("stored");
        }
    }
}

/// A part of an exchange: it ends at any run, and some come twice or out of order.
fn partly(from: &Device, to: &Device, dice: &mut Dice) {
    let mut runs = lacking(from, to);
    runs.truncate(dice.throw(runs.len() + 1));
    if dice.throw(3) == 0 {
        runs.reverse();
    }
    for run in &runs {
        for _ in 0..=dice.throw(2) {
            let _ = take(to, run);
        }
    }
}

#[test]
fn devices_agree_whatever_happened_in_whatever_order() {
    let histories = std::env::var("TILES_LOG_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    for history in 0..histories {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (history + 1));
        let mut devices = family(3 + dice.throw(2));
        for step in 0..40 {
            let now = later(step * (dice.throw(3) as i64 - 1) * 100);
            let one = dice.throw(devices.len());
            match dice.throw(8) {
                0..=4 => act(&devices[one], &mut dice, now),
                5 | 6 => {
                    let other = (one + 1 + dice.throw(devices.len() - 1)) % devices.len();
                    partly(&devices[one], &devices[other], &mut dice);
                }
                _ if devices.len() < 6 => {
                    let (first, second) = copied(devices.swap_remove(one));
                    devices.extend([first, second]);
                }
                _ => {}
            }
        }
        let all: Vec<&Device> = devices.iter().collect();
        settle(&all);
        for device in &all[1..] {
            assert_eq!(device.state(), all[0].state(), "history {history}");
        }
        // What each has is what its device signed, from its beginning.
        for device in &all {
            for log in device.store.vector().expect("it can be read").0.keys() {
                let mut first = 0;
                while let Some(run) = device.store.run_after(*log, first).expect("it can be read") {
                    run.check(later(1_000_000)).unwrap_or_else(|error| panic!("history {history}, {log}: {error}"));
                    first = run.next();
                }
            }
        }
    }
}

/// Where the version before the operation log left a database, and what was in it.
const BEFORE: (&[u8], &str) = (
    include_bytes!("../../../tests/vectors/store/schema-3.db"),
    include_str!("../../../tests/vectors/store/schema-3.json"),
);

#[test]
fn a_database_from_before_the_log_keeps_everything_and_can_be_shared() {
    let expected = {
        let mut all = crate::transcript::parse_json(BEFORE.1).expect("it was written by Tiles");
        all.sort_by_key(|transcript| transcript.id);
        all
    };
    let folder = TestFolder::new();
    fs::write(database(&folder), BEFORE.0).expect("it can be written");
    let store = opened(&folder);
    assert_eq!(store.opening().migrated_from, Some(3));
    let a = Device { identity: Identity::generate(NOW).expect("there is chance"), folder, store };
    assert_eq!(a.state(), expected);
    assert_eq!(a.store.setting("nickname").expect("it can be read").as_deref(), Some("Ada"));
    assert_eq!(a.store.search("rayleigh", 9).expect("it can be searched").len(), 1);
    let b = Device::new();
    a.link(&b, "b");
    b.link(&a, "a");
    settle(&[&a, &b]);
    assert_eq!(b.state(), expected);
    // It goes on like any other, on both sides.
    let sky = expected.iter().find(|session| session.title.as_deref() == Some("Sky")).expect("it is there").id;
    b.store.append_turn(sky, &[user("at night?"), answer("Black.")], later(60)).expect("stored");
    a.store.undo_last_turn(sky).expect("there is one");
    settle(&[&a, &b]);
    check_same(&[&a, &b]);
    assert_eq!(contents(&a.store, sky), ["why is the sky blue?", "Rayleigh scattering.", "at night?", "Black."]);
}
