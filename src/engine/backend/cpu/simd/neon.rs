//! NEON, which every 64-bit ARM processor has: for Linux on arm64, and for a Mac that doesn't use MLX.

#![expect(unsafe_code, reason = "kernels need raw vectors")]

use std::arch::aarch64::*;

use super::{DOUBLED_E2M1, Simd};

/// NEON: eight lanes in two registers.
///
/// Pairs lie apart, all first numbers in one register and all second ones in the other; `ld2` loads them so. A multiply
/// that adds (`smlal`, `smlal2`) then takes four rows' weights in one column times one activation, which it picks out of a
/// register by itself, and the sums stay where their rows are: four instructions for eight rows and two columns. With
/// pairs side by side, as on x86, neighbouring products would have to be added: eight instructions (`smull`, `smull2`,
/// `addp`, `add`, twice), or four and twice as many registers of sums. `sdot` takes 8-bit numbers; activations have 16.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon;

type Floats = [float32x4_t; 2];
type Ints = [int32x4_t; 2];
type Pairs = [uint16x8_t; 2];

/// One intrinsic over both registers of each vector.
macro_rules! both {
    ($intrinsic:path, $($vector:expr),+) => {
        [$intrinsic($($vector[0]),+), $intrinsic($($vector[1]),+)]
    };
}

// SAFETY: the intrinsics are those of NEON.
unsafe impl Simd for Neon {
    const LANES: usize = 8;
    const IS_FUSED: bool = true;
    type I = Ints;
    type F = Floats;
    type Pairs = Pairs;

    #[inline(always)]
    unsafe fn shr<const BITS: u32>(a: Pairs) -> Pairs {
        // SAFETY: the caller has NEON. A shift to the left by less than nothing is one to the right.
        unsafe { both!(vshlq_u16, a, [vdupq_n_s16(-(BITS as i16)); 2]) }
    }
    #[inline(always)]
    unsafe fn shr_i<const BITS: u32>(a: Ints) -> Ints {
        // SAFETY: the caller has NEON. As above.
        unsafe { both!(vshlq_s32, a, [vdupq_n_s32(-(BITS as i32)); 2]) }
    }
    intrinsics! {
        load_pairs(from: *const u32) -> Pairs = {
            let apart = vld2q_u16(from.cast());
            [apart.0, apart.1]
        };
        splat_pairs(value: u16) -> Pairs = [vdupq_n_u16(value); 2];
        and(a: Pairs, b: Pairs) -> Pairs = both!(vandq_u16, a, b);
        dot_pairs(acc: Ints, a: Pairs, b: *const i16) -> Ints = {
            let b = vreinterpret_s16_s32(vdup_n_s32(b.cast::<i32>().read_unaligned()));
            let [first, second] = both!(vreinterpretq_s16_u16, a);
            let low = vmlal_lane_s16::<0>(acc[0], vget_low_s16(first), b);
            let high = vmlal_high_lane_s16::<0>(acc[1], first, b);
            [vmlal_lane_s16::<1>(low, vget_low_s16(second), b), vmlal_high_lane_s16::<1>(high, second, b)]
        };
        doubled_e2m1(a: Pairs) -> Pairs = {
            // The high bytes are zero, and so is what they look up; then the low bytes are sign-extended over them.
            let table = vld1q_s8(DOUBLED_E2M1.as_ptr());
            let values = both!(vqtbl1q_s8, [table; 2], both!(vreinterpretq_u8_u16, a));
            let shifted = both!(vshlq_n_s16::<8>, both!(vreinterpretq_s16_s8, values));
            both!(vreinterpretq_u16_s16, both!(vshrq_n_s16::<8>, shifted))
        };
        first(a: Pairs) -> Ints = {
            let first = vreinterpretq_s16_u16(a[0]);
            [vmovl_s16(vget_low_s16(first)), vmovl_high_s16(first)]
        };
        second(a: Pairs) -> Ints = Self::first([a[1], a[0]]);
        splat_i(value: i32) -> Ints = [vdupq_n_s32(value); 2];
        add_i(a: Ints, b: Ints) -> Ints = both!(vaddq_s32, a, b);
        to_f(a: Ints) -> Floats = both!(vcvtq_f32_s32, a);
        round(a: Floats) -> Ints = both!(vcvtnq_s32_f32, a);
        store_i16(to: *mut i16, a: Ints) = vst1q_s16(to, vmovn_high_s32(vmovn_s32(a[0]), a[1]));
        exp2(a: Ints) -> Floats = {
            let exponents = both!(vshlq_n_s32::<23>, both!(vaddq_s32, a, [vdupq_n_s32(127); 2]));
            both!(vreinterpretq_f32_s32, exponents)
        };
        load(from: *const f32) -> Floats = [vld1q_f32(from), vld1q_f32(from.add(4))];
        load_f16(from: *const u16) -> Floats = {
            let halves = vreinterpretq_f16_u16(vld1q_u16(from));
            [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
        };
        load_bf16(from: *const u16) -> Floats = {
            let brains = vld1q_u16(from);
            let wide = [vshll_n_u16::<16>(vget_low_u16(brains)), vshll_high_n_u16::<16>(brains)];
            both!(vreinterpretq_f32_u32, wide)
        };
        store(to: *mut f32, a: Floats) = {
            vst1q_f32(to, a[0]);
            vst1q_f32(to.add(4), a[1]);
        };
        splat(value: f32) -> Floats = [vdupq_n_f32(value); 2];
        add(a: Floats, b: Floats) -> Floats = both!(vaddq_f32, a, b);
        mul(a: Floats, b: Floats) -> Floats = both!(vmulq_f32, a, b);
        div(a: Floats, b: Floats) -> Floats = both!(vdivq_f32, a, b);
        fma(a: Floats, b: Floats, c: Floats) -> Floats = both!(vfmaq_f32, c, a, b);
        max(a: Floats, b: Floats) -> Floats = both!(vmaxq_f32, a, b);
        min(a: Floats, b: Floats) -> Floats = both!(vminq_f32, a, b);
        sum(a: Floats) -> f32 = vaddvq_f32(vaddq_f32(a[0], a[1]));
        largest(a: Floats) -> f32 = vmaxvq_f32(vmaxq_f32(a[0], a[1]));
    }
}
