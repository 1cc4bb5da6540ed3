//! What can be imported, recognised and looked through; nothing is written here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::archive::{self, ArchiveSource};
use super::checkpoint::{CONFIG_BYTES_MAX, Config, README_BYTES_MAX, licence_in};
use super::description::{DESCRIPTION_BYTES_MAX, DESCRIPTION_NAME, Description, FILES_MAX};
use super::name::model_name_from;
use super::{LibraryError, MODELFILE_BYTES_MAX, adapter};
use crate::disk::{self, Kind};
use crate::engine::gguf::{Conversion, Gguf};
use crate::manifest::path::check_below;
use crate::model_folder::ProgressSink;
use crate::model_folder::weights::{self, INDEX_NAME, Shard, TensorLayout, WeightsFile};

/// The largest file of a model that isn't weights, in bytes. Tokenizers are the largest, some with 33 MB.
pub(super) const SMALL_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The most names that a source's folder may have.
const NAMES_MAX: usize = 10_000;

/// A model that can be imported.
pub(super) struct Prepared {
    pub(super) content: Content,
    /// What is known already; its files aren't.
    pub(super) description: Description,
    /// What the source says of its own files, where it does.
    pub(super) own: Option<Description>,
    /// What to call it where the person doesn't say.
    pub(super) name: Option<String>,
    pub(super) has_modelfile: bool,
}

/// Where the files come from.
pub(super) enum Content {
    Files(FilesSource),
    Gguf(Box<Conversion>),
    Archive(ArchiveSource),
}

/// Files that are copied, and weights that may have to be laid out anew.
pub(super) struct FilesSource {
    pub(super) small: Vec<SmallFile>,
    pub(super) weights: Vec<Weights>,
    /// Files of any size that are copied as they are: an adapter's.
    pub(super) others: Vec<SmallFile>,
    /// The Modelfile to be written, where the source's isn't copied.
    pub(super) modelfile: Option<Vec<u8>>,
    /// The layout in smaller files, where one of the source's is too large.
    pub(super) resharded: Option<(Vec<TensorLayout>, Vec<Shard>)>,
    /// The index to be written; `None` where the source's is copied or none is needed.
    pub(super) index: Option<String>,
}

pub(super) struct SmallFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

pub(super) struct Weights {
    /// The name that it gets, where it is copied as it is.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file: WeightsFile,
}

/// Looks through `source`.
///
/// # Errors
/// [`LibraryError::Source`] with the reason, and what reading can meet.
pub(super) fn prepare(source: &Path, shard_bytes_max: u64, sink: ProgressSink) -> Result<Prepared, LibraryError> {
    if !disk::exists(source) {
        return Err(disk::DiskError::NotFound { path: source.into() }.into());
    }
    if disk::is_folder(source) {
        let cached = cached_snapshot(source)?;
        let (folder, root) = match &cached {
            Some(cached) => (cached.folder.as_path(), cached.root.as_path()),
            None => (source, source),
        };
        let mut prepared = prepare_files(folder, root, None, shard_bytes_max)?;
        match cached {
            Some(cached) => {
                prepared.name = cached.repository.rsplit('/').next().and_then(model_name_from);
                prepared.description.source = cached.repository;
                prepared.description.revision = Some(cached.revision);
            }
            None if prepared.description.source.is_empty() => prepared.description.source = file_name(source),
            None => {}
        }
        return Ok(prepared);
    }
    let name = file_name(source).to_ascii_lowercase();
    if name.ends_with(".gguf") {
        return prepare_gguf(source, shard_bytes_max, sink);
    }
    if name.ends_with(".tar") || name.ends_with(".tar.zst") {
        return prepare_archive(source, sink);
    }
    if name.ends_with(".safetensors") {
        let folder = source.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut prepared = prepare_files(folder, folder, Some(source), shard_bytes_max)?;
        if prepared.description.source.is_empty() {
            prepared.description.source = file_name(source);
        }
        return Ok(prepared);
    }
    if is_pickle(&name) {
        return Err(LibraryError::source_refused(source, PICKLE));
    }
    Err(LibraryError::source_refused(source, "it is none of the kinds of model that are known"))
}

const PICKLE: &str = "its weights are Python pickles, which can run any program; only safetensors are imported";

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"].iter().any(|end| name.to_ascii_lowercase().ends_with(end))
}

/// What a path is called by the person: of a link its own name, of `.` the folder's.
fn file_name(path: &Path) -> String {
    let resolved = if path.file_name().is_none() { disk::canonical(path).ok() } else { None };
    let name = resolved.as_deref().unwrap_or(path).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
}

fn stem_name(path: &Path, ends: &[&str]) -> Option<String> {
    let name = file_name(path);
    let lower = name.to_ascii_lowercase();
    let end = ends.iter().find(|end| lower.ends_with(*end)).map_or(0, |end| end.len());
    model_name_from(&name[..name.len() - end])
}

fn prepare_gguf(source: &Path, shard_bytes_max: u64, sink: ProgressSink) -> Result<Prepared, LibraryError> {
    let conversion = Conversion::plan(Gguf::open(source)?, shard_bytes_max, sink)?;
    let description = Description {
        source: file_name(source),
        licence: conversion.licence().map(|text| text.chars().filter(|c| !c.is_control()).take(100).collect()),
        architecture: Some(conversion.architecture().into()),
        quantisation: Some(conversion.quantisation()),
        parameters: Some(conversion.parameters()),
        context: Some(conversion.context()),
        converted_by: Some(concat!("tiles ", env!("CARGO_PKG_VERSION")).into()),
        ..Description::default()
    };
    Ok(Prepared {
        content: Content::Gguf(Box::new(conversion)),
        description,
        own: None,
        name: stem_name(source, &[".gguf"]),
        has_modelfile: false,
    })
}

fn prepare_archive(source: &Path, sink: ProgressSink) -> Result<Prepared, LibraryError> {
    let (archive, own) = archive::examine(source, sink)?;
    let name = model_name_from(&own.name).or_else(|| stem_name(source, &[".tar.zst", ".tar"]));
    let has_modelfile = archive.files.iter().any(|(name, _)| name == "Modelfile");
    let description = Description { files: Vec::new(), ..own.clone() };
    Ok(Prepared { content: Content::Archive(archive), description, own: Some(own), name, has_modelfile })
}

/// A snapshot in a Hugging Face cache.
struct Cached {
    folder: PathBuf,
    /// The repository's folder: links of the snapshot may lead anywhere in it and nowhere else.
    root: PathBuf,
    repository: String,
    revision: String,
}

/// Recognises `models--org--name`, and `models--org--name/snapshots/<revision>`.
fn cached_snapshot(source: &Path) -> Result<Option<Cached>, LibraryError> {
    let source = disk::canonical(source)?;
    let repository_of = |folder: &Path| {
        let rest = file_name(folder).strip_prefix("models--")?.replace("--", "/");
        (!rest.is_empty()).then_some(rest)
    };
    let cached = |root: &Path, repository: String, revision: String| Cached {
        folder: root.join("snapshots").join(&revision),
        root: root.into(),
        repository,
        revision,
    };
    let snapshots = source.parent().filter(|parent| file_name(parent) == "snapshots").and_then(Path::parent);
    if let Some((root, repository)) = snapshots.and_then(|root| Some((root, repository_of(root)?))) {
        return Ok(Some(cached(root, repository, file_name(&source))));
    }
    let Some(repository) = repository_of(&source) else {
        return Ok(None);
    };
    let revisions = match disk::read_text(&source.join("refs/main"), 200) {
        Ok(text) => vec![text.trim().to_owned()],
        Err(error) if error.is_not_found() => disk::list(&source.join("snapshots"))?,
        Err(error) => return Err(error.into()),
    };
    match &revisions[..] {
        [revision] if check_below(revision).is_ok() && !revision.contains('/') => {
            Ok(Some(cached(&source, repository, revision.clone())))
        }
        _ => {
            let what = format!("it has {} snapshots and no `refs/main`; give one of `snapshots/`", revisions.len());
            Err(LibraryError::source_refused(&source, what))
        }
    }
}

/// Whether a file is part of a model, going by its name.
pub(super) fn is_wanted(name: &str) -> bool {
    matches!(
        name,
        "config.json" | "generation_config.json" | "special_tokens_map.json" | "README.md" | "Modelfile" | "NOTICE"
    ) || name.starts_with("tokenizer") && name.ends_with(".json")
        || name.ends_with(".jinja")
        || name.starts_with("LICENSE")
        || name.starts_with("LICENCE")
}

pub(super) fn is_weights(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// Looks through the folder `folder`, whose links may only lead into `root`; with `only`, that is all of its weights.
fn prepare_files(
    folder: &Path,
    root: &Path,
    only: Option<&Path>,
    shard_bytes_max: u64,
) -> Result<Prepared, LibraryError> {
    let refused = |what: String| LibraryError::source_refused(folder, what);
    let root = disk::canonical(root)?;
    let names: Vec<String> = disk::list_kinds(folder, NAMES_MAX)?
        .into_iter()
        .filter(|(_, kind)| *kind != Kind::Folder)
        .map(|n| n.0)
        .collect();
    let own = own_description(folder, &root, &names)?;
    let Selected { mut small, weights, mut others } = select_files(folder, &root, &names, own.as_ref(), only)?;
    let read = |name: &str, bytes_max: u64| match small.iter().find(|file| file.name == name) {
        Some(file) => disk::read(&file.path, bytes_max).map(Some).map_err(LibraryError::from),
        None => Ok(None),
    };
    let config = read("config.json", CONFIG_BYTES_MAX)?.ok_or_else(|| refused("it has no `config.json`".into()))?;
    let config = Config::parse(&config).map_err(refused)?;
    if !small.iter().any(|file| file.name == "tokenizer.json") {
        return Err(refused("it has no `tokenizer.json`".into()));
    }
    let readme = read("README.md", README_BYTES_MAX).unwrap_or_default();
    let licence = readme.and_then(|text| licence_in(&String::from_utf8_lossy(&text)));

    let tensors = all_tensors(folder, &weights)?;
    let own_or = own.clone().unwrap_or_default();
    let description = Description {
        name: String::new(),
        licence: own_or.licence.or(licence),
        architecture: Some(config.model_type().into()),
        quantisation: Some(config.quantisation(&tensors)),
        parameters: Some(config.parameters(&tensors)),
        context: config.context(),
        loss: own_or.loss.or(Some(config.loss().into())),
        files: Vec::new(),
        ..own_or
    };
    let has_modelfile = small.iter().any(|file| file.name == "Modelfile");
    let companion = match read("Modelfile", MODELFILE_BYTES_MAX)? {
        Some(text) => adapter::named_in(&text, folder, &root)?,
        None => None,
    };
    let mut modelfile = None;
    if let Some(companion) = companion {
        modelfile = companion.modelfile;
        let is_replaced = |name: &str| {
            companion.files.iter().any(|new| new.name == name) || modelfile.is_some() && name == "Modelfile"
        };
        small.retain(|file| !is_replaced(&file.name));
        others.retain(|file| !is_replaced(&file.name));
        others.extend(companion.files);
    }
    let content = FilesSource { others, modelfile, ..lay_out(small, weights, tensors, shard_bytes_max)? };
    let name = only.is_none().then(|| model_name_from(&file_name(folder))).flatten();
    let name = name.or_else(|| stem_name(only?, &[".safetensors"]));
    Ok(Prepared { content: Content::Files(content), description, own, name, has_modelfile })
}

/// The files of a source that are part of the model.
struct Selected {
    small: Vec<SmallFile>,
    weights: Vec<Weights>,
    /// Safetensors that aren't weights, such as an adapter's.
    others: Vec<SmallFile>,
}

/// Opens the files that are part of the model, going by their names and by what its own `model.toml` lists.
fn select_files(
    folder: &Path,
    root: &Path,
    names: &[String],
    own: Option<&Description>,
    only: Option<&Path>,
) -> Result<Selected, LibraryError> {
    let refused = |what: String| LibraryError::source_refused(folder, what);
    let listed: BTreeSet<&str> = own.iter().flat_map(|own| &own.files).map(|entry| entry.path.as_str()).collect();
    let mut small = Vec::new();
    let mut weights = Vec::new();
    let mut others = Vec::new();
    if only.is_none() {
        super::shard_names::check(names.iter().map(String::as_str)).map_err(refused)?;
    }
    for name in names.iter().filter(|name| check_below(name).is_ok() && *name != DESCRIPTION_NAME) {
        let is_listed = listed.contains(name.as_str()) && !is_pickle(name);
        if name.ends_with(".safetensors") {
            if only.is_none() && is_weights(name) {
                weights.push(open_weights(folder, root, name, name)?);
            } else if is_listed && !is_weights(name) {
                let path = inside(root, &folder.join(name))?;
                let (_, size) = disk::open(&path)?;
                others.push(SmallFile { name: name.into(), path, size });
            }
        } else if (is_wanted(name) || is_listed || name == INDEX_NAME) && !(only.is_some() && name == INDEX_NAME) {
            small.push(open_small(folder, root, name)?);
        }
    }
    if let Some(name) = only.map(file_name) {
        weights.push(open_weights(folder, root, &name, "model.safetensors")?);
    }
    if weights.is_empty() {
        let pickles = names.iter().any(|name| is_pickle(name));
        return Err(refused(if pickles { PICKLE.into() } else { "it has no `model*.safetensors`".into() }));
    }
    if small.len() + weights.len() + others.len() > FILES_MAX {
        return Err(refused(format!("it has more than {FILES_MAX} files")));
    }
    Ok(Selected { small, weights, others })
}

fn own_description(folder: &Path, root: &Path, names: &[String]) -> Result<Option<Description>, LibraryError> {
    if !names.iter().any(|name| name == DESCRIPTION_NAME) {
        return Ok(None);
    }
    let path = inside(root, &folder.join(DESCRIPTION_NAME))?;
    let text = disk::read_text(&path, DESCRIPTION_BYTES_MAX)?;
    let own = Description::parse(&text);
    own.map(Some).map_err(|what| LibraryError::source_refused(folder, format!("its `{DESCRIPTION_NAME}`: {what}")))
}

/// The path of a file with links resolved, which must stay in `root`.
pub(super) fn inside(root: &Path, path: &Path) -> Result<PathBuf, LibraryError> {
    let resolved = disk::canonical(path)?;
    if resolved.starts_with(root) {
        return Ok(resolved);
    }
    Err(LibraryError::source_refused(path, "it is a link that leads out of the model's folder"))
}

fn open_small(folder: &Path, root: &Path, name: &str) -> Result<SmallFile, LibraryError> {
    let path = inside(root, &folder.join(name))?;
    let (_, bytes) = disk::open(&path)?;
    if bytes > SMALL_FILE_BYTES_MAX {
        return Err(disk::DiskError::TooLarge { path, bytes, bytes_max: SMALL_FILE_BYTES_MAX }.into());
    }
    Ok(SmallFile { name: name.into(), path, size: bytes })
}

fn open_weights(folder: &Path, root: &Path, name: &str, new_name: &str) -> Result<Weights, LibraryError> {
    let path = inside(root, &folder.join(name))?;
    Ok(Weights { name: new_name.into(), file: WeightsFile::open(&path)?, path })
}

/// The tensors of all files in order; no two may have the same name.
fn all_tensors(folder: &Path, weights: &[Weights]) -> Result<Vec<TensorLayout>, LibraryError> {
    let tensors: Vec<TensorLayout> = weights.iter().flat_map(|weights| weights.file.tensors.clone()).collect();
    let mut names = BTreeSet::new();
    match tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        None if tensors.is_empty() => Err(LibraryError::source_refused(folder, "its weights have no tensors")),
        None => Ok(tensors),
        Some(twice) => Err(LibraryError::source_refused(folder, format!("the tensor `{}` is there twice", twice.name))),
    }
}

/// Decides whether weights are copied as they are or laid out anew; the index is made again in any case.
fn lay_out(
    mut small: Vec<SmallFile>,
    weights: Vec<Weights>,
    tensors: Vec<TensorLayout>,
    shard_bytes_max: u64,
) -> Result<FilesSource, LibraryError> {
    let is_large = weights.iter().any(|weights| weights.file.size() > shard_bytes_max);
    if is_large {
        small.retain(|file| file.name != INDEX_NAME);
        let shards = weights::shards(&tensors, shard_bytes_max)?;
        let index = weights::index(&tensors, &shards);
        let (others, modelfile, resharded) = (Vec::new(), None, Some((tensors, shards)));
        return Ok(FilesSource { small, weights, others, modelfile, resharded, index });
    }
    let mut at = 0;
    let shard = |weights: &Weights| {
        let start = at;
        at += weights.file.tensors.len();
        Shard { name: weights.name.clone(), header: Vec::new(), tensors: start..at, bytes: weights.file.size() }
    };
    let shards: Vec<Shard> = weights.iter().map(shard).collect();
    let known = small.iter().position(|file| file.name == INDEX_NAME);
    let index = match known {
        // The source's own index stays as it is where it is right, and goes where it isn't.
        Some(at) if is_right_index(&small[at], &tensors, &shards)? => None,
        Some(at) => {
            small.remove(at);
            weights::index(&tensors, &shards)
        }
        None => weights::index(&tensors, &shards),
    };
    Ok(FilesSource { small, weights, others: Vec::new(), modelfile: None, resharded: None, index })
}

fn is_right_index(file: &SmallFile, tensors: &[TensorLayout], shards: &[Shard]) -> Result<bool, LibraryError> {
    let text = disk::read(&file.path, SMALL_FILE_BYTES_MAX)?;
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&text) else {
        return Ok(false);
    };
    let Some(map) = json.get("weight_map").and_then(|map| map.as_object()) else {
        return Ok(false);
    };
    let right = shards.iter().all(|shard| {
        tensors[shard.tensors.clone()]
            .iter()
            .all(|tensor| map.get(&tensor.name).is_some_and(|name| *name == shard.name))
    });
    Ok(right && map.len() == tensors.len())
}

impl FilesSource {
    /// The names and sizes of the files that will be written.
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let mut files: Vec<(String, u64)> =
            self.small.iter().chain(&self.others).map(|file| (file.name.clone(), file.size)).collect();
        files.extend(self.modelfile.iter().map(|text| ("Modelfile".to_owned(), text.len() as u64)));
        match &self.resharded {
            Some((_, shards)) => files.extend(shards.iter().map(|shard| (shard.name.clone(), shard.bytes))),
            None => files.extend(self.weights.iter().map(|weights| (weights.name.clone(), weights.file.size()))),
        }
        files.extend(self.index.iter().map(|index| (INDEX_NAME.to_owned(), index.len() as u64)));
        files
    }
}
