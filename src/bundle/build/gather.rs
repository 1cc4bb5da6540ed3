//! Gathering for a build: what the pieces consist of, and what is in the folder already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{BEGUN, BEGUN_NAME, BuildError, Pieces, Step};
use crate::bundle::{Bundle, BundleError, Found, MANIFEST_NAME, SIGNATURE_NAME};
use crate::disk::{self, Kind};
use crate::manifest::recipe::{Piece, Recipe, Source};
use crate::manifest::signature::{SIGNATURE_BYTES_MAX, SealPublicKey, Signature};
use crate::manifest::{ENTRIES_MAX, FILE_BYTES_MAX, FileRole, Manifest, path};

/// The bundle that is in the folder before.
pub(super) struct Before {
    /// Its list.
    pub(super) manifest: Manifest,
    /// Whether it is sealed by the key that will seal the new one.
    pub(super) is_ours: bool,
}

pub(super) fn check_pieces(recipe: &Recipe, pieces: &Pieces) -> Result<(), BuildError> {
    let programs = pieces.programs.keys().map(|host| format!("bin/{host}/tiles"));
    let models = pieces.models.keys().map(|name| format!("models/{name}"));
    match programs.chain(models).find(|path| !recipe.pieces.iter().any(|piece| piece.path == *path)) {
        Some(path) => Err(BuildError::UnknownPiece { path }),
        None => Ok(()),
    }
}

/// The host that the file at `path` of a bundle is for, and its name.
pub(super) fn host_of(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("bin/")?.split_once('/')
}

/// The file or folder that a piece is made of, or `None` where it wasn't given.
pub(super) fn source_of(piece: &Piece, pieces: &Pieces, tree: &Path) -> Option<PathBuf> {
    match &piece.source {
        // The description of a model that is left out is left out too.
        Source::Tree(file) => match piece.path.strip_prefix("models/").and_then(|rest| rest.split_once('/')) {
            Some((model, _)) if !pieces.models.contains_key(model) => None,
            _ => Some(tree.join(file)),
        },
        Source::Build(_) => {
            let (host, _) = host_of(&piece.path).filter(|(_, name)| *name == "tiles")?;
            pieces.programs.get(host).cloned()
        }
        Source::Pypi(_) => match host_of(&piece.path) {
            // What a program loads lies beside it; one that was linked otherwise has nothing there.
            Some((host, name)) => {
                let beside = pieces.programs.get(host)?.with_file_name(name);
                disk::exists(&beside).then_some(beside)
            }
            None => pieces.models.get(piece.path.strip_prefix("models/")?).cloned(),
        },
    }
}

pub(super) fn add_file(
    steps: &mut BTreeMap<String, Step>,
    from: PathBuf,
    to: String,
    role: FileRole,
    folder: &Path,
) -> Result<(), BuildError> {
    let unfit = |what: String| BuildError::Unfit { path: from.clone(), what };
    path::check(&to).map_err(|e| unfit(e.to_string()))?;
    let (_, bytes) = disk::open(&from)?;
    if bytes > FILE_BYTES_MAX {
        return Err(unfit(format!("it has {bytes} bytes, and a drive's file at most {FILE_BYTES_MAX}")));
    }
    let is_in_place = match (disk::canonical(&from), disk::canonical(&folder.join(&to))) {
        (Ok(from), Ok(to)) => from == to,
        _ => false,
    };
    steps.insert(to.clone(), Step { from, path: to, role, bytes, is_in_place });
    if steps.len() > ENTRIES_MAX {
        return Err(BuildError::Unfit {
            path: folder.into(),
            what: format!("it would have more than {ENTRIES_MAX} files"),
        });
    }
    Ok(())
}

pub(super) fn add_folder(
    steps: &mut BTreeMap<String, Step>,
    from: &Path,
    to: &str,
    folder: &Path,
    depth: usize,
) -> Result<(), BuildError> {
    if depth > path::PATH_DEPTH_MAX {
        return Err(BuildError::Unfit { path: from.into(), what: "it is too deep".into() });
    }
    for (name, kind) in disk::list_kinds(from, 2 * ENTRIES_MAX)? {
        let (file, to) = (from.join(&name), format!("{to}/{name}"));
        match kind {
            // Sidecars are made again, from what is in the file.
            Kind::File if name.ends_with(".chunks") || name.ends_with(".partial") => {}
            Kind::File => add_file(steps, file, to, FileRole::Model, folder)?,
            Kind::Folder => add_folder(steps, &file, &to, folder, depth + 1)?,
            Kind::Other => {
                return Err(BuildError::Unfit { path: file, what: "it is a link or something else".into() });
            }
        }
    }
    Ok(())
}

/// Reads the list of the bundle that is in `folder`, if there is one that may be replaced.
pub(super) fn before(folder: &Path, seal: SealPublicKey) -> Result<Option<Before>, BuildError> {
    match disk::kind(&folder.join(MANIFEST_NAME))? {
        None => return Ok(None),
        // Power that goes while the list gets its name leaves nothing behind that name on exFAT.
        Some(Kind::File) if disk::size(&folder.join(MANIFEST_NAME))? == Some(0) && is_begun(folder)? => {
            return Ok(None);
        }
        Some(_) => {}
    }
    let found = Bundle::<Found>::find(Some(folder), folder)?;
    let text = String::from_utf8_lossy(&found.state.manifest_bytes);
    // A list that can't be read can't say which generation it is; a new folder is then the only way.
    let path = found.root.join(MANIFEST_NAME);
    let manifest = Manifest::parse(&text).map_err(|source| BundleError::Manifest { path, source })?;
    let signature = disk::read_text(&found.root.join(SIGNATURE_NAME), SIGNATURE_BYTES_MAX).ok();
    let signature = signature.and_then(|text| Signature::parse(&text).ok());
    // Without a signature that fits, as after a build that was cut short, nothing of the old bundle is kept.
    let signer = signature.filter(|signature| signature.verify(&found.state.manifest_bytes).is_ok());
    match signer {
        Some(signature) if signature.public_key != seal => {
            Err(BuildError::OtherSeal { folder: folder.into(), short_key: signature.public_key.short() })
        }
        signer => Ok(Some(Before { manifest, is_ours: signer.is_some() })),
    }
}

/// Whether the folder holds what a build that was cut began in an empty one. Power that goes early can leave the file that
/// says so without its content; then nothing else is there yet.
fn is_begun(folder: &Path) -> Result<bool, BuildError> {
    let path = folder.join(BEGUN_NAME);
    if disk::kind(&path)? != Some(Kind::File) {
        return Ok(false);
    }
    Ok(disk::size(&path)? == Some(BEGUN.len() as u64) && disk::read(&path, BEGUN.len() as u64)? == BEGUN)
}

/// Refuses a folder with anything in it but models that are there to be sealed, or the beginning of a build.
pub(super) fn check_empty(folder: &Path, pieces: &Pieces) -> Result<(), BuildError> {
    let occupied = || BuildError::Occupied { folder: folder.into() };
    match disk::kind(folder)? {
        None => return Ok(()),
        Some(Kind::File) => return Err(occupied()),
        // A link to a folder is as good as the folder.
        Some(Kind::Folder | Kind::Other) => {}
    }
    if is_begun(folder)? {
        return Ok(());
    }
    let partial = format!("{BEGUN_NAME}.partial");
    for (name, kind) in disk::list_kinds(folder, 2 * ENTRIES_MAX)? {
        let is_known = match kind {
            Kind::Folder => name == "models",
            Kind::File => name == BEGUN_NAME || name == partial,
            Kind::Other => false,
        };
        if !is_known {
            return Err(occupied());
        }
    }
    let models = folder.join("models");
    if disk::is_folder(&models) {
        for (name, _) in disk::list_kinds(&models, 2 * ENTRIES_MAX)? {
            let here = disk::canonical(&models.join(&name))?;
            let given = pieces.models.get(&name).map(|given| disk::canonical(given)).transpose()?;
            if given != Some(here) {
                return Err(occupied());
            }
        }
    }
    Ok(())
}
