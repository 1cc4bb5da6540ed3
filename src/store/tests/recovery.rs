//! Recovery and backups: damage on any page, what is told of it, and that nothing is thrown away on the way.

use super::*;
use crate::bundle::RunMarkFile;
use crate::disk::DiskError;
use crate::store::{Lineage, Recovery, Source, backups};

const PAGE: usize = 4096;

fn keys(key: &SecretBox<[u8; 32]>) -> Vec<&SecretBox<[u8; 32]>> {
    vec![key]
}

fn plan(folder: &TestFolder) -> Result<Recovery, StoreError> {
    let backup_folder = folder.path().join("backup");
    Recovery::plan(&database(folder), &backup_folder, None, &keys(&key()))
}

/// A database of some pages: 40 sessions of 6 messages, with settings and history.
/// How many pages the list of tables takes.
const LIST_PAGES_MAX: usize = 4;

fn large(folder: &TestFolder) -> Vec<SessionId> {
    let store = opened(folder);
    let ids = (0..40).map(|n| {
        let id = talk(&store, &format!("Session {n}"), &format!("question {n} {}", "words ".repeat(80)));
        for turn in 1..3 {
            let said = format!("turn {turn} of {n} {}", "more words ".repeat(60));
            store.append_turn(id, &[user(&said), answer("yes")], later(turn)).expect("stored");
        }
        id
    });
    let ids = ids.collect();
    store.set_setting("nickname", "Ada").expect("stored");
    store.history_append("a line").expect("stored");
    store.close().expect("it closes");
    ids
}

fn never() -> bool {
    false
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("it is there");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("it can be written");
}

fn without_backup(page: usize, folder: &TestFolder) -> (usize, usize) {
    let recovery = match plan(folder) {
        Ok(recovery) => recovery,
        Err(error) => {
            assert!(error.is_integrity(), "page {page}: {error}");
            return (0, 0);
        }
    };
    assert_eq!(recovery.source, Source::Salvage, "page {page}");
    let known_missing: usize = recovery.missing.iter().map(|missing| missing.messages).sum();
    assert!(
        recovery.messages + known_missing == 240 || recovery.may_lack_more,
        "page {page}: {} + {known_missing} of 240",
        recovery.messages
    );
    let damaged = fs::read(database(folder)).expect("it is there");
    let aside = recovery.carry_out(&key()).expect("it recovers").expect("one was there");
    assert_eq!(fs::read(aside).expect("it is kept"), damaged, "page {page}");
    let store = opened(folder);
    let list = store.list().expect("it can be read");
    assert_eq!(list.len(), recovery.sessions, "page {page}");
    for session in list {
        let messages = store.messages(session.id).expect("it can be read");
        assert_eq!(messages.len() as u64, session.messages);
    }
    (recovery.messages, recovery.sessions)
}

#[test]
fn damage_on_any_page_costs_at_most_what_is_on_it() {
    let original = TestFolder::new();
    large(&original);
    let bytes = fs::read(database(&original)).expect("it is there");
    let pages = bytes.len() / PAGE;
    assert!(pages > 40, "{pages} pages");
    let (mut whole, mut costly, mut lost) = (0, 0, Vec::new());
    for page in 0..pages {
        let folder = TestFolder::new();
        fs::write(database(&folder), &bytes).expect("it can be written");
        flip(&database(&folder), page * PAGE + 2000);
        let (messages, sessions) = without_backup(page, &folder);
        lost.extend((sessions == 0).then_some(page));
        whole += usize::from(messages == 240);
        costly += usize::from(messages < 200);
    }
    assert!(whole > 5, "{whole} of {pages} cost nothing");
    // The pages with the list of tables, the first one among them: for those there are backups.
    assert!(lost.first() == Some(&0) && lost.len() <= LIST_PAGES_MAX, "{lost:?} of {pages}");
    // And the one that leads to all others of the table of messages.
    assert!(costly <= lost.len() + 1, "{costly} of {pages} cost much");
}

#[test]
fn with_a_backup_damage_on_any_page_costs_nothing_that_is_in_it() {
    let original = TestFolder::new();
    let ids = large(&original);
    let store = opened(&original);
    store.back_up(&original.path().join("backup"), &key(), &never).expect("it is backed up");
    // Since then one session was deleted, and one said.
    store.delete(ids[7]).expect("it is there");
    talk(&store, "New", "after the backup");
    store.close().expect("it closes");
    let before = opened(&original);
    let others: Vec<SessionId> = ids.iter().copied().filter(|id| *id != ids[7]).collect();
    let expected: Vec<Vec<String>> = others.iter().map(|id| contents(&before, *id)).collect();
    drop(before);
    let bytes = fs::read(database(&original)).expect("it is there");
    let backup = fs::read(original.path().join("backup/tiles-000001.db")).expect("it is there");
    let mut list_pages = 0;
    for page in (0..bytes.len() / PAGE).step_by(3) {
        let folder = TestFolder::new();
        fs::write(database(&folder), &bytes).expect("it can be written");
        fs::create_dir(folder.path().join("backup")).expect("it can be made");
        fs::write(folder.path().join("backup/tiles-000001.db"), &backup).expect("it can be written");
        flip(&database(&folder), page * PAGE + 2000);
        let recovery = plan(&folder).expect("there is a backup");
        recovery.carry_out(&key()).expect("it recovers");
        let store = opened(&folder);
        for (id, expected) in others.iter().zip(&expected) {
            let found = store.messages(*id);
            let found = found.unwrap_or_else(|error| panic!("page {page}, {:?}: {error}", recovery.source));
            assert_eq!(found.into_iter().map(|m| m.content).collect::<Vec<_>>(), *expected, "page {page}");
        }
        let sessions = store.list().expect("it can be read").len();
        match recovery.source {
            Source::Backup(_) => {
                assert_eq!(sessions, 40);
                list_pages += 1;
            }
            // What was deleted may come back only where the list of sessions itself was hit.
            _ => assert!((39..=41).contains(&sessions), "page {page}: {sessions}"),
        }
        assert_eq!(store.setting("nickname").expect("it can be read").as_deref(), Some("Ada"));
    }
    assert!((1..=LIST_PAGES_MAX).contains(&list_pages), "{list_pages}");
}

#[test]
fn what_was_deleted_stays_deleted() {
    let folder = TestFolder::new();
    let ids = large(&folder);
    let store = opened(&folder);
    store.back_up(&folder.path().join("backup"), &key(), &never).expect("it is backed up");
    store.delete(ids[0]).expect("it is there");
    store.close().expect("it closes");
    let pages = fs::read(database(&folder)).expect("it is there").len() / PAGE;
    // The last page is one of messages or of their index of words: the list of sessions is read in full.
    flip(&database(&folder), (pages - 1) * PAGE + 100);
    let recovery = plan(&folder).expect("it can be planned");
    assert_eq!(recovery.sessions, 39, "{:?}", recovery.source);
}

#[test]
fn a_recovery_can_be_cut_anywhere_and_done_again() {
    let original = TestFolder::new();
    large(&original);
    flip(&database(&original), 9 * PAGE + 5);
    let damaged = fs::read(database(&original)).expect("it is there");
    let recovery = plan(&original).expect("it can be planned");
    let (sessions, messages) = (recovery.sessions, recovery.messages);
    recovery.carry_out(&key()).expect("it recovers");
    let good = fs::read(database(&original)).expect("it is there");
    // As a cut after each step leaves it: the new one partial, complete, the old one moved.
    for step in 0..3 {
        let folder = TestFolder::new();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("it can be written");
        match step {
            0 => {
                write("tiles.db", &damaged);
                write("tiles.db.recovered.partial", &good[..good.len() / 2]);
            }
            1 => {
                write("tiles.db", &damaged);
                write("tiles.db.recovered", &good);
            }
            _ => {
                write("tiles-aside-1.db", &damaged);
                write("tiles.db.recovered", &good);
            }
        }
        assert_eq!(Store::has_unfinished_recovery(&database(&folder)), step > 0);
        let again = plan(&folder).expect("it can be planned");
        assert_eq!((again.sessions, again.messages), (sessions, messages), "step {step}");
        again.carry_out(&key()).expect("it recovers");
        assert!(!Store::has_unfinished_recovery(&database(&folder)));
        assert_eq!(fs::read(folder.path().join("tiles-aside-1.db")).expect("it is kept"), damaged);
        assert_eq!(opened(&folder).list().expect("it can be read").len(), sessions);
    }
}

#[test]
fn a_sound_database_is_left_alone_and_one_without_anything_keeps_its_own_error() {
    let folder = TestFolder::new();
    large(&folder);
    let before = fs::read(database(&folder)).expect("it is there");
    let recovery = plan(&folder).expect("it can be planned");
    assert_eq!((&recovery.source, recovery.sessions), (&Source::Sound, 40));
    assert_eq!(recovery.carry_out(&key()).expect("nothing is done"), None);
    assert_eq!(fs::read(database(&folder)).expect("it is there"), before);
    flip(&database(&folder), 20);
    assert!(matches!(plan(&folder), Err(StoreError::Damaged { .. })));
    let empty = TestFolder::new();
    assert!(matches!(plan(&empty), Err(StoreError::Disk(DiskError::NotFound { .. }))));
}

#[test]
fn two_backups_are_kept_and_the_last_good_one_goes_last() {
    let folder = TestFolder::new();
    large(&folder);
    let place = folder.path().join("backup");
    let store = opened(&folder);
    for number in 1..=4 {
        let made = store.back_up(&place, &key(), &never).expect("it is backed up");
        assert_eq!(made.number, number);
    }
    let numbers = || backups(&place).expect("it can be listed").iter().map(|b| b.number).collect::<Vec<_>>();
    assert_eq!(numbers(), [4, 3]);
    // One that is stopped, or has no space, takes nothing away.
    let stopped = store.back_up(&place, &key(), &|| true);
    assert!(matches!(stopped, Err(StoreError::Interrupted) | Ok(_)), "{stopped:?}");
    assert_eq!(numbers().len(), 2);
    let newest = backups(&place).expect("it can be listed").remove(0);
    assert_eq!(store.forget_backups(&place, &newest).expect("it can be removed"), 1);
    assert_eq!(numbers().len(), 1);
    assert!(fs::read_dir(&place).expect("it is there").count() == 1, "nothing partial is left");
}

#[test]
fn a_backup_is_due_once_a_day_and_only_after_a_change() {
    let folder = TestFolder::new();
    let place = folder.path().join("backup");
    let store = opened(&folder);
    let now = Timestamp::from_ms(
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64),
    );
    store.begin_run(RunMarkFile::new(folder.path()), None, now).expect("random bytes are there");
    assert!(!store.is_backup_due(&place, now).expect("it can be asked"), "nothing was changed");
    talk(&store, "T", "hello");
    assert!(store.is_backup_due(&place, now).expect("it can be asked"), "there is none");
    store.back_up(&place, &key(), &never).expect("it is backed up");
    let after = |hours: i64| Timestamp::from_ms(now.as_ms() + hours * 3_600_000);
    for (hours, expected) in [(1, false), (23, false), (25, true), (-25, true)] {
        assert_eq!(store.is_backup_due(&place, after(hours)).expect("it can be asked"), expected, "{hours} h");
    }
}

/// Opens the database of a folder as a run that says something.
fn use_once(folder: &TestFolder, ms: i64) -> Lineage {
    let mark = RunMarkFile::new(folder.path());
    let store = opened(folder);
    let lineage = store.lineage(&mark, None).expect("it can be compared");
    store.begin_run(mark, None, later(ms)).expect("random bytes are there");
    talk(&store, "T", "hello");
    store.close().expect("it closes");
    lineage
}

fn copy_to(from: &TestFolder, to: &TestFolder, names: &[&str]) {
    for name in names {
        fs::copy(from.path().join(name), to.path().join(name)).expect("it can be copied");
    }
}

const ALL: &[&str] = &["tiles.db", "run.a", "run.b"];

#[test]
fn copies_are_told_apart_when_they_meet_and_not_before() {
    let (first, second) = (TestFolder::new(), TestFolder::new());
    for run in 0..3 {
        assert_eq!(use_once(&first, run), Lineage::Continued);
    }
    copy_to(&first, &second, ALL);
    // Each used on its own is accused of nothing.
    for run in 3..6 {
        assert_eq!(use_once(&first, run), Lineage::Continued);
    }
    // The copy that was only used here and brought back whole, or its database alone, is just newer.
    assert_eq!(use_once(&second, 10), Lineage::Continued);
    assert_eq!(use_once(&second, 11), Lineage::Continued);
    copy_to(&second, &first, &["tiles.db"]);
    let Lineage::Forked(separation) = use_once(&first, 12) else { panic!("both were used") };
    assert_eq!((separation.database_runs, separation.drive_runs), (2, 3));
    assert_eq!((separation.database_at, separation.drive_at), (later(11), later(5)));
    assert_eq!(separation.parted_at, Some(later(2)));
    // It was gone on with, so it is this drive's own now.
    assert_eq!(use_once(&first, 13), Lineage::Continued);
}

#[test]
fn an_older_database_is_told_and_a_newer_one_from_an_unused_original_is_not() {
    let (drive, copy) = (TestFolder::new(), TestFolder::new());
    use_once(&drive, 0);
    copy_to(&drive, &copy, &["tiles.db", "run.a"]);
    use_once(&drive, 1);
    use_once(&drive, 2);
    let newer = fs::read(database(&drive)).expect("it is there");
    copy_to(&copy, &drive, &["tiles.db"]);
    let store = opened(&drive);
    let expected = Lineage::Older { database_at: Some(later(0)), drive_at: later(2), runs: 2 };
    assert_eq!(store.lineage(&RunMarkFile::new(drive.path()), None).expect("it can be compared"), expected);
    drop(store);
    // The original wasn't used since: taking the copy's newer database is no fork.
    fs::write(database(&copy), newer).expect("it can be written");
    assert_eq!(use_once(&copy, 3), Lineage::Continued);
}

#[test]
fn a_run_that_only_reads_leaves_no_mark() {
    let folder = TestFolder::new();
    use_once(&folder, 0);
    let before = fs::read(folder.path().join("run.a")).expect("it is there");
    let store = opened(&folder);
    store.begin_run(RunMarkFile::new(folder.path()), None, later(1)).expect("random bytes are there");
    store.list().expect("it can be read");
    store.close().expect("it closes");
    assert_eq!(fs::read(folder.path().join("run.a")).expect("it is there"), before);
    assert!(!folder.path().join("run.b").exists());
}
