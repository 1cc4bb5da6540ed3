//! Mixtures of experts: which experts each token goes to, and their matrices side by side.

use mlx_rs::error::Result;
use mlx_rs::{Array, ops};

use super::Matrix;
use super::raw;

/// From so many pairs of token and expert on, they are sorted by expert: then each expert's weights are read once.
const SORTED_FROM: usize = 64;

/// The matrices of all experts, `[experts, rows, columns]`, with their biases where they have them.
pub struct Experts {
    pub(super) matrix: Matrix,
    /// `[experts, rows]`.
    pub(super) bias: Option<Array>,
    pub(super) rows: usize,
}

/// Which experts each token goes to, and how much each counts. What the experts make has a row for each pair of token and
/// expert, in an order that only this type knows.
pub struct Routing {
    pub(super) tokens: usize,
    pub(super) chosen: usize,
    /// The expert of each pair.
    experts: Array,
    /// The token of each pair.
    tokens_of: Array,
    /// Where each pair stands, by token, if they are sorted by expert.
    places: Option<Array>,
    /// `[tokens, chosen]`.
    weights: Array,
}

impl Routing {
    /// Chooses by the scores `[tokens, experts]`; the weights are the softmax of those chosen alone.
    pub(super) fn new(scores: &Array, tokens: usize, experts: usize, chosen: usize) -> Result<Self> {
        let (tokens_dim, chosen_dim) = (tokens as i32, chosen as i32);
        let order = ops::argpartition_axis(scores, -chosen_dim, -1)?;
        let best = raw::slice(&order, &[0, (experts - chosen) as i32], &[tokens_dim, experts as i32])?;
        let weights = ops::softmax_axis(scores.take_along_axis(&best, -1)?, -1, true)?;
        let pairs = tokens * chosen;
        let mut experts = best.reshape(&[pairs as i32])?;
        let by_token: Vec<u32> = (0..pairs).map(|pair| (pair / chosen) as u32).collect();
        let mut tokens_of = Array::from_slice(&by_token, &[pairs as i32]);
        let mut places = None;
        if pairs >= SORTED_FROM {
            let order = ops::argsort_axis(&experts, 0)?;
            places = Some(ops::argsort_axis(&order, 0)?);
            experts = experts.take_axis(&order, 0)?;
            tokens_of = tokens_of.take_axis(&order, 0)?;
        }
        Ok(Self { tokens, chosen, experts, tokens_of, places, weights })
    }

    /// What stands for a routing that MLX refused.
    pub(super) fn nowhere(tokens: usize, chosen: usize) -> Self {
        let nothing = Array::from_f32(0.0);
        Self { tokens, chosen, experts: nothing.clone(), tokens_of: nothing.clone(), places: None, weights: nothing }
    }

    /// How many pairs of token and expert there are.
    pub(super) fn pairs(&self) -> usize {
        self.tokens * self.chosen
    }

    /// Each pair's row of `x`, which has a row for each token or for each pair, times its expert's matrix.
    pub(super) fn times(&self, x: &Array, rows: usize, width: usize, stack: &Experts) -> Result<Array> {
        let is_by_token = rows == self.tokens;
        let sorted = self.places.is_some();
        let x = if is_by_token && sorted { x.take_axis(&self.tokens_of, 0)? } else { x.clone() };
        let x = x.reshape(&[-1, 1, width as i32])?;
        let tokens_of = (is_by_token && !sorted).then_some(&self.tokens_of);
        let product = match &stack.matrix {
            Matrix::Dense(matrix) => {
                ops::gather_mm(&x, matrix.swap_axes(-1, -2)?, tokens_of, &self.experts, sorted && tokens_of.is_none())?
            }
            Matrix::Packed(packed) => raw::gather_qmm(&x, packed, tokens_of, &self.experts, sorted)?,
        };
        let product = product.reshape(&[self.pairs() as i32, stack.rows as i32])?;
        stack.bias.as_ref().map_or(Ok(product.clone()), |bias| product.add(bias.take_axis(&self.experts, 0)?))
    }

    /// The weighted sum of each token's pairs: `[tokens, width]`.
    pub(super) fn combine(&self, x: &Array, width: usize) -> Result<Array> {
        let x = self.places.as_ref().map_or(Ok(x.clone()), |places| x.take_axis(places, 0))?;
        let (tokens, chosen) = (self.tokens as i32, self.chosen as i32);
        let weighted =
            x.reshape(&[tokens, chosen, width as i32])?.multiply(self.weights.reshape(&[tokens, chosen, 1])?)?;
        weighted.sum_axis(1, false)
    }
}
