//! The backend over MLX: Metal on Apple silicon. On Linux, MLX's own CPU kernels run the same code for tests.
//!
//! Arrays are lazy: operations only record what is to be computed, and [`Backend::to_floats`] or [`Backend::compute`]
//! computes all of it. An operation that MLX refuses is remembered, and told there.

use std::cell::RefCell;
use std::ops::ControlFlow;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Device, DeviceType, Dtype, fast, memory, ops};

use self::raw::Packed;
use super::{Attention, Backend, BackendError};
use crate::engine::checkpoint::{Checkpoint, CheckpointError, LoadProgress};
use crate::engine::prefix::LayerState;

mod raw;
mod attention;
mod experts;
mod weights;

pub use self::attention::Cache;
pub use self::experts::{Experts, Routing};
pub use self::weights::Weights;

/// MLX on its default device.
pub struct Mlx {
    gpu: bool,
    float32: bool,
    /// The first thing that MLX refused since the last report.
    failure: RefCell<Option<String>>,
}

/// Activations `[rows, width]`.
#[derive(Clone)]
pub struct Tensor {
    array: Array,
    rows: usize,
    width: usize,
    /// The width of a head where the array is `[1, heads, rows, head_dim]`, as `rope` and attention want it, instead of
    /// `[rows, width]`.
    head_dim: Option<usize>,
}

/// A matrix with its bias where it has one, and what an adapter adds.
pub struct Linear {
    matrix: Matrix,
    bias: Option<Array>,
    adapter: Option<LowRank>,
    rows: usize,
    columns: usize,
}

/// The two matrices of an adapter for one matrix: A is `[columns, rank]`, B `[rank, rows]`.
struct LowRank {
    a: Array,
    b: Array,
    scale: f32,
}

enum Matrix {
    Dense(Array),
    Packed(Packed),
}

/// The wavelengths of rotary embeddings.
pub struct Rope {
    wavelengths: Array,
    head_dim: usize,
}

impl Mlx {
    /// Opens the default device. Activations have the checkpoint's own type on Metal, float32 where `float32` asks for
    /// it and on a CPU, whose half-precision kernels add up in half precision.
    ///
    /// # Errors
    /// MLX can't run here.
    pub fn new(float32: bool) -> std::result::Result<Self, BackendError> {
        let open = || -> Result<bool> {
            // The first call that can fail makes mlx-rs install its error handler.
            let gpu = matches!(Device::try_default()?.get_type()?, DeviceType::Gpu);
            // Metal loads its kernels for the first sum: where they are missing, that is known now.
            ops::add(Array::from_f32(1.0), Array::from_f32(1.0))?.eval()?;
            Ok(gpu)
        };
        let gpu = open().map_err(|error| failed(error.what()))?;
        let float32 = float32 || !gpu;
        Ok(Self { gpu, float32, failure: RefCell::new(None) })
    }

    /// With activations of the checkpoint's own type wherever it computes, as on a GPU.
    #[cfg(test)]
    pub(crate) fn native() -> Self {
        Self { float32: false, ..Self::new(true).expect("MLX runs where it is built in") }
    }

    /// Whether it computes on a GPU.
    pub fn is_gpu(&self) -> bool {
        self.gpu
    }

    /// The result, or a placeholder for what MLX refused: whatever comes of it is never told.
    fn keep(&self, result: Result<Array>) -> Array {
        result.unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert_with(|| error.what().into());
            Array::from_f32(0.0)
        })
    }

    /// What MLX refused since the last report.
    fn check(&self) -> std::result::Result<(), BackendError> {
        self.failure.borrow_mut().take().map_or(Ok(()), |why| Err(failed(&why)))
    }

    /// The same values as `[rows, width]`.
    fn flat(x: &Tensor) -> Result<Array> {
        match x.head_dim {
            None => Ok(x.array.clone()),
            Some(_) => x.array.transpose_axes(&[0, 2, 1, 3])?.reshape(&[x.rows as i32, x.width as i32]),
        }
    }

    /// The same values as `[1, heads, rows, head_dim]`.
    fn by_head(x: &Tensor, head_dim: usize) -> Result<Array> {
        if x.head_dim == Some(head_dim) {
            return Ok(x.array.clone());
        }
        let shape = [1, x.rows as i32, (x.width / head_dim) as i32, head_dim as i32];
        Self::flat(x)?.reshape(&shape)?.transpose_axes(&[0, 2, 1, 3])
    }

    fn tensor(&self, array: Result<Array>, rows: usize, width: usize) -> Tensor {
        Tensor { array: self.keep(array), rows, width, head_dim: None }
    }

    /// Applies an operation on the elements of `x` and of `y`, which has the same shape.
    fn elements(&self, x: &Tensor, y: &Tensor, run: impl FnOnce(&Array, &Array) -> Result<Array>) -> Tensor {
        let result = || run(&Self::flat(x)?, &Self::flat(y)?);
        self.tensor(result(), x.rows, x.width)
    }
}

/// A number of the same type as `like`: beside one of another type, MLX would compute in the wider.
fn scalar(value: f32, like: &Array) -> Result<Array> {
    Array::from_f32(value).as_dtype(like.dtype())
}

fn failed(why: &str) -> BackendError {
    BackendError { backend: "mlx", why: why.into() }
}

#[cfg(test)]
impl Tensor {
    /// Whether the activations are of half precision.
    pub(crate) fn is_half(&self) -> bool {
        matches!(self.array.dtype(), Dtype::Bfloat16 | Dtype::Float16)
    }
}

impl Linear {
    fn times(&self, x: &Array) -> Result<Array> {
        let product = match (&self.matrix, &self.bias) {
            (Matrix::Dense(matrix), None) => ops::matmul(x, matrix.transpose()?),
            // Rounded once, as in mlx-lm.
            (Matrix::Dense(matrix), Some(bias)) => ops::addmm(bias, x, matrix.transpose()?, 1.0, 1.0),
            (Matrix::Packed(packed), None) => raw::quantized_matmul(x, packed),
            (Matrix::Packed(packed), Some(bias)) => raw::quantized_matmul(x, packed)?.add(bias),
        };
        let (Some(LowRank { a, b, scale }), Ok(product)) = (&self.adapter, &product) else { return product };
        let added = ops::matmul(ops::matmul(x, a)?, b)?;
        product.add(added.multiply(scalar(*scale, &added)?)?.as_dtype(x.dtype())?)
    }

    fn rows_of(&self, tokens: &[u32]) -> Result<Array> {
        let tokens = Array::from_slice(tokens, &[tokens.len() as i32]);
        match &self.matrix {
            Matrix::Dense(matrix) => matrix.take_axis(&tokens, 0),
            Matrix::Packed(packed) => packed.rows(&tokens),
        }
    }
}

impl Backend for Mlx {
    /// Its kernels for one token sum in another order than those for several.
    const IS_EXACT_IN_BATCHES: bool = false;
    type Tensor = Tensor;
    type Linear = Linear;
    type Vector = Array;
    type Rope = Rope;
    type Cache = Cache;
    type Weights = Weights;
    type Experts = Experts;
    type Routing = Routing;

    fn load(
        &self,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> std::result::Result<Weights, CheckpointError> {
        Weights::read(checkpoint, self.float32, progress)
    }

    fn linear(
        &self,
        weights: &mut Weights,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Linear, CheckpointError> {
        weights.take_linear(name, rows, columns)
    }

    fn vector(&self, weights: &mut Weights, name: &str, len: usize) -> std::result::Result<Array, CheckpointError> {
        weights.take_vector(name, len)
    }

    fn has(&self, weights: &Weights, name: &str) -> bool {
        weights.has(name)
    }

    fn finish(&self, weights: Weights) -> std::result::Result<(), CheckpointError> {
        weights.finish()?;
        if self.gpu {
            // macOS 15 then leaves the weights where the GPU finds them. Earlier systems refuse, and are only slower.
            let _ = memory::active_memory().and_then(memory::set_wired_limit);
        }
        Ok(())
    }

    fn rope_table(&self, wavelengths: &[f64]) -> Rope {
        let values: Vec<f32> = wavelengths.iter().map(|wavelength| *wavelength as f32).collect();
        let wavelengths = Array::from_slice(&values, &[values.len() as i32]);
        Rope { wavelengths, head_dim: values.len() * 2 }
    }

    fn cache(&self, attention: &Attention) -> Cache {
        Cache::new(attention)
    }

    fn truncate(&self, cache: &mut Cache, len: usize) {
        cache.truncate(len);
    }

    fn snapshot(&self, cache: &Cache) -> std::result::Result<LayerState, BackendError> {
        self.check()?;
        cache.snapshot().map_err(|error| failed(error.what()))
    }

    fn restore(&self, cache: &mut Cache, state: &LayerState) -> bool {
        let is_restored = cache.restore(state).unwrap_or(false);
        if !is_restored {
            cache.truncate(0);
        }
        is_restored
    }

    fn shortest(&self, cache: &Cache) -> usize {
        cache.shortest()
    }

    fn embed(&self, table: &Linear, tokens: &[u32]) -> Tensor {
        self.tensor(table.rows_of(tokens), tokens.len(), table.columns)
    }

    fn linears<const N: usize>(&self, x: &Tensor, matrices: [&Linear; N]) -> [Tensor; N] {
        let flat = self.keep(Self::flat(x));
        matrices.map(|linear| self.tensor(linear.times(&flat), x.rows, linear.rows))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Array, epsilon: f32) -> Tensor {
        let norm = || {
            let (rows, width) = (x.rows as i32, x.width as i32);
            // A norm of a head's width is one over each head.
            let len = weight.size() as i32;
            let pieces = Self::flat(x)?.reshape(&[rows, width / len.max(1), len])?;
            fast::rms_norm(&pieces, Some(weight), epsilon)?.reshape(&[rows, width])
        };
        self.tensor(norm(), x.rows, x.width)
    }

    fn rope(&self, x: Tensor, rope: &Rope, first: usize) -> Tensor {
        let rotate = || {
            let heads = Self::by_head(&x, rope.head_dim)?;
            fast::rope(&heads, rope.head_dim as i32, false, None, 1.0, first as i32, &rope.wavelengths)
        };
        Tensor { array: self.keep(rotate()), head_dim: Some(rope.head_dim), ..x }
    }

    fn attention(
        &self,
        attention: &Attention,
        sinks: Option<&Array>,
        cache: &mut Cache,
        queries: &Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor {
        let (rows, width) = (queries.rows, attention.heads * attention.head_dim);
        let mut attend = || {
            let [queries, keys, values] = [queries, &keys, &values].map(|x| Self::by_head(x, attention.head_dim));
            cache.attend(attention, &queries?, (&keys?, &values?), sinks, rows)
        };
        let array = self.keep(attend());
        Tensor { array, rows, width, head_dim: Some(attention.head_dim) }
    }

    fn silu_gate(&self, gate: Tensor, up: &Tensor) -> Tensor {
        self.elements(&gate, up, |gate, up| ops::sigmoid(gate)?.multiply(gate)?.multiply(up))
    }

    fn experts(
        &self,
        weights: &mut Weights,
        name: &str,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Experts, CheckpointError> {
        weights.take_experts(name, count, rows, columns)
    }

    fn shift(&self, vector: Array, by: f32) -> Array {
        let shift = || vector.add(scalar(by, &vector)?);
        self.keep(shift())
    }

    fn scale(&self, x: Tensor, factor: f32) -> Tensor {
        let scale = || x.array.multiply(scalar(factor, &x.array)?);
        Tensor { array: self.keep(scale()), ..x }
    }

    fn gelu_gate(&self, gate: Tensor, up: &Tensor) -> Tensor {
        self.elements(&gate, up, |gate, up| {
            let number = |value| scalar(value, gate);
            let cube = gate.power(number(3.0)?)?.multiply(number(0.044_715)?)?;
            let inner = gate.add(cube)?.multiply(number((2.0 / std::f32::consts::PI).sqrt())?)?;
            let gelu = ops::tanh(inner)?.add(number(1.0)?)?.multiply(gate)?.multiply(number(0.5)?)?;
            gelu.multiply(up)
        })
    }

    fn clipped_swiglu(&self, gate: Tensor, up: &Tensor, alpha: f32, limit: f32) -> Tensor {
        self.elements(&gate, up, |gate, up| {
            let number = |value| scalar(value, gate);
            let gate = ops::minimum(gate, number(limit)?)?;
            let up = ops::maximum(ops::minimum(up, number(limit)?)?, number(-limit)?)?;
            let swish = ops::sigmoid(gate.multiply(number(alpha)?)?)?.multiply(&gate)?;
            swish.multiply(up.add(number(1.0)?)?)
        })
    }

    fn route(&self, scores: Tensor, chosen: usize) -> Routing {
        let routing = Self::flat(&scores).and_then(|flat| Routing::new(&flat, scores.rows, scores.width, chosen));
        routing.unwrap_or_else(|error| {
            self.keep(Err(error));
            Routing::nowhere(scores.rows, chosen)
        })
    }

    fn expert_linears<const N: usize>(&self, x: &Tensor, experts: [&Experts; N], routing: &Routing) -> [Tensor; N] {
        let flat = self.keep(Self::flat(x));
        experts.map(|stack| self.tensor(routing.times(&flat, x.rows, x.width, stack), routing.pairs(), stack.rows))
    }

    fn combine(&self, x: Tensor, routing: &Routing) -> Tensor {
        let sum = || routing.combine(&Self::flat(&x)?, x.width);
        self.tensor(sum(), routing.tokens, x.width)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Tensor {
        self.elements(&x, y, |x, y| x.add(y))
    }

    fn last_row(&self, x: &Tensor) -> Tensor {
        let (rows, width) = (x.rows as i32, x.width as i32);
        let last = || raw::slice(&Self::flat(x)?, &[rows - 1, 0], &[rows, width]);
        self.tensor(last(), 1, x.width)
    }

    fn compute(&self, x: &Tensor) -> std::result::Result<(), BackendError> {
        self.check()?;
        let compute = || {
            x.array.eval()?;
            // The intermediate values of a block of a prompt are large, and the next one's may have other sizes.
            memory::clear_cache()
        };
        compute().map_err(|error: Exception| failed(error.what()))
    }

    fn to_floats(&self, x: Tensor) -> std::result::Result<Vec<f32>, BackendError> {
        self.check()?;
        let floats = || Self::flat(&x)?.as_dtype(Dtype::Float32)?.contiguous();
        let floats = floats().map_err(|error| failed(error.what()))?;
        floats.to_vec_exact().map_err(|error| failed(&error.to_string()))
    }
}

#[cfg(test)]
mod tests;
