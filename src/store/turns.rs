//! Turns: what is said, appended durably; and taking it back.

use rusqlite::{CachedStatement, Connection, Row, params};

use super::error::{StoreError, Trouble};
use super::sessions::{self, Pending};
use super::{Store, check_length, log, row};
use crate::message::{Message, MessageId, Role, SessionId};
use crate::oplog::Body;
use crate::time::Timestamp;
use crate::transcript::{
    FinishReason, MESSAGE_BYTES_MAX, MODEL_BYTES_MAX, SESSION_MESSAGES_MAX, StoredMessage, TokenCount, is_model,
};

/// The most messages of one turn.
pub const TURN_MESSAGES_MAX: usize = 256;

/// The columns of a message, in the order [`stored_message`] reads them.
pub(super) const COLUMNS: &str =
    "id, role, content, reasoning, created_at, finish_reason, model, input_tokens, output_tokens";

/// A time that is followed by none but what is known: what is taken back comes after it, whatever the clock says.
pub(super) const AFTER_ALL: Timestamp = Timestamp::from_ms(0);

/// A message to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What the model thought before it answered.
    pub reasoning: Option<String>,
    /// Why the answer ended; nothing for what a person says.
    pub finish_reason: Option<FinishReason>,
    /// The model that answered.
    pub model: Option<String>,
    /// The tokens the answer took.
    pub usage: Option<TokenCount>,
}

impl From<Message> for NewMessage {
    fn from(Message { role, content, reasoning }: Message) -> Self {
        Self { role, content, reasoning, finish_reason: None, model: None, usage: None }
    }
}

impl Store {
    /// What was said in a session, oldest first; nothing for one without a turn.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and what reading can meet.
    pub fn messages(&self, session: SessionId) -> Result<Vec<StoredMessage>, StoreError> {
        if self.pending.borrow().contains_key(&session) {
            return Ok(Vec::new());
        }
        self.read(|connection| {
            let seq = sessions::seq(connection, session)?;
            let sql = format!("SELECT {COLUMNS} FROM message WHERE session = ?1 ORDER BY hlc, id LIMIT ?2");
            collect(&mut connection.prepare_cached(&sql)?, params![seq, SESSION_MESSAGES_MAX as i64])
        })
    }

    /// Appends what was said in one turn, all or nothing: when this returns, it survives pulling the drive.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`], and what writing can meet.
    pub fn append_turn(
        &self,
        session: SessionId,
        messages: &[NewMessage],
        now: Timestamp,
    ) -> Result<Vec<MessageId>, StoreError> {
        let stored = checked(messages, now)?;
        if stored.is_empty() {
            return Ok(Vec::new());
        }
        let pending = self.pending.borrow().get(&session).cloned();
        self.write(|connection| {
            let mut bodies = match &pending {
                Some(pending) => sessions::begun(connection, session, pending)?,
                None => sessions::seq(connection, session).map(|_| Vec::new())?,
            };
            bodies.extend(said(connection, session, &stored)?);
            log::record(connection, &bodies, now)
        })?;
        self.pending.borrow_mut().remove(&session);
        Ok(stored.iter().map(|message| message.id).collect())
    }

    /// Takes the last turn back: the last thing the person said and everything since. Returns what was taken, so that
    /// it can be edited. A session left without messages is as one that was just begun.
    ///
    /// # Errors
    /// [`StoreError::Nothing`] where the person said nothing yet, [`StoreError::NotFound`], and what writing can meet.
    pub fn undo_last_turn(&self, session: SessionId) -> Result<Vec<StoredMessage>, StoreError> {
        const NOTHING: StoreError = StoreError::Nothing { what: "turn that could be taken back" };
        if self.pending.borrow().contains_key(&session) {
            return Err(NOTHING);
        }
        let (taken, emptied) = self.write(|connection| {
            let seq = sessions::seq(connection, session)?;
            let Some((hlc, id)) = last_user_place(connection, seq)? else { return Err(NOTHING.into()) };
            let begun = sessions::pending(connection, session)?;
            let taken = remove_from(connection, session, (seq, hlc, id), Boundary::Included)?;
            let is_emptied = sessions::find_seq(connection, session)?.is_none();
            Ok((taken, begun.filter(|_| is_emptied)))
        })?;
        self.after_removal(session, emptied)?;
        Ok(taken)
    }

    /// Puts another answer in the place of what followed the last thing the person said.
    ///
    /// # Errors
    /// [`StoreError::Nothing`] where the person said nothing yet, [`StoreError::NotFound`], and what writing can meet.
    pub fn replace_last_answer(
        &self,
        session: SessionId,
        answer: &NewMessage,
        now: Timestamp,
    ) -> Result<MessageId, StoreError> {
        const NOTHING: StoreError = StoreError::Nothing { what: "answer that could be replaced" };
        if self.pending.borrow().contains_key(&session) {
            return Err(NOTHING);
        }
        let stored = checked(std::slice::from_ref(answer), now)?;
        self.write(|connection| {
            let seq = sessions::seq(connection, session)?;
            let Some((hlc, id)) = last_user_place(connection, seq)? else { return Err(NOTHING.into()) };
            remove_from(connection, session, (seq, hlc, id), Boundary::Kept)?;
            log::record(connection, &said(connection, session, &stored)?, now)
        })?;
        self.forget_old_pages()?;
        stored.first().map(|message| message.id).ok_or(NOTHING)
    }

    /// Removes everything in the session that was said after `message`, and returns it.
    ///
    /// # Errors
    /// [`StoreError::Nothing`] where the session has no such message, [`StoreError::NotFound`], and what writing can meet.
    pub fn truncate_after(&self, session: SessionId, message: MessageId) -> Result<Vec<StoredMessage>, StoreError> {
        let taken = self.write(|connection| {
            let seq = sessions::seq(connection, session)?;
            let mut statement = connection.prepare_cached("SELECT hlc FROM message WHERE session = ?1 AND id = ?2")?;
            let mut rows = statement.query(params![seq, message.0])?;
            let Some(found) = rows.next()? else { return Err(StoreError::Nothing { what: "such message" }.into()) };
            let hlc = row::number(found, 0)?;
            remove_from(connection, session, (seq, hlc, message), Boundary::Kept)
        })?;
        self.after_removal(session, None)?;
        Ok(taken)
    }

    fn after_removal(&self, session: SessionId, emptied: Option<Pending>) -> Result<(), StoreError> {
        if let Some(pending) = emptied {
            self.set_pending(session, pending)?;
        }
        self.forget_old_pages()
    }
}

/// Whether the message at the boundary goes too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boundary {
    Included,
    Kept,
}

/// The messages with their identifiers, if all of them may be stored.
fn checked(messages: &[NewMessage], now: Timestamp) -> Result<Vec<StoredMessage>, StoreError> {
    if messages.len() > TURN_MESSAGES_MAX {
        let (what, unit) = ("the turn", "messages");
        return Err(StoreError::TooLarge { what, count: messages.len(), count_max: TURN_MESSAGES_MAX, unit });
    }
    let stored = messages.iter().map(|message| {
        Ok(StoredMessage {
            id: new_message_id(now)?,
            role: message.role,
            content: message.content.clone(),
            reasoning: message.reasoning.clone(),
            created_at: now,
            finish_reason: message.finish_reason,
            model: message.model.clone(),
            usage: message.usage,
        })
    });
    stored.collect()
}

/// A name for a new message: a UUID of version 7, which begins with the time. So the names of a conversation lie side by side in
/// the index; drawn by lot as a whole, each would change a page of its own, here and on every drive that hears of it.
fn new_message_id(now: Timestamp) -> Result<MessageId, StoreError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(StoreError::Random)?;
    let ms = u64::try_from(now.as_ms()).unwrap_or(0);
    Ok(MessageId(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid().into_bytes()))
}

/// Refuses what wouldn't be read again.
fn check_message(message: &StoredMessage) -> Result<(), StoreError> {
    check_length("the message", &message.content, MESSAGE_BYTES_MAX)?;
    check_length("the reasoning", message.reasoning.as_deref().unwrap_or_default(), MESSAGE_BYTES_MAX)?;
    let model = message.model.as_deref().unwrap_or_default();
    check_length("the model's name", model, MODEL_BYTES_MAX)?;
    if is_model(model) { Ok(()) } else { Err(StoreError::BadName { what: "a model's name" }) }
}

/// What is said at the end of a session, in its order, as operations; the session may not be there yet.
pub(super) fn said(
    connection: &Connection,
    session: SessionId,
    messages: &[StoredMessage],
) -> Result<Vec<Body>, Trouble> {
    let sql = "SELECT count(*), max(hlc) FROM message WHERE session = (SELECT seq FROM session WHERE id = ?1)";
    let (count, mut last_place): (i64, Option<i64>) =
        connection.prepare_cached(sql)?.query_row([session.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let count = usize::try_from(count).unwrap_or(usize::MAX).saturating_add(messages.len());
    if count > SESSION_MESSAGES_MAX {
        let (what, unit, count_max) = ("the session", "messages", SESSION_MESSAGES_MAX);
        return Err(StoreError::TooLarge { what, count, count_max, unit }.into());
    }
    let mut bodies = Vec::with_capacity(messages.len());
    for message in messages {
        check_message(message)?;
        if sessions::message_taken(connection, message.id)? {
            return Err(StoreError::Exists { session }.into());
        }
        let place = next_place(message.created_at, last_place)?;
        last_place = Some(place);
        bodies.push(Body::Message { session, place: place.unsigned_abs(), message: message.clone() });
    }
    Ok(bodies)
}

/// The next place in a session: the clock's milliseconds and 16 bits of counter, always after the one before, so that
/// a clock that was set back doesn't reorder what was said.
fn next_place(now: Timestamp, last: Option<i64>) -> Result<i64, Trouble> {
    const MS_MAX: i64 = (1 << 47) - 1;
    let clock = now.as_ms().clamp(0, MS_MAX) << 16;
    match last.map(|last| last.checked_add(1)) {
        None => Ok(clock),
        Some(Some(next)) => Ok(clock.max(next)),
        Some(None) => Err(Trouble::Row("a session's last place leaves none after it")),
    }
}

/// Where the last thing the person said stands.
fn last_user_place(connection: &Connection, seq: i64) -> Result<Option<(i64, MessageId)>, Trouble> {
    let mut statement = connection.prepare_cached(
        "SELECT hlc, id FROM message WHERE session = ?1 AND role = 'user' ORDER BY hlc DESC, id DESC LIMIT 1",
    )?;
    let mut rows = statement.query([seq])?;
    let found = rows.next()?;
    found.map(|found| Ok((row::number(found, 0)?, MessageId(row::id(found, 1)?)))).transpose()
}

/// Removes what stands after a place, and returns it in order.
fn remove_from(
    connection: &Connection,
    session: SessionId,
    (seq, hlc, id): (i64, i64, MessageId),
    boundary: Boundary,
) -> Result<Vec<StoredMessage>, Trouble> {
    let after = match boundary {
        Boundary::Included => "(hlc, id) >= (?2, ?3)",
        Boundary::Kept => "(hlc, id) > (?2, ?3)",
    };
    let select = format!("SELECT {COLUMNS} FROM message WHERE session = ?1 AND {after} ORDER BY hlc, id");
    let taken = collect(&mut connection.prepare_cached(&select)?, params![seq, hlc, id.0])?;
    if !taken.is_empty() {
        let messages = taken.iter().map(|message| message.id).collect();
        log::record(connection, &[Body::Removed { session, messages }], AFTER_ALL)?;
    }
    Ok(taken)
}

fn collect(
    statement: &mut CachedStatement<'_>,
    parameters: impl rusqlite::Params,
) -> Result<Vec<StoredMessage>, Trouble> {
    let mut rows = statement.query(parameters)?;
    let mut messages = Vec::new();
    while let Some(found) = rows.next()? {
        messages.push(stored_message(found)?);
    }
    Ok(messages)
}

pub(super) fn stored_message(found: &Row<'_>) -> Result<StoredMessage, Trouble> {
    let finish_reason = row::optional_text(found, 5, MODEL_BYTES_MAX)?;
    let usage = match (row::optional_count(found, 7)?, row::optional_count(found, 8)?) {
        (None, None) => None,
        (input, output) => Some(TokenCount { input_tokens: input.unwrap_or(0), output_tokens: output.unwrap_or(0) }),
    };
    Ok(StoredMessage {
        id: MessageId(row::id(found, 0)?),
        role: role(found, 1)?,
        content: row::text(found, 2, MESSAGE_BYTES_MAX)?,
        reasoning: row::optional_text(found, 3, MESSAGE_BYTES_MAX)?,
        created_at: row::moment(found, 4)?,
        finish_reason: match finish_reason {
            None => None,
            Some(name) => Some(
                FinishReason::from_name(&name).ok_or(Trouble::Row("a message has a finish reason that isn't known"))?,
            ),
        },
        model: row::optional_text(found, 6, MODEL_BYTES_MAX)?,
        usage,
    })
}

/// The role in column `idx`.
pub(super) fn role(found: &Row<'_>, idx: usize) -> Result<Role, Trouble> {
    row::text(found, idx, MODEL_BYTES_MAX)?.parse().map_err(|_| Trouble::Row("a message has a role that isn't known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_clock_and_never_go_back() {
        for (now, last, expected) in [
            (0, None, Some(0)),
            (-5, None, Some(0)),
            (1, None, Some(1 << 16)),
            (1, Some(1 << 16), Some((1 << 16) + 1)),
            (1, Some(9 << 16), Some((9 << 16) + 1)),
            (i64::MAX, Some(0), Some(((1 << 47) - 1) << 16)),
            (i64::MAX, Some(i64::MAX), None),
        ] {
            assert_eq!(next_place(Timestamp::from_ms(now), last).ok(), expected, "{now} {last:?}");
        }
    }
}
