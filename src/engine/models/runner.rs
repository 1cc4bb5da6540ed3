//! A model over one backend: tokens in and logits out, block by block, with its key-value cache.

use std::ops::ControlFlow;

use super::ForwardError;
use super::architecture::{self, Architecture};
use crate::engine::backend::{Backend, BackendError};
use crate::engine::checkpoint::{Checkpoint, CheckpointError, LoadProgress};
use crate::engine::prefix::LayerState;

/// A loaded model, whatever its backend.
pub(super) trait Run {
    /// What computes, in words.
    fn engine(&self) -> &str;
    /// How many tokens the cache holds.
    fn len(&self) -> usize;
    /// Forgets all tokens from `len` on; all of them where a window has left `len` behind.
    fn truncate(&mut self, len: usize);
    /// See [`super::Model::forward`].
    fn forward(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError>;
    /// See [`super::Model::forward_all`].
    fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ForwardError>;
    /// See [`super::Model::forward_each`].
    fn forward_each(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError>;
    /// See [`super::Model::is_exact_in_batches`].
    fn is_exact_in_batches(&self) -> bool;
    /// What the caches hold.
    fn snapshot(&self) -> Result<Vec<LayerState>, BackendError>;
    /// Puts back what [`Self::snapshot`] took; says whether it fits. Where it doesn't, the caches are empty.
    fn restore(&mut self, layers: &[LayerState], len: usize) -> bool;
}

/// A model over the backend `B`.
pub(super) struct Runner<B: Backend> {
    backend: B,
    engine: String,
    architecture: Box<dyn Architecture<B>>,
    caches: Vec<B::Cache>,
    len: usize,
    num_batch: usize,
}

impl<B: Backend + 'static> Runner<B> {
    pub(super) fn load(
        backend: B,
        engine: String,
        num_batch: usize,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, CheckpointError> {
        let mut weights = backend.load(checkpoint, progress)?;
        let architecture = architecture::load(&backend, checkpoint.config(), &mut weights)?;
        backend.finish(weights)?;
        let caches = architecture.caches(&backend);
        Ok(Self { backend, engine, architecture, caches, len: 0, num_batch: num_batch.max(1) })
    }

    /// The final states of the next tokens, computed or, by a lazy backend, recorded.
    fn block(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<B::Tensor, ForwardError> {
        let states = self.architecture.forward(&self.backend, tokens, self.len, &mut self.caches, cancelled);
        self.len += tokens.len();
        states.ok_or(ForwardError::Cancelled)
    }

    fn last_logits(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError> {
        let mut last = None;
        for block in tokens.chunks(self.num_batch) {
            if let Some(states) = &last {
                self.backend.compute(states)?;
            }
            last = Some(self.block(block, cancelled)?);
        }
        let last = self.backend.last_row(&last.ok_or(ForwardError::Empty)?);
        Ok(self.backend.to_floats(self.architecture.logits(&self.backend, &last))?)
    }

    fn all_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ForwardError> {
        let mut all = Vec::new();
        for block in tokens.chunks(self.num_batch) {
            let states = self.block(block, &|| false)?;
            all.extend(self.backend.to_floats(self.architecture.logits(&self.backend, &states))?);
        }
        if all.is_empty() { Err(ForwardError::Empty) } else { Ok(all) }
    }

    /// Brings the cache back to `len` tokens; a backend that failed leaves nothing that could be kept.
    fn undo(&mut self, len: usize, error: &ForwardError) {
        self.truncate(if matches!(error, ForwardError::Backend(_)) { 0 } else { len });
    }
}

impl<B: Backend + 'static> Run for Runner<B> {
    fn engine(&self) -> &str {
        &self.engine
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        let is_gone = self.caches.iter().any(|cache| self.backend.shortest(cache) > len);
        self.len = if is_gone { 0 } else { self.len.min(len) };
        self.caches.iter_mut().for_each(|cache| self.backend.truncate(cache, self.len));
    }

    fn forward(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError> {
        let before = self.len;
        self.last_logits(tokens, cancelled).inspect_err(|error| self.undo(before, error))
    }

    fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ForwardError> {
        let before = self.len;
        self.all_logits(tokens).inspect_err(|error| self.undo(before, error))
    }

    fn forward_each(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError> {
        let before = self.len;
        let computed = match self.block(tokens, cancelled) {
            Ok(states) => {
                let logits = self.architecture.logits(&self.backend, &states);
                self.backend.to_floats(logits).map_err(ForwardError::from)
            }
            Err(error) => Err(error),
        };
        computed.inspect_err(|error| self.undo(before, error))
    }

    fn is_exact_in_batches(&self) -> bool {
        B::IS_EXACT_IN_BATCHES
    }

    fn snapshot(&self) -> Result<Vec<LayerState>, BackendError> {
        self.caches.iter().map(|cache| self.backend.snapshot(cache)).collect()
    }

    fn restore(&mut self, layers: &[LayerState], len: usize) -> bool {
        self.truncate(0);
        let fits = layers.len() == self.caches.len()
            && self.caches.iter_mut().zip(layers).all(|(cache, layer)| self.backend.restore(cache, layer));
        if fits {
            self.len = len;
        } else {
            self.truncate(0);
        }
        fits
    }
}

#[cfg(all(test, target_os = "linux", feature = "mlx"))]
mod tests;
