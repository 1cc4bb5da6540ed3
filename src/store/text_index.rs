//! The full-text index of what was said, and the messages that wait for it.
//!
//! What this drive's person says is in the index with the message. What other drives said comes by the hundred thousand, and
//! indexing takes as long as all the rest: it waits, and is done when nothing else is to be done, or before somebody searches.

use rusqlite::{Connection, params};

use super::error::Trouble;
use super::opening::Access;
use super::{Store, StoreError, row};
use crate::transcript::MESSAGE_BYTES_MAX;

/// How much text is put into the index in one transaction, in bytes: a few tenths of a second.
const STEP_BYTES: usize = 4 << 20;
/// How many messages at most.
const STEP_MESSAGES: i64 = 10_000;

/// When a message comes into the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Indexing {
    /// With the message.
    Now,
    /// When there is time.
    Later,
}

/// Puts new messages into the index, or among those that wait for it.
pub(super) struct Adding {
    when: Indexing,
    waiting: Vec<i64>,
}

/// Notes that the messages of a list in JSON wait.
const WAITS: &str = "INSERT INTO unindexed (message) SELECT value FROM json_each(?1)";

impl Adding {
    pub(super) fn new(when: Indexing) -> Self {
        Self { when, waiting: Vec::new() }
    }

    /// Takes a message. Before anything is deleted, and at the end, [`Adding::settle`] must follow.
    pub(super) fn add(&mut self, connection: &Connection, seq: i64, content: &str) -> Result<(), Trouble> {
        match self.when {
            Indexing::Now => insert(connection, seq, content)?,
            Indexing::Later => self.waiting.push(seq),
        }
        Ok(())
    }

    /// Notes which messages wait: one that is deleted is taken out of the index, unless it waits.
    pub(super) fn settle(&mut self, connection: &Connection) -> Result<(), Trouble> {
        if !self.waiting.is_empty() {
            // One statement a message would take longer than the message itself.
            let list = format!("{:?}", self.waiting);
            connection.prepare_cached(WAITS)?.execute([list])?;
            self.waiting.clear();
        }
        Ok(())
    }
}

/// Compiles what notes that messages wait.
pub(super) fn prepare(connection: &Connection) -> Result<(), Trouble> {
    connection.prepare_cached(WAITS)?;
    Ok(())
}

fn insert(connection: &Connection, seq: i64, content: &str) -> Result<(), Trouble> {
    let sql = "INSERT INTO message_text (rowid, content) VALUES (?1, ?2)";
    connection.prepare_cached(sql)?.execute(params![seq, content])?;
    Ok(())
}

impl Store {
    /// How many messages aren't in the text index yet.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn unindexed(&self) -> Result<u64, StoreError> {
        self.read(|connection| {
            let sql = "SELECT count(*) FROM unindexed";
            let count: i64 = connection.prepare_cached(sql)?.query_row((), |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    /// Puts some of the messages that wait for it into the text index, and says whether there may be more of them.
    ///
    /// # Errors
    /// What writing can meet; then they go on waiting.
    pub fn index_some(&self) -> Result<bool, StoreError> {
        if self.access == Access::ReadOnly || self.unindexed()? == 0 {
            return Ok(false);
        }
        // What a cut takes back is indexed again.
        self.write_unhurried(|connection| {
            let sql = "SELECT u.message, m.content FROM unindexed AS u LEFT JOIN message AS m ON m.seq = u.message
                ORDER BY u.message LIMIT ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([STEP_MESSAGES])?;
            let (mut bytes, mut last) = (0, None);
            while let Some(found) = rows.next()? {
                let seq = row::number(found, 0)?;
                if let Some(content) = row::optional_text(found, 1, MESSAGE_BYTES_MAX)? {
                    insert(connection, seq, &content)?;
                    bytes += content.len();
                }
                last = Some(seq);
                if bytes >= STEP_BYTES {
                    break;
                }
            }
            drop(rows);
            connection.prepare_cached("DELETE FROM unindexed WHERE message <= ?1")?.execute([last])?;
            Ok(last.is_some())
        })
    }

    /// Before a search: everything is in the index, or, where it can't be written, the rest is in one of its own in memory. Says
    /// which indexes there are.
    pub(super) fn text_indexes(&self) -> Result<&'static [&'static str], StoreError> {
        // A full drive is no reason not to find anything; whatever else is wrong, reading meets it too.
        while self.index_some().unwrap_or(false) {}
        if self.unindexed()? == 0 {
            return Ok(&["message_text"]);
        }
        self.read(|connection| {
            // What waits changes only where something can be written.
            let there = "SELECT 1 FROM temp.sqlite_schema WHERE name = 'waiting_text'";
            if self.access == Access::ReadWrite || !connection.prepare(there)?.exists(())? {
                index_in_memory(connection, self.access)?;
            }
            Ok(&["message_text", "waiting_text"] as &[_])
        })
    }
}

/// Makes an index in memory of the messages that wait.
fn index_in_memory(connection: &Connection, access: Access) -> Result<(), Trouble> {
    let forbid_changes = |on: bool| match access {
        // The file was opened for reading; this setting forbids tables in memory too.
        Access::ReadOnly => connection.pragma_update(None, "query_only", on),
        Access::ReadWrite => Ok(()),
    };
    forbid_changes(false)?;
    let made = connection.execute_batch(
        "DROP TABLE IF EXISTS temp.waiting_text;
         CREATE VIRTUAL TABLE temp.waiting_text USING fts5 (content, tokenize = 'unicode61 remove_diacritics 2');
         INSERT INTO temp.waiting_text (rowid, content)
             SELECT seq, content FROM message WHERE seq IN (SELECT message FROM unindexed);",
    );
    forbid_changes(true)?;
    Ok(made?)
}
