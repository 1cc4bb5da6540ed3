//! What other devices said is found, whether or not it is in the text index yet.

use super::log::{family, send};
use super::*;

/// Checks that the text index has just what the messages say.
fn check_index(store: &Store) {
    let checked = "INSERT INTO message_text (message_text, rank) VALUES ('integrity-check', 1)";
    store.connection.execute_batch(checked).expect("the index fits the messages");
}

#[test]
fn what_came_waits_for_the_text_index_and_is_found_all_the_same() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    let id = talk(&a.store, "Sky", "why is it blue?");
    let gone = a.store.append_turn(id, &[user("a xylophone"), answer("a quartz")], later(2)).expect("stored");
    let there = |store: &Store, word: &str| store.search(word, 9).expect("it is text").len();
    send(a, b);
    let waiting = b.store.unindexed().expect("it can be read");
    assert_eq!(waiting, 4);
    // What is deleted while it waits was never in the index, and must not be taken out of it.
    a.store.truncate_after(id, gone[0]).expect("it is there");
    send(a, b);
    assert_eq!(b.store.unindexed().expect("it can be read"), 3, "what follows the first was deleted");
    // What this drive's person says meanwhile doesn't wait.
    b.store.append_turn(id, &[user("indeed a harbour")], later(3)).expect("stored");
    assert_eq!(b.store.unindexed().expect("it can be read"), 3);
    assert_eq!([there(&b.store, "xylophone"), there(&b.store, "quartz"), there(&b.store, "harbour")], [1, 0, 1]);
    assert_eq!(b.store.unindexed().expect("it can be read"), 0, "searching indexed it");
    check_index(&b.store);
    assert!(!b.store.index_some().expect("there is nothing to do"));
    b.store.delete(id).expect("it is there");
    check_index(&b.store);
    assert_eq!(there(&b.store, "blue"), 0);
}

#[test]
fn what_waits_is_found_where_nothing_can_be_written_too() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    let indexed = talk(&b.store, "Here", "an evening at the harbour");
    talk(&a.store, "There", "a harbour by day");
    send(a, b);
    let path = b.store.path().to_owned();
    let before = b.store.unindexed().expect("it can be read");
    let copy = b.folder.path().join("copy.db");
    b.store.backup(&copy, &key()).expect("there is space");
    assert_ne!(copy, path);
    let store = Store::open(&copy, &key(), Access::ReadOnly).expect("it opens");
    let found = |text: &str| store.search(text, 9).expect("it is text");
    for _ in 0..2 {
        let hits = found("Harbour");
        assert_eq!(hits.len(), 2, "of both indexes");
        assert!(hits.iter().all(|hit| hit.matches.len() == 1 && hit.snippet.contains("harbour")), "{hits:?}");
        assert_eq!(hits[1].session, indexed, "the latest first");
        assert_eq!(found("evening").len() + found("day").len(), 2);
        assert_eq!(store.search("harbour", 1).expect("it is text").len(), 1);
    }
    assert_eq!(store.unindexed().expect("it can be read"), before, "nothing was written");
    let refused = store.connection.execute_batch("DELETE FROM unindexed").expect_err("it can't be written");
    assert!(refused.to_string().contains("readonly"), "{refused}");
}

#[test]
fn what_waits_is_found_on_a_full_drive_too() {
    let devices = family(2);
    let [a, b] = [&devices[0], &devices[1]];
    let words: String = (0..20_000).map(|number| format!("word{number} ")).collect();
    talk(&a.store, "Many words", &words);
    send(a, b);
    let pages: i64 = b.store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("a number");
    b.store.connection.pragma_update(None, "max_page_count", pages).expect("it can be set");
    b.store.index_some().expect_err("there is no room");
    let found = |text: &str| b.store.search(text, 9).expect("it is text").len();
    assert_eq!([found("word777"), found("word777"), found("nothing")], [1, 1, 0]);
    b.store.connection.pragma_update(None, "max_page_count", 1_000_000).expect("it can be set");
    assert_eq!(found("word777"), 1, "once, now that it is in the index of the drive");
    assert_eq!(b.store.unindexed().expect("it can be read"), 0);
    check_index(&b.store);
}

#[test]
fn what_can_be_made_again_does_not_wait_for_the_medium_and_the_next_change_does() {
    let devices = family(2);
    let level = |store: &Store| -> i64 {
        store.connection.pragma_query_value(None, "synchronous", |row| row.get(0)).expect("it can be read")
    };
    let during = |run: &dyn Fn(&mut dyn FnMut())| {
        let mut seen = None;
        run(&mut || seen = Some(level(&devices[0].store)));
        (seen, level(&devices[0].store))
    };
    let store = &devices[0].store;
    let full = 2;
    let unhurried = during(&|see| {
        store
            .write_unhurried(|_| {
                see();
                Ok(())
            })
            .expect("there is space")
    });
    assert_eq!(unhurried, (Some(1), full));
    let failed = during(&|see| {
        store
            .write_unhurried::<()>(|_| {
                see();
                Err(Trouble::Row("no"))
            })
            .expect_err("it fails");
    });
    assert_eq!(failed, (Some(1), full), "after a failure too");
    assert_eq!(
        during(&|see| store
            .write(|_| {
                see();
                Ok(())
            })
            .expect("there is space")),
        (Some(full), full)
    );
}
