//! What commands that were cut left in a bundle: files that never got their names, unfinished pulls and imports.

use std::path::PathBuf;

use super::{Bundle, BundleError};
use crate::disk::{self, Kind};

/// The most names that are looked at in one folder.
const NAMES_MAX: usize = 10_000;
/// How deep the size of a folder is counted.
const DEPTH_MAX: usize = 8;
/// What the name of everything unfinished ends with.
const SUFFIX: &str = ".partial";

/// What a leftover was to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// A model that was being fetched; pulling it again goes on.
    Pull(String),
    /// A model that was being added.
    Import(String),
    /// A file that was being written.
    File,
}

/// Something that a cut command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Where it is.
    pub path: PathBuf,
    /// What it was to become.
    pub what: Unfinished,
    /// Its size in bytes.
    pub bytes: u64,
    kind: Kind,
}

impl Leftover {
    /// Removes it.
    ///
    /// # Errors
    /// What removing can meet.
    pub fn remove(&self) -> Result<(), BundleError> {
        Ok(match self.kind {
            Kind::Folder => disk::remove_folder(&self.path),
            _ => disk::remove(&self.path),
        }?)
    }
}

impl<State> Bundle<State> {
    /// What commands that were cut left in the bundle. Nothing of it is ever used by another command than its own.
    ///
    /// # Errors
    /// What listing can meet.
    pub fn leftovers(&self) -> Result<Vec<Leftover>, BundleError> {
        let data = self.data();
        let mut found = Vec::new();
        let database = data.join(super::database::FOLDER);
        let root = self.root().to_path_buf();
        for folder in [root, self.models(), data, database, self.backups(), self.prefix_cache()] {
            if disk::kind(&folder)? != Some(Kind::Folder) {
                continue;
            }
            for (name, kind) in disk::list_kinds(&folder, NAMES_MAX)? {
                let Some(stem) = name.strip_suffix(SUFFIX) else { continue };
                let path = folder.join(&name);
                let what = match (kind, stem.strip_prefix("pull+")) {
                    (Kind::Folder, Some(model)) => Unfinished::Pull(model.into()),
                    (Kind::Folder, None) => Unfinished::Import(stem.into()),
                    _ => Unfinished::File,
                };
                let bytes = bytes_below(&path, kind, 0)?;
                found.push(Leftover { path, what, bytes, kind });
            }
        }
        Ok(found)
    }
}

fn bytes_below(path: &std::path::Path, kind: Kind, depth: usize) -> Result<u64, BundleError> {
    match kind {
        Kind::File => Ok(disk::size_unopened(path)?.unwrap_or(0)),
        Kind::Folder if depth < DEPTH_MAX => {
            let names = disk::list_kinds(path, NAMES_MAX)?;
            names.into_iter().map(|(name, kind)| bytes_below(&path.join(name), kind, depth + 1)).sum()
        }
        _ => Ok(0),
    }
}
