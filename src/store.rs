//! The SQLCipher database of a bundle: sessions, their messages and the index of their text, settings, prompt history.
//!
//! A method that writes has its whole effect on the medium when it returns, or none; what can be made again (signatures under
//! the log, the text index) and when another device was met may come later. On exFAT under power cuts these settings lost none
//! of 710 acknowledged messages. The store writes in its own folder only: `tiles.db`, `tiles.db-wal`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use secrecy::SecretBox;

use crate::message::SessionId;

mod error;
mod schema;
mod opening;
mod row;
mod sessions;
mod turns;
mod text_index;
mod search;
mod settings;
mod backup;
mod lineage;
mod log;
mod peers;
mod salvage;
mod recovery;
mod rekey;

pub use backup::{BACKUPS_KEPT, BackupFile, backups};
pub use error::{NamedSession, StoreError};
pub use lineage::{Lineage, Run, Separation};
pub use log::{Import, Lacking, Refusal};
pub use opening::{Access, Along, Opening, Step};
pub use peers::{PEERS_MAX, Peer};
pub use recovery::{Recovery, Source};
pub use salvage::{Missing, Salvage};
pub use search::{QUERY_BYTES_MAX, SearchHit};
pub use sessions::SessionSummary;
pub use settings::{HISTORY_LINE_BYTES_MAX, HISTORY_LINES_MAX, NICKNAME, SETTING_BYTES_MAX, SETTING_KEY_BYTES_MAX};
pub use turns::{NewMessage, TURN_MESSAGES_MAX};

use error::Trouble;
use lineage::ThisRun;
use sessions::Pending;

/// An open database. It isn't shared between threads; its methods take `&self`, like those of an open file.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    access: Access,
    opening: Opening,
    /// Sessions that exist, but have no turn yet: they aren't on the drive.
    pending: RefCell<BTreeMap<SessionId, Pending>>,
    /// This run, from when it is told who it is; it takes its place on the drive with the first change.
    run: RefCell<Option<ThisRun>>,
}

impl Store {
    /// Opens the database at `path` with its raw key, making it where there is none and bringing an older one up to date.
    ///
    /// After an unclean exit the unfinished part is taken in and the whole file is checked; [`Store::opening`] says so.
    /// With [`Access::ReadOnly`] nothing at all is written, not even a lock: it is for a medium that can't be written.
    ///
    /// # Errors
    /// [`StoreError`]: in use, another key, no database, not encrypted, not ours, damaged, newer, not writable.
    pub fn open(path: &Path, key: &SecretBox<[u8; 32]>, access: Access) -> Result<Self, StoreError> {
        Self::open_along(path, key, access, &mut Along { on_step: &mut |_| (), was_unclean: false, backups: None })
    }

    /// As [`Store::open`], with somebody who is told of its steps, and a backup before the schema is changed.
    ///
    /// # Errors
    /// As [`Store::open`], and what a backup can meet, other than a lack of space.
    pub fn open_along(
        path: &Path,
        key: &SecretBox<[u8; 32]>,
        access: Access,
        along: &mut Along<'_>,
    ) -> Result<Self, StoreError> {
        let (connection, opening) = opening::open(path, key, access, along)?;
        // Every statement of the store fits, so none is compiled twice.
        connection.set_prepared_statement_cache_capacity(64);
        let (pending, run) = Default::default();
        Ok(Self { connection, path: path.into(), access, opening, pending, run })
    }

    /// What was found when the store was opened.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether anything can be saved.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes everything into the one file and lets go of it. Dropping a store does so too, but can't tell what went wrong.
    ///
    /// # Errors
    /// What writing can meet; nothing acknowledged is lost by it.
    pub fn close(self) -> Result<(), StoreError> {
        if self.access == Access::ReadWrite {
            opening::checkpoint(&self.connection).map_err(|trouble| trouble.at(&self.path))?;
        }
        self.connection.close().map_err(|(_, error)| StoreError::from_sqlite(&self.path, error))
    }

    /// Runs `steps`, which only read.
    fn read<T>(&self, steps: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, StoreError> {
        steps(&self.connection).map_err(|trouble| trouble.at(&self.path))
    }

    /// Runs `steps` in one transaction, which is on the medium when this returns, or taken back.
    fn write<T>(&self, steps: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly { path: self.path.clone() });
        }
        let run = || -> Result<(T, bool), Trouble> {
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let value = steps(&transaction)?;
            let is_first = self.record_run(&transaction)?;
            transaction.commit()?;
            Ok((value, is_first))
        };
        let (value, is_first) = run().map_err(|trouble| trouble.at(&self.path))?;
        if is_first {
            self.mark_run();
        }
        Ok(value)
    }

    /// As [`Store::write`], for what a cut may take back without harm, as it can be made again or is of no weight: it doesn't wait
    /// for the medium, and is on it with the next change that does, or once the store is closed. A run's first change waits, as
    /// the drive's mark then names it.
    fn write_unhurried<T>(&self, steps: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, StoreError> {
        if self.access == Access::ReadOnly || self.is_first_change() {
            return self.write(steps);
        }
        let sync = |level| -> Result<(), StoreError> {
            let set = self.connection.pragma_update(None, "synchronous", level);
            set.map_err(|error| StoreError::from_sqlite(&self.path, error))
        };
        // In WAL mode, NORMAL still syncs the log before a checkpoint, so the file stays whole whatever is cut.
        sync("NORMAL")?;
        let written = self.write(steps);
        sync("FULL")?;
        written
    }

    /// Makes text that was just deleted leave the file itself, not only its newest state. Deleted rows are overwritten
    /// in the pages (`secure_delete`), and this replaces the pages as they were before.
    fn forget_old_pages(&self) -> Result<(), StoreError> {
        opening::checkpoint(&self.connection).map_err(|trouble| trouble.at(&self.path))
    }
}

/// 16 random bytes, for a new identifier.
fn random_id() -> Result<[u8; 16], StoreError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(StoreError::Random)?;
    Ok(id)
}

/// Refuses text of more than `bytes_max` bytes.
fn check_length(what: &'static str, text: &str, bytes_max: usize) -> Result<(), StoreError> {
    match text.len() {
        count if count > bytes_max => Err(StoreError::TooLarge { what, count, count_max: bytes_max, unit: "bytes" }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
