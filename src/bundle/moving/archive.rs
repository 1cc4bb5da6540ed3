//! The form of an archive, and a reader of it that knows only files and folders.
//!
//! A ustar stream in Zstandard: `Tiles/MANIFEST.toml`, `Tiles/MANIFEST.sig`, then the listed files sorted by path, without
//! times and owners. Other kinds of members, long names and the like of GNU and PAX are refused: each is a way for a header
//! to say one thing and mean another. The `tar` crate skips a `..` without a word, and makes links; it only splits headers here.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::MoveError;
use crate::disk::{self, FAT32_FILE_BYTES_MAX};
use crate::manifest::ENTRIES_MAX;
use crate::manifest::path::check_below;

/// The folder that everything in an archive is in.
pub const ARCHIVE_FOLDER: &str = "Tiles";
/// The largest window, as a power of two, that unpacking may need: 128 MiB of memory.
const WINDOW_LOG_MAX: u32 = 27;
/// How many bytes are read at once.
const PIECE_BYTES: usize = 1024 * 1024;
/// The most members: the two files of the list, the listed ones, and folders.
const MEMBERS_MAX: usize = 2 * ENTRIES_MAX + 2;

/// A member of an archive: a file with its path below the bundle's root, or a folder with none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bundle) struct Member {
    /// Where it goes.
    pub(in crate::bundle) path: String,
    /// Its length in bytes.
    pub(in crate::bundle) bytes: u64,
}

/// The files of an archive, one after the other.
pub(in crate::bundle) struct Members {
    path: PathBuf,
    stream: Box<dyn Read>,
    left: u64,
    padding: u64,
    seen: usize,
}

/// Opens the archive at `path`.
///
/// # Errors
/// What opening can meet.
pub(in crate::bundle) fn open_archive(path: &Path) -> Result<Members, MoveError> {
    let (file, _) = disk::open(path)?;
    let file = io::BufReader::with_capacity(PIECE_BYTES, file);
    let broken = |error: io::Error| Members::broken_at(path, &error);
    let mut decoder = zstd::Decoder::with_buffer(file).map_err(broken)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(broken)?;
    Ok(Members { path: path.into(), stream: Box::new(decoder), left: 0, padding: 0, seen: 0 })
}

impl Members {
    /// The next file, or `None` after the last, where nothing may follow.
    ///
    /// # Errors
    /// A header that is damaged or of another kind, and what reading can meet.
    pub(in crate::bundle) fn next(&mut self) -> Result<Option<Member>, MoveError> {
        self.skip()?;
        while self.seen < MEMBERS_MAX {
            self.seen += 1;
            let block = self.block()?;
            if block == [0; 512] {
                return self.end();
            }
            if let Some(member) = read_header(&block).map_err(|what| self.refused(what))? {
                self.left = member.bytes;
                self.padding = (512 - member.bytes % 512) % 512;
                return Ok(Some(member));
            }
        }
        Err(self.refused("it has too many members".into()))
    }

    /// Reads the next bytes of the current file; 0 at its end.
    ///
    /// # Errors
    /// An archive that ends too early, and what reading can meet.
    pub(in crate::bundle) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, MoveError> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let bytes = self.stream.read(&mut buffer[..room]).map_err(|error| Self::broken_at(&self.path, &error))?;
        if bytes == 0 {
            return Err(self.refused("it ends within a file: it is incomplete".into()));
        }
        self.left -= bytes as u64;
        Ok(bytes)
    }

    /// Reads the current file whole, at most `bytes_max` bytes of it.
    ///
    /// # Errors
    /// A longer file, and what reading can meet.
    pub(in crate::bundle) fn read_whole(&mut self, member: &Member, bytes_max: u64) -> Result<Vec<u8>, MoveError> {
        if member.bytes > bytes_max {
            return Err(self.refused(format!("`{}` has {} bytes, more than allowed", member.path, member.bytes)));
        }
        let mut content = vec![0; member.bytes as usize];
        let mut filled = 0;
        while filled < content.len() {
            filled += self.read(&mut content[filled..])?;
        }
        Ok(content)
    }

    /// What is refused, with the archive's name.
    pub(in crate::bundle) fn refused(&self, what: String) -> MoveError {
        MoveError::Archive { archive: self.path.clone(), what }
    }

    fn broken_at(path: &Path, error: &io::Error) -> MoveError {
        // A drive that went away while the archive was read is another matter than a damaged archive.
        match error.raw_os_error() {
            Some(code) => disk::DiskError::new("read", path, io::Error::from_raw_os_error(code)).into(),
            None => MoveError::Archive { archive: path.into(), what: format!("it is damaged or incomplete: {error}") },
        }
    }

    fn block(&mut self) -> Result<[u8; 512], MoveError> {
        let mut block = [0; 512];
        self.stream.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.refused("it ends too early: it is incomplete".into()),
            _ => Self::broken_at(&self.path, &error),
        })?;
        Ok(block)
    }

    /// Passes over what is left of the current file and what fills its last block.
    fn skip(&mut self) -> Result<(), MoveError> {
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(self.left).unwrap_or(PIECE_BYTES))];
        while self.left > 0 {
            self.read(&mut piece)?;
        }
        let mut padding = [0; 512];
        let padding = &mut padding[..self.padding as usize];
        self.stream.read_exact(padding).map_err(|error| Self::broken_at(&self.path, &error))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(self.refused("something is hidden behind a file in it".into()));
        }
        self.padding = 0;
        Ok(())
    }

    /// The end: two empty blocks, then nothing.
    fn end(&mut self) -> Result<Option<Member>, MoveError> {
        if self.block()? != [0; 512] {
            return Err(self.refused("something follows its end".into()));
        }
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => Ok(None),
            Ok(_) => Err(self.refused("something follows its end".into())),
            Err(error) => Err(Self::broken_at(&self.path, &error)),
        }
    }
}

/// What a header says; `None` for a folder, which the files in it imply.
fn read_header(block: &[u8; 512]) -> Result<Option<Member>, String> {
    let header = tar::Header::from_byte_slice(block);
    // The sum of all bytes, those of the sum itself counted as spaces.
    let sum: u32 =
        block.iter().enumerate().map(|(i, &byte)| u32::from(if (148..156).contains(&i) { b' ' } else { byte })).sum();
    if header.cksum().ok() != Some(sum) {
        return Err("a header of it is damaged".into());
    }
    let bytes_of_path = header.path_bytes();
    let shown: String = String::from_utf8_lossy(&bytes_of_path).chars().filter(|c| !c.is_control()).take(200).collect();
    let kind = header.entry_type();
    let what = match kind {
        tar::EntryType::Regular | tar::EntryType::Directory => None,
        tar::EntryType::Symlink | tar::EntryType::Link => Some("a link"),
        tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => Some("a device or pipe"),
        tar::EntryType::GNUSparse => Some("a sparse file"),
        tar::EntryType::XHeader | tar::EntryType::XGlobalHeader => {
            Some("a PAX header, which may change names and sizes")
        }
        tar::EntryType::GNULongName | tar::EntryType::GNULongLink => Some("a GNU header for a long name"),
        _ => Some("neither a file nor a folder"),
    };
    if let Some(what) = what {
        return Err(format!("`{shown}` is {what}"));
    }
    if header.as_ustar().is_none() {
        return Err(format!("`{shown}` has a header of another form than ustar"));
    }
    // A name ends at the first NUL; what hides behind it is looked at too.
    let hides = |field: &[u8]| field.iter().skip_while(|byte| **byte != 0).any(|byte| *byte != 0);
    if hides(&block[..100]) || hides(&block[345..500]) {
        return Err(format!("`{shown}` has a NUL in its name"));
    }
    let path = std::str::from_utf8(&bytes_of_path).map_err(|_| format!("`{shown}` isn't UTF-8"))?;
    let is_folder = kind == tar::EntryType::Directory;
    let path = if is_folder { path.strip_suffix('/').unwrap_or(path) } else { path };
    let bytes = header.entry_size().map_err(|_| format!("the size of `{shown}` is damaged"))?;
    let below = match path.strip_prefix(ARCHIVE_FOLDER) {
        Some("") => None,
        Some(rest) if rest.starts_with('/') => Some(&rest[1..]),
        _ => return Err(format!("`{shown}` isn't in the folder `{ARCHIVE_FOLDER}`")),
    };
    if let Some(below) = below {
        check_below(below).map_err(|error| error.to_string())?;
    }
    match (is_folder, below) {
        (true, _) if bytes == 0 => Ok(None),
        (true, _) => Err(format!("the folder `{shown}` has content")),
        (false, Some(path)) if bytes <= FAT32_FILE_BYTES_MAX => Ok(Some(Member { path: path.into(), bytes })),
        (false, Some(_)) => Err(format!("`{shown}` has {bytes} bytes, more than a drive's file can have")),
        (false, None) => Err(format!("`{shown}` isn't a file in the bundle's folder")),
    }
}
