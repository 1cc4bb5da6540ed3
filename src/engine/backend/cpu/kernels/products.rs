//! Blocks of rows times tokens: whole numbers times whole numbers, and floats for the oracle and for dense matrices.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use std::marker::PhantomData;

use half::{bf16, f16};

use super::super::simd::prefetch_near;
use super::{BlockTask, Simd};

/// How many tokens are computed at once: so many accumulators fit in 32 registers beside the unpacked weights, and none of
/// their chains waits for a multiplier. 120 billion products a second; 114 with eight tokens and two chains each, as there
/// are more weights to unpack and sums to add (Emerald Rapids).
const TOKENS_MAX: usize = 12;

/// The most tokens for which weights come from memory: with more, blocks are met again and again in a near cache.
const AHEAD_TOKENS_MAX: usize = 8;

/// How far ahead of what is multiplied a few tokens ask for weights. The processor by itself looks no further than a page,
/// and where physical pages lie scattered not even that: 6 GB/s a core instead of 20 (Emerald Rapids, small pages).
const AHEAD_BYTES: usize = 4096;

/// Loads `LANES` floats of one dtype.
pub(super) trait Parts {
    const SIZE: usize;
    type Element: Copy;
    unsafe fn load<S: Simd>(from: *const u8) -> S::F;
    fn to_f32(element: Self::Element) -> f32;
}

macro_rules! parts {
    ($name:ident, $element:ty, $load:ident) => {
        pub(super) struct $name;
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
pub(super) trait Codes {
    const BITS: usize;
    /// Whether a bias follows the scale.
    const HAS_BIAS: bool;
    /// The pairs of 16-bit halves in a word of codes, as numbers: four for 4 bits, two (twice the same) for 8.
    unsafe fn pairs<S: Simd>(word: S::Pairs) -> [S::Pairs; 4];

    /// The largest group whose pairs may stay where they are in the word; zero where they can't.
    const IN_PLACE_MAX: usize = 0;
    /// The same pairs as they stand in the word: the second 2⁴ times, the third 2⁸ times as large.
    #[inline(always)]
    unsafe fn in_place<S: Simd>(word: S::Pairs) -> [S::Pairs; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe { Self::pairs::<S>(word) }
    }
}

/// Unsigned nibbles.
pub(super) struct Nibbles;
/// Unsigned bytes.
pub(super) struct Bytes;
/// Floats of 4 bits, doubled.
pub(super) struct E2m1;

impl Codes for Nibbles {
    const BITS: usize = 4;
    const HAS_BIAS: bool = true;
    #[inline(always)]
    unsafe fn pairs<S: Simd>(word: S::Pairs) -> [S::Pairs; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let mask = S::splat_pairs(0x000F);
            [S::and(word, mask), S::and(S::shr::<4>(word), mask), S::and(S::shr::<8>(word), mask), S::shr::<12>(word)]
        }
    }

    // A product is at most 0x0F00 · 32767; a group of 64 adds up 16 of them in each chain, below 2³¹.
    const IN_PLACE_MAX: usize = 64;
    // Four operations instead of six, of the thirteen that a word and a token take with AVX2.
    #[inline(always)]
    unsafe fn in_place<S: Simd>(word: S::Pairs) -> [S::Pairs; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let (second, third) = (S::and(word, S::splat_pairs(0x00F0)), S::and(word, S::splat_pairs(0x0F00)));
            [S::and(word, S::splat_pairs(0x000F)), second, third, S::shr::<12>(word)]
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
            let (first, second) = (S::and(word, S::splat_pairs(0x00FF)), S::shr::<8>(word));
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

/// One block times a few tokens.
pub(super) trait Product<S: Simd> {
    /// `T` tokens of `task` from `first` on times the block at `block`, with `CHAINS` accumulators a token, so that one
    /// multiply needn't wait for the one before; written to `out`, which is the first token's.
    unsafe fn tokens<const T: usize, const CHAINS: usize>(
        task: &BlockTask<'_>,
        block: *const u8,
        first: usize,
        out: *mut f32,
    );
}

/// Quantised activations.
pub(super) struct Integer<C, P>(PhantomData<(C, P)>);
/// Float activations, quantised weights.
pub(super) struct Oracle<C, P>(PhantomData<(C, P)>);
/// Float activations and weights.
pub(super) struct Dense<P>(PhantomData<P>);

/// The sums of one group's codes times those of `T` tokens; `IN_PLACE` takes the codes as they stand in their words, and
/// `AHEAD` asks for later ones.
#[inline(always)]
unsafe fn group_sums<
    S: Simd,
    C: Codes,
    const T: usize,
    const CHAINS: usize,
    const IN_PLACE: bool,
    const AHEAD: bool,
>(
    words: *const u8,
    count: usize,
    codes: [*const i16; T],
) -> [S::I; T] {
    // SAFETY: `Kernels::integer` checked the lengths; the caller has the instruction set.
    unsafe {
        let mut sums = [[S::splat_i(0); CHAINS]; T];
        for word in 0..count {
            let at = words.add(word * S::LANES * 4);
            if AHEAD && (S::LANES == 16 || word % 2 == 0) {
                prefetch_near(at.addr() + AHEAD_BYTES);
            }
            let loaded = S::load_pairs(at.cast());
            let pairs = if IN_PLACE { C::in_place::<S>(loaded) } else { C::pairs::<S>(loaded) };
            for (pair, weights) in pairs.into_iter().enumerate().take(16 / C::BITS) {
                for t in 0..T {
                    let chain = &mut sums[t][pair % CHAINS];
                    *chain = S::dot_pairs(*chain, weights, codes[t].add(word * (32 / C::BITS) + pair * 2));
                }
            }
        }
        if AHEAD {
            prefetch_near(words.addr() + count * S::LANES * 4 + AHEAD_BYTES);
        }
        let mut totals = [S::splat_i(0); T];
        // No closures: what calls them needn't be inlined, and then vectors go through memory.
        for t in 0..T {
            let mut chains = sums[t];
            if IN_PLACE {
                // Exact: all that was added is a multiple.
                (chains[1], chains[2]) = (S::shr_i::<4>(chains[1]), S::shr_i::<8>(chains[2]));
            }
            totals[t] = chains[0];
            for chain in &chains[1..] {
                totals[t] = S::add_i(totals[t], *chain);
            }
        }
        totals
    }
}

impl<S: Simd, C: Codes, P: Parts> Product<S> for Integer<C, P> {
    #[inline(always)]
    unsafe fn tokens<const T: usize, const CHAINS: usize>(
        task: &BlockTask<'_>,
        block: *const u8,
        first: usize,
        out: *mut f32,
    ) {
        // SAFETY: `Kernels::integer` checked the lengths; the caller has the instruction set.
        unsafe {
            let (columns, groups) = (task.columns, task.groups());
            let words = task.group_size * C::BITS / 32;
            let in_place = CHAINS == 4 && task.group_size <= C::IN_PLACE_MAX;
            let ahead = T <= AHEAD_TOKENS_MAX && task.tokens <= AHEAD_TOKENS_MAX;
            let mut totals = [S::splat(0.0); T];
            for group in 0..groups {
                let base = block.add(group * task.group_bytes);
                let codes: [*const i16; T] =
                    std::array::from_fn(|t| task.codes.as_ptr().add((first + t) * columns + group * task.group_size));
                let sums = match (in_place, ahead) {
                    (true, true) => group_sums::<S, C, T, CHAINS, true, true>(base, words, codes),
                    (true, false) => group_sums::<S, C, T, CHAINS, true, false>(base, words, codes),
                    (false, true) => group_sums::<S, C, T, CHAINS, false, true>(base, words, codes),
                    (false, false) => group_sums::<S, C, T, CHAINS, false, false>(base, words, codes),
                };
                let parts = base.add(words * S::LANES * 4);
                let scale = P::load::<S>(parts);
                let bias = if C::HAS_BIAS { P::load::<S>(parts.add(S::LANES * P::SIZE)) } else { S::splat(0.0) };
                for t in 0..T {
                    let at = (first + t) * groups + group;
                    let scaled = S::mul(scale, S::splat(*task.scales.as_ptr().add(at)));
                    totals[t] = S::fma(S::to_f(sums[t]), scaled, totals[t]);
                    if C::HAS_BIAS {
                        totals[t] = S::fma(bias, S::splat(*task.sums.as_ptr().add(at)), totals[t]);
                    }
                }
            }
            for t in 0..T {
                S::store(out.add(t * task.stride), totals[t]);
            }
        }
    }
}

impl<S: Simd, C: Codes, P: Parts> Product<S> for Oracle<C, P> {
    #[inline(always)]
    unsafe fn tokens<const T: usize, const CHAINS: usize>(
        task: &BlockTask<'_>,
        block: *const u8,
        first: usize,
        out: *mut f32,
    ) {
        // SAFETY: `Kernels::oracle` checked the lengths; the caller has the instruction set.
        unsafe {
            let words = task.group_size * C::BITS / 32;
            for t in 0..T {
                let x = task.floats.as_ptr().add((first + t) * task.columns);
                let mut total = S::splat(0.0);
                for group in 0..task.groups() {
                    let base = block.add(group * task.group_bytes);
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
                S::store(out.add(t * task.stride), total);
            }
        }
    }
}

impl<S: Simd, P: Parts> Product<S> for Dense<P> {
    #[inline(always)]
    unsafe fn tokens<const T: usize, const CHAINS: usize>(
        task: &BlockTask<'_>,
        block: *const u8,
        first: usize,
        out: *mut f32,
    ) {
        // SAFETY: `Kernels::dense` checked the lengths; the caller has the instruction set.
        unsafe {
            let columns = task.columns;
            // One chain a token, however many there are: the same sums bit by bit whatever comes at once.
            let mut totals = [S::splat(0.0); T];
            for column in 0..columns {
                let weights = P::load::<S>(block.add(column * S::LANES * P::SIZE));
                for t in 0..T {
                    let x = *task.floats.as_ptr().add((first + t) * columns + column);
                    totals[t] = S::fma(weights, S::splat(x), totals[t]);
                }
            }
            for t in 0..T {
                S::store(out.add(t * task.stride), totals[t]);
            }
        }
    }
}

/// `T` tokens from `first` on times all blocks: the tokens' activations stay in the first cache while the blocks, which fit
/// in the second, go by.
#[inline(always)]
unsafe fn over_blocks<S: Simd, K: Product<S>, const T: usize, const CHAINS: usize>(
    task: &BlockTask<'_>,
    first: usize,
    out: *mut f32,
) {
    // SAFETY: as `products`.
    unsafe {
        let to = out.add(first * task.stride);
        for (idx, block) in task.blocks.chunks_exact(task.block_bytes).enumerate() {
            K::tokens::<T, CHAINS>(task, block.as_ptr(), first, to.add(idx * S::LANES));
        }
    }
}

/// All tokens times all blocks. Sums are whole numbers, or added up in one order: equal however tokens come together.
#[inline(always)]
pub(super) unsafe fn products<S: Simd, K: Product<S>>(task: &BlockTask<'_>, out: *mut f32) {
    // SAFETY: `Kernels` checked the lengths; the caller has the instruction set and gives room for the results.
    unsafe {
        let mut token = 0;
        // Half the registers hold half the tokens.
        while S::LANES == 16 && token + TOKENS_MAX <= task.tokens {
            over_blocks::<S, K, TOKENS_MAX, 1>(task, token, out);
            token += TOKENS_MAX;
        }
        while S::LANES == 16 && token + 8 <= task.tokens {
            over_blocks::<S, K, 8, 2>(task, token, out);
            token += 8;
        }
        // A few tokens, as a draft has, share each load of weights.
        while token + 4 <= task.tokens {
            if S::IS_FUSED {
                over_blocks::<S, K, 4, 2>(task, token, out);
            } else {
                over_blocks::<S, K, 4, 1>(task, token, out);
            }
            token += 4;
        }
        if token + 2 <= task.tokens {
            over_blocks::<S, K, 2, 2>(task, token, out);
            token += 2;
        }
        if token < task.tokens {
            over_blocks::<S, K, 1, 4>(task, token, out);
        }
    }
}
