//! The tables of the store and how an older file gets them: migrations forward only, each in one transaction.
//!
//! `session` and `message` are a projection that can be made again from a log of operations: both are named by random
//! identifiers, a session's messages are ordered by (`hlc`, `id`), and nothing refers to a row's place in the file.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::error::{StoreError, Trouble};
use super::log;

/// `TILS`: what the header of a Tiles database says it is.
const APPLICATION_ID: i64 = 0x5449_4c53;

/// The newest schema.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// The name of the full-text index; SQLite keeps its parts in tables whose names begin with it.
const TEXT_INDEX: &str = "message_text";

/// What makes schema n + 1 out of schema n. A migration that was released is never changed.
const MIGRATIONS: &[&str] = &[
    // 1: sessions, messages, and the index of their text. `hlc`: milliseconds << 16, plus a counter.
    "CREATE TABLE session (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        title TEXT,
        model TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX session_updated ON session (updated_at DESC, seq DESC);
    CREATE TABLE message (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        session INTEGER NOT NULL REFERENCES session (seq) ON DELETE CASCADE,
        hlc INTEGER NOT NULL CHECK (hlc >= 0),
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        content TEXT NOT NULL,
        reasoning TEXT,
        created_at INTEGER NOT NULL,
        finish_reason TEXT CHECK (finish_reason IN ('stop', 'length', 'cancelled')),
        model TEXT,
        input_tokens INTEGER CHECK (input_tokens >= 0),
        output_tokens INTEGER CHECK (output_tokens >= 0)
    ) STRICT;
    CREATE UNIQUE INDEX message_order ON message (session, hlc, id);
    CREATE VIRTUAL TABLE message_text USING fts5 (
        content, content = 'message', content_rowid = 'seq', tokenize = 'unicode61 remove_diacritics 2'
    );
    INSERT INTO message_text (message_text, rank) VALUES ('secure-delete', 1);
    CREATE TRIGGER message_added AFTER INSERT ON message BEGIN
        INSERT INTO message_text (rowid, content) VALUES (new.seq, new.content);
    END;
    CREATE TRIGGER message_removed AFTER DELETE ON message BEGIN
        INSERT INTO message_text (message_text, rowid, content) VALUES ('delete', old.seq, old.content);
    END;",
    // 2: small values, and the lines typed at the prompt.
    "CREATE TABLE setting (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE history (seq INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL) STRICT;",
    // 3: the runs that changed the database, each with the header of the key file it had.
    "CREATE TABLE run (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        started_at INTEGER NOT NULL,
        key_generation INTEGER,
        key_run_id BLOB CHECK (length(key_run_id) = 16)
    ) STRICT;",
    // 4: the operation log, of which sessions, messages and peers are a projection. `device` is missing where this drive's own
    // log was never shared; `sealed` is how far a log is chained and signed, with `chain` after that. `gone` names what was
    // deleted, for good.
    "CREATE TABLE log (
        seq INTEGER PRIMARY KEY,
        device BLOB CHECK (length(device) = 32),
        epoch BLOB NOT NULL CHECK (length(epoch) = 16),
        is_own INTEGER NOT NULL CHECK (is_own IN (0, 1)),
        next INTEGER NOT NULL CHECK (next >= 0),
        last_hlc INTEGER NOT NULL CHECK (last_hlc >= 0),
        sealed INTEGER NOT NULL CHECK (sealed BETWEEN 0 AND next),
        chain BLOB CHECK (length(chain) = 32),
        forked_at INTEGER,
        UNIQUE (device, epoch)
    ) STRICT;
    CREATE UNIQUE INDEX log_own ON log (is_own) WHERE is_own = 1;
    CREATE TABLE op (
        seq INTEGER PRIMARY KEY,
        log INTEGER NOT NULL REFERENCES log (seq),
        number INTEGER NOT NULL CHECK (number >= 0),
        hlc INTEGER NOT NULL CHECK (hlc >= 0),
        kind INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 255),
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        session BLOB CHECK (length(session) = 16),
        message BLOB CHECK (length(message) = 16),
        salt BLOB CHECK (length(salt) = 16),
        body BLOB,
        chain BLOB CHECK (length(chain) = 32),
        signature BLOB CHECK (length(signature) = 64)
    ) STRICT;
    CREATE UNIQUE INDEX op_place ON op (log, number);
    CREATE INDEX op_session ON op (session, kind) WHERE session IS NOT NULL;
    CREATE INDEX op_member ON op (kind, hlc) WHERE kind BETWEEN 5 AND 7;
    CREATE TABLE gone (id BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16)) STRICT, WITHOUT ROWID;
    CREATE TABLE peer (
        device BLOB PRIMARY KEY NOT NULL CHECK (length(device) = 32),
        nickname TEXT NOT NULL,
        linked_at INTEGER NOT NULL,
        unlinked_at INTEGER,
        last_seen_at INTEGER,
        last_sync_at INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cut (
        device BLOB NOT NULL REFERENCES peer (device),
        epoch BLOB NOT NULL CHECK (length(epoch) = 16),
        next INTEGER NOT NULL CHECK (next >= 0),
        PRIMARY KEY (device, epoch)
    ) STRICT, WITHOUT ROWID;",
    // 5: what is said is put into the text index by a statement of its own. A statement that sets off a trigger has a savepoint,
    // and with each savepoint FTS5 writes out all it has gathered. The index merges its parts when there are 16, not 4.
    "DROP TRIGGER message_added;
    INSERT INTO message_text (message_text, rank) VALUES ('automerge', 16);",
    // 6: what other devices said comes into the text index later: `unindexed` names the messages that aren't in it yet. `message`
    // is as before, but for its checks: SQLite makes a table in memory of each `IN` with three values, for each row again, and
    // that took a fifth of the time in which messages of other devices are stored.
    "CREATE TABLE unindexed (message INTEGER PRIMARY KEY) STRICT;
    CREATE TABLE message_checked (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        session INTEGER NOT NULL REFERENCES session (seq) ON DELETE CASCADE,
        hlc INTEGER NOT NULL CHECK (hlc >= 0),
        role TEXT NOT NULL CHECK (role = 'system' OR role = 'user' OR role = 'assistant'),
        content TEXT NOT NULL,
        reasoning TEXT,
        created_at INTEGER NOT NULL,
        finish_reason TEXT CHECK (finish_reason = 'stop' OR finish_reason = 'length' OR finish_reason = 'cancelled'),
        model TEXT,
        input_tokens INTEGER CHECK (input_tokens >= 0),
        output_tokens INTEGER CHECK (output_tokens >= 0)
    ) STRICT;
    INSERT INTO message_checked SELECT * FROM message;
    DROP TABLE message;
    ALTER TABLE message_checked RENAME TO message;
    CREATE UNIQUE INDEX message_order ON message (session, hlc, id);
    CREATE TRIGGER message_removed AFTER DELETE ON message BEGIN
        INSERT INTO message_text (message_text, rowid, content) SELECT 'delete', old.seq, old.content
            WHERE NOT EXISTS (SELECT 1 FROM unindexed WHERE message = old.seq);
        DELETE FROM unindexed WHERE message = old.seq;
    END;",
];

/// The first schema with an operation log: what is in a database from before becomes the beginning of it.
const WITH_LOG: i64 = 4;

/// The schema of the open database, 0 for an empty one.
///
/// # Errors
/// [`StoreError::Foreign`] for a database that isn't ours, [`StoreError::Newer`] for one from the future.
pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let sqlite = |error| StoreError::from_sqlite(path, error);
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(sqlite)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0)).map_err(sqlite)?;
    match (application, found, objects) {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, 1..=VERSION, _) => Ok(found),
        (APPLICATION_ID, found, _) if found > VERSION => {
            Err(StoreError::Newer { path: path.into(), found, known: VERSION })
        }
        _ => Err(StoreError::Foreign {
            path: path.into(),
            what: format!("its application is {application} and its version {found}"),
        }),
    }
}

/// Brings the database from schema `found` to `target`, one transaction a step: interrupted, it goes on the next time.
///
/// # Errors
/// What writing can meet.
pub(super) fn migrate(connection: &Connection, found: i64, target: i64) -> Result<(), Trouble> {
    for (migration, version) in MIGRATIONS.iter().zip(1..).filter(|(_, v)| *v > found && *v <= target) {
        let step = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        step.execute_batch(migration)?;
        if version == WITH_LOG {
            log::adopt(&step)?;
        }
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", version)?;
        step.commit()?;
    }
    Ok(())
}

/// Checks that the database has exactly the tables, indexes and triggers of the newest schema.
///
/// Statements rely on them, and a trigger somebody planted would run with ours.
///
/// # Errors
/// [`StoreError::Foreign`], naming the first that is missing, planted or different.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let model = Connection::open_in_memory().map_err(|error| StoreError::from_sqlite(path, error))?;
    migrate(&model, 0, VERSION).map_err(|trouble| trouble.at(path))?;
    let expected = objects(&model).map_err(|trouble| trouble.at(path))?;
    let found = objects(connection).map_err(|trouble| trouble.at(path))?;
    let differs = expected
        .iter()
        .find(|(name, sql)| found.get(*name) != Some(sql))
        .or_else(|| found.iter().find(|(name, _)| !expected.contains_key(*name)));
    match differs {
        None => Ok(()),
        Some((name, _)) => {
            let what = format!("`{}` isn't what schema {VERSION} has", name.escape_debug());
            Err(StoreError::Foreign { path: path.into(), what })
        }
    }
}

/// The name and definition of everything in the schema, but for the tables in which SQLite keeps the text index: their
/// definitions are SQLite's own and may differ between its versions.
fn objects(connection: &Connection) -> Result<BTreeMap<String, String>, Trouble> {
    const OBJECTS_MAX: usize = 1000;
    const NOT_TEXT: Trouble = Trouble::Row("its schema isn't text");
    let mut statement = connection.prepare("SELECT type, name, coalesce(sql, '') FROM sqlite_schema")?;
    let mut rows = statement.query(())?;
    let mut objects = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let field =
            |idx| -> Result<String, Trouble> { Ok(row.get_ref(idx)?.as_str().map_err(|_| NOT_TEXT)?.to_owned()) };
        let (kind, name, sql) = (field(0)?, field(1)?, field(2)?);
        let part_of_index = name.strip_prefix(TEXT_INDEX).is_some_and(|rest| rest.starts_with('_'));
        if !(kind == "table" && part_of_index) {
            objects.insert(name, format!("{kind}: {sql}"));
        }
        if objects.len() > OBJECTS_MAX {
            return Err(Trouble::Row("its schema has too many parts"));
        }
    }
    Ok(objects)
}

#[cfg(test)]
pub(super) use tests::expect_migrations_from;

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `check` with a database of each earlier schema, the empty one included.
    pub(in crate::store) fn expect_migrations_from(mut check: impl FnMut(i64)) {
        (0..VERSION).for_each(&mut check);
    }

    #[test]
    fn stepwise_and_at_once_make_the_same_schema() {
        let path = Path::new("memory");
        let at_once = Connection::open_in_memory().expect("memory can be had");
        migrate(&at_once, 0, VERSION).expect("it migrates");
        let stepwise = Connection::open_in_memory().expect("memory can be had");
        for step in 0..VERSION {
            assert_eq!(version(&stepwise, path).expect("it is ours"), step);
            migrate(&stepwise, step, step + 1).expect("it migrates");
        }
        assert_eq!(version(&stepwise, path).expect("it is ours"), VERSION);
        assert_eq!(objects(&at_once).expect("text"), objects(&stepwise).expect("text"));
        check(&stepwise, path).expect("it has what it needs");
    }

    #[test]
    fn anything_missing_planted_or_changed_is_named() {
        for (change, named) in [
            ("DROP TABLE setting", "`setting`"),
            ("DROP TRIGGER message_removed", "`message_removed`"),
            ("DROP TABLE message_text", "`message_text`"),
            ("CREATE TRIGGER planted AFTER INSERT ON message BEGIN DELETE FROM setting; END", "`planted`"),
            ("CREATE VIEW planted AS SELECT 1", "`planted`"),
            ("ALTER TABLE history ADD COLUMN more TEXT", "`history`"),
            ("CREATE TABLE \"message_text\u{7}\" (x)", "`message_text\\u{7}`"),
        ] {
            let connection = Connection::open_in_memory().expect("memory can be had");
            migrate(&connection, 0, VERSION).expect("it migrates");
            connection.execute_batch(change).expect("the change is SQL");
            let error = check(&connection, Path::new("x.db")).expect_err(change).to_string();
            assert!(error.contains(named), "{change}: {error}");
        }
    }
}
