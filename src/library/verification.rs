//! A model's files against their list, and a list made of a folder's files.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use super::LibraryError;
use super::description::FILES_MAX;
use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, Kind};
use crate::manifest::path::check_below;
use crate::manifest::{Entry, FileRole};
use crate::model_folder::{ModelFolderError, Progress, ProgressSink, Step};
use crate::verified::{IntegrityError, VerifiedFile, read_listed, sidecar_path};

/// The most damage that is listed; more than this is not worth repairing piece by piece.
pub const DAMAGED_MAX: usize = 1000;

/// What verifying a model found.
#[derive(Debug)]
pub struct Report {
    /// The model's name.
    pub name: String,
    /// How many files are listed.
    pub files: usize,
    /// How many bytes they have together.
    pub bytes: u64,
    /// Files and chunks that aren't what the list says.
    pub damaged: Vec<IntegrityError>,
    /// Files that lie in the folder and aren't listed. They are never read.
    pub unlisted: Vec<String>,
}

impl Report {
    /// Whether every listed file is whole.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty()
    }
}

/// Verifies the files in `folder`.
///
/// # Errors
/// A drive that went away, and [`ModelFolderError::Stopped`]; damage is in the report.
pub(super) fn verify(name: &str, folder: &Path, entries: &[Entry], sink: ProgressSink) -> Result<Report, LibraryError> {
    let bytes = entries.iter().map(|entry| entry.size).sum();
    let mut damaged = Vec::new();
    let mut meter = Meter { step: Step::Verifying, done_bytes: 0, total_bytes: bytes, sink };
    for entry in entries {
        verify_file(folder, entry, &mut damaged, &mut meter)?;
    }
    let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let is_listed = |file: &str| listed.contains(file.strip_suffix(".chunks").unwrap_or(file));
    let mut unlisted = disk::list(folder).unwrap_or_default();
    unlisted.retain(|file| !is_listed(file));
    Ok(Report { name: name.into(), files: entries.len(), bytes, damaged, unlisted })
}

fn verify_file(
    folder: &Path,
    entry: &Entry,
    damaged: &mut Vec<IntegrityError>,
    meter: &mut Meter,
) -> Result<(), LibraryError> {
    let mut note = |error: IntegrityError| match error {
        IntegrityError::Disk(error @ DiskError::Gone { .. }) => Err(LibraryError::from(error)),
        error if damaged.len() < DAMAGED_MAX => {
            damaged.push(error);
            Ok(())
        }
        _ => Ok(()),
    };
    if entry.chunks_sha256.is_none() && entry.size <= CHUNKED_ABOVE_BYTES {
        if let Err(error) = read_listed(&folder.join(&entry.path), entry, CHUNKED_ABOVE_BYTES) {
            note(error)?;
        }
        return meter.add(entry.size);
    }
    let file = match VerifiedFile::open(folder, entry) {
        Ok(file) => file,
        Err(error) => {
            note(error)?;
            return meter.add(entry.size);
        }
    };
    let mut hasher = StreamHasher::new();
    let mut chunk = Vec::new();
    let mut is_whole = true;
    for chunk_idx in 0..file.chunk_count() {
        chunk.resize(file.chunk_len(chunk_idx), 0);
        match file.read_chunk(chunk_idx, &mut chunk) {
            Ok(()) => hasher.update(&chunk),
            Err(error) => {
                is_whole = false;
                note(error)?;
            }
        }
        meter.add(chunk.len() as u64)?;
    }
    let found = hasher.finish().1;
    if is_whole && found != entry.sha256 {
        note(IntegrityError::Digest { path: file.path().into(), expected: entry.sha256, found })?;
    }
    Ok(())
}

/// Lists the files of a model's folder, as a manifest is going to have them: paths are relative to the folder.
///
/// Sidecars of large files that are missing or don't fit are written.
///
/// # Errors
/// Names that aren't fit for every drive, anything but files, too many files, and what reading and writing can meet.
pub fn entries_of(folder: &Path, sink: ProgressSink) -> Result<Vec<Entry>, LibraryError> {
    let mut names = Vec::new();
    let mut total_bytes = 0;
    for (name, kind) in disk::list_kinds(folder, 2 * FILES_MAX)? {
        let path = folder.join(&name);
        if kind != Kind::File {
            return Err(LibraryError::source_refused(&path, "a model's folder has only files in it"));
        }
        if name.ends_with(".chunks") {
            continue;
        }
        check_below(&name).map_err(ModelFolderError::from)?;
        total_bytes += disk::size(&path)?.unwrap_or_default();
        names.push(name);
    }
    let mut meter = Meter { step: Step::Examining, done_bytes: 0, total_bytes, sink };
    names.into_iter().map(|name| entry_of(folder, name, &mut meter)).collect()
}

fn entry_of(folder: &Path, name: String, meter: &mut Meter) -> Result<Entry, LibraryError> {
    let path = folder.join(&name);
    let (file, size) = disk::open(&path)?;
    let mut hasher = StreamHasher::new();
    let mut piece = vec![0; size.min(CHUNK_BYTES.into()) as usize];
    let mut at = 0;
    while at < size {
        let bytes = (size - at).min(CHUNK_BYTES.into()) as usize;
        disk::read_at(&file, &path, at, &mut piece[..bytes])?;
        hasher.update(&piece[..bytes]);
        at += bytes as u64;
        meter.add(bytes as u64)?;
    }
    let (size, sha256, chunks) = hasher.finish();
    let mut chunks_sha256 = None;
    if size > CHUNKED_ABOVE_BYTES {
        let sidecar = chunks.to_sidecar();
        let known = disk::read(&sidecar_path(&path), sidecar.len() as u64);
        if known.ok().as_ref() != Some(&sidecar) {
            disk::write(&sidecar_path(&path), &sidecar)?;
        }
        chunks_sha256 = Some(Sha256Digest::of(&sidecar));
    }
    Ok(Entry { path: name, size, sha256, role: FileRole::Model, chunks_sha256 })
}

/// Counts bytes and passes them on.
pub(super) struct Meter<'a> {
    pub(super) step: Step,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) sink: ProgressSink<'a>,
}

impl Meter<'_> {
    pub(super) fn add(&mut self, bytes: u64) -> Result<(), LibraryError> {
        self.done_bytes += bytes;
        let progress = Progress { step: self.step, done_bytes: self.done_bytes, total_bytes: self.total_bytes };
        match (self.sink)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelFolderError::Stopped.into()),
        }
    }
}
