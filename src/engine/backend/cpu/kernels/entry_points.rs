//! The entry points of one instruction set: the macro that makes them of the generic kernels.

/// The entry points of one instruction set: where its target features are enabled and all the above is inlined.
macro_rules! entry_points {
    ($module:ident, $simd:ty, $name:literal $(, #[$feature:meta])?) => {
        mod $module {
            use super::*;

            macro_rules! block {
                ($entry:ident, $product:ty) => {
                    $(#[$feature])?
                    unsafe fn $entry(task: &BlockTask<'_>, out: *mut f32) {
                        // SAFETY: by the caller's contract.
                        unsafe { products::<$simd, $product>(task, out) }
                    }
                };
            }
            block!(integer_4_half, Integer<Nibbles, Half>);
            block!(integer_4_brain, Integer<Nibbles, Brain>);
            block!(integer_4_single, Integer<Nibbles, Single>);
            block!(integer_8_half, Integer<Bytes, Half>);
            block!(integer_8_brain, Integer<Bytes, Brain>);
            block!(integer_8_single, Integer<Bytes, Single>);
            block!(oracle_4_half, Oracle<Nibbles, Half>);
            block!(oracle_4_brain, Oracle<Nibbles, Brain>);
            block!(oracle_4_single, Oracle<Nibbles, Single>);
            block!(oracle_8_half, Oracle<Bytes, Half>);
            block!(oracle_8_brain, Oracle<Bytes, Brain>);
            block!(oracle_8_single, Oracle<Bytes, Single>);
            block!(integer_mxfp4, Integer<E2m1, Brain>);
            block!(oracle_mxfp4, Oracle<E2m1, Brain>);
            block!(dense_half, Dense<Half>);
            block!(dense_brain, Dense<Brain>);
            block!(dense_single, Dense<Single>);

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
            unsafe fn tile_entry(task: &TileTask<'_>, keys: &[f32], values: &[f32], scores: &mut [f32], out: &mut [f32]) {
                // SAFETY: by the caller's contract.
                unsafe { attend_tile::<$simd, Single>(task, keys, values, scores, out) }
            }
            $(#[$feature])?
            unsafe fn tile_half_entry(
                task: &TileTask<'_>,
                keys: &[f32],
                values: &[f16],
                scores: &mut [f32],
                out: &mut [f32],
            ) {
                // SAFETY: by the caller's contract.
                unsafe { attend_tile::<$simd, Half>(task, keys, values, scores, out) }
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
                tile: tile_entry,
                tile_half: tile_half_entry,
                silu_gate: silu_gate_entry,
                gelu_gate: gelu_gate_entry,
                clipped_swiglu: clipped_swiglu_entry,
                rms_norm: rms_norm_entry,
            };
        }
    };
}
