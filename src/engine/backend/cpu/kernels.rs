//! The inner loops, generic over the instruction set, and the table of entry points chosen once at load.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use half::{bf16, f16};

#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Scalar, Simd};
use crate::engine::checkpoint::Dtype;

#[macro_use]
mod entry_points;
mod elements;
mod attention;
mod tiles;

use self::attention::attend;
use self::elements::{clipped_swiglu, gelu_gate, quantise, rms_norm, silu_gate};
use self::tiles::attend_tile;
pub(super) use self::tiles::{TILE, TileTask};

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
/// Keys in columns, values, scores, output.
type TileKernel<T> = unsafe fn(&TileTask<'_>, &[f32], &[T], &mut [f32], &mut [f32]);

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
    tile: TileKernel<f32>,
    tile_half: TileKernel<f16>,
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
        // Every 64-bit ARM processor has NEON.
        #[cfg(target_arch = "aarch64")]
        return neon::KERNELS;
        #[cfg(not(target_arch = "aarch64"))]
        scalar::KERNELS
    }

    /// The kernels without vector instructions.
    pub(super) fn scalar() -> Self {
        scalar::KERNELS
    }

    /// All kernels that this processor runs.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "elsewhere there is one")]
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
        #[cfg(target_arch = "aarch64")]
        all.push(neon::KERNELS);
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

    /// Softmax attention of some neighbouring tokens of one head; see [`TileTask`].
    pub(super) fn attend_tile(
        &self,
        task: &TileTask<'_>,
        keys: &[f32],
        values: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        task.check(self.lanes, keys.len(), values.len(), scores.len(), out.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.tile)(task, keys, values, scores, out) }
    }

    /// The same over values of 16 bits.
    pub(super) fn attend_tile_half(
        &self,
        task: &TileTask<'_>,
        keys: &[f32],
        values: &[f16],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        task.check(self.lanes, keys.len(), values.len(), scores.len(), out.len());
        // SAFETY: `detect` saw the instruction set, and the lengths were just checked.
        unsafe { (self.tile_half)(task, keys, values, scores, out) }
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
    unsafe fn pairs<S: Simd>(word: S::Pairs) -> [S::Pairs; 4];
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
    unsafe fn pairs<S: Simd>(word: S::Pairs) -> [S::Pairs; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let mask = S::splat_pairs(0x000F);
            let (second, third, fourth) = (S::shr::<4>(word), S::shr::<8>(word), S::shr::<12>(word));
            [S::and(word, mask), S::and(second, mask), S::and(third, mask), S::and(fourth, mask)]
        }
    }
}

impl Codes for Bytes {
    const BITS: usize = 8;
    const HAS_BIAS: bool = true;
    #[inline(always)]
    unsafe fn pairs<S: Simd>(word: S::Pairs) -> [S::Pairs; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let mask = S::splat_pairs(0x00FF);
            let (first, second) = (S::and(word, mask), S::and(S::shr::<8>(word), mask));
            [first, second, first, second]
        }
    }
}

impl Codes for E2m1 {
    const BITS: usize = 4;
    const HAS_BIAS: bool = false;
    #[inline(always)]
    unsafe fn pairs<S: Simd>(word: S::Pairs) -> [S::Pairs; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let [first, second, third, fourth] = Nibbles::pairs::<S>(word);
            let (first, second) = (S::doubled_e2m1(first), S::doubled_e2m1(second));
            [first, second, S::doubled_e2m1(third), S::doubled_e2m1(fourth)]
        }
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
                let pairs = C::pairs::<S>(S::load_pairs(base.add(word * S::LANES * 4).cast()));
                for (pair, weights) in pairs.into_iter().enumerate().take(pairs_a_word) {
                    let column = group * task.group_size + word * (32 / C::BITS) + pair * 2;
                    for t in 0..T {
                        let chain = &mut sums[t][pair % CHAINS];
                        *chain = S::dot_pairs(*chain, weights, S::load_pair(codes[t].add(column)));
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
        // A few tokens, as a draft has, share each load of weights. The sums are whole numbers: equal in any order.
        let mut token = 0;
        while token + 4 <= task.tokens {
            integer_tokens::<S, C, P, 4, 1>(task, token, out);
            token += 4;
        }
        if token + 2 <= task.tokens {
            integer_tokens::<S, C, P, 2, 2>(task, token, out);
            token += 2;
        }
        if token < task.tokens {
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
                    let pairs = C::pairs::<S>(S::load_pairs(base.add(word * S::LANES * 4).cast()));
                    for (pair, codes) in pairs.into_iter().enumerate().take(16 / C::BITS) {
                        let x = x.add(group * task.group_size + word * (32 / C::BITS) + pair * 2);
                        let first = S::fma(S::to_f(S::first(codes)), scale, bias);
                        let second = S::fma(S::to_f(S::second(codes)), scale, bias);
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
        // One chain a token, as for eight: the same sums bit by bit however many tokens come at once.
        for token in 0..task.tokens {
            dense_tokens::<S, P, 1, 1>(task, token, out);
        }
    }
}

entry_points!(scalar, Scalar, "scalar");
#[cfg(target_arch = "x86_64")]
entry_points!(avx2, Avx2, "AVX2", #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
entry_points!(avx512, Avx512, "AVX-512 VNNI", #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
entry_points!(neon, Neon, "NEON", #[target_feature(enable = "neon")]);
