//! What a repair is made of: another bundle's folder, or an archive of one.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::RepairError;
use crate::bundle::moving::{Members, MoveError, open_archive};
use crate::bundle::{MANIFEST_NAME, SIGNATURE_NAME};
use crate::digest::{CHUNK_BYTES, ChunkDigests};
use crate::disk::{self, Kind};
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::manifest::signature::SIGNATURE_BYTES_MAX;
use crate::verified::sidecar_path;

/// Where whole pieces come from. Nothing of it is trusted.
#[derive(Debug)]
pub struct Donor {
    path: PathBuf,
    is_archive: bool,
}

/// Is handed each wanted file that the donor has.
type Visit<'a> = &'a mut dyn FnMut(&str, &mut dyn Pieces) -> Result<(), RepairError>;

/// A file of the donor, chunk by chunk in rising order.
pub(super) trait Pieces {
    /// Reads chunk `chunk_idx`, which has `buffer.len()` bytes, into `buffer`; `false` where it can't be read.
    fn read(&mut self, chunk_idx: u64, buffer: &mut [u8]) -> Result<bool, RepairError>;
    /// The bytes of the sidecar beside it, if it has one.
    fn sidecar(&mut self, size: u64) -> Option<Vec<u8>>;
    /// Its length in bytes.
    fn size(&self) -> u64;
}

impl Donor {
    /// Takes the folder or archive at `path` for repairing the bundle at `root`.
    ///
    /// # Errors
    /// [`RepairError::NoDonor`], [`RepairError::Itself`], and what looking can meet.
    pub fn new(path: &Path, root: &Path) -> Result<Self, RepairError> {
        let path = disk::canonical(path)?;
        let is_archive = match disk::kind(&path)? {
            Some(Kind::File) => true,
            Some(Kind::Folder) if disk::exists(&path.join(MANIFEST_NAME)) => false,
            _ => return Err(RepairError::NoDonor { path }),
        };
        if disk::canonical(root)? == path {
            return Err(RepairError::Itself);
        }
        Ok(Self { path, is_archive })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its list and the signature over it.
    pub(super) fn list(&self) -> Result<(Vec<u8>, String), RepairError> {
        if !self.is_archive {
            let list = disk::read(&self.path.join(MANIFEST_NAME), MANIFEST_BYTES_MAX)?;
            return Ok((list, disk::read_text(&self.path.join(SIGNATURE_NAME), SIGNATURE_BYTES_MAX)?));
        }
        let mut members = open_archive(&self.path)?;
        let mut content = |name: &str, bytes_max| -> Result<Vec<u8>, RepairError> {
            match members.next()? {
                Some(member) if member.path == name => Ok(members.read_whole(&member, bytes_max)?),
                _ => Err(RepairError::NoDonor { path: self.path.clone() }),
            }
        };
        let list = content(MANIFEST_NAME, MANIFEST_BYTES_MAX)?;
        let signature = content(SIGNATURE_NAME, SIGNATURE_BYTES_MAX)?;
        let signature = String::from_utf8(signature).map_err(|_| RepairError::NoDonor { path: self.path.clone() })?;
        Ok((list, signature))
    }

    /// Hands each of the `wanted` files that it has to `visit`.
    pub(super) fn each(&self, wanted: &BTreeSet<String>, visit: Visit) -> Result<(), RepairError> {
        if self.is_archive {
            let mut members = open_archive(&self.path)?;
            while let Some(member) = members.next()? {
                if wanted.contains(&member.path) {
                    visit(&member.path, &mut Streamed { members: &mut members, size: member.bytes, next: 0 })?;
                }
            }
            return Ok(());
        }
        for name in wanted {
            let path = self.path.join(name);
            if disk::kind(&path)? == Some(Kind::File) {
                let (file, size) = disk::open(&path)?;
                visit(name, &mut Opened { file, path, size })?;
            }
        }
        Ok(())
    }
}

/// A file of a folder.
struct Opened {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Pieces for Opened {
    fn read(&mut self, chunk_idx: u64, buffer: &mut [u8]) -> Result<bool, RepairError> {
        let offset = chunk_idx * u64::from(CHUNK_BYTES);
        Ok(disk::read_at(&self.file, &self.path, offset, buffer).is_ok())
    }

    fn sidecar(&mut self, size: u64) -> Option<Vec<u8>> {
        disk::read(&sidecar_path(&self.path), ChunkDigests::count_of(size) * 32).ok()
    }

    fn size(&self) -> u64 {
        self.size
    }
}

/// A file of an archive, which is read from front to back.
struct Streamed<'a> {
    members: &'a mut Members,
    size: u64,
    next: u64,
}

impl Streamed<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, MoveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.members.read(&mut buffer[filled..])? {
                0 => return Ok(false),
                bytes => filled += bytes,
            }
        }
        Ok(true)
    }
}

impl Pieces for Streamed<'_> {
    fn read(&mut self, chunk_idx: u64, buffer: &mut [u8]) -> Result<bool, RepairError> {
        if chunk_idx < self.next {
            return Ok(false);
        }
        let mut passed = Vec::new();
        while self.next < chunk_idx {
            passed.resize(CHUNK_BYTES as usize, 0);
            if !self.fill(&mut passed)? {
                return Ok(false);
            }
            self.next += 1;
        }
        self.next += 1;
        Ok(self.fill(buffer)?)
    }

    fn sidecar(&mut self, _size: u64) -> Option<Vec<u8>> {
        None
    }

    fn size(&self) -> u64 {
        self.size
    }
}
