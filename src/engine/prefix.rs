//! The keys and values of a conversation's tokens, taken out of the engine and put back: what makes a resumed conversation
//! answer without its history being computed again.

use std::io::{self, Write};

use crate::digest::Sha256Digest;
use crate::engine::checkpoint::Dtype;

/// The longest form of a state that is read or written, in bytes.
pub const PREFIX_BYTES_MAX: u64 = 1 << 30;
/// The most tokens of a state.
const TOKENS_MAX: usize = 1 << 24;
/// The most layers of a state.
const LAYERS_MAX: usize = 1_024;
const MAGIC: &[u8; 16] = b"tiles-prefix/1\n\0";

/// The keys and values of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerState {
    /// The type of their elements.
    pub dtype: Dtype,
    /// The width of a row: all heads side by side.
    pub width: usize,
    /// The first position that is there; windowed layers forget those before.
    pub first: usize,
    /// Rows of keys, little-endian.
    pub keys: Vec<u8>,
    /// Rows of values, little-endian.
    pub values: Vec<u8>,
}

impl LayerState {
    /// How many positions are there; `None` where the bytes make no whole rows.
    pub fn positions(&self) -> Option<usize> {
        let row = self.width.checked_mul(self.dtype.size()).filter(|row| *row > 0)?;
        (self.keys.len() == self.values.len() && self.keys.len().is_multiple_of(row)).then(|| self.keys.len() / row)
    }
}

/// The state of an engine after some tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixState {
    /// Which weights and which engine made it: for others it means nothing.
    pub origin: Sha256Digest,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// One for each layer.
    pub layers: Vec<LayerState>,
}

impl PrefixState {
    /// The state after the first `len` tokens alone; `None` where a layer has forgotten what these need.
    pub fn truncated(mut self, len: usize) -> Option<Self> {
        if len >= self.tokens.len() {
            return Some(self);
        }
        self.tokens.truncate(len);
        for layer in &mut self.layers {
            let bytes = len * layer.width * layer.dtype.size();
            layer.keys.truncate(bytes);
            layer.values.truncate(bytes);
        }
        // A windowed layer that has forgotten positions may lack those that the next query sees.
        self.layers.iter().all(|layer| layer.first == 0).then_some(self)
    }

    /// How many bytes [`Self::write_to`] writes.
    pub fn bytes(&self) -> u64 {
        let layer = |layer: &LayerState| (32 + layer.keys.len() + layer.values.len()) as u64;
        (MAGIC.len() + 32 + 16 + self.tokens.len() * 4) as u64 + self.layers.iter().map(layer).sum::<u64>()
    }

    /// Writes all of it; [`Self::from_bytes`] reads it.
    ///
    /// # Errors
    /// What `out` can meet.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let number = |out: &mut dyn Write, number: usize| out.write_all(&(number as u64).to_le_bytes());
        out.write_all(MAGIC)?;
        out.write_all(&self.origin.0)?;
        number(out, self.tokens.len())?;
        number(out, self.layers.len())?;
        self.tokens.iter().try_for_each(|token| out.write_all(&token.to_le_bytes()))?;
        for layer in &self.layers {
            let dtype = [Dtype::F16, Dtype::BF16, Dtype::F32].iter().position(|known| *known == layer.dtype);
            number(out, dtype.unwrap_or(usize::MAX))?;
            number(out, layer.width)?;
            number(out, layer.first)?;
            number(out, layer.keys.len())?;
            out.write_all(&layer.keys)?;
            out.write_all(&layer.values)?;
        }
        Ok(())
    }

    /// Reads what [`Self::write_to`] wrote; `None` for anything else. It may say what it likes: whether it fits a model is
    /// checked where it is put back.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let origin = Sha256Digest(take(&mut rest, 32)?.try_into().ok()?);
        let tokens = number(&mut rest)?;
        let layers = number(&mut rest)?;
        if tokens > TOKENS_MAX || layers > LAYERS_MAX {
            return None;
        }
        let tokens = take(&mut rest, tokens * 4)?.as_chunks::<4>().0;
        let tokens: Vec<u32> = tokens.iter().map(|token| u32::from_le_bytes(*token)).collect();
        let mut state = Self { origin, tokens, layers: Vec::new() };
        for _ in 0..layers {
            let dtype = *[Dtype::F16, Dtype::BF16, Dtype::F32].get(number(&mut rest)?)?;
            let (width, first, len) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
            let (keys, values) = (take(&mut rest, len)?.to_vec(), take(&mut rest, len)?.to_vec());
            let layer = LayerState { dtype, width, first, keys, values };
            // Positions end where the tokens do, in every layer.
            if layer.positions()?.checked_add(first) != Some(state.tokens.len()) {
                return None;
            }
            state.layers.push(layer);
        }
        rest.is_empty().then_some(state)
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    let bytes = take(rest, 8)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(tokens: Vec<u32>, width: usize, first: usize) -> PrefixState {
        let first = first.min(tokens.len());
        let rows = tokens.len() - first;
        let bytes = |seed: usize| (0..rows * width * 2).map(|i| (i * 7 + seed) as u8).collect::<Vec<u8>>();
        let layer = |seed| LayerState { dtype: Dtype::F16, width, first, keys: bytes(seed), values: bytes(seed + 1) };
        PrefixState { origin: Sha256Digest([7; 32]), tokens, layers: vec![layer(0), layer(9)] }
    }

    fn bytes_of(state: &PrefixState) -> Vec<u8> {
        let mut bytes = Vec::new();
        state.write_to(&mut bytes).expect("a vector takes any write");
        bytes
    }

    proptest! {
        #[test]
        fn states_come_back(tokens in prop::collection::vec(any::<u32>(), 0..20), width in 1_usize..5, first in 0_usize..30) {
            let state = state(tokens, width, first);
            let bytes = bytes_of(&state);
            prop_assert_eq!(bytes.len() as u64, state.bytes());
            prop_assert_eq!(PrefixState::from_bytes(&bytes), Some(state));
        }

        #[test]
        fn other_bytes_are_none(mut bytes: Vec<u8>, at: prop::sample::Index, flip in 1_u8..) {
            prop_assert_eq!(PrefixState::from_bytes(&bytes), None);
            let whole = bytes_of(&state(vec![1, 2, 3], 2, 1));
            bytes.splice(0..0, MAGIC.iter().copied());
            prop_assert_eq!(PrefixState::from_bytes(&bytes), None);
            for len in 0..whole.len() {
                prop_assert_eq!(PrefixState::from_bytes(&whole[..len]), None);
            }
            let mut changed = whole.clone();
            let at = at.index(whole.len());
            changed[at] ^= flip;
            // A changed byte is refused, or a value of the same shape: the file's encryption tells them apart.
            if let Some(state) = PrefixState::from_bytes(&changed) {
                prop_assert_eq!(bytes_of(&state).len(), whole.len());
            }
        }
    }
}
