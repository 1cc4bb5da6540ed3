//! What operations do to the tables. The tables are a function of the set of operations alone: in whichever order they come,
//! once or more often, every device ends with the same.
//!
//! - Messages are a set. What was taken back or deleted stays away for good, and its body goes wherever it is.
//! - A session is in the table while it has messages.
//! - Of two titles the later counts, by (time, device); of two bodies for one name, the smaller.
//! - Who belongs together: of what was said about a device, the latest counts.

use std::collections::BTreeMap;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::super::error::Trouble;
use super::super::text_index::{Adding, Indexing};
use super::super::{peers, row, text_index, turns};
use crate::message::{MessageId, SessionId};
use crate::oplog::Body;
use crate::oplog::body::BODY_BYTES_MAX;
use crate::time::Timestamp;
use crate::transcript::{FinishReason, StoredMessage};

/// What happens to one session.
#[derive(Default)]
struct Change<'a> {
    said: Vec<(u64, &'a StoredMessage)>,
    removed: Vec<MessageId>,
    /// Whether its title or its beginning is told.
    is_described: bool,
}

/// Brings operations, which are stored already, into the tables; what was said comes into the text index now or later.
pub(in crate::store) fn apply<'a>(
    connection: &Connection,
    bodies: impl IntoIterator<Item = &'a Body>,
    when: Indexing,
) -> Result<(), Trouble> {
    let mut changes: BTreeMap<SessionId, Change<'_>> = BTreeMap::new();
    let mut is_about_members = false;
    for body in bodies {
        let change = body.session().map(|session| changes.entry(session).or_default());
        match (body, change) {
            (Body::Message { place, message, .. }, Some(change)) => change.said.push((*place, message)),
            (Body::Removed { messages, .. }, Some(change)) => change.removed.extend(messages),
            (Body::Session { .. } | Body::Title { .. }, Some(change)) => change.is_described = true,
            (Body::Deleted { session }, _) => set_gone(connection, session.0)?,
            (Body::Nickname { .. } | Body::Link { .. } | Body::Unlink { .. }, _) => is_about_members = true,
            _ => {}
        }
    }
    for (session, change) in changes {
        apply_to(connection, session, change, when)?;
    }
    if is_about_members { peers::project(connection) } else { Ok(()) }
}

/// Compiles what puts messages into sessions.
pub(in crate::store) fn prepare(connection: &Connection) -> Result<(), Trouble> {
    Filling::new(connection, 0, SessionId([0; 16]), Indexing::Later)?;
    text_index::prepare(connection)
}

fn apply_to(connection: &Connection, session: SessionId, change: Change<'_>, when: Indexing) -> Result<(), Trouble> {
    if is_gone(connection, session.0)? {
        connection.prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([session.0])?;
        let forget = "UPDATE op SET salt = NULL, body = NULL WHERE session = ?1 AND kind <= 2 AND body IS NOT NULL";
        connection.prepare_cached(forget)?.execute([session.0])?;
        return Ok(());
    }
    for message in &change.removed {
        set_gone(connection, message.0)?;
        connection.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([message.0])?;
        forget_message(connection, session, *message)?;
    }
    let (seq, is_new) = match find(connection, session)? {
        Some(seq) => (seq, false),
        None => match begin(connection, session)? {
            Some(seq) => (seq, true),
            // What is said waits until it is known in which session.
            None => return forget_gone(connection, session, &change),
        },
    };
    let mut filling = Filling::new(connection, seq, session, when)?;
    if is_new {
        // What waited comes with what is new.
        for (place, message) in waiting(connection, session)? {
            filling.insert(place, &message)?;
        }
    }
    // Only adding is told by what is added: else all messages of a session would be looked at for each.
    let mut is_only_added = !is_new && !change.is_described && change.removed.is_empty();
    let mut latest = i64::MIN;
    for (place, message) in change.said {
        match filling.insert(place, message)? {
            Inserted::Added => latest = latest.max(message.created_at.as_ms()),
            Inserted::Gone => {}
            Inserted::Settled => is_only_added = false,
        }
    }
    filling.adding.settle(connection)?;
    drop(filling);
    if is_only_added {
        let sql = "UPDATE session SET updated_at = max(updated_at, ?2) WHERE seq = ?1";
        connection.prepare_cached(sql)?.execute(params![seq, latest])?;
        return Ok(());
    }
    let emptied = "DELETE FROM session WHERE seq = ?1 AND NOT EXISTS (SELECT 1 FROM message WHERE session = ?1)";
    if connection.prepare_cached(emptied)?.execute([seq])? == 0 {
        describe(connection, seq, session)?;
    }
    Ok(())
}

fn forget_gone(connection: &Connection, session: SessionId, change: &Change<'_>) -> Result<(), Trouble> {
    for (_, message) in &change.said {
        if is_gone(connection, message.id.0)? {
            forget_message(connection, session, message.id)?;
        }
    }
    Ok(())
}

/// Whether what has this name was deleted.
pub(in crate::store) fn is_gone(connection: &Connection, id: [u8; 16]) -> Result<bool, Trouble> {
    Ok(connection.prepare_cached("SELECT 1 FROM gone WHERE id = ?1")?.exists([id])?)
}

pub(in crate::store) fn set_gone(connection: &Connection, id: [u8; 16]) -> Result<(), Trouble> {
    connection.prepare_cached("INSERT OR IGNORE INTO gone (id) VALUES (?1)")?.execute([id])?;
    Ok(())
}

fn forget_message(connection: &Connection, session: SessionId, message: MessageId) -> Result<(), Trouble> {
    let sql = "UPDATE op SET salt = NULL, body = NULL WHERE session = ?1 AND kind = 2 AND message = ?2";
    connection.prepare_cached(sql)?.execute([session.0, message.0])?;
    Ok(())
}

fn find(connection: &Connection, session: SessionId) -> Result<Option<i64>, Trouble> {
    let mut statement = connection.prepare_cached("SELECT seq FROM session WHERE id = ?1")?;
    Ok(statement.query_row([session.0], |row| row.get(0)).optional()?)
}

/// Puts a session into the table, where it is known how it began.
fn begin(connection: &Connection, session: SessionId) -> Result<Option<i64>, Trouble> {
    let sql = "SELECT body FROM op WHERE session = ?1 AND kind = 0 AND body IS NOT NULL ORDER BY body LIMIT 1";
    let Some(Body::Session { model, created_at, .. }) = first_body(connection, sql, session)? else { return Ok(None) };
    let sql = "INSERT INTO session (id, model, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)";
    let seq = connection.prepare_cached(sql)?.insert(params![session.0, model, created_at.as_ms()])?;
    Ok(Some(seq))
}

fn first_body(connection: &Connection, sql: &str, session: SessionId) -> Result<Option<Body>, Trouble> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([session.0])?;
    let Some(found) = rows.next()? else { return Ok(None) };
    row::optional_bytes(found, 0, BODY_BYTES_MAX)?.map(read_body).transpose()
}

pub(in crate::store) fn read_body(bytes: &[u8]) -> Result<Body, Trouble> {
    Body::from_bytes(bytes).map_err(|_| Trouble::Row("the body of an operation isn't one"))
}

/// The messages of a session that the log has.
fn waiting(connection: &Connection, session: SessionId) -> Result<Vec<(u64, StoredMessage)>, Trouble> {
    let sql = "SELECT body FROM op WHERE session = ?1 AND kind = 2 AND body IS NOT NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([session.0])?;
    let mut messages = Vec::new();
    while let Some(found) = rows.next()? {
        let Some(bytes) = row::optional_bytes(found, 0, BODY_BYTES_MAX)? else { continue };
        if let Body::Message { place, message, .. } = read_body(bytes)? {
            messages.push((place, message));
        }
    }
    Ok(messages)
}

/// Gives a session in the table its title, and when it was last changed.
fn describe(connection: &Connection, seq: i64, session: SessionId) -> Result<(), Trouble> {
    let sql = "SELECT body FROM op JOIN log ON log.seq = op.log WHERE session = ?1 AND kind = 1 AND body IS NOT NULL
        ORDER BY hlc DESC, device DESC, body DESC LIMIT 1";
    let (title, at) = match first_body(connection, sql, session)? {
        Some(Body::Title { title, at, .. }) => (title, at),
        _ => (None, Timestamp::from_ms(0)),
    };
    let sql = "UPDATE session SET title = ?2, updated_at = max(created_at, ?3,
            (SELECT max(created_at) FROM message WHERE session = ?1)) WHERE seq = ?1";
    connection.prepare_cached(sql)?.execute(params![seq, title, at.as_ms()])?;
    Ok(())
}

/// What became of a message.
enum Inserted {
    /// It is in its session now.
    Added,
    /// It was deleted before.
    Gone,
    /// One of its name was there, and it was decided between them.
    Settled,
}

/// A session in the table, into which messages are put.
struct Filling<'a> {
    connection: &'a Connection,
    seq: i64,
    session: SessionId,
    when: Indexing,
    adding: Adding,
    /// Held for all messages: to look it up takes as long as some of what it does.
    insert: CachedStatement<'a>,
}

impl<'a> Filling<'a> {
    fn new(connection: &'a Connection, seq: i64, session: SessionId, when: Indexing) -> Result<Self, Trouble> {
        let insert = connection.prepare_cached(&format!(
            "INSERT INTO message (session, hlc, {}) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
            WHERE NOT EXISTS (SELECT 1 FROM gone WHERE id = ?3) ON CONFLICT (id) DO NOTHING",
            turns::COLUMNS
        ))?;
        Ok(Self { connection, seq, session, when, adding: Adding::new(when), insert })
    }

    /// Puts a message into its session, unless it is gone, or another of its name counts.
    fn insert(&mut self, place: u64, message: &StoredMessage) -> Result<Inserted, Trouble> {
        let count_of = |tokens: Option<u64>| tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
        let inserted = self.insert.execute(params![
            self.seq,
            place as i64,
            message.id.0,
            message.role.as_str(),
            message.content,
            message.reasoning,
            message.created_at.as_ms(),
            message.finish_reason.map(FinishReason::as_str),
            message.model,
            count_of(message.usage.map(|usage| usage.input_tokens)),
            count_of(message.usage.map(|usage| usage.output_tokens)),
        ])?;
        if inserted > 0 {
            self.adding.add(self.connection, self.connection.last_insert_rowid(), &message.content)?;
            return Ok(Inserted::Added);
        }
        if is_gone(self.connection, message.id.0)? {
            return forget_message(self.connection, self.session, message.id).map(|()| Inserted::Gone);
        }
        self.settle(place, message).map(|()| Inserted::Settled)
    }

    /// Decides between two messages of one name: the one whose body is smaller stays.
    fn settle(&mut self, place: u64, message: &StoredMessage) -> Result<(), Trouble> {
        let (connection, session) = (self.connection, self.session);
        let sql = format!(
            "SELECT {}, hlc, session, (SELECT id FROM session WHERE session.seq = message.session)
            FROM message WHERE id = ?1",
            turns::COLUMNS
        );
        let (there, there_seq) = {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([message.id.0])?;
            let found = rows.next()?.ok_or(Trouble::Row("a message isn't there"))?;
            let there_place = row::optional_count(found, 9)?.unwrap_or(0);
            let there_session = SessionId(row::id(found, 11)?);
            let message = turns::stored_message(found)?;
            (Body::Message { session: there_session, place: there_place, message }, row::number(found, 10)?)
        };
        let new = Body::Message { session, place, message: message.clone() };
        if there.to_bytes() <= new.to_bytes() {
            return Ok(());
        }
        self.adding.settle(connection)?;
        connection.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([message.id.0])?;
        self.insert(place, message)?;
        if let (Some(other), true) = (there.session(), there_seq != self.seq) {
            // It had been in another session, which may be empty now.
            return apply_to(connection, other, Change::default(), self.when);
        }
        Ok(())
    }
}

/// The messages of a session in the table, as operations.
pub(super) fn messages_of(connection: &Connection, seq: i64, session: SessionId) -> Result<Vec<Body>, Trouble> {
    let sql = format!("SELECT {}, hlc FROM message WHERE session = ?1 ORDER BY hlc, id", turns::COLUMNS);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([seq])?;
    let mut bodies = Vec::new();
    while let Some(found) = rows.next()? {
        let place = row::optional_count(found, 9)?.unwrap_or(0);
        bodies.push(Body::Message { session, place, message: turns::stored_message(found)? });
    }
    Ok(bodies)
}
