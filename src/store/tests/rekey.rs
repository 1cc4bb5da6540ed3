//! Another key for the database: whole under one of the two keys, wherever encrypting it anew is cut.

use super::*;

/// A page of the write-ahead log: its header and the page.
const FRAME_BYTES: usize = 24 + 4096;
/// The header of the log.
const LOG_BYTES: usize = 32;

fn key_of(byte: u8) -> SecretBox<[u8; 32]> {
    SecretBox::new(Box::new([byte; 32]))
}

/// A database with some pages, closed: its session, and the file's bytes.
fn filled(folder: &TestFolder) -> (SessionId, Vec<u8>) {
    let store = opened(folder);
    let id = talk(&store, "First", "What is kept?");
    for round in 0..40 {
        let long = format!("{round} ").repeat(400);
        store.append_turn(id, &[user(&long), answer("An answer.")], later(round)).expect("it is stored");
    }
    store.close().expect("it closes");
    (id, fs::read(database(folder)).expect("it is there"))
}

/// The write-ahead log with every page under the new key, as it is when the last byte has come and nothing else has.
fn rekeyed_log(old: &[u8], new_key: u8) -> Vec<u8> {
    let folder = TestFolder::new();
    fs::write(database(&folder), old).expect("it can be written");
    let store = opened(&folder);
    store.connection.execute_batch("PRAGMA wal_autocheckpoint = 0").expect("it is a setting");
    store
        .connection
        .key(Some(rusqlite::MAIN_DB), crate::store::opening::raw_key(&key_of(new_key)).as_slice(), true)
        .expect("it can be encrypted anew");
    let log = fs::read(folder.path().join("tiles.db-wal")).expect("it is there");
    assert_eq!((log.len() - LOG_BYTES) / FRAME_BYTES, old.len() / 4096, "every page is written once");
    assert_eq!(fs::read(database(&folder)).expect("it is there"), old, "the file itself waits for the checkpoint");
    log
}

#[test]
fn only_the_new_key_opens_it() {
    let folder = TestFolder::new();
    let (id, old) = filled(&folder);
    let before = contents(&opened(&folder), id);
    let store = opened(&folder).rekey(&key_of(8)).expect("it can be encrypted anew");
    assert_eq!(contents(&store, id), before);
    store.append_turn(id, &[user("and on"), answer("it goes")], later(99)).expect("it is stored");
    store.close().expect("it closes");
    assert!(matches!(open(&database(&folder)), Err(StoreError::WrongKey { .. })));
    let new = fs::read(database(&folder)).expect("it is there");
    let kept = |page: usize| new.get(page..page + 4096).is_some_and(|bytes| bytes == &old[page..page + 4096]);
    assert!((0..old.len()).step_by(4096).all(|page| !kept(page)), "a page is left under the old key");
    let store = Store::open_rotated(&database(&folder), &key_of(8), &[key()], Access::ReadWrite).expect("it opens");
    assert!(!store.opening().rekeyed && !store.opening().previous_key);
    assert_eq!(contents(&store, id).len(), before.len() + 2);
}

#[test]
fn a_cut_at_any_step_leaves_a_database_that_opens() {
    let folder = TestFolder::new();
    let (id, old) = filled(&folder);
    let before = contents(&opened(&folder), id);
    let log = rekeyed_log(&old, 8);
    let frames = old.len() / 4096;
    assert!(frames > 20, "{frames}");
    // The log as far as it was written, each time with a torn frame as well; then the file as far as it was replaced.
    let torn = (0..=frames).step_by(3).flat_map(|frame| {
        let whole = LOG_BYTES + frame * FRAME_BYTES;
        [whole, (whole + 1000).min(log.len())].map(|length| (old.clone(), log[..length].to_vec()))
    });
    let new_page = |page: usize| &log[LOG_BYTES + page * FRAME_BYTES + 24..LOG_BYTES + (page + 1) * FRAME_BYTES];
    let replaced = (0..=frames).step_by(5).map(|pages| {
        let new = (0..pages).flat_map(|page| new_page(page).to_vec()).collect::<Vec<u8>>();
        ([&new, &old[new.len()..]].concat(), log.clone())
    });
    let states: Vec<_> = torn.chain(replaced).collect();
    let mut under_the_old = 0;
    for (step, (file, log)) in states.iter().enumerate() {
        let cut = TestFolder::new();
        fs::write(database(&cut), file).expect("it can be written");
        fs::write(cut.path().join("tiles.db-wal"), log).expect("it can be written");
        let store = Store::open_rotated(&database(&cut), &key_of(8), &[key_of(9), key()], Access::ReadWrite)
            .unwrap_or_else(|error| panic!("step {step}: {error}"));
        assert_eq!(contents(&store, id), before, "step {step}");
        under_the_old += usize::from(store.opening().rekeyed);
        store.close().expect("it closes");
        // What was begun is finished by opening it.
        let store = Store::open(&database(&cut), &key_of(8), Access::ReadWrite).expect("only the new key is needed");
        assert_eq!(contents(&store, id), before, "step {step}");
    }
    assert!(under_the_old > frames / 3 && under_the_old < states.len(), "{under_the_old} of {}", states.len());
}

#[test]
fn a_foreign_database_is_not_taken_over() {
    let folder = TestFolder::new();
    let (_, old) = filled(&folder);
    let wrong = Store::open_rotated(&database(&folder), &key_of(8), &[key_of(9)], Access::ReadWrite);
    assert!(matches!(wrong, Err(StoreError::WrongKey { .. })));
    assert_eq!(fs::read(database(&folder)).expect("it is there"), old);
    // On a medium that can't be written, a previous key opens it, and nothing is changed.
    let store = Store::open_rotated(&database(&folder), &key_of(8), &[key()], Access::ReadOnly).expect("it opens");
    assert!(store.opening().previous_key);
    assert!(matches!(store.rekey(&key_of(8)), Err(StoreError::ReadOnly { .. })));
    assert_eq!(fs::read(database(&folder)).expect("it is there"), old);
}
