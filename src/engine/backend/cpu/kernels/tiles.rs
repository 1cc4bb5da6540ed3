//! Softmax attention of several tokens at once, for prompts: keys lie in columns, so that a vector holds the scores of as
//! many positions and no sum goes across lanes, and each load of keys and of values serves several tokens.
//!
//! A token's result doesn't depend on the tile that it is computed in.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use super::elements::exp;
use super::{Parts, Simd};

/// How many tokens share the loads of keys.
pub(in super::super) const TILE: usize = 8;

/// Neighbouring tokens of one head.
///
/// The keys are `[blocks][width][lanes]` from position 0 of the cache on, the rest of the last block zero; the values rows
/// of the head's width, `stride` apart; the scores `[TILE][positions]` with whole vectors of positions; the output
/// `[tokens][width]`.
#[derive(Clone, Copy)]
pub(in super::super) struct TileTask<'a> {
    /// The first token's query; those of the others are `query_stride` apart.
    pub(in super::super) queries: &'a [f32],
    pub(in super::super) query_stride: usize,
    pub(in super::super) width: usize,
    pub(in super::super) tokens: usize,
    /// The positions that the first token sees end here; each token sees one more than the one before.
    pub(in super::super) end: usize,
    pub(in super::super) window: Option<usize>,
    pub(in super::super) stride: usize,
    pub(in super::super) scale: f32,
    pub(in super::super) sink: Option<f32>,
}

impl TileTask<'_> {
    /// How many positions the scores of a token have room for.
    pub(in super::super) fn room(&self, lanes: usize) -> usize {
        (self.end + self.tokens).div_ceil(lanes) * lanes
    }

    fn end_of(&self, token: usize) -> usize {
        self.end + token
    }

    fn start_of(&self, token: usize) -> usize {
        self.window.map_or(0, |window| self.end_of(token).saturating_sub(window))
    }

    /// Asserts that everything is as long as the kernels take it to be.
    pub(super) fn check(&self, lanes: usize, keys: usize, values: usize, scores: usize, out: usize) {
        assert!(self.tokens >= 1 && self.tokens <= TILE && self.end >= 1 && self.window != Some(0));
        let last = self.tokens - 1;
        assert!(self.queries.len() >= last * self.query_stride + self.width);
        let positions = self.end_of(last);
        assert!(keys >= positions.div_ceil(lanes) * lanes * self.width);
        assert!(values >= (positions - 1) * self.stride + self.width);
        assert!(scores >= TILE * self.room(lanes) && out >= self.tokens * self.width);
    }
}

/// The scores of `T` tokens from `token` on with all positions that one of them sees.
#[inline(always)]
unsafe fn products<S: Simd, const T: usize>(task: &TileTask<'_>, keys: &[f32], token: usize, scores: *mut f32) {
    // SAFETY: `TileTask::check` saw the lengths; the caller has the instruction set.
    unsafe {
        let room = task.room(S::LANES);
        let mut queries = [task.queries.as_ptr(); T];
        for t in 0..T {
            queries[t] = queries[t].add((token + t) * task.query_stride);
        }
        let blocks = task.start_of(token) / S::LANES..task.end_of(token + T - 1).div_ceil(S::LANES);
        for block in blocks {
            let columns = keys.as_ptr().add(block * S::LANES * task.width);
            let mut sums = [S::splat(0.0); T];
            for at in 0..task.width {
                let key = S::load(columns.add(at * S::LANES));
                for t in 0..T {
                    sums[t] = S::fma(key, S::splat(*queries[t].add(at)), sums[t]);
                }
            }
            for t in 0..T {
                let to = scores.add((token + t) * room + block * S::LANES);
                S::store(to, S::mul(sums[t], S::splat(task.scale)));
            }
        }
    }
}

/// Turns the scores of one token into weights, not yet divided by their sum: returns one by the sum.
#[inline(always)]
unsafe fn softmax<S: Simd>(task: &TileTask<'_>, token: usize, scores: *mut f32) -> f32 {
    // SAFETY: as `products`.
    unsafe {
        let (start, end) = (task.start_of(token), task.end_of(token));
        // What the first and the last vector hold of positions that this token doesn't see becomes a weight of zero.
        let from = start / S::LANES * S::LANES;
        let to = end.div_ceil(S::LANES) * S::LANES;
        for at in (from..start).chain(end..to) {
            *scores.add(at) = f32::NEG_INFINITY;
        }
        let mut largest = S::splat(task.sink.unwrap_or(f32::NEG_INFINITY));
        for at in (from..to).step_by(S::LANES) {
            largest = S::max(S::load(scores.add(at)), largest);
        }
        let largest = S::largest(largest);
        let mut total = S::splat(0.0);
        for at in (from..to).step_by(S::LANES) {
            let weight = exp::<S>(S::add(S::load(scores.add(at)), S::splat(-largest)));
            S::store(scores.add(at), weight);
            total = S::add(total, weight);
        }
        // The exponential of minus infinity is the smallest that the polynomial makes, 1e-38, and not zero.
        for at in (from..start).chain(end..to) {
            *scores.add(at) = 0.0;
        }
        1.0 / (S::sum(total) + task.sink.map_or(0.0, |sink| (sink - largest).exp()))
    }
}

/// Adds the values of `positions`, weighted for each of `T` tokens, to `V` vectors a token.
#[inline(always)]
unsafe fn add_values<S: Simd, P: Parts, const T: usize, const V: usize>(
    values: *const P::Element,
    stride: usize,
    weights: [*const f32; T],
    positions: std::ops::Range<usize>,
    sums: &mut [[S::F; V]; T],
) {
    // SAFETY: as `products`.
    unsafe {
        for position in positions {
            let row = values.add(position * stride);
            let mut vectors = [S::splat(0.0); V];
            for v in 0..V {
                vectors[v] = P::load::<S>(row.add(v * S::LANES).cast());
            }
            for t in 0..T {
                let weight = S::splat(*weights[t].add(position));
                for v in 0..V {
                    sums[t][v] = S::fma(weight, vectors[v], sums[t][v]);
                }
            }
        }
    }
}

/// `V` vectors of the output from `column` on, for `T` tokens from `token` on. Each token's values are added in the order
/// of their positions: first those that only some of the tokens see, then those that all do, then the rest.
#[inline(always)]
unsafe fn outputs<S: Simd, P: Parts, const T: usize, const V: usize>(
    task: &TileTask<'_>,
    values: &[P::Element],
    token: usize,
    column: usize,
    scores: *const f32,
    shares: &[f32; TILE],
    out: *mut f32,
) {
    // SAFETY: as `products`.
    unsafe {
        let room = task.room(S::LANES);
        let values = values.as_ptr().add(column);
        let mut weights = [scores; T];
        for t in 0..T {
            weights[t] = scores.add((token + t) * room);
        }
        let shared = task.start_of(token + T - 1)..task.end_of(token).max(task.start_of(token + T - 1));
        let mut sums = [[S::splat(0.0); V]; T];
        for t in 0..T {
            let before = task.start_of(token + t)..shared.start.min(task.end_of(token + t));
            let mut own = [sums[t]];
            add_values::<S, P, 1, V>(values, task.stride, [weights[t]], before, &mut own);
            sums[t] = own[0];
        }
        add_values::<S, P, T, V>(values, task.stride, weights, shared.clone(), &mut sums);
        for t in 0..T {
            let after = shared.end..task.end_of(token + t);
            let mut own = [sums[t]];
            add_values::<S, P, 1, V>(values, task.stride, [weights[t]], after, &mut own);
            let to = out.add((token + t) * task.width + column);
            for v in 0..V {
                S::store(to.add(v * S::LANES), S::mul(own[0][v], S::splat(shares[token + t])));
            }
        }
    }
}

/// The output of `T` tokens from `token` on.
#[inline(always)]
unsafe fn rows<S: Simd, P: Parts, const T: usize>(
    task: &TileTask<'_>,
    values: &[P::Element],
    token: usize,
    scores: *const f32,
    shares: &[f32; TILE],
    out: *mut f32,
) {
    // SAFETY: as `products`.
    unsafe {
        let mut column = 0;
        while column + 4 * S::LANES <= task.width {
            outputs::<S, P, T, 4>(task, values, token, column, scores, shares, out);
            column += 4 * S::LANES;
        }
        while column + S::LANES <= task.width {
            outputs::<S, P, T, 1>(task, values, token, column, scores, shares, out);
            column += S::LANES;
        }
        for column in column..task.width {
            for t in token..token + T {
                let mut sum = 0.0;
                for position in task.start_of(t)..task.end_of(t) {
                    let value = P::to_f32(values[position * task.stride + column]);
                    sum += *scores.add(t * task.room(S::LANES) + position) * value;
                }
                *out.add(t * task.width + column) = sum * shares[t];
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn attend_tile<S: Simd, P: Parts>(
    task: &TileTask<'_>,
    keys: &[f32],
    values: &[P::Element],
    scores: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: as `products`.
    unsafe {
        let (scores, out) = (scores.as_mut_ptr(), out.as_mut_ptr());
        if task.tokens == TILE {
            products::<S, TILE>(task, keys, 0, scores);
        } else {
            for token in 0..task.tokens {
                products::<S, 1>(task, keys, token, scores);
            }
        }
        let mut shares = [0.0; TILE];
        for token in 0..task.tokens {
            shares[token] = softmax::<S>(task, token, scores.add(token * task.room(S::LANES)));
        }
        let mut token = 0;
        // Half the registers hold half the tokens.
        while S::LANES == 16 && token + 4 <= task.tokens {
            rows::<S, P, 4>(task, values, token, scores, &shares, out);
            token += 4;
        }
        while token + 2 <= task.tokens {
            rows::<S, P, 2>(task, values, token, scores, &shares, out);
            token += 2;
        }
        if token < task.tokens {
            rows::<S, P, 1>(task, values, token, scores, &shares, out);
        }
    }
}
