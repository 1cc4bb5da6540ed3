//! A loaded model: its architecture over a backend, its key-value cache, tokens in and logits out.

use std::ops::ControlFlow;

use crate::engine::backend::cpu::{Activations, Cache, Cpu};
use crate::engine::backend::{Backend, BackendError};
use crate::engine::checkpoint::{Checkpoint, CheckpointError};
use crate::hint::Hint;
use crate::verified::VerifiedFolder;

pub mod llama;

pub use crate::engine::checkpoint::{LoadProgress, ModelConfig};

use self::llama::Llama;

/// How many tokens of a prompt are computed at once unless asked otherwise; cancelling waits for a layer of these.
const NUM_BATCH: usize = 256;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How many tokens of context to make room for; 0 means all that the model was trained for.
    pub num_ctx: usize,
    /// How many tokens of a prompt are computed at once; `None` leaves it to the engine.
    pub num_batch: Option<usize>,
    /// How many threads compute; `None` as many as the machine runs at once.
    pub threads: Option<usize>,
    /// The precision of activations in quantised matrices.
    pub activations: Activations,
    /// Whether vector instructions are used; off only to test them.
    pub simd: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { num_ctx: 0, num_batch: None, threads: None, activations: Activations::default(), simd: true }
    }
}

/// A model can't compute what it is asked to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ForwardError {
    /// The computation was cancelled; the cache holds what it held before.
    #[error("cancelled")]
    Cancelled,
    /// The cache has no room.
    #[error("the context of {num_ctx} tokens is full")]
    Full {
        /// How many tokens the context holds.
        num_ctx: usize,
    },
    /// A token that the model doesn't have.
    #[error("token {token} isn't among the model's {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// How many tokens the model has.
        vocab_size: usize,
    },
    /// Nothing to compute.
    #[error("no token was given")]
    Empty,
    /// The backend failed; the cache is empty.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Hint for ForwardError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Full { .. } => Some("raise `num_ctx`, or begin a new session".into()),
            Self::Token { .. } => {
                Some("import the model again: its tokenizer and its weights don't belong together".into())
            }
            Self::Backend(error) => error.hint(),
            Self::Cancelled | Self::Empty => None,
        }
    }
}

/// A loaded model with the keys and values of the tokens it has seen.
pub struct Model {
    config: ModelConfig,
    backend: Cpu,
    llama: Llama<Cpu>,
    caches: Vec<Cache>,
    len: usize,
    num_ctx: usize,
    num_batch: usize,
    logits: Vec<f32>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("config", &self.config).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads the checkpoint in `folder`. `progress` hears of bytes read and cancels by breaking.
    ///
    /// # Errors
    /// The checkpoint is damaged, incomplete or of a kind that isn't known here.
    pub fn load(
        folder: &VerifiedFolder,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let config = checkpoint.config().clone();
        let threads = options.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into));
        let backend = Cpu::new(threads.unwrap_or(1), options.activations, options.simd);
        let mut weights = backend.load(&checkpoint, progress)?;
        let llama = Llama::new(&backend, &config, &mut weights)?;
        backend.finish(weights)?;
        let caches = llama.caches(&backend);
        let num_ctx = num_ctx(&config, options);
        let num_batch = options.num_batch.unwrap_or(NUM_BATCH).max(1);
        Ok(Self { config, backend, llama, caches, len: 0, num_ctx, num_batch, logits: Vec::new() })
    }

    /// How many bytes of memory the model in `folder` will take: weights, and the cache at its full length.
    ///
    /// # Errors
    /// As [`Self::load`], as far as the headers tell.
    pub fn memory_bytes(folder: &VerifiedFolder, options: &LoadOptions) -> Result<u64, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let config = checkpoint.config();
        let cache = config.layers * 2 * config.kv_heads * config.head_dim * 4;
        Ok(checkpoint.weight_bytes() + cache as u64 * num_ctx(config, options) as u64)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What computes: for `tiles doctor`.
    pub fn engine(&self) -> String {
        format!("cpu ({}, {} threads)", self.backend.instruction_set(), self.backend.threads())
    }

    /// How many tokens the cache holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tokens the cache can hold.
    pub fn num_ctx(&self) -> usize {
        self.num_ctx
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.caches.iter_mut().for_each(|cache| self.backend.truncate(cache, self.len));
    }

    /// Appends `tokens` and gives the logits `[vocabulary]` after the last of them.
    ///
    /// # Errors
    /// See [`ForwardError`]; the cache then holds what it held before, or where the backend failed, nothing.
    pub fn forward(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], ForwardError> {
        let before = self.len;
        self.logits = self.last_logits(tokens, cancelled).inspect_err(|error| self.undo(before, error))?;
        Ok(&self.logits)
    }

    fn last_logits(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError> {
        let states = self.states(tokens, cancelled, &mut |_, _| Ok(()))?;
        let last = self.backend.last_row(&states);
        Ok(self.backend.to_floats(self.llama.logits(&self.backend, &last))?)
    }

    /// Appends `tokens` and gives the logits after each of them, `[tokens, vocabulary]`: for scoring a text.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ForwardError> {
        let before = self.len;
        let mut all = Vec::new();
        let result = self.states(tokens, &|| false, &mut |model, states| {
            all.extend(model.backend.to_floats(model.llama.logits(&model.backend, states))?);
            Ok(())
        });
        result.inspect_err(|error| self.undo(before, error))?;
        Ok(all)
    }

    /// Brings the cache back to `len` tokens; a backend that failed leaves nothing that could be kept.
    fn undo(&mut self, len: usize, error: &ForwardError) {
        self.truncate(if matches!(error, ForwardError::Backend(_)) { 0 } else { len });
    }

    /// Computes block by block; `each` sees every block's final states, the last block's are returned.
    fn states(
        &mut self,
        tokens: &[u32],
        cancelled: &dyn Fn() -> bool,
        each: &mut dyn FnMut(&Self, &<Cpu as Backend>::Tensor) -> Result<(), BackendError>,
    ) -> Result<<Cpu as Backend>::Tensor, ForwardError> {
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= self.config.vocab_size) {
            return Err(ForwardError::Token { token, vocab_size: self.config.vocab_size });
        }
        if tokens.len() > self.num_ctx.saturating_sub(self.len) {
            return Err(ForwardError::Full { num_ctx: self.num_ctx });
        }
        let mut last = None;
        for block in tokens.chunks(self.num_batch) {
            if let Some(states) = &last {
                self.backend.compute(states)?;
            }
            let states = self.llama.forward(&self.backend, block, self.len, &mut self.caches, cancelled);
            let states = states.ok_or(ForwardError::Cancelled)?;
            self.len += block.len();
            each(self, &states)?;
            last = Some(states);
        }
        last.ok_or(ForwardError::Empty)
    }
}

/// The context's length in tokens that these options ask for.
fn num_ctx(config: &ModelConfig, options: &LoadOptions) -> usize {
    match options.num_ctx {
        0 => config.max_position_embeddings,
        asked => asked.min(config.max_position_embeddings),
    }
}
