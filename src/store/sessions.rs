//! Sessions: begin, list, find by what a person types, rename, delete, export, import.

use rusqlite::{Connection, OptionalExtension, Row};

use super::error::{NamedSession, StoreError, Trouble};
use super::{Store, log, random_id, row, turns};
use crate::message::{MessageId, SessionId};
use crate::oplog::Body;
use crate::time::Timestamp;
use crate::transcript::{MODEL_BYTES_MAX, SESSIONS_MAX, TITLE_BYTES_MAX, Transcript, is_model, is_title};

/// How many sessions an error names.
const NAMED_MAX: usize = 5;
/// How many of the newest sessions are compared with a name that isn't found.
const NEAR_SESSIONS_MAX: usize = 1000;
/// How much of a title is compared, in characters: the comparison takes time with the square of it.
const NEAR_CHARS_MAX: usize = 64;
/// From which likeness on a title is near, from 0 to 1.
const NEAR_LIKENESS: f64 = 0.5;
/// How many sessions without a turn are remembered; more can only be a defect of the caller.
const PENDING_MAX: usize = 1000;

/// A session that has no turn yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    title: Option<String>,
    model: String,
    created_at: Timestamp,
}

/// A session as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSummary {
    /// Its name.
    pub id: SessionId,
    /// What the person calls it.
    pub title: Option<String>,
    /// The model it began with.
    pub model: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last added to or renamed.
    pub updated_at: Timestamp,
    /// How many messages it has.
    pub messages: u64,
}

impl Store {
    /// Begins a session. It takes its place on the drive together with its first turn, so that none stays empty.
    ///
    /// # Errors
    /// [`StoreError::BadName`] or [`StoreError::TooLarge`] for the title or the model's name.
    pub fn create(&self, now: Timestamp, title: Option<&str>, model: &str) -> Result<SessionId, StoreError> {
        title.map_or(Ok(()), check_title)?;
        check_model(model)?;
        let id = SessionId(random_id()?);
        self.set_pending(id, Pending { title: title.map(Into::into), model: model.into(), created_at: now })?;
        Ok(id)
    }

    /// The sessions on the drive, the one last added to first.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn list(&self) -> Result<Vec<SessionSummary>, StoreError> {
        self.read(|connection| summaries(connection, SESSIONS_MAX))
    }

    /// The session of this identifier, without a turn or with.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and what reading can meet.
    pub fn summary(&self, id: SessionId) -> Result<SessionSummary, StoreError> {
        if let Some(pending) = self.pending.borrow().get(&id).cloned() {
            let Pending { title, model, created_at } = pending;
            return Ok(SessionSummary { id, title, model, created_at, updated_at: created_at, messages: 0 });
        }
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, title, model, created_at, updated_at,
                    (SELECT count(*) FROM message WHERE message.session = session.seq)
                 FROM session WHERE id = ?1",
            )?;
            let mut rows = statement.query([id.0])?;
            rows.next()?.map(summary).unwrap_or_else(|| Err(not_found(id).into()))
        })
    }

    /// The session a person means: by its identifier or the first digits of it, or by its exact title.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] with the names near it, [`StoreError::Ambiguous`] with the candidates.
    pub fn find(&self, text: &str) -> Result<SessionId, StoreError> {
        let text = text.trim();
        let sessions = self.list()?;
        let is_prefix = !text.is_empty() && text.len() <= 32;
        let prefix = text.to_ascii_lowercase();
        let found: Vec<&SessionSummary> = sessions
            .iter()
            .filter(|session| {
                session.title.as_deref() == Some(text) || is_prefix && session.id.to_string().starts_with(&prefix)
            })
            .collect();
        match found.as_slice() {
            [one] => Ok(one.id),
            [] => Err(StoreError::NotFound { text: shorten(text), near: near(text, &sessions) }),
            several => Err(StoreError::Ambiguous {
                text: shorten(text),
                count: several.len(),
                candidates: several.iter().take(NAMED_MAX).map(|session| named(session)).collect(),
            }),
        }
    }

    /// Gives a session another title.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::TooLarge`], [`StoreError::NotFound`], and what writing can meet.
    pub fn rename(&self, id: SessionId, title: &str, now: Timestamp) -> Result<(), StoreError> {
        check_title(title)?;
        if let Some(pending) = self.pending.borrow_mut().get_mut(&id) {
            pending.title = Some(title.into());
            return Ok(());
        }
        self.write(|connection| {
            seq(connection, id)?;
            log::record(connection, &[Body::Title { session: id, title: Some(title.into()), at: now }], now)
        })
    }

    /// Removes a session and what was said in it: from the tables, from the index, and from the file's old pages.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and what writing can meet.
    pub fn delete(&self, id: SessionId) -> Result<(), StoreError> {
        if self.pending.borrow_mut().remove(&id).is_some() {
            return Ok(());
        }
        self.write(|connection| {
            seq(connection, id)?;
            log::record(connection, &[Body::Deleted { session: id }], turns::AFTER_ALL)
        })?;
        self.forget_old_pages()
    }

    /// A whole session as values.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and what reading can meet.
    pub fn export(&self, id: SessionId) -> Result<Transcript, StoreError> {
        let SessionSummary { id, title, model, created_at, updated_at, .. } = self.summary(id)?;
        Ok(Transcript { id, title, model, created_at, updated_at, messages: self.messages(id)? })
    }

    /// Takes sessions in, all or none, with their identifiers, times and order. What was deleted here comes back under a new
    /// identifier: on the other devices the old one stays deleted.
    ///
    /// # Errors
    /// [`StoreError::Exists`] where one of the identifiers is taken, and what writing can meet.
    pub fn import(&self, transcripts: &[Transcript]) -> Result<(), StoreError> {
        self.write(|connection| {
            for transcript in transcripts {
                let transcript = renamed_where_gone(connection, transcript)?;
                if find_seq(connection, transcript.id)?.is_some() {
                    return Err(StoreError::Exists { session: transcript.id }.into());
                }
                let Transcript { id, title, model, created_at, updated_at, messages } = transcript;
                let mut bodies = begun(connection, id, &Pending { title: None, model, created_at })?;
                title.as_deref().map_or(Ok(()), check_title)?;
                bodies.push(Body::Title { session: id, title, at: updated_at });
                bodies.extend(turns::said(connection, id, &messages)?);
                log::record(connection, &bodies, turns::AFTER_ALL)?;
            }
            Ok(())
        })
    }

    /// Remembers a session that has no turn.
    pub(super) fn set_pending(&self, id: SessionId, pending: Pending) -> Result<(), StoreError> {
        let mut all = self.pending.borrow_mut();
        if all.len() >= PENDING_MAX {
            return Err(StoreError::TooLarge {
                what: "the list of empty sessions",
                count: all.len() + 1,
                count_max: PENDING_MAX,
                unit: "sessions",
            });
        }
        all.insert(id, pending);
        Ok(())
    }
}

/// The number of a session's row, where it is on the drive.
pub(super) fn find_seq(connection: &Connection, id: SessionId) -> Result<Option<i64>, Trouble> {
    let mut statement = connection.prepare_cached("SELECT seq FROM session WHERE id = ?1")?;
    Ok(statement.query_row([id.0], |row| row.get(0)).optional()?)
}

/// As [`find_seq`], where the session must be there.
pub(super) fn seq(connection: &Connection, id: SessionId) -> Result<i64, Trouble> {
    find_seq(connection, id)?.ok_or_else(|| not_found(id).into())
}

/// How a session on the drive began.
pub(super) fn pending(connection: &Connection, id: SessionId) -> Result<Option<Pending>, Trouble> {
    let mut statement = connection.prepare_cached("SELECT title, model, created_at FROM session WHERE id = ?1")?;
    let mut rows = statement.query([id.0])?;
    let Some(found) = rows.next()? else { return Ok(None) };
    Ok(Some(Pending {
        title: row::optional_text(found, 0, TITLE_BYTES_MAX)?,
        model: row::text(found, 1, MODEL_BYTES_MAX)?,
        created_at: row::moment(found, 2)?,
    }))
}

/// The operations with which a session begins.
pub(super) fn begun(connection: &Connection, id: SessionId, pending: &Pending) -> Result<Vec<Body>, Trouble> {
    let count: i64 = connection.prepare_cached("SELECT count(*) FROM session")?.query_row((), |row| row.get(0))?;
    if count >= SESSIONS_MAX as i64 {
        let (what, unit) = ("the store", "sessions");
        return Err(StoreError::TooLarge { what, count: SESSIONS_MAX + 1, count_max: SESSIONS_MAX, unit }.into());
    }
    let Pending { title, model, created_at } = pending.clone();
    check_model(&model)?;
    let mut bodies = vec![Body::Session { id, model, created_at }];
    if title.is_some() {
        bodies.push(Body::Title { session: id, title, at: created_at });
    }
    Ok(bodies)
}

/// The session with new names for what was deleted here before.
fn renamed_where_gone(connection: &Connection, transcript: &Transcript) -> Result<Transcript, Trouble> {
    let mut transcript = transcript.clone();
    if log::apply::is_gone(connection, transcript.id.0)? {
        transcript.id = SessionId(random_id()?);
        // Messages of a deleted session aren't named among what is gone; under another session they are new ones.
        for message in &mut transcript.messages {
            message.id = MessageId(random_id()?);
        }
    }
    for message in &mut transcript.messages {
        if log::apply::is_gone(connection, message.id.0)? {
            message.id = MessageId(random_id()?);
        }
    }
    Ok(transcript)
}

/// That no session has the identifier.
pub(super) fn not_found(id: SessionId) -> StoreError {
    StoreError::NotFound { text: id.to_string(), near: Vec::new() }
}

/// That one of an imported session's messages is here already.
pub(super) fn message_taken(connection: &Connection, id: MessageId) -> Result<bool, Trouble> {
    Ok(connection.prepare_cached("SELECT 1 FROM message WHERE id = ?1")?.exists([id.0])?)
}

fn summaries(connection: &Connection, count_max: usize) -> Result<Vec<SessionSummary>, Trouble> {
    let mut statement = connection.prepare_cached(
        "SELECT id, title, model, created_at, updated_at,
            (SELECT count(*) FROM message WHERE message.session = session.seq)
         FROM session ORDER BY updated_at DESC, seq DESC LIMIT ?1",
    )?;
    let mut rows = statement.query([count_max as i64])?;
    let mut sessions = Vec::new();
    while let Some(found) = rows.next()? {
        sessions.push(summary(found)?);
    }
    Ok(sessions)
}

fn summary(found: &Row<'_>) -> Result<SessionSummary, Trouble> {
    Ok(SessionSummary {
        id: SessionId(row::id(found, 0)?),
        title: row::optional_text(found, 1, TITLE_BYTES_MAX)?,
        model: row::text(found, 2, MODEL_BYTES_MAX)?,
        created_at: row::moment(found, 3)?,
        updated_at: row::moment(found, 4)?,
        messages: row::optional_count(found, 5)?.unwrap_or(0),
    })
}

/// The sessions with a title like `text`, or with `text` in it, most alike first.
fn near(text: &str, sessions: &[SessionSummary]) -> Vec<NamedSession> {
    let fold = |text: &str| text.to_lowercase().chars().take(NEAR_CHARS_MAX).collect::<String>();
    let wanted = fold(text);
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut alike: Vec<(f64, &SessionSummary)> = Vec::new();
    for session in sessions.iter().take(NEAR_SESSIONS_MAX) {
        let title = session.title.as_deref().map(fold).unwrap_or_default();
        let likeness = match title.contains(&wanted) {
            true => 1.0,
            false => strsim::normalized_damerau_levenshtein(&wanted, &title),
        };
        if likeness >= NEAR_LIKENESS {
            alike.push((likeness, session));
        }
    }
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    alike.into_iter().take(NAMED_MAX).map(|(_, session)| named(session)).collect()
}

fn named(session: &SessionSummary) -> NamedSession {
    NamedSession { id: session.id, title: session.title.clone() }
}

/// What was typed, short enough for an error, on one line.
fn shorten(text: &str) -> String {
    text.chars().take(NEAR_CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn check_title(title: &str) -> Result<(), StoreError> {
    super::check_length("the title", title, TITLE_BYTES_MAX)?;
    if is_title(title) { Ok(()) } else { Err(StoreError::BadName { what: "a title" }) }
}

fn check_model(model: &str) -> Result<(), StoreError> {
    super::check_length("the model's name", model, MODEL_BYTES_MAX)?;
    if is_model(model) { Ok(()) } else { Err(StoreError::BadName { what: "a model's name" }) }
}
