//! What goes element by element: exponentials, gates, norms, quantisation.

#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use super::Simd;

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

/// e to the power of each lane, to about 2 units in the last place (the polynomial of Cephes' `expf`).
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
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

/// What a gate does with a vector of each; a trait and not a closure, which would not be compiled for the instruction set.
trait Gate: Copy {
    unsafe fn apply<S: Simd>(self, gate: S::F, up: S::F) -> S::F;
}

/// Applies a gate to all elements, the last few of them in a vector that is filled up.
#[inline(always)]
unsafe fn gated<S: Simd, G: Gate>(how: G, gate: &mut [f32], up: &[f32]) {
    // SAFETY: `Kernels` checked that the lengths are equal; the caller has the instruction set.
    unsafe {
        let whole = gate.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let to = gate.as_mut_ptr().add(at);
            S::store(to, how.apply::<S>(S::load(to), S::load(up.as_ptr().add(at))));
        }
        if whole < gate.len() {
            let (mut last_gate, mut last_up) = ([0.0; 16], [0.0; 16]);
            let rest = gate.len() - whole;
            last_gate[..rest].copy_from_slice(&gate[whole..]);
            last_up[..rest].copy_from_slice(&up[whole..]);
            let gated = how.apply::<S>(S::load(last_gate.as_ptr()), S::load(last_up.as_ptr()));
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

#[derive(Clone, Copy)]
struct Silu;

impl Gate for Silu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(self, x: S::F, up: S::F) -> S::F {
        // SAFETY: the caller has the instruction set.
        unsafe { S::mul(swish::<S>(x, 1.0), up) }
    }
}

/// `0.5 · x · (1 + tanh(y))` is `x · sigmoid(2 · y)`.
#[derive(Clone, Copy)]
struct Gelu;

impl Gate for Gelu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(self, x: S::F, up: S::F) -> S::F {
        const FACTOR: f32 = 1.595_769; // 2 · sqrt(2 / pi)
        // SAFETY: the caller has the instruction set.
        unsafe {
            let y = S::mul(x, S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0)));
            let below = S::add(exp::<S>(S::mul(y, S::splat(-FACTOR))), S::splat(1.0));
            S::mul(S::div(x, below), up)
        }
    }
}

#[derive(Clone, Copy)]
struct ClippedSwiglu {
    alpha: f32,
    limit: f32,
}

impl Gate for ClippedSwiglu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(self, given: S::F, given_up: S::F) -> S::F {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let x = S::min(given, S::splat(self.limit));
            let up = S::max(S::min(given_up, S::splat(self.limit)), S::splat(-self.limit));
            // A minimum forgets what is no number; zero times it doesn't.
            let poison = S::fma(given, S::splat(0.0), S::mul(given_up, S::splat(0.0)));
            S::fma(swish::<S>(x, self.alpha), S::add(up, S::splat(1.0)), poison)
        }
    }
}

#[inline(always)]
pub(super) unsafe fn silu_gate<S: Simd>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: as `gated`.
    unsafe { gated::<S, _>(Silu, gate, up) }
}

#[inline(always)]
pub(super) unsafe fn gelu_gate<S: Simd>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: as `gated`.
    unsafe { gated::<S, _>(Gelu, gate, up) }
}

#[inline(always)]
pub(super) unsafe fn clipped_swiglu<S: Simd>(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    // SAFETY: as `gated`.
    unsafe { gated::<S, _>(ClippedSwiglu { alpha, limit }, gate, up) }
}

#[inline(always)]
pub(super) unsafe fn rms_norm<S: Simd>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    // SAFETY: `Kernels::rms_norm` checked the lengths; the caller has the instruction set.
    unsafe {
        let mean = dot::<S>(x.as_ptr(), x.as_ptr(), x.len()) / x.len() as f32;
        let factor = 1.0 / (mean + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

#[inline(always)]
pub(super) unsafe fn quantise<S: Simd>(group: &[f32], codes: &mut [i16]) -> (f32, f32) {
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
