//! Reading back what was written, from the medium and not from what the system remembers: a drive may lie.

use std::path::Path;

use super::{MoveError, MoveSink, Progress, step};
use crate::digest::{Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, UncachedFile};
use crate::manifest::Entry;
use crate::verified::sidecar_path;

/// How sure it is that reading back came from the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The system was told to read past its memory, and did.
    Direct,
    /// The system was asked to forget what it remembers, and may not have.
    Asked,
}

impl Medium {
    pub(super) fn and(self, file: &UncachedFile) -> Self {
        if file.is_direct() { self } else { Self::Asked }
    }
}

/// The digest of what the medium has at `path`, and whether it is sure that the medium answered.
pub(super) fn digest(path: &Path, medium: &mut Medium, sink: MoveSink) -> Result<(u64, Sha256Digest), MoveError> {
    let mut file = UncachedFile::open(path)?;
    let mut hasher = StreamHasher::new();
    file.read_all(|piece| {
        hasher.update(piece);
        step(sink, Progress::ReadBack(piece.len() as u64))
    })?;
    *medium = medium.and(&file);
    let (size, sha256, _) = hasher.finish();
    Ok((size, sha256))
}

/// Compares what the medium has below `root` with the list.
pub(in crate::bundle) fn listed(root: &Path, entries: &[Entry], sink: MoveSink) -> Result<Medium, MoveError> {
    disk::forget_blocks(root);
    let mut medium = Medium::Direct;
    for entry in entries {
        let path = root.join(&entry.path);
        expect(&path, entry.size, entry.sha256, &mut medium, sink)?;
        if let Some(sha256) = entry.chunks_sha256 {
            let sidecar = sidecar_path(&path);
            expect_digest(&sidecar, sha256, &mut medium)?;
        }
    }
    Ok(medium)
}

/// Compares what the medium has at `path` with exactly these bytes.
pub(in crate::bundle) fn bytes(path: &Path, expected: &[u8], medium: &mut Medium) -> Result<(), MoveError> {
    expect_digest(path, Sha256Digest::of(expected), medium)
}

fn expect_digest(path: &Path, sha256: Sha256Digest, medium: &mut Medium) -> Result<(), MoveError> {
    match digest(path, medium, &mut |_| std::ops::ControlFlow::Continue(())) {
        Ok((_, found)) if found == sha256 => Ok(()),
        result => Err(not_kept(path, result.err())),
    }
}

fn expect(path: &Path, size: u64, sha256: Sha256Digest, medium: &mut Medium, sink: MoveSink) -> Result<(), MoveError> {
    match digest(path, medium, sink) {
        Ok(found) if found == (size, sha256) => Ok(()),
        result => Err(not_kept(path, result.err())),
    }
}

/// Gives the folder `begun` the name `to`, and makes sure that what is in it has come along: there are drivers of FAT in
/// user space that lose it.
pub(super) fn rename_folder(begun: &Path, to: &Path) -> Result<(), MoveError> {
    let names = disk::list(begun)?;
    disk::rename(begun, to)?;
    if let Some(parent) = to.parent() {
        disk::sync_folder(parent)?;
    }
    match disk::list(to) {
        Ok(found) if found == names => Ok(()),
        Ok(_) => Err(MoveError::NotKept { path: to.into() }),
        Err(error) => Err(not_kept(to, Some(error.into()))),
    }
}

/// A file that is gone or too short was not kept either; a drive that went away is another matter.
fn not_kept(path: &Path, error: Option<MoveError>) -> MoveError {
    match error {
        Some(error @ (MoveError::Stopped | MoveError::Disk(DiskError::Gone { .. }))) => error,
        _ => MoveError::NotKept { path: path.into() },
    }
}
