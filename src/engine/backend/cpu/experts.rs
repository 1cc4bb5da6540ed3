//! Mixtures of experts: which experts each token goes to, and only those computed, each over all of its tokens at once.

use std::ops::Range;

use super::matrix::Matrix;
use super::{Cpu, Shared, Tensor};

/// The matrices of a layer's experts, one above the other, with their biases `[experts, rows]` where they have them.
#[derive(Debug)]
pub struct Experts {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vec<f32>>,
    /// How many rows one expert has.
    pub(super) rows: usize,
}

/// Which experts each token goes to, and how much each counts.
///
/// What the experts make has a row for each pair of token and expert, sorted by expert.
#[derive(Debug)]
pub struct Routing {
    tokens: usize,
    chosen: usize,
    /// The token and the weight of each pair.
    pairs: Vec<(usize, f32)>,
    /// Each expert that has tokens, with its pairs.
    groups: Vec<(usize, Range<usize>)>,
}

/// One block of rows for the tokens of one expert.
struct Item {
    expert: usize,
    pairs: Range<usize>,
    /// The block within the expert.
    block: usize,
}

impl Routing {
    /// Chooses by the scores `[tokens, experts]`; the weights are the softmax of those chosen alone.
    pub(super) fn new(scores: &Tensor, chosen: usize) -> Self {
        let mut all: Vec<(usize, usize, f32)> = Vec::with_capacity(scores.rows * chosen);
        for token in 0..scores.rows {
            let row = scores.row(token);
            let mut best: Vec<usize> = (0..row.len()).collect();
            // Of equal scores the first expert's counts.
            best.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            best.truncate(chosen);
            let largest = row[best[0]];
            let total: f32 = best.iter().map(|expert| (row[*expert] - largest).exp()).sum();
            all.extend(best.into_iter().map(|expert| (expert, token, (row[expert] - largest).exp() / total)));
        }
        all.sort_by_key(|(expert, token, _)| (*expert, *token));
        let mut groups: Vec<(usize, Range<usize>)> = Vec::new();
        for (idx, (expert, ..)) in all.iter().enumerate() {
            match groups.last_mut() {
                Some((last, pairs)) if last == expert => pairs.end = idx + 1,
                _ => groups.push((*expert, idx..idx + 1)),
            }
        }
        let pairs = all.into_iter().map(|(_, token, weight)| (token, weight)).collect();
        Self { tokens: scores.rows, chosen, pairs, groups }
    }

    /// The row of `x` of each pair, where `x` has one a token.
    fn gather(&self, x: &Tensor) -> Tensor {
        let mut gathered = Tensor::zeros(self.pairs.len(), x.width);
        for ((token, _), row) in self.pairs.iter().zip(gathered.values.chunks_exact_mut(x.width)) {
            row.copy_from_slice(x.row(*token));
        }
        gathered
    }

    /// The weighted sum of each token's pairs: `[tokens, width]`.
    pub(super) fn combine(&self, x: &Tensor) -> Tensor {
        let mut sum = Tensor::zeros(self.tokens, x.width);
        for ((token, weight), row) in self.pairs.iter().zip(x.values.chunks_exact(x.width)) {
            let to = &mut sum.values[token * x.width..(token + 1) * x.width];
            to.iter_mut().zip(row).for_each(|(to, value)| *to += weight * value);
        }
        sum
    }
}

impl Cpu {
    /// See [`crate::engine::backend::Backend::expert_linears`].
    pub(super) fn mixture<const N: usize>(&self, x: &Tensor, stacks: [&Experts; N], routing: &Routing) -> [Tensor; N] {
        // Two experts a token at least, so a row a token is not a row a pair.
        debug_assert!(routing.chosen >= 2);
        let gathered = (x.rows == routing.tokens).then(|| routing.gather(x));
        let x = gathered.as_ref().unwrap_or(x);
        let quantised = self.quantised(x, stacks.map(|stack| &stack.matrix));
        stacks.map(|stack| {
            let quantised = Self::fitting(&quantised, self.activations, &stack.matrix);
            let mut out = Tensor::zeros(x.rows, stack.rows);
            let shared = Shared(out.values.as_mut_ptr());
            let blocks = stack.rows / stack.matrix.lanes;
            let items: Vec<Item> = routing
                .groups
                .iter()
                .flat_map(|(expert, pairs)| {
                    (0..blocks).map(|block| Item { expert: *expert, pairs: pairs.clone(), block })
                })
                .collect();
            let chunk = items.len().div_ceil(self.threads() * 8);
            let kernels = self.kernels;
            self.run(items.len(), chunk, &|range| {
                for item in &items[range] {
                    let block = item.expert * blocks + item.block;
                    let task =
                        Self::task(x, quantised, &stack.matrix, block..block + 1, item.pairs.clone(), stack.rows);
                    let to = item.pairs.start * stack.rows + item.block * stack.matrix.lanes;
                    // SAFETY: a pair belongs to one expert, and these rows of it to this item; a stack has whole blocks.
                    unsafe { Self::multiply(&kernels, &task, stack.matrix.form, shared.at(to)) };
                }
            });
            if let Some(bias) = &stack.bias {
                for (expert, pairs) in &routing.groups {
                    let bias = &bias[expert * stack.rows..(expert + 1) * stack.rows];
                    for row in out.values[pairs.start * stack.rows..pairs.end * stack.rows].chunks_exact_mut(bias.len())
                    {
                        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                    }
                }
            }
            out
        })
    }
}
