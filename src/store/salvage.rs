//! Salvage: everything that the pages of a damaged database still give, row by row, and what is known to be missing.
//!
//! A page that isn't what was written fails to decrypt, and everything that goes through it fails. A table is read from
//! both ends up to the first such page, and between by the number of each row, which finds what lies on whole pages
//! there. The indexes are tables of their own, on other pages: they say which rows there were.

use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, Row};
use secrecy::SecretBox;

use super::error::{StoreError, Trouble};
use super::lineage::{self, Run};
use super::opening;
use super::peers::{self, Peer};
use super::settings::{HISTORY_LINE_BYTES_MAX, SETTING_BYTES_MAX, SETTING_KEY_BYTES_MAX};
use super::{random_id, row, schema, turns};
use crate::message::{MessageId, SessionId};
use crate::time::Timestamp;
use crate::transcript::{MODEL_BYTES_MAX, StoredMessage, TITLE_BYTES_MAX, Transcript};

/// How many rows are looked for by number between two damaged places.
const GAP_ROWS_MAX: i64 = 1_000_000;
/// How many of them may fail one after another before the rest is given up.
const FAILURES_MAX: usize = 2_000;
/// What a session is said to have begun with where that can't be read.
const MODEL_UNKNOWN: &str = "unknown";

/// A session of which something is known to be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The session.
    pub session: SessionId,
    /// What the person called it, where that could be read.
    pub title: Option<String>,
    /// How many of its messages can't be read.
    pub messages: usize,
}

/// What a database still gives.
#[derive(Clone, Debug, Default)]
pub struct Salvage {
    /// The sessions with their messages.
    pub sessions: Vec<Transcript>,
    /// The settings.
    pub settings: Vec<(String, String)>,
    /// The lines of the prompt, oldest first.
    pub history: Vec<String>,
    /// The runs that changed it.
    pub runs: Vec<Run>,
    /// The devices that were linked, and what they are called.
    pub peers: Vec<Peer>,
    /// The names of what was deleted: it must not come back from another device.
    pub gone: Vec<[u8; 16]>,
    /// The sessions of which messages are known to be missing.
    pub missing: Vec<Missing>,
    /// The messages that are known to be missing.
    pub(super) missing_ids: BTreeSet<[u8; 16]>,
    /// Whether every session is there.
    pub(super) has_all_sessions: bool,
    /// Whether it is known of every message that it was there.
    pub(super) knows_all_messages: bool,
    /// Whether settings, history and runs could be read to their end.
    pub(super) has_all_settings: bool,
}

impl Salvage {
    /// How many messages it has.
    pub fn messages(&self) -> usize {
        self.sessions.iter().map(|session| session.messages.len()).sum()
    }

    /// Whether more may be missing than is known.
    pub fn may_lack_more(&self) -> bool {
        !(self.has_all_sessions && self.knows_all_messages && self.has_all_settings)
    }
}

/// A session's row, without its messages.
struct SessionRow {
    id: SessionId,
    title: Option<String>,
    model: String,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// A message's row: whose it is, and its place there.
struct MessageRow {
    session: i64,
    hlc: i64,
    message: StoredMessage,
}

/// The rows of a table that could be read, by number, and whether these are all.
struct Rows<T> {
    found: BTreeMap<i64, T>,
    is_whole: bool,
}

/// The open database. A page that fails leaves SQLCipher failing on every page after it, so the connection is made anew.
struct Reader<'a> {
    path: &'a Path,
    key: &'a SecretBox<[u8; 32]>,
    connection: RefCell<Option<Connection>>,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path, key: &'a SecretBox<[u8; 32]>) -> Result<Self, StoreError> {
        let connection = RefCell::new(Some(opening::read_all(path, key)?));
        Ok(Self { path, key, connection })
    }

    fn get(&self) -> Result<Ref<'_, Connection>, StoreError> {
        if self.connection.borrow().is_none() {
            self.connection.replace(Some(opening::read_all(self.path, self.key)?));
        }
        Ok(Ref::map(self.connection.borrow(), |connection| {
            connection.as_ref().expect("it was just opened where it wasn't there")
        }))
    }

    fn drop_failed(&self) {
        self.connection.replace(None);
    }
}

/// Reads what the database at `path` still gives. Changes nothing: what an unclean exit left beside it is read with it.
///
/// # Errors
/// As [`super::Store::open`]: in particular where the first page, with the list of all tables, is damaged.
pub(super) fn read(path: &Path, key: &SecretBox<[u8; 32]>) -> Result<Salvage, StoreError> {
    let connection = Reader::open(path, key)?;
    schema::version(&*connection.get()?, path)?;
    let ids = session_ids(&connection);
    let sessions = walk(&connection, "session", "id, title, model, created_at, updated_at", &ids.found, &session_row);
    let known = message_ids(&connection, sessions.found.keys().chain(ids.found.keys()));
    let columns = format!("{}, session, hlc", turns::COLUMNS);
    let messages = walk(&connection, "message", &columns, &known.found, &message_row);
    let (settings, whole_settings) = until_error(&connection, "SELECT key, value FROM setting ORDER BY key", |row| {
        Ok((row::text(row, 0, SETTING_KEY_BYTES_MAX)?, row::text(row, 1, SETTING_BYTES_MAX)?))
    });
    let history = walk(&connection, "history", "line", &BTreeMap::<i64, ()>::new(), &|row| {
        row::text(row, 0, HISTORY_LINE_BYTES_MAX)
    });
    let runs = lineage::runs(&*connection.get()?);
    // Not there before schema 4, and then nothing is missing.
    let peers = until_error(&connection, peers::ALL, peers::peer).0;
    let gone = until_error(&connection, "SELECT id FROM gone ORDER BY id", |row| row::id(row, 0)).0;
    let mut salvage = Salvage {
        settings,
        history: history.found.into_values().collect(),
        has_all_sessions: sessions.is_whole,
        knows_all_messages: messages.is_whole || known.is_whole,
        has_all_settings: whole_settings && history.is_whole && runs.is_ok(),
        runs: runs.unwrap_or_default(),
        peers,
        gone,
        ..Salvage::default()
    };
    assemble(&mut salvage, sessions.found, messages.found, &ids.found, &known.found)?;
    Ok(salvage)
}

/// Puts sessions and messages together; a session whose own row is lost gets what its messages say of it.
fn assemble(
    salvage: &mut Salvage,
    mut sessions: BTreeMap<i64, SessionRow>,
    messages: BTreeMap<i64, MessageRow>,
    ids: &BTreeMap<i64, SessionId>,
    known: &BTreeMap<i64, (i64, MessageId)>,
) -> Result<(), StoreError> {
    let mut lost: BTreeMap<i64, usize> = BTreeMap::new();
    for (seq, (session, id)) in known {
        if !messages.contains_key(seq) {
            *lost.entry(*session).or_default() += 1;
            salvage.missing_ids.insert(id.0);
        }
    }
    let mut by_session: BTreeMap<i64, Vec<MessageRow>> = BTreeMap::new();
    for message in messages.into_values() {
        by_session.entry(message.session).or_default().push(message);
    }
    let all: BTreeSet<i64> = sessions.keys().chain(by_session.keys()).chain(lost.keys()).copied().collect();
    for seq in all {
        let mut said = by_session.remove(&seq).unwrap_or_default();
        said.sort_by_key(|message| (message.hlc, message.message.id.0));
        let messages: Vec<StoredMessage> = said.into_iter().map(|row| row.message).collect();
        let session = match sessions.remove(&seq) {
            Some(session) => session,
            None => {
                let at = |message: Option<&StoredMessage>| message.map_or(Timestamp::from_ms(0), |m| m.created_at);
                SessionRow {
                    id: ids.get(&seq).copied().map_or_else(|| random_id().map(SessionId), Ok)?,
                    title: None,
                    model: messages.iter().find_map(|m| m.model.clone()).unwrap_or_else(|| MODEL_UNKNOWN.into()),
                    created_at: at(messages.first()),
                    updated_at: at(messages.last()),
                }
            }
        };
        let SessionRow { id, title, model, created_at, updated_at } = session;
        if let Some(messages) = lost.get(&seq) {
            salvage.missing.push(Missing { session: id, title: title.clone(), messages: *messages });
        }
        if !messages.is_empty() {
            salvage.sessions.push(Transcript { id, title, model, created_at, updated_at, messages });
        }
    }
    Ok(())
}

fn session_row(row: &Row<'_>) -> Result<SessionRow, Trouble> {
    Ok(SessionRow {
        id: SessionId(row::id(row, 0)?),
        title: row::optional_text(row, 1, TITLE_BYTES_MAX)?,
        model: row::text(row, 2, MODEL_BYTES_MAX)?,
        created_at: row::moment(row, 3)?,
        updated_at: row::moment(row, 4)?,
    })
}

fn message_row(row: &Row<'_>) -> Result<MessageRow, Trouble> {
    let (session, hlc) = (row::number(row, 9)?, row::number(row, 10)?);
    Ok(MessageRow { session, hlc, message: turns::stored_message(row)? })
}

/// The number and id of each session, out of the index of ids.
fn session_ids(connection: &Reader<'_>) -> Rows<SessionId> {
    let sql = "SELECT seq, id FROM session INDEXED BY sqlite_autoindex_session_1 ORDER BY id";
    let (found, is_whole) = until_error(connection, sql, |row| Ok((row::number(row, 0)?, SessionId(row::id(row, 1)?))));
    Rows { found: found.into_iter().collect(), is_whole }
}

/// The number of each message with its session and id, out of the index of places: as a whole, or session by session.
fn message_ids<'a>(connection: &Reader<'_>, sessions: impl Iterator<Item = &'a i64>) -> Rows<(i64, MessageId)> {
    let sql = "SELECT seq, session, id FROM message INDEXED BY message_order";
    let read = |row: &Row<'_>| Ok((row::number(row, 0)?, (row::number(row, 1)?, MessageId(row::id(row, 2)?))));
    let (found, is_whole) = until_error(connection, &format!("{sql} ORDER BY session, hlc, id"), read);
    let mut found: BTreeMap<i64, (i64, MessageId)> = found.into_iter().collect();
    if !is_whole {
        for session in sessions.collect::<BTreeSet<_>>() {
            let sql = format!("{sql} WHERE session = {session} ORDER BY hlc, id");
            found.extend(until_error(connection, &sql, read).0);
        }
    }
    Rows { found, is_whole }
}

/// Reads rows until the end or the first that can't be had, and says whether it was the end. A row whose values aren't
/// Tiles' own is left out.
fn until_error<T>(connection: &Reader<'_>, sql: &str, read: impl Fn(&Row<'_>) -> Result<T, Trouble>) -> (Vec<T>, bool) {
    let mut found = Vec::new();
    let mut is_whole = true;
    let mut run = || -> Result<(), Trouble> {
        let connection = connection.get()?;
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            match read(row) {
                Ok(value) => found.push(value),
                Err(_) => is_whole = false,
            }
        }
        Ok(())
    };
    let reached_the_end = run().is_ok();
    if !reached_the_end {
        connection.drop_failed();
    }
    (found, is_whole && reached_the_end)
}

/// Reads a table whose rows are numbered by `seq`: from both ends, then one by one what lies between.
fn walk<T, K>(
    connection: &Reader<'_>,
    table: &str,
    columns: &str,
    known: &BTreeMap<i64, K>,
    read: &dyn Fn(&Row<'_>) -> Result<T, Trouble>,
) -> Rows<T> {
    let numbered = |row: &Row<'_>| {
        let seq = row::number(row, row.as_ref().column_count() - 1)?;
        Ok((seq, read(row)?))
    };
    let select = format!("SELECT {columns}, seq FROM {table}");
    let (forward, is_whole) = until_error(connection, &format!("{select} ORDER BY seq"), numbered);
    let mut found: BTreeMap<i64, T> = forward.into_iter().collect();
    if is_whole {
        return Rows { found, is_whole };
    }
    let low = found.keys().next_back().copied().unwrap_or(0);
    let descending = format!("{select} WHERE seq > {low} ORDER BY seq DESC");
    let backward = until_error(connection, &descending, numbered).0;
    let high = backward.last().map(|(seq, _)| *seq).or(known.keys().next_back().map(|seq| seq.saturating_add(1)));
    found.extend(backward);
    let high = high.unwrap_or_else(|| low.saturating_add(GAP_ROWS_MAX));
    let mut failures = 0;
    for seq in (low.saturating_add(1)..high).take(GAP_ROWS_MAX as usize) {
        let (rows, is_sound) = until_error(connection, &format!("{select} WHERE seq = {seq}"), numbered);
        // Each failure costs opening the file again. Where all fail in a row, a page that leads to them all is gone.
        failures = if is_sound { 0 } else { failures + 1 };
        found.extend(rows);
        if failures > FAILURES_MAX {
            break;
        }
    }
    Rows { found, is_whole: false }
}

/// Checks that nothing of the database at `path` is damaged.
pub(super) fn check(path: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
    let connection = opening::read_all(path, key)?;
    schema::version(&connection, path)?;
    opening::check_pages(&connection, path, &mut |_| ())
}
