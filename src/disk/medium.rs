//! The medium that holds the files: its limits, and reading from it past what the system remembers of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{DiskError, FAT32_FILE_BYTES_MAX, forget_cached, open};

/// What reads past the system's memory are aligned to: no drive has larger logical blocks.
const BLOCK_BYTES: usize = 4096;
/// How many bytes are read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// The largest file, in bytes, that the medium of the folder `path` can hold: FAT32 has a limit that bundles meet.
///
/// # Errors
/// What asking can meet.
pub fn file_bytes_max(path: &Path) -> Result<u64, DiskError> {
    let stats = rustix::fs::statfs(path).map_err(|e| DiskError::new("measure", path, e.into()))?;
    let is_fat = is_fat(&stats) || super::volume::file_system(path).is_some_and(|name| is_fat_name(&name));
    Ok(if is_fat { FAT32_FILE_BYTES_MAX } else { u64::MAX })
}

/// Whether a file system of that name has FAT's limit, also where a program in user space serves it.
pub fn is_fat_name(name: &str) -> bool {
    matches!(name, "vfat" | "msdos" | "fuse.vfat" | "fuse.fusefat")
}

/// `MSDOS_SUPER_MAGIC` of Linux, which FAT12, FAT16 and FAT32 share.
#[cfg(target_os = "linux")]
fn is_fat(stats: &rustix::fs::StatFs) -> bool {
    stats.f_type as u64 == 0x4d44
}

#[cfg(not(target_os = "linux"))]
fn is_fat(stats: &rustix::fs::StatFs) -> bool {
    let name: Vec<u8> = stats.f_fstypename.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    name == b"msdos"
}

/// Asks the system to forget the blocks of the drive that holds the folder `path`, where it lets this process: file
/// systems in user space (exfat-fuse, ntfs-3g) read through that memory even when a file is opened past its own.
pub fn forget_blocks(path: &Path) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt as _;
        // Only root and the group of disks may open it; without that the file's own memory is all that can be dropped.
        let Ok(metadata) = std::fs::metadata(path) else { return };
        let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
        if let Ok(blocks) = File::open(format!("/dev/block/{major}:{minor}")) {
            let _ = blocks.sync_all();
            let _ = rustix::fs::fadvise(&blocks, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = path;
}

/// A file that is read from the medium, not from what the system remembers of it: `O_DIRECT` on Linux, `F_NOCACHE` on
/// macOS. Where the file system can't do that, the system is asked to forget the file first.
#[derive(Debug)]
pub struct UncachedFile {
    file: File,
    path: PathBuf,
    size: u64,
    is_direct: bool,
    buffer: Vec<u8>,
}

impl UncachedFile {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// What opening can meet.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        forget_cached(path)?;
        let (plain, size) = open(path)?;
        let (file, is_direct) = match open_direct(path) {
            Some(direct) => (direct, true),
            None => (plain, false),
        };
        Ok(Self { file, path: path.into(), size, is_direct, buffer: Vec::new() })
    }

    /// The file's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the system was told to read past its memory; else it was only asked to forget the file.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Asks the medium whether it is still there: reads the file's first block from it. A drive that was pulled out can't
    /// answer, while whatever the system remembers of it still can be read and written for a while.
    ///
    /// # Errors
    /// What reading can meet, a file that has become empty included.
    pub fn probe(&mut self) -> Result<(), DiskError> {
        if !self.is_direct {
            forget_cached(&self.path)?;
        }
        let start = self.reserve(BLOCK_BYTES);
        match self.read_at(0, start, BLOCK_BYTES)? {
            0 => Err(DiskError::new("read", &self.path, io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    /// Reads the whole file piece by piece and hands each to `take`.
    ///
    /// # Errors
    /// What reading can meet, a file that ends too early included, and what `take` gives.
    pub fn read_all<E: From<DiskError>>(&mut self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let start = self.reserve(PIECE_BYTES);
        let mut offset = 0;
        while offset < self.size {
            let wanted = (self.size - offset).min(PIECE_BYTES as u64) as usize;
            // Whole blocks are asked for, past the end of the file too; what comes ends with the file.
            let blocks = wanted.next_multiple_of(BLOCK_BYTES);
            let bytes = self.read_at(offset, start, blocks)?;
            if bytes < wanted {
                let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was");
                return Err(DiskError::new("read back", &self.path, ended).into());
            }
            take(&self.buffer[start..start + wanted])?;
            offset += wanted as u64;
        }
        Ok(())
    }

    /// Makes room for `bytes`, and says where in the buffer they begin: at a whole block of memory.
    fn reserve(&mut self, bytes: usize) -> usize {
        self.buffer.resize(bytes + BLOCK_BYTES, 0);
        self.buffer.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES)
    }

    /// Fills the buffer from `start` with `blocks` bytes, or fewer at the end of the file.
    fn read_at(&mut self, offset: u64, start: usize, blocks: usize) -> Result<usize, DiskError> {
        let mut filled = 0;
        while filled < blocks {
            let target = &mut self.buffer[start + filled..start + blocks];
            match self.file.read_at(target, offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Some file systems take the flag and refuse the reading; and after a short read the rest isn't aligned.
                Err(e) if self.is_direct && e.kind() == io::ErrorKind::InvalidInput => {
                    if offset + filled as u64 >= self.size {
                        break;
                    }
                    self.is_direct = false;
                    self.file = open(&self.path)?.0;
                }
                Err(e) => return Err(DiskError::new("read back", &self.path, e)),
            }
        }
        Ok(filled)
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).open(path).ok()?;
    rustix::fs::fcntl_nocache(&file, true).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk;
    use crate::test_folder::TestFolder;

    #[test]
    fn a_file_of_any_length_is_read_as_it_is() {
        let folder = TestFolder::new();
        for length in [0, 1, 511, 4096, 4097, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 4095] {
            let path = folder.path().join("file");
            let content: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            disk::write(&path, &content).expect("the folder can be written");
            let mut file = UncachedFile::open(&path).expect("it is there");
            assert_eq!(file.size(), length as u64);
            let mut read = Vec::new();
            let taken: Result<(), DiskError> = file.read_all(|piece| {
                read.extend_from_slice(piece);
                Ok(())
            });
            taken.expect("it can be read");
            assert_eq!(read, content, "{length} bytes");
            assert_eq!(file.probe().is_ok(), length > 0, "{length} bytes");
        }
        assert!(UncachedFile::open(folder.path()).is_err(), "a folder is no file");
        forget_blocks(folder.path());
    }

    #[test]
    fn only_fat_has_a_limit() {
        let folder = TestFolder::new();
        let bytes = file_bytes_max(folder.path()).expect("it answers");
        assert!(bytes == u64::MAX || bytes == FAT32_FILE_BYTES_MAX);
        assert!(file_bytes_max(&folder.path().join("none")).is_err());
    }
}
