//! Small values by name, and the lines typed at the prompt: the person's text, so it is kept encrypted.

use rusqlite::{Connection, OptionalExtension, params};

use super::error::{StoreError, Trouble};
use super::{Store, check_length, row};

/// The longest key of a setting, in bytes.
pub const SETTING_KEY_BYTES_MAX: usize = 64;
/// The longest value of a setting, in bytes.
pub const SETTING_BYTES_MAX: usize = 64 << 10;
/// The most settings.
const SETTINGS_MAX: usize = 1000;
/// The longest line of the prompt that is remembered, in bytes.
pub const HISTORY_LINE_BYTES_MAX: usize = 64 << 10;
/// How many lines of the prompt are remembered.
pub const HISTORY_LINES_MAX: usize = 10_000;

/// The setting that is what the person of this drive is called; see [`Store::set_nickname`].
pub const NICKNAME: &str = "nickname";

/// Sets `key`, which may be one, to `value`.
pub(super) fn set(connection: &Connection, key: &str, value: &str) -> Result<(), Trouble> {
    let (count, is_new): (i64, bool) = connection
        .prepare_cached("SELECT count(*), NOT EXISTS (SELECT 1 FROM setting WHERE key = ?1) FROM setting")?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if is_new && count >= SETTINGS_MAX as i64 {
        let (what, unit) = ("the store", "settings");
        return Err(StoreError::TooLarge { what, count: SETTINGS_MAX + 1, count_max: SETTINGS_MAX, unit }.into());
    }
    let sql = "INSERT INTO setting (key, value) VALUES (?1, ?2)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute([key, value])?;
    Ok(())
}

impl Store {
    /// The setting `key`, where it was set.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT value FROM setting WHERE key = ?1")?;
            let mut rows = statement.query([key])?;
            rows.next()?.map(|found| row::text(found, 0, SETTING_BYTES_MAX)).transpose()
        })
    }

    /// All settings, by key.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn settings(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT key, value FROM setting ORDER BY key LIMIT ?1")?;
            let mut rows = statement.query([SETTINGS_MAX as i64])?;
            let mut settings = Vec::new();
            while let Some(found) = rows.next()? {
                settings.push((row::text(found, 0, SETTING_KEY_BYTES_MAX)?, row::text(found, 1, SETTING_BYTES_MAX)?));
            }
            Ok(settings)
        })
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// [`StoreError::BadName`] for a key that isn't lower-case letters, digits, `_`, `-` and `.`;
    /// [`StoreError::TooLarge`], and what writing can meet.
    pub fn set_setting(&self, key: &str, value: &str) -> Result<(), StoreError> {
        check_length("the setting's key", key, SETTING_KEY_BYTES_MAX)?;
        check_length("the setting", value, SETTING_BYTES_MAX)?;
        let is_key = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
        if key.is_empty() || !key.bytes().all(is_key) {
            return Err(StoreError::BadName { what: "a setting's key" });
        }
        self.write(|connection| set(connection, key, value))
    }

    /// Removes the setting `key`; one that isn't set is fine.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn remove_setting(&self, key: &str) -> Result<(), StoreError> {
        self.write(|connection| {
            connection.prepare_cached("DELETE FROM setting WHERE key = ?1")?.execute([key])?;
            Ok(())
        })
    }

    /// Remembers a line of the prompt, unless it is empty or the same as the last. The oldest are forgotten.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], and what writing can meet.
    pub fn history_append(&self, line: &str) -> Result<(), StoreError> {
        check_length("the line", line, HISTORY_LINE_BYTES_MAX)?;
        if line.trim().is_empty() {
            return Ok(());
        }
        self.write(|connection| {
            let last = "SELECT line = ?1 FROM history ORDER BY seq DESC LIMIT 1";
            let again: Option<bool> =
                connection.prepare_cached(last)?.query_row([line], |row| row.get(0)).optional()?;
            if again == Some(true) {
                return Ok(());
            }
            let seq = connection.prepare_cached("INSERT INTO history (line) VALUES (?1)")?.insert([line])?;
            let oldest = seq.saturating_sub(HISTORY_LINES_MAX as i64);
            connection.prepare_cached("DELETE FROM history WHERE seq <= ?1")?.execute([oldest])?;
            Ok(())
        })
    }

    /// The last `count` lines of the prompt, oldest first.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn history(&self, count: usize) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT line FROM history ORDER BY seq DESC LIMIT ?1")?;
            let mut rows = statement.query(params![count.min(HISTORY_LINES_MAX) as i64])?;
            let mut lines = Vec::new();
            while let Some(found) = rows.next()? {
                lines.push(row::text(found, 0, HISTORY_LINE_BYTES_MAX)?);
            }
            lines.reverse();
            Ok(lines)
        })
    }

    /// Forgets all lines of the prompt.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn history_clear(&self) -> Result<(), StoreError> {
        self.write(|connection| {
            connection.prepare_cached("DELETE FROM history")?.execute(())?;
            Ok(())
        })?;
        self.forget_old_pages()
    }
}
