//! Files that are checked against their digests while they are read: no unverified byte leaves this module.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use sha2::{Digest as _, Sha256};

use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, ChunkDigests, Sha256Digest};
use crate::disk::{self, DiskError};
use crate::hint::Hint;
use crate::manifest::Entry;

/// How much of a chunk is read before its hashing begins, in bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// A file is not what the list that covers it says.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityError {
    /// The file can't be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file has another length.
    #[error("`{}` is damaged: it has {found} bytes instead of {expected}", path.display())]
    Size {
        /// Which file.
        path: PathBuf,
        /// Its length by the list, in bytes.
        expected: u64,
        /// Its length on the drive, in bytes.
        found: u64,
    },
    /// The file has another digest.
    #[error("`{}` is damaged: its SHA-256 is {found} instead of {expected}", path.display())]
    Digest {
        /// Which file.
        path: PathBuf,
        /// The digest by the list.
        expected: Sha256Digest,
        /// The digest of what is on the drive.
        found: Sha256Digest,
    },
    /// One chunk of a large file is damaged.
    #[error("`{}` is damaged in the {CHUNK_BYTES} bytes from byte {offset}", path.display())]
    Chunk {
        /// Which file.
        path: PathBuf,
        /// Where the damaged chunk begins, in bytes.
        offset: u64,
    },
    /// No list covers the file.
    #[error("`{}` is in no signed list", path.display())]
    Unlisted {
        /// Which file.
        path: PathBuf,
    },
}

impl Hint for IntegrityError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Disk(error) => error.hint(),
            _ => Some("copy the file again from an undamaged bundle, or import the model again".into()),
        }
    }
}

/// A large file open for reading chunk by chunk.
#[derive(Debug)]
pub struct VerifiedFile {
    file: File,
    path: PathBuf,
    size: u64,
    chunks: Option<ChunkDigests>,
}

impl VerifiedFile {
    /// Opens a file that nothing vouches for, such as a checkpoint that is being imported.
    ///
    /// # Errors
    /// What opening can meet.
    pub fn open_unlisted(path: &Path) -> Result<Self, DiskError> {
        let (file, size) = disk::open(path)?;
        Ok(Self { file, path: path.into(), size, chunks: None })
    }

    /// Opens the file that `entry` describes, below the folder `root`: checks its size, and its sidecar's digest.
    ///
    /// A file without a sidecar is short: it is hashed whole here, then read again from the page cache.
    ///
    /// # Errors
    /// Any mismatch, and what reading can meet.
    pub fn open(root: &Path, entry: &Entry) -> Result<Self, IntegrityError> {
        let path = root.join(&entry.path);
        let (file, size) = disk::open(&path)?;
        if size != entry.size {
            return Err(IntegrityError::Size { path, expected: entry.size, found: size });
        }
        let chunks = match entry.chunks_sha256 {
            Some(expected) => read_sidecar(&path, size, expected)?,
            None => {
                let content = read_listed(&path, entry, CHUNKED_ABOVE_BYTES)?;
                let mut hasher = crate::digest::StreamHasher::new();
                hasher.update(&content);
                hasher.finish().2
            }
        };
        Ok(Self { file, path, size, chunks: Some(chunks) })
    }

    /// The file's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the file is, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many chunks of [`CHUNK_BYTES`] there are; the last may be shorter.
    pub fn chunk_count(&self) -> u64 {
        ChunkDigests::count_of(self.size)
    }

    /// How many bytes chunk `chunk_idx` has; 0 past the end.
    pub fn chunk_len(&self, chunk_idx: u64) -> usize {
        let start = chunk_idx.saturating_mul(u64::from(CHUNK_BYTES));
        self.size.saturating_sub(start).min(u64::from(CHUNK_BYTES)) as usize
    }

    /// Reads chunk `chunk_idx` into `buffer`, which has [`Self::chunk_len`] bytes, and verifies what is now there.
    ///
    /// # Errors
    /// [`IntegrityError::Chunk`], and what reading can meet. The buffer then holds zeros.
    pub fn read_chunk(&self, chunk_idx: u64, buffer: &mut [u8]) -> Result<(), IntegrityError> {
        let offset = chunk_idx * u64::from(CHUNK_BYTES);
        let read = match &self.chunks {
            Some(chunks) => self.read_and_hash(offset, buffer).map(|digest| chunks.get(chunk_idx) == Some(digest)),
            None => disk::read_at(&self.file, &self.path, offset, buffer).map(|()| true),
        };
        match read {
            Ok(true) => Ok(()),
            Ok(false) => {
                buffer.fill(0);
                Err(IntegrityError::Chunk { path: self.path.clone(), offset })
            }
            Err(error) => {
                buffer.fill(0);
                Err(error.into())
            }
        }
    }

    /// Fills `buffer` and gives its digest. Each piece is hashed while the next one is read, so that the drive doesn't wait
    /// for the hash where the system reads little ahead (FUSE 128 KiB); `tools/verified-load` measures what is left of it.
    fn read_and_hash(&self, offset: u64, buffer: &mut [u8]) -> Result<Sha256Digest, DiskError> {
        if buffer.len() <= PIECE_BYTES {
            disk::read_at(&self.file, &self.path, offset, buffer)?;
            return Ok(Sha256Digest::of(buffer));
        }
        std::thread::scope(|scope| {
            let (sender, pieces) = mpsc::channel::<&[u8]>();
            let hashing = scope.spawn(move || {
                let mut hash = Sha256::new();
                pieces.iter().for_each(|piece| hash.update(piece));
                Sha256Digest(hash.finalize().into())
            });
            let mut at = offset;
            for piece in buffer.chunks_mut(PIECE_BYTES) {
                disk::read_at(&self.file, &self.path, at, piece)?;
                at += piece.len() as u64;
                // It ends only when the sender is dropped.
                let _ = sender.send(piece);
            }
            drop(sender);
            Ok(hashing.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }
}

/// The path of the sidecar of a large file.
pub fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".chunks");
    name.into()
}

fn read_sidecar(path: &Path, size: u64, expected: Sha256Digest) -> Result<ChunkDigests, IntegrityError> {
    let sidecar = sidecar_path(path);
    let bytes = disk::read(&sidecar, ChunkDigests::count_of(size) * 32)?;
    let found = Sha256Digest::of(&bytes);
    match ChunkDigests::from_sidecar(&bytes, size) {
        Some(chunks) if found == expected => Ok(chunks),
        _ => Err(IntegrityError::Digest { path: sidecar, expected, found }),
    }
}

/// The digests of the chunks of the large file at `path`, from its sidecar, which is verified against `entry`.
///
/// # Errors
/// A sidecar that is missing or isn't the listed one, and a file too small to have one.
pub fn chunk_digests(path: &Path, entry: &Entry) -> Result<ChunkDigests, IntegrityError> {
    match entry.chunks_sha256 {
        Some(expected) => read_sidecar(path, entry.size, expected),
        None => Err(IntegrityError::Unlisted { path: sidecar_path(path) }),
    }
}

/// Reads a listed file below `root` to its end and gives each piece, verified, to `take`.
///
/// # Errors
/// Any mismatch, what reading can meet, and what `take` says.
pub fn read_pieces<E: From<IntegrityError>>(
    root: &Path,
    entry: &Entry,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if entry.chunks_sha256.is_none() {
        return take(&read_listed(&root.join(&entry.path), entry, CHUNKED_ABOVE_BYTES)?);
    }
    let file = VerifiedFile::open(root, entry)?;
    let mut chunk = Vec::new();
    for chunk_idx in 0..file.chunk_count() {
        chunk.resize(file.chunk_len(chunk_idx), 0);
        file.read_chunk(chunk_idx, &mut chunk)?;
        take(&chunk)?;
    }
    Ok(())
}

/// Reads a file of at most `bytes_max` bytes whole and verifies it against `entry`.
///
/// # Errors
/// Any mismatch, and what reading can meet.
pub fn read_listed(path: &Path, entry: &Entry, bytes_max: u64) -> Result<Vec<u8>, IntegrityError> {
    let content = disk::read(path, bytes_max)?;
    if content.len() as u64 != entry.size {
        return Err(IntegrityError::Size { path: path.into(), expected: entry.size, found: content.len() as u64 });
    }
    let found = Sha256Digest::of(&content);
    if found != entry.sha256 {
        return Err(IntegrityError::Digest { path: path.into(), expected: entry.sha256, found });
    }
    Ok(content)
}

/// A folder of files, each verified when it is read, or none where nothing vouches for the folder.
#[derive(Clone, Debug)]
pub struct VerifiedFolder {
    root: PathBuf,
    entries: Option<BTreeMap<String, Entry>>,
}

impl VerifiedFolder {
    /// A folder that nothing vouches for, such as a checkpoint that is being imported.
    pub fn unlisted(root: &Path) -> Self {
        Self { root: root.into(), entries: None }
    }

    /// The folder `root` with the list of its files; an entry's path is relative to `root`.
    pub fn listed(root: &Path, entries: impl IntoIterator<Item = Entry>) -> Self {
        let entries = entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        Self { root: root.into(), entries: Some(entries) }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A digest of the whole list: the same for the same files under the same names. `None` where nothing vouches for them.
    pub fn fingerprint(&self) -> Option<Sha256Digest> {
        let entries = self.entries.as_ref()?;
        let mut text = String::new();
        for (name, entry) in entries {
            text.push_str(&format!("{} {} {name}\n", entry.sha256, entry.size));
        }
        Some(Sha256Digest::of(text.as_bytes()))
    }

    /// The names of the files in it, sorted: those listed, or those that are there.
    ///
    /// # Errors
    /// What listing can meet.
    pub fn names(&self) -> Result<Vec<String>, DiskError> {
        match &self.entries {
            Some(entries) => Ok(entries.keys().cloned().collect()),
            None => disk::list(&self.root),
        }
    }

    /// Reads a whole file of at most `bytes_max` bytes; `None` where the folder has none of that name.
    ///
    /// # Errors
    /// Any mismatch, and what reading can meet. A listed file that is missing is an error.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, IntegrityError> {
        let path = self.root.join(name);
        let Some(entries) = &self.entries else {
            return match disk::read(&path, bytes_max) {
                Ok(content) => Ok(Some(content)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error.into()),
            };
        };
        match entries.get(name) {
            Some(entry) => read_listed(&path, entry, bytes_max).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a large file for reading chunk by chunk.
    ///
    /// # Errors
    /// Any mismatch, [`IntegrityError::Unlisted`], and what opening can meet.
    pub fn open(&self, name: &str) -> Result<VerifiedFile, IntegrityError> {
        let Some(entries) = &self.entries else {
            return Ok(VerifiedFile::open_unlisted(&self.root.join(name))?);
        };
        match entries.get(name) {
            Some(entry) => VerifiedFile::open(&self.root, entry),
            None => Err(IntegrityError::Unlisted { path: self.root.join(name) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::StreamHasher;
    use crate::manifest::FileRole;
    use crate::test_folder::TestFolder;

    /// Writes `content` as `name` with its sidecar and describes it.
    fn listed(folder: &Path, name: &str, content: &[u8]) -> Entry {
        let mut hasher = StreamHasher::new();
        hasher.update(content);
        let (size, sha256, chunks) = hasher.finish();
        let sidecar = chunks.to_sidecar();
        disk::write(&folder.join(name), content).expect("the folder can be written");
        disk::write(&sidecar_path(&folder.join(name)), &sidecar).expect("the folder can be written");
        let chunks_sha256 = (size > CHUNKED_ABOVE_BYTES).then(|| Sha256Digest::of(&sidecar));
        Entry { path: name.into(), size, sha256, role: FileRole::Model, chunks_sha256 }
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let folder = TestFolder::new();
        let content: Vec<u8> = (0..CHUNKED_ABOVE_BYTES + 77).map(|i| (i % 253) as u8).collect();
        let entry = listed(folder.path(), "w", &content);
        let read_all = |entry: &Entry| -> Result<Vec<u8>, IntegrityError> {
            let file = VerifiedFolder::listed(folder.path(), [entry.clone()]).open("w")?;
            let mut all = Vec::new();
            for chunk_idx in 0..file.chunk_count() {
                let mut chunk = vec![0; file.chunk_len(chunk_idx)];
                file.read_chunk(chunk_idx, &mut chunk)?;
                all.extend(chunk);
            }
            Ok(all)
        };
        assert_eq!(read_all(&entry).expect("it is whole"), content);

        let mut damaged = content.clone();
        damaged[5_000_000] ^= 1;
        disk::write(&folder.path().join("w"), &damaged).expect("the folder can be written");
        let error = read_all(&entry).expect_err("a bit is flipped");
        assert!(matches!(error, IntegrityError::Chunk { offset: 4_194_304, .. }), "{error}");

        disk::write(&folder.path().join("w"), &content[1..]).expect("the folder can be written");
        assert!(matches!(read_all(&entry), Err(IntegrityError::Size { .. })));
        disk::write(&sidecar_path(&folder.path().join("w")), &[0; 96]).expect("the folder can be written");
        disk::write(&folder.path().join("w"), &content).expect("the folder can be written");
        assert!(matches!(read_all(&entry), Err(IntegrityError::Digest { .. })));
    }

    #[test]
    fn a_short_file_is_hashed_whole() {
        let folder = TestFolder::new();
        let entry = listed(folder.path(), "s", b"short");
        let listed = VerifiedFolder::listed(folder.path(), [entry]);
        assert_eq!(listed.read("s", 9).expect("it is whole"), Some(b"short".to_vec()));
        assert_eq!(listed.read("other", 9).expect("it isn't listed"), None);
        assert!(matches!(listed.open("other"), Err(IntegrityError::Unlisted { .. })));
        disk::write(&folder.path().join("s"), b"shorT").expect("the folder can be written");
        assert!(matches!(listed.read("s", 9), Err(IntegrityError::Digest { .. })));
        assert!(matches!(listed.open("s"), Err(IntegrityError::Digest { .. })));
    }
}
