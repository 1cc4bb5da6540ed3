//! The default model's folder, which tests of the real thing read.

use std::path::PathBuf;

/// Where the model lies, below cargo's target directory.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/models/smollm2")
}
