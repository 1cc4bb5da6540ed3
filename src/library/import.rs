//! An import: planned, shown, then carried out.

use std::path::{Path, PathBuf};

use super::archive;
use super::checkpoint::{CONFIG_BYTES_MAX, Config};
use super::description::{DESCRIPTION_NAME, Description};
use super::name::is_model_name;
use super::source::{self, Content, FilesSource, Prepared};
use super::verification;
use super::{LibraryError, ModelFolderError};
use crate::disk;
use crate::engine::gguf::TensorLoss;
use crate::manifest::Entry;
use crate::model_folder::weights::{INDEX_NAME, ShardSequence, WeightsFile};
use crate::model_folder::{ModelFolderWriter, ProgressSink};
use crate::verified::IntegrityError;

/// How many bytes are copied at once.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// What a file takes on a drive besides its bytes: the rest of its last cluster, on exFAT at most this.
const CLUSTER_BYTES: u64 = 128 * 1024;

/// An import that can be shown before it is carried out.
pub struct ImportPlan {
    name: String,
    source: PathBuf,
    prepared: Prepared,
    files: Vec<(String, u64)>,
}

impl std::fmt::Debug for ImportPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportPlan").field("name", &self.name).field("files", &self.files).finish_non_exhaustive()
    }
}

impl ImportPlan {
    /// What the model will be called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known about it before its numbers are read; without its files.
    pub fn description(&self) -> &Description {
        &self.prepared.description
    }

    /// The files that will be written with their sizes in bytes, but `model.toml` and sidecars.
    pub fn files(&self) -> &[(String, u64)] {
        &self.files
    }

    /// How many bytes those have together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).fold(0, |all: u64, &bytes| all.saturating_add(bytes))
    }

    /// How many bytes of the drive are needed, with sidecars and clusters.
    pub fn needed_bytes(&self) -> u64 {
        let sidecars = self.bytes() / (PIECE_BYTES as u64 / 32);
        let clusters = CLUSTER_BYTES.saturating_mul(2 * self.files.len() as u64 + 4);
        self.bytes().saturating_add(sidecars).saturating_add(clusters)
    }

    /// Whether weights have to be laid out anew.
    pub(super) fn is_resharded(&self) -> bool {
        matches!(self.prepared.content, Content::Files(FilesSource { resharded: Some(_), .. }))
    }

    /// The index to be written, where the source's own isn't right.
    pub(super) fn index(&self) -> Option<&str> {
        match &self.prepared.content {
            Content::Files(content) => content.index.as_deref(),
            _ => None,
        }
    }

    /// The text of the Modelfile: the folder's own, or one that only names the model.
    pub(super) fn modelfile_in(&self, folder: &Path) -> Result<Vec<u8>, LibraryError> {
        if self.prepared.has_modelfile {
            return Ok(disk::read(&folder.join("Modelfile"), super::MODELFILE_BYTES_MAX)?);
        }
        Ok(default_modelfile(&self.prepared.description).into_bytes())
    }

    /// Says where the model comes from better than its source does; `None` leaves that as it is.
    pub fn with_provenance(mut self, source: Option<&str>, revision: Option<&str>, licence: Option<&str>) -> Self {
        let description = &mut self.prepared.description;
        description.source = source.map_or(std::mem::take(&mut description.source), str::to_owned);
        description.revision = revision.map(str::to_owned).or(description.revision.take());
        description.licence = licence.map(str::to_owned).or(description.licence.take());
        self
    }
}

/// What an import did.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// What the model is called.
    pub name: String,
    /// What `model.toml` now says.
    pub description: Description,
    /// All its files, `model.toml` too.
    pub entries: Vec<Entry>,
    /// What became of each tensor; empty where weights were copied.
    pub losses: Vec<TensorLoss>,
}

/// Looks through the source and decides the name.
pub(super) fn plan(
    source: &Path,
    name: Option<&str>,
    shard_bytes_max: u64,
    sink: ProgressSink,
) -> Result<ImportPlan, LibraryError> {
    if let Some(name) = name.filter(|name| !is_model_name(name)) {
        return Err(LibraryError::Name { name: name.into() });
    }
    let mut prepared = source::prepare(source, shard_bytes_max, sink)?;
    let Some(name) = name.map(str::to_owned).or(prepared.name.take()) else {
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(LibraryError::Name { name });
    };
    prepared.description.name = name.clone();
    let mut files = match &prepared.content {
        Content::Files(content) => content.files(),
        Content::Gguf(conversion) => conversion.files().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
        Content::Archive(archive) => archive.files.clone(),
    };
    if !prepared.has_modelfile {
        files.push(("Modelfile".into(), default_modelfile(&prepared.description).len() as u64));
    }
    files.sort();
    Ok(ImportPlan { name, source: source.into(), prepared, files })
}

/// Checks that what is needed is free.
pub(super) fn check_space(needed_bytes: u64, free_bytes: u64) -> Result<(), LibraryError> {
    match needed_bytes <= free_bytes {
        true => Ok(()),
        false => Err(LibraryError::Space { needed_bytes, free_bytes }),
    }
}

/// The Modelfile of a model that comes without one.
fn default_modelfile(description: &Description) -> String {
    let source: String = description.source.chars().filter(|c| !c.is_control()).collect();
    format!(
        "# {}, imported from {source}.\n# This file is verified with the model: copy it to change it.\nFROM .\n",
        description.name
    )
}

/// Writes what was planned into `folder`, reads it back and verifies it.
pub(super) fn write(plan: &ImportPlan, folder: &Path, sink: ProgressSink) -> Result<ImportReport, LibraryError> {
    let prepared = &plan.prepared;
    let mut writer = ModelFolderWriter::create(folder, plan.bytes(), &mut *sink)?;
    let losses = match &prepared.content {
        Content::Files(content) => {
            copy_files(content, &mut writer)?;
            Vec::new()
        }
        Content::Gguf(conversion) => conversion.write(&mut writer)?,
        Content::Archive(archive) => {
            archive::extract(archive, &mut writer)?;
            Vec::new()
        }
    };
    if !prepared.has_modelfile {
        writer.write_file("Modelfile", default_modelfile(&prepared.description).as_bytes())?;
    }
    writer.end()?;
    let mut description = prepared.description.clone();
    description.files = writer.entries().to_vec();
    description.files.sort_by(|a, b| a.path.cmp(&b.path));
    if !losses.is_empty() {
        description.loss = Some(loss_in_words(&losses));
    }
    if let Some(own) = &prepared.own {
        compare(own, &description.files, &prepared.content, &plan.source)?;
    }
    writer.write_file(DESCRIPTION_NAME, description.print().as_bytes())?;
    let entries = writer.finish()?;
    let mut report = verification::verify(&plan.name, folder, &entries, sink)?;
    if !report.damaged.is_empty() {
        return Err(report.damaged.swap_remove(0).into());
    }
    check_written(folder, &entries)?;
    Ok(ImportReport { name: plan.name.clone(), description, entries, losses })
}

/// What a conversion lost, in words: `none`, or the largest error compared with the largest number of its tensor.
fn loss_in_words(losses: &[TensorLoss]) -> String {
    let lossy: Vec<&TensorLoss> = losses.iter().filter(|loss| loss.error_max > 0.0).collect();
    if lossy.is_empty() {
        return "none".into();
    }
    let worst = lossy.iter().map(|loss| loss.error_max / loss.element_max).fold(0.0, f64::max);
    let mut kinds: Vec<&str> = lossy.iter().map(|loss| loss.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    format!(
        "{} of {} tensors ({}): off by at most {worst:.5} of the tensor's largest number",
        lossy.len(),
        losses.len(),
        kinds.join(", ")
    )
}

fn copy_files(content: &FilesSource, writer: &mut ModelFolderWriter) -> Result<(), LibraryError> {
    for file in &content.small {
        writer.write_file(&file.name, &disk::read(&file.path, source::SMALL_FILE_BYTES_MAX)?)?;
    }
    if let Some(index) = &content.index {
        writer.write_file(INDEX_NAME, index.as_bytes())?;
    }
    if let Some(modelfile) = &content.modelfile {
        writer.write_file("Modelfile", modelfile)?;
    }
    let mut piece = vec![0; PIECE_BYTES];
    for other in &content.others {
        writer.begin(&other.name)?;
        let (file, size) = disk::open(&other.path)?;
        copy(size, &mut piece, writer, |at, piece| Ok(disk::read_at(&file, &other.path, at, piece)?))?;
    }
    let Some((_, shards)) = &content.resharded else {
        for weights in &content.weights {
            writer.begin(&weights.name)?;
            let (file, size) = disk::open(&weights.path)?;
            copy(size, &mut piece, writer, |at, piece| Ok(disk::read_at(&file, &weights.path, at, piece)?))?;
        }
        return Ok(writer.end()?);
    };
    let mut sequence = ShardSequence::new(shards);
    for weights in &content.weights {
        let mut start = 0;
        for tensor in &weights.file.tensors {
            sequence.next_tensor(writer)?;
            copy(tensor.bytes, &mut piece, writer, |at, piece| Ok(weights.file.read(start + at, piece)?))?;
            start += tensor.bytes;
        }
    }
    Ok(writer.end()?)
}

/// Copies `bytes` bytes that `read` gives, piece by piece.
fn copy(
    bytes: u64,
    piece: &mut [u8],
    writer: &mut ModelFolderWriter,
    read: impl Fn(u64, &mut [u8]) -> Result<(), LibraryError>,
) -> Result<(), LibraryError> {
    let mut at = 0;
    while at < bytes {
        let now = (bytes - at).min(piece.len() as u64) as usize;
        read(at, &mut piece[..now])?;
        writer.write(&piece[..now])?;
        at += now as u64;
    }
    Ok(())
}

/// Compares what was written with what the source's own `model.toml` promises.
fn compare(own: &Description, written: &[Entry], content: &Content, source: &Path) -> Result<(), LibraryError> {
    let is_resharded = matches!(content, Content::Files(FilesSource { resharded: Some(_), .. }));
    let has_new_modelfile = matches!(content, Content::Files(FilesSource { modelfile: Some(_), .. }));
    for expected in &own.files {
        let is_remade = is_resharded && (expected.path.ends_with(".safetensors") || expected.path == INDEX_NAME)
            || has_new_modelfile && expected.path == "Modelfile";
        match written.iter().find(|entry| entry.path == expected.path) {
            Some(entry) if entry.sha256 == expected.sha256 => {}
            _ if is_remade => {}
            Some(entry) => {
                return Err(LibraryError::Integrity(IntegrityError::Digest {
                    path: source.join(&expected.path),
                    expected: expected.sha256,
                    found: entry.sha256,
                }));
            }
            None => {
                let what = format!("its `{DESCRIPTION_NAME}` lists `{}`, which isn't there", expected.path);
                return Err(LibraryError::source_refused(source, what));
            }
        }
    }
    Ok(())
}

/// Checks that what was written is a model: a configuration, a tokenizer, and weights whose headers are right.
pub(super) fn check_written(folder: &Path, entries: &[Entry]) -> Result<(), LibraryError> {
    let has = |name: &str| entries.iter().any(|entry| entry.path == name);
    for name in ["config.json", "tokenizer.json"] {
        if !has(name) {
            return Err(LibraryError::source_refused(folder, format!("it has no `{name}`")));
        }
    }
    Config::parse(&disk::read(&folder.join("config.json"), CONFIG_BYTES_MAX)?)
        .map_err(|what| LibraryError::source_refused(folder, what))?;
    let weights: Vec<&Entry> = entries.iter().filter(|entry| entry.path.ends_with(".safetensors")).collect();
    if weights.is_empty() {
        return Err(LibraryError::source_refused(folder, "it has no weights"));
    }
    for entry in weights {
        WeightsFile::open(&folder.join(&entry.path)).map_err(|error: ModelFolderError| LibraryError::from(error))?;
    }
    Ok(())
}
