//! Why two drives didn't sync.

use crate::hint::Hint;
use crate::oplog::{RunError, VectorError};
use crate::peer::PeerError;
use crate::store::StoreError;

/// Why two drives didn't sync. What was taken in before stays; nothing is lost, and the next sync goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The other side speaks a later version.
    #[error("the other drive speaks version {version} of syncing, and this Tiles knows {ours}")]
    Newer {
        /// Its version.
        version: u8,
        /// Ours.
        ours: u8,
    },
    /// The other side sent what can't be.
    #[error("the other drive doesn't keep to the protocol: {what}")]
    Malformed {
        /// What.
        what: &'static str,
    },
    /// The other side sent what can't be a run of operations.
    #[error("the other drive doesn't keep to the protocol: {0}")]
    Run(#[from] RunError),
    /// The other side sent what can't be a list of logs.
    #[error("the other drive doesn't keep to the protocol: {0}")]
    Vector(#[from] VectorError),
    /// The other side fell silent.
    #[error("the other drive fell silent")]
    Silent,
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(String),
    /// This drive is no longer linked there, or the other one here.
    #[error("the other drive isn't linked any more")]
    NotLinked,
    /// The person pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network failed.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

impl From<std::io::Error> for SyncError {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl Hint for SyncError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Newer { .. } => "update this Tiles".into(),
            Self::Malformed { .. } | Self::Run(_) | Self::Vector(_) => {
                "update Tiles on both drives; if that doesn't help, unlink the other one with `tiles link disable`"
                    .into()
            }
            Self::Silent | Self::Lost(_) => "run `tiles sync` again: it goes on where it stopped".into(),
            Self::NotLinked => "`tiles link list-peers` shows who is linked; `tiles link enable` links again".into(),
            Self::Interrupted => return None,
            Self::Store(error) => return error.hint(),
            Self::Peer(error) => return error.hint(),
        })
    }
}
