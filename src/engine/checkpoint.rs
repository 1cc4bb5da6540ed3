//! STUB for this branch only: the other room's file replaces it.

use crate::hint::Hint;
use crate::verified::IntegrityError;

/// Stub.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Stub.
    #[error(transparent)]
    Read(#[from] IntegrityError),
    /// Stub.
    #[error("something is missing")]
    Missing,
    /// Stub.
    #[error("loading was cancelled")]
    Cancelled,
}

impl Hint for CheckpointError {
    fn hint(&self) -> Option<String> {
        None
    }
}
