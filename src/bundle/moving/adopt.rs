//! A person's identity, data and models, carried from one home into another that has none: from the folder of an installed
//! Tiles onto a drive, and the other way round.
//!
//! Everything is written beside what is there, read back from the medium and opened, and only then does `data.partial` get
//! the name `data`, with which it counts. So a cut at any moment leaves the source as it was, and a destination without an
//! identity, into which the same command carries it again.

use std::path::{Path, PathBuf};

use super::copy::{Personal, carry_data, place_in};
use super::landing::{SPACE_RESERVE_BYTES, check_apart};
use super::read_back::{self, Medium};
use super::{DataError, MoveError, MoveSink};
use crate::bundle::{Bundle, Verified, verify};
use crate::digest::ChunkDigests;
use crate::disk;
use crate::manifest::Entry;

/// What the data of a home that was moved away is called.
pub const RETIRED: &str = "data.retired";
/// What the data is called until it counts.
const BEGUN: &str = "data.partial";
/// What was at its place: nothing of anybody's identity.
const BEFORE: &str = "data.before";
/// What makes a data folder somebody's: none of it is ever overwritten.
const SOMEBODYS: [&str; 7] = ["key.a", "key.b", "db", "tiles.db", "models.toml", "models.b.toml", "memory"];
/// How many retired homes may lie beside each other.
const RETIRED_MAX: usize = 100;

/// What would be carried.
#[derive(Clone, Debug)]
pub struct AdoptPlan {
    /// The files of models that come along, with paths below the root.
    pub models: Vec<Entry>,
    /// Their length, in bytes.
    pub models_bytes: u64,
    /// The length of the data, in bytes.
    pub data_bytes: u64,
    /// What of the data isn't known and stays behind.
    pub left: Vec<String>,
}

impl AdoptPlan {
    /// Plans to carry the data of `from`, with the files of `models`, into `to`.
    ///
    /// # Errors
    /// [`MoveError::HasData`] where `to` is somebody's already, [`MoveError::Inside`], [`MoveError::FileTooLarge`],
    /// [`MoveError::Space`], and what looking can meet.
    pub fn new(from: &Bundle<Verified>, to: &Bundle<Verified>, models: Vec<Entry>) -> Result<Self, MoveError> {
        check_apart(to.root(), from.root())?;
        check_free(to)?;
        let paths = models.iter().map(|entry| entry.path.as_str());
        verify::check_ways(to.root(), paths, &["data", BEGUN, BEFORE])?;
        let bytes_max = disk::file_bytes_max(to.root())?;
        if let Some(entry) = models.iter().find(|entry| entry.size > bytes_max) {
            let (path, bytes) = (entry.path.clone(), entry.size);
            return Err(MoveError::FileTooLarge { path, bytes, bytes_max });
        }
        let (data_bytes, left) = from.personal()?;
        let mut needed_bytes = data_bytes.saturating_add(SPACE_RESERVE_BYTES);
        for entry in &models {
            if disk::size(&to.root().join(&entry.path))? != Some(entry.size) {
                needed_bytes += entry.size + 32 * ChunkDigests::count_of(entry.size);
            }
        }
        let free_bytes = disk::free_bytes(to.root())?;
        if needed_bytes > free_bytes {
            return Err(MoveError::Space { folder: to.root().into(), needed_bytes, free_bytes });
        }
        let models_bytes = models.iter().map(|entry| entry.size).sum();
        Ok(Self { models, models_bytes, data_bytes, left })
    }
}

/// Refuses a home that is somebody's.
fn check_free(to: &Bundle<Verified>) -> Result<(), MoveError> {
    let data = to.data();
    match SOMEBODYS.iter().any(|name| disk::exists(&data.join(name))) {
        true => Err(MoveError::HasData { folder: to.root().into() }),
        false => Ok(()),
    }
}

/// Carries what was planned. `prove` is given the folder of the data before it counts: it makes what in it belongs to the
/// new place, opens it, and says whether it is what it should be.
///
/// # Errors
/// See [`MoveError`]. `from` isn't changed, and `to` has no identity then.
pub fn adopt(
    from: &Bundle<Verified>,
    to: &Bundle<Verified>,
    plan: &AdoptPlan,
    personal: Personal,
    prove: &mut dyn FnMut(&Path) -> Result<(), DataError>,
    sink: MoveSink,
) -> Result<Medium, MoveError> {
    let (root, begun) = (to.root(), to.root().join(BEGUN));
    for entry in &plan.models {
        place_in(from.root(), entry, root, sink)?;
    }
    let medium = read_back::listed(root, &plan.models, sink)?;
    // What an interrupted one left is older than what is carried now.
    disk::remove_folder(&begun)?;
    disk::create_folder(&begun)?;
    carry_data(from, &begun, personal)?;
    prove(&begun).map_err(MoveError::Data)?;
    disk::sync_folder(&begun)?;
    // Asked again: it took a while.
    check_free(to)?;
    let (data, before) = (to.data(), root.join(BEFORE));
    disk::remove_folder(&before)?;
    // What is open meanwhile comes along: file systems in user space keep a folder whose file is open.
    for open in [to.lock_path(), to.logs()] {
        if let (Some(name), true) = (open.file_name(), disk::exists(&open)) {
            disk::rename(&open, &begun.join(name))?;
        }
    }
    if disk::is_folder(&data) {
        disk::rename(&data, &before)?;
    }
    read_back::rename_folder(&begun, &data)?;
    disk::remove_folder(&before)?;
    Ok(medium)
}

/// Takes the data of a home out of use, and gives the name that it has now. Nothing of it is removed: the one copy that is
/// left elsewhere may be on a drive that gets lost.
///
/// # Errors
/// What renaming can meet; the home is in use then as before.
pub fn retire(home: &Bundle<Verified>) -> Result<PathBuf, MoveError> {
    let names = std::iter::once(RETIRED.to_owned()).chain((2..=RETIRED_MAX).map(|count| format!("{RETIRED}-{count}")));
    for path in names.map(|name| home.root().join(name)) {
        if disk::kind(&path)?.is_none() {
            disk::rename(&home.data(), &path)?;
            disk::sync_folder(home.root())?;
            return Ok(path);
        }
    }
    Err(MoveError::Occupied { folder: home.root().join(RETIRED) })
}
