//! Keys and values of one layer: rows of all heads side by side, in 16 bits where activations are quantised anyway.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use crate::engine::checkpoint::Dtype;
use crate::engine::prefix::LayerState;

/// How many positions beyond a window are kept, so that a conversation can go back by a long answer; and by how many more
/// it grows before the oldest are dropped.
pub(crate) const BEYOND_WINDOW: usize = 1_024;

/// For how many positions room is made at once.
const ROOM: usize = 512;

/// Keys and values, each `[positions, kv_heads · head_dim]`.
#[derive(Debug)]
pub struct Cache {
    width: usize,
    window: Option<usize>,
    /// How many positions were dropped.
    dropped: usize,
    pub(super) keys: Floats,
    pub(super) values: Floats,
}

/// Floats of one precision.
#[derive(Debug)]
pub(super) enum Floats {
    Half(Vec<f16>),
    Single(Vec<f32>),
}

impl Floats {
    fn new(is_half: bool) -> Self {
        if is_half { Self::Half(Vec::new()) } else { Self::Single(Vec::new()) }
    }

    fn len(&self) -> usize {
        match self {
            Self::Half(values) => values.len(),
            Self::Single(values) => values.len(),
        }
    }

    /// Makes room for `added` more elements: by half at least and by many positions of `width`, so that growing leaves few
    /// holes in the allocator's hands (doubling from a block of a prompt left 9 MB of 127). Room that isn't used isn't touched.
    fn reserve(&mut self, added: usize, width: usize) {
        let more = added.max(self.len() / 2).max(ROOM * width);
        match self {
            Self::Half(values) if values.capacity() - values.len() < added => values.reserve_exact(more),
            Self::Single(values) if values.capacity() - values.len() < added => values.reserve_exact(more),
            _ => {}
        }
    }

    fn append(&mut self, added: &[f32]) {
        match self {
            Self::Half(values) => {
                let before = values.len();
                values.resize(before + added.len(), f16::ZERO);
                // What is too large for 16 bits becomes infinite, and is reported as no number in the end.
                values[before..].convert_from_f32_slice(added);
            }
            Self::Single(values) => values.extend_from_slice(added),
        }
    }

    fn to_bytes(&self) -> (Dtype, Vec<u8>) {
        match self {
            Self::Half(values) => (Dtype::F16, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::Single(values) => (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        }
    }

    fn set_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Half(values) => {
                *values = bytes.as_chunks::<2>().0.iter().map(|value| f16::from_le_bytes(*value)).collect();
            }
            Self::Single(values) => {
                *values = bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Half(values) => values.truncate(len),
            Self::Single(values) => values.truncate(len),
        }
    }

    fn drop_first(&mut self, count: usize) {
        match self {
            Self::Half(values) => drop(values.drain(..count)),
            Self::Single(values) => drop(values.drain(..count)),
        }
    }
}

impl Cache {
    /// An empty cache of rows of `width` elements; a window's oldest positions are dropped.
    pub(super) fn new(width: usize, window: Option<usize>, is_half: bool) -> Self {
        Self { width, window, dropped: 0, keys: Floats::new(is_half), values: Floats::new(is_half) }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// How many positions were appended, those that were dropped included.
    pub(super) fn len(&self) -> usize {
        self.dropped + self.keys.len() / self.width
    }

    /// The first position that is still there.
    pub(super) fn dropped(&self) -> usize {
        self.dropped
    }

    /// Appends rows of keys and values. First drops the positions that no window reaches, once there are many.
    pub(super) fn append(&mut self, keys: &[f32], values: &[f32]) {
        if let Some(window) = self.window {
            let held = self.len() - self.dropped;
            if held > window + 2 * BEYOND_WINDOW {
                let dropped = held - window - BEYOND_WINDOW;
                self.keys.drop_first(dropped * self.width);
                self.values.drop_first(dropped * self.width);
                self.dropped += dropped;
            }
        }
        self.keys.reserve(keys.len(), self.width);
        self.values.reserve(values.len(), self.width);
        self.keys.append(keys);
        self.values.append(values);
    }

    /// Forgets all positions from `len` on, which is 0 or at least [`Self::shortest`].
    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.dropped {
            self.dropped = 0;
        }
        let kept = len.saturating_sub(self.dropped) * self.width;
        self.keys.truncate(kept);
        self.values.truncate(kept);
    }

    /// What it holds.
    pub(super) fn snapshot(&self) -> LayerState {
        let (dtype, keys) = self.keys.to_bytes();
        let (_, values) = self.values.to_bytes();
        LayerState { dtype, width: self.width, first: self.dropped, keys, values }
    }

    /// Takes what [`Self::snapshot`] gave, where it is of the same width and precision.
    pub(super) fn restore(&mut self, state: &LayerState) -> bool {
        self.truncate(0);
        let dtype = self.keys.to_bytes().0;
        // Positions may only be missing where a window doesn't reach them.
        let fits = state.width == self.width
            && state.dtype == dtype
            && match (state.positions(), self.window) {
                (Some(positions), Some(window)) => state.first == 0 || positions >= window,
                (Some(_), None) => state.first == 0,
                (None, _) => false,
            };
        if fits {
            self.keys.set_bytes(&state.keys);
            self.values.set_bytes(&state.values);
            self.dropped = state.first;
        }
        fits
    }

    /// The shortest length above 0 whose whole window is still there.
    pub(super) fn shortest(&self) -> usize {
        match self.window {
            Some(window) if self.dropped > 0 => self.dropped + window - 1,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_what_is_far_behind() {
        let mut cache = Cache::new(2, Some(8), false);
        for position in 0..5_000 {
            cache.append(&[position as f32; 2], &[0.0; 2]);
            assert_eq!(cache.len(), position + 1);
            assert!(cache.len() - cache.dropped() <= 8 + 2 * BEYOND_WINDOW + 1);
        }
        let Floats::Single(keys) = &cache.keys else { panic!("it is of float32") };
        assert_eq!(keys[0] as usize, cache.dropped());
        let shortest = cache.shortest();
        assert!(shortest > 2_000 && shortest <= 5_000 - BEYOND_WINDOW);
        cache.truncate(shortest);
        assert_eq!((cache.len(), cache.shortest()), (shortest, shortest));
        cache.truncate(0);
        assert_eq!((cache.len(), cache.dropped(), cache.shortest()), (0, 0, 0));
    }
}
