//! Another key for the whole database: encrypted anew in one transaction, which a cut takes back or leaves complete.

use std::path::Path;

use rusqlite::MAIN_DB;
use secrecy::SecretBox;

use super::error::StoreError;
use super::{Access, Along, Store, opening};
use crate::disk;

impl Store {
    /// Opens the database with `key`, or with the first of the `previous` keys that fits, because a change of the key was
    /// cut before the database was encrypted anew. Where there is room, it then is, so that `key` alone opens it.
    ///
    /// # Errors
    /// As [`Store::open`] with `key`, and [`Store::rekey`].
    pub fn open_rotated(
        path: &Path,
        key: &SecretBox<[u8; 32]>,
        previous: &[SecretBox<[u8; 32]>],
        access: Access,
    ) -> Result<Self, StoreError> {
        Self::open_rotated_along(path, key, previous, access, &mut Along { on_step: &mut |_| (), backups: None })
    }

    /// As [`Store::open_rotated`], with somebody who is told of its steps, and a backup before the schema is changed.
    ///
    /// # Errors
    /// As [`Store::open_rotated`] and [`Store::open_along`].
    pub fn open_rotated_along(
        path: &Path,
        key: &SecretBox<[u8; 32]>,
        previous: &[SecretBox<[u8; 32]>],
        access: Access,
        along: &mut Along<'_>,
    ) -> Result<Self, StoreError> {
        let wrong = match Self::open_along(path, key, access, along) {
            Err(error @ StoreError::WrongKey { .. }) => error,
            opened => return opened,
        };
        for former in previous {
            match Self::open_along(path, former, access, along) {
                Err(StoreError::WrongKey { .. }) => {}
                Err(error) => return Err(error),
                Ok(mut store) => {
                    // A full drive must open all the same: the key file keeps the previous keys.
                    if access == Access::ReadOnly || !store.has_room_to_rekey()? {
                        store.opening.previous_key = true;
                        return Ok(store);
                    }
                    let mut store = store.rekey(key)?;
                    store.opening.rekeyed = true;
                    return Ok(store);
                }
            }
        }
        Err(wrong)
    }

    /// Encrypts the whole database anew under `key`, checks every page, and gives the store back open under it.
    ///
    /// All pages are written into the write-ahead log in one transaction. Until its last byte is on the medium the former
    /// key opens the database, and from then on only `key` does: both are to be kept in the key file before this begins.
    ///
    /// # Errors
    /// [`disk::DiskError::Full`] before anything is written where the log wouldn't fit, and what writing can meet. The
    /// database is then under one of the two keys, and whole.
    pub fn rekey(self, key: &SecretBox<[u8; 32]>) -> Result<Self, StoreError> {
        let path = self.path.clone();
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly { path });
        }
        opening::checkpoint(&self.connection).map_err(|trouble| trouble.at(&path))?;
        if !self.has_room_to_rekey()? {
            return Err(disk::DiskError::Full { path }.into());
        }
        let opened = self.opening;
        let at = |error| StoreError::from_sqlite(&path, error);
        self.connection.key(Some(MAIN_DB), opening::raw_key(key).as_slice(), true).map_err(at)?;
        self.close()?;
        let mut store = Self::open(&path, key, Access::ReadWrite)?;
        opening::check_pages(&store.connection, &path, &mut |_| ())?;
        store.opening = opened;
        Ok(store)
    }

    /// Whether the drive has room for a second copy of the database, in the write-ahead log.
    ///
    /// # Errors
    /// What looking can meet.
    pub fn has_room_to_rekey(&self) -> Result<bool, StoreError> {
        let bytes = disk::size_unopened(&self.path)?.unwrap_or(0);
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Each page of the log has a header of 24 bytes.
        Ok(disk::free_bytes(folder)? >= bytes + bytes / 64)
    }
}
