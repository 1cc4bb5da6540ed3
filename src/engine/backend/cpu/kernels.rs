//! The inner loops, generic over the instruction set, and the table of entry points chosen once at load.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use half::{bf16, f16};

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

/// One query over the keys and values of its head: rows of the query's width, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct HeadTask<'a> {
    pub(super) query: &'a [f32],
    pub(super) stride: usize,
    pub(super) scale: f32,
    /// One more score, which takes weight and has no value.
    pub(super) sink: Option<f32>,
}

impl HeadTask<'_> {
    /// How many elements of keys, or of values, so many positions reach over.
    fn span(&self, positions: usize) -> usize {
        positions.checked_sub(1).map_or(0, |last| last * self.stride + self.query.len())
    }
}

type BlockKernel = unsafe fn(&BlockTask<'_>, &mut BlockOut);
/// Keys, values, scores, output.
type HeadKernel<T> = unsafe fn(&HeadTask<'_>, &[T], &[T], &mut [f32], &mut [f32]);

/// The entry points of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// The instruction set, for `tiles doctor`.
    pub(super) name: &'static str,
    pub(super) lanes: usize,
    integer: [[BlockKernel; 3]; 2],
    oracle: [[BlockKernel; 3]; 2],
    integer_mxfp4: BlockKernel,
    oracle_mxfp4: BlockKernel,
    dense: [BlockKernel; 3],
    quantise: unsafe fn(&[f32], &mut [i16]) -> (f32, f32),
    attend: HeadKernel<f32>,
    attend_half: HeadKernel<f16>,
    silu_gate: unsafe fn(&mut [f32], &[f32]),
    gelu_gate: unsafe fn(&mut [f32], &[f32]),
    clipped_swiglu: unsafe fn(&mut [f32], &[f32], f32, f32),
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

    /// MXFP4's codes times quantised activations.
    pub(super) fn integer_mxfp4(&self, task: &BlockTask<'_>, out: &mut BlockOut) {
        let groups = task.columns / task.group_size;
        assert!(task.block.len() >= groups * task.group_bytes && task.tokens <= TOKENS_MAX);
        assert!(task.codes.len() >= task.tokens * task.columns && task.scales.len() >= task.tokens * groups);
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.integer_mxfp4)(task, out) }
    }

    /// MXFP4's codes times float activations.
    pub(super) fn oracle_mxfp4(&self, task: &BlockTask<'_>, out: &mut BlockOut) {
        let groups = task.columns / task.group_size;
        assert!(task.block.len() >= groups * task.group_bytes && task.tokens <= TOKENS_MAX);
        assert!(task.floats.len() >= task.tokens * task.columns);
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.oracle_mxfp4)(task, out) }
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
    pub(super) fn attend(
        &self,
        task: &HeadTask<'_>,
        keys: &[f32],
        values: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let span = task.span(scores.len());
        assert!(keys.len() >= span && values.len() >= span && out.len() == task.query.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.attend)(task, keys, values, scores, out) }
    }

    /// The same over keys and values of 16 bits.
    pub(super) fn attend_half(
        &self,
        task: &HeadTask<'_>,
        keys: &[f16],
        values: &[f16],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let span = task.span(scores.len());
        assert!(keys.len() >= span && values.len() >= span && out.len() == task.query.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.attend_half)(task, keys, values, scores, out) }
    }

    /// `silu(gate) · up` in place.
    pub(super) fn silu_gate(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.silu_gate)(gate, up) }
    }

    /// `gelu(gate) · up` in place, by tanh.
    pub(super) fn gelu_gate(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.gelu_gate)(gate, up) }
    }

    /// gpt-oss's gate in place; see `Backend::clipped_swiglu`.
    pub(super) fn clipped_swiglu(&self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.clipped_swiglu)(gate, up, alpha, limit) }
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
    type Element: Copy;
    unsafe fn load<S: Simd>(from: *const u8) -> S::F;
    fn to_f32(element: Self::Element) -> f32;
}

macro_rules! parts {
    ($name:ident, $element:ty, $load:ident) => {
        struct $name;
        impl Parts for $name {
            const SIZE: usize = size_of::<$element>();
            type Element = $element;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const u8) -> S::F {
                // SAFETY: valid for LANES elements by the caller.
                unsafe { S::$load(from.cast()) }
            }
            #[inline(always)]
            fn to_f32(element: $element) -> f32 {
                element.into()
            }
        }
    };
}
parts!(Half, f16, load_f16);
parts!(Brain, bf16, load_bf16);
parts!(Single, f32, load);

/// What the codes of a quantised matrix are.
trait Codes {
    const BITS: usize;
    /// Whether a bias follows the scale.
    const HAS_BIAS: bool;
    /// The pairs of 16-bit halves in a word of codes, as numbers: four for 4 bits, two (twice the same) for 8.
    unsafe fn pairs<S: Simd>(word: S::I) -> [S::I; 4];
}

/// Unsigned nibbles.
struct Nibbles;
/// Unsigned bytes.
struct Bytes;
/// Floats of 4 bits, doubled.
struct E2m1;

impl Codes for Nibbles {
    const BITS: usize = 4;
    const HAS_BIAS: bool = true;
    #[inline(always)]
    unsafe fn pairs<S: Simd>(word: S::I) -> [S::I; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let mask = S::splat_i(0x000F_000F);
            let (second, third, fourth) = (S::shr::<4>(word), S::shr::<8>(word), S::shr::<12>(word));
            [S::and(word, mask), S::and(second, mask), S::and(third, mask), S::and(fourth, mask)]
        }
    }
}

impl Codes for Bytes {
    const BITS: usize = 8;
    const HAS_BIAS: bool = true;
    #[inline(always)]
    unsafe fn pairs<S: Simd>(word: S::I) -> [S::I; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let mask = S::splat_i(0x00FF_00FF);
            let (first, second) = (S::and(word, mask), S::and(S::shr::<8>(word), mask));
            [first, second, first, second]
        }
    }
}

impl Codes for E2m1 {
    const BITS: usize = 4;
    const HAS_BIAS: bool = false;
    #[inline(always)]
    unsafe fn pairs<S: Simd>(word: S::I) -> [S::I; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe { Nibbles::pairs::<S>(word).map(|pair| S::doubled_e2m1(pair)) }
    }
}

/// `T` tokens, `CHAINS` accumulators a token so that one multiply needn't wait for the one before.
#[inline(always)]
unsafe fn integer_tokens<S: Simd, C: Codes, P: Parts, const T: usize, const CHAINS: usize>(
    task: &BlockTask<'_>,
    first: usize,
    out: &mut BlockOut,
) {
    // SAFETY: `Kernels::integer` checked the lengths; the caller has the instruction set.
    unsafe {
        let (columns, groups) = (task.columns, task.columns / task.group_size);
        let words = task.group_size * C::BITS / 32;
        let pairs_a_word = 16 / C::BITS;
        let codes: [*const i16; T] = std::array::from_fn(|t| task.codes.as_ptr().add((first + t) * columns));
        let mut totals = [S::splat(0.0); T];
        for group in 0..groups {
            let base = task.block.as_ptr().add(group * task.group_bytes);
            let mut sums = [[S::splat_i(0); CHAINS]; T];
            for word in 0..words {
                let pairs = C::pairs::<S>(S::load_i(base.add(word * S::LANES * 4).cast()));
                for (pair, weights) in pairs.into_iter().enumerate().take(pairs_a_word) {
                    let column = group * task.group_size + word * (32 / C::BITS) + pair * 2;
                    for t in 0..T {
                        let two = codes[t].add(column).cast::<i32>().read_unaligned();
                        let chain = &mut sums[t][pair % CHAINS];
                        *chain = S::dot_pairs(*chain, weights, S::splat_i(two));
                    }
                }
            }
            let parts = base.add(words * S::LANES * 4);
            let scale = P::load::<S>(parts);
            let bias = if C::HAS_BIAS { P::load::<S>(parts.add(S::LANES * P::SIZE)) } else { S::splat(0.0) };
            for t in 0..T {
                let at = (first + t) * groups + group;
                let sum = sums[t].into_iter().reduce(|a, b| S::add_i(a, b)).unwrap_or(S::splat_i(0));
                let scaled = S::mul(scale, S::splat(*task.scales.as_ptr().add(at)));
                totals[t] = S::fma(S::to_f(sum), scaled, totals[t]);
                if C::HAS_BIAS {
                    totals[t] = S::fma(bias, S::splat(*task.sums.as_ptr().add(at)), totals[t]);
                }
            }
        }
        for t in 0..T {
            S::store(out[first + t].as_mut_ptr(), totals[t]);
        }
    }
}

#[inline(always)]
unsafe fn integer<S: Simd, C: Codes, P: Parts>(task: &BlockTask<'_>, out: &mut BlockOut) {
    // SAFETY: as `integer_tokens`.
    unsafe {
        if task.tokens == TOKENS_MAX {
            if S::LANES == 16 {
                return integer_tokens::<S, C, P, 8, 1>(task, 0, out);
            }
            // Half the registers hold half the tokens.
            integer_tokens::<S, C, P, 4, 1>(task, 0, out);
            return integer_tokens::<S, C, P, 4, 1>(task, 4, out);
        }
        for token in 0..task.tokens {
            integer_tokens::<S, C, P, 1, 4>(task, token, out);
        }
    }
}

#[inline(always)]
unsafe fn oracle<S: Simd, C: Codes, P: Parts>(task: &BlockTask<'_>, out: &mut BlockOut) {
    // SAFETY: `Kernels::oracle` checked the lengths; the caller has the instruction set.
    unsafe {
        let (columns, groups) = (task.columns, task.columns / task.group_size);
        let words = task.group_size * C::BITS / 32;
        for token in 0..task.tokens {
            let x = task.floats.as_ptr().add(token * columns);
            let mut total = S::splat(0.0);
            for group in 0..groups {
                let base = task.block.as_ptr().add(group * task.group_bytes);
                let parts = base.add(words * S::LANES * 4);
                let scale = P::load::<S>(parts);
                let bias = if C::HAS_BIAS { P::load::<S>(parts.add(S::LANES * P::SIZE)) } else { S::splat(0.0) };
                for word in 0..words {
                    let pairs = C::pairs::<S>(S::load_i(base.add(word * S::LANES * 4).cast()));
                    for (pair, codes) in pairs.into_iter().enumerate().take(16 / C::BITS) {
                        let x = x.add(group * task.group_size + word * (32 / C::BITS) + pair * 2);
                        let first = S::fma(S::to_f(S::low_half(codes)), scale, bias);
                        let second = S::fma(S::to_f(S::high_half(codes)), scale, bias);
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
        std::array::from_fn(|n| {
            (whole..query.len()).fold(S::sum(totals[n]), |sum, at| sum + query[at] * P::to_f32(*keys[n].add(at)))
        })
    }
}

#[inline(always)]
unsafe fn attend<S: Simd, P: Parts>(
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

/// Applies `gate` to all elements, the last few of them in a vector that is filled up.
#[inline(always)]
unsafe fn gated<S: Simd>(gate: &mut [f32], up: &[f32], apply: impl Fn(S::F, S::F) -> S::F) {
    // SAFETY: `Kernels` checked that the lengths are equal; the caller has the instruction set.
    unsafe {
        let whole = gate.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let to = gate.as_mut_ptr().add(at);
            S::store(to, apply(S::load(to), S::load(up.as_ptr().add(at))));
        }
        if whole < gate.len() {
            let (mut last_gate, mut last_up) = ([0.0; 16], [0.0; 16]);
            let rest = gate.len() - whole;
            last_gate[..rest].copy_from_slice(&gate[whole..]);
            last_up[..rest].copy_from_slice(&up[whole..]);
            let gated = apply(S::load(last_gate.as_ptr()), S::load(last_up.as_ptr()));
            S::store(last_gate.as_mut_ptr(), gated);
            gate[whole..].copy_from_slice(&last_gate[..rest]);
        }
    }
}

/// `x · sigmoid(factor · x)`.
#[inline(always)]
unsafe fn swish<S: Simd>(x: S::F, factor: f32) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe { S::div(x, S::add(exp::<S>(S::mul(x, S::splat(-factor))), S::splat(1.0))) }
}

#[inline(always)]
unsafe fn silu_gate<S: Simd>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: as `gated`.
    unsafe { gated::<S>(gate, up, |x, up| S::mul(swish::<S>(x, 1.0), up)) }
}

/// `0.5 · x · (1 + tanh(y))` is `x · sigmoid(2 · y)`.
#[inline(always)]
unsafe fn gelu_gate<S: Simd>(gate: &mut [f32], up: &[f32]) {
    const FACTOR: f32 = 1.595_769; // 2 · sqrt(2 / pi)
    // SAFETY: as `gated`.
    unsafe {
        gated::<S>(gate, up, |x, up| {
            let y = S::mul(x, S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0)));
            let below = S::add(exp::<S>(S::mul(y, S::splat(-FACTOR))), S::splat(1.0));
            S::mul(S::div(x, below), up)
        });
    }
}

#[inline(always)]
unsafe fn clipped_swiglu<S: Simd>(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    // SAFETY: as `gated`.
    unsafe {
        gated::<S>(gate, up, |x, up| {
            let x = S::min(x, S::splat(limit));
            let up = S::max(S::min(up, S::splat(limit)), S::splat(-limit));
            S::mul(swish::<S>(x, alpha), S::add(up, S::splat(1.0)))
        });
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
            block!(integer_4_half, integer::<$simd, Nibbles, Half>);
            block!(integer_4_brain, integer::<$simd, Nibbles, Brain>);
            block!(integer_4_single, integer::<$simd, Nibbles, Single>);
            block!(integer_8_half, integer::<$simd, Bytes, Half>);
            block!(integer_8_brain, integer::<$simd, Bytes, Brain>);
            block!(integer_8_single, integer::<$simd, Bytes, Single>);
            block!(oracle_4_half, oracle::<$simd, Nibbles, Half>);
            block!(oracle_4_brain, oracle::<$simd, Nibbles, Brain>);
            block!(oracle_4_single, oracle::<$simd, Nibbles, Single>);
            block!(oracle_8_half, oracle::<$simd, Bytes, Half>);
            block!(oracle_8_brain, oracle::<$simd, Bytes, Brain>);
            block!(oracle_8_single, oracle::<$simd, Bytes, Single>);
            block!(integer_mxfp4, integer::<$simd, E2m1, Brain>);
            block!(oracle_mxfp4, oracle::<$simd, E2m1, Brain>);
            block!(dense_half, dense::<$simd, Half>);
            block!(dense_brain, dense::<$simd, Brain>);
            block!(dense_single, dense::<$simd, Single>);

            $(#[$feature])?
            unsafe fn quantise_entry(group: &[f32], codes: &mut [i16]) -> (f32, f32) {
                // SAFETY: by the caller's contract.
                unsafe { quantise::<$simd>(group, codes) }
            }
            $(#[$feature])?
            unsafe fn attend_entry(
                task: &HeadTask<'_>,
                keys: &[f32],
                values: &[f32],
                scores: &mut [f32],
                out: &mut [f32],
            ) {
                // SAFETY: by the caller's contract.
                unsafe { attend::<$simd, Single>(task, keys, values, scores, out) }
            }
            $(#[$feature])?
            unsafe fn attend_half_entry(
                task: &HeadTask<'_>,
                keys: &[f16],
                values: &[f16],
                scores: &mut [f32],
                out: &mut [f32],
            ) {
                // SAFETY: by the caller's contract.
                unsafe { attend::<$simd, Half>(task, keys, values, scores, out) }
            }
            $(#[$feature])?
            unsafe fn silu_gate_entry(gate: &mut [f32], up: &[f32]) {
                // SAFETY: by the caller's contract.
                unsafe { silu_gate::<$simd>(gate, up) }
            }
            $(#[$feature])?
            unsafe fn gelu_gate_entry(gate: &mut [f32], up: &[f32]) {
                // SAFETY: by the caller's contract.
                unsafe { gelu_gate::<$simd>(gate, up) }
            }
            $(#[$feature])?
            unsafe fn clipped_swiglu_entry(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
                // SAFETY: by the caller's contract.
                unsafe { clipped_swiglu::<$simd>(gate, up, alpha, limit) }
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
                integer_mxfp4,
                oracle_mxfp4,
                dense: [dense_half, dense_brain, dense_single],
                quantise: quantise_entry,
                attend: attend_entry,
                attend_half: attend_half_entry,
                silu_gate: silu_gate_entry,
                gelu_gate: gelu_gate_entry,
                clipped_swiglu: clipped_swiglu_entry,
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
