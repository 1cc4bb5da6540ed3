//! Files that take their names only when they are complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::{DiskError, remove, sync_folder};

/// A file that takes its name only when it is complete and on the medium. Dropped before that, it is removed.
#[derive(Debug)]
pub struct PartialFile {
    file: Option<File>,
    partial: PathBuf,
    path: PathBuf,
}

impl PartialFile {
    /// Starts the file that will be at `path`, as `path` with `.partial` added.
    ///
    /// # Errors
    /// What creating can meet.
    pub fn create(path: &Path) -> Result<Self, DiskError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        // What lies there is a leftover, or a link that a hostile drive wants followed: it is removed, never written through.
        remove(&partial)?;
        let created = OpenOptions::new().write(true).create_new(true).open(&partial);
        let file = created.map_err(|e| DiskError::new("create", &partial, e))?;
        Ok(Self { file: Some(file), partial, path: path.into() })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|e| DiskError::new("write", &self.path, e)),
            None => Ok(()),
        }
    }

    /// Gives the file its name and leaves it to the system to bring it to the medium: for what can be made again.
    ///
    /// # Errors
    /// What renaming can meet.
    pub fn finish_lazily(mut self) -> Result<(), DiskError> {
        self.file = None;
        fs::rename(&self.partial, &self.path).map_err(|e| DiskError::new("write", &self.path, e))
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// What syncing and renaming can meet.
    pub fn finish(mut self) -> Result<(), DiskError> {
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(|e| DiskError::new("write", &self.path, e))?;
            drop(file);
            fs::rename(&self.partial, &self.path).map_err(|e| DiskError::new("write", &self.path, e))?;
            if let Some(folder) = self.path.parent() {
                sync_folder(folder)?;
            }
        }
        Ok(())
    }
}

impl io::Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(bytes.len()), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
