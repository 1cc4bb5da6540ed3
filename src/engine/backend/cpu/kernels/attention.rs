//! Softmax attention of one query over the keys and values of its head.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use super::elements::exp;
use super::{HeadTask, Parts, Simd};

/// The products of a query with `N` keys at once, so that one sum needn't wait for the other.
#[inline(always)]
unsafe fn products<S: Simd, P: Parts, const N: usize>(query: &[f32], keys: [*const P::Element; N]) -> [f32; N] {
    // SAFETY: each key is valid for the query's length by the caller, who has the instruction set.
    unsafe {
        let whole = query.len() / S::LANES * S::LANES;
        let mut totals = [S::splat(0.0); N];
        for at in (0..whole).step_by(S::LANES) {
            let part = S::load(query.as_ptr().add(at));
            for n in 0..N {
                totals[n] = S::fma(part, P::load::<S>(keys[n].add(at).cast()), totals[n]);
            }
        }
        // Loops and not closures: these would not be compiled for the instruction set.
        let mut sums = [0.0; N];
        for n in 0..N {
            sums[n] = S::sum(totals[n]);
            for at in whole..query.len() {
                sums[n] += query[at] * P::to_f32(*keys[n].add(at));
            }
        }
        sums
    }
}

#[inline(always)]
pub(super) unsafe fn attend<S: Simd, P: Parts>(
    task: &HeadTask<'_>,
    keys: &[P::Element],
    values: &[P::Element],
    scores: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: `Kernels::attend` checked the lengths; the caller has the instruction set.
    unsafe {
        let width = out.len();
        let key = |idx: usize| keys.as_ptr().add(idx * task.stride);
        let mut largest = task.sink.unwrap_or(f32::NEG_INFINITY);
        let fours = scores.len() / 4 * 4;
        for idx in (0..fours).step_by(4) {
            let four = products::<S, P, 4>(task.query, std::array::from_fn(|n| key(idx + n)));
            for n in 0..4 {
                scores[idx + n] = task.scale * four[n];
                largest = largest.max(scores[idx + n]);
            }
        }
        for idx in fours..scores.len() {
            scores[idx] = task.scale * products::<S, P, 1>(task.query, [key(idx)])[0];
            largest = largest.max(scores[idx]);
        }
        let whole = scores.len() / S::LANES * S::LANES;
        let mut total = S::splat(0.0);
        for at in (0..whole).step_by(S::LANES) {
            let weight = exp::<S>(S::add(S::load(scores.as_ptr().add(at)), S::splat(-largest)));
            total = S::add(total, weight);
            S::store(scores.as_mut_ptr().add(at), weight);
        }
        let mut total = S::sum(total) + task.sink.map_or(0.0, |sink| (sink - largest).exp());
        for score in &mut scores[whole..] {
            *score = (*score - largest).exp();
            total += *score;
        }
        let whole = width / S::LANES * S::LANES;
        let share = 1.0 / total;
        // Four vectors of the output at a time stay in registers over all positions.
        let mut at = 0;
        while at < whole {
            let vectors = ((whole - at) / S::LANES).min(4);
            let mut sums = [S::splat(0.0); 4];
            for (idx, score) in scores.iter().enumerate() {
                let row = values.as_ptr().add(idx * task.stride + at);
                for (vector, sum) in sums.iter_mut().enumerate().take(vectors) {
                    *sum = S::fma(S::splat(*score), P::load::<S>(row.add(vector * S::LANES).cast()), *sum);
                }
            }
            for (vector, sum) in sums.into_iter().enumerate().take(vectors) {
                S::store(out.as_mut_ptr().add(at + vector * S::LANES), S::mul(sum, S::splat(share)));
            }
            at += vectors * S::LANES;
        }
        for column in whole..width {
            let value = |idx: usize| P::to_f32(values[idx * task.stride + column]);
            let sum: f32 = scores.iter().enumerate().map(|(idx, score)| score * value(idx)).sum();
            out[column] = sum * share;
        }
    }
}
