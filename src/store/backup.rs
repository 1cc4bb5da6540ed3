//! An encrypted copy of the whole database, read back before it counts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use secrecy::SecretBox;

use super::Store;
use super::error::StoreError;
use super::opening;
use crate::disk;

impl Store {
    /// Writes a copy of the database, encrypted with the same `key`, to `to`, where nothing may be. The copy is made
    /// beside it, synced, opened, checked page by page, and only then gets its name. It doesn't carry deleted text.
    ///
    /// # Errors
    /// What writing can meet, [`disk::DiskError::Exists`], and anything that opening the copy can meet.
    pub fn backup(&self, to: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
        if disk::exists(to) {
            return Err(disk::DiskError::Exists { path: to.into() }.into());
        }
        let mut name = OsString::from(to);
        name.push(".partial");
        let partial = PathBuf::from(name);
        // What an interrupted backup left is no database; nothing else has this name.
        disk::remove(&partial)?;
        let written = self.write_copy(&partial, key);
        if let Err(error) = written {
            let _ = disk::remove(&partial);
            return Err(error);
        }
        Ok(disk::rename(&partial, to)?)
    }

    fn write_copy(&self, partial: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
        let bytes = disk::size_unopened(&self.path)?.unwrap_or(0);
        let folder = partial.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if disk::free_bytes(folder)? < bytes {
            return Err(disk::DiskError::Full { path: partial.into() }.into());
        }
        let uri = opening::file_uri(partial);
        self.connection.execute("VACUUM INTO ?1", [uri]).map_err(|error| StoreError::from_sqlite(partial, error))?;
        let file = disk::open_or_create(partial)?;
        file.sync_all().map_err(|error| disk::DiskError::new("write", partial, error))?;
        drop(file);
        opening::check_copy(partial, key)
    }
}
