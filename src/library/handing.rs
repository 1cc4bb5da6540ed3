//! A model handed on from one drive to another: what is told of it, and how what came becomes a model.
//!
//! How its bytes travel isn't decided here. They land in the folder of a pull, are read back from the medium against their
//! SHA-256, looked through like any other source, and listed. Before that nothing loads them.

use std::path::PathBuf;

use super::name::is_model_name;
use super::pull::{PullPlan, begin, read_back, select};
use super::verification::Meter;
use super::{DESCRIPTION_NAME, ImportReport, Library, LibraryError, import};
use crate::digest::Sha256Digest;
use crate::disk::{self, Kind};
use crate::hub::{RemoteDigest, RemoteFile};
use crate::manifest::Entry;
use crate::manifest::path::check_below;
use crate::model_folder::{ProgressSink, Step};

const MODELFILE_NAME: &str = "Modelfile";

/// A model as one drive tells another of it. Untrusted text where it came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedModel {
    /// What it is called there.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Which revision of that.
    pub revision: Option<String>,
    /// Its licence.
    pub licence: Option<String>,
    /// Its files: path, size in bytes, SHA-256.
    pub files: Vec<(String, u64, Sha256Digest)>,
}

impl HandedModel {
    /// How many bytes its files have together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |all: u64, (_, size, _)| all.saturating_add(*size))
    }
}

impl Library {
    /// What is told of the model `name`, and the folder with its files.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], and what reading its description can meet.
    pub fn handed(&self, name: &str) -> Result<(HandedModel, PathBuf), LibraryError> {
        let model = self.find(name)?;
        let description = model.description()?.unwrap_or_default();
        let files = model.entries.iter().filter(|entry| entry.path != DESCRIPTION_NAME);
        let handed = HandedModel {
            name: name.into(),
            source: if description.source.is_empty() { name.into() } else { description.source },
            revision: description.revision,
            licence: description.licence,
            files: files.map(|Entry { path, size, sha256, .. }| (path.clone(), *size, *sha256)).collect(),
        };
        Ok((handed, model.folder.clone()))
    }

    /// Checks what another drive tells of a model, and decides what to call it here.
    ///
    /// # Errors
    /// [`LibraryError::Locked`], names, files that are no model, and too little space.
    pub fn plan_handed(&self, handed: &HandedModel, name: Option<&str>) -> Result<PullPlan, LibraryError> {
        if self.key.is_none() {
            return Err(LibraryError::Locked);
        }
        let name = name.unwrap_or(&handed.name);
        if !is_model_name(name) {
            return Err(LibraryError::Name { name: name.into() });
        }
        if self.is_taken(name) {
            return Err(LibraryError::Taken { name: name.into() });
        }
        let remote = |(path, size, sha256): &(String, u64, Sha256Digest)| RemoteFile {
            path: path.clone(),
            size: *size,
            digest: RemoteDigest::Sha256(*sha256),
        };
        let refused = |what: String| LibraryError::source_refused(handed.name.as_ref(), what);
        for (path, ..) in &handed.files {
            check_below(path).map_err(|error| refused(error.to_string()))?;
        }
        let (modelfile, rest): (Vec<_>, Vec<_>) = handed.files.iter().partition(|(path, ..)| path == MODELFILE_NAME);
        let mut files = select(&handed.name, rest.into_iter().map(remote).collect())?;
        files.extend(
            modelfile.into_iter().take(1).filter(|(_, size, _)| *size <= super::MODELFILE_BYTES_MAX).map(remote),
        );
        // What stands for just these files: an unfinished transfer of others is begun anew.
        let told: String =
            files.iter().map(|file| format!("{} {} {:?}\n", file.path, file.size, file.digest)).collect();
        let mut plan = PullPlan {
            name: name.into(),
            repo: format!("drive/{name}"),
            commit: Sha256Digest::of(told.as_bytes()).to_string()[..40].to_owned(),
            origin: Some((handed.source.clone(), handed.revision.clone())),
            licence: handed.licence.clone(),
            files,
            kept_bytes: 0,
            modelfile: None,
        };
        disk::create_folder(&self.models_folder)?;
        let begun = self.begun_folder(name);
        if super::pull::begun_commit(&begun, &plan.repo).as_deref() == Some(&plan.commit) {
            plan.kept_bytes = super::pull::bytes_in(&begun)?.min(plan.bytes());
        }
        import::check_space(plan.needed_bytes(), disk::free_bytes(&self.models_folder)?)?;
        Ok(plan)
    }

    /// Makes the folder that the files of `plan` are to come into, or gives that of an unfinished transfer of them.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn begin_handed(&self, plan: &PullPlan) -> Result<PathBuf, LibraryError> {
        let folder = self.pull_folder(&plan.name);
        self.take_back(&plan.name, &folder)?;
        begin(plan, &folder)?;
        Ok(folder)
    }

    /// Reads what came back from the medium, against what was told, and lists it as a model.
    ///
    /// # Errors
    /// [`LibraryError::Pulled`] for a file that is another one, what an import can meet, and what reading can meet.
    pub fn adopt_handed(&mut self, plan: &PullPlan, sink: ProgressSink) -> Result<ImportReport, LibraryError> {
        let folder = self.pull_folder(&plan.name);
        let mut meter = Meter { step: Step::Verifying, done_bytes: 0, total_bytes: plan.bytes(), sink: &mut *sink };
        let mut entries = Vec::new();
        for file in &plan.files {
            let path = folder.join(&file.path);
            // Whoever wrote it may have left it to the system when it reaches the medium, or made it a link.
            if disk::kind(&path)? != Some(Kind::File) || disk::size(&path)? != Some(file.size) {
                return Err(LibraryError::Pulled { name: file.path.clone() });
            }
            disk::sync(&disk::open_in_place(&path)?, &path)?;
            entries.push(read_back(&folder, file, &mut meter)?);
        }
        self.adopt(plan, &folder, entries, sink)
    }
}
