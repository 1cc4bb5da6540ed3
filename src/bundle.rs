//! The bundle: the folder on the drive that holds everything. Found from the running program, then verified.
//!
//! Only this module knows the layout. Nothing below a [`Bundle<Found>`] may be believed: only [`Bundle::verify`] makes a
//! [`Bundle<Verified>`], whose listed files are what the one who sealed it meant them to be.

use std::path::{Path, PathBuf};

use crate::disk::{self, DiskError, Kind};
use crate::hint::Hint;
use crate::manifest::signature::SealPublicKey;
use crate::manifest::{Entry, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::verified::{IntegrityError, VerifiedFolder};

pub mod build;
mod database;
pub mod examine;
pub mod leftovers;
pub mod lock;
pub mod moving;
pub mod preferences;
pub mod remembered;
pub mod repair;
pub mod run_mark;
pub mod seal_key;
mod verify;

pub use leftovers::{Leftover, Unfinished};
pub use lock::{BundleLock, Holder, LastExit, LockState};
pub use preferences::{PREFERENCES, PreferenceError, Preferences};
pub use remembered::SealMark;
pub use run_mark::{RunMark, RunMarkFile};

/// The file that makes a folder a bundle.
pub const MANIFEST_NAME: &str = "MANIFEST.toml";
/// The file with the signature over it.
pub const SIGNATURE_NAME: &str = "MANIFEST.sig";
/// How many folders above the program are looked at.
pub const LEVELS_MAX: usize = 4;

/// What is wrong with a bundle, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The program isn't in a bundle.
    #[error("no bundle is around `{}`: none of the {LEVELS_MAX} folders above it has a `{MANIFEST_NAME}`", executable.display())]
    NotFound {
        /// The running program.
        executable: PathBuf,
    },
    /// The folder that was given isn't a bundle.
    #[error("`{}` isn't a bundle: it has no `{MANIFEST_NAME}`", folder.display())]
    NotABundle {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder around the program has the data of a bundle, and no marker.
    #[error("`{}` was a bundle and has lost its `{MANIFEST_NAME}`", folder.display())]
    LostMarker {
        /// The folder.
        folder: PathBuf,
    },
    /// The marker is the one of the source tree.
    #[error("`{}` is Tiles' source tree, not a bundle", root.display())]
    SourceTree {
        /// Its root.
        root: PathBuf,
    },
    /// The list of files, or its signature, is damaged or from a newer program.
    #[error("`{}` can't be believed", path.display())]
    Manifest {
        /// Which of the two files.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// Somebody else than the makers of this program sealed the bundle.
    #[error("the bundle is sealed by {short_key}, and this program trusts only its makers' key")]
    ForeignSeal {
        /// The short form of the key that sealed it.
        short_key: String,
    },
    /// A listed file isn't there.
    #[error("`{}` is missing", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// A file is where only listed files may be.
    #[error("`{}` doesn't belong to the bundle", path.display())]
    Unlisted {
        /// Which file.
        path: PathBuf,
    },
    /// A link, pipe, device, or a folder instead of a file.
    #[error("`{}` is a link or something else that no bundle has there", path.display())]
    WrongKind {
        /// What it is instead.
        path: PathBuf,
    },
    /// A listed file isn't what the list says.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// What was written isn't what is read back.
    #[error("`{}` reads back differently from what was written", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Another program has the bundle open.
    #[error("the bundle is in use{}", holder.as_ref().map_or(String::new(), |holder| format!(" by {holder}")))]
    InUse {
        /// Who, where that could be read.
        holder: Option<Holder>,
    },
    /// The drive can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Hint for BundleError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => {
                "start Tiles from its drive, say where that is with `--bundle DIR`, or set it up on this computer with \
                 `--installed`"
                    .into()
            }
            Self::LostMarker { .. } => {
                format!("copy `{MANIFEST_NAME}` and `{SIGNATURE_NAME}` back from where the bundle came from")
            }
            Self::NotABundle { .. } => format!("give the folder that holds `{MANIFEST_NAME}`"),
            Self::SourceTree { .. } => "run `tools/start`, or give a bundle with `--bundle DIR`".into(),
            Self::Manifest { source, .. } => return source.hint(),
            Self::ForeignSeal { .. } => {
                "get the bundle from its makers, or use the program of those who built it".into()
            }
            Self::Missing { .. } => "copy the file again from an undamaged bundle".into(),
            Self::Unlisted { .. } => {
                "remove it; your own files are safe in `data`, and may lie beside the bundle".into()
            }
            Self::WrongKind { .. } => "copy the bundle again; remove this if you don't know what it is".into(),
            Self::Integrity(error) => return error.hint(),
            Self::Damaged { .. } => "copy the bundle to another drive: this one loses what it is given".into(),
            Self::InUse { .. } => "use the Tiles that is open already, or close it".into(),
            Self::Disk(error) => return error.hint(),
        })
    }
}

/// Whose seal the program accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only that of the key that was compiled in.
    Release(SealPublicKey),
    /// Anybody's, who is then named.
    Any,
}

/// Who sealed a verified bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seal {
    /// The makers of the program, with the key that was compiled in.
    Release,
    /// Nobody: the folder of an installed Tiles holds what belongs to the person, and no list is over it.
    Installed,
    /// Somebody with a key of their own.
    SelfBuilt {
        /// The short form of that key.
        short_key: String,
    },
}

/// The state of a bundle that has a marker, and of which nothing is believed.
#[derive(Debug)]
pub struct Found {
    manifest_bytes: Vec<u8>,
}

/// The state of a bundle whose list is believed, and of which no file was looked at.
#[derive(Debug)]
pub struct Sealed {
    manifest_bytes: Vec<u8>,
    signature_text: String,
    manifest: Manifest,
    seal: Seal,
    seal_key: SealPublicKey,
}

/// The state of a bundle whose listed files are what its seal says.
#[derive(Debug)]
pub struct Verified {
    sealed: Sealed,
    strangers: Vec<String>,
}

/// A state in which the list of a bundle is believed: [`Sealed`] and [`Verified`].
pub trait Listed {
    /// What is believed.
    fn sealed(&self) -> &Sealed;
}

impl Listed for Sealed {
    fn sealed(&self) -> &Sealed {
        self
    }
}

impl Listed for Verified {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }
}

/// A bundle and how far it is trusted: `Bundle<Found>`, then `Bundle<Verified>`.
#[derive(Debug)]
pub struct Bundle<State> {
    root: PathBuf,
    state: State,
}

impl Bundle<Found> {
    /// Finds the bundle: the folder `explicit`, or else the nearest folder above `executable` that has a marker.
    ///
    /// A marker always wins: where it is damaged or can't be read, that is the error, and nothing else is looked for. A drive
    /// that lost its marker is an error as well, so that nobody goes on with another identity than they think.
    ///
    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::NotABundle`], [`BundleError::LostMarker`], [`BundleError::SourceTree`],
    /// and what reading can meet.
    pub fn find(explicit: Option<&Path>, executable: &Path) -> Result<Self, BundleError> {
        if let Some(folder) = explicit {
            let root = disk::canonical(folder)?;
            return match disk::kind(&root.join(MANIFEST_NAME))? {
                Some(kind) => Self::at(root, kind),
                None => Err(BundleError::NotABundle { folder: root }),
            };
        }
        // Resolved, so that a link to the program leads to the drive it is on.
        let executable = disk::canonical(executable)?;
        for folder in executable.ancestors().skip(1).take(LEVELS_MAX) {
            if let Some(kind) = disk::kind(&folder.join(MANIFEST_NAME))? {
                return Self::at(folder.to_path_buf(), kind);
            }
        }
        for folder in executable.ancestors().skip(1).take(LEVELS_MAX) {
            for rest in [SIGNATURE_NAME, "data/key.a", "data/key.b"] {
                if disk::kind(&folder.join(rest))?.is_some() {
                    return Err(BundleError::LostMarker { folder: folder.into() });
                }
            }
        }
        Err(BundleError::NotFound { executable })
    }

    fn at(root: PathBuf, marker: Kind) -> Result<Self, BundleError> {
        let path = root.join(MANIFEST_NAME);
        if marker != Kind::File {
            return Err(BundleError::WrongKind { path });
        }
        let manifest_bytes = disk::read(&path, MANIFEST_BYTES_MAX)?;
        let parsed = std::str::from_utf8(&manifest_bytes).map(Manifest::parse);
        if let Ok(Err(ManifestError::Recipe)) = parsed {
            return Err(BundleError::SourceTree { root });
        }
        Ok(Self { root, state: Found { manifest_bytes } })
    }

    /// Verifies the seal, every small file in full, and the sizes of the large ones, which are verified while they are read.
    ///
    /// # Errors
    /// The first thing that isn't as sealed, by name; see [`BundleError`].
    ///
    /// # Security
    /// In the folders that the list covers, a file that it doesn't name is an error: a program or a model might pick it up.
    /// Beside them, and in `data`, strange files are the person's ([`Bundle::strangers`]). A link is refused everywhere.
    pub fn verify(self, trust: Trust) -> Result<Bundle<Verified>, BundleError> {
        let Bundle { root, state: sealed } = self.sealed(trust)?;
        let strangers = verify::inventory(&root, &sealed.manifest)?;
        verify::content(&root, &sealed.manifest)?;
        Ok(Bundle { root, state: Verified { sealed, strangers } })
    }

    /// Verifies the seal and reads the list, and looks at no file of it: for finding all that is damaged, and for repair.
    ///
    /// # Errors
    /// A list or signature that is missing, damaged, newer or somebody else's.
    pub fn sealed(self, trust: Trust) -> Result<Bundle<Sealed>, BundleError> {
        let state = verify::seal(&self.root, self.state.manifest_bytes, trust)?;
        Ok(Bundle { root: self.root, state })
    }
}

impl<State: Listed> Bundle<State> {
    /// The list, which its seal vouches for.
    pub fn manifest(&self) -> &Manifest {
        &self.state.sealed().manifest
    }

    /// The exact bytes of the list.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.state.sealed().manifest_bytes
    }

    /// The text of the signature over it.
    pub fn signature_text(&self) -> &str {
        &self.state.sealed().signature_text
    }

    /// Who sealed the bundle.
    pub fn seal(&self) -> &Seal {
        &self.state.sealed().seal
    }

    /// Which seal this is: the key, and how often it has sealed this bundle.
    pub fn seal_mark(&self) -> SealMark {
        let Sealed { seal_key, manifest, .. } = self.state.sealed();
        SealMark { key: *seal_key, generation: manifest.generation }
    }
}

impl<State> Bundle<State> {
    /// The folder of the bundle, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that makes this folder a bundle.
    pub fn marker(&self) -> PathBuf {
        self.root.join(MANIFEST_NAME)
    }

    /// The folder of everything that belongs to the person.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The folder with a folder for each model, shipped and added.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder with the two slots of the key file, `key.a` and `key.b`.
    pub fn key_folder(&self) -> PathBuf {
        self.data()
    }

    /// The list of the models that the person added.
    pub fn added_models(&self) -> PathBuf {
        self.data().join("models.toml")
    }

    /// Where engine states are kept.
    pub fn prefix_cache(&self) -> PathBuf {
        self.data().join("cache")
    }

    /// The file of the settings that are needed before the bundle is unlocked.
    pub fn preferences(&self) -> PathBuf {
        self.data().join("settings.toml")
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.data().join("logs")
    }

    /// The folder of the backups of the database.
    pub fn backups(&self) -> PathBuf {
        self.data().join("backup")
    }

    /// The mark of the last runs that changed the database.
    pub fn run_mark(&self) -> RunMarkFile {
        RunMarkFile::new(&self.data())
    }

    /// The folder of the memory mode's vault.
    pub fn memory(&self) -> PathBuf {
        self.data().join("memory")
    }

    /// The file that says who has the bundle open.
    pub fn lock_path(&self) -> PathBuf {
        self.data().join("lock")
    }

    /// Where an interrupted full verification says how far it came.
    pub fn verify_state(&self) -> PathBuf {
        self.data().join("verify.state")
    }

    /// The program for the hosts of the folder `host` (see [`crate::host::HOST_FOLDERS`]).
    pub fn program(&self, host: &str) -> PathBuf {
        self.root.join("bin").join(host).join("tiles")
    }

    /// Whether nothing can be saved, because the drive is write-protected or belongs to somebody else.
    pub fn is_read_only(&self) -> bool {
        let data = self.data();
        !disk::can_write(if disk::exists(&data) { &data } else { &self.root })
    }

    /// Who has the bundle, and how it was given back last, without taking it or changing anything.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn lock_state(&self) -> Result<LockState, BundleError> {
        LockState::read(&self.lock_path())
    }

    /// Takes the bundle for this process, or says who has it; see [`BundleLock`].
    ///
    /// # Errors
    /// [`BundleError::InUse`], and what writing can meet. A read-only drive isn't an error.
    pub fn lock(&self, holder: Holder) -> Result<BundleLock, BundleError> {
        BundleLock::take(&self.data(), &self.lock_path(), self.is_read_only(), holder)
    }
}

impl Bundle<Verified> {
    /// The folder of a Tiles that is installed on a computer: laid out as a bundle, without programs and without a list of
    /// its own. Everything in it is the person's, so there is nothing to verify, and nothing is claimed to be.
    ///
    /// # Errors
    /// [`BundleError::WrongKind`] where a bundle is in that folder, and what looking can meet.
    pub fn installed(root: &Path) -> Result<Self, BundleError> {
        let root = disk::canonical(root)?;
        if disk::kind(&root.join(MANIFEST_NAME))?.is_some() {
            return Err(BundleError::WrongKind { path: root.join(MANIFEST_NAME) });
        }
        let manifest = Manifest {
            format: crate::manifest::MANIFEST_FORMAT,
            product: "Tiles".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            generation: 0,
            files: Vec::new(),
        };
        let sealed = Sealed {
            manifest_bytes: Vec::new(),
            signature_text: String::new(),
            manifest,
            seal: Seal::Installed,
            seal_key: SealPublicKey([0; 32]),
        };
        Ok(Self { root, state: Verified { sealed, strangers: Vec::new() } })
    }

    /// Whether this is the folder of an installed Tiles and no bundle.
    pub fn is_installed(&self) -> bool {
        *self.seal() == Seal::Installed
    }

    /// What a person would call it: the drive, or the installation on the computer.
    pub fn noun(&self) -> &'static str {
        if self.is_installed() { "this installation" } else { "this drive" }
    }

    /// [`Bundle::noun`] at the beginning of a sentence.
    pub fn noun_first(&self) -> &'static str {
        if self.is_installed() { "This installation" } else { "This drive" }
    }

    /// What lies in the bundle's own folder without belonging to it: left alone, and never used.
    pub fn strangers(&self) -> &[String] {
        &self.state.strangers
    }

    /// The files of the shipped models, with paths `models/NAME/…`.
    pub fn shipped_models(&self) -> Vec<Entry> {
        let files = self.state.sealed.manifest.files.iter();
        files.filter(|entry| entry.path.starts_with("models/")).cloned().collect()
    }

    /// The folder of the shipped model `name`, or `None` where none of that name was shipped.
    pub fn shipped_model(&self, name: &str) -> Option<VerifiedFolder> {
        let prefix = format!("models/{name}/");
        let below = |entry: &Entry| {
            let path = entry.path.strip_prefix(&prefix)?.to_owned();
            Some(Entry { path, ..entry.clone() })
        };
        let entries: Vec<Entry> = self.state.sealed.manifest.files.iter().filter_map(below).collect();
        (!entries.is_empty()).then(|| VerifiedFolder::listed(&self.models().join(name), entries))
    }

    /// Reads every large file too, and verifies each chunk. Tells `progress` how many bytes were read since the last call.
    ///
    /// # Errors
    /// The first damaged chunk, and what reading can meet.
    pub fn verify_large(&self, progress: &mut dyn FnMut(u64)) -> Result<(), BundleError> {
        Ok(verify::large(&self.root, &self.state.sealed.manifest, progress)?)
    }
}

#[cfg(test)]
mod tests;
