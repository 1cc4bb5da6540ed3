//! The inner loops, generic over the instruction set, and the table of entry points chosen once at load.

// Registers are indexed side by side with pointers.
#![allow(clippy::needless_range_loop)]
#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use half::f16;

#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512, AvxVnni};
use super::simd::{Scalar, Simd};
use crate::engine::checkpoint::Dtype;

#[macro_use]
mod entry_points;
mod elements;
mod products;
mod attention;
mod tiles;

use self::attention::attend;
use self::elements::{clipped_swiglu, gelu_gate, quantise, rms_norm, silu_gate};
use self::products::{Brain, Bytes, Dense, E2m1, Half, Integer, Nibbles, Oracle, Parts, Single, products};
use self::tiles::attend_tile;
pub(super) use self::tiles::{TILE, TileTask};

/// Neighbouring blocks of rows times some tokens.
#[derive(Clone, Copy)]
pub(super) struct BlockTask<'a> {
    /// The blocks, in the layout of `matrix.rs`.
    pub(super) blocks: &'a [u8],
    pub(super) block_bytes: usize,
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
    pub(super) tokens: usize,
    /// How far the results of one token lie from those of the next; those of one block from the next, `lanes`.
    pub(super) stride: usize,
}

impl BlockTask<'_> {
    fn groups(&self) -> usize {
        self.columns / self.group_size
    }

    /// Asserts that quantised activations are as long as the kernels take them to be, and blocks too.
    fn check_codes(&self) {
        assert!(self.block_bytes >= self.groups() * self.group_bytes);
        assert!(self.codes.len() >= self.tokens * self.columns);
        assert!(self.scales.len() >= self.tokens * self.groups() && self.sums.len() >= self.tokens * self.groups());
    }

    /// The same of float activations.
    fn check_floats(&self) {
        assert!(self.block_bytes >= self.groups() * self.group_bytes);
        assert!(self.floats.len() >= self.tokens * self.columns);
    }
}

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

type BlockKernel = unsafe fn(&BlockTask<'_>, *mut f32);
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
    /// All kernels that this processor runs, the fastest first; those without vector instructions are last.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if has_avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(avx512::KERNELS);
            }
            if has_avx2 && is_x86_feature_detected!("avxvnni") {
                all.push(avx_vnni::KERNELS);
            }
            if has_avx2 {
                all.push(avx2::KERNELS);
            }
        }
        all.extend([
            // Every 64-bit ARM processor has NEON.
            #[cfg(target_arch = "aarch64")]
            neon::KERNELS,
            scalar::KERNELS,
        ]);
        all
    }

    /// Codes times quantised activations, written to `out`.
    ///
    /// # Safety
    /// `out` is valid for the results of all blocks and tokens, as `task.stride` lays them out, and nobody else uses them
    /// meanwhile. The same holds for the other products.
    pub(super) unsafe fn integer(&self, bits: usize, parts: Dtype, task: &BlockTask<'_>, out: *mut f32) {
        task.check_codes();
        // SAFETY: `all` saw the instruction set, and the lengths were just checked; `out` by the caller.
        unsafe { self.integer[usize::from(bits == 8)][parts_idx(parts)](task, out) }
    }

    /// Codes times float activations: slow and exact, what the others are measured against.
    ///
    /// # Safety
    /// As for [`Self::integer`].
    pub(super) unsafe fn oracle(&self, bits: usize, parts: Dtype, task: &BlockTask<'_>, out: *mut f32) {
        task.check_floats();
        // SAFETY: as above.
        unsafe { self.oracle[usize::from(bits == 8)][parts_idx(parts)](task, out) }
    }

    /// MXFP4's codes times quantised activations.
    ///
    /// # Safety
    /// As for [`Self::integer`].
    pub(super) unsafe fn integer_mxfp4(&self, task: &BlockTask<'_>, out: *mut f32) {
        task.check_codes();
        // SAFETY: as above.
        unsafe { (self.integer_mxfp4)(task, out) }
    }

    /// MXFP4's codes times float activations.
    ///
    /// # Safety
    /// As for [`Self::integer`].
    pub(super) unsafe fn oracle_mxfp4(&self, task: &BlockTask<'_>, out: *mut f32) {
        task.check_floats();
        // SAFETY: as above.
        unsafe { (self.oracle_mxfp4)(task, out) }
    }

    /// Float weights times float activations.
    ///
    /// # Safety
    /// As for [`Self::integer`].
    pub(super) unsafe fn dense(&self, dtype: Dtype, task: &BlockTask<'_>, out: *mut f32) {
        assert!(task.block_bytes >= task.columns * self.lanes * dtype.size());
        assert!(task.floats.len() >= task.tokens * task.columns);
        // SAFETY: as above.
        unsafe { self.dense[parts_idx(dtype)](task, out) }
    }

    /// Quantises one group to 16 bits: its scale, and scale times the sum of the codes.
    pub(super) fn quantise(&self, group: &[f32], codes: &mut [i16]) -> (f32, f32) {
        assert!(group.len() == codes.len() && group.len().is_multiple_of(16));
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
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
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
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
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
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
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
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
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
        unsafe { (self.tile_half)(task, keys, values, scores, out) }
    }

    /// `silu(gate) · up` in place.
    pub(super) fn silu_gate(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
        unsafe { (self.silu_gate)(gate, up) }
    }

    /// `gelu(gate) · up` in place, by tanh.
    pub(super) fn gelu_gate(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
        unsafe { (self.gelu_gate)(gate, up) }
    }

    /// gpt-oss's gate in place; see `Backend::clipped_swiglu`.
    pub(super) fn clipped_swiglu(&self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
        unsafe { (self.clipped_swiglu)(gate, up, alpha, limit) }
    }

    /// Root-mean-square norm of one row.
    pub(super) fn rms_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: `all` saw the instruction set, and the lengths were just checked.
        unsafe { (self.rms_norm)(x, weight, epsilon, out) }
    }
}

entry_points!(scalar, Scalar, "scalar");
#[cfg(target_arch = "x86_64")]
entry_points!(avx2, Avx2, "AVX2", #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
entry_points!(avx_vnni, AvxVnni, "AVX-VNNI", #[target_feature(enable = "avx2,fma,f16c,avxvnni")]);
#[cfg(target_arch = "x86_64")]
entry_points!(avx512, Avx512, "AVX-512 VNNI", #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
entry_points!(neon, Neon, "NEON", #[target_feature(enable = "neon")]);
