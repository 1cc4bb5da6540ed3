//! Where a bundle arrives: what may be there before, and how each file gets its name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::copy::is_carried;
use super::read_back::{self, Medium};
use super::{MoveError, MoveSink, Progress, step};
use crate::bundle::build::NEVER_INDEX_NAME;
use crate::bundle::{Bundle, BundleError, Found, MANIFEST_NAME, SIGNATURE_NAME, Sealed, Trust, Verified, verify};
use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, ChunkDigests, StreamHasher};
use crate::disk::{self, DiskError, Kind, PartialFile};
use crate::manifest::signature::{SIGNATURE_BYTES_MAX, SealPublicKey, Signature};
use crate::manifest::{ENTRIES_MAX, Entry, FileRole, MANIFEST_BYTES_MAX, Manifest};
use crate::verified::sidecar_path;

/// What is kept free beside the files, in bytes: 4 MiB for lists, folders and the first messages.
pub(super) const SPACE_RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// The list before it counts. That it is there says whose beginning the folder holds.
const BEGUN_NAME: &str = "MANIFEST.toml.partial";

/// What may be at the place where a bundle goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A bundle of the same seal, or the beginning of another: its programs and models are replaced, its data stays.
    pub replace: bool,
    /// Also a newer one.
    pub allow_older: bool,
    /// Data comes along, so there may be none.
    pub with_data: bool,
}

/// What would be done.
#[derive(Clone, Debug)]
pub struct MovePlan {
    /// Where the bundle goes.
    pub folder: PathBuf,
    /// Its files, those of added models included.
    pub entries: Vec<Entry>,
    /// Files of the bundle that was there which go.
    pub removed: Vec<String>,
    /// How many bytes of files there are in all.
    pub bytes: u64,
    /// How many of them are still to be written, as far as lengths tell.
    pub needed_bytes: u64,
    /// Whether it goes on with what an interrupted one began.
    pub goes_on: bool,
}

/// In data that was copied here, until the list has its name. Nobody can have opened that data before.
const UNFINISHED_NAME: &str = "copy.partial";

/// Whether the data in the folder is what an interrupted copy brought, and nobody has used it since: then there is no lock, and
/// nothing else that opening it leaves.
fn is_unfinished(data: &Path) -> Result<bool, MoveError> {
    let names = disk::list(data)?;
    let is_copied = |name: &String| name == UNFINISHED_NAME || is_carried(name);
    Ok(names.iter().any(|name| name == UNFINISHED_NAME) && names.iter().all(is_copied))
}

/// A bundle that is arriving.
#[derive(Debug)]
pub(super) struct Landing<'a> {
    plan: MovePlan,
    sealed: &'a Sealed,
}

impl MovePlan {
    /// Plans the bundle of `sealed`, with the files `added` to it by a person and `data_bytes` of data, in `folder`. `source` is
    /// the bundle that it is made of, if it is made of one.
    ///
    /// # Errors
    /// Everything that can be known before the first byte is written; see [`MoveError`].
    pub(super) fn new(
        folder: &Path,
        sealed: &Sealed,
        added: &[Entry],
        data_bytes: u64,
        source: Option<&Path>,
        rules: Rules,
    ) -> Result<Self, MoveError> {
        if let Some(source) = source {
            check_apart(folder, source)?;
        }
        let entries = [sealed.manifest.files.as_slice(), added].concat();
        let (before, goes_on) = before(folder, sealed, rules)?;
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let mut removed: Vec<String> =
            before.into_iter().flat_map(|manifest| manifest.files).map(|entry| entry.path).collect();
        removed.retain(|path| !listed.contains(path.as_str()));
        let bytes = entries.iter().map(|entry| entry.size).sum();
        let mut plan = Self { folder: folder.into(), entries, removed, bytes, needed_bytes: data_bytes, goes_on };
        plan.check_ways()?;
        plan.check_strangers()?;
        plan.check_limits()?;
        if rules.with_data {
            let data = folder.join("data");
            let is_free = match disk::kind(&data)? {
                None => true,
                Some(Kind::Folder) => disk::list(&data)?.is_empty() || (plan.goes_on && is_unfinished(&data)?),
                Some(_) => false,
            };
            if !is_free {
                return Err(MoveError::HasData { folder: folder.into() });
            }
        }
        Ok(plan)
    }

    fn check_ways(&self) -> Result<(), MoveError> {
        let listed = self.entries.iter().map(|entry| entry.path.as_str());
        let paths = listed.chain(self.removed.iter().map(String::as_str));
        Ok(verify::check_ways(&self.folder, paths, &["data", "data.partial"])?)
    }

    /// Refuses what lies where only listed files may be: the finished bundle would be refused for it.
    fn check_strangers(&self) -> Result<(), MoveError> {
        let mut files: BTreeSet<String> = self.removed.iter().cloned().collect();
        let mut folders = BTreeSet::new();
        for path in self.removed.iter().chain(self.entries.iter().map(|entry| &entry.path)) {
            files.insert(path.clone());
            folders.extend(path.match_indices('/').map(|(end, _)| path[..end].to_owned()));
        }
        for folder in folders.iter().filter(|folder| *folder != "models") {
            let below = self.folder.join(folder);
            if !disk::is_folder(&below) {
                continue;
            }
            for (name, _) in disk::list_kinds(&below, 2 * ENTRIES_MAX)? {
                let path = format!("{folder}/{name}");
                let listed = path.strip_suffix(".chunks").unwrap_or(&path);
                let is_known = files.contains(listed) || folders.contains(&path) || name.ends_with(".partial");
                if !is_known {
                    return Err(BundleError::Unlisted { path: self.folder.join(path) }.into());
                }
            }
        }
        Ok(())
    }

    /// Checks the largest file and the free space.
    fn check_limits(&mut self) -> Result<(), MoveError> {
        let existing = self.folder.ancestors().find(|folder| disk::is_folder(folder)).unwrap_or(Path::new("."));
        let bytes_max = disk::file_bytes_max(existing)?;
        if let Some(entry) = self.entries.iter().find(|entry| entry.size > bytes_max) {
            let (path, bytes) = (entry.path.clone(), entry.size);
            return Err(MoveError::FileTooLarge { path, bytes, bytes_max });
        }
        for entry in &self.entries {
            if disk::size(&self.folder.join(&entry.path))? != Some(entry.size) {
                self.needed_bytes += entry.size + 32 * ChunkDigests::count_of(entry.size);
            }
        }
        let free_bytes = disk::free_bytes(existing)?;
        let needed_bytes = self.needed_bytes.saturating_add(SPACE_RESERVE_BYTES);
        if needed_bytes > free_bytes {
            return Err(MoveError::Space { folder: self.folder.clone(), needed_bytes, free_bytes });
        }
        Ok(())
    }
}

/// Refuses a folder that is in the bundle, or that the bundle is in.
pub(super) fn check_apart(folder: &Path, source: &Path) -> Result<(), MoveError> {
    let existing = folder.ancestors().find(|folder| disk::is_folder(folder)).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let (place, source) = (disk::canonical(existing)?, disk::canonical(source)?);
    // Where the folder isn't there yet, the one it will be in decides; the bundle can't be in a folder that isn't there.
    let is_there = disk::is_folder(folder);
    if place.starts_with(&source) || (is_there && source.starts_with(&place)) {
        return Err(MoveError::Inside { folder: folder.into() });
    }
    Ok(())
}

/// What is in the folder: the list of the bundle that is replaced, and whether the same one was begun there.
fn before(folder: &Path, sealed: &Sealed, rules: Rules) -> Result<(Option<Manifest>, bool), MoveError> {
    match disk::kind(folder)? {
        None => return Ok((None, false)),
        Some(Kind::File) => return Err(MoveError::Occupied { folder: folder.into() }),
        Some(Kind::Folder | Kind::Other) => {}
    }
    let names = disk::list(folder).map_err(|error| unreadable(folder, error))?;
    let list = folder.join(MANIFEST_NAME);
    let begun = disk::read(&folder.join(BEGUN_NAME), MANIFEST_BYTES_MAX);
    let is_begun = begun.as_ref().is_ok_and(|begun| *begun == sealed.manifest_bytes);
    // Power that goes while the list gets its name leaves both names on exFAT, and nothing behind the new one.
    let is_half_named = is_begun && disk::kind(&list)? == Some(Kind::File) && disk::size(&list)? == Some(0);
    if disk::kind(&list)?.is_some() && !is_half_named {
        if !rules.replace {
            return Err(MoveError::IsBundle { folder: folder.into() });
        }
        let found = Bundle::<Found>::find(Some(folder), folder)?;
        return Ok((Some(replaceable(&found, sealed, rules)?), false));
    }
    if is_begun {
        return Ok((None, true));
    }
    let is_only_begun = names.iter().all(|name| name == BEGUN_NAME);
    match begun {
        _ if is_only_begun => Ok((None, false)),
        // What the other one brought is removed where it isn't listed, as far as its list can be read.
        Ok(begun) if rules.replace => {
            let listed = std::str::from_utf8(&begun).ok().and_then(|text| Manifest::parse(text).ok());
            Ok((listed, false))
        }
        Ok(_) => Err(MoveError::OtherBegun { folder: folder.into() }),
        Err(_) => Err(MoveError::Occupied { folder: folder.into() }),
    }
}

/// Tells a folder that the file system itself has lost, as when power goes while it is made, from a drive that is gone.
fn unreadable(folder: &Path, error: DiskError) -> MoveError {
    let is_drive_there = folder.parent().is_some_and(|parent| disk::list(parent).is_ok());
    match error {
        DiskError::Gone { .. } if is_drive_there => MoveError::LostFolder { folder: folder.into() },
        error => error.into(),
    }
}

fn replaceable(found: &Bundle<Found>, sealed: &Sealed, rules: Rules) -> Result<Manifest, MoveError> {
    let folder = found.root().to_path_buf();
    let text = String::from_utf8_lossy(&found.state.manifest_bytes);
    let path = folder.join(MANIFEST_NAME);
    let manifest = Manifest::parse(&text).map_err(|source| BundleError::Manifest { path, source })?;
    let signature = disk::read_text(&folder.join(SIGNATURE_NAME), SIGNATURE_BYTES_MAX).ok();
    let signature = signature.and_then(|text| Signature::parse(&text).ok());
    // A list whose signature doesn't fit is damaged, and says nothing about who sealed it.
    let signer: Option<SealPublicKey> =
        signature.filter(|it| it.verify(&found.state.manifest_bytes).is_ok()).map(|it| it.public_key);
    if let Some(key) = signer.filter(|key| *key != sealed.seal_key) {
        return Err(MoveError::OtherSeal { folder, short_key: key.short() });
    }
    let (found, generation) = (manifest.generation, sealed.manifest.generation);
    if found > generation && !rules.allow_older {
        return Err(MoveError::Older { folder, found, generation });
    }
    Ok(manifest)
}

impl<'a> Landing<'a> {
    /// Begins: from now on the folder isn't a bundle until [`Landing::finish`].
    ///
    /// # Errors
    /// What writing can meet.
    pub(super) fn begin(plan: MovePlan, sealed: &'a Sealed) -> Result<Self, MoveError> {
        let folder = plan.folder.clone();
        disk::create_folder(&folder)?;
        if !plan.goes_on {
            let path = folder.join(BEGUN_NAME);
            disk::remove(&path)?;
            let file = disk::open_or_create(&path)?;
            disk::write_at(&file, &path, 0, &sealed.manifest_bytes)?;
            disk::sync(&file, &path)?;
            disk::sync_folder(&folder)?;
        }
        disk::remove(&folder.join(MANIFEST_NAME))?;
        disk::remove(&folder.join(SIGNATURE_NAME))?;
        for path in &plan.removed {
            let file = folder.join(path);
            disk::remove(&sidecar_path(&file))?;
            disk::remove(&file)?;
            for (end, _) in path.rmatch_indices('/') {
                let emptied = folder.join(&path[..end]);
                match disk::kind(&emptied)? {
                    Some(Kind::Folder) if disk::list(&emptied)?.is_empty() => disk::remove_folder(&emptied)?,
                    _ => break,
                }
            }
        }
        disk::write(&folder.join(NEVER_INDEX_NAME), b"")?;
        Ok(Self { plan, sealed })
    }

    /// What is to be done.
    pub(super) fn plan(&self) -> &MovePlan {
        &self.plan
    }

    /// Where data is put until the bundle is whole.
    pub(super) fn data_begun(&self) -> PathBuf {
        self.plan.folder.join("data.partial")
    }

    /// Makes that folder anew, marked as what it is until the bundle is whole.
    pub(super) fn begin_data(&self) -> Result<PathBuf, MoveError> {
        let folder = self.data_begun();
        // What an interrupted copy left is older than what is carried now.
        disk::remove_folder(&folder)?;
        disk::create_folder(&folder)?;
        disk::write(&folder.join(UNFINISHED_NAME), b"")?;
        Ok(folder)
    }

    /// As [`has()`], in the folder of this bundle.
    pub(super) fn has(&self, entry: &Entry, sink: MoveSink) -> Result<bool, MoveError> {
        has(&self.plan.folder, entry, sink)
    }

    /// Starts the file of `entry`.
    pub(super) fn file(&self, entry: &Entry) -> Result<LandingFile, MoveError> {
        LandingFile::begin(&self.plan.folder, entry)
    }

    /// Removes all that was put here: of an archive that turned out to be something else, nothing stays. `made` says
    /// whether the folder itself was made for it.
    pub(super) fn undo(self, made: bool) {
        let folder = &self.plan.folder;
        for entry in &self.plan.entries {
            let path = folder.join(&entry.path);
            // What can't be removed is found and named when the next one is begun there.
            let _ = disk::remove(&sidecar_path(&path));
            let _ = disk::remove(&path);
            for (end, _) in entry.path.rmatch_indices('/') {
                let below = folder.join(&entry.path[..end]);
                if disk::list(&below).is_ok_and(|names| names.is_empty()) {
                    let _ = disk::remove_folder(&below);
                }
            }
        }
        let _ = disk::remove(&folder.join(NEVER_INDEX_NAME));
        let _ = disk::remove(&folder.join(BEGUN_NAME));
        if made && disk::list(folder).is_ok_and(|names| names.is_empty()) {
            let _ = disk::remove_folder(folder);
        }
    }

    /// Reads everything back from the medium, and then makes the folder a bundle.
    ///
    /// # Errors
    /// [`MoveError::NotKept`], and what reading and writing can meet. The folder isn't a bundle then.
    pub(super) fn finish(self, sink: MoveSink) -> Result<(Bundle<Verified>, Medium), MoveError> {
        let folder = &self.plan.folder;
        let mut medium = read_back::listed(folder, &self.plan.entries, sink)?;
        let begun = folder.join(BEGUN_NAME);
        read_back::bytes(&begun, &self.sealed.manifest_bytes, &mut medium)?;
        let (data, data_begun) = (folder.join("data"), self.data_begun());
        if disk::is_folder(&data_begun) {
            if disk::is_folder(&data) {
                disk::remove_folder(&data)?;
            }
            read_back::rename_folder(&data_begun, &data)?;
        } else {
            disk::create_folder(&data)?;
        }
        let signature = self.sealed.signature_text.as_bytes();
        disk::write(&folder.join(SIGNATURE_NAME), signature)?;
        // The list comes last: with its name the folder is a bundle.
        disk::rename(&begun, &folder.join(MANIFEST_NAME))?;
        disk::remove(&data.join(UNFINISHED_NAME))?;
        disk::forget_blocks(folder);
        read_back::bytes(&folder.join(MANIFEST_NAME), &self.sealed.manifest_bytes, &mut medium)?;
        read_back::bytes(&folder.join(SIGNATURE_NAME), signature, &mut medium)?;
        let bundle = Bundle::<Found>::find(Some(folder), folder)?.verify(Trust::Release(self.sealed.seal_key))?;
        Ok((bundle, medium))
    }
}

/// One file that is arriving: it gets its name only if it is what the list says.
pub(super) struct LandingFile {
    file: PartialFile,
    path: PathBuf,
    entry: Entry,
    hasher: StreamHasher,
}

/// Whether the file is there already and whole, as after an interruption. Reads it if it has the right length.
pub(super) fn has(folder: &Path, entry: &Entry, sink: MoveSink) -> Result<bool, MoveError> {
    let path = folder.join(&entry.path);
    if disk::size(&path)? != Some(entry.size) {
        return Ok(false);
    }
    let (file, size) = disk::open(&path)?;
    let mut hasher = StreamHasher::new();
    let mut piece = Vec::new();
    let mut offset = 0;
    while offset < size {
        piece.resize((size - offset).min(u64::from(CHUNK_BYTES)) as usize, 0);
        disk::read_at(&file, &path, offset, &mut piece)?;
        hasher.update(&piece);
        offset += piece.len() as u64;
    }
    let (_, sha256, chunks) = hasher.finish();
    if sha256 != entry.sha256 {
        return Ok(false);
    }
    write_sidecar(&path, entry, &chunks)?;
    step(sink, Progress::Written(size))?;
    Ok(true)
}

impl LandingFile {
    /// Starts the file of `entry` below `folder`.
    pub(super) fn begin(folder: &Path, entry: &Entry) -> Result<Self, MoveError> {
        let path = folder.join(&entry.path);
        path.parent().map_or(Ok(()), disk::create_folder)?;
        let file = PartialFile::create(&path)?;
        Ok(Self { file, path, entry: entry.clone(), hasher: StreamHasher::new() })
    }

    /// Appends a piece.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), MoveError> {
        self.hasher.update(piece);
        Ok(self.file.write(piece)?)
    }

    /// Compares it with the list, and gives it its name; `false` where it is something else, which is then removed.
    pub(super) fn finish(self) -> Result<bool, MoveError> {
        let (size, sha256, chunks) = self.hasher.finish();
        if (size, sha256) != (self.entry.size, self.entry.sha256) {
            return Ok(false);
        }
        write_sidecar(&self.path, &self.entry, &chunks)?;
        self.file.finish()?;
        if matches!(self.entry.role, FileRole::Program | FileRole::Launcher) {
            disk::make_executable(&self.path)?;
        }
        Ok(true)
    }
}

/// Writes the sidecar of a large file, where it isn't there yet.
fn write_sidecar(path: &Path, entry: &Entry, chunks: &ChunkDigests) -> Result<(), MoveError> {
    let sidecar = sidecar_path(path);
    if entry.size <= CHUNKED_ABOVE_BYTES {
        return Ok(disk::remove(&sidecar)?);
    }
    let content = chunks.to_sidecar();
    let known = disk::read(&sidecar, content.len() as u64);
    if known.ok().as_ref() != Some(&content) {
        disk::write(&sidecar, &content)?;
    }
    Ok(())
}
