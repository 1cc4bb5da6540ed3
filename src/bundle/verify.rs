//! What is verified when a bundle is opened: its seal, that exactly the listed files are there, and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::build::NEVER_INDEX_NAME;
use super::{BundleError, MANIFEST_NAME, SIGNATURE_NAME, Seal, Sealed, Trust};
use crate::digest::{CHUNKED_ABOVE_BYTES, ChunkDigests};
use crate::disk::{self, DiskError, Kind};
use crate::manifest::signature::{SIGNATURE_BYTES_MAX, Signature};
use crate::manifest::{ENTRIES_MAX, Entry, Manifest, ManifestError};
use crate::verified::{IntegrityError, VerifiedFile, read_listed, sidecar_path};

/// The most names that a folder of the bundle may have: every file with a sidecar, and some litter.
const NAMES_MAX: usize = 2 * ENTRIES_MAX + 100;
/// More threads than this don't make a flash drive faster.
const THREADS_MAX: usize = 4;

/// Verifies the signature over the list, then reads the list.
pub(super) fn seal(root: &Path, manifest_bytes: Vec<u8>, trust: Trust) -> Result<Sealed, BundleError> {
    let path = root.join(SIGNATURE_NAME);
    match disk::kind(&path)? {
        Some(Kind::File) => {}
        Some(_) => return Err(BundleError::WrongKind { path }),
        None => return Err(BundleError::Missing { path }),
    }
    let text = match disk::read_text(&path, SIGNATURE_BYTES_MAX) {
        Err(DiskError::NotText { .. }) => {
            return Err(BundleError::Manifest {
                path,
                source: ManifestError::SignatureText { what: "it isn't text".into() },
            });
        }
        text => text?,
    };
    judge(root, manifest_bytes, text, trust)
}

/// Judges a list and the signature over it, wherever they come from; errors name them as below `root`.
pub(super) fn judge(
    root: &Path,
    manifest_bytes: Vec<u8>,
    signature_text: String,
    trust: Trust,
) -> Result<Sealed, BundleError> {
    let (path, manifest_path) = (root.join(SIGNATURE_NAME), root.join(MANIFEST_NAME));
    let signature = Signature::parse(&signature_text).map_err(|source| BundleError::Manifest { path, source })?;
    let seal_key = signature.public_key;
    signature
        .verify(&manifest_bytes)
        .map_err(|source| BundleError::Manifest { path: manifest_path.clone(), source })?;
    let seal = match trust {
        Trust::Release(release) if release == seal_key => Seal::Release,
        Trust::Release(_) => return Err(BundleError::ForeignSeal { short_key: seal_key.short() }),
        Trust::Any => Seal::SelfBuilt { short_key: seal_key.short() },
    };
    let text = String::from_utf8_lossy(&manifest_bytes);
    let manifest = Manifest::parse(&text).map_err(|source| BundleError::Manifest { path: manifest_path, source })?;
    Ok(Sealed { manifest_bytes, signature_text, manifest, seal, seal_key })
}

/// Compares what is in the bundle's folders with the list. Returns what lies beside the listed files in the root folder.
pub(super) fn inventory(root: &Path, manifest: &Manifest) -> Result<Vec<String>, BundleError> {
    let mut walk = Walk { root, files: BTreeMap::new(), folders: BTreeSet::new(), strangers: Vec::new() };
    for entry in &manifest.files {
        walk.files.insert(entry.path.clone(), false);
        if entry.chunks_sha256.is_some() {
            walk.files.insert(format!("{}.chunks", entry.path), false);
        }
        walk.folders.extend(entry.path.match_indices('/').map(|(end, _)| &entry.path[..end]));
    }
    walk.folder("")?;
    if let Some((path, _)) = walk.files.iter().find(|(_, seen)| !**seen) {
        return Err(BundleError::Missing { path: root.join(path) });
    }
    let data = root.join("data");
    if disk::is_folder(&data) {
        // A link in there would make Tiles write somewhere else.
        for (name, kind) in disk::list_kinds(&data, NAMES_MAX)? {
            if kind == Kind::Other {
                return Err(BundleError::WrongKind { path: data.join(name) });
            }
        }
    }
    Ok(walk.strangers)
}

/// Refuses links and other things on the way to what will be written or removed at `paths` below `root`: they would lead
/// out of it. `folders` are to be folders too.
pub(super) fn check_ways<'a>(
    root: &Path,
    paths: impl Iterator<Item = &'a str>,
    folders: &[&str],
) -> Result<(), BundleError> {
    let mut folders: BTreeSet<String> = folders.iter().map(|path| (*path).to_owned()).collect();
    let mut files = BTreeSet::new();
    for path in paths.chain([MANIFEST_NAME, SIGNATURE_NAME, NEVER_INDEX_NAME]) {
        folders.extend(path.match_indices('/').map(|(end, _)| path[..end].to_owned()));
        files.extend(["", ".partial", ".chunks", ".chunks.partial"].map(|end| format!("{path}{end}")));
    }
    let expected = folders.iter().map(|path| (path, Kind::Folder));
    for (path, expected) in expected.chain(files.iter().map(|path| (path, Kind::File))) {
        let path = root.join(path);
        if disk::kind(&path)?.is_some_and(|kind| kind != expected) {
            return Err(BundleError::WrongKind { path });
        }
    }
    Ok(())
}

struct Walk<'a> {
    root: &'a Path,
    /// The listed files and sidecars, and whether they were seen.
    files: BTreeMap<String, bool>,
    folders: BTreeSet<&'a str>,
    strangers: Vec<String>,
}

impl Walk<'_> {
    /// Looks at the folder with the path `folder` below the root. Only folders of listed files are entered, so this ends.
    fn folder(&mut self, folder: &str) -> Result<(), BundleError> {
        // Beside the shipped models are those that the person added, which another list covers.
        let is_shared = matches!(folder, "" | "models");
        for (name, kind) in disk::list_kinds(&self.root.join(folder), NAMES_MAX)? {
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let is_own_folder =
                self.folders.contains(path.as_str()) || matches!(path.as_str(), "data" | "models" | "bin");
            match (self.files.get_mut(&path), kind) {
                (Some(seen), Kind::File) => *seen = true,
                (Some(_), _) => return Err(BundleError::WrongKind { path: self.root.join(path) }),
                (None, Kind::Folder) if path == "data" => {}
                (None, Kind::Folder) if is_own_folder => self.folder(&path)?,
                (None, _) if is_own_folder => return Err(BundleError::WrongKind { path: self.root.join(path) }),
                // What an interrupted copy left is never opened by this name.
                (None, Kind::File) if name.ends_with(".partial") => {}
                (None, _) if folder == "models" => {}
                (None, _) if is_shared => self.strangers.push(name),
                (None, _) => return Err(BundleError::Unlisted { path: self.root.join(path) }),
            }
        }
        if folder.is_empty() {
            self.strangers.retain(|name| name != MANIFEST_NAME && name != SIGNATURE_NAME);
        }
        Ok(())
    }
}

/// Verifies every small file in full, and the sizes of the large ones and of their sidecars.
pub(super) fn content(root: &Path, manifest: &Manifest) -> Result<(), BundleError> {
    let (mut small, large): (Vec<&Entry>, Vec<&Entry>) =
        manifest.files.iter().partition(|entry| entry.chunks_sha256.is_none());
    for entry in large {
        let path = root.join(&entry.path);
        expect_size(&path, entry.size)?;
        expect_size(&sidecar_path(&path), ChunkDigests::count_of(entry.size) * 32)?;
    }
    // The longest first, so that no thread begins with one when the others are done.
    small.sort_by_key(|entry| std::cmp::Reverse(entry.size));
    Ok(small_files(root, &small)?)
}

fn expect_size(path: &Path, expected: u64) -> Result<(), BundleError> {
    match disk::size(path)? {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(IntegrityError::Size { path: path.into(), expected, found }.into()),
        None => Err(BundleError::Missing { path: path.into() }),
    }
}

fn small_files(root: &Path, entries: &[&Entry]) -> Result<(), IntegrityError> {
    let next = AtomicUsize::new(0);
    let verify_some = || -> Result<(), IntegrityError> {
        while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            read_listed(&root.join(&entry.path), entry, CHUNKED_ABOVE_BYTES)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(entries.len());
    std::thread::scope(|scope| {
        let running: Vec<_> = (1..threads).map(|_| scope.spawn(verify_some)).collect();
        let own = verify_some();
        let others = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        others.fold(own, Result::and)
    })
}

/// Verifies every chunk of the large files.
pub(super) fn large(root: &Path, manifest: &Manifest, progress: &mut dyn FnMut(u64)) -> Result<(), IntegrityError> {
    let mut buffer = Vec::new();
    for entry in manifest.files.iter().filter(|entry| entry.chunks_sha256.is_some()) {
        let file = VerifiedFile::open(root, entry)?;
        for chunk_idx in 0..file.chunk_count() {
            buffer.resize(file.chunk_len(chunk_idx), 0);
            file.read_chunk(chunk_idx, &mut buffer)?;
            progress(buffer.len() as u64);
        }
    }
    Ok(())
}
