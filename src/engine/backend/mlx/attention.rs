//! Keys and values in MLX's arrays, and how queries meet them.

use mlx_rs::error::{Exception, Result};
use mlx_rs::fast::{self, ScaledDotProductAttentionMask as Mask};
use mlx_rs::{Array, Dtype, ops};

use super::raw::{self, Buffer};
use crate::engine::backend::Attention;
use crate::engine::checkpoint;
use crate::engine::prefix::LayerState;

/// By how many positions room for keys and values grows.
const STEP: usize = 256;
/// How many positions beyond a window are kept, so that a conversation can go back by a long answer.
const BEYOND_WINDOW: usize = 1_024;

/// Keys and values of one layer, each `[1, kv_heads, room, head_dim]`. They hold the positions `dropped..len`.
pub struct Cache {
    arrays: Option<(Array, Array)>,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    room: usize,
    dropped: usize,
    len: usize,
}

impl Cache {
    pub(super) fn new(attention: &Attention) -> Self {
        let Attention { kv_heads, head_dim, window, .. } = *attention;
        Self { arrays: None, kv_heads, head_dim, window, room: 0, dropped: 0, len: 0 }
    }

    /// Forgets positions. From 0 on, the arrays too: after a failure nothing of it may be left.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if len == 0 {
            (self.arrays, self.room, self.dropped) = (None, 0, 0);
        }
    }

    /// What it holds, as rows `[positions, kv_heads · head_dim]`.
    pub(super) fn snapshot(&self) -> Result<LayerState> {
        let (width, positions) = (self.kv_heads * self.head_dim, self.len - self.dropped);
        let mut state = LayerState {
            dtype: checkpoint::Dtype::F32,
            width,
            first: self.dropped,
            keys: Vec::new(),
            values: Vec::new(),
        };
        let Some((keys, values)) = &self.arrays else { return Ok(state) };
        state.dtype = match keys.dtype() {
            Dtype::Float16 => checkpoint::Dtype::F16,
            Dtype::Bfloat16 => checkpoint::Dtype::BF16,
            _ => checkpoint::Dtype::F32,
        };
        let stop = [1, self.kv_heads as i32, positions as i32, self.head_dim as i32];
        let rows = |array: &Array| -> Result<Vec<u8>> {
            let held = raw::slice(array, &[0, 0, 0, 0], &stop)?;
            let rows = held.transpose_axes(&[0, 2, 1, 3])?.reshape(&[positions as i32, width as i32])?;
            let floats = rows.as_dtype(Dtype::Float32)?.contiguous()?;
            let floats: Vec<f32> = floats.to_vec_exact().map_err(|error| Exception::custom(error.to_string()))?;
            Ok(state.dtype.narrowed(&floats))
        };
        let (keys, values) = (rows(keys)?, rows(values)?);
        Ok(LayerState { keys, values, ..state })
    }

    /// Takes what [`Self::snapshot`] gave, where it is of the same width.
    pub(super) fn restore(&mut self, state: &LayerState) -> Result<bool> {
        self.truncate(0);
        let width = self.kv_heads * self.head_dim;
        let Some(positions) = state.positions().filter(|_| state.width == width) else { return Ok(false) };
        // Positions may only be missing where a window doesn't reach them.
        if state.first > 0 && self.window.is_none_or(|window| positions < window) {
            return Ok(false);
        }
        if positions > 0 {
            let dtype = match state.dtype {
                checkpoint::Dtype::F16 => Dtype::Float16,
                checkpoint::Dtype::BF16 => Dtype::Bfloat16,
                _ => Dtype::Float32,
            };
            let array = |bytes: &[u8]| -> Result<Array> {
                let mut buffer = Buffer::new(bytes.len());
                buffer.push(bytes);
                let shape = [1, positions as i32, self.kv_heads as i32, self.head_dim as i32];
                buffer.array(&shape, dtype)?.transpose_axes(&[0, 2, 1, 3])?.contiguous()
            };
            self.arrays = Some((array(&state.keys)?, array(&state.values)?));
        }
        (self.room, self.dropped, self.len) = (positions, state.first, state.first + positions);
        Ok(true)
    }

    /// The shortest length above 0 whose window is still there.
    pub(super) fn shortest(&self) -> usize {
        match self.window {
            Some(window) if self.dropped > 0 => self.dropped + window - 1,
            _ => 0,
        }
    }

    /// Makes room for `count` positions more: drops those that no window reaches, then grows.
    fn make_room(&mut self, attention: &Attention, keys: &Array, values: &Array, count: usize) -> Result<()> {
        if self.arrays.is_some() && self.len + count <= self.dropped + self.room {
            return Ok(());
        }
        let reach = self.window.map_or(0, |window| self.len.saturating_sub(window + BEYOND_WINDOW));
        let dropped = reach.max(self.dropped);
        let added = count.div_ceil(STEP) * STEP;
        let shape = [1, attention.kv_heads as i32, added as i32, attention.head_dim as i32];
        let grown = |old: Option<&Array>, dtype: Dtype| match old.filter(|_| self.len > dropped) {
            Some(old) => {
                let old = positions(old, attention, dropped - self.dropped, self.len - self.dropped)?;
                ops::concatenate(&[old, ops::zeros_dtype(&shape, dtype)?], 2)
            }
            None => ops::zeros_dtype(&shape, dtype),
        };
        let old = self.arrays.as_ref();
        let grown_keys = grown(old.map(|arrays| &arrays.0), keys.dtype())?;
        let grown_values = grown(old.map(|arrays| &arrays.1), values.dtype())?;
        self.arrays = Some((grown_keys, grown_values));
        self.dropped = dropped;
        self.room = self.len - dropped + added;
        Ok(())
    }

    /// Appends `count` positions of keys and values, each `[1, kv_heads, count, head_dim]`.
    fn append(&mut self, attention: &Attention, keys: &Array, values: &Array, count: usize) -> Result<()> {
        self.make_room(attention, keys, values, count)?;
        if let Some((old_keys, old_values)) = &self.arrays {
            let first = self.len - self.dropped;
            let start = [0, 0, first as i32, 0];
            let stop = [1, attention.kv_heads as i32, (first + count) as i32, attention.head_dim as i32];
            let keys = raw::slice_update(old_keys, keys, &start, &stop)?;
            self.arrays = Some((keys, raw::slice_update(old_values, values, &start, &stop)?));
        }
        self.len += count;
        Ok(())
    }

    /// Appends keys and values and attends: all arrays are `[1, heads, count, head_dim]`.
    pub(super) fn attend(
        &mut self,
        attention: &Attention,
        queries: &Array,
        (keys, values): (&Array, &Array),
        sinks: Option<&Array>,
        count: usize,
    ) -> Result<Array> {
        let first = self.len;
        self.append(attention, keys, values, count)?;
        // What the first query's window doesn't reach, no other's does.
        let start = attention.window.map_or(0, |window| (first + 1).saturating_sub(window)).max(self.dropped);
        let Some((keys, values)) = &self.arrays else { return Ok(queries.clone()) };
        let keys = positions(keys, attention, start - self.dropped, self.len - self.dropped)?;
        let values = positions(values, attention, start - self.dropped, self.len - self.dropped)?;
        let window = attention.window.filter(|window| self.len > *window);
        let window_mask = window.filter(|_| count > 1).map(|window| window_mask(first, count, start, window));
        let mask = match &window_mask {
            Some(mask) => Some(Mask::Array(mask)),
            None => (count > 1).then_some(Mask::Causal),
        };
        fast::scaled_dot_product_attention(queries, &keys, &values, attention.scale, mask, sinks)
    }
}

/// The positions `start..end` of keys or values.
fn positions(array: &Array, attention: &Attention, start: usize, end: usize) -> Result<Array> {
    let stop = [1, attention.kv_heads as i32, end as i32, attention.head_dim as i32];
    raw::slice(array, &[0, 0, start as i32, 0], &stop)
}

/// Which of the keys from position `start` on the `count` queries from position `first` on see: `[count, keys]`.
fn window_mask(first: usize, count: usize, start: usize, window: usize) -> Array {
    let keys = first + count - start;
    let sees = |query: usize, key: usize| key <= query && key + window > query;
    let seen: Vec<bool> =
        (first..first + count).flat_map(|query| (start..start + keys).map(move |key| sees(query, key))).collect();
    Array::from_slice(&seen, &[count as i32, keys as i32])
}
