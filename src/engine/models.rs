//! A loaded model: its architecture over a backend, its key-value cache, tokens in and logits out.

use std::ops::ControlFlow;

use crate::engine::backend::cpu::cache::BEYOND_WINDOW;
use crate::engine::backend::cpu::{Activations, Cpu, InstructionSet};
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
use crate::engine::backend::mlx::Mlx;
use crate::engine::backend::{BackendChoice, BackendError, BackendKind};
use crate::engine::checkpoint::{Checkpoint, CheckpointError};
use crate::engine::prefix::LayerState;
use crate::hint::Hint;
use crate::verified::VerifiedFolder;

mod architecture;
mod rope;
mod dense;
mod llama;
mod qwen2;
mod qwen3;
mod gemma3;
mod gpt_oss;
mod runner;

pub use crate::engine::checkpoint::{AdapterFiles, LoadProgress, ModelConfig};

use self::runner::{Run, Runner};

/// How many tokens of a prompt are computed at once unless asked otherwise; cancelling waits for a layer of these on the
/// processor, and for all layers on a GPU.
const NUM_BATCH: usize = 128;

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// What computes.
    pub backend: BackendChoice,
    /// How many tokens of context to make room for; 0 means all that the model was trained for.
    pub num_ctx: usize,
    /// How many tokens of a prompt are computed at once; `None` leaves it to the engine.
    pub num_batch: Option<usize>,
    /// How many threads compute; `None` as many as the machine runs at once.
    pub threads: Option<usize>,
    /// The precision of activations in quantised matrices. MLX knows float32 and the checkpoint's own type, which it takes
    /// for anything else on a GPU.
    pub activations: Activations,
    /// What the processor computes with.
    pub instruction_set: InstructionSet,
    /// What is added to the model's matrices.
    pub adapter: Option<AdapterFiles>,
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
    runner: Box<dyn Run>,
    num_ctx: usize,
    logits: Vec<f32>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("config", &self.config).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads the checkpoint in `folder`. `progress` hears of bytes read and cancels by breaking.
    ///
    /// # Errors
    /// The checkpoint is damaged, incomplete or of a kind that isn't known here; the backend that was asked for can't run.
    pub fn load(
        folder: &VerifiedFolder,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder, options.adapter.as_ref())?;
        let (kind, _) = options.backend.resolve().map_err(device)?;
        let runner: Box<dyn Run> = match kind {
            BackendKind::Cpu => {
                let threads = options.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into));
                let cpu = Cpu::new(threads.unwrap_or(1), options.activations, options.instruction_set);
                let engine = format!("cpu ({}, {} threads)", cpu.instruction_set(), cpu.threads());
                let num_batch = options.num_batch.unwrap_or(NUM_BATCH);
                Box::new(Runner::load(cpu, engine, num_batch, &checkpoint, progress)?)
            }
            #[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
            BackendKind::Mlx => {
                let mlx = Mlx::new(options.activations == Activations::Float32).map_err(device)?;
                // A GPU has its full speed only with more tokens at once.
                let (place, factor) = if mlx.is_gpu() { ("Metal", 4) } else { ("processor", 2) };
                let num_batch = options.num_batch.unwrap_or(NUM_BATCH * factor);
                Box::new(Runner::load(mlx, format!("mlx ({place})"), num_batch, &checkpoint, progress)?)
            }
            #[cfg(not(any(
                all(target_os = "macos", target_arch = "aarch64"),
                all(target_os = "linux", feature = "mlx")
            )))]
            BackendKind::Mlx => unreachable!("it resolves only where it is built in"),
        };
        let config = checkpoint.config().clone();
        Ok(Self { num_ctx: num_ctx(&config, options), config, runner, logits: Vec::new() })
    }

    /// How many bytes of memory the model in `folder` will take: weights, and the cache at its full length.
    ///
    /// # Errors
    /// As [`Self::load`], as far as the headers tell.
    pub fn memory_bytes(folder: &VerifiedFolder, options: &LoadOptions) -> Result<u64, CheckpointError> {
        let checkpoint = Checkpoint::open(folder, options.adapter.as_ref())?;
        let config = checkpoint.config();
        // 16 bits an element, but for the oracle.
        let element = if options.activations == Activations::Float32 { 4 } else { 2 };
        let position = (2 * config.kv_heads * config.head_dim * element) as u64;
        let num_ctx = num_ctx(config, options);
        // A layer with a window forgets what lies far behind it.
        let kept = |layer| config.window_of(layer).map_or(num_ctx, |window| num_ctx.min(window + 3 * BEYOND_WINDOW));
        let positions: usize = (0..config.layers).map(kept).sum();
        Ok(checkpoint.weight_bytes() + position * positions as u64)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What computes: for `tiles doctor`.
    pub fn engine(&self) -> &str {
        self.runner.engine()
    }

    /// How many tokens the cache holds.
    pub fn len(&self) -> usize {
        self.runner.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens the cache can hold.
    pub fn num_ctx(&self) -> usize {
        self.num_ctx
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.runner.truncate(len);
    }

    /// Appends `tokens` and gives the logits `[vocabulary]` after the last of them.
    ///
    /// # Errors
    /// See [`ForwardError`]; the cache then holds what it held before, or where the backend failed, nothing.
    pub fn forward(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], ForwardError> {
        self.check(tokens)?;
        self.logits = self.runner.forward(tokens, cancelled)?;
        Ok(&self.logits)
    }

    /// Appends `tokens` and gives the logits after each of them, `[tokens, vocabulary]`: for scoring a text.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ForwardError> {
        self.check(tokens)?;
        self.runner.forward_all(tokens)
    }

    /// Appends a few `tokens` and gives the logits after each of them, `[tokens, vocabulary]`, computed in one go.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_each(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, ForwardError> {
        self.check(tokens)?;
        self.runner.forward_each(tokens, cancelled)
    }

    /// Whether several tokens at once give bit for bit what one after another gives.
    pub fn is_exact_in_batches(&self) -> bool {
        self.runner.is_exact_in_batches()
    }

    /// About how many bytes the cache holds.
    pub fn cache_bytes(&self) -> u64 {
        let config = &self.config;
        let position = (2 * config.kv_heads * config.head_dim * 2) as u64;
        position * (config.layers * self.len()) as u64
    }

    /// What the cache holds, layer by layer.
    ///
    /// # Errors
    /// The backend fails.
    pub fn snapshot(&self) -> Result<Vec<LayerState>, BackendError> {
        self.runner.snapshot()
    }

    /// Puts `len` tokens' keys and values into the cache in place of what it holds. Says whether they fit this model; where
    /// they don't, the cache is empty.
    pub fn restore(&mut self, layers: &[LayerState], len: usize) -> bool {
        let ends = |layer: &LayerState| layer.positions().and_then(|positions| positions.checked_add(layer.first));
        let fits = len <= self.num_ctx && layers.iter().all(|layer| ends(layer) == Some(len));
        self.runner.restore(if fits { layers } else { &[] }, len)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), ForwardError> {
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= self.config.vocab_size) {
            return Err(ForwardError::Token { token, vocab_size: self.config.vocab_size });
        }
        if tokens.len() > self.num_ctx.saturating_sub(self.len()) {
            return Err(ForwardError::Full { num_ctx: self.num_ctx });
        }
        Ok(())
    }
}

fn device(BackendError { why, .. }: BackendError) -> CheckpointError {
    CheckpointError::Device { why }
}

/// The context's length in tokens that these options ask for.
fn num_ctx(config: &ModelConfig, options: &LoadOptions) -> usize {
    match options.num_ctx {
        0 => config.max_position_embeddings,
        asked => asked.min(config.max_position_embeddings),
    }
}
