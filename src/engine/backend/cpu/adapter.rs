//! What a LoRA adapter adds to a matrix: two narrow products in float32, beside the quantised one.

use super::matrix::{Form, Matrix};
use super::memory::Arena;
use super::{Cpu, Shared, Tensor};
use crate::engine::checkpoint::{Adapter, AdapterLayout, Dtype};

/// Below so many multiplications, waking the other threads costs more than it saves.
const WORTHWHILE: usize = 32_768;

/// The two matrices of an adapter for one matrix `[rows, columns]`.
#[derive(Debug)]
pub(super) struct LowRank {
    /// A: `[rank, columns]`.
    down: Matrix,
    /// B: `[rows, rank]`, times the adapter's factor.
    up: Matrix,
}

impl LowRank {
    /// From A and B as they lie in the adapter's file.
    pub(super) fn new(adapter: &Adapter, a: &[f32], b: &[f32], lanes: usize, arena: &mut Arena) -> Self {
        let (rank, columns, rows) = (adapter.rank, a.len() / adapter.rank, b.len() / adapter.rank);
        let scaled: Vec<f32> = b.iter().map(|value| value * adapter.scale).collect();
        match adapter.layout {
            AdapterLayout::Peft => {
                Self { down: dense(rank, columns, a, lanes, arena), up: dense(rows, rank, &scaled, lanes, arena) }
            }
            AdapterLayout::Mlx => Self {
                down: dense(rank, columns, &transposed(a, rank), lanes, arena),
                up: dense(rows, rank, &transposed(&scaled, rows), lanes, arena),
            },
        }
    }
}

/// The values of a matrix of `columns`, column by column.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns)).copied().collect()
}

fn dense(rows: usize, columns: usize, values: &[f32], lanes: usize, arena: &mut Arena) -> Matrix {
    let mut matrix = Matrix::zeros(rows, columns, Form::Dense(Dtype::F32), lanes, arena);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    matrix.set_floats(0, &bytes);
    matrix
}

impl Cpu {
    /// Adds to `out` what the adapter makes of `x`.
    pub(super) fn adapt(&self, x: &Tensor, adapter: &LowRank, out: &mut Tensor) {
        let added = self.product(&self.product(x, &adapter.down), &adapter.up);
        out.values.iter_mut().zip(&added.values).for_each(|(out, added)| *out += added);
    }

    fn product(&self, x: &Tensor, matrix: &Matrix) -> Tensor {
        let mut out = Tensor::zeros(x.rows, matrix.rows);
        let shared = Shared(out.values.as_mut_ptr());
        let (blocks, kernels) = (matrix.block_count(), self.kernels);
        let worthwhile = x.rows * matrix.rows * matrix.columns > WORTHWHILE;
        let chunk = if worthwhile { blocks.div_ceil(self.threads() * 8) } else { blocks };
        self.run(blocks, chunk, &|range| Self::blocks(&kernels, x, None, matrix, range, shared));
        out
    }
}
