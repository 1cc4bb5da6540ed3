//! What every architecture can do, and which one goes with a `model_type`.

use super::gemma3::Gemma3;
use super::gpt_oss::GptOss;
use super::{llama, qwen2, qwen3};
use crate::engine::backend::Backend;
use crate::engine::checkpoint::{CheckpointError, ModelConfig, ModelType};

/// A model's layers over a backend.
pub(super) trait Architecture<B: Backend> {
    /// An empty cache for each layer.
    fn caches(&self, backend: &B) -> Vec<B::Cache>;

    /// The final states of `tokens` at positions `first..`: `[tokens, hidden]`; `None` once `cancelled` says so.
    fn forward(
        &self,
        backend: &B,
        tokens: &[u32],
        first: usize,
        caches: &mut [B::Cache],
        cancelled: &dyn Fn() -> bool,
    ) -> Option<B::Tensor>;

    /// The logits of final states: `[tokens, vocabulary]`.
    fn logits(&self, backend: &B, states: &B::Tensor) -> B::Tensor;
}

/// Takes the weights of the architecture that `config` names.
///
/// # Errors
/// A weight is missing or has another shape than `config` asks for.
pub(super) fn load<B: Backend + 'static>(
    backend: &B,
    config: &ModelConfig,
    weights: &mut B::Weights,
) -> Result<Box<dyn Architecture<B>>, CheckpointError> {
    Ok(match config.model_type {
        ModelType::Llama => Box::new(llama::new(backend, config, weights)?),
        ModelType::Qwen2 => Box::new(qwen2::new(backend, config, weights)?),
        ModelType::Qwen3 => Box::new(qwen3::new(backend, config, weights)?),
        ModelType::Gemma3Text => Box::new(Gemma3::new(backend, config, weights)?),
        ModelType::GptOss => Box::new(GptOss::new(backend, config, weights)?),
    })
}
