//! A bundle made of an archive: the seal first, then only what it lists, in its order, to the last bit.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::read_back::Medium;
use super::{Landing, Members, MoveError, MovePlan, MoveSink, Progress, Rules, open_archive, step};
use crate::bundle::{Bundle, MANIFEST_NAME, SIGNATURE_NAME, Sealed, Trust, Verified, verify};
use crate::digest::StreamHasher;
use crate::disk;
use crate::manifest::signature::SIGNATURE_BYTES_MAX;
use crate::manifest::{Entry, MANIFEST_BYTES_MAX};

/// How many bytes are read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// Reads the list of the archive, judges its seal, and plans the bundle in `folder`. Nothing is written.
///
/// # Errors
/// Everything that can be known before the first byte is written; see [`MoveError`].
pub fn preview(
    archive: &Path,
    folder: &Path,
    trust: Trust,
    rules: Rules,
) -> Result<(Bundle<Sealed>, MovePlan), MoveError> {
    let (sealed, _) = head(archive, trust)?;
    let plan = MovePlan::new(folder, &sealed, &[], 0, None, rules)?;
    Ok((Bundle { root: PathBuf::from(archive), state: sealed }, plan))
}

/// Makes the bundle of the archive that was looked at. The whole archive is checked before anything is written.
///
/// # Errors
/// See [`MoveError`]. Of an archive that is refused, nothing stays. What an interruption left isn't a bundle, and is gone
/// on with when it is run again.
pub fn import(
    previewed: &Bundle<Sealed>,
    plan: MovePlan,
    sink: MoveSink,
) -> Result<(Bundle<Verified>, Medium), MoveError> {
    let (archive, sealed) = (previewed.root(), &previewed.state);
    let trust = Trust::Release(sealed.seal_key);
    check(archive, sealed, trust, sink)?;
    let is_made = !disk::exists(&plan.folder);
    let landing = Landing::begin(plan, sealed)?;
    match extract(archive, sealed, trust, &landing, sink) {
        Ok(()) => landing.finish(sink),
        Err(error @ MoveError::Archive { .. }) => {
            landing.undo(is_made);
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// The seal and the list, which come first, and what follows them.
fn head(archive: &Path, trust: Trust) -> Result<(Sealed, Members), MoveError> {
    let mut members = open_archive(archive)?;
    let mut content = |name: &str, bytes_max: u64| -> Result<Vec<u8>, MoveError> {
        match members.next()? {
            Some(member) if member.path == name => members.read_whole(&member, bytes_max),
            Some(member) => Err(members.refused(format!("`{name}` is expected, and `{}` is there", member.path))),
            None => Err(members.refused(format!("it has no `{name}`"))),
        }
    };
    let manifest_bytes = content(MANIFEST_NAME, MANIFEST_BYTES_MAX)?;
    let signature = content(SIGNATURE_NAME, SIGNATURE_BYTES_MAX)?;
    let signature_text =
        String::from_utf8(signature).map_err(|_| members.refused(format!("its `{SIGNATURE_NAME}` isn't text")))?;
    let sealed = verify::judge(archive, manifest_bytes, signature_text, trust)?;
    Ok((sealed, members))
}

/// The next file of an archive, which must be just the next one of the list.
fn expect_next(members: &mut Members, expected: &Entry, listed: &BTreeSet<&str>) -> Result<(), MoveError> {
    let Some(member) = members.next()? else {
        return Err(members.refused(format!("`{}` is missing in it", expected.path)));
    };
    let what = if member.path == expected.path && member.bytes == expected.size {
        return Ok(());
    } else if member.path == expected.path {
        format!("`{}` has {} bytes in it instead of {}", member.path, member.bytes, expected.size)
    } else if listed.contains(member.path.as_str()) {
        format!("`{}` is out of order or there twice; `{}` is expected", member.path, expected.path)
    } else {
        format!("`{}` isn't listed in its `{MANIFEST_NAME}`", member.path)
    };
    Err(members.refused(what))
}

fn expect_end(members: &mut Members) -> Result<(), MoveError> {
    match members.next()? {
        None => Ok(()),
        Some(member) => Err(members.refused(format!("`{}` follows the last listed file", member.path))),
    }
}

fn wrong_digest(members: &Members, entry: &Entry) -> MoveError {
    members.refused(format!("`{}` in it isn't what its `{MANIFEST_NAME}` lists", entry.path))
}

/// Reads the archive to its end and compares everything with the list.
fn check(archive: &Path, sealed: &Sealed, trust: Trust, sink: MoveSink) -> Result<(), MoveError> {
    let (_, mut members) = head(archive, trust)?;
    let files = &sealed.manifest.files;
    let listed: BTreeSet<&str> = files.iter().map(|entry| entry.path.as_str()).collect();
    let mut piece = vec![0; PIECE_BYTES];
    for entry in files {
        expect_next(&mut members, entry, &listed)?;
        let mut hasher = StreamHasher::new();
        loop {
            let bytes = members.read(&mut piece)?;
            if bytes == 0 {
                break;
            }
            hasher.update(&piece[..bytes]);
            step(sink, Progress::Checked(bytes as u64))?;
        }
        if hasher.finish().1 != entry.sha256 {
            return Err(wrong_digest(&members, entry));
        }
    }
    expect_end(&mut members)
}

/// Writes the archive's files, each hashed again on its way: the archive may have changed since it was checked.
fn extract(archive: &Path, sealed: &Sealed, trust: Trust, landing: &Landing, sink: MoveSink) -> Result<(), MoveError> {
    let (_, mut members) = head(archive, trust)?;
    let files = &sealed.manifest.files;
    let listed: BTreeSet<&str> = files.iter().map(|entry| entry.path.as_str()).collect();
    let mut piece = vec![0; PIECE_BYTES];
    for entry in files {
        expect_next(&mut members, entry, &listed)?;
        if landing.has(entry, sink)? {
            continue;
        }
        let mut file = landing.file(entry)?;
        loop {
            let bytes = members.read(&mut piece)?;
            if bytes == 0 {
                break;
            }
            file.write(&piece[..bytes])?;
            step(sink, Progress::Written(bytes as u64))?;
        }
        if !file.finish()? {
            return Err(wrong_digest(&members, entry));
        }
    }
    expect_end(&mut members)
}
