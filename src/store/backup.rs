//! Encrypted copies of the whole database: by hand to anywhere, and rolling ones in a folder, of which two are kept.
//!
//! A copy is made beside its place, synced, read back from the medium, checked page by page, and only then gets its name
//! and makes an older one superfluous. It costs reading and writing the database once and reading the copy once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use secrecy::SecretBox;

use super::Store;
use super::error::StoreError;
use super::opening;
use crate::disk::{self, DiskError, Kind};
use crate::time::Timestamp;

/// How many rolling backups are kept.
pub const BACKUPS_KEPT: usize = 2;
/// The most files that a folder of backups is expected to have.
const NAMES_MAX: usize = 1_000;
/// What the rolling backups' names begin and end with; between stands a number that grows.
const NAME: (&str, &str) = ("tiles-", ".db");
/// From which size on a backup a day is too much for a slow stick: 64 MiB take 40 s at 5 MB/s, written and read back.
const LARGE_BYTES: u64 = 64 << 20;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often somebody who may want to stop a backup is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A rolling backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its number; the largest is the newest.
    pub number: u64,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the drive's clock.
    pub made_at: Timestamp,
}

/// The rolling backups in `folder`, the newest first; none where there is no folder.
///
/// # Errors
/// What listing can meet.
pub fn backups(folder: &Path) -> Result<Vec<BackupFile>, StoreError> {
    let mut found = Vec::new();
    if disk::kind(folder)? != Some(Kind::Folder) {
        return Ok(found);
    }
    for (name, kind) in disk::list_kinds(folder, NAMES_MAX)? {
        let Some(number) = number_of(&name).filter(|_| kind == Kind::File) else { continue };
        let path = folder.join(name);
        let since = disk::modified(&path)?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let made_at = Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or_default());
        found.push(BackupFile { bytes: disk::size_unopened(&path)?.unwrap_or(0), path, number, made_at });
    }
    found.sort_by_key(|backup| std::cmp::Reverse(backup.number));
    Ok(found)
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?.parse().ok()
}

impl Store {
    /// Writes a copy of the database, encrypted with the same `key`, to `to`, where nothing may be. It doesn't carry
    /// deleted text.
    ///
    /// # Errors
    /// What writing can meet, [`DiskError::Exists`], and anything that opening the copy can meet.
    pub fn backup(&self, to: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
        copy(&self.connection, &self.path, to, key)
    }

    /// Makes a rolling backup in `folder`, and removes those that are then more than [`BACKUPS_KEPT`]. `stop` is asked
    /// while the copy is written, and ends it.
    ///
    /// # Errors
    /// As [`Store::backup`]; [`StoreError::Interrupted`]. What was there before is then still there.
    pub fn back_up(
        &self,
        folder: &Path,
        key: &SecretBox<[u8; 32]>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<BackupFile, StoreError> {
        let handle = self.connection.get_interrupt_handle();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    if stop() {
                        handle.interrupt();
                    }
                    std::thread::sleep(ASK_EVERY);
                }
            });
            let made = make(&self.connection, &self.path, folder, key);
            done.store(true, std::sync::atomic::Ordering::Release);
            made
        })
    }

    /// Removes every rolling backup but `kept`: they hold text that was deleted since.
    ///
    /// # Errors
    /// What removing can meet.
    pub fn forget_backups(&self, folder: &Path, kept: &BackupFile) -> Result<usize, StoreError> {
        let old: Vec<_> = backups(folder)?.into_iter().filter(|backup| backup.number != kept.number).collect();
        old.iter().try_for_each(|backup| disk::remove(&backup.path))?;
        Ok(old.len())
    }

    /// Whether a rolling backup is due: this run changed something, and the newest backup is a day old; a week for a
    /// database past 64 MiB, which a slow stick copies in a minute. A backup from the future counts as old.
    ///
    /// # Errors
    /// What listing can meet.
    pub fn is_backup_due(&self, folder: &Path, now: Timestamp) -> Result<bool, StoreError> {
        let is_empty = || {
            self.read(|connection| {
                Ok(connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM session)", (), |row| row.get(0))?)
            })
        };
        // Before the first conversation there is nothing that a backup would save.
        if !self.has_changed() || is_empty()? {
            return Ok(false);
        }
        let bytes = disk::size_unopened(&self.path)?.unwrap_or(0);
        let every = if bytes > LARGE_BYTES { 7 * DAY } else { DAY };
        let newest = backups(folder)?.into_iter().next();
        Ok(newest.is_none_or(|backup| {
            let age_ms = now.as_ms() - backup.made_at.as_ms();
            !(0..every.as_millis() as i64).contains(&age_ms)
        }))
    }
}

/// Makes the next rolling backup in `folder` of the database that `connection` has open at `path`.
pub(super) fn make(
    connection: &Connection,
    path: &Path,
    folder: &Path,
    key: &SecretBox<[u8; 32]>,
) -> Result<BackupFile, StoreError> {
    disk::create_folder(folder)?;
    let before = backups(folder)?;
    let number = before.first().map_or(0, |newest| newest.number).saturating_add(1);
    let to = folder.join(format!("{}{number:06}{}", NAME.0, NAME.1));
    copy(connection, path, &to, key)?;
    // The new one was read back: only now an old one is too many.
    for old in before.iter().skip(BACKUPS_KEPT - 1) {
        disk::remove(&old.path)?;
    }
    let made = backups(folder)?.into_iter().find(|backup| backup.number == number);
    made.ok_or_else(|| DiskError::NotFound { path: to }.into())
}

fn copy(connection: &Connection, path: &Path, to: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
    if disk::exists(to) {
        return Err(DiskError::Exists { path: to.into() }.into());
    }
    let mut name = OsString::from(to);
    name.push(".partial");
    let partial = PathBuf::from(name);
    // What an interrupted backup left is no database; nothing else has this name.
    disk::remove(&partial)?;
    if let Err(error) = write_copy(connection, path, &partial, key) {
        let _ = disk::remove(&partial);
        return Err(error);
    }
    Ok(disk::rename(&partial, to)?)
}

fn write_copy(
    connection: &Connection,
    path: &Path,
    partial: &Path,
    key: &SecretBox<[u8; 32]>,
) -> Result<(), StoreError> {
    let size = |path: &Path| disk::size_unopened(path).map(|bytes| bytes.unwrap_or(0));
    let bytes = size(path)? + size(&opening::wal_path(path))?;
    let folder = partial.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if disk::free_bytes(folder)? < bytes {
        return Err(DiskError::Full { path: partial.into() }.into());
    }
    let uri = opening::file_uri(partial);
    connection.execute("VACUUM INTO ?1", [uri]).map_err(|error| StoreError::from_sqlite(partial, error))?;
    let file = disk::open_or_create(partial)?;
    disk::sync(&file, partial)?;
    drop(file);
    disk::forget_cached(partial)?;
    opening::check_copy(partial, key)
}
