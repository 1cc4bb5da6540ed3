//! Bundles on their way: a new one, a copy with everything, an archive, and a bundle made of an archive.
//!
//! Planned first, so that what won't work is known before a byte is written. Then each file is written under another name,
//! hashed on the way, synced and renamed; at the end everything is read back from the medium, and only then does the list
//! get its name, which makes a folder a bundle. An interrupted one can be run again and goes on from whole files.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::BundleError;
use crate::disk::DiskError;
use crate::hint::Hint;
use crate::verified::IntegrityError;

mod adopt;
mod archive;
mod copy;
mod export;
mod frames;
mod import;
mod landing;
pub(super) mod read_back;

pub use adopt::{AdoptPlan, RETIRED, adopt, retire};
pub use archive::ARCHIVE_FOLDER;
pub(super) use archive::{Members, open_archive};
pub use copy::{Personal, copy};
pub(super) use copy::{copy_file, hash};
pub use export::{ExportReport, archive_bytes_max, export, export_file};
pub use import::{import, preview};
use landing::Landing;
pub use landing::{MovePlan, Rules};
pub use read_back::Medium;

/// Why a bundle can't be moved, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The folder has something else in it.
    #[error("`{}` isn't empty, and isn't a bundle", folder.display())]
    Occupied {
        /// Which folder.
        folder: PathBuf,
    },
    /// The file system has the folder's name and nothing behind it.
    #[error("`{}` can't be listed, and the drive it is on can: its file system is damaged there", folder.display())]
    LostFolder {
        /// Which folder.
        folder: PathBuf,
    },
    /// The folder is a bundle, and nobody said that it may be replaced.
    #[error("`{}` is a bundle already", folder.display())]
    IsBundle {
        /// Which folder.
        folder: PathBuf,
    },
    /// In the folder is the beginning of another bundle.
    #[error("`{}` has the beginning of another bundle in it", folder.display())]
    OtherBegun {
        /// Which folder.
        folder: PathBuf,
    },
    /// The folder has somebody's data in it, which a copy would have to replace.
    #[error("`{}` has somebody's data in it", folder.display())]
    HasData {
        /// Which folder.
        folder: PathBuf,
    },
    /// The bundle would be written into itself, or over what it is made of.
    #[error("`{}` and the bundle are in each other", folder.display())]
    Inside {
        /// Which folder.
        folder: PathBuf,
    },
    /// The bundle that is there was sealed by somebody else.
    #[error("the bundle in `{}` is sealed by {short_key}, not by the same key", folder.display())]
    OtherSeal {
        /// Which folder.
        folder: PathBuf,
        /// The short form of the key that sealed it.
        short_key: String,
    },
    /// The bundle that is there is newer.
    #[error("the bundle in `{}` has generation {found}, newer than {generation}", folder.display())]
    Older {
        /// Which folder.
        folder: PathBuf,
        /// Its generation.
        found: u64,
        /// The generation of what would replace it.
        generation: u64,
    },
    /// It doesn't fit.
    #[error("`{}` has {free_bytes} bytes free, and {needed_bytes} are needed", folder.display())]
    Space {
        /// Which folder.
        folder: PathBuf,
        /// What would be written, in bytes.
        needed_bytes: u64,
        /// What is free, in bytes.
        free_bytes: u64,
    },
    /// A file is larger than the drive's file system can hold.
    #[error("`{path}` has {bytes} bytes, and a file on that drive has at most {bytes_max}: it is formatted with FAT32")]
    FileTooLarge {
        /// Which file.
        path: String,
        /// Its length in bytes.
        bytes: u64,
        /// The most that the drive can hold in a file, in bytes.
        bytes_max: u64,
    },
    /// The drive said that it has it, and hasn't.
    #[error("`{}` isn't on the drive as it was written: the drive doesn't keep what it says it keeps", path.display())]
    NotKept {
        /// Which file.
        path: PathBuf,
    },
    /// An archive isn't what `tiles bundle export` writes.
    #[error("`{}` is refused: {what}", archive.display())]
    Archive {
        /// The archive.
        archive: PathBuf,
        /// What is wrong in it.
        what: String,
    },
    /// What is personal can't be carried along.
    #[error("the data can't be copied")]
    Data(#[source] DataError),
    /// Whoever takes the progress stopped it.
    #[error("interrupted")]
    Stopped,
    /// A bundle isn't right.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file of the bundle isn't as sealed.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// A drive can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Hint for MoveError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Occupied { .. } => "choose an empty folder, or a new one".into(),
            Self::LostFolder { .. } => {
                "choose a new folder; `fsck.exfat` (Disk Utility's First Aid on a Mac) repairs the drive".into()
            }
            Self::IsBundle { .. } => {
                "give `--replace` to renew its programs and models, and keep its data; or choose a new folder".into()
            }
            Self::OtherBegun { .. } => "give `--replace` to begin anew there, or choose a new folder".into(),
            Self::HasData { .. } => {
                "choose a new folder; `tiles bundle create` renews a bundle and keeps its data".into()
            }
            Self::Inside { .. } => "choose a folder outside the bundle".into(),
            Self::OtherSeal { .. } => "choose a new folder, and move `data` there if it is yours".into(),
            Self::Older { .. } => "give `--allow-older` if you want the older one".into(),
            Self::Space { .. } => "free some space, or use a larger drive".into(),
            Self::FileTooLarge { .. } => {
                "format the drive with exFAT, or leave out what is so large: remove the model, or split it by importing it again".into()
            }
            Self::NotKept { .. } => "don't use this drive: it may be broken or a fake; try another".into(),
            Self::Archive { .. } => "get the archive again; its SHA-256 tells whether it came whole".into(),
            Self::Data(_) => "run `tiles doctor`".into(),
            Self::Stopped => "run the same command again: it goes on from there".into(),
            Self::Bundle(error) => return error.hint(),
            Self::Integrity(error) => return error.hint(),
            Self::Disk(error) => return error.hint(),
        })
    }
}

/// Why what is personal can't be carried along: an error of the store, which the bundle knows nothing of.
pub type DataError = Box<dyn Error + Send + Sync>;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes more of an archive's files were checked, before anything is written.
    Checked(u64),
    /// So many bytes more were written, or found where they belong.
    Written(u64),
    /// So many bytes more were read back.
    ReadBack(u64),
}

/// Is told how far it is, and says whether to go on.
pub type MoveSink<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

fn step(sink: MoveSink, progress: Progress) -> Result<(), MoveError> {
    match sink(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(MoveError::Stopped),
    }
}

#[cfg(test)]
mod tests;
