//! Building a bundle: from a recipe and its pieces to a sealed folder on a drive, read back before it is called ready.
//!
//! Planned first, so that what won't work is known before a byte is written; then executed. A bundle that is there
//! already gets new programs and keeps its `data`, which is never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

use super::moving::{self, MoveError, read_back};
use super::{Bundle, BundleError, Found, Holder, MANIFEST_NAME, SIGNATURE_NAME, Trust, Verified, verify};
use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, Kind, PartialFile};
use crate::hint::Hint;
use crate::manifest::recipe::Recipe;
use crate::manifest::signature::{SealPublicKey, Signature};
use crate::manifest::{Entry, FileRole, MANIFEST_BYTES_MAX, MANIFEST_FORMAT, Manifest, ManifestError};
use crate::verified::{IntegrityError, read_pieces, sidecar_path};

/// What is kept free beside the files of a bundle, in bytes: 4 MiB for lists, sidecars, folders and the first messages.
const SPACE_RESERVE_BYTES: u64 = 4 * 1024 * 1024;

mod gather;

use gather::Before;

/// The file that says whose beginning a folder holds, until the list is in it.
const BEGUN_NAME: &str = "build.partial";
/// What it has: nobody else writes that.
const BEGUN: &[u8] = b"Tiles is building a bundle here: the same command again goes on with it.\n";

/// The empty file that makes Spotlight leave a folder alone.
pub(super) const NEVER_INDEX_NAME: &str = ".metadata_never_index";

/// Why a bundle can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe is wrong.
    #[error("`{}` can't be used", path.display())]
    Recipe {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A bundle would have no program at all.
    #[error("no program was given for any of the recipe's hosts")]
    NoProgram,
    /// A piece was given that the recipe doesn't have.
    #[error("the recipe has no piece `{path}`")]
    UnknownPiece {
        /// Where it would go.
        path: String,
    },
    /// A file of a piece can't be in a bundle.
    #[error("`{}` can't be in a bundle: {what}", path.display())]
    Unfit {
        /// Which file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// The folder holds something else.
    #[error("`{}` isn't empty, and isn't a bundle", folder.display())]
    Occupied {
        /// Which folder.
        folder: PathBuf,
    },
    /// The bundle that is there was sealed by somebody else.
    #[error("the bundle in `{}` is sealed by {short_key}, not by the key given", folder.display())]
    OtherSeal {
        /// Which folder.
        folder: PathBuf,
        /// The short form of the key that sealed it.
        short_key: String,
    },
    /// The bundle doesn't fit.
    #[error("`{}` has {free_bytes} bytes free, and the bundle needs {needed_bytes}", folder.display())]
    NoSpace {
        /// Which folder.
        folder: PathBuf,
        /// What would be written, in bytes.
        needed_bytes: u64,
        /// What is free, in bytes.
        free_bytes: u64,
    },
    /// The bundle that is there, or the one that was built, isn't right.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// What was written isn't what the medium has.
    #[error(transparent)]
    ReadBack(#[from] MoveError),
    /// The drive can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Hint for BuildError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Recipe { source, .. } => return source.hint(),
            Self::NoProgram => "build the program first".into(),
            Self::UnknownPiece { .. } => "add it to the recipe".into(),
            Self::Unfit { .. } => "rename, split or remove that file".into(),
            Self::Occupied { .. } => "choose an empty folder or a bundle".into(),
            Self::OtherSeal { .. } => {
                "give the key that sealed it, or build into an empty folder and move its `data` there".into()
            }
            Self::NoSpace { .. } => "free some space on the drive, or choose a larger one".into(),
            Self::Bundle(error) => return error.hint(),
            Self::ReadBack(error) => return error.hint(),
            Self::Disk(error) => return error.hint(),
        })
    }
}

/// What a recipe can't hold: the things that were made from its sources.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    /// The version of the programs.
    pub version: String,
    /// The compiled program for each host folder (see [`crate::host::HOST_FOLDERS`]) that was compiled for. What it loads
    /// and the recipe names lies beside it, under the name that it has in the bundle.
    pub programs: BTreeMap<String, PathBuf>,
    /// The imported folder of each model, by name. It may already be where it belongs, `models/NAME` of the bundle.
    pub models: BTreeMap<String, PathBuf>,
}

/// One file to put into the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The file as it is now.
    pub from: PathBuf,
    /// Where it goes, below the bundle's root.
    pub path: String,
    /// What it is there for.
    pub role: FileRole,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether it is there already and only needs to be described.
    pub is_in_place: bool,
}

/// What is to be done to build a bundle.
#[derive(Clone, Debug)]
pub struct BuildPlan {
    /// The folder of the bundle.
    pub folder: PathBuf,
    /// The files to put into it.
    pub steps: Vec<Step>,
    /// The files of the bundle that is there which stay, sealed by the same key.
    pub kept: Vec<Entry>,
    /// The files of the bundle that is there which go.
    pub removed: Vec<String>,
    /// The recipe's pieces that were neither given nor there: the bundle is built without them.
    pub left_out: Vec<String>,
    /// The generation that the bundle will have.
    pub generation: u64,
    product: String,
    version: String,
    is_update: bool,
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes more were written, or hashed where they are.
    Written(u64),
    /// So many bytes more were read back.
    ReadBack(u64),
}

impl BuildPlan {
    /// Plans a bundle in `folder` from the recipe at `recipe_path`, whose `tree:` files lie beside it.
    ///
    /// # Errors
    /// Everything that can be known before the first byte is written; see [`BuildError`].
    pub fn new(recipe_path: &Path, folder: &Path, pieces: &Pieces, seal: SealPublicKey) -> Result<Self, BuildError> {
        let text = disk::read_text(recipe_path, MANIFEST_BYTES_MAX)?;
        let recipe = Recipe::parse(&text).map_err(|source| BuildError::Recipe { path: recipe_path.into(), source })?;
        gather::check_pieces(&recipe, pieces)?;
        let before = gather::before(folder, seal)?;
        if before.is_none() {
            gather::check_empty(folder, pieces)?;
        }
        let tree = recipe_path.parent().unwrap_or(Path::new(""));
        let mut steps: BTreeMap<String, Step> = BTreeMap::new();
        let mut left_out = Vec::new();
        for piece in &recipe.pieces {
            match gather::source_of(piece, pieces, tree) {
                Some(from) if piece.is_folder => gather::add_folder(&mut steps, &from, &piece.path, folder, 0)?,
                Some(from) => gather::add_file(&mut steps, from, piece.path.clone(), piece.role, folder)?,
                None => left_out.push(piece.path.clone()),
            }
        }
        // A model's own description wins over what its import wrote, whichever the recipe names first.
        for piece in recipe.pieces.iter().filter(|piece| !piece.is_folder) {
            if let Some(from) = gather::source_of(piece, pieces, tree) {
                gather::add_file(&mut steps, from, piece.path.clone(), piece.role, folder)?;
            }
        }
        let mut plan = Self {
            folder: folder.into(),
            steps: steps.into_values().collect(),
            kept: Vec::new(),
            removed: Vec::new(),
            left_out,
            generation: 1,
            product: recipe.product,
            version: pieces.version.clone(),
            is_update: before.is_some(),
        };
        if let Some(before) = before {
            plan.update(before)?;
        }
        if !plan.files().any(|(_, role)| role == FileRole::Program) {
            return Err(BuildError::NoProgram);
        }
        plan.check_list()?;
        plan.check_ways()?;
        plan.check_space()?;
        Ok(plan)
    }

    /// Decides what of the bundle that is there stays.
    fn update(&mut self, before: Before) -> Result<(), BuildError> {
        let generation = before.manifest.generation.checked_add(1).filter(|next| i64::try_from(*next).is_ok());
        self.generation = generation.ok_or_else(|| BuildError::Unfit {
            path: self.folder.join(MANIFEST_NAME),
            what: "its generation can't grow any more".into(),
        })?;
        let replaced: BTreeSet<String> = self.steps.iter().map(|step| step.path.clone()).collect();
        for entry in before.manifest.files {
            let belongs = |piece: &String| entry.path == *piece || entry.path.starts_with(&format!("{piece}/"));
            // What the old program loaded isn't for the new one.
            let is_outdated =
                gather::host_of(&entry.path).is_some_and(|(host, _)| replaced.contains(&format!("bin/{host}/tiles")));
            if replaced.contains(&entry.path) {
                continue;
            }
            if before.is_ours && !is_outdated && self.left_out.iter().any(belongs) {
                self.kept.push(entry);
            } else {
                self.removed.push(entry.path);
            }
        }
        let kept = &self.kept;
        let is_kept = |piece: &String| {
            kept.iter().any(|entry| entry.path == *piece || entry.path.starts_with(&format!("{piece}/")))
        };
        self.left_out.retain(|piece| !is_kept(piece));
        Ok(())
    }

    fn files(&self) -> impl Iterator<Item = (&str, FileRole)> {
        let steps = self.steps.iter().map(|step| (step.path.as_str(), step.role));
        steps.chain(self.kept.iter().map(|entry| (entry.path.as_str(), entry.role)))
    }

    /// Checks that the list that will be sealed can be read again, before anything is written.
    fn check_list(&self) -> Result<(), BuildError> {
        let described = self.steps.iter().map(|step| Entry {
            path: step.path.clone(),
            size: step.bytes,
            sha256: Sha256Digest([0; 32]),
            role: step.role,
            chunks_sha256: (step.bytes > CHUNKED_ABOVE_BYTES).then_some(Sha256Digest([0; 32])),
        });
        let list = self.manifest(described.collect());
        let checked = Manifest::parse(&list.to_toml());
        checked.map(drop).map_err(|source| BuildError::Recipe { path: self.folder.join(MANIFEST_NAME), source })
    }

    fn check_ways(&self) -> Result<(), BuildError> {
        let steps = self.steps.iter().map(|step| step.path.as_str());
        let paths = steps.chain(self.removed.iter().map(String::as_str)).chain(["data/lock"]);
        Ok(verify::check_ways(&self.folder, paths, &[])?)
    }

    fn check_space(&self) -> Result<(), BuildError> {
        let folder = self.folder.as_path();
        let existing = folder.ancestors().find(|folder| disk::is_folder(folder)).unwrap_or(Path::new("."));
        let free_bytes = disk::free_bytes(existing)?;
        let needed_bytes = self.bytes_to_write().saturating_add(SPACE_RESERVE_BYTES);
        if needed_bytes > free_bytes {
            return Err(BuildError::NoSpace { folder: folder.into(), needed_bytes, free_bytes });
        }
        Ok(())
    }

    /// How many bytes of files will be written.
    pub fn bytes_to_write(&self) -> u64 {
        self.steps.iter().filter(|step| !step.is_in_place).map(|step| step.bytes).sum()
    }

    fn manifest(&self, described: Vec<Entry>) -> Manifest {
        let mut files = [described, self.kept.clone()].concat();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Manifest {
            format: MANIFEST_FORMAT,
            product: self.product.clone(),
            version: self.version.clone(),
            generation: self.generation,
            files,
        }
    }

    /// Builds the bundle, seals it with `key`, and reads it back from the medium.
    ///
    /// A bundle that is there already is held by `holder` meanwhile.
    ///
    /// # Errors
    /// [`BundleError::InUse`], and what writing and reading back can meet. What was built so far then stays, unsealed:
    /// building again goes on with it.
    pub fn execute(
        &self,
        key: &SigningKey,
        holder: Holder,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Bundle<Verified>, BuildError> {
        let lock = match self.is_update {
            true => Some(Bundle::<Found>::find(Some(&self.folder), &self.folder)?.lock(holder)?),
            false => None,
        };
        let begun = self.folder.join(BEGUN_NAME);
        if !self.is_update {
            disk::create_folder(&self.folder)?;
            disk::write(&begun, BEGUN)?;
        }
        disk::create_folder(&self.folder.join("data"))?;
        let mut described = Vec::new();
        for step in &self.steps {
            described.push(self.place(step, progress)?);
        }
        for path in &self.removed {
            self.remove(path)?;
        }
        disk::write(&self.folder.join(NEVER_INDEX_NAME), b"")?;
        let manifest = self.manifest(described.clone());
        let text = manifest.to_toml();
        let mut read = |step| {
            if let moving::Progress::ReadBack(bytes) = step {
                progress(Progress::ReadBack(bytes));
            }
            ControlFlow::Continue(())
        };
        // Nothing is sealed that the medium doesn't have, and nothing that was damaged before.
        let mut medium = read_back::listed(&self.folder, &described, &mut read)?;
        for entry in &self.kept {
            read_pieces(&self.folder, entry, |piece| {
                progress(Progress::ReadBack(piece.len() as u64));
                Ok::<(), IntegrityError>(())
            })
            .map_err(BundleError::from)?;
        }
        let signature = Signature::sign(key, text.as_bytes()).to_toml();
        for (name, content) in [(SIGNATURE_NAME, &signature), (MANIFEST_NAME, &text)] {
            disk::write(&self.folder.join(name), content.as_bytes())?;
        }
        disk::forget_blocks(&self.folder);
        for (name, content) in [(SIGNATURE_NAME, &signature), (MANIFEST_NAME, &text)] {
            read_back::bytes(&self.folder.join(name), content.as_bytes(), &mut medium)?;
        }
        disk::remove(&begun)?;
        drop(lock);
        let trust = Trust::Release(SealPublicKey(key.verifying_key().to_bytes()));
        Ok(Bundle::<Found>::find(Some(&self.folder), &self.folder)?.verify(trust)?)
    }

    /// Removes a file that is no longer part of the bundle, and the folders that it leaves with nothing but litter.
    fn remove(&self, path: &str) -> Result<(), BuildError> {
        let file = self.folder.join(path);
        disk::remove(&sidecar_path(&file))?;
        disk::remove(&file)?;
        for (end, _) in path.rmatch_indices('/') {
            let folder = self.folder.join(&path[..end]);
            match disk::kind(&folder)? {
                Some(Kind::Folder) if disk::list(&folder)?.is_empty() => disk::remove_folder(&folder)?,
                _ => break,
            }
        }
        Ok(())
    }

    /// Puts one file where it goes, with its sidecar, and describes it.
    fn place(&self, step: &Step, progress: &mut dyn FnMut(Progress)) -> Result<Entry, BuildError> {
        let target = self.folder.join(&step.path);
        if let Some(folder) = target.parent() {
            disk::create_folder(folder)?;
        }
        let (file, bytes) = disk::open(&step.from)?;
        let mut copy = if step.is_in_place { None } else { Some(PartialFile::create(&target)?) };
        let mut hasher = StreamHasher::new();
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        let mut offset = 0;
        while offset < bytes {
            let length = (bytes - offset).min(u64::from(CHUNK_BYTES)) as usize;
            disk::read_at(&file, &step.from, offset, &mut buffer[..length])?;
            hasher.update(&buffer[..length]);
            if let Some(copy) = &mut copy {
                copy.write(&buffer[..length])?;
            }
            offset += length as u64;
            progress(Progress::Written(length as u64));
        }
        if let Some(copy) = copy {
            copy.finish()?;
        }
        if matches!(step.role, FileRole::Program | FileRole::Launcher) {
            disk::make_executable(&target)?;
        }
        let (size, sha256, chunks) = hasher.finish();
        let chunks_sha256 = if size > CHUNKED_ABOVE_BYTES {
            let sidecar = chunks.to_sidecar();
            disk::write(&sidecar_path(&target), &sidecar)?;
            Some(Sha256Digest::of(&sidecar))
        } else {
            disk::remove(&sidecar_path(&target))?;
            None
        };
        Ok(Entry { path: step.path.clone(), size, sha256, role: step.role, chunks_sha256 })
    }
}

#[cfg(test)]
mod tests;
