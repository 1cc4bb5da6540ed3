//! The full verification: every listed file to its last byte, and all that is damaged, not only the first of it.
//!
//! It goes on where an interrupted one stopped: what is done is kept in one small file in `data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, ChunkDigests, Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, Kind};
use crate::hint::Hint;
use crate::manifest::{ENTRIES_MAX, Entry};
use crate::verified::{IntegrityError, chunk_digests, read_listed};

mod resume;

pub use resume::Resume;

/// The most damage that is listed. Repairing this much and verifying again finds the rest.
pub const DAMAGED_MAX: usize = 100_000;
/// After so many chunks in a row that can't be read, the drive counts as gone; fewer are bad places of it.
const UNREADABLE_MAX: usize = 8;
/// The most names that a folder of the bundle may have.
const NAMES_MAX: usize = 2 * ENTRIES_MAX + 100;

/// What is wrong with a listed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It isn't there.
    Missing,
    /// A link, a folder or something else is there.
    WrongKind,
    /// It has another length; the chunks that this spoils are listed too.
    Size {
        /// Its length on the drive, in bytes.
        found: u64,
    },
    /// It has other content, and no list of chunks says where.
    Content,
    /// One chunk is wrong or can't be read.
    Chunk {
        /// Where it begins, in bytes.
        offset: u64,
    },
    /// The list of its chunks, the sidecar, is missing or damaged. The file itself may be whole.
    Sidecar,
}

/// One thing that isn't as sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which file, below the bundle's root.
    pub path: String,
    /// What is wrong with it.
    pub flaw: Flaw,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = &self.path;
        match self.flaw {
            Flaw::Missing => write!(f, "`{path}` is missing"),
            Flaw::WrongKind => write!(f, "`{path}` is a link or something else that isn't a file"),
            Flaw::Size { found } => write!(f, "`{path}` has the wrong length, {found} bytes"),
            Flaw::Content => write!(f, "`{path}` is damaged"),
            Flaw::Chunk { offset } => write!(f, "`{path}` is damaged in the {CHUNK_BYTES} bytes from byte {offset}"),
            Flaw::Sidecar => write!(f, "`{path}.chunks` is missing or damaged"),
        }
    }
}

/// What a full verification found.
#[derive(Clone, Debug, Default)]
pub struct Examination {
    /// How many files were listed.
    pub files: usize,
    /// How many bytes they have together.
    pub bytes: u64,
    /// Everything that isn't as sealed.
    pub damaged: Vec<Damage>,
    /// Files where only listed ones may be; a bundle with them is refused.
    pub unlisted: Vec<String>,
    /// What lies beside the bundle's files: left alone, and never used.
    pub strangers: Vec<String>,
    /// How many of the bytes an earlier, interrupted verification had read.
    pub continued_bytes: u64,
}

impl Examination {
    /// Whether everything is as sealed.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.unlisted.is_empty()
    }
}

/// Why a verification didn't come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// Whoever takes the progress stopped it.
    #[error("interrupted")]
    Stopped,
    /// The drive went away, or a folder can't be listed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Hint for ExamineError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Stopped => Some("run the same command again: it goes on from there".into()),
            Self::Disk(error) => error.hint(),
        }
    }
}

/// Is told how many bytes more were read, and says whether to go on.
pub type ExamineSink<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Reads every file of `entries` below `root` and compares it with its digests.
///
/// `entries` are those of the manifest and, where they are known, those of added models; without the latter,
/// `added_known` is false and folders in `models` that nothing lists are passed over. With `resume` it goes on where an
/// interrupted verification of the same list stopped, and can be interrupted itself.
///
/// # Errors
/// [`ExamineError`]; damage is in the result.
pub fn examine(
    root: &Path,
    entries: &[Entry],
    added_known: bool,
    mut resume: Option<&mut Resume>,
    sink: ExamineSink,
) -> Result<Examination, ExamineError> {
    let mut found = Examination { files: entries.len(), ..Examination::default() };
    found.bytes = entries.iter().map(|entry| entry.size).sum();
    inventory(root, entries, added_known, &mut found)?;
    let (mut small, mut large): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| entry.chunks_sha256.is_none());
    small.sort_by(|a, b| a.path.cmp(&b.path));
    large.sort_by(|a, b| a.path.cmp(&b.path));
    for entry in small {
        if let Some(flaw) = small_flaw(root, entry)? {
            found.note(entry, flaw);
        }
        step(sink, entry.size)?;
    }
    // Small files are quick to read; only the large ones are worth going on with.
    let start = resume.as_deref_mut().and_then(|resume| resume.start(&mut found.damaged));
    for entry in large {
        let first = match &start {
            Some((path, chunk_idx)) if entry.path == *path => *chunk_idx,
            Some((path, _)) if entry.path < *path => ChunkDigests::count_of(entry.size),
            _ => 0,
        };
        let skipped = (first * u64::from(CHUNK_BYTES)).min(entry.size);
        found.continued_bytes += skipped;
        step(sink, skipped)?;
        if skipped < entry.size {
            large_file(root, entry, first, &mut found, resume.as_deref_mut(), sink)?;
        }
    }
    if let Some(resume) = resume {
        resume.finish();
    }
    Ok(found)
}

impl Examination {
    fn note(&mut self, entry: &Entry, flaw: Flaw) {
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.push(Damage { path: entry.path.clone(), flaw });
        }
    }
}

fn step(sink: ExamineSink, bytes: u64) -> Result<(), ExamineError> {
    match sink(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ExamineError::Stopped),
    }
}

/// What is wrong with a file that is read whole.
fn small_flaw(root: &Path, entry: &Entry) -> Result<Option<Flaw>, ExamineError> {
    let path = root.join(&entry.path);
    if let Some(flaw) = kind_flaw(&path)? {
        return Ok(Some(flaw));
    }
    match read_listed(&path, entry, CHUNKED_ABOVE_BYTES) {
        Ok(_) => Ok(None),
        Err(IntegrityError::Size { found, .. }) => Ok(Some(Flaw::Size { found })),
        Err(IntegrityError::Disk(DiskError::TooLarge { bytes, .. })) => Ok(Some(Flaw::Size { found: bytes })),
        Err(_) => Ok(Some(Flaw::Content)),
    }
}

fn kind_flaw(path: &Path) -> Result<Option<Flaw>, ExamineError> {
    Ok(match disk::kind(path)? {
        Some(Kind::File) => None,
        Some(_) => Some(Flaw::WrongKind),
        None => Some(Flaw::Missing),
    })
}

/// Reads a large file from chunk `first` on.
fn large_file(
    root: &Path,
    entry: &Entry,
    first: u64,
    found: &mut Examination,
    mut resume: Option<&mut Resume>,
    sink: ExamineSink,
) -> Result<(), ExamineError> {
    let path = root.join(&entry.path);
    if let Some(flaw) = kind_flaw(&path)? {
        found.note(entry, flaw);
        return step(sink, entry.size);
    }
    let (file, size) = disk::open(&path)?;
    let Ok(digests) = chunk_digests(&path, entry) else {
        found.note(entry, Flaw::Sidecar);
        let flaw = match size == entry.size {
            true => (whole_digest(&file, &path, size, sink)? != Some(entry.sha256)).then_some(Flaw::Content),
            false => Some(Flaw::Size { found: size }),
        };
        flaw.into_iter().for_each(|flaw| found.note(entry, flaw));
        return Ok(());
    };
    if size != entry.size && first == 0 {
        found.note(entry, Flaw::Size { found: size });
    }
    let mut chunk = Vec::new();
    let mut unreadable = 0;
    for chunk_idx in first..digests.len() {
        let offset = chunk_idx * u64::from(CHUNK_BYTES);
        chunk.resize((entry.size - offset).min(u64::from(CHUNK_BYTES)) as usize, 0);
        let is_there = offset + chunk.len() as u64 <= size;
        if !is_there {
            chunk.clear();
        }
        let read = disk::read_at(&file, &path, offset, &mut chunk);
        match read {
            Ok(()) => unreadable = 0,
            Err(error) => {
                unreadable += 1;
                if unreadable == UNREADABLE_MAX {
                    return Err(error.into());
                }
                chunk.clear();
            }
        }
        if digests.get(chunk_idx) != Some(Sha256Digest::of(&chunk)) {
            found.note(entry, Flaw::Chunk { offset });
        }
        let bytes = (entry.size - offset).min(u64::from(CHUNK_BYTES));
        let goes_on = step(sink, bytes);
        if let Some(resume) = resume.as_deref_mut() {
            resume.reached(&entry.path, chunk_idx + 1, &found.damaged, goes_on.is_err());
        }
        goes_on?;
    }
    Ok(())
}

/// The digest of a whole file, or `None` where it can't be read.
fn whole_digest(file: &File, path: &Path, size: u64, sink: ExamineSink) -> Result<Option<Sha256Digest>, ExamineError> {
    let mut hasher = StreamHasher::new();
    let mut piece = Vec::new();
    let mut offset = 0;
    while offset < size {
        piece.resize((size - offset).min(u64::from(CHUNK_BYTES)) as usize, 0);
        if disk::read_at(file, path, offset, &mut piece).is_err() {
            step(sink, size - offset)?;
            return Ok(None);
        }
        hasher.update(&piece);
        offset += piece.len() as u64;
        step(sink, piece.len() as u64)?;
    }
    Ok(Some(hasher.finish().1))
}

/// Compares the names in the bundle's folders with the list.
fn inventory(root: &Path, entries: &[Entry], added_known: bool, found: &mut Examination) -> Result<(), ExamineError> {
    let mut files = BTreeSet::from([super::MANIFEST_NAME.to_owned(), super::SIGNATURE_NAME.to_owned()]);
    let mut folders: BTreeMap<&str, bool> = BTreeMap::from([("", true), ("models", true), ("bin", false)]);
    for entry in entries {
        files.insert(entry.path.clone());
        if entry.chunks_sha256.is_some() {
            files.insert(format!("{}.chunks", entry.path));
        }
        for (end, _) in entry.path.match_indices('/') {
            folders.entry(&entry.path[..end]).or_insert(false);
        }
    }
    for (folder, is_shared) in &folders {
        let below = root.join(folder);
        if disk::kind(&below)? != Some(Kind::Folder) {
            continue;
        }
        for (name, kind) in disk::list_kinds(&below, NAMES_MAX)? {
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let is_known = files.contains(&path)
                || folders.contains_key(path.as_str()) && kind == Kind::Folder
                || path == "data"
                || name.ends_with(".partial");
            match (is_known, is_shared) {
                (true, _) => {}
                (false, true) if *folder == "models" && !added_known && kind == Kind::Folder => {}
                (false, true) => found.strangers.push(path),
                (false, false) => found.unlisted.push(path),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
