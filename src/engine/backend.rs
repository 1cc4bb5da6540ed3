//! The dozen tensor operations that a transformer needs; every architecture is written once over them.
//!
//! `cpu` computes with our own SIMD kernels. An MLX backend implements the same trait over lazy arrays, so nothing here
//! asks for a value before [`Backend::to_floats`].

use std::ops::ControlFlow;

use crate::engine::checkpoint::{Checkpoint, CheckpointError, LoadProgress};
use crate::engine::prefix::LayerState;
use crate::hint::Hint;

pub mod cpu;
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
pub mod mlx;

/// A backend can't compute: its device fails, or its memory doesn't suffice.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the engine `{backend}` can't compute: {why}")]
pub struct BackendError {
    /// Which.
    pub backend: &'static str,
    /// What it says itself.
    pub why: String,
}

impl Hint for BackendError {
    fn hint(&self) -> Option<String> {
        Some("close other programs, or leave `--engine` out: it then takes the fastest that runs here".into())
    }
}

/// Which backend a person asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// MLX where it finds a GPU, else our own.
    #[default]
    Auto,
    /// Our own, on the processor.
    Cpu,
    /// MLX.
    Mlx,
}

/// Which backend computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Our own, on the processor.
    Cpu,
    /// MLX.
    Mlx,
}

impl BackendKind {
    /// Its name, as `--engine` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Mlx => "mlx",
        }
    }
}

impl BackendChoice {
    /// Which backend this comes to on this machine, and why.
    ///
    /// # Errors
    /// It asks for MLX, which can't run here.
    pub fn resolve(self) -> Result<(BackendKind, String), BackendError> {
        let asked = |kind| Ok((kind, "as asked".to_owned()));
        match self {
            Self::Cpu => asked(BackendKind::Cpu),
            Self::Mlx => mlx_finds_gpu().and_then(|_| asked(BackendKind::Mlx)),
            Self::Auto => Ok(match mlx_finds_gpu() {
                Ok(true) => (BackendKind::Mlx, "Metal is here".into()),
                Ok(false) => (BackendKind::Cpu, "`mlx` finds no GPU".into()),
                Err(BackendError { why, .. }) => (BackendKind::Cpu, format!("`mlx` can't run: {why}")),
            }),
        }
    }
}

/// Whether MLX has a GPU to compute on.
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx")))]
fn mlx_finds_gpu() -> Result<bool, BackendError> {
    mlx::Mlx::new(false).map(|mlx| mlx.is_gpu())
}

/// Whether MLX has a GPU to compute on: it isn't even in this program.
#[cfg(not(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx"))))]
fn mlx_finds_gpu() -> Result<bool, BackendError> {
    Err(BackendError { backend: "mlx", why: "it isn't in this program; it needs a Mac with Apple silicon".into() })
}

/// How queries meet keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// The factor on the scores, mostly `head_dim^-0.5`.
    pub scale: f32,
    /// How many positions a query sees, its own included; `None` all before it.
    pub window: Option<usize>,
}

/// Tensor operations over weights of the backend's own layout. Activations are `[tokens, width]`, float32 in meaning.
pub trait Backend: Sized {
    /// Whether a few tokens at once, as many as a draft has, give bit for bit what one after another gives.
    const IS_EXACT_IN_BATCHES: bool;
    /// Activations.
    type Tensor;
    /// A matrix `[rows, columns]`, quantised or not, with its bias where it has one.
    type Linear;
    /// A vector of weights, such as a norm's.
    type Vector;
    /// The wavelengths of rotary embeddings.
    type Rope;
    /// The keys and values of one layer.
    type Cache;
    /// Weights that were read and that no layer has taken yet, by name.
    type Weights;
    /// The matrices `[rows, columns]` of a layer's experts, with their biases where they have them.
    type Experts;
    /// Which experts each token goes to, and how much each counts.
    type Routing;

    /// Reads all weights of a checkpoint into the backend's layout.
    ///
    /// # Errors
    /// Damage, and what the backend can't represent. [`CheckpointError::Cancelled`] where `progress` breaks.
    fn load(
        &self,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self::Weights, CheckpointError>;

    /// Takes the matrix `name` (without `.weight`) of shape `[rows, columns]`.
    ///
    /// # Errors
    /// It is missing or has another shape.
    fn linear(
        &self,
        weights: &mut Self::Weights,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Self::Linear, CheckpointError>;

    /// Takes the vector `name` (without `.weight`) of `len` elements.
    ///
    /// # Errors
    /// It is missing or has another length.
    fn vector(&self, weights: &mut Self::Weights, name: &str, len: usize) -> Result<Self::Vector, CheckpointError>;

    /// Takes the `count` matrices `name` (without `.weight`) of shape `[count, rows, columns]`.
    ///
    /// # Errors
    /// They are missing or have another shape.
    fn experts(
        &self,
        weights: &mut Self::Weights,
        name: &str,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Self::Experts, CheckpointError>;

    /// Whether there is a weight `name` (without `.weight`).
    fn has(&self, weights: &Self::Weights, name: &str) -> bool;

    /// Checks that the matrix `name`, which wasn't taken yet, has a bias.
    ///
    /// # Errors
    /// It has none.
    fn require_bias(&self, weights: &Self::Weights, name: &str) -> Result<(), CheckpointError> {
        match self.has(weights, &format!("{name}.bias")) {
            true => Ok(()),
            false => Err(CheckpointError::Tensor { name: format!("{name}.bias"), why: "it is missing".into() }),
        }
    }

    /// Ends loading: nothing may be left that no layer has taken.
    ///
    /// # Errors
    /// A tensor that the architecture doesn't know.
    fn finish(&self, weights: Self::Weights) -> Result<(), CheckpointError>;

    /// Rotary embeddings of the given wavelengths, `head_dim / 2` of them: the angle at a position is position / wavelength.
    fn rope_table(&self, wavelengths: &[f64]) -> Self::Rope;

    /// An empty cache for one layer.
    fn cache(&self, attention: &Attention) -> Self::Cache;

    /// Forgets all positions from `len` on: 0, or at least [`Self::shortest`].
    fn truncate(&self, cache: &mut Self::Cache, len: usize);

    /// What a cache holds.
    ///
    /// # Errors
    /// As [`Self::compute`].
    fn snapshot(&self, cache: &Self::Cache) -> Result<LayerState, BackendError>;

    /// Puts into an empty cache what [`Self::snapshot`] took out. Says whether it fits; where it doesn't, the cache is empty.
    fn restore(&self, cache: &mut Self::Cache, state: &LayerState) -> bool;

    /// The shortest length but 0 to which a cache can be truncated: one with a window forgets what is far behind.
    fn shortest(&self, cache: &Self::Cache) -> usize;

    /// The rows of `table` that `tokens` name: `[tokens, columns]`. Every token is below the number of rows.
    fn embed(&self, table: &Self::Linear, tokens: &[u32]) -> Self::Tensor;

    /// `x` times each transposed matrix, plus its bias: `[tokens, rows]` each.
    fn linears<const N: usize>(&self, x: &Self::Tensor, matrices: [&Self::Linear; N]) -> [Self::Tensor; N];

    /// Root-mean-square norm over each row, or over each head where `weight` has the width of one, times `weight`.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, epsilon: f32) -> Self::Tensor;

    /// Rotates each head's halves (element i with i + head_dim / 2) by the angles of positions `first..`.
    fn rope(&self, x: Self::Tensor, rope: &Self::Rope, first: usize) -> Self::Tensor;

    /// Appends keys and values to the cache and attends causally: `[tokens, heads · head_dim]`. `sinks` has one more score
    /// for each head, which takes weight and has no value.
    fn attention(
        &self,
        attention: &Attention,
        sinks: Option<&Self::Vector>,
        cache: &mut Self::Cache,
        queries: &Self::Tensor,
        keys: Self::Tensor,
        values: Self::Tensor,
    ) -> Self::Tensor;

    /// `silu(gate) · up`, element by element.
    fn silu_gate(&self, gate: Self::Tensor, up: &Self::Tensor) -> Self::Tensor;

    /// `gelu(gate) · up`, element by element, with the approximation by tanh.
    fn gelu_gate(&self, gate: Self::Tensor, up: &Self::Tensor) -> Self::Tensor;

    /// `(clip(up, -limit, limit) + 1) · g · sigmoid(alpha · g)` with `g = min(gate, limit)`, element by element.
    fn clipped_swiglu(&self, gate: Self::Tensor, up: &Self::Tensor, alpha: f32, limit: f32) -> Self::Tensor;

    /// `vector + by`, element by element.
    fn shift(&self, vector: Self::Vector, by: f32) -> Self::Vector;

    /// `x · factor`, element by element.
    fn scale(&self, x: Self::Tensor, factor: f32) -> Self::Tensor;

    /// Chooses the `chosen` experts, two at least, with the largest of the scores `[tokens, experts]`; they count by the
    /// softmax of these scores alone.
    fn route(&self, scores: Self::Tensor, chosen: usize) -> Self::Routing;

    /// `x` times the transposed matrix of each expert that its token goes to, plus the bias: `[tokens · chosen, rows]`
    /// each, in an order that only `routing` knows. `x` is `[tokens, columns]`, or comes from this function.
    fn expert_linears<const N: usize>(
        &self,
        x: &Self::Tensor,
        experts: [&Self::Experts; N],
        routing: &Self::Routing,
    ) -> [Self::Tensor; N];

    /// The weighted sum of what the experts made of each token: `[tokens, width]`.
    fn combine(&self, x: Self::Tensor, routing: &Self::Routing) -> Self::Tensor;

    /// `x + y`, element by element.
    fn add(&self, x: Self::Tensor, y: &Self::Tensor) -> Self::Tensor;

    /// The last row alone: `[1, width]`.
    fn last_row(&self, x: &Self::Tensor) -> Self::Tensor;

    /// Has a lazy backend compute `x`, and with it the keys and values before it; others did so already.
    ///
    /// # Errors
    /// The device fails. All caches must then be truncated to 0.
    fn compute(&self, x: &Self::Tensor) -> Result<(), BackendError>;

    /// The values, row by row; a lazy backend computes them here.
    ///
    /// # Errors
    /// As [`Self::compute`].
    fn to_floats(&self, x: Self::Tensor) -> Result<Vec<f32>, BackendError>;
}
