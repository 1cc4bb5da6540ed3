//! Mending one file: which of its chunks are bad, and how good ones take their place.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{
    ChunkDigests, Damage, Entry, Flaw, Pieces, Repair, RepairError, RepairSink, Sha256Digest, StreamHasher, Task,
    chunk_digests, chunk_len, disk, sidecar_path,
};
use crate::digest::CHUNK_BYTES;
use crate::disk::{Kind, PartialFile};
use crate::manifest::FileRole;

/// One damaged file.
pub(super) struct Mender<'a> {
    task: Task<'a>,
    entry: &'a Entry,
    path: PathBuf,
    damages: Vec<Damage>,
    /// The digests of its chunks, where it has chunks and they are known.
    digests: Option<ChunkDigests>,
    /// Whether `digests` came from the donor, so that which chunks are bad isn't known yet.
    is_unexamined: bool,
}

impl<'a> Mender<'a> {
    pub(super) fn new(task: Task<'a>, entry: &'a Entry, damages: &[&Damage]) -> Self {
        let path = task.root.join(&entry.path);
        let digests = chunk_digests(&path, entry).ok();
        let damages = damages.iter().map(|damage| (*damage).clone()).collect();
        Self { task, entry, path, damages, digests, is_unexamined: false }
    }

    pub(super) fn into_damages(self) -> Vec<Damage> {
        self.damages
    }

    /// Whether the list of its chunks has to come from the donor.
    pub(super) fn needs_sidecar(&self) -> bool {
        self.entry.chunks_sha256.is_some() && self.digests.is_none()
    }

    fn has(&self, wanted: &Flaw) -> bool {
        self.damages.iter().any(|damage| damage.flaw == *wanted)
    }

    /// Makes the sidecar of a file that is whole anew. Says whether that was all.
    pub(super) fn own_sidecar(&mut self, repair: &mut Repair) -> Result<bool, RepairError> {
        if !self.damages.iter().all(|damage| damage.flaw == Flaw::Sidecar) {
            return Ok(false);
        }
        let (file, size) = disk::open(&self.path)?;
        let mut hasher = StreamHasher::new();
        let mut chunk = Vec::new();
        for chunk_idx in 0..ChunkDigests::count_of(size) {
            chunk.resize(chunk_len(self.entry, chunk_idx), 0);
            disk::read_at(&file, &self.path, chunk_idx * u64::from(CHUNK_BYTES), &mut chunk)?;
            hasher.update(&chunk);
        }
        let sidecar = hasher.finish().2.to_sidecar();
        if Some(Sha256Digest::of(&sidecar)) != self.entry.chunks_sha256 {
            return Ok(false);
        }
        self.write_sidecar(&sidecar, repair)?;
        repair.mended.append(&mut self.damages);
        Ok(true)
    }

    fn write_sidecar(&self, sidecar: &[u8], repair: &mut Repair) -> Result<(), RepairError> {
        repair.written_bytes += sidecar.len() as u64;
        if self.task.dry_run {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            disk::create_folder(folder)?;
        }
        Ok(disk::write(&sidecar_path(&self.path), sidecar)?)
    }

    /// Takes the list of chunks from the donor: its sidecar, or what its file gives. Only the sealed list decides.
    pub(super) fn fetch_sidecar(&mut self, pieces: &mut dyn Pieces, sink: RepairSink) -> Result<(), RepairError> {
        let is_listed = |sidecar: &[u8]| Some(Sha256Digest::of(sidecar)) == self.entry.chunks_sha256;
        if let Some(sidecar) = pieces.sidecar(self.entry.size).filter(|sidecar| is_listed(sidecar)) {
            self.digests = ChunkDigests::from_sidecar(&sidecar, self.entry.size);
        } else if pieces.size() == self.entry.size {
            let mut hasher = StreamHasher::new();
            let mut chunk = Vec::new();
            for chunk_idx in 0..ChunkDigests::count_of(self.entry.size) {
                chunk.resize(chunk_len(self.entry, chunk_idx), 0);
                if !pieces.read(chunk_idx, &mut chunk)? {
                    return Ok(());
                }
                hasher.update(&chunk);
                step(sink, chunk.len() as u64)?;
            }
            let digests = hasher.finish().2;
            self.digests = is_listed(&digests.to_sidecar()).then_some(digests);
        }
        self.is_unexamined = true;
        Ok(())
    }

    /// Mends the file with what the donor has of it.
    pub(super) fn mend(
        &mut self,
        pieces: &mut dyn Pieces,
        repair: &mut Repair,
        sink: RepairSink,
    ) -> Result<(), RepairError> {
        let failed = if disk::kind(&self.path)? == Some(Kind::Folder) {
            Some("a folder is in its place: remove it, and repair again".to_owned())
        } else if self.entry.chunks_sha256.is_none() {
            self.mend_small(pieces, repair, sink)?
        } else if self.digests.is_some() {
            self.mend_large(pieces, repair, sink)?
        } else {
            Some("its list of chunks is lost, and the other bundle has another file of this name".to_owned())
        };
        let damages = std::mem::take(&mut self.damages);
        match failed {
            None => repair.mended.extend(damages),
            Some(why) => repair.left.extend(damages.into_iter().map(|damage| (damage, why.clone()))),
        }
        Ok(())
    }

    fn mend_small(
        &self,
        pieces: &mut dyn Pieces,
        repair: &mut Repair,
        sink: RepairSink,
    ) -> Result<Option<String>, RepairError> {
        let mut content = vec![0; self.entry.size as usize];
        let mut is_read = pieces.size() == self.entry.size;
        for (chunk_idx, chunk) in content.chunks_mut(CHUNK_BYTES as usize).enumerate() {
            is_read = is_read && pieces.read(chunk_idx as u64, chunk)?;
        }
        step(sink, self.entry.size)?;
        if !is_read || Sha256Digest::of(&content) != self.entry.sha256 {
            return Ok(Some(self.other()));
        }
        repair.written_bytes += self.entry.size;
        if !self.task.dry_run {
            if let Some(folder) = self.path.parent() {
                disk::create_folder(folder)?;
            }
            disk::write(&self.path, &content)?;
            self.make_executable()?;
        }
        Ok(None)
    }

    fn other(&self) -> String {
        format!("the other bundle's `{}` isn't this bundle's either", self.entry.path)
    }

    fn make_executable(&self) -> Result<(), RepairError> {
        match self.entry.role {
            FileRole::Program | FileRole::Launcher => Ok(disk::make_executable(&self.path)?),
            FileRole::Model | FileRole::Doc => Ok(()),
        }
    }

    fn mend_large(
        &mut self,
        pieces: &mut dyn Pieces,
        repair: &mut Repair,
        sink: RepairSink,
    ) -> Result<Option<String>, RepairError> {
        let Some(digests) = self.digests.clone() else { return Ok(Some(self.other())) };
        if self.has(&Flaw::Sidecar) || self.has(&Flaw::Missing) {
            self.write_sidecar(&digests.to_sidecar(), repair)?;
        }
        let is_there = disk::kind(&self.path)? == Some(Kind::File);
        // A program that runs can't be written, and what isn't there or is a link isn't mended in place.
        let is_renewed = !is_there || self.entry.role == FileRole::Program;
        let bad = match is_there && !self.has(&Flaw::Content) && !self.is_unexamined {
            true => self.listed_bad(),
            false => self.find_bad(&digests, is_there, sink)?,
        };
        if is_renewed {
            return self.renew(&digests, &bad, pieces, repair, sink);
        }
        let file = match self.task.dry_run {
            true => None,
            false => Some(disk::open_in_place(&self.path)?),
        };
        if let Some(file) = &file {
            disk::set_length(file, &self.path, self.entry.size)?;
        }
        let mut chunk = Vec::new();
        for &chunk_idx in &bad {
            chunk.resize(chunk_len(self.entry, chunk_idx), 0);
            let is_good =
                pieces.read(chunk_idx, &mut chunk)? && digests.get(chunk_idx) == Some(Sha256Digest::of(&chunk));
            step(sink, chunk.len() as u64)?;
            if !is_good {
                return Ok(Some(self.other()));
            }
            if let Some(file) = &file {
                disk::write_at(file, &self.path, chunk_idx * u64::from(CHUNK_BYTES), &chunk)?;
            }
            repair.written_bytes += chunk.len() as u64;
        }
        let Some(file) = file else { return Ok(None) };
        disk::sync(&file, &self.path)?;
        drop(file);
        self.read_back(&digests, &bad)
    }

    /// The chunks that the examination found to be bad.
    fn listed_bad(&self) -> Vec<u64> {
        let mut bad: Vec<u64> = self
            .damages
            .iter()
            .filter_map(|damage| match damage.flaw {
                Flaw::Chunk { offset } => Some(offset / u64::from(CHUNK_BYTES)),
                _ => None,
            })
            .collect();
        bad.sort_unstable();
        bad
    }

    /// Compares each chunk of the file with the list that was restored.
    fn find_bad(&self, digests: &ChunkDigests, is_there: bool, sink: RepairSink) -> Result<Vec<u64>, RepairError> {
        if !is_there {
            return Ok((0..digests.len()).collect());
        }
        let (file, _) = disk::open(&self.path)?;
        let mut bad = Vec::new();
        let mut chunk = Vec::new();
        for chunk_idx in 0..digests.len() {
            chunk.resize(chunk_len(self.entry, chunk_idx), 0);
            let read = disk::read_at(&file, &self.path, chunk_idx * u64::from(CHUNK_BYTES), &mut chunk);
            if read.is_err() || digests.get(chunk_idx) != Some(Sha256Digest::of(&chunk)) {
                bad.push(chunk_idx);
            }
            step(sink, chunk.len() as u64)?;
        }
        Ok(bad)
    }

    /// Makes the file anew under another name, of its own good chunks and the donor's.
    fn renew(
        &self,
        digests: &ChunkDigests,
        bad: &[u64],
        pieces: &mut dyn Pieces,
        repair: &mut Repair,
        sink: RepairSink,
    ) -> Result<Option<String>, RepairError> {
        let own = match disk::kind(&self.path)? {
            Some(Kind::File) => Some(disk::open(&self.path)?.0),
            _ => None,
        };
        let mut copy = match self.task.dry_run {
            true => None,
            false => {
                if let Some(folder) = self.path.parent() {
                    disk::create_folder(folder)?;
                }
                Some(PartialFile::create(&self.path)?)
            }
        };
        let mut chunk = Vec::new();
        for chunk_idx in 0..digests.len() {
            chunk.resize(chunk_len(self.entry, chunk_idx), 0);
            let offset = chunk_idx * u64::from(CHUNK_BYTES);
            let is_read = match (&own, bad.binary_search(&chunk_idx)) {
                (Some(own), Err(_)) => disk::read_at(own, &self.path, offset, &mut chunk).is_ok(),
                _ => pieces.read(chunk_idx, &mut chunk)?,
            };
            step(sink, chunk.len() as u64)?;
            if !is_read || digests.get(chunk_idx) != Some(Sha256Digest::of(&chunk)) {
                return Ok(Some(self.other()));
            }
            if let Some(copy) = &mut copy {
                copy.write(&chunk)?;
            }
            repair.written_bytes += chunk.len() as u64;
        }
        let Some(copy) = copy else { return Ok(None) };
        copy.finish()?;
        self.make_executable()?;
        self.read_back(digests, bad)
    }

    /// Reads the chunks that were written back from the medium.
    fn read_back(&self, digests: &ChunkDigests, written: &[u64]) -> Result<Option<String>, RepairError> {
        disk::forget_cached(&self.path)?;
        disk::forget_blocks(self.task.root);
        let (file, size) = disk::open(&self.path)?;
        let mut chunk = Vec::new();
        for &chunk_idx in written {
            chunk.resize(chunk_len(self.entry, chunk_idx), 0);
            disk::read_at(&file, &self.path, chunk_idx * u64::from(CHUNK_BYTES), &mut chunk)?;
            if size != self.entry.size || digests.get(chunk_idx) != Some(Sha256Digest::of(&chunk)) {
                return Ok(Some("the drive doesn't keep what is written to it: it may be broken".into()));
            }
        }
        Ok(None)
    }
}

fn step(sink: RepairSink, bytes: u64) -> Result<(), RepairError> {
    match sink(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(RepairError::Stopped),
    }
}
