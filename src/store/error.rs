//! What can go wrong with the store, by what a person can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::bundle::BundleError;
use crate::disk::DiskError;
use crate::hint::Hint;
use crate::message::SessionId;
use crate::time::Timestamp;

/// A session as an error names it: enough for the person to choose another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSession {
    /// Its name.
    pub id: SessionId,
    /// What the person calls it.
    pub title: Option<String>,
}

impl fmt::Display for NamedSession {
    /// Writes the first 8 digits, and the title where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.to_string();
        match &self.title {
            Some(title) => write!(f, "{} {title}", &id[..8]),
            None => f.write_str(&id[..8]),
        }
    }
}

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The medium is full, gone, or the file can't be reached.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// This program was built with a plain SQLite that doesn't encrypt.
    #[error("this build of Tiles can't encrypt its database")]
    NoCipher,
    /// No page of the file opens with the key.
    #[error("`{}` doesn't open with this bundle's key", path.display())]
    WrongKey {
        /// Which file.
        path: PathBuf,
    },
    /// The file is a database without encryption.
    #[error("`{}` is a database that isn't encrypted; Tiles didn't write it", path.display())]
    Plain {
        /// Which file.
        path: PathBuf,
    },
    /// The file is no database.
    #[error("`{}` isn't a database", path.display())]
    NotADatabase {
        /// Which file.
        path: PathBuf,
    },
    /// The file opens, but holds something else than Tiles' tables.
    #[error("`{}` isn't the database of a Tiles bundle: {what}", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What it holds instead.
        what: String,
    },
    /// The file is damaged.
    #[error("`{}` is damaged: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A later version of Tiles wrote the file.
    #[error("`{}` has schema {found}, and this version of Tiles knows schemas up to {known}", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// The file's schema.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// The file needs to be written before it can be read, and can't be.
    #[error("`{}` has to be brought up to date, and the drive is write-protected", path.display())]
    Outdated {
        /// Which file.
        path: PathBuf,
    },
    /// The store can't be written.
    #[error("nothing can be saved in `{}`: it is open for reading only", path.display())]
    ReadOnly {
        /// Which file.
        path: PathBuf,
    },
    /// Another process, or another store of this one, has the file.
    #[error("`{}` is in use", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// The person stopped it.
    #[error("it was interrupted")]
    Interrupted,
    /// The database that was here isn't.
    #[error("`{}` is gone: it was last changed at {last_at}", path.display())]
    Lost {
        /// Where it was.
        path: PathBuf,
        /// When the drive's mark says it was last changed.
        last_at: Timestamp,
    },
    /// The mark of the last runs can't be read or written.
    #[error(transparent)]
    Mark(#[from] Box<BundleError>),
    /// No session has that name.
    #[error("no session is called `{text}`{}", list(near, "; near it are"))]
    NotFound {
        /// What was asked for.
        text: String,
        /// Sessions with a name near it.
        near: Vec<NamedSession>,
    },
    /// Several sessions have that name.
    #[error("`{text}` names {count} sessions{}", list(candidates, ":"))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// How many sessions it names.
        count: usize,
        /// Some of them.
        candidates: Vec<NamedSession>,
    },
    /// A session or message with that identifier is here already.
    #[error("session {session} is here already")]
    Exists {
        /// The session.
        session: SessionId,
    },
    /// There is no turn to take back, or no answer to replace.
    #[error("the session has no {what}")]
    Nothing {
        /// What it lacks.
        what: &'static str,
    },
    /// Something is longer or more than is kept.
    #[error("{what} has {count} {unit}, more than the {count_max} that are kept")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        count: usize,
        /// The limit.
        count_max: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A title, a model's name or a setting's key isn't one.
    #[error("{what} can't be empty or have control characters")]
    BadName {
        /// What was to be named.
        what: &'static str,
    },
    /// No randomness can be had from the operating system.
    #[error("the operating system gives no random numbers")]
    Random(#[source] getrandom::Error),
    /// Anything else the database says: a defect of ours.
    #[error("the database `{}` refused", path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// Whether SQLite can't make sense of the tables in which the text index is kept. It has no code of its own for that;
/// a query that isn't one has the same, but would be a defect of ours.
fn is_index_damage(error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(_, Some(message)) = error else { return false };
    (message.contains("fts5") || message.contains("message_text")) && !message.contains("syntax error")
}

/// Names at the end of a sentence, after `lead`; nothing where there are none.
fn list(sessions: &[NamedSession], lead: &str) -> String {
    match sessions {
        [] => String::new(),
        some => {
            format!("{lead} {}", some.iter().map(|session| format!("`{session}`")).collect::<Vec<_>>().join(", "))
        }
    }
}

impl StoreError {
    /// Whether the bytes on the drive are not what Tiles wrote: such a failure exits with the code for integrity.
    pub fn is_integrity(&self) -> bool {
        matches!(
            self,
            Self::WrongKey { .. }
                | Self::Plain { .. }
                | Self::NotADatabase { .. }
                | Self::Foreign { .. }
                | Self::Damaged { .. }
                | Self::Lost { .. }
        )
    }

    /// Sorts what SQLite says about the database at `path`.
    pub(super) fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse { path },
            Some(ErrorCode::OperationInterrupted) => Self::Interrupted,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path },
            Some(ErrorCode::DiskFull) => Self::Disk(DiskError::Full { path }),
            Some(ErrorCode::SystemIoFailure) => Self::Disk(DiskError::Gone { path, source: io::Error::other(error) }),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                Self::Disk(DiskError::Other { action: "open", path, source: io::Error::other(error) })
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, what: "a page isn't what was written there".into() }
            }
            // What the statements of the store can't bring about in tables that are sound.
            Some(ErrorCode::ConstraintViolation) => {
                Self::Damaged { path, what: "its tables contradict each other".into() }
            }
            _ if is_index_damage(&error) => Self::Damaged { path, what: "the index of its text isn't one".into() },
            _ => Self::Refused { path, source: error },
        }
    }
}

impl Hint for StoreError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Disk(error) => return error.hint(),
            Self::NoCipher => "use a release of Tiles".into(),
            Self::WrongKey { .. } => "put back the key file and the database of the same bundle".into(),
            Self::Plain { .. } | Self::NotADatabase { .. } | Self::Foreign { .. } => {
                "move the file away, or put back the one that belongs there".into()
            }
            Self::Damaged { .. } => "run `tiles data recover`, or put back a backup".into(),
            Self::Lost { .. } => {
                "put the file back, take a backup with `tiles data recover`, or begin anew with `tiles data accept`"
                    .into()
            }
            Self::Mark(error) => return error.hint(),
            Self::Newer { .. } => "use the version of Tiles that wrote it, or a later one".into(),
            Self::Outdated { .. } => "open the bundle once on a drive that can be written".into(),
            Self::ReadOnly { .. } => {
                "slide the drive's lock open, or copy the folder to a drive that can be written".into()
            }
            Self::InUse { .. } => "end the other Tiles that uses this folder".into(),
            Self::NotFound { .. } => "list the sessions with `tiles session list`".into(),
            Self::Ambiguous { .. } => "give more digits of the session's identifier".into(),
            Self::Exists { .. } => "delete it first with `tiles session delete ID` if it shall be replaced".into(),
            Self::TooLarge { .. } => "make it shorter".into(),
            Self::BadName { .. } => "give a name on one line".into(),
            Self::Nothing { .. } | Self::Random(_) | Self::Refused { .. } | Self::Interrupted => return None,
        })
    }
}

/// What a step within a transaction meets, before the path is added.
#[derive(Debug)]
pub(super) enum Trouble {
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// A row holds what can't have been written by Tiles.
    Row(&'static str),
    /// Anything that is an error of the store already.
    Store(StoreError),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Trouble {
    /// The error a caller sees.
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(error) => StoreError::from_sqlite(path, error),
            Self::Row(what) => StoreError::Damaged { path: path.into(), what: what.into() },
            Self::Store(error) => error,
        }
    }
}
