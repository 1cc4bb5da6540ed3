//! The inner loops, generic over the instruction set, and the table of entry points chosen once at load.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Scalar, Simd};
use crate::engine::checkpoint::Dtype;

/// One block of rows times a few tokens.
#[derive(Clone, Copy)]
pub(super) struct BlockTask<'a> {
    /// The block, in the layout of `matrix.rs`.
    pub(super) block: &'a [u8],
    pub(super) columns: usize,
    pub(super) group_size: usize,
    pub(super) group_bytes: usize,
    /// Quantised activations `[tokens, columns]`; empty for float kernels.
    pub(super) codes: &'a [i16],
    /// The scale of each group of `codes`, `[tokens, groups]`.
    pub(super) scales: &'a [f32],
    /// Scale times the sum of the codes of each group, `[tokens, groups]`.
    pub(super) sums: &'a [f32],
    /// Activations `[tokens, columns]`; empty for integer kernels.
    pub(super) floats: &'a [f32],
    /// How many tokens; at most [`TOKENS_MAX`].
    pub(super) tokens: usize,
}

/// How many tokens a kernel takes at once: so many accumulators fit in the registers beside the unpacked weights.
pub(super) const TOKENS_MAX: usize = 8;

/// The results of a block: `[tokens][lanes]`.
pub(super) type BlockOut = [[f32; 16]; TOKENS_MAX];

/// Keys or values of one head: rows of `width` floats, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct HeadTask<'a> {
    pub(super) query: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) scale: f32,
}

type BlockKernel = unsafe fn(&BlockTask<'_>, &mut BlockOut);

/// The entry points of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// The instruction set, for `tiles doctor`.
    pub(super) name: &'static str,
    pub(super) lanes: usize,
    integer: [[BlockKernel; 3]; 2],
    oracle: [[BlockKernel; 3]; 2],
    dense: [BlockKernel; 3],
    quantise: unsafe fn(&[f32], &mut [i16]) -> (f32, f32),
    attend: unsafe fn(&HeadTask<'_>, &mut [f32], &mut [f32]),
    silu_gate: unsafe fn(&mut [f32], &[f32]),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
}

const fn parts_idx(parts: Dtype) -> usize {
    match parts {
        Dtype::F16 => 0,
        Dtype::BF16 => 1,
        _ => 2,
    }
}

impl Kernels {
    /// The fastest kernels that this processor runs.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                return avx512::KERNELS;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                return avx2::KERNELS;
            }
        }
        scalar::KERNELS
    }

    /// The kernels without vector instructions.
    pub(super) fn scalar() -> Self {
        scalar::KERNELS
    }

    /// All kernels that this processor runs.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![scalar::KERNELS];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(avx2::KERNELS);
            }
            if Self::detect().lanes == 16 {
                all.push(avx512::KERNELS);
            }
        }
        all
    }

    /// Codes times quantised activations.
    pub(super) fn integer(&self, bits: usize, parts: Dtype, task: &BlockTask<'_>, out: &mut BlockOut) {
        let groups = task.columns / task.group_size;
        assert!(task.block.len() >= groups * task.group_bytes && task.tokens <= TOKENS_MAX);
        assert!(task.codes.len() >= task.tokens * task.columns);
        assert!(task.scales.len() >= task.tokens * groups && task.sums.len() >= task.tokens * groups);
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { self.integer[usize::from(bits == 8)][parts_idx(parts)](task, out) }
    }

    /// Codes times float activations: slow and exact, what the others are measured against.
    pub(super) fn oracle(&self, bits: usize, parts: Dtype, task: &BlockTask<'_>, out: &mut BlockOut) {
        let groups = task.columns / task.group_size;
        assert!(task.block.len() >= groups * task.group_bytes && task.tokens <= TOKENS_MAX);
        assert!(task.floats.len() >= task.tokens * task.columns);
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { self.oracle[usize::from(bits == 8)][parts_idx(parts)](task, out) }
    }

    /// Float weights times float activations.
    pub(super) fn dense(&self, dtype: Dtype, task: &BlockTask<'_>, out: &mut BlockOut) {
        assert!(task.block.len() >= task.columns * self.lanes * dtype.size() && task.tokens <= TOKENS_MAX);
        assert!(task.floats.len() >= task.tokens * task.columns);
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { self.dense[parts_idx(dtype)](task, out) }
    }

    /// Quantises one group to 16 bits: its scale, and scale times the sum of the codes.
    pub(super) fn quantise(&self, group: &[f32], codes: &mut [i16]) -> (f32, f32) {
        assert!(group.len() == codes.len() && group.len().is_multiple_of(16));
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.quantise)(group, codes) }
    }

    /// Softmax attention of one query over the keys; `scores` has one element a key.
    pub(super) fn attend(&self, task: &HeadTask<'_>, scores: &mut [f32], out: &mut [f32]) {
        let width = task.query.len();
        let span = scores.len().checked_sub(1).map_or(0, |last| last * task.stride + width);
        assert!(task.keys.len() >= span && task.values.len() >= span && out.len() == width);
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.attend)(task, scores, out) }
    }

    /// `silu(gate) · up` in place.
    pub(super) fn silu_gate(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.silu_gate)(gate, up) }
    }

    /// Root-mean-square norm of one row.
    pub(super) fn rms_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.rms_norm)(x, weight, epsilon, out) }
    }
}

/// Loads `LANES` floats of one dtype.
trait Parts {
    const SIZE: usize;
    unsafe fn load<S: Simd>(from: *const u8) -> S::F;
}

macro_rules! parts {
    ($name:ident, $size:literal, $load:ident) => {
        struct $name;
        impl Parts for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const u8) -> S::F {
                // SAFETY: valid for LANES elements by the caller.
                unsafe { S::$load(from.cast()) }
            }
        }
    };
}
parts!(Half, 2, load_f16);
parts!(Brain, 2, load_bf16);
parts!(Single, 4, load);

/// The pairs of 16-bit halves in a word of codes: four for 4 bits, two (twice the same) for 8.
#[inline(always)]
unsafe fn pairs<S: Simd, const BITS: usize>(word: S::I) -> [S::I; 4] {
    // SAFETY: the caller has the instruction set.
    unsafe {
        if BITS == 4 {
            let mask = S::splat_i(0x000F_000F);
            let (second, third, fourth) = (S::shr::<4>(word), S::shr::<8>(word), S::shr::<12>(word));
            [S::and(word, mask), S::and(second, mask), S::and(third, mask), S::and(fourth, mask)]
        } else {
            let mask = S::splat_i(0x00FF_00FF);
            let (first, second) = (S::and(word, mask), S::and(S::shr::<8>(word), mask));
            [first, second, first, second]
        }
    }
}

/// `T` tokens, `CHAINS` accumulators a token so that one multiply needn't wait for the one before.
#[inline(always)]
unsafe fn integer_tokens<S: Simd, const BITS: usize, P: Parts, const T: usize, const CHAINS: usize>(
    task: &BlockTask<'_>,
    first: usize,
    out: &mut BlockOut,
) {
    // SAFETY: `Kernels::integer` checked the lengths; the caller has the instruction set.
    unsafe {
        let (columns, groups) = (task.columns, task.columns / task.group_size);
        let words = task.group_size * BITS / 32;
        let pairs_a_word = 16 / BITS;
        let codes: [*const i16; T] = std::array::from_fn(|t| task.codes.as_ptr().add((first + t) * columns));
        let mut totals = [S::splat(0.0); T];
        for group in 0..groups {
            let base = task.block.as_ptr().add(group * task.group_bytes);
            let mut sums = [[S::splat_i(0); CHAINS]; T];
            for word in 0..words {
                let pairs = pairs::<S, BITS>(S::load_i(base.add(word * S::LANES * 4).cast()));
                for (pair, weights) in pairs.into_iter().enumerate().take(pairs_a_word) {
                    let column = group * task.group_size + word * (32 / BITS) + pair * 2;
                    for t in 0..T {
                        let two = codes[t].add(column).cast::<i32>().read_unaligned();
                        let chain = &mut sums[t][pair % CHAINS];
                        *chain = S::dot_pairs(*chain, weights, S::splat_i(two));
                    }
                }
            }
            let parts = base.add(words * S::LANES * 4);
            let (scale, bias) = (P::load::<S>(parts), P::load::<S>(parts.add(S::LANES * P::SIZE)));
            for t in 0..T {
                let at = (first + t) * groups + group;
                let sum = sums[t].into_iter().reduce(|a, b| S::add_i(a, b)).unwrap_or(S::splat_i(0));
                let scaled = S::mul(scale, S::splat(*task.scales.as_ptr().add(at)));
                totals[t] = S::fma(S::to_f(sum), scaled, totals[t]);
                totals[t] = S::fma(bias, S::splat(*task.sums.as_ptr().add(at)), totals[t]);
            }
        }
        for t in 0..T {
            S::store(out[first + t].as_mut_ptr(), totals[t]);
        }
    }
}

#[inline(always)]
unsafe fn integer<S: Simd, const BITS: usize, P: Parts>(task: &BlockTask<'_>, out: &mut BlockOut) {
    // SAFETY: as `integer_tokens`.
    unsafe {
        if task.tokens == TOKENS_MAX {
            if S::LANES == 16 {
                return integer_tokens::<S, BITS, P, 8, 1>(task, 0, out);
            }
            // Half the registers hold half the tokens.
            integer_tokens::<S, BITS, P, 4, 1>(task, 0, out);
            return integer_tokens::<S, BITS, P, 4, 1>(task, 4, out);
        }
        for token in 0..task.tokens {
            integer_tokens::<S, BITS, P, 1, 4>(task, token, out);
        }
    }
}

#[inline(always)]
unsafe fn oracle<S: Simd, const BITS: usize, P: Parts>(task: &BlockTask<'_>, out: &mut BlockOut) {
    // SAFETY: `Kernels::oracle` checked the lengths; the caller has the instruction set.
    unsafe {
        let (columns, groups) = (task.columns, task.columns / task.group_size);
        let words = task.group_size * BITS / 32;
        let low = S::splat_i(0xFFFF);
        for token in 0..task.tokens {
            let x = task.floats.as_ptr().add(token * columns);
            let mut total = S::splat(0.0);
            for group in 0..groups {
                let base = task.block.as_ptr().add(group * task.group_bytes);
                let parts = base.add(words * S::LANES * 4);
                let (scale, bias) = (P::load::<S>(parts), P::load::<S>(parts.add(S::LANES * P::SIZE)));
                for word in 0..words {
                    let pairs = pairs::<S, BITS>(S::load_i(base.add(word * S::LANES * 4).cast()));
                    for (pair, codes) in pairs.into_iter().enumerate().take(16 / BITS) {
                        let x = x.add(group * task.group_size + word * (32 / BITS) + pair * 2);
                        let first = S::fma(S::to_f(S::and(codes, low)), scale, bias);
                        let second = S::fma(S::to_f(S::shr::<16>(codes)), scale, bias);
                        total = S::fma(first, S::splat(*x), total);
                        total = S::fma(second, S::splat(*x.add(1)), total);
                    }
                }
            }
            S::store(out[token].as_mut_ptr(), total);
        }
    }
}

#[inline(always)]
unsafe fn dense_tokens<S: Simd, P: Parts, const T: usize, const CHAINS: usize>(
    task: &BlockTask<'_>,
    first: usize,
    out: &mut BlockOut,
) {
    // SAFETY: `Kernels::dense` checked the lengths; the caller has the instruction set.
    unsafe {
        let columns = task.columns;
        let mut totals = [[S::splat(0.0); CHAINS]; T];
        for column in 0..columns {
            let weights = P::load::<S>(task.block.as_ptr().add(column * S::LANES * P::SIZE));
            for t in 0..T {
                let x = *task.floats.as_ptr().add((first + t) * columns + column);
                let chain = &mut totals[t][column % CHAINS];
                *chain = S::fma(weights, S::splat(x), *chain);
            }
        }
        for t in 0..T {
            let total = totals[t].into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(S::splat(0.0));
            S::store(out[first + t].as_mut_ptr(), total);
        }
    }
}

#[inline(always)]
unsafe fn dense<S: Simd, P: Parts>(task: &BlockTask<'_>, out: &mut BlockOut) {
    // SAFETY: as `dense_tokens`.
    unsafe {
        if task.tokens == TOKENS_MAX {
            return dense_tokens::<S, P, TOKENS_MAX, 1>(task, 0, out);
        }
        for token in 0..task.tokens {
            dense_tokens::<S, P, 1, 4>(task, token, out);
        }
    }
}

#[inline(always)]
unsafe fn quantise<S: Simd>(group: &[f32], codes: &mut [i16]) -> (f32, f32) {
    // SAFETY: `Kernels::quantise` checked the lengths; the caller has the instruction set.
    unsafe {
        let steps = (0..group.len()).step_by(S::LANES);
        let (mut largest, mut poison) = (S::splat(0.0), S::splat(0.0));
        for at in steps.clone() {
            let x = S::load(group.as_ptr().add(at));
            largest = S::max(largest, S::max(x, S::mul(x, S::splat(-1.0))));
            // A maximum forgets a NaN; zero times a NaN or an infinity is a NaN, and so is any sum with it.
            poison = S::fma(x, S::splat(0.0), poison);
        }
        // What is no number reaches the logits and is reported there.
        let scale = S::largest(largest) / f32::from(i16::MAX) + S::sum(poison);
        let inverse = if scale > 0.0 && scale.is_finite() { 1.0 / scale } else { 0.0 };
        let mut sum = S::splat(0.0);
        for at in steps {
            let x = S::mul(S::load(group.as_ptr().add(at)), S::splat(inverse));
            // A denormal scale has no exact inverse; the bounds keep the codes within 16 bits all the same.
            let x = S::max(S::min(x, S::splat(32767.0)), S::splat(-32767.0));
            let rounded = S::round(x);
            sum = S::add(sum, S::to_f(rounded));
            S::store_i16(codes.as_mut_ptr().add(at), rounded);
        }
        (scale, scale * S::sum(sum))
    }
}

#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, len: usize) -> f32 {
    // SAFETY: both are valid for `len` elements by the caller.
    unsafe {
        let whole = len / S::LANES * S::LANES;
        let mut total = S::splat(0.0);
        for at in (0..whole).step_by(S::LANES) {
            total = S::fma(S::load(a.add(at)), S::load(b.add(at)), total);
        }
        (whole..len).fold(S::sum(total), |sum, at| sum + *a.add(at) * *b.add(at))
    }
}

#[inline(always)]
unsafe fn attend<S: Simd>(task: &HeadTask<'_>, scores: &mut [f32], out: &mut [f32]) {
    // SAFETY: `Kernels::attend` checked the lengths; the caller has the instruction set.
    unsafe {
        let width = out.len();
        let mut largest = f32::NEG_INFINITY;
        for (idx, score) in scores.iter_mut().enumerate() {
            *score = task.scale * dot::<S>(task.query.as_ptr(), task.keys.as_ptr().add(idx * task.stride), width);
            largest = largest.max(*score);
        }
        let whole = scores.len() / S::LANES * S::LANES;
        let mut total = S::splat(0.0);
        for at in (0..whole).step_by(S::LANES) {
            let weight = exp::<S>(S::add(S::load(scores.as_ptr().add(at)), S::splat(-largest)));
            total = S::add(total, weight);
            S::store(scores.as_mut_ptr().add(at), weight);
        }
        let mut total = S::sum(total);
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
                let row = task.values.as_ptr().add(idx * task.stride + at);
                for (vector, sum) in sums.iter_mut().enumerate().take(vectors) {
                    *sum = S::fma(S::splat(*score), S::load(row.add(vector * S::LANES)), *sum);
                }
            }
            for (vector, sum) in sums.into_iter().enumerate().take(vectors) {
                S::store(out.as_mut_ptr().add(at + vector * S::LANES), S::mul(sum, S::splat(share)));
            }
            at += vectors * S::LANES;
        }
        for column in whole..width {
            let sum: f32 =
                scores.iter().enumerate().map(|(idx, score)| score * task.values[idx * task.stride + column]).sum();
            out[column] = sum * share;
        }
    }
}

/// e to the power of each lane, to about 2 units in the last place (the polynomial of Cephes' `expf`).
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let x = S::max(S::min(x, S::splat(88.0)), S::splat(-87.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(S::to_f(n), S::splat(-0.693_359_4), x);
        let r = S::fma(S::to_f(n), S::splat(2.121_944_4e-4), r);
        let coefficients = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let polynomial = coefficients.into_iter().fold(S::splat(0.0), |sum, c| S::fma(sum, r, S::splat(c)));
        let fraction = S::add(S::fma(S::mul(r, r), polynomial, r), S::splat(1.0));
        S::mul(fraction, S::exp2(n))
    }
}

#[inline(always)]
unsafe fn silu_gate<S: Simd>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: `Kernels::silu_gate` checked the lengths; the caller has the instruction set.
    unsafe {
        let whole = gate.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let x = S::load(gate.as_ptr().add(at));
            let below = S::add(exp::<S>(S::mul(x, S::splat(-1.0))), S::splat(1.0));
            S::store(gate.as_mut_ptr().add(at), S::mul(S::div(x, below), S::load(up.as_ptr().add(at))));
        }
        for (gate, up) in gate[whole..].iter_mut().zip(&up[whole..]) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    }
}

#[inline(always)]
unsafe fn rms_norm<S: Simd>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    // SAFETY: `Kernels::rms_norm` checked the lengths; the caller has the instruction set.
    unsafe {
        let mean = dot::<S>(x.as_ptr(), x.as_ptr(), x.len()) / x.len() as f32;
        let factor = 1.0 / (mean + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

/// The entry points of one instruction set: where its target features are enabled and all the above is inlined.
macro_rules! entry_points {
    ($module:ident, $simd:ty, $name:literal $(, #[$feature:meta])?) => {
        mod $module {
            use super::*;

            macro_rules! block {
                ($entry:ident, $body:expr) => {
                    $(#[$feature])?
                    unsafe fn $entry(task: &BlockTask<'_>, out: &mut BlockOut) {
                        // SAFETY: by the caller's contract.
                        unsafe { $body(task, out) }
                    }
                };
            }
            block!(integer_4_half, integer::<$simd, 4, Half>);
            block!(integer_4_brain, integer::<$simd, 4, Brain>);
            block!(integer_4_single, integer::<$simd, 4, Single>);
            block!(integer_8_half, integer::<$simd, 8, Half>);
            block!(integer_8_brain, integer::<$simd, 8, Brain>);
            block!(integer_8_single, integer::<$simd, 8, Single>);
            block!(oracle_4_half, oracle::<$simd, 4, Half>);
            block!(oracle_4_brain, oracle::<$simd, 4, Brain>);
            block!(oracle_4_single, oracle::<$simd, 4, Single>);
            block!(oracle_8_half, oracle::<$simd, 8, Half>);
            block!(oracle_8_brain, oracle::<$simd, 8, Brain>);
            block!(oracle_8_single, oracle::<$simd, 8, Single>);
            block!(dense_half, dense::<$simd, Half>);
            block!(dense_brain, dense::<$simd, Brain>);
            block!(dense_single, dense::<$simd, Single>);

            $(#[$feature])?
            unsafe fn quantise_entry(group: &[f32], codes: &mut [i16]) -> (f32, f32) {
                // SAFETY: by the caller's contract.
                unsafe { quantise::<$simd>(group, codes) }
            }
            $(#[$feature])?
            unsafe fn attend_entry(task: &HeadTask<'_>, scores: &mut [f32], out: &mut [f32]) {
                // SAFETY: by the caller's contract.
                unsafe { attend::<$simd>(task, scores, out) }
            }
            $(#[$feature])?
            unsafe fn silu_gate_entry(gate: &mut [f32], up: &[f32]) {
                // SAFETY: by the caller's contract.
                unsafe { silu_gate::<$simd>(gate, up) }
            }
            $(#[$feature])?
            unsafe fn rms_norm_entry(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                // SAFETY: by the caller's contract.
                unsafe { rms_norm::<$simd>(x, weight, epsilon, out) }
            }

            pub(in super::super) const KERNELS: Kernels = Kernels {
                name: $name,
                lanes: <$simd>::LANES,
                integer: [
                    [integer_4_half, integer_4_brain, integer_4_single],
                    [integer_8_half, integer_8_brain, integer_8_single],
                ],
                oracle: [
                    [oracle_4_half, oracle_4_brain, oracle_4_single],
                    [oracle_8_half, oracle_8_brain, oracle_8_single],
                ],
                dense: [dense_half, dense_brain, dense_single],
                quantise: quantise_entry,
                attend: attend_entry,
                silu_gate: silu_gate_entry,
                rms_norm: rms_norm_entry,
            };
        }
    };
}

entry_points!(scalar, Scalar, "scalar");
#[cfg(target_arch = "x86_64")]
entry_points!(avx2, Avx2, "AVX2", #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
entry_points!(avx512, Avx512, "AVX-512 VNNI", #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]);
