//! Repair: what is damaged is replaced, and nothing else, out of another bundle or an archive of one.
//!
//! The donor needn't be trusted: each piece is compared with *this* bundle's sealed list before it is written. Bad chunks of
//! large files are written in place, synced and read back; small files and programs get a new file under another name first.
//! Cut short, it leaves what can be repaired again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::examine::{Damage, Examination, Flaw};
use super::moving::MoveError;
use super::{BundleError, MANIFEST_NAME, SIGNATURE_NAME};
use crate::digest::{CHUNK_BYTES, ChunkDigests, Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, Kind};
use crate::hint::Hint;
use crate::manifest::signature::{SIGNATURE_BYTES_MAX, Signature};
use crate::manifest::{Entry, MANIFEST_BYTES_MAX};
use crate::verified::{chunk_digests, sidecar_path};

mod donor;
mod mend;

pub use donor::Donor;

use donor::Pieces;
use mend::Mender;

/// Why nothing was repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// What the repair was to be made of isn't a bundle or an archive of one.
    #[error("`{}` is neither a bundle nor what `tiles bundle export` wrote", path.display())]
    NoDonor {
        /// What was given.
        path: PathBuf,
    },
    /// The bundle was to be repaired out of itself.
    #[error("a bundle can't be repaired out of itself")]
    Itself,
    /// Neither the list nor its signature tells what the bundle was.
    #[error("the list of the bundle is damaged, and `{}` isn't of the same sealing", donor.display())]
    ListLost {
        /// What the repair was to be made of.
        donor: PathBuf,
    },
    /// Whoever takes the progress stopped it.
    #[error("interrupted")]
    Stopped,
    /// The archive is damaged.
    #[error(transparent)]
    Archive(MoveError),
    /// The bundle isn't one.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A drive can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<MoveError> for RepairError {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::Disk(error) => Self::Disk(error),
            MoveError::Bundle(error) => Self::Bundle(error),
            MoveError::Stopped => Self::Stopped,
            error => Self::Archive(error),
        }
    }
}

impl Hint for RepairError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDonor { .. } => {
                "give the folder of an undamaged bundle of the same version, or its `.tar.zst`".into()
            }
            Self::Itself => "give another bundle, on another drive or an archive".into(),
            Self::ListLost { .. } => {
                "make a new bundle with `tiles bundle create`, and move your `data` folder there".into()
            }
            Self::Stopped => "run the same command again: it goes on from there".into(),
            Self::Archive(error) => return error.hint(),
            Self::Bundle(error) => return error.hint(),
            Self::Disk(error) => return error.hint(),
        })
    }
}

/// What a repair did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// What is whole again.
    pub mended: Vec<Damage>,
    /// What isn't, and why.
    pub left: Vec<(Damage, String)>,
    /// How many bytes were written.
    pub written_bytes: u64,
}

/// What is to be repaired.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The bundle's folder.
    pub root: &'a Path,
    /// Every listed file, those of added models included where their list could be read.
    pub entries: &'a [Entry],
    /// What was found.
    pub found: &'a Examination,
    /// Whether nothing is to be written.
    pub dry_run: bool,
}

/// Is told how many bytes more were looked at, and says whether to go on.
pub type RepairSink<'a> = super::examine::ExamineSink<'a>;

/// Repairs what `task` found, out of `donor`.
///
/// # Errors
/// [`RepairError`]; what the donor can't mend is in the result.
pub fn repair(task: Task, donor: &Donor, sink: RepairSink) -> Result<Repair, RepairError> {
    let mut repair = Repair::default();
    let entries: BTreeMap<&str, &Entry> = task.entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let mut damage: BTreeMap<&str, Vec<&Damage>> = BTreeMap::new();
    for found in &task.found.damaged {
        damage.entry(&found.path).or_default().push(found);
    }
    let mut wanted: BTreeMap<String, Mender> = BTreeMap::new();
    for (path, damages) in damage {
        let Some(entry) = entries.get(path) else {
            let why = "it is in no list of files".to_owned();
            repair.left.extend(damages.into_iter().map(|damage| (damage.clone(), why.clone())));
            continue;
        };
        let mut mender = Mender::new(task, entry, &damages);
        if mender.own_sidecar(&mut repair)? {
            continue;
        }
        wanted.insert(path.to_owned(), mender);
    }
    // First the lists of chunks that are lost, then what they show to be damaged: an archive is read from front to back.
    let lost: BTreeSet<String> =
        wanted.iter().filter(|(_, mender)| mender.needs_sidecar()).map(|(path, _)| path.clone()).collect();
    if !lost.is_empty() {
        donor.each(&lost, &mut |path, pieces| match wanted.get_mut(path) {
            Some(mender) => mender.fetch_sidecar(pieces, sink),
            None => Ok(()),
        })?;
    }
    let paths: BTreeSet<String> = wanted.keys().cloned().collect();
    let mut seen = BTreeSet::new();
    if !paths.is_empty() {
        donor.each(&paths, &mut |path, pieces| {
            seen.insert(path.to_owned());
            match wanted.get_mut(path) {
                Some(mender) => mender.mend(pieces, &mut repair, sink),
                None => Ok(()),
            }
        })?;
    }
    for (path, mender) in wanted.into_iter().filter(|(path, _)| !seen.contains(path)) {
        let why = format!("`{path}` isn't in `{}`", donor.path().display());
        repair.left.extend(mender.into_damages().into_iter().map(|damage| (damage, why.clone())));
    }
    Ok(repair)
}

/// Restores the bundle's list or its signature where one of them is damaged and the donor is of the same sealing: then the
/// one that is whole fits what the donor has. Says which was written, `None` where both are whole.
///
/// # Errors
/// [`RepairError::ListLost`], and what reading and writing can meet.
pub fn restore_list(root: &Path, donor: &Donor, dry_run: bool) -> Result<Option<&'static str>, RepairError> {
    let (list_path, signature_path) = (root.join(MANIFEST_NAME), root.join(SIGNATURE_NAME));
    let list = disk::read(&list_path, MANIFEST_BYTES_MAX).unwrap_or_default();
    let signature =
        |path: &Path| -> Option<Signature> { Signature::parse(&disk::read_text(path, SIGNATURE_BYTES_MAX).ok()?).ok() };
    let own = signature(&signature_path);
    if own.as_ref().is_some_and(|own| own.verify(&list).is_ok()) {
        return Ok(None);
    }
    let (donor_list, donor_signature) = donor.list()?;
    let (path, name, content) = if own.is_some_and(|own| own.verify(&donor_list).is_ok()) {
        (list_path, MANIFEST_NAME, donor_list.as_slice())
    } else if donor_list == list && Signature::parse(&donor_signature).is_ok_and(|it| it.verify(&list).is_ok()) {
        (signature_path, SIGNATURE_NAME, donor_signature.as_bytes())
    } else {
        return Err(RepairError::ListLost { donor: donor.path().into() });
    };
    if disk::kind(&path)?.is_some_and(|kind| kind != Kind::File) {
        return Err(BundleError::WrongKind { path }.into());
    }
    if !dry_run {
        disk::write(&path, content)?;
    }
    Ok(Some(name))
}

fn chunk_len(entry: &Entry, chunk_idx: u64) -> usize {
    let start = chunk_idx.saturating_mul(u64::from(CHUNK_BYTES));
    entry.size.saturating_sub(start).min(u64::from(CHUNK_BYTES)) as usize
}

#[cfg(test)]
mod tests;
