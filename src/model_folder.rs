//! A model's folder being written: each file hashed on its way to the drive, weights split so that any drive takes them.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::digest::{CHUNKED_ABOVE_BYTES, Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, FAT32_FILE_BYTES_MAX, PartialFile};
use crate::hint::Hint;
use crate::manifest::path::{PathError, check_below};
use crate::manifest::{Entry, FileRole};
use crate::verified::sidecar_path;

pub mod weights;

/// The most bytes in a file of weights: 2 GiB, so that a chunk's worth of damage costs little to repair.
pub const SHARD_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// What is being done to a model, for a progress line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The source is looked through.
    Examining,
    /// Files come over the network.
    Downloading,
    /// Files are written.
    Writing,
    /// What was written is read back and verified, or an installed model is.
    Verifying,
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which step.
    pub step: Step,
    /// How many bytes are done.
    pub done_bytes: u64,
    /// How many bytes the step has.
    pub total_bytes: u64,
}

/// Takes progress, and says whether to go on.
pub type ProgressSink<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// A model's folder can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// The drive doesn't take it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A name in it would mean something else on another drive.
    #[error(transparent)]
    Name(#[from] PathError),
    /// A file would be larger than FAT32 can hold, and can't be split.
    #[error("`{name}` would have {bytes} bytes, more than the {FAT32_FILE_BYTES_MAX} that fit every drive")]
    TooLarge {
        /// Which file or tensor.
        name: String,
        /// How many bytes.
        bytes: u64,
    },
    /// Weights aren't in the form that their name promises.
    #[error("`{}` isn't usable: {what}", path.display())]
    Weights {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Two of its files would have the same name.
    #[error("the file `{name}` is there twice")]
    Twice {
        /// The name, in lower case.
        name: String,
    },
    /// Whoever takes the progress said to stop.
    #[error("it was stopped before it was complete")]
    Stopped,
}

impl Hint for ModelFolderError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Disk(error) => return error.hint(),
            Self::Name(_) => "rename the file in the source".into(),
            Self::TooLarge { .. } => "use a version of the model with fewer bits".into(),
            Self::Weights { .. } => "download the model again and compare its SHA-256 with the published one".into(),
            Self::Twice { .. } => "remove one of the two from the source".into(),
            Self::Stopped => "start it again; it begins from the start".into(),
        })
    }
}

/// Writes the files of one folder, one after another, and lists them.
pub struct ModelFolderWriter<'a> {
    folder: PathBuf,
    entries: Vec<Entry>,
    names: BTreeSet<String>,
    current: Option<(String, PartialFile, StreamHasher)>,
    done_bytes: u64,
    total_bytes: u64,
    sink: ProgressSink<'a>,
}

impl<'a> ModelFolderWriter<'a> {
    /// Starts the folder at `folder`, which must not be there; `total_bytes` is for the progress.
    ///
    /// # Errors
    /// What creating can meet.
    pub fn create(folder: &Path, total_bytes: u64, sink: ProgressSink<'a>) -> Result<Self, ModelFolderError> {
        if disk::exists(folder) {
            return Err(DiskError::Exists { path: folder.into() }.into());
        }
        disk::create_folder(folder)?;
        Ok(Self {
            folder: folder.into(),
            entries: Vec::new(),
            names: BTreeSet::new(),
            current: None,
            done_bytes: 0,
            total_bytes,
            sink,
        })
    }

    /// Where the folder is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files that are complete, in the order in which they were written.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Starts the file `name`, ending the one before.
    ///
    /// # Errors
    /// A name that isn't fit for every drive or is there already, and what creating can meet.
    pub fn begin(&mut self, name: &str) -> Result<(), ModelFolderError> {
        self.end()?;
        check_below(name)?;
        if name.contains('/') {
            return Err(PathError::NotBelow { path: name.into() }.into());
        }
        let lower = name.to_ascii_lowercase();
        if !self.names.insert(lower.clone()) {
            return Err(ModelFolderError::Twice { name: lower });
        }
        let file = PartialFile::create(&self.folder.join(name))?;
        self.current = Some((name.into(), file, StreamHasher::new()));
        Ok(())
    }

    /// Appends `bytes` to the file that was begun.
    ///
    /// # Errors
    /// What writing can meet, and [`ModelFolderError::Stopped`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelFolderError> {
        let (_, file, hasher) = self.current.as_mut().expect("a file is begun before it is written");
        file.write(bytes)?;
        hasher.update(bytes);
        self.done_bytes += bytes.len() as u64;
        let progress = Progress { step: Step::Writing, done_bytes: self.done_bytes, total_bytes: self.total_bytes };
        match (self.sink)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelFolderError::Stopped),
        }
    }

    /// Completes the file that was begun: synced, named and listed, with its sidecar where it is large.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn end(&mut self) -> Result<(), ModelFolderError> {
        let Some((name, file, hasher)) = self.current.take() else {
            return Ok(());
        };
        file.finish()?;
        let (size, sha256, chunks) = hasher.finish();
        let mut chunks_sha256 = None;
        if size > CHUNKED_ABOVE_BYTES {
            let sidecar = chunks.to_sidecar();
            disk::write(&sidecar_path(&self.folder.join(&name)), &sidecar)?;
            chunks_sha256 = Some(Sha256Digest::of(&sidecar));
        }
        self.entries.push(Entry { path: name, size, sha256, role: FileRole::Model, chunks_sha256 });
        Ok(())
    }

    /// Writes a whole small file.
    ///
    /// # Errors
    /// As [`Self::begin`] and [`Self::write`].
    pub fn write_file(&mut self, name: &str, content: &[u8]) -> Result<(), ModelFolderError> {
        self.begin(name)?;
        self.write(content)?;
        self.end()
    }

    /// Ends the folder: its files, sorted by name.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn finish(mut self) -> Result<Vec<Entry>, ModelFolderError> {
        self.end()?;
        disk::sync_folder(&self.folder)?;
        self.entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(self.entries)
    }
}

impl std::fmt::Debug for ModelFolderWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFolderWriter").field("folder", &self.folder).finish_non_exhaustive()
    }
}
