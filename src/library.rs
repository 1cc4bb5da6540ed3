//! The models of a bundle: those it was shipped with, and those that its owner added.
//!
//! A model is a folder of files, each of them in exactly one authenticated list: the signed manifest for what was shipped,
//! `data/models.toml` for what was added. A folder that is in neither doesn't count.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::disk::{self, DiskError};
use crate::engine::gguf::GgufError;
use crate::hint::Hint;
use crate::hub::HubError;
use crate::manifest::Entry;
use crate::model_folder::{ModelFolderError, ProgressSink, SHARD_BYTES_MAX};
use crate::verified::{IntegrityError, VerifiedFolder};

mod adapter;
pub mod added;
pub mod archive;
pub mod available;
mod checkpoint;
mod counting;
pub mod description;
pub mod handing;
pub mod import;
mod name;
pub mod pull;
mod shard_names;
mod source;
pub mod verification;

pub use added::AddedError;
pub use description::{DESCRIPTION_NAME, Description};
pub use handing::HandedModel;
pub use import::{ImportPlan, ImportReport};
pub use name::{MODEL_NAME_BYTES_MAX, is_model_name, model_name_from};
pub use verification::{Report, entries_of};

use description::DESCRIPTION_BYTES_MAX;

/// The longest Modelfile of a model, in bytes.
pub const MODELFILE_BYTES_MAX: u64 = 1024 * 1024;
/// What a folder is called while it is being imported, after the model's name.
const PARTIAL: &str = ".partial";

/// What goes wrong with models, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The drive or the source doesn't answer as it should.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file of a model isn't what its list says.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// The list of added models can't be used.
    #[error(transparent)]
    Added(#[from] AddedError),
    /// The bundle's key isn't there, so that nothing vouches for added models.
    #[error("the bundle is locked, so the models added to it can't be checked or changed")]
    Locked,
    /// There is no model of that name.
    #[error("there is no model `{name}`")]
    NotFound {
        /// The name that was asked for.
        name: String,
        /// Names that are near it.
        near: Vec<String>,
    },
    /// There is a folder of that name, but no list has it.
    #[error("the folder of `{name}` is in no list, so nothing vouches for it")]
    Unlisted {
        /// Its name.
        name: String,
    },
    /// A name that a model can't have.
    #[error(
        "`{name}` can't be a model's name: small letters, digits and `._-`, at most {MODEL_NAME_BYTES_MAX}, \
         beginning with a letter or digit"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("there is a model `{name}` already")]
    Taken {
        /// The name.
        name: String,
    },
    /// The model belongs to the signed bundle.
    #[error("`{name}` is part of the bundle as it was sealed")]
    Shipped {
        /// Its name.
        name: String,
    },
    /// What was to be imported isn't a model that can be used.
    #[error("`{}` can't be imported: {what}", path.display())]
    Source {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// It doesn't fit the drive.
    #[error("{needed_bytes} bytes are needed and {free_bytes} are free")]
    Space {
        /// How much it takes.
        needed_bytes: u64,
        /// How much there is.
        free_bytes: u64,
    },
    /// The network or the server doesn't do what was asked.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file that was fetched isn't the one that the Hub's listing promises.
    #[error("`{name}` is not what was promised: its digest is wrong, so it doesn't count")]
    Pulled {
        /// Which file.
        name: String,
    },
    /// A GGUF file can't be converted.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A model's files can't be written.
    #[error(transparent)]
    Write(#[from] ModelFolderError),
}

impl LibraryError {
    fn source_refused(path: &Path, what: impl Into<String>) -> Self {
        Self::Source { path: path.into(), what: what.into() }
    }

    /// Whether it was stopped by whoever takes the progress.
    pub fn is_stopped(&self) -> bool {
        matches!(
            self,
            Self::Hub(HubError::Stopped)
                | Self::Write(ModelFolderError::Stopped)
                | Self::Gguf(GgufError::Write(ModelFolderError::Stopped))
        )
    }
}

impl Hint for LibraryError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Disk(error) => return error.hint(),
            Self::Integrity(error) => return error.hint(),
            Self::Gguf(error) => return error.hint(),
            Self::Hub(error) => return error.hint(),
            Self::Pulled { .. } => "run the same command again: only what is wrong is fetched again".into(),
            Self::Write(error) => return error.hint(),
            Self::Added(AddedError::Disk(error)) => return error.hint(),
            Self::Added(AddedError::NotKept { .. }) => "use another drive: this one doesn't keep what it takes".into(),
            Self::Added(_) => {
                "restore `models.toml` or `models.b.toml` from a backup, or remove both and import the models again"
                    .into()
            }
            Self::Locked => "unlock the bundle with its passphrase first".into(),
            Self::NotFound { near, .. } if !near.is_empty() => format!("did you mean `{}`?", near.join("` or `")),
            Self::NotFound { .. } => "run `tiles model list` to see what there is".into(),
            Self::Unlisted { name } => format!("run `tiles model remove {name}` and import it again"),
            Self::Name { .. } => "give another name with `--name`".into(),
            Self::Taken { name } => format!("give another name with `--name`, or run `tiles model remove {name}`"),
            Self::Shipped { .. } => "make a bundle without it with `tiles bundle create`".into(),
            Self::Source { .. } => {
                "give a folder in MLX's form, a Hugging Face cache folder, a `.gguf`, a `.safetensors` beside its \
                 `config.json`, or what `tiles model export` wrote"
                    .into()
            }
            Self::Space { .. } => "free some space, or use a larger drive".into(),
        })
    }
}

/// One line about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    /// Its name.
    pub name: String,
    /// How many bytes its files have together.
    pub size_bytes: u64,
    /// Whether it belongs to the bundle as it was sealed.
    pub is_shipped: bool,
    /// What `model.toml` says about it; `None` where that is missing.
    pub description: Option<Description>,
    /// Why it can't be described, where that is so.
    pub problem: Option<String>,
}

/// A model whose files are listed.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    name: String,
    folder: PathBuf,
    entries: Vec<Entry>,
    is_shipped: bool,
}

impl ModelEntry {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its folder is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Whether it belongs to the bundle as it was sealed.
    pub fn is_shipped(&self) -> bool {
        self.is_shipped
    }

    /// Its files; paths are relative to the model's folder.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many bytes its files have together.
    pub fn size_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// Its folder, each file verified when it is read.
    pub fn folder(&self) -> VerifiedFolder {
        VerifiedFolder::listed(&self.folder, self.entries.iter().cloned())
    }

    /// What `model.toml` says; `None` where there is none.
    ///
    /// # Errors
    /// Any mismatch, and what reading can meet.
    pub fn description(&self) -> Result<Option<Description>, LibraryError> {
        let Some(text) = self.text(DESCRIPTION_NAME, DESCRIPTION_BYTES_MAX)? else {
            return Ok(None);
        };
        let path = self.folder.join(DESCRIPTION_NAME);
        let description = Description::parse(&text);
        description.map(Some).map_err(|what| LibraryError::Source { path, what })
    }

    /// The text of its Modelfile; `None` where there is none.
    ///
    /// # Errors
    /// Any mismatch, and what reading can meet.
    pub fn modelfile(&self) -> Result<Option<String>, LibraryError> {
        self.text("Modelfile", MODELFILE_BYTES_MAX)
    }

    fn text(&self, name: &str, bytes_max: u64) -> Result<Option<String>, LibraryError> {
        let Some(bytes) = self.folder().read(name, bytes_max)? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| DiskError::NotText { path: self.folder.join(name) }.into())
    }
}

/// Imports `source` into the new folder `folder`, outside any library: a model for a bundle that is being built.
///
/// # Errors
/// As [`Library::plan_import`] and [`Library::import`].
pub fn convert(source: &Path, name: &str, folder: &Path, sink: ProgressSink) -> Result<ImportReport, LibraryError> {
    let plan = import::plan(source, Some(name), SHARD_BYTES_MAX, sink)?;
    folder.parent().map_or(Ok(()), disk::create_folder)?;
    import::write(&plan, folder, sink)
}

/// The models of one bundle.
pub struct Library {
    models_folder: PathBuf,
    added_list: PathBuf,
    key: Option<Zeroizing<[u8; 32]>>,
    models: BTreeMap<String, ModelEntry>,
    /// The most bytes in a file of weights that is written; tests make it small.
    shard_bytes_max: u64,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("models_folder", &self.models_folder).finish_non_exhaustive()
    }
}

impl Library {
    /// Opens the models in `models_folder`.
    ///
    /// `shipped` are entries of the bundle's manifest; those below `models/` are taken, the rest is left alone.
    /// `added_list` is `data/models.toml`. Without `key`, the bundle being locked, only shipped models count.
    ///
    /// # Errors
    /// A list that isn't what the bundle wrote, and what reading can meet.
    pub fn open(
        models_folder: &Path,
        shipped: &[Entry],
        added_list: &Path,
        key: Option<&[u8; 32]>,
    ) -> Result<Self, LibraryError> {
        let mut files: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for entry in shipped {
            let below = entry.path.strip_prefix("models/").and_then(|path| path.split_once('/'));
            if let Some((name, path)) = below {
                files.entry(name.into()).or_default().push(Entry { path: path.into(), ..entry.clone() });
            }
        }
        let mut library = Self {
            models_folder: models_folder.into(),
            added_list: added_list.into(),
            key: key.map(|key| Zeroizing::new(*key)),
            models: BTreeMap::new(),
            shard_bytes_max: SHARD_BYTES_MAX,
        };
        if let Some(key) = key {
            for (name, entries) in added::read(added_list, key)? {
                library.insert(name, entries, false);
            }
        }
        // What the release signed wins over what a person listed under the same name.
        for (name, entries) in files {
            library.insert(name, entries, true);
        }
        Ok(library)
    }

    fn insert(&mut self, name: String, entries: Vec<Entry>, is_shipped: bool) {
        let folder = self.models_folder.join(&name);
        self.models.insert(name.clone(), ModelEntry { name, folder, entries, is_shipped });
    }

    /// Every listed model, sorted by name.
    pub fn list(&self) -> Vec<ModelSummary> {
        let summary = |model: &ModelEntry| {
            let (description, problem) = match model.description() {
                Ok(description) => (description, None),
                Err(error) => (None, Some(error.to_string())),
            };
            ModelSummary {
                name: model.name.clone(),
                size_bytes: model.size_bytes(),
                is_shipped: model.is_shipped,
                description,
                problem,
            }
        };
        self.models.values().map(summary).collect()
    }

    /// Whether `folder` lies among the models, and only the list of added ones, which is locked, could vouch for it.
    ///
    /// # Errors
    /// What looking can meet.
    pub fn may_list(&self, folder: &Path) -> Result<bool, LibraryError> {
        Ok(self.key.is_none() && disk::canonical(folder)?.starts_with(disk::canonical(&self.models_folder)?))
    }

    /// The model of that name.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`] with near names; [`LibraryError::Locked`] or [`LibraryError::Unlisted`] where only a
    /// folder has the name.
    pub fn find(&self, name: &str) -> Result<&ModelEntry, LibraryError> {
        if let Some(model) = self.models.get(name) {
            return Ok(model);
        }
        if is_model_name(name) && !name.ends_with(PARTIAL) && disk::is_folder(&self.models_folder.join(name)) {
            return Err(match self.key {
                None => LibraryError::Locked,
                Some(_) => LibraryError::Unlisted { name: name.into() },
            });
        }
        Err(LibraryError::NotFound { name: name.into(), near: self.near(name) })
    }

    /// Up to three names that look like `name`, the nearest first.
    fn near(&self, name: &str) -> Vec<String> {
        let name = name.to_lowercase();
        let likeness = |known: &str| match known.contains(&name) || name.contains(known) {
            true if !name.is_empty() => 1.0,
            _ => strsim::jaro_winkler(known, &name),
        };
        let mut near: Vec<(f64, &String)> =
            self.models.keys().map(|known| (likeness(known), known)).filter(|(likeness, _)| *likeness > 0.75).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        near.into_iter().take(3).map(|(_, known)| known.clone()).collect()
    }

    /// Reads every file of a model and compares it with the list.
    ///
    /// # Errors
    /// As [`Self::find`], and [`ModelFolderError::Stopped`]. Damage is in the report.
    pub fn verify(&self, name: &str, sink: ProgressSink) -> Result<Report, LibraryError> {
        let model = self.find(name)?;
        verification::verify(&model.name, &model.folder, &model.entries, sink)
    }

    /// Removes a model that was added: first from the list, so that half a model never counts.
    ///
    /// A folder that no list has is removed as well.
    ///
    /// # Errors
    /// [`LibraryError::Shipped`], [`LibraryError::Locked`], [`LibraryError::NotFound`], and what removing can meet.
    pub fn remove(&mut self, name: &str) -> Result<(), LibraryError> {
        match self.find(name) {
            Ok(model) if model.is_shipped => return Err(LibraryError::Shipped { name: name.into() }),
            Ok(_) => {
                let mut models = self.models.clone();
                models.remove(name);
                self.write_added(&models)?;
                self.models = models;
            }
            Err(LibraryError::Unlisted { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(disk::remove_folder(&self.models_folder.join(name))?)
    }

    /// Writes a model into the archive `file`, which ends in `.tar` or `.tar.zst`. Two exports are byte-identical.
    ///
    /// # Errors
    /// As [`Self::find`]; damage, before it gets into the archive; and what writing can meet.
    pub fn export(&self, name: &str, file: &Path, sink: ProgressSink) -> Result<(), LibraryError> {
        archive::export(self.find(name)?, file, sink)
    }

    /// Plans the import of `source`, as `name` or as the source is called. Nothing is written.
    ///
    /// # Errors
    /// [`LibraryError::Locked`], names, a source that can't be imported, and too little space.
    pub fn plan_import(
        &self,
        source: &Path,
        name: Option<&str>,
        sink: ProgressSink,
    ) -> Result<ImportPlan, LibraryError> {
        if self.key.is_none() {
            return Err(LibraryError::Locked);
        }
        let plan = import::plan(source, name, self.shard_bytes_max, sink)?;
        if self.is_taken(plan.name()) {
            return Err(LibraryError::Taken { name: plan.name().into() });
        }
        disk::create_folder(&self.models_folder)?;
        import::check_space(plan.needed_bytes(), disk::free_bytes(&self.models_folder)?)?;
        Ok(plan)
    }

    /// Imports what was planned: written beside the others, read back, and only then listed.
    ///
    /// What an import that was interrupted left behind is removed first; it begins from the start.
    ///
    /// # Errors
    /// [`ModelFolderError::Stopped`], and what reading and writing can meet; nothing is left behind then.
    pub fn import(&mut self, plan: &ImportPlan, sink: ProgressSink) -> Result<ImportReport, LibraryError> {
        let partial = self.models_folder.join(format!("{}{PARTIAL}", plan.name()));
        self.take_back(plan.name(), &partial)?;
        disk::remove_folder(&partial)?;
        let done = import::write(plan, &partial, sink).and_then(|report| {
            self.count(&partial, &report.name, report.entries.clone())?;
            Ok(report)
        });
        if done.is_err() {
            // The error that led here is the one to report; what stays is removed by the next import.
            let _ = disk::remove_folder(&partial);
        }
        done
    }
}

#[cfg(test)]
mod tests;
