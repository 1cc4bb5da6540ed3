//! From a complete folder to a model that counts: the folder gets its name, then the list names the model.
//!
//! A cut between the two leaves a folder that nothing lists. So that it isn't taken for a folder that somebody put there,
//! it has a mark in it until it is listed; the same import, pull or transfer then goes on as if it had been cut before.

use std::path::{Path, PathBuf};

use super::pull::RECORD_NAME;
use super::{Library, LibraryError, ModelEntry, added};
use crate::disk;
use crate::manifest::Entry;

/// What a folder has in it until its model is listed: the record of a pull, or a file of that name.
const MARK: &str = RECORD_NAME;

impl Library {
    fn folder(&self, name: &str) -> PathBuf {
        self.models_folder.join(name)
    }

    /// Whether a model has the name, or a folder that isn't ours to replace.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        let folder = self.folder(name);
        self.models.contains_key(name) || disk::exists(&folder) && !disk::exists(&folder.join(MARK))
    }

    /// Has what was cut before it was listed begun anew: an unlisted folder of the name becomes `begun`, from which a pull
    /// goes on, or goes where there is such a folder.
    ///
    /// # Errors
    /// [`LibraryError::Taken`], and what renaming and removing can meet.
    pub(super) fn take_back(&self, name: &str, begun: &Path) -> Result<(), LibraryError> {
        let folder = self.folder(name);
        match () {
            () if self.is_taken(name) => Err(LibraryError::Taken { name: name.into() }),
            () if !disk::exists(&folder) => Ok(()),
            () if disk::exists(begun) => Ok(disk::remove_folder(&folder)?),
            () => Ok(disk::rename(&folder, begun)?),
        }
    }

    /// Makes the complete folder `begun` the model `name`.
    ///
    /// # Errors
    /// [`LibraryError::Taken`], and what writing can meet; the folder is `begun` again then.
    pub(super) fn count(&mut self, begun: &Path, name: &str, entries: Vec<Entry>) -> Result<(), LibraryError> {
        let folder = self.folder(name);
        if self.models.contains_key(name) || disk::exists(&folder) {
            return Err(LibraryError::Taken { name: name.into() });
        }
        if !disk::exists(&begun.join(MARK)) {
            disk::write(&begun.join(MARK), b"")?;
        }
        disk::rename(begun, &folder)?;
        let mut models = self.models.clone();
        let model = ModelEntry { name: name.into(), folder: folder.clone(), entries, is_shipped: false };
        models.insert(name.into(), model);
        if let Err(error) = self.write_added(&models) {
            // The error that led here is the one to report.
            let _ = disk::rename(&folder, begun);
            return Err(error);
        }
        self.models = models;
        // Where it stays, it says nothing: the model is listed.
        let _ = disk::remove(&folder.join(MARK));
        Ok(())
    }

    pub(super) fn write_added(
        &self,
        models: &std::collections::BTreeMap<String, ModelEntry>,
    ) -> Result<(), LibraryError> {
        let key = self.key.as_ref().ok_or(LibraryError::Locked)?;
        let added = models.values().filter(|model| !model.is_shipped);
        let added = added.map(|model| (model.name.clone(), model.entries.clone())).collect();
        Ok(added::write(&self.added_list, key, &added)?)
    }
}
