//! The only file access: I/O errors that name their path, bounded reads, durable writes.
//!
//! Everything read from the drive may be hostile, so a read says how large it may be. Temp-and-rename writes are for
//! files that can be made again; they aren't safe on exFAT under a power cut, so precious files use two slots.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::hint::Hint;

pub mod two_slot;
pub mod volume;
mod medium;
mod partial;
mod resident;

pub use self::medium::{UncachedFile, file_bytes_max, forget_blocks, is_fat_name};
pub use self::partial::PartialFile;
pub use self::resident::read_through;

/// The largest file that FAT32 can hold: 4 GiB less one byte.
pub const FAT32_FILE_BYTES_MAX: u64 = u32::MAX as u64;

/// What went wrong with a file, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is nothing at the path.
    #[error("`{}` doesn't exist", path.display())]
    NotFound {
        /// Where.
        path: PathBuf,
    },
    /// Something is already at the path.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The medium is full.
    #[error("no space is left for `{}`", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// The medium can't be written.
    #[error("`{}` can't be written: the drive is write-protected", path.display())]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
    },
    /// The medium went away or fails.
    #[error("the drive that holds `{}` doesn't answer", path.display())]
    Gone {
        /// What was being read or written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is larger than anything that belongs there.
    #[error("`{}` has {bytes} bytes, more than the {bytes_max} allowed there", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        bytes_max: u64,
    },
    /// The file isn't text.
    #[error("`{}` isn't UTF-8 text", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("can't {action} `{}`", path.display())]
    Other {
        /// What was attempted, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl DiskError {
    /// Sorts an I/O error that came up while trying to `action` the file at `path`.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            // EIO, ENXIO, ENODEV, ENOTCONN, ESHUTDOWN: what a pulled stick answers.
            _ if matches!(source.raw_os_error(), Some(5 | 6 | 19 | 107 | 108)) => Self::Gone { path, source },
            _ => Self::Other { action, path, source },
        }
    }

    /// Whether there was nothing at the path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl Hint for DiskError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => "check the path".into(),
            Self::Exists { .. } => "choose another name, or remove it first".into(),
            Self::Full { .. } => "free some space on the drive and try again".into(),
            Self::ReadOnly { .. } => {
                "slide the drive's lock open, or copy the folder to a drive that can be written".into()
            }
            Self::Gone { .. } => "plug the drive in again; everything acknowledged is kept".into(),
            Self::TooLarge { .. } | Self::NotText { .. } => "replace it with the file that belongs there".into(),
            Self::Other { .. } => "check the path and its permissions".into(),
        })
    }
}

/// Reads the whole file at `path`, refusing one of more than `bytes_max` bytes before reading it.
///
/// # Errors
/// [`DiskError::TooLarge`], and what reading can meet. A folder, pipe or device is refused.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, DiskError> {
    let (file, bytes) = open(path)?;
    if bytes > bytes_max {
        return Err(DiskError::TooLarge { path: path.into(), bytes, bytes_max });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    // A file that grows while it is read stays within the limit too.
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(|e| DiskError::new("read", path, e))?;
    if content.len() as u64 > bytes_max {
        return Err(DiskError::TooLarge { path: path.into(), bytes: content.len() as u64, bytes_max });
    }
    Ok(content)
}

/// Reads a file or pipe that the person named to its end, such as a passphrase's.
///
/// # Errors
/// [`DiskError::TooLarge`] past `bytes_max`, and what reading can meet.
pub fn read_stream(path: &Path, bytes_max: u64) -> Result<Vec<u8>, DiskError> {
    let file = File::open(path).map_err(|e| DiskError::new("open", path, e))?;
    read_open(file, path, bytes_max)
}

/// Reads an open file, pipe or terminal to its end; `path` names it in errors.
///
/// # Errors
/// As [`read_stream`].
pub fn read_open(file: File, path: &Path, bytes_max: u64) -> Result<Vec<u8>, DiskError> {
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(|e| DiskError::new("read", path, e))?;
    if content.len() as u64 > bytes_max {
        return Err(DiskError::TooLarge { path: path.into(), bytes: content.len() as u64, bytes_max });
    }
    Ok(content)
}

/// Reads the whole text file at `path`; see [`read`].
///
/// # Errors
/// As [`read`], and [`DiskError::NotText`].
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String, DiskError> {
    String::from_utf8(read(path, bytes_max)?).map_err(|_| DiskError::NotText { path: path.into() })
}

/// Opens a regular file for reading and tells its size in bytes.
///
/// # Errors
/// What opening can meet. A folder, pipe or device is refused, without blocking on it.
pub fn open(path: &Path) -> Result<(File, u64), DiskError> {
    let metadata = fs::metadata(path).map_err(|e| DiskError::new("open", path, e))?;
    if !metadata.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it isn't a regular file");
        return Err(DiskError::new("open", path, source));
    }
    let file = File::open(path).map_err(|e| DiskError::new("open", path, e))?;
    Ok((file, metadata.len()))
}

/// Reads exactly `buffer.len()` bytes at `offset` of the open `file`, whose `path` is for errors.
///
/// # Errors
/// What reading can meet, a file that ends too early included.
pub fn read_at(mut file: &File, path: &Path, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(buffer));
    read.map_err(|e| DiskError::new("read", path, e))
}

/// Writes `bytes` at `offset` of the open `file`, whose `path` is for errors.
///
/// # Errors
/// What writing can meet.
pub fn write_at(mut file: &File, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    let written = file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes));
    written.map_err(|e| DiskError::new("write", path, e))
}

/// Makes what was written to the open `file` durable.
///
/// # Errors
/// What syncing can meet.
pub fn sync(file: &File, path: &Path) -> Result<(), DiskError> {
    file.sync_all().map_err(|e| DiskError::new("write", path, e))
}

/// The size of the regular file at `path` in bytes, or `None` where there is nothing.
///
/// # Errors
/// What looking can meet. Anything but a regular file is refused.
pub fn size(path: &Path) -> Result<Option<u64>, DiskError> {
    match open(path) {
        Ok((_, bytes)) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The size of the regular file at `path` in bytes, or `None` where there is nothing, without opening the file: closing
/// a file drops the locks that SQLite, in the same process, has on it (POSIX `fcntl`).
///
/// # Errors
/// What looking can meet. Anything but a regular file is refused.
pub fn size_unopened(path: &Path) -> Result<Option<u64>, DiskError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it isn't a regular file");
            Err(DiskError::new("open", path, source))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DiskError::new("open", path, e)),
    }
}

/// Whether anything is at `path`, a dangling link included.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether `path` is a folder.
pub fn is_folder(path: &Path) -> bool {
    path.is_dir()
}

/// What the link at `path` leads to, as it is written there.
///
/// # Errors
/// What reading can meet, and that it is no link.
pub fn link_target(path: &Path) -> Result<PathBuf, DiskError> {
    fs::read_link(path).map_err(|e| DiskError::new("read", path, e))
}

/// Makes the folder `path` and the folders above it where they are missing.
///
/// # Errors
/// What making folders can meet.
pub fn create_folder(path: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(path).map_err(|e| DiskError::new("create", path, e))
}

/// Whether operating systems leave files of this name on any drive they touch; they are never part of a bundle.
pub fn is_litter(name: &str) -> bool {
    name.starts_with("._")
        || matches!(
            name,
            ".DS_Store" | ".metadata_never_index" | ".Trashes" | ".fseventsd" | "System Volume Information"
        )
        || name.starts_with(".Spotlight-V")
        // A file that was removed while it was open, on a drive with a driver in user space that was then pulled out.
        || name.starts_with(".fuse_hidden")
}

/// The names in a folder, sorted, without litter (see [`is_litter`]). Names that aren't UTF-8 are lossy.
///
/// # Errors
/// What listing can meet.
pub fn list(folder: &Path) -> Result<Vec<String>, DiskError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| DiskError::new("list", folder, e))? {
        let entry = entry.map_err(|e| DiskError::new("list", folder, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !is_litter(name));
    names.sort();
    Ok(names)
}

/// What a name in a folder stands for, links not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, pipe, socket or device: nothing that a bundle has.
    Other,
}

impl Kind {
    fn of(kind: fs::FileType) -> Self {
        if kind.is_file() {
            Self::File
        } else if kind.is_dir() {
            Self::Folder
        } else {
            Self::Other
        }
    }
}

/// What is at `path`, a link not followed; `None` where there is nothing.
///
/// # Errors
/// What looking can meet.
pub fn kind(path: &Path) -> Result<Option<Kind>, DiskError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(Kind::of(metadata.file_type()))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(DiskError::new("look at", path, e)),
    }
}

/// The names in a folder with what they stand for, sorted, without litter (see [`is_litter`]); at most `names_max` of them.
///
/// # Errors
/// What listing can meet, and a folder with more names.
pub fn list_kinds(folder: &Path, names_max: usize) -> Result<Vec<(String, Kind)>, DiskError> {
    let failed = |e| DiskError::new("list", folder, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_litter(&name) {
            continue;
        }
        if names.len() == names_max {
            return Err(failed(io::Error::other(format!("it has more than {names_max} names"))));
        }
        names.push((name, Kind::of(entry.file_type().map_err(failed)?)));
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

/// The absolute path of what is at `path`, with every link on the way resolved.
///
/// # Errors
/// What resolving can meet.
pub fn canonical(path: &Path) -> Result<PathBuf, DiskError> {
    fs::canonicalize(path).map_err(|e| DiskError::new("find", path, e))
}

/// Whether the system would let this process write to what is at `path`.
pub fn can_write(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Replaces the whole content of the open `file`, whose `path` is for errors, in place.
///
/// # Errors
/// What writing can meet.
pub fn overwrite(mut file: &File, path: &Path, content: &[u8]) -> Result<(), DiskError> {
    let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(content));
    // Only where it is longer: some file systems in user space refuse to be told a length, also the one that is there.
    let cut = written.and_then(|()| file.metadata()).and_then(|metadata| match content.len() as u64 {
        bytes if metadata.len() == bytes => Ok(()),
        bytes => file.set_len(bytes),
    });
    cut.map_err(|e| DiskError::new("write", path, e))
}

/// Writes a new file that only its owner may read, where the medium knows owners.
///
/// # Errors
/// [`DiskError::Exists`], and what writing can meet.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written.map_err(|e| DiskError::new("write", path, e))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Lets everybody run the file at `path`, where the medium knows that; on exFAT and FAT32 how it is mounted decides.
///
/// # Errors
/// What changing the mode can meet, other than a medium without modes.
pub fn make_executable(path: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::PermissionsExt as _;
    match fs::set_permissions(path, fs::Permissions::from_mode(0o755)) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
            Err(DiskError::new("make executable", path, e))
        }
        _ => Ok(()),
    }
}

/// Asks the system to forget what it holds of the synced file at `path`, so that the next read comes from the medium.
///
/// # Errors
/// What opening can meet. Systems without such a request (macOS) keep what they hold.
pub fn forget_cached(path: &Path) -> Result<(), DiskError> {
    let (file, _) = open(path)?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|e| DiskError::new("read back", path, e.into()))?;
    drop(file);
    Ok(())
}

/// Writes a file so that it is on the medium when this returns: a `.partial` beside it, synced, renamed, read back by size.
///
/// # Errors
/// What writing can meet; the file that was there before is then untouched.
pub fn write(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    let mut partial = PartialFile::create(path)?;
    partial.write(content)?;
    partial.finish()
}

/// When the file at `path` was written last.
///
/// # Errors
/// What looking can meet.
pub fn modified(path: &Path) -> Result<std::time::SystemTime, DiskError> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(|e| DiskError::new("open", path, e))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What syncing can meet; file systems that can't sync a folder (exFAT through FUSE) are not an error.
pub fn sync_folder(folder: &Path) -> Result<(), DiskError> {
    let synced =
        File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }).and_then(|f| f.sync_all());
    match synced {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Err(DiskError::new("sync", folder, e))
        }
        _ => Ok(()),
    }
}

/// Opens the file at `path` for reading and writing, making an empty one where there is none.
///
/// # Errors
/// What opening can meet.
pub fn open_or_create(path: &Path) -> Result<File, DiskError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|e| DiskError::new("open", path, e))
}

/// Makes the file at `path` `bytes` long: what is past that is cut off, what is missing are zeros.
///
/// # Errors
/// What changing the length can meet.
pub fn set_length(file: &File, path: &Path, bytes: u64) -> Result<(), DiskError> {
    file.set_len(bytes).map_err(|e| DiskError::new("write", path, e))
}

/// Opens the file at `path`, which is there, for reading and for writing in place.
///
/// # Errors
/// What opening can meet. Anything but a regular file is refused.
pub fn open_in_place(path: &Path) -> Result<File, DiskError> {
    open(path)?;
    OpenOptions::new().read(true).write(true).open(path).map_err(|e| DiskError::new("open", path, e))
}

/// Opens the file at `path` for adding to its end, making an empty one where there is none.
///
/// # Errors
/// What opening can meet.
pub fn open_to_append(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new().append(true).create(true).open(path).map_err(|e| DiskError::new("open", path, e))
}

/// Adds `bytes` to the end of the open `file`, whose `path` is for errors.
///
/// # Errors
/// What writing can meet.
pub fn append(mut file: &File, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    file.write_all(bytes).map_err(|e| DiskError::new("write", path, e))
}

/// Gives `from` the name `to`, on the same medium.
///
/// # Errors
/// What renaming can meet.
pub fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::rename(from, to).map_err(|e| DiskError::new("rename", from, e))?;
    to.parent().map_or(Ok(()), sync_folder)
}

/// Removes the file at `path`; one that isn't there is fine.
///
/// # Errors
/// What removing can meet.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DiskError::new("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes the folder `path` with all that is in it; one that isn't there is fine.
///
/// # Errors
/// What removing can meet.
pub fn remove_folder(path: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DiskError::new("remove", path, e)),
        _ => Ok(()),
    }
}

/// How many bytes can still be written to the medium that holds the folder `path`.
///
/// # Errors
/// What asking can meet.
pub fn free_bytes(path: &Path) -> Result<u64, DiskError> {
    let stats = rustix::fs::statvfs(path).map_err(|e| DiskError::new("measure", path, e.into()))?;
    Ok(available_bytes(&stats))
}

/// What is left by what a file system says of itself. One that says it has no blocks at all, as some in user space do,
/// doesn't know, and is no reason to refuse.
fn available_bytes(stats: &rustix::fs::StatVfs) -> u64 {
    if stats.f_blocks == 0 { u64::MAX } else { stats.f_bavail.saturating_mul(stats.f_frsize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn reading_is_bounded_and_names_the_path() {
        let folder = TestFolder::new();
        let path = folder.path().join("a file");
        write(&path, b"12345").expect("the folder can be written");
        assert_eq!(read(&path, 5).expect("it fits"), b"12345");
        let error = read(&path, 4).expect_err("it is larger");
        assert!(matches!(error, DiskError::TooLarge { bytes: 5, bytes_max: 4, .. }), "{error}");
        assert!(error.to_string().contains("a file"));
        assert!(matches!(read(folder.path(), 9), Err(DiskError::Other { .. })), "a folder is no file");
        assert!(read(&folder.path().join("none"), 9).expect_err("nothing is there").is_not_found());
    }

    #[test]
    fn a_file_takes_its_name_only_when_it_is_complete() {
        let folder = TestFolder::new();
        let path = folder.path().join("file");
        write(&path, b"old").expect("the folder can be written");
        let mut partial = PartialFile::create(&path).expect("the folder can be written");
        partial.write(b"new").expect("the folder can be written");
        drop(partial);
        assert_eq!(read(&path, 9).expect("it is there"), b"old");
        assert_eq!(list(folder.path()).expect("it can be listed"), ["file"]);
    }

    #[test]
    fn a_link_in_the_way_is_not_written_through() {
        let folder = TestFolder::new();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("file"));
        write(&victim, b"kept").expect("the folder can be written");
        std::os::unix::fs::symlink(&victim, folder.path().join("file.partial")).expect("links can be made here");
        write(&path, b"new").expect("the folder can be written");
        assert_eq!(read(&victim, 9).expect("it is there"), b"kept");
        assert_eq!(read(&path, 9).expect("it is there"), b"new");
    }
}
