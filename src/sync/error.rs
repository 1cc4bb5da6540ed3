//! Why two drives didn't sync.

use crate::disk::DiskError;
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
    /// Nobody came for a model, or had one to give.
    #[error("no linked drive was there for a model")]
    NobodyCame,
    /// A model wasn't taken.
    #[error("the model wasn't taken")]
    Declined,
    /// The drive failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
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
            Self::NobodyCame => {
                "run `tiles model send NAME` on the one machine and `tiles model receive` on the other at the same time, in the same \
                 network"
                    .into()
            }
            Self::Declined => "ask the person at the other drive; what was fetched is kept for another try".into(),
            Self::Disk(error) => return error.hint(),
            Self::Interrupted => return None,
            Self::Store(error) => return error.hint(),
            Self::Peer(error) => return error.hint(),
        })
    }
}
