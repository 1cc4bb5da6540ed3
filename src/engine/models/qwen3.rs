//! Qwen3: a norm over each head of q and k before they are rotated.

use super::dense::{Dense, Particulars};
use crate::engine::backend::Backend;
use crate::engine::checkpoint::{CheckpointError, ModelConfig};

/// Takes its weights.
///
/// # Errors
/// A weight is missing or has another shape than `config` asks for.
pub(super) fn new<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    weights: &mut B::Weights,
) -> Result<Dense<B>, CheckpointError> {
    Dense::new(backend, config, weights, Particulars { qk_norm: true, ..Particulars::default() })
}
