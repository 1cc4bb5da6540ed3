//! A bundle made of another one: the same programs, models and texts; with a person's data or without.

use std::path::Path;

use super::landing::{self, LandingFile};
use super::read_back::{self, Medium};
use super::{DataError, Landing, MoveError, MovePlan, MoveSink, Progress, Rules, step};
use crate::bundle::{Bundle, Verified, database};
use crate::digest::Sha256Digest;
use crate::disk::{self, DiskError, Kind, PartialFile};
use crate::manifest::Entry;
use crate::verified::read_pieces;

/// Small files of `data` that a copy carries along as they are. The database has a backup of its own; caches, logs and the
/// lock belong to the place.
const CARRIED: [&str; 7] = ["key.a", "key.b", "models.toml", "models.b.toml", "run.a", "run.b", "settings.toml"];
/// The largest of them, in bytes: the list of added models.
const CARRIED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What isn't carried along and needn't be told.
const LEFT: [&str; 8] = ["lock", "keychain", "cache", "logs", "backup", "verify.state", database::FILE, database::WAL];
/// The folder of the memory mode's vault.
const MEMORY: &str = "memory";
/// The most files in the vault of the memory mode.
const MEMORY_FILES_MAX: usize = 100_000;
/// How deep the folders of the vault may be.
const MEMORY_DEPTH_MAX: usize = 32;
/// How many bytes are copied at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// Whether a copy brings something of this name into `data`.
pub(super) fn is_carried(name: &str) -> bool {
    CARRIED.contains(&name) || [MEMORY, database::FOLDER].contains(&name)
}

/// What is personal and comes along.
pub struct Personal<'a> {
    /// Writes a consistent copy of the open database to a path.
    pub database: &'a mut dyn FnMut(&Path) -> Result<(), DataError>,
}

impl Bundle<Verified> {
    /// Plans another bundle in `folder`, of this one and the files `added` by its owner.
    ///
    /// # Errors
    /// Everything that can be known before the first byte is written; see [`MoveError`].
    pub fn plan_move(
        &self,
        folder: &Path,
        added: &[Entry],
        data_bytes: u64,
        rules: Rules,
    ) -> Result<MovePlan, MoveError> {
        MovePlan::new(folder, &self.state.sealed, added, data_bytes, Some(&self.root), rules)
    }

    /// The length of the data that a copy carries along, in bytes, and what of `data` stays behind without being asked for.
    ///
    /// # Errors
    /// What listing can meet.
    pub fn personal(&self) -> Result<(u64, Vec<String>), DiskError> {
        let mut bytes = disk::size_unopened(&self.database())?.unwrap_or(0);
        let mut left = Vec::new();
        let there = match disk::list_kinds(&self.data(), MEMORY_FILES_MAX) {
            Err(error) if error.is_not_found() => Vec::new(),
            there => there?,
        };
        for (name, kind) in there {
            match kind {
                Kind::File if CARRIED.contains(&name.as_str()) => {
                    bytes += disk::size(&self.data().join(&name))?.unwrap_or(0);
                }
                Kind::Folder if [MEMORY, database::FOLDER].contains(&name.as_str()) => {}
                _ if LEFT.contains(&name.as_str()) || name.ends_with(".partial") => {}
                _ => left.push(name),
            }
        }
        Ok((bytes, left))
    }
}

/// Makes the bundle that was planned, of `source`. With `personal` its data comes along.
///
/// # Errors
/// See [`MoveError`]. What was written so far stays, isn't a bundle, and is gone on with when it is run again.
pub fn copy(
    source: &Bundle<Verified>,
    plan: MovePlan,
    personal: Option<Personal>,
    sink: MoveSink,
) -> Result<(Bundle<Verified>, Medium), MoveError> {
    let landing = Landing::begin(plan, &source.state.sealed)?;
    for entry in &landing.plan().entries {
        place(source.root(), entry, &landing, sink)?;
    }
    if let Some(personal) = personal {
        carry_data(source, &landing.begin_data()?, personal)?;
    }
    landing.finish(sink)
}

fn place(root: &Path, entry: &Entry, landing: &Landing, sink: MoveSink) -> Result<(), MoveError> {
    place_in(root, entry, &landing.plan().folder, sink)
}

/// Puts a listed file of `root` into `folder`, where it isn't there yet.
pub(super) fn place_in(root: &Path, entry: &Entry, folder: &Path, sink: MoveSink) -> Result<(), MoveError> {
    if landing::has(folder, entry, sink)? {
        return Ok(());
    }
    let path = root.join(&entry.path);
    let mut target = LandingFile::begin(folder, entry)?;
    read_pieces(root, entry, |piece| {
        target.write(piece)?;
        step(sink, Progress::Written(piece.len() as u64))
    })?;
    match target.finish()? {
        true => Ok(()),
        // Each chunk was verified, so the list contradicts itself.
        false => Err(MoveError::NotKept { path }),
    }
}

/// Puts the data into the new folder `target` beside the bundle, reads it back, and leaves it to the end to give it its name.
pub(super) fn carry_data(source: &Bundle<Verified>, target: &Path, personal: Personal) -> Result<(), MoveError> {
    let mut medium = Medium::Direct;
    for name in CARRIED {
        let from = source.data().join(name);
        if disk::exists(&from) {
            let content = disk::read(&from, CARRIED_BYTES_MAX)?;
            disk::write(&target.join(name), &content)?;
            disk::forget_blocks(target);
            read_back::bytes(&target.join(name), &content, &mut medium)?;
        }
    }
    if disk::is_folder(&source.memory()) {
        let mut files_left = MEMORY_FILES_MAX;
        copy_folder(&source.memory(), &target.join(MEMORY), 0, &mut files_left)?;
    }
    if disk::size_unopened(&source.database())?.is_some() {
        let folder = target.join(database::FOLDER);
        disk::create_folder(&folder)?;
        let copy = folder.join(database::FILE);
        (personal.database)(&copy).map_err(MoveError::Data)?;
        let written = hash(&copy)?;
        disk::forget_blocks(target);
        let kept = read_back::digest(&copy, &mut medium, &mut |_| std::ops::ControlFlow::Continue(()))?;
        if kept.1 != written {
            return Err(MoveError::NotKept { path: copy });
        }
        disk::sync_folder(&folder)?;
    }
    Ok(disk::sync_folder(target)?)
}

fn copy_folder(from: &Path, to: &Path, depth: usize, files_left: &mut usize) -> Result<(), MoveError> {
    if depth > MEMORY_DEPTH_MAX {
        let deep = std::io::Error::other(format!("it has folders more than {MEMORY_DEPTH_MAX} deep"));
        return Err(DiskError::new("copy", from, deep).into());
    }
    disk::create_folder(to)?;
    for (name, kind) in disk::list_kinds(from, *files_left)? {
        *files_left = files_left.saturating_sub(1);
        let (source, target) = (from.join(&name), to.join(&name));
        match kind {
            Kind::Folder => copy_folder(&source, &target, depth + 1, files_left)?,
            Kind::File => copy_file(&source, &target)?,
            Kind::Other => return Err(crate::bundle::BundleError::WrongKind { path: source }.into()),
        }
    }
    Ok(())
}

/// Copies a file and reads the copy back from the medium.
pub(in crate::bundle) fn copy_file(from: &Path, to: &Path) -> Result<(), MoveError> {
    let (file, size) = disk::open(from)?;
    let mut copy = PartialFile::create(to)?;
    let mut piece = vec![0; size.min(PIECE_BYTES as u64) as usize];
    let mut offset = 0;
    while offset < size {
        let bytes = (size - offset).min(PIECE_BYTES as u64) as usize;
        disk::read_at(&file, from, offset, &mut piece[..bytes])?;
        copy.write(&piece[..bytes])?;
        offset += bytes as u64;
    }
    copy.finish()?;
    let mut medium = Medium::Direct;
    let kept = read_back::digest(to, &mut medium, &mut |_| std::ops::ControlFlow::Continue(()))?;
    if kept != (size, hash(from)?) {
        return Err(MoveError::NotKept { path: to.into() });
    }
    Ok(())
}

/// The digest of a file, whatever its size.
pub(in crate::bundle) fn hash(path: &Path) -> Result<Sha256Digest, MoveError> {
    let (file, size) = disk::open(path)?;
    let mut hasher = crate::digest::StreamHasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while offset < size {
        let bytes = (size - offset).min(PIECE_BYTES as u64) as usize;
        disk::read_at(&file, path, offset, &mut piece[..bytes])?;
        hasher.update(&piece[..bytes]);
        offset += bytes as u64;
    }
    Ok(hasher.finish().1)
}
