//! Keys and values in MLX's arrays, and how queries meet them.

use mlx_rs::error::Result;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask as Mask};
use mlx_rs::{Array, Dtype, ops};

use super::raw;
use crate::engine::backend::Attention;

/// By how many positions room for keys and values grows, and how many beyond a window are kept, so that a conversation can
/// go back a little.
const STEP: usize = 256;

/// Keys and values of one layer, each `[1, kv_heads, room, head_dim]`. They hold the positions `dropped..len`.
pub struct Cache {
    arrays: Option<(Array, Array)>,
    window: Option<usize>,
    room: usize,
    dropped: usize,
    len: usize,
}

impl Cache {
    pub(super) fn new(window: Option<usize>) -> Self {
        Self { arrays: None, window, room: 0, dropped: 0, len: 0 }
    }

    /// Forgets positions. From 0 on, the arrays too: after a failure nothing of it may be left.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if len == 0 {
            *self = Self::new(self.window);
        }
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
        let reach = self.window.map_or(0, |window| self.len.saturating_sub(window + STEP));
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
