//! Opening: what the file may be, unclean exits at every moment, damage anywhere, older and newer schemas.

use super::*;
use crate::disk::DiskError;

/// The database and its write-ahead log as they are on the drive at this moment, as if the power went.
fn cut(from: &TestFolder, to: &TestFolder) -> PathBuf {
    for name in ["tiles.db", "tiles.db-wal"] {
        let source = from.path().join(name);
        if source.exists() {
            fs::copy(source, to.path().join(name)).expect("it can be copied");
        }
    }
    database(to)
}

fn wal(path: &Path) -> PathBuf {
    path.with_file_name("tiles.db-wal")
}

#[test]
fn settings_are_those_that_survived_the_power_cuts() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    for (pragma, expected) in [
        ("locking_mode", "exclusive"),
        ("journal_mode", "wal"),
        ("synchronous", "2"),
        ("fullfsync", "1"),
        ("checkpoint_fullfsync", "1"),
        ("temp_store", "2"),
        ("mmap_size", "0"),
        ("cache_size", "-32768"),
        ("wal_autocheckpoint", "200"),
        ("secure_delete", "1"),
        ("foreign_keys", "1"),
        ("trusted_schema", "0"),
        ("cipher_memory_security", "0"),
        ("cipher_page_size", "4096"),
        ("busy_timeout", "0"),
    ] {
        let value: String = store
            .connection
            .query_row(&format!("PRAGMA {pragma}"), (), |row| {
                let value = row.get_ref(0)?;
                Ok(value.as_str().map(Into::into).unwrap_or_else(|_| value.as_i64().unwrap_or(-1).to_string()))
            })
            .unwrap_or_else(|error| panic!("{pragma}: {error}"));
        assert_eq!(value, expected, "{pragma}");
    }
    assert!(!folder.path().join("tiles.db-shm").exists(), "no memory is shared through the drive");
}

#[test]
fn a_second_opening_is_refused_at_once() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let before = std::time::Instant::now();
    let error = open(&database(&folder)).expect_err("it is in use");
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(before.elapsed().as_millis() < 2000);
    talk(&store, "T", "the first goes on");
    assert!(matches!(open(&database(&folder)), Err(StoreError::InUse { .. })), "the refusal took no lock away");
    store.close().expect("it closes");
    opened(&folder);
}

#[test]
fn every_acknowledged_turn_survives_a_cut_after_it() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", "turn 0");
    for turn in 1..40 {
        store.append_turn(id, &[user(&format!("turn {turn} {}", "x".repeat(turn * 97)))], NOW).expect("stored");
        let after = TestFolder::new();
        let reopened = open(&cut(&folder, &after)).expect("it recovers");
        assert!(reopened.opening().recovered, "turn {turn}");
        let found = contents(&reopened, id);
        assert_eq!(found.len(), turn + 2, "turn {turn}");
        assert!(found[turn + 1].starts_with(&format!("turn {turn} ")));
        reopened.close().expect("it closes");
        assert!(!open(&database(&after)).expect("it opens").opening().recovered, "once is enough");
    }
}

#[test]
fn a_torn_log_loses_only_what_wasnt_finished() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", "turn 0");
    store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(())).expect("it can be taken in");
    for turn in 1..4 {
        store.append_turn(id, &[user(&format!("turn {turn}"))], NOW).expect("stored");
    }
    let whole = fs::read(wal(&database(&folder))).expect("there is a log");
    let mut seen = std::collections::BTreeSet::new();
    for cut_at in (0..=whole.len()).step_by(1031).chain([whole.len()]) {
        let after = TestFolder::new();
        let path = cut(&folder, &after);
        // What was to follow came as zeros, or not at all.
        let mut torn = whole[..cut_at].to_vec();
        if cut_at % 2 == 0 {
            torn.resize(whole.len(), 0);
        }
        fs::write(wal(&path), torn).expect("it can be written");
        let reopened = open(&path).unwrap_or_else(|error| panic!("cut at {cut_at}: {error}"));
        let found = contents(&reopened, id);
        assert_eq!(found[..2], ["turn 0", "An answer."], "cut at {cut_at}");
        for (turn, content) in found[2..].iter().enumerate() {
            assert_eq!(*content, format!("turn {}", turn + 1), "cut at {cut_at}");
        }
        seen.insert(found.len());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5], "cuts fell between all turns");
}

/// Whether an error is the one that a file asks for.
type Expected = fn(&StoreError) -> bool;

#[test]
fn the_cases_of_a_file_that_doesnt_open() {
    let folder = TestFolder::new();
    let path = database(&folder);
    talk(&opened(&folder), "T", "x");
    opened(&folder).close().expect("it closes");
    let sound = fs::read(&path).expect("it is there");

    let other_key = SecretBox::new(Box::new([8; 32]));
    let error = Store::open(&path, &other_key, Access::ReadWrite).expect_err("another key");
    assert!(matches!(error, StoreError::WrongKey { .. }) && error.is_integrity(), "{error}");
    assert!(!error.to_string().contains("0808"), "no key in an error");
    assert_eq!(fs::read(&path).expect("it is there"), sound, "a wrong key changes nothing");

    let plain = folder.path().join("plain.db");
    Connection::open(&plain).expect("it opens").execute_batch("CREATE TABLE t (x)").expect("it is SQL");
    let foreign = folder.path().join("foreign.db");
    {
        let connection = Connection::open(&foreign).expect("it opens");
        connection.key(None::<&str>, format!("x'{}'", "07".repeat(32)), false).expect("it is a key");
        connection.execute_batch("CREATE TABLE t (x)").expect("it is SQL");
    }
    let mut first_page = sound.clone();
    first_page[200] ^= 1;
    let noise: Vec<u8> = (0..20_480u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let cases: [(&str, &[u8], Expected); 7] = [
        ("plain", &fs::read(&plain).expect("it is there"), |e| matches!(e, StoreError::Plain { .. })),
        ("foreign", &fs::read(&foreign).expect("it is there"), |e| matches!(e, StoreError::Foreign { .. })),
        ("text", b"hello, this is no database\n", |e| matches!(e, StoreError::NotADatabase { .. })),
        ("long text", &noise[..20_000], |e| matches!(e, StoreError::NotADatabase { .. })),
        ("noise", &noise, |e| matches!(e, StoreError::WrongKey { .. })),
        ("first page", &first_page, |e| matches!(e, StoreError::Damaged { .. })),
        ("cut short", &sound[..8192], |e| matches!(e, StoreError::Damaged { .. })),
    ];
    for (name, bytes, expected) in cases {
        let path = folder.path().join("case.db");
        fs::write(&path, bytes).expect("it can be written");
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let error = Store::open(&path, &key(), access).expect_err(name);
            assert!(expected(&error), "{name}, {access:?}: {error}");
            assert!(error.hint().is_some());
            assert_eq!(fs::read(&path).expect("it is there"), bytes, "{name}: nothing was written");
        }
    }
    let nowhere = folder.path().join("no folder/tiles.db");
    for (path, access) in [(&nowhere, Access::ReadWrite), (&folder.path().join("none.db"), Access::ReadOnly)] {
        let error = Store::open(path, &key(), access).expect_err("it can't be opened");
        assert!(matches!(error, StoreError::Disk(DiskError::Other { .. } | DiskError::NotFound { .. })), "{error}");
    }
    assert!(Store::open(folder.path(), &key(), Access::ReadWrite).is_err(), "a folder");
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_or_harmless() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", &"words to fill pages ".repeat(900));
    store.close().expect("it closes");
    let sound = fs::read(database(&folder)).expect("it is there");
    let expected = [id].map(|id| contents(&opened(&folder), id));
    let (mut refused, mut unread) = (0, 0);
    for offset in (5..sound.len()).step_by(1777) {
        let mut damaged = sound.clone();
        damaged[offset] ^= 0x10;
        let path = database(&folder);
        fs::write(&path, &damaged).expect("it can be written");
        let used = open(&path).and_then(|store| {
            store.list()?;
            store.search("words", 9)?;
            store.settings()?;
            store.history(9)?;
            contents_of(&store, id)
        });
        match used {
            Ok(found) => {
                assert_eq!([found], expected, "byte {offset}");
                unread += 1;
            }
            Err(error) => {
                assert!(error.is_integrity(), "byte {offset}: {error}");
                refused += 1;
            }
        }
        // After an unclean exit the whole file is checked, so that it is found wherever it is.
        fs::write(wal(&path), b"something unfinished").expect("it can be written");
        let error = open(&path).expect_err("it is damaged");
        assert!(error.is_integrity(), "byte {offset}: {error}");
        if matches!(error, StoreError::Damaged { .. }) && offset > 4096 {
            assert!(error.to_string().contains("page"), "byte {offset}: {error}");
        }
        let _ = fs::remove_file(wal(&path));
    }
    assert!(refused > 5, "{refused} refused, {unread} unread");
}

fn contents_of(store: &Store, id: SessionId) -> Result<Vec<String>, StoreError> {
    Ok(store.messages(id)?.into_iter().map(|message| message.content).collect())
}

#[test]
fn every_earlier_schema_is_brought_up_to_date() {
    schema::expect_migrations_from(|found| {
        let folder = TestFolder::new();
        let path = database(&folder);
        // An older file: its own tables only.
        let connection = Connection::open(&path).expect("it opens");
        connection.key(None::<&str>, format!("x'{}'", "07".repeat(32)), false).expect("it is a key");
        schema::migrate(&connection, 0, found).expect("it migrates");
        if found >= 1 {
            connection
                .execute_batch(
                    "INSERT INTO session VALUES (1, x'000102030405060708090a0b0c0d0e0f', 'Old', 'm', 5, 6);
                    INSERT INTO message (id, session, hlc, role, content, created_at)
                        VALUES (x'100102030405060708090a0b0c0d0e0f', 1, 9, 'user', 'from back then', 5);",
                )
                .expect("it is SQL");
        }
        if found >= 5 {
            // Until then a trigger did it.
            let index = "INSERT INTO message_text (rowid, content) SELECT seq, content FROM message";
            connection.execute_batch(index).expect("it is SQL");
        }
        drop(connection);
        let read_only = Store::open(&path, &key(), Access::ReadOnly).expect_err("it is older");
        assert!(matches!(read_only, StoreError::Outdated { .. }), "{read_only}");
        let backup_folder = folder.path().join("backup");
        let mut steps = Vec::new();
        let mut along =
            Along { on_step: &mut |step| steps.push(step), was_unclean: false, backups: Some(&backup_folder) };
        let store = Store::open_along(&path, &key(), Access::ReadWrite, &mut along).expect("it is brought up to date");
        let is_older = found > 0;
        assert_eq!(steps.contains(&Step::BackingUp), is_older, "{steps:?}");
        assert_eq!(backups(&backup_folder).expect("it can be listed").len(), usize::from(is_older));
        assert_eq!(store.opening().migrated_from, (found > 0).then_some(found));
        if found >= 1 {
            assert_eq!(store.search("back", 3).expect("it is text")[0].title.as_deref(), Some("Old"));
        }
        talk(&store, "New", "x");
        store.history_append("line").expect("it is a line");
        store.close().expect("it closes");
        assert_eq!(open(&path).expect("it opens").opening().migrated_from, None);
    });
}

#[test]
fn a_newer_schema_is_left_alone() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    store.connection.pragma_update(None, "user_version", schema::VERSION + 1).expect("it can be written");
    store.close().expect("it closes");
    let before = fs::read(database(&folder)).expect("it is there");
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = Store::open(&database(&folder), &key(), access).expect_err("it is newer");
        assert!(
            matches!(error, StoreError::Newer { found, known: schema::VERSION, .. } if found == schema::VERSION + 1),
            "{error}"
        );
        assert!(!error.is_integrity());
    }
    assert_eq!(fs::read(database(&folder)).expect("it is there"), before);
}

#[test]
fn a_medium_that_cant_be_written_is_read_without_a_trace() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", "closed properly");
    store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(())).expect("it can be taken in");
    store.append_turn(id, &[user("unfinished")], NOW).expect("stored");
    let medium = TestFolder::new();
    let path = cut(&folder, &medium);
    let files = |folder: &TestFolder| {
        let names = crate::disk::list(folder.path()).expect("it is there");
        names.into_iter().map(|name| (fs::read(folder.path().join(&name)).expect("a file"), name)).collect::<Vec<_>>()
    };
    let before = files(&medium);
    let read_only = Store::open(&path, &key(), Access::ReadOnly).expect("it opens");
    assert!(read_only.opening().unfinished_ignored && !read_only.opening().recovered);
    assert_eq!(contents(&read_only, id), ["closed properly", "An answer."]);
    assert_eq!(read_only.search("properly", 3).expect("it is text").len(), 1);
    let pending = read_only.create(NOW, None, "m").expect("it isn't on the drive");
    for error in [
        read_only.append_turn(pending, &[user("x")], NOW).err(),
        read_only.rename(id, "x", NOW).err(),
        read_only.delete(id).err(),
        read_only.set_setting("a", "b").err(),
        read_only.history_append("x").err(),
    ] {
        assert!(matches!(error, Some(StoreError::ReadOnly { .. })), "{error:?}");
    }
    assert_eq!(read_only.access(), Access::ReadOnly);
    read_only.close().expect("it closes");
    assert_eq!(files(&medium), before);
}

#[test]
fn any_path_will_do() {
    let folder = TestFolder::new();
    for name in ["a b", "50%41 ?mode=ro#x", "日本 ü", "it's", "file:x", "&immutable=1"] {
        let inner = folder.path().join(name);
        fs::create_dir(&inner).expect("it can be made");
        let path = inner.join("tiles.db");
        let store = open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        talk(&store, "T", "x");
        store.close().expect("it closes");
        assert!(path.exists(), "{name}");
        assert_eq!(Store::open(&path, &key(), Access::ReadOnly).expect(name).list().expect(name).len(), 1);
    }
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 6, "nothing lies elsewhere");
}
