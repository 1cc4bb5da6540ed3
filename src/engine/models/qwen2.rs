//! Qwen2 and Qwen2.5: q, k and v have biases, which no key of the configuration mentions.

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
    Dense::new(backend, config, weights, Particulars { qkv_bias: true, ..Particulars::default() })
}
