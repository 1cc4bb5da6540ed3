//! What mlx-rs 0.33 lacks, by the C functions below it: arrays out of bytes, plain slices, quantisation modes.
//!
//! The only unsafe code over MLX. Its C functions report a C++ exception as a status and leave their result empty; none
//! keeps a pointer that it is given. Before any of them runs, [`super::Mlx::new`] has had mlx-rs install its error
//! handler: without one, MLX ends the process.

#![expect(unsafe_code, reason = "mlx-sys is C")]

use std::ffi::CStr;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys as c;

/// Room for the bytes of one tensor, at an address that every element type allows.
pub(super) struct Buffer {
    words: Vec<u64>,
    len: usize,
    filled: usize,
}

impl Buffer {
    /// Room for `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len, filled: 0 }
    }

    /// Appends bytes; those past the end are dropped. Says whether the buffer is full.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        // SAFETY: the words are initialised memory of at least `len` bytes, and any bytes make valid words.
        let room = unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), self.len) };
        let taken = bytes.len().min(self.len - self.filled);
        room[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        self.filled == self.len
    }

    /// An array of these bytes, which MLX copies: little-endian, as they are in the file.
    pub(super) fn array(&self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let elements = shape.iter().try_fold(1_usize, |n, dim| n.checked_mul(usize::try_from(*dim).ok()?));
        let size = match dtype {
            Dtype::Uint8 => 1,
            Dtype::Float16 | Dtype::Bfloat16 => 2,
            Dtype::Uint32 | Dtype::Float32 => 4,
            other => return Err(Exception::custom(format!("no weights are of type {other:?}"))),
        };
        if elements.and_then(|n| n.checked_mul(size)) != Some(self.len) {
            return Err(Exception::custom(format!("{} bytes aren't a tensor of shape {shape:?}", self.len)));
        }
        // SAFETY: MLX reads the elements of the shape, which are the buffer's bytes (checked above) and aligned for 8.
        let array = unsafe { Array::from_raw_data(self.words.as_ptr().cast(), shape, dtype) };
        if array.as_ptr().ctx.is_null() {
            return Err(Exception::custom(format!("no memory for a tensor of {} bytes", self.len)));
        }
        Ok(array)
    }
}

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packing {
    pub(super) group_size: i32,
    pub(super) bits: i32,
    pub(super) mode: &'static CStr,
}

/// A packed matrix, or a stack of them.
pub(super) struct Packed {
    pub(super) packing: Packing,
    pub(super) weight: Array,
    pub(super) scales: Array,
    /// Affine packing has them, MXFP4 doesn't.
    pub(super) biases: Option<Array>,
}

impl Packed {
    fn biases(&self) -> c::mlx_array {
        pointer(self.biases.as_ref())
    }

    /// The rows that `chosen` names, unpacked.
    pub(super) fn rows(&self, chosen: &Array) -> Result<Array> {
        let Packing { group_size, bits, mode } = self.packing;
        let (weight, scales) = (self.weight.take_axis(chosen, 0)?, self.scales.take_axis(chosen, 0)?);
        let biases = self.biases.as_ref().map(|biases| biases.take_axis(chosen, 0)).transpose()?;
        let dtype = c::mlx_optional_dtype { value: c::mlx_dtype__MLX_FLOAT32, has_value: false };
        operation("dequantize", |out, stream| {
            // SAFETY: the arrays live through the call, `mode` ends with a NUL, and `out` is an empty array of ours.
            unsafe {
                c::mlx_dequantize(
                    out,
                    weight.as_ptr(),
                    scales.as_ptr(),
                    pointer(biases.as_ref()),
                    some(group_size),
                    some(bits),
                    mode.as_ptr(),
                    pointer(None),
                    dtype,
                    stream,
                )
            }
        })
    }
}

/// `x` times the transposed matrix.
pub(super) fn quantized_matmul(x: &Array, matrix: &Packed) -> Result<Array> {
    let Packing { group_size, bits, mode } = matrix.packing;
    operation("quantized_matmul", |out, stream| {
        // SAFETY: the arrays live through the call, `mode` ends with a NUL, and `out` is an empty array of ours.
        unsafe {
            c::mlx_quantized_matmul(
                out,
                x.as_ptr(),
                matrix.weight.as_ptr(),
                matrix.scales.as_ptr(),
                matrix.biases(),
                true,
                some(group_size),
                some(bits),
                mode.as_ptr(),
                stream,
            )
        }
    })
}

/// Products of the rows of `x` that `rows` names, or of all of them one after another, and the transposed matrices that
/// `chosen` names; `sorted` promises that `chosen` is.
pub(super) fn gather_qmm(
    x: &Array,
    stack: &Packed,
    rows: Option<&Array>,
    chosen: &Array,
    sorted: bool,
) -> Result<Array> {
    let Packing { group_size, bits, mode } = stack.packing;
    operation("gather_qmm", |out, stream| {
        // SAFETY: as above.
        unsafe {
            c::mlx_gather_qmm(
                out,
                x.as_ptr(),
                stack.weight.as_ptr(),
                stack.scales.as_ptr(),
                stack.biases(),
                pointer(rows),
                chosen.as_ptr(),
                true,
                some(group_size),
                some(bits),
                mode.as_ptr(),
                sorted,
                stream,
            )
        }
    })
}

/// The elements `start..stop` of each axis.
pub(super) fn slice(x: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let strides = vec![1; start.len()];
    operation("slice", |out, stream| {
        // SAFETY: the arrays live through the call, and each list goes with its own length.
        unsafe {
            c::mlx_slice(
                out,
                x.as_ptr(),
                start.as_ptr(),
                start.len(),
                stop.as_ptr(),
                stop.len(),
                strides.as_ptr(),
                strides.len(),
                stream,
            )
        }
    })
}

/// `x` with the elements `start..stop` of each axis replaced: in place where nobody else holds `x` when it is computed.
pub(super) fn slice_update(x: &Array, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let strides = vec![1; start.len()];
    operation("slice_update", |out, stream| {
        // SAFETY: as above.
        unsafe {
            c::mlx_slice_update(
                out,
                x.as_ptr(),
                update.as_ptr(),
                start.as_ptr(),
                start.len(),
                stop.as_ptr(),
                stop.len(),
                strides.as_ptr(),
                strides.len(),
                stream,
            )
        }
    })
}

fn some(value: i32) -> c::mlx_optional_int {
    c::mlx_optional_int { value, has_value: true }
}

/// An absent array is an empty one.
fn pointer(array: Option<&Array>) -> c::mlx_array {
    // SAFETY: it makes a null handle, and nothing needs to be freed.
    array.map_or_else(|| unsafe { c::mlx_array_new() }, Array::as_ptr)
}

/// Runs a function that makes one array.
fn operation(name: &str, run: impl FnOnce(*mut c::mlx_array, c::mlx_stream) -> i32) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    let mut out = pointer(None);
    let status = run(&raw mut out, stream.as_ptr());
    // SAFETY: the handle is ours alone; the array frees it, also when it is empty.
    let out = unsafe { Array::from_ptr(out) };
    if status == 0 { Ok(out) } else { Err(Exception::custom(format!("`{name}` doesn't take these arrays"))) }
}
