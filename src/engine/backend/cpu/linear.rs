//! Activations times matrices: quantised once for all matrices that they meet, in blocks of rows on all threads.

#![expect(unsafe_code, reason = "threads share the results")]

use std::collections::HashMap;
use std::ops::Range;

use super::kernels::{BlockTask, Kernels};
use super::matrix::{Form, MXFP4_GROUP, Matrix};
use super::pool::Ahead;
use super::{Activations, Cpu, Linear, Shared, Tensor};

/// Activations quantised for integer kernels.
pub(super) struct Quantised {
    group_size: usize,
    codes: Vec<i16>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// In what order a token passes the matrices.
#[derive(Default)]
pub(super) struct Order {
    /// Where the first matrix of the last job lies.
    previous: usize,
    /// What followed the job whose first matrix lies there.
    followed: HashMap<usize, Ahead>,
}

impl Cpu {
    /// See [`crate::engine::backend::Backend::linears`].
    pub(super) fn products<const N: usize>(&self, x: &Tensor, matrices: [&Linear; N]) -> [Tensor; N] {
        let quantised = self.quantised(x, matrices.map(|linear| &linear.matrix));
        // Not zeros: to write them was 4 % of a prompt.
        let mut out = matrices.map(|linear| Box::<[f32]>::new_uninit_slice(x.rows * linear.matrix.rows));
        let shared: [Shared<f32>; N] = std::array::from_fn(|idx| Shared(out[idx].as_mut_ptr().cast()));
        let blocks: usize = matrices.iter().map(|linear| linear.matrix.block_count()).sum();
        // Some pieces more than threads, so that a thread that is held up delays the others little.
        let chunk = blocks.div_ceil(self.threads() * 8);
        let quantised = &quantised;
        let (kernels, activations) = (self.kernels, self.activations);
        if x.rows == 1 {
            self.look_ahead(matrices.map(|linear| &linear.matrix));
        }
        self.run(blocks, chunk, &|range| {
            let mut first = 0;
            for (linear, out) in matrices.iter().zip(&shared) {
                let matrix = &linear.matrix;
                let own = range.start.max(first)..range.end.min(first + matrix.block_count());
                if !own.is_empty() {
                    let codes = Self::fitting(quantised, activations, matrix);
                    Self::blocks(&kernels, x, codes, matrix, own.start - first..own.end - first, *out);
                }
                first += matrix.block_count();
            }
        });
        let mut out = out.map(|values| {
            let width = values.len() / x.rows.max(1);
            // SAFETY: each row of each block was computed for each token, or the pool has panicked.
            Tensor { rows: x.rows, width, values: unsafe { values.assume_init() }.into_vec() }
        });
        for (out, linear) in out.iter_mut().zip(matrices) {
            if let Some(adapter) = &linear.adapter {
                self.adapt(x, adapter, out);
            }
            let Some(bias) = &linear.bias else { continue };
            for row in out.values.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        out
    }

    /// Lets workers that wait after this job ask for the weights of the next, which is the one that followed last time.
    fn look_ahead<const N: usize>(&self, matrices: [&Matrix; N]) {
        let mut parts = Ahead::default();
        for (part, matrix) in parts.0.iter_mut().zip(matrices) {
            *part = matrix.place();
        }
        let mut order = self.order.borrow_mut();
        let key = parts.0[0].0;
        let (previous, followed) = (order.previous, &mut order.followed);
        followed.insert(previous, parts);
        self.pool.borrow().look_ahead(followed.get(&key).copied().unwrap_or_default());
        order.previous = key;
    }

    /// `x` in each group size that one of the matrices asks for.
    pub(super) fn quantised<const N: usize>(&self, x: &Tensor, matrices: [&Matrix; N]) -> Vec<Quantised> {
        let mut quantised: Vec<Quantised> = Vec::new();
        for group_size in matrices.into_iter().filter_map(|matrix| Self::integer_group(self.activations, matrix)) {
            if quantised.iter().all(|known| known.group_size != group_size) {
                quantised.push(self.quantise(x, group_size));
            }
        }
        quantised
    }

    fn quantise(&self, x: &Tensor, group_size: usize) -> Quantised {
        let groups = x.width / group_size;
        let mut quantised = Quantised {
            group_size,
            codes: vec![0; x.rows * x.width],
            scales: vec![0.0; x.rows * groups],
            sums: vec![0.0; x.rows * groups],
        };
        let codes = Shared(quantised.codes.as_mut_ptr());
        let scales = Shared(quantised.scales.as_mut_ptr());
        let sums = Shared(quantised.sums.as_mut_ptr());
        let kernels = self.kernels;
        self.run(x.rows, 4, &|rows| {
            // SAFETY: a row belongs to one call.
            let (codes, scales, sums) = unsafe {
                let groups = rows.start * groups..rows.end * groups;
                (
                    codes.slice(rows.start * x.width..rows.end * x.width),
                    scales.slice(groups.clone()),
                    sums.slice(groups),
                )
            };
            let values = x.values[rows.start * x.width..rows.end * x.width].chunks_exact(group_size);
            for (idx, (group, codes)) in values.zip(codes.chunks_exact_mut(group_size)).enumerate() {
                (scales[idx], sums[idx]) = kernels.quantise(group, codes);
            }
        });
        quantised
    }

    /// `x` times the blocks `blocks` of one matrix, written to `out` `[tokens, rows]`.
    pub(super) fn blocks(
        kernels: &Kernels,
        x: &Tensor,
        quantised: Option<&Quantised>,
        matrix: &Matrix,
        blocks: Range<usize>,
        out: Shared<f32>,
    ) {
        let whole = blocks.start..blocks.end.min(matrix.rows / matrix.lanes);
        if !whole.is_empty() {
            let task = Self::task(x, quantised, matrix, whole.clone(), 0..x.rows, matrix.rows);
            // SAFETY: rows of these blocks belong to this call.
            unsafe { Self::multiply(kernels, &task, matrix.form, out.at(whole.start * matrix.lanes)) };
        }
        // The last block may have fewer rows than lanes.
        for block in whole.end.max(blocks.start)..blocks.end {
            let mut results = vec![0.0; x.rows * matrix.lanes];
            let task = Self::task(x, quantised, matrix, block..block + 1, 0..x.rows, matrix.lanes);
            // SAFETY: there is room for a row of lanes a token.
            unsafe { Self::multiply(kernels, &task, matrix.form, results.as_mut_ptr()) };
            for (token, values) in results.chunks_exact(matrix.lanes).enumerate() {
                let rows = token * matrix.rows + block * matrix.lanes..(token + 1) * matrix.rows;
                let len = rows.len();
                // SAFETY: as above; no slice is made of what may never have been written.
                unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), out.at(rows.start), len) };
            }
        }
    }

    /// What the kernels need to multiply the tokens `tokens` of `x` by some blocks of a matrix.
    pub(super) fn task<'a>(
        x: &'a Tensor,
        quantised: Option<&'a Quantised>,
        matrix: &'a Matrix,
        blocks: Range<usize>,
        tokens: Range<usize>,
        stride: usize,
    ) -> BlockTask<'a> {
        let columns = matrix.columns;
        let elements = tokens.start * columns..tokens.end * columns;
        let floats = &x.values[elements.clone()];
        let (group_size, codes, scales, sums) = match quantised {
            Some(q) => {
                let groups = columns / q.group_size;
                let groups = tokens.start * groups..tokens.end * groups;
                (q.group_size, &q.codes[elements], &q.scales[groups.clone()], &q.sums[groups])
            }
            None => {
                let group_size = match matrix.form {
                    Form::Affine { group_size, .. } => group_size,
                    Form::Mxfp4 => MXFP4_GROUP,
                    Form::Dense(_) => 0,
                };
                (group_size, &[][..], &[][..], &[][..])
            }
        };
        BlockTask {
            blocks: matrix.blocks(blocks),
            block_bytes: matrix.block_bytes(),
            columns,
            group_size,
            group_bytes: matrix.group_bytes(),
            codes,
            scales,
            sums,
            floats,
            tokens: tokens.len(),
            stride,
        }
    }

    /// # Safety
    /// As for [`Kernels::integer`].
    pub(super) unsafe fn multiply(kernels: &Kernels, task: &BlockTask<'_>, form: Form, out: *mut f32) {
        // SAFETY: by the caller.
        unsafe {
            match form {
                Form::Affine { bits, parts, .. } if task.codes.is_empty() => kernels.oracle(bits, parts, task, out),
                Form::Affine { bits, parts, .. } => kernels.integer(bits, parts, task, out),
                Form::Mxfp4 if task.codes.is_empty() => kernels.oracle_mxfp4(task, out),
                Form::Mxfp4 => kernels.integer_mxfp4(task, out),
                Form::Dense(dtype) => kernels.dense(dtype, task, out),
            }
        }
    }

    /// Which of them this matrix takes, if any.
    pub(super) fn fitting<'a>(
        quantised: &'a [Quantised],
        activations: Activations,
        matrix: &Matrix,
    ) -> Option<&'a Quantised> {
        let group = Self::integer_group(activations, matrix);
        quantised.iter().find(|known| Some(known.group_size) == group)
    }

    /// The group size for which `x` must be quantised for this matrix.
    fn integer_group(activations: Activations, matrix: &Matrix) -> Option<usize> {
        match (matrix.form, activations) {
            (Form::Affine { group_size, .. }, Activations::Int16) => Some(group_size),
            (Form::Mxfp4, Activations::Int16) => Some(MXFP4_GROUP),
            _ => None,
        }
    }
}
