//! The vector operations that the kernels are written in, for each instruction set, and as plain arrays for the oracle.
//!
//! The kernels are generic over [`Simd`] and inlined into one entry point per instruction set (see `kernels.rs`), which
//! is where the target features are enabled: every method here must be inlined into such a function to be worth calling.

#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "aarch64")]
pub(super) use self::neon::Neon;

/// Vectors of `LANES` 32-bit lanes.
///
/// # Safety
/// Every method needs the instruction set of its implementation; pointers must be valid for `LANES` elements.
pub(super) unsafe trait Simd: Copy {
    /// How many 32-bit lanes a vector has.
    const LANES: usize;
    /// Whether a product waits for the sum before it: then it takes more chains of sums to keep the multipliers busy.
    const IS_FUSED: bool;
    /// Integers of 32 bits.
    type I: Copy;
    /// Floats.
    type F: Copy;
    /// A pair of 16-bit numbers a lane, in memory the low and the high half of a word.
    type Pairs: Copy;

    unsafe fn load_pairs(from: *const u32) -> Self::Pairs;
    unsafe fn splat_pairs(value: u16) -> Self::Pairs;
    unsafe fn and(a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// Each number, taken as unsigned, shifted by `BITS`.
    unsafe fn shr<const BITS: u32>(a: Self::Pairs) -> Self::Pairs;
    /// `acc + first(a)·b[0] + second(a)·b[1]`, all signed; `b` is valid for two elements, the same for every lane.
    unsafe fn dot_pairs(acc: Self::I, a: Self::Pairs, b: *const i16) -> Self::I;
    /// The floats of 4 bits (E2M1) that the numbers, which are below 16, mean, doubled: whole numbers from -12 to 12.
    unsafe fn doubled_e2m1(a: Self::Pairs) -> Self::Pairs;
    /// The first numbers, signed.
    unsafe fn first(a: Self::Pairs) -> Self::I;
    /// The second numbers, signed.
    unsafe fn second(a: Self::Pairs) -> Self::I;

    unsafe fn splat_i(value: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// Each lane divided by two to the power of `BITS`, towards minus infinity.
    unsafe fn shr_i<const BITS: u32>(a: Self::I) -> Self::I;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Rounds to the nearest integer.
    unsafe fn round(a: Self::F) -> Self::I;
    /// Writes each lane as 16 bits; lanes are within i16.
    unsafe fn store_i16(to: *mut i16, a: Self::I);
    /// 2 to the power of each lane, which is within -126..=127.
    unsafe fn exp2(a: Self::I) -> Self::F;

    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn load_f16(from: *const u16) -> Self::F;
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    unsafe fn store(to: *mut f32, a: Self::F);
    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a·b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger ones; where one is a NaN, either.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller ones; where one is a NaN, either.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sum(a: Self::F) -> f32;
    unsafe fn largest(a: Self::F) -> f32;
}

/// The values of E2M1 doubled, by their codes (OCP Microscaling Formats, table 5).
pub(super) const DOUBLED_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Eight lanes as plain arrays: what the instruction sets are tested against, and what runs where there is none.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

fn zip<T: Copy, R>(a: [T; 8], b: [T; 8], f: impl Fn(T, T) -> R) -> [R; 8] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

// SAFETY: needs no instruction set; pointers are valid by the trait's contract.
unsafe impl Simd for Scalar {
    const LANES: usize = 8;
    const IS_FUSED: bool = false;
    type I = [i32; 8];
    type F = [f32; 8];
    type Pairs = [i32; 8];

    unsafe fn load_pairs(from: *const u32) -> Self::Pairs {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { from.cast::<[i32; 8]>().read_unaligned() }
    }
    unsafe fn splat_pairs(value: u16) -> Self::Pairs {
        [i32::from(value) * 0x1_0001; 8]
    }
    unsafe fn and(a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        zip(a, b, |a, b| a & b)
    }
    unsafe fn shr<const BITS: u32>(a: Self::Pairs) -> Self::Pairs {
        a.map(|a| (a as u32 >> 16 >> BITS << 16 | (a as u32 & 0xFFFF) >> BITS) as i32)
    }
    unsafe fn dot_pairs(acc: Self::I, a: Self::Pairs, b: *const i16) -> Self::I {
        // SAFETY: valid for 2 elements by the trait's contract.
        let b = unsafe { b.cast::<i32>().read_unaligned() };
        zip(acc, a, |acc, a| {
            let first = i32::from(a as i16) * i32::from(b as i16);
            acc.wrapping_add(first).wrapping_add((a >> 16).wrapping_mul(b >> 16))
        })
    }
    unsafe fn doubled_e2m1(a: Self::Pairs) -> Self::Pairs {
        let value = |code: i32| i32::from(DOUBLED_E2M1[(code & 15) as usize]);
        a.map(|a| value(a >> 16) << 16 | value(a) & 0xFFFF)
    }
    unsafe fn first(a: Self::Pairs) -> Self::I {
        a.map(|a| i32::from(a as i16))
    }
    unsafe fn second(a: Self::Pairs) -> Self::I {
        a.map(|a| a >> 16)
    }
    unsafe fn splat_i(value: i32) -> Self::I {
        [value; 8]
    }
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    unsafe fn shr_i<const BITS: u32>(a: Self::I) -> Self::I {
        a.map(|a| a >> BITS)
    }
    unsafe fn to_f(a: Self::I) -> Self::F {
        a.map(|a| a as f32)
    }
    unsafe fn round(a: Self::F) -> Self::I {
        a.map(|a| a.round_ties_even() as i32)
    }
    unsafe fn store_i16(to: *mut i16, a: Self::I) {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { to.cast::<[i16; 8]>().write_unaligned(a.map(|a| a as i16)) }
    }
    unsafe fn exp2(a: Self::I) -> Self::F {
        a.map(|a| f32::from_bits(((a + 127) as u32) << 23))
    }
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    unsafe fn store(to: *mut f32, a: Self::F) {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(a) }
    }
    unsafe fn splat(value: f32) -> Self::F {
        [value; 8]
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, f32::max)
    }
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, f32::min)
    }
    unsafe fn sum(a: Self::F) -> f32 {
        a.iter().sum()
    }
    unsafe fn largest(a: Self::F) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// AVX2 with FMA and F16C: eight lanes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// The same with AVX-VNNI, which multiplies and adds at once: Intel's since 2021, AMD's since 2024, with AVX-512 or without.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct AvxVnni;

/// AVX-512 (F, BW, VL) with VNNI: sixteen lanes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// Methods that are one expression of intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)? = $body:expr;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($argument: $kind),*) $(-> $result)? {
                // SAFETY: the caller has the instruction set, and pointers are valid, by the trait's contract.
                unsafe { $body }
            }
        )*
    };
}

#[cfg(target_arch = "aarch64")]
mod neon;

/// The operations in eight lanes of AVX2, FMA and F16C; the product is the type's own.
#[cfg(target_arch = "x86_64")]
macro_rules! eight_lanes {
    ($name:ident, $is_fused:literal, $dot_pairs:item) => {
        // SAFETY: the intrinsics are those of AVX2, FMA and F16C, and of the product.
        unsafe impl Simd for $name {
            const LANES: usize = 8;
            const IS_FUSED: bool = $is_fused;
            type I = __m256i;
            type F = __m256;
            type Pairs = __m256i;

            $dot_pairs

            #[inline(always)]
            unsafe fn shr<const BITS: u32>(a: __m256i) -> __m256i {
                // SAFETY: the caller has AVX2.
                unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(BITS as i32)) }
            }
            #[inline(always)]
            unsafe fn shr_i<const BITS: u32>(a: __m256i) -> __m256i {
                // SAFETY: the caller has AVX2.
                unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
            }
            intrinsics! {
                load_pairs(from: *const u32) -> __m256i = _mm256_loadu_si256(from.cast());
                splat_pairs(value: u16) -> __m256i = _mm256_set1_epi16(value as i16);
                splat_i(value: i32) -> __m256i = _mm256_set1_epi32(value);
                and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
                add_i(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
                doubled_e2m1(a: __m256i) -> __m256i = {
                    // Looked up in the low bytes, then sign-extended; the high bytes are overwritten by that.
                    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(DOUBLED_E2M1.as_ptr().cast()));
                    _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(_mm256_shuffle_epi8(table, a)))
                };
                first(a: __m256i) -> __m256i = _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(a));
                second(a: __m256i) -> __m256i = _mm256_srai_epi32::<16>(a);
                to_f(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
                round(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
                store_i16(to: *mut i16, a: __m256i) = {
                    let packed = _mm256_packs_epi32(a, a);
                    let ordered = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
                    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(ordered));
                };
                exp2(a: __m256i) -> __m256 =
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(a, _mm256_set1_epi32(127))));
                load(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
                load_f16(from: *const u16) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
                load_bf16(from: *const u16) -> __m256 = {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                };
                store(to: *mut f32, a: __m256) = _mm256_storeu_ps(to, a);
                splat(value: f32) -> __m256 = _mm256_set1_ps(value);
                add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
                mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
                div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
                fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
                max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
                min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
                sum(a: __m256) -> f32 = {
                    let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
                };
                largest(a: __m256) -> f32 = {
                    let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                    _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
                };
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
eight_lanes! {
    Avx2,
    false,
    #[inline(always)]
    unsafe fn dot_pairs(acc: __m256i, a: __m256i, b: *const i16) -> __m256i {
        // SAFETY: the caller has AVX2 and may read two elements.
        unsafe {
            let b = _mm256_set1_epi32(b.cast::<i32>().read_unaligned());
            _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
        }
    }
}

#[cfg(target_arch = "x86_64")]
eight_lanes! {
    AvxVnni,
    true,
    // As an instruction of its own for the same reason as below.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn dot_pairs(mut acc: __m256i, a: __m256i, b: *const i16) -> __m256i {
        // SAFETY: the caller has AVX-VNNI and may read two elements; the instruction changes one register.
        unsafe {
            let b = _mm256_set1_epi32(b.cast::<i32>().read_unaligned());
            std::arch::asm!(
                "{{vex}} vpdpwssd {acc}, {a}, {b}",
                acc = inout(ymm_reg) acc,
                a = in(ymm_reg) a,
                b = in(ymm_reg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }
}

// SAFETY: the intrinsics are those of AVX-512 F, BW, VL and VNNI.
#[cfg(target_arch = "x86_64")]
unsafe impl Simd for Avx512 {
    const LANES: usize = 16;
    const IS_FUSED: bool = true;
    type I = __m512i;
    type F = __m512;
    type Pairs = __m512i;

    #[inline(always)]
    unsafe fn shr<const BITS: u32>(a: __m512i) -> __m512i {
        // SAFETY: the caller has AVX-512.
        unsafe { _mm512_srli_epi16::<BITS>(a) }
    }
    #[inline(always)]
    unsafe fn shr_i<const BITS: u32>(a: __m512i) -> __m512i {
        // SAFETY: the caller has AVX-512.
        unsafe { _mm512_srai_epi32::<BITS>(a) }
    }
    // Of the intrinsic LLVM makes a multiplication and an addition, which it takes for faster, and a load of its own for
    // the pair. The instruction that loads as well takes less: 97 where two take 72 billion products a second (Zen 4, eight
    // tokens, of 115 that the multiplier does). Its target feature is for the registers' names.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn dot_pairs(mut acc: __m512i, a: __m512i, b: *const i16) -> __m512i {
        // SAFETY: the caller has VNNI and may read two elements; the instruction does that and changes one register.
        unsafe {
            std::arch::asm!(
                "vpdpwssd {acc}, {a}, dword ptr [{b}]{{1to16}}",
                acc = inout(zmm_reg) acc,
                a = in(zmm_reg) a,
                b = in(reg) b,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        acc
    }
    intrinsics! {
        load_pairs(from: *const u32) -> __m512i = _mm512_loadu_si512(from.cast());
        splat_pairs(value: u16) -> __m512i = _mm512_set1_epi16(value as i16);
        splat_i(value: i32) -> __m512i = _mm512_set1_epi32(value);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        doubled_e2m1(a: __m512i) -> __m512i = {
            // Looked up in the low bytes, then sign-extended; the high bytes are overwritten by that.
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(DOUBLED_E2M1.as_ptr().cast()));
            _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(_mm512_shuffle_epi8(table, a)))
        };
        first(a: __m512i) -> __m512i = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(a));
        second(a: __m512i) -> __m512i = _mm512_srai_epi32::<16>(a);
        to_f(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        round(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        store_i16(to: *mut i16, a: __m512i) = _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(a));
        exp2(a: __m512i) -> __m512 =
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(a, _mm512_set1_epi32(127))));
        load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        load_f16(from: *const u16) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
        load_bf16(from: *const u16) -> __m512 = {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        };
        store(to: *mut f32, a: __m512) = _mm512_storeu_ps(to, a);
        splat(value: f32) -> __m512 = _mm512_set1_ps(value);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        // Not `_mm512_reduce_add_ps`: the compiler calls that one out of line, with the vector in memory.
        sum(a: __m512) -> f32 = {
            let upper = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b11_10_11_10>(a, a));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), upper);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        largest(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
    }
}

/// Asks for a cache line, for all caches; nothing is read, wherever it lies.
#[inline(always)]
pub(super) fn prefetch_near(address: usize) {
    // SAFETY: the instruction is part of the architecture and reads nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The same without the first-level cache.
#[inline(always)]
pub(super) fn prefetch(address: usize) {
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that an instruction set makes of 16 lanes, as bits.
    unsafe fn everything<S: Simd>(words: &[u32; 16], floats: &[f32; 16], halves: &[u16; 16]) -> Vec<[f32; 16]> {
        let mut all = vec![[0.0; 16]; 20];
        for at in (0..16).step_by(S::LANES) {
            // SAFETY: the arrays have 16 elements, and the caller has the instruction set.
            unsafe {
                let pairs = S::load_pairs(words.as_ptr().add(at));
                let nibbles = S::and(S::shr::<4>(pairs), S::splat_pairs(15));
                let highest = S::shr::<12>(pairs);
                let doubled = S::doubled_e2m1(nibbles);
                let x = S::load(floats.as_ptr().add(at));
                let (y, rounded) = (S::splat(1.5), S::round(x));
                let mut stored = [0_i16; 16];
                S::store_i16(stored.as_mut_ptr(), rounded);
                let dot = S::dot_pairs(S::splat_i(-7), pairs, [-3_i16, 1_001].as_ptr());
                let results = [
                    S::to_f(S::first(pairs)),
                    S::to_f(S::second(pairs)),
                    S::to_f(S::first(nibbles)),
                    S::to_f(S::second(nibbles)),
                    S::to_f(S::first(doubled)),
                    S::to_f(S::second(doubled)),
                    S::to_f(dot),
                    S::to_f(S::add_i(dot, rounded)),
                    S::to_f(rounded),
                    S::exp2(rounded),
                    S::load_f16(halves.as_ptr().add(at)),
                    S::load_bf16(halves.as_ptr().add(at)),
                    S::div(S::mul(S::add(x, y), x), y),
                    S::fma(x, S::splat(0.25), y),
                    S::max(S::min(x, S::splat(30.0)), S::splat(-30.5)),
                    S::to_f(S::first(highest)),
                    S::to_f(S::second(highest)),
                    S::to_f(S::shr_i::<4>(dot)),
                    S::splat(S::sum(S::to_f(S::first(nibbles))) + if at == 0 { 0.0 } else { all[18][0] }),
                ];
                for (all, result) in all.iter_mut().zip(results) {
                    S::store(all.as_mut_ptr().add(at), result);
                }
                let largest = S::largest(x).max(if at == 0 { f32::NEG_INFINITY } else { all[19][0] });
                all[19] = [largest; 16];
                let total = all[18][at];
                all[18] = [total; 16];
                assert!(stored[..S::LANES].iter().zip(&all[8][at..]).all(|(a, b)| f32::from(*a) == *b));
            }
        }
        all
    }

    /// Every operation of every instruction set gives the same bits as plain arrays do.
    #[test]
    fn instruction_sets_compute_what_arrays_do() {
        let mut seed = 1_u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 8 ^ seed << 13
        };
        for _ in 0..500 {
            let words: [u32; 16] = std::array::from_fn(|_| next());
            // Quarters, so that ties are rounded and sums are exact; halves of all kinds but NaNs, whose bits may differ.
            let floats: [f32; 16] = std::array::from_fn(|_| (next() % 401) as f32 / 4.0 - 50.0);
            let halves = std::array::from_fn(|_| next() as u16)
                .map(|half| if half & 0x7C00 == 0x7C00 { half & !0x3FF } else { half });
            // SAFETY: instruction sets are asked for, or part of the architecture.
            unsafe {
                let expected = everything::<Scalar>(&words, &floats, &halves);
                let check = |found: Vec<[f32; 16]>| {
                    for (operation, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        assert_eq!(
                            found.map(f32::to_bits),
                            expected.map(f32::to_bits),
                            "{operation}: {found:?} {expected:?}"
                        );
                    }
                };
                #[cfg(target_arch = "aarch64")]
                check(everything::<Neon>(&words, &floats, &halves));
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                {
                    check(everything::<Avx2>(&words, &floats, &halves));
                    if is_x86_feature_detected!("avxvnni") {
                        check(everything::<AvxVnni>(&words, &floats, &halves));
                    }
                }
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    check(everything::<Avx512>(&words, &floats, &halves));
                }
            }
        }
    }
}
