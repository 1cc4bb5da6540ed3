//! The backend for hosts without Metal: SIMD kernels on all cores, weights repacked while they are read.

#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use std::cell::RefCell;
use std::ops::{ControlFlow, Range};

use self::adapter::LowRank;
use self::kernels::Kernels;
use self::linear::Order;
use self::matrix::Matrix;
use self::pool::Pool;
use super::{Attention, Backend, BackendError};
use crate::engine::checkpoint::{Checkpoint, CheckpointError, LoadProgress};
use crate::engine::prefix::LayerState;

mod simd;
mod kernels;
mod adapter;
mod attention;
mod memory;
mod matrix;
mod linear;
mod pool;
pub(crate) mod cache;
mod experts;
mod weights;

pub use self::cache::Cache;
pub use self::experts::{Experts, Routing};
pub use self::weights::Weights;

/// In what precision quantised matrices meet activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// 16-bit integers with a scale for each group: as good as float32 in every answer we compared, and four times as fast.
    #[default]
    Int16,
    /// float32: the oracle.
    Float32,
}

/// An instruction set that this processor has and that kernels are made for; the fastest unless chosen otherwise, which is
/// for tests and measurements.
#[derive(Clone, Copy)]
pub struct InstructionSet(Kernels);

impl InstructionSet {
    /// All of them, the fastest first; the last is the processor's scalar instructions.
    pub fn all() -> Vec<Self> {
        Kernels::all().into_iter().map(Self).collect()
    }

    /// What it is called.
    pub const fn name(&self) -> &'static str {
        self.0.name
    }
}

impl Default for InstructionSet {
    fn default() -> Self {
        Self(Kernels::all()[0])
    }
}

impl std::fmt::Debug for InstructionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Our own SIMD engine.
pub struct Cpu {
    kernels: Kernels,
    pool: RefCell<Pool>,
    activations: Activations,
    order: RefCell<Order>,
}

/// Activations `[rows, width]`.
#[derive(Clone, Debug)]
pub struct Tensor {
    rows: usize,
    width: usize,
    values: Vec<f32>,
}

/// A matrix with its bias where it has one, and what an adapter adds.
#[derive(Debug)]
pub struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
    adapter: Option<LowRank>,
}

/// Cosine and sine for each position and pair of elements, made as far as positions were used.
#[derive(Debug)]
pub struct Rope {
    wavelengths: Vec<f64>,
    turns: RefCell<Vec<(f32, f32)>>,
}

/// A pointer that threads write through, each to its own elements.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: whoever writes through it says why no two threads touch the same element.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Where the element `idx` lies, within the allocation.
    fn at(&self, idx: usize) -> *mut T {
        self.0.wrapping_add(idx)
    }

    /// The elements `range`.
    ///
    /// # Safety
    /// They lie within the allocation, and nobody else uses them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "each thread takes its own elements")]
    unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

impl Cpu {
    /// Starts the threads.
    pub fn new(threads: usize, activations: Activations, instruction_set: InstructionSet) -> Self {
        let kernels = instruction_set.0;
        Self { kernels, pool: RefCell::new(Pool::new(threads)), activations, order: RefCell::default() }
    }

    /// The instruction set in use.
    pub fn instruction_set(&self) -> &'static str {
        self.kernels.name
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.pool.borrow().threads()
    }

    fn run(&self, items: usize, chunk: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        self.pool.borrow_mut().run(items, chunk, work);
    }

    /// Calls `work` with some rows at a time, the first of them by number: on all threads where there is enough to do.
    fn rows(&self, x: &mut Tensor, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        // Below this much, waking the other threads costs more than it saves.
        let chunk = if x.values.len() > 16_384 { x.rows.div_ceil(self.threads() * 4) } else { x.rows };
        let (values, width) = (Shared(x.values.as_mut_ptr()), x.width);
        self.run(x.rows, chunk, &|rows| {
            // SAFETY: a row belongs to one call.
            work(rows.start, unsafe { values.slice(rows.start * width..rows.end * width) });
        });
    }
}

impl Tensor {
    fn zeros(rows: usize, width: usize) -> Self {
        Self { rows, width, values: vec![0.0; rows * width] }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

impl Rope {
    /// Makes the turns of all positions below `positions`.
    fn extend(&self, positions: usize) {
        let mut turns = self.turns.borrow_mut();
        let made = turns.len() / self.wavelengths.len().max(1);
        for position in made..positions {
            turns.extend(self.wavelengths.iter().map(|wavelength| {
                let (sin, cos) = (position as f64 / wavelength).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
    }
}

impl Backend for Cpu {
    const IS_EXACT_IN_BATCHES: bool = true;
    type Tensor = Tensor;
    type Linear = Linear;
    type Vector = Vec<f32>;
    type Rope = Rope;
    type Cache = Cache;
    type Weights = Weights;
    type Experts = Experts;
    type Routing = Routing;

    fn load(
        &self,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Weights, CheckpointError> {
        Weights::read(checkpoint, self.kernels.lanes, progress)
    }

    fn linear(
        &self,
        weights: &mut Weights,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Linear, CheckpointError> {
        let matrix = weights.take_matrix(name, rows, columns)?;
        Ok(Linear { matrix, bias: weights.take_bias(name, rows)?, adapter: weights.take_adapter(name) })
    }

    fn vector(&self, weights: &mut Weights, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        weights.take_vector(name, len)
    }

    fn experts(
        &self,
        weights: &mut Weights,
        name: &str,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Experts, CheckpointError> {
        let matrix = weights.take_matrix(name, count * rows, columns)?;
        Ok(Experts { matrix, bias: weights.take_bias(name, count * rows)?, rows })
    }

    fn has(&self, weights: &Weights, name: &str) -> bool {
        weights.has(name)
    }

    fn finish(&self, weights: Weights) -> Result<(), CheckpointError> {
        weights.finish()
    }

    fn rope_table(&self, wavelengths: &[f64]) -> Rope {
        Rope { wavelengths: wavelengths.to_vec(), turns: RefCell::new(Vec::new()) }
    }

    fn cache(&self, attention: &Attention) -> Cache {
        let width = attention.kv_heads * attention.head_dim;
        Cache::new(width, attention.window, self.activations == Activations::Int16)
    }

    fn truncate(&self, cache: &mut Cache, len: usize) {
        cache.truncate(len);
    }

    fn snapshot(&self, cache: &Cache) -> Result<LayerState, BackendError> {
        Ok(cache.snapshot())
    }

    fn restore(&self, cache: &mut Cache, state: &LayerState) -> bool {
        cache.restore(state)
    }

    fn shortest(&self, cache: &Cache) -> usize {
        cache.shortest()
    }

    fn embed(&self, table: &Linear, tokens: &[u32]) -> Tensor {
        let mut out = Tensor::zeros(tokens.len(), table.matrix.columns);
        for (row, token) in out.values.chunks_exact_mut(table.matrix.columns).zip(tokens) {
            table.matrix.dequantise_row(*token as usize, row);
        }
        out
    }

    fn linears<const N: usize>(&self, x: &Tensor, matrices: [&Linear; N]) -> [Tensor; N] {
        self.products(x, matrices)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, epsilon: f32) -> Tensor {
        let mut out = Tensor::zeros(x.rows, x.width);
        let kernels = self.kernels;
        self.rows(&mut out, &|first, rows| {
            // A norm of a head's width is one over each head.
            let given = x.values[first * x.width..][..rows.len()].chunks_exact(weight.len());
            for (row, out) in given.zip(rows.chunks_exact_mut(weight.len())) {
                kernels.rms_norm(row, weight, epsilon, out);
            }
        });
        out
    }

    fn rope(&self, mut x: Tensor, rope: &Rope, first: usize) -> Tensor {
        let half = rope.wavelengths.len();
        rope.extend(first + x.rows);
        let (turns, width) = (rope.turns.borrow(), x.width);
        let turns = &turns[first * half..];
        self.rows(&mut x, &|first, rows| {
            for (row, turns) in rows.chunks_exact_mut(width).zip(turns[first * half..].chunks_exact(half)) {
                for head in row.chunks_exact_mut(half * 2) {
                    let (low, high) = head.split_at_mut(half);
                    for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                        (*low, *high) = (*low * cos - *high * sin, *low * sin + *high * cos);
                    }
                }
            }
        });
        x
    }

    fn attention(
        &self,
        attention: &Attention,
        sinks: Option<&Vec<f32>>,
        cache: &mut Cache,
        queries: &Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor {
        self.attend(attention, sinks, cache, queries, &keys, &values)
    }

    fn silu_gate(&self, mut gate: Tensor, up: &Tensor) -> Tensor {
        let kernels = self.kernels;
        self.rows(&mut gate, &|first, gate| {
            kernels.silu_gate(gate, &up.values[first * up.width..][..gate.len()]);
        });
        gate
    }

    fn gelu_gate(&self, mut gate: Tensor, up: &Tensor) -> Tensor {
        let kernels = self.kernels;
        self.rows(&mut gate, &|first, gate| {
            kernels.gelu_gate(gate, &up.values[first * up.width..][..gate.len()]);
        });
        gate
    }

    fn clipped_swiglu(&self, mut gate: Tensor, up: &Tensor, alpha: f32, limit: f32) -> Tensor {
        let kernels = self.kernels;
        self.rows(&mut gate, &|first, gate| {
            kernels.clipped_swiglu(gate, &up.values[first * up.width..][..gate.len()], alpha, limit);
        });
        gate
    }

    fn shift(&self, mut vector: Vec<f32>, by: f32) -> Vec<f32> {
        vector.iter_mut().for_each(|value| *value += by);
        vector
    }

    fn scale(&self, mut x: Tensor, factor: f32) -> Tensor {
        x.values.iter_mut().for_each(|value| *value *= factor);
        x
    }

    fn route(&self, scores: Tensor, chosen: usize) -> Routing {
        Routing::new(&scores, chosen)
    }

    fn expert_linears<const N: usize>(&self, x: &Tensor, experts: [&Experts; N], routing: &Routing) -> [Tensor; N] {
        self.mixture(x, experts, routing)
    }

    fn combine(&self, x: Tensor, routing: &Routing) -> Tensor {
        routing.combine(&x)
    }

    fn add(&self, mut x: Tensor, y: &Tensor) -> Tensor {
        self.rows(&mut x, &|first, rows| {
            rows.iter_mut().zip(&y.values[first * y.width..]).for_each(|(x, y)| *x += y);
        });
        x
    }

    fn last_row(&self, x: &Tensor) -> Tensor {
        let last = x.rows.saturating_sub(1);
        Tensor { rows: 1, width: x.width, values: x.row(last).to_vec() }
    }

    fn compute(&self, _x: &Tensor) -> Result<(), BackendError> {
        Ok(())
    }

    fn to_floats(&self, x: Tensor) -> Result<Vec<f32>, BackendError> {
        Ok(x.values)
    }
}

#[cfg(test)]
mod tests;
