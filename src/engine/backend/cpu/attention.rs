//! Attention over the cache: the heads of a few tokens one by one, those of a prompt in tiles.

#![expect(unsafe_code, reason = "threads share the output")]

use half::slice::HalfFloatSliceExt as _;

use super::cache::Floats;
use super::kernels::{HeadTask, TILE, TileTask};
use super::{Cache, Cpu, Shared, Tensor};
use crate::engine::backend::Attention;

/// From how many tokens on they are computed in tiles. A draft has fewer (`lookup.rs`): it must give bit for bit what one
/// token after another gives, and tiles add up products in another order.
const TILED_MIN: usize = 16;

impl Cpu {
    /// See [`crate::engine::backend::Backend::attention`].
    pub(super) fn attend(
        &self,
        attention: &Attention,
        sinks: Option<&Vec<f32>>,
        cache: &mut Cache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Tensor {
        let first = cache.len();
        cache.append(&keys.values, &values.values);
        let mut out = Tensor::zeros(queries.rows, attention.heads * attention.head_dim);
        if queries.rows < TILED_MIN {
            self.attend_singly(attention, sinks, cache, first, queries, &mut out);
        } else {
            self.attend_tiled(attention, sinks, cache, first, queries, &mut out);
        }
        out
    }

    fn attend_singly(
        &self,
        attention: &Attention,
        sinks: Option<&Vec<f32>>,
        cache: &Cache,
        first: usize,
        queries: &Tensor,
        out: &mut Tensor,
    ) {
        let Attention { heads, kv_heads, head_dim, scale, window } = *attention;
        let shared = Shared(out.values.as_mut_ptr());
        let items = queries.rows * heads;
        // Below this much work, waking the other threads costs more than it saves.
        let reach = window.map_or(first + queries.rows, |window| window.min(first + queries.rows));
        let worthwhile = items * reach * head_dim > 32_768;
        let chunk = if worthwhile { items.div_ceil(self.threads() * 8) } else { items };
        let kernels = self.kernels;
        self.run(items, chunk, &|range| {
            let mut scores = Vec::new();
            for item in range {
                // Items of one head lie together: its keys and values stay in the processor's cache.
                let (head, token) = (item / queries.rows, item % queries.rows);
                let end = first + token + 1;
                let start = window.map_or(0, |window| end.saturating_sub(window));
                let at = (start - cache.dropped()) * cache.width() + head / (heads / kv_heads) * head_dim;
                let query = &queries.row(token)[head * head_dim..(head + 1) * head_dim];
                let sink = sinks.map(|sinks| sinks[head]);
                let task = HeadTask { query, stride: cache.width(), scale, sink };
                scores.resize(end - start, 0.0);
                let to = (token * heads + head) * head_dim;
                // SAFETY: each item has its own part of the output.
                let out = unsafe { shared.slice(to..to + head_dim) };
                match (&cache.keys, &cache.values) {
                    (Floats::Half(keys), Floats::Half(values)) => {
                        kernels.attend_half(&task, &keys[at..], &values[at..], &mut scores, out);
                    }
                    (Floats::Single(keys), Floats::Single(values)) => {
                        kernels.attend(&task, &keys[at..], &values[at..], &mut scores, out);
                    }
                    _ => unreachable!("keys and values are of one precision"),
                }
            }
        });
    }

    fn attend_tiled(
        &self,
        attention: &Attention,
        sinks: Option<&Vec<f32>>,
        cache: &Cache,
        first: usize,
        queries: &Tensor,
        out: &mut Tensor,
    ) {
        let Attention { heads, kv_heads, head_dim, scale, window } = *attention;
        // Positions are counted from the first that a token sees, or from as many before it as make whole vectors: a token's
        // sum must not depend on who else is in the batch.
        let lanes = self.kernels.lanes;
        let seen = window.map_or(0, |window| (first + 1).saturating_sub(window));
        let origin = (seen / lanes * lanes).max(cache.dropped());
        let held = first + queries.rows - origin;
        let skipped = (origin - cache.dropped()) * cache.width();
        let columns = self.columns(attention, cache, skipped, held);
        let head_columns = columns.len() / kv_heads;
        let tiles = queries.rows.div_ceil(TILE);
        let items = heads * tiles;
        let shared = Shared(out.values.as_mut_ptr());
        let kernels = self.kernels;
        self.run(items, items.div_ceil(self.threads() * 16), &|range| {
            let mut scores = Vec::new();
            let mut results = vec![0.0; TILE * head_dim];
            for item in range {
                let (head, token) = (item / tiles, item % tiles * TILE);
                let kv_head = head / (heads / kv_heads);
                let task = TileTask {
                    queries: &queries.values[token * queries.width + head * head_dim..],
                    query_stride: queries.width,
                    width: head_dim,
                    tokens: TILE.min(queries.rows - token),
                    end: first + token + 1 - origin,
                    window,
                    stride: cache.width(),
                    scale,
                    sink: sinks.map(|sinks| sinks[head]),
                };
                scores.resize(TILE * task.room(kernels.lanes), 0.0);
                let keys = &columns[kv_head * head_columns..(kv_head + 1) * head_columns];
                let at = skipped + kv_head * head_dim;
                match &cache.values {
                    Floats::Half(values) => {
                        kernels.attend_tile_half(&task, keys, &values[at..], &mut scores, &mut results);
                    }
                    Floats::Single(values) => {
                        kernels.attend_tile(&task, keys, &values[at..], &mut scores, &mut results);
                    }
                }
                for (idx, result) in results.chunks_exact(head_dim).enumerate().take(task.tokens) {
                    let to = ((token + idx) * heads + head) * head_dim;
                    // SAFETY: each item has its own heads of its own tokens.
                    unsafe { shared.slice(to..to + head_dim) }.copy_from_slice(result);
                }
            }
        });
    }

    /// The keys of the last `held` positions, which begin with the element `skipped`, in the order of [`TileTask`], for each
    /// head.
    fn columns(&self, attention: &Attention, cache: &Cache, skipped: usize, held: usize) -> Vec<f32> {
        let Attention { kv_heads, head_dim, .. } = *attention;
        let (lanes, blocks) = (self.kernels.lanes, held.div_ceil(self.kernels.lanes));
        let block_len = head_dim * lanes;
        let mut columns = vec![0.0; kv_heads * blocks * block_len];
        let shared = Shared(columns.as_mut_ptr());
        let items = kv_heads * blocks;
        self.run(items, items.div_ceil(self.threads() * 4), &|range| {
            let mut key = vec![0.0; head_dim];
            for item in range {
                let (head, block) = (item / blocks, item % blocks);
                // SAFETY: each item has its own block.
                let to = unsafe { shared.slice(item * block_len..(item + 1) * block_len) };
                for position in block * lanes..((block + 1) * lanes).min(held) {
                    let at = skipped + position * cache.width() + head * head_dim;
                    match &cache.keys {
                        Floats::Half(keys) => keys[at..at + head_dim].convert_to_f32_slice(&mut key),
                        Floats::Single(keys) => key.copy_from_slice(&keys[at..at + head_dim]),
                    }
                    for (column, value) in key.iter().enumerate() {
                        to[column * lanes + position % lanes] = *value;
                    }
                }
            }
        });
        columns
    }
}
