//! A model fetched from the Hub into the bundle: chunk by chunk, resumable, read back, and adopted without a second copy.
//!
//! What is fetched lies in `models/pull+NAME.partial`, a name that no model can have: `FILE.partial` and, as in a sidecar,
//! the digests of its chunks in `FILE.chunks`. A later pull reads those chunks and fetches only what isn't there or is
//! damaged. The Hub vouches for whole files alone, so one that is complete but wrong is fetched again as a whole.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sha1::{Digest as _, Sha1};

use super::description::{DESCRIPTION_NAME, Description};
use super::name::{is_model_name, model_name_from};
use super::source::{SMALL_FILE_BYTES_MAX, is_wanted, is_weights};
use super::verification::Meter;
use super::{ImportPlan, ImportReport, Library, LibraryError, import};
use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, ChunkDigests, Sha256Digest, StreamHasher};
use crate::disk::{self, FAT32_FILE_BYTES_MAX, Kind};
use crate::hub::{Hub, HubError, RemoteDigest, RemoteFile};
use crate::manifest::{Entry, FileRole};
use crate::model_folder::weights::INDEX_NAME;
use crate::model_folder::{ProgressSink, Step};
use crate::verified::sidecar_path;

/// How often, in chunks, what was fetched is made durable: 64 MiB.
const SYNCED_CHUNKS: u64 = 16;
/// The record of what is being pulled.
pub(super) const RECORD_NAME: &str = "pull.toml";
/// The longest record, in bytes.
const RECORD_BYTES_MAX: u64 = 4096;
/// What a file takes on a drive besides its bytes.
const CLUSTER_BYTES: u64 = 128 * 1024;

/// What a person asks for.
#[derive(Clone, Copy, Debug)]
pub struct PullRequest<'a> {
    /// The repository: `org/name`.
    pub repo: &'a str,
    /// The branch, tag or commit; `main`, or the commit of an unfinished pull, if not given.
    pub revision: Option<&'a str>,
    /// What to call the model.
    pub name: Option<&'a str>,
    /// The Modelfile that it gets, instead of one that only names it.
    pub modelfile: Option<&'a str>,
}

/// A pull that can be shown before it is carried out.
#[derive(Clone, Debug)]
pub struct PullPlan {
    /// What the model will be called.
    pub name: String,
    /// The repository.
    pub repo: String,
    /// The commit that is fetched.
    pub commit: String,
    /// Its licence, as its page states it.
    pub licence: Option<String>,
    /// The files that are fetched.
    pub files: Vec<RemoteFile>,
    /// How many bytes an unfinished pull has fetched already, as far as sizes tell.
    pub kept_bytes: u64,
    pub(super) modelfile: Option<String>,
    /// Where it came from before, and which revision of that, where that isn't the repository.
    pub(super) origin: Option<(String, Option<String>)>,
}

impl PullPlan {
    /// How many bytes the files have together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |all: u64, file| all.saturating_add(file.size))
    }

    /// How many bytes of the drive are still needed; twice the model where files have to be split to fit every drive.
    pub fn needed_bytes(&self) -> u64 {
        let is_split = self.files.iter().any(|file| file.size > FAT32_FILE_BYTES_MAX);
        let extra =
            CLUSTER_BYTES.saturating_mul(2 * self.files.len() as u64 + 4).saturating_add(self.bytes() / 131_072);
        let copy = if is_split { self.bytes() } else { 0 };
        (self.bytes() - self.kept_bytes.min(self.bytes())).saturating_add(extra).saturating_add(copy)
    }

    fn record(&self) -> String {
        format!("repo = \"{}\"\ncommit = \"{}\"\n", self.repo, self.commit)
    }
}

/// The names of the models whose pull isn't finished.
///
/// # Errors
/// What listing can meet.
pub fn unfinished(models_folder: &Path) -> Result<Vec<String>, LibraryError> {
    if !disk::is_folder(models_folder) {
        return Ok(Vec::new());
    }
    let name = |name: String| Some(name.strip_prefix("pull+")?.strip_suffix(".partial")?.to_owned());
    Ok(disk::list(models_folder)?.into_iter().filter_map(name).filter(|name| is_model_name(name)).collect())
}

impl Library {
    pub(super) fn pull_folder(&self, name: &str) -> PathBuf {
        self.models_folder.join(format!("pull+{name}.partial"))
    }

    /// Where what an unfinished pull has fetched is.
    pub(super) fn begun_folder(&self, name: &str) -> PathBuf {
        let (pull, unlisted) = (self.pull_folder(name), self.models_folder.join(name));
        if !disk::exists(&pull) && disk::exists(&unlisted) { unlisted } else { pull }
    }

    /// Asks the server what a pull would fetch. Nothing is written but the folder of the models.
    ///
    /// # Errors
    /// [`LibraryError::Locked`], names, [`LibraryError::Hub`], a repository that is no model, and too little space.
    pub fn plan_pull(
        &self,
        hub: &Hub,
        request: PullRequest,
        tick: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<PullPlan, LibraryError> {
        if self.key.is_none() {
            return Err(LibraryError::Locked);
        }
        let repo = request.repo;
        let name = request.name.map(str::to_owned).or_else(|| model_name_from(repo.rsplit('/').next()?));
        let name = name.filter(|name| is_model_name(name));
        let name = name.ok_or_else(|| LibraryError::Name { name: request.name.unwrap_or(repo).into() })?;
        if self.is_taken(&name) {
            return Err(LibraryError::Taken { name });
        }
        let folder = self.begun_folder(&name);
        let begun = begun_commit(&folder, repo);
        let revision = request.revision.or(begun.as_deref()).unwrap_or("main");
        let listing = hub.listing(repo, revision, tick)?;
        let files = select(repo, listing.files)?;
        let mut plan = PullPlan {
            name,
            repo: repo.into(),
            commit: listing.commit,
            licence: listing.licence,
            files,
            kept_bytes: 0,
            modelfile: request.modelfile.map(str::to_owned),
            origin: None,
        };
        if begun.as_deref() == Some(&plan.commit) {
            let kept = |file: &RemoteFile| {
                let size = |name: &str| disk::size_unopened(&folder.join(name)).ok().flatten();
                size(&file.path).or_else(|| size(&format!("{}.partial", file.path))).unwrap_or(0).min(file.size)
            };
            plan.kept_bytes = plan.files.iter().map(kept).sum();
        }
        disk::create_folder(&self.models_folder)?;
        import::check_space(plan.needed_bytes(), disk::free_bytes(&self.models_folder)?)?;
        Ok(plan)
    }

    /// Fetches what was planned, reads it back, and lists it. What was fetched stays where it can't be finished.
    ///
    /// # Errors
    /// [`LibraryError::Hub`], [`LibraryError::Pulled`], what an import can meet, and what reading and writing can meet.
    pub fn pull(&mut self, hub: &Hub, plan: &PullPlan, sink: ProgressSink) -> Result<ImportReport, LibraryError> {
        let folder = self.pull_folder(&plan.name);
        self.take_back(&plan.name, &folder)?;
        begin(plan, &folder)?;
        let total_bytes = plan.bytes();
        let mut meter = Meter { step: Step::Downloading, done_bytes: 0, total_bytes, sink: &mut *sink };
        for file in &plan.files {
            fetch(hub, plan, &folder, file, &mut meter)?;
        }
        let mut meter = Meter { step: Step::Verifying, done_bytes: 0, total_bytes, sink: &mut *sink };
        let mut entries = Vec::new();
        for file in &plan.files {
            entries.push(read_back(&folder, file, &mut meter)?);
        }
        self.adopt(plan, &folder, entries, sink)
    }

    /// Makes the complete folder of a pull a model.
    pub(super) fn adopt(
        &mut self,
        plan: &PullPlan,
        folder: &Path,
        mut entries: Vec<Entry>,
        sink: ProgressSink,
    ) -> Result<ImportReport, LibraryError> {
        if let Some(modelfile) = &plan.modelfile {
            disk::write(&folder.join("Modelfile"), modelfile.as_bytes())?;
        }
        let import = import::plan(folder, Some(&plan.name), FAT32_FILE_BYTES_MAX, &mut *sink)?;
        let (source, revision) = match &plan.origin {
            Some((source, revision)) => (source.as_str(), revision.as_deref()),
            None => (plan.repo.as_str(), Some(plan.commit.as_str())),
        };
        let import = import.with_provenance(Some(source), revision, plan.licence.as_deref());
        if import.is_resharded() {
            let report = self.import(&import, sink)?;
            disk::remove_folder(folder)?;
            return Ok(report);
        }
        let description = complete(&import, folder, &mut entries)?;
        // Where that fails, it stays a pull that a later one finishes.
        self.count(folder, &plan.name, entries.clone())?;
        Ok(ImportReport { name: plan.name.clone(), description, entries, losses: Vec::new() })
    }
}

/// Adds our own files to a folder, and removes what no model has.
fn complete(import: &ImportPlan, folder: &Path, entries: &mut Vec<Entry>) -> Result<Description, LibraryError> {
    let mut add = |name: &str, content: &[u8]| -> Result<(), LibraryError> {
        disk::write(&folder.join(name), content)?;
        entries.retain(|entry| entry.path != name);
        let (size, sha256) = (content.len() as u64, Sha256Digest::of(content));
        entries.push(Entry { path: name.into(), size, sha256, role: FileRole::Model, chunks_sha256: None });
        Ok(())
    };
    add("Modelfile", &import.modelfile_in(folder)?)?;
    if let Some(index) = import.index() {
        add(INDEX_NAME, index.as_bytes())?;
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let description = Description { files: entries.clone(), ..import.description().clone() };
    let text = description.print();
    disk::write(&folder.join(DESCRIPTION_NAME), text.as_bytes())?;
    let (size, sha256) = (text.len() as u64, Sha256Digest::of(text.as_bytes()));
    entries.push(Entry { path: DESCRIPTION_NAME.into(), size, sha256, role: FileRole::Model, chunks_sha256: None });
    import::check_written(folder, entries)?;
    let listed = |name: &str| {
        entries.iter().any(|e| e.path == name || e.chunks_sha256.is_some() && format!("{}.chunks", e.path) == name)
    };
    for (name, kind) in disk::list_kinds(folder, 10_000)? {
        match kind {
            // The record goes when the model is listed.
            _ if listed(&name) || name == RECORD_NAME => {}
            Kind::Folder => disk::remove_folder(&folder.join(name))?,
            _ => disk::remove(&folder.join(name))?,
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(description)
}

/// The commit of an unfinished pull of `repo`.
pub(super) fn begun_commit(folder: &Path, repo: &str) -> Option<String> {
    let text = disk::read_text(&folder.join(RECORD_NAME), RECORD_BYTES_MAX).ok()?;
    let record: toml::Table = toml::from_str(&text).ok()?;
    let commit = record.get("commit")?.as_str().filter(|commit| crate::hub::listing::is_revision(commit))?;
    (record.get("repo")?.as_str() == Some(repo)).then(|| commit.to_owned())
}

/// Keeps the folder of an unfinished pull of the same commit, and makes a new one otherwise.
pub(super) fn begin(plan: &PullPlan, folder: &Path) -> Result<(), LibraryError> {
    let is_same = begun_commit(folder, &plan.repo).as_deref() == Some(&plan.commit);
    if disk::kind(folder)?.is_some_and(|kind| kind != Kind::Folder) {
        disk::remove(folder)?;
    } else if !is_same {
        disk::remove_folder(folder)?;
    }
    disk::create_folder(folder)?;
    for (name, kind) in disk::list_kinds(folder, 10_000)? {
        // A link would be followed; nothing of ours is one.
        if kind == Kind::Other {
            disk::remove(&folder.join(name))?;
        }
    }
    Ok(disk::write(&folder.join(RECORD_NAME), plan.record().as_bytes())?)
}

/// How many bytes are in the folder of an unfinished transfer, as far as sizes tell.
pub(super) fn bytes_in(folder: &Path) -> Result<u64, LibraryError> {
    let mut bytes: u64 = 0;
    for (name, kind) in disk::list_kinds(folder, 10_000)? {
        let path = folder.join(name);
        bytes = bytes.saturating_add(match kind {
            Kind::File => disk::size_unopened(&path)?.unwrap_or(0),
            Kind::Folder => bytes_in(&path)?,
            Kind::Other => 0,
        });
    }
    Ok(bytes)
}

/// The files that a model's folder needs.
pub(super) fn select(repo: &str, files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, LibraryError> {
    let refused = |what: &str| LibraryError::source_refused(Path::new(repo), what);
    let has_gguf = files.iter().any(|file| file.path.ends_with(".gguf"));
    let needed = |name: &str| is_wanted(name) && !matches!(name, "README.md" | "Modelfile");
    let mut chosen: Vec<RemoteFile> = files;
    chosen.retain(|file| needed(&file.path) || is_weights(&file.path) || file.path == INDEX_NAME);
    chosen.sort_by(|a, b| is_weights(&a.path).cmp(&is_weights(&b.path)).then(a.path.cmp(&b.path)));
    let has = |name: &str| chosen.iter().any(|file| file.path == name);
    match chosen.iter().find(|file| !is_weights(&file.path) && file.size > SMALL_FILE_BYTES_MAX) {
        _ if !chosen.iter().any(|file| is_weights(&file.path)) && has_gguf => {
            return Err(refused("it has only `.gguf` files; download one and import it"));
        }
        _ if !chosen.iter().any(|file| is_weights(&file.path)) => {
            return Err(refused("it has no `model*.safetensors`"));
        }
        _ if !has("config.json") => return Err(refused("it has no `config.json`")),
        _ if !has("tokenizer.json") => return Err(refused("it has no `tokenizer.json`")),
        Some(file) => return Err(refused(&format!("its `{}` has {} bytes", file.path, file.size))),
        None => {}
    }
    super::shard_names::check(chosen.iter().map(|file| file.path.as_str())).map_err(|what| refused(&what))?;
    let mut names: Vec<String> = chosen.iter().map(|file| file.path.to_ascii_lowercase()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(refused(&format!("its file `{}` is there twice", pair[0]))),
        None if chosen.len() > super::description::FILES_MAX => Err(refused("it has too many files")),
        None => Ok(chosen),
    }
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn chunk_len(size: u64, chunk_idx: u64) -> usize {
    (size - chunk_idx * u64::from(CHUNK_BYTES)).min(CHUNK_BYTES.into()) as usize
}

/// Which chunks of the partial file are what their recorded digests say.
fn good_chunks(partial: &Path, size: u64) -> Result<Vec<bool>, LibraryError> {
    let count = ChunkDigests::count_of(size);
    let mut good = vec![false; usize::try_from(count).unwrap_or(usize::MAX).min(1 << 24)];
    let whole = partial.with_extension("");
    let digests = match disk::read(&sidecar_path(&whole), count.saturating_mul(32)) {
        Ok(digests) => digests,
        // Without its record nothing of it counts.
        Err(_) => return Ok(good),
    };
    let Some(there) = disk::size_unopened(partial)? else { return Ok(good) };
    let (file, _) = disk::open(partial)?;
    let mut chunk = Vec::new();
    for (chunk_idx, digest) in digests.as_chunks::<32>().0.iter().enumerate() {
        let (at, len) = (chunk_idx as u64 * u64::from(CHUNK_BYTES), chunk_len(size, chunk_idx as u64));
        if at + len as u64 <= there {
            chunk.resize(len, 0);
            disk::read_at(&file, partial, at, &mut chunk)?;
            good[chunk_idx] = Sha256Digest::of(&chunk).0 == *digest;
        }
    }
    Ok(good)
}

/// How many bytes the good chunks have.
fn good_bytes(good: &[bool], size: u64) -> u64 {
    good.iter().enumerate().filter(|(_, good)| **good).map(|(idx, _)| chunk_len(size, idx as u64) as u64).sum()
}

/// Fetches the chunks of `file` that aren't there.
fn fetch(hub: &Hub, plan: &PullPlan, folder: &Path, file: &RemoteFile, meter: &mut Meter) -> Result<(), LibraryError> {
    let whole = folder.join(&file.path);
    let (partial, record) = (partial_path(&whole), sidecar_path(&whole));
    if disk::size(&whole)? == Some(file.size) {
        return meter.add(file.size);
    }
    let mut good = good_chunks(&partial, file.size)?;
    let (before, mut attempt) = (meter.done_bytes, 0);
    let (bytes_file, digests_file) = (disk::open_or_create(&partial)?, disk::open_or_create(&record)?);
    while let Some(start) = good.iter().position(|good| !good) {
        let end = good[start..].iter().position(|good| *good).map_or(good.len(), |n| start + n);
        let there = good_bytes(&good, file.size);
        meter.done_bytes = before + there;
        let at = |chunk_idx: usize| (chunk_idx as u64 * u64::from(CHUNK_BYTES)).min(file.size);
        let (mut chunk_idx, mut chunk, mut failed) = (start, Vec::new(), None);
        let mut take = |mut piece: &[u8]| -> Result<(), LibraryError> {
            meter.add(piece.len() as u64)?;
            while !piece.is_empty() {
                let len = chunk_len(file.size, chunk_idx as u64);
                let (now, rest) = piece.split_at(piece.len().min(len - chunk.len()));
                chunk.extend_from_slice(now);
                piece = rest;
                if chunk.len() == len {
                    disk::write_at(&bytes_file, &partial, at(chunk_idx), &chunk)?;
                    if (chunk_idx as u64 + 1).is_multiple_of(SYNCED_CHUNKS) {
                        disk::sync(&bytes_file, &partial)?;
                    }
                    disk::write_at(&digests_file, &record, chunk_idx as u64 * 32, &Sha256Digest::of(&chunk).0)?;
                    good[chunk_idx] = true;
                    chunk_idx += 1;
                    chunk.clear();
                }
            }
            Ok(())
        };
        let fetched = hub.fetch(&plan.repo, &plan.commit, file, at(start)..at(end), &mut |piece| match take(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        });
        match (failed, fetched) {
            (Some(error), _) => return Err(error),
            (None, Ok(())) => {}
            (None, Err(error)) => {
                attempt = if chunk_idx > start { 0 } else { attempt + 1 };
                if !error.is_passing() || attempt >= hub.limits().attempts {
                    return Err(error.into());
                }
                let mut tick = || meter.add(0).map_or(ControlFlow::Break(()), ControlFlow::Continue);
                hub.wait(&error, attempt, &mut tick)?;
            }
        }
    }
    meter.done_bytes = before + file.size;
    disk::sync(&bytes_file, &partial)?;
    disk::sync(&digests_file, &record)?;
    Ok(disk::rename(&partial, &whole)?)
}

/// Reads a complete file from the medium and compares it with what the Hub promises.
pub(super) fn read_back(folder: &Path, file: &RemoteFile, meter: &mut Meter) -> Result<Entry, LibraryError> {
    let path = folder.join(&file.path);
    disk::forget_cached(&path)?;
    let (opened, _) = disk::open(&path)?;
    let (mut hasher, mut blob) = (StreamHasher::new(), Sha1::new());
    blob.update(format!("blob {}\0", file.size).as_bytes());
    let mut chunk = Vec::new();
    for chunk_idx in 0..ChunkDigests::count_of(file.size) {
        chunk.resize(chunk_len(file.size, chunk_idx), 0);
        disk::read_at(&opened, &path, chunk_idx * u64::from(CHUNK_BYTES), &mut chunk)?;
        hasher.update(&chunk);
        if matches!(file.digest, RemoteDigest::GitSha1(_)) {
            blob.update(&chunk);
        }
        meter.add(chunk.len() as u64)?;
    }
    let (size, sha256, chunks) = hasher.finish();
    let is_right = match file.digest {
        RemoteDigest::Sha256(expected) => expected == sha256,
        RemoteDigest::GitSha1(expected) => blob.finalize()[..] == expected,
    };
    let (sidecar, record) = (chunks.to_sidecar(), sidecar_path(&path));
    if !is_right {
        let recorded = disk::read(&record, sidecar.len() as u64).unwrap_or_default();
        if recorded.len() == sidecar.len() && recorded != sidecar {
            // The drive changed chunks after they came: a later pull fetches only those.
            disk::rename(&path, &partial_path(&path))?;
        } else {
            disk::remove(&path)?;
            disk::remove(&record)?;
        }
        return Err(LibraryError::Pulled { name: file.path.clone() });
    }
    let mut chunks_sha256 = None;
    if size > CHUNKED_ABOVE_BYTES {
        disk::write(&record, &sidecar)?;
        chunks_sha256 = Some(Sha256Digest::of(&sidecar));
    }
    Ok(Entry { path: file.path.clone(), size, sha256, role: FileRole::Model, chunks_sha256 })
}

impl LibraryError {
    /// Whether the network was what failed, or was stopped.
    pub fn hub(&self) -> Option<&HubError> {
        match self {
            Self::Hub(error) => Some(error),
            _ => None,
        }
    }
}
