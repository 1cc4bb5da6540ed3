//! Weight matrices in the order in which the kernels read them: a block of rows in the lanes, scales and biases inline.
//!
//! A block holds `lanes` rows. Quantised: for each group of columns, the words `[group_size·bits/32][lanes]` of u32, then
//! the scales `[lanes]`, then the biases `[lanes]`. A word holds pairs of neighbouring columns so that a shift and a mask
//! give two 16-bit halves: of 4-bit codes, pair p has its first element in bits 4p and its second in bits 16 + 4p; of
//! 8-bit codes in bits 8p and 16 + 8p. Dense: `[columns][lanes]`. Rows that fill up the last block are zero.

use std::ops::Range;

use super::memory::{Arena, Memory};
use super::simd::DOUBLED_E2M1;
use crate::engine::checkpoint::Dtype;

/// How a matrix is stored in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Codes of `bits` (4 or 8 here; other widths are widened to 8 while they are read), scales and biases of `parts`.
    Affine { bits: usize, group_size: usize, parts: Dtype },
    /// MXFP4: codes of 4 bits that mean floats, groups of 32, and one bfloat16 scale, halved because the kernels double the
    /// codes' values. A power of two from -128 to 127 is exact there.
    Mxfp4,
    /// One float a weight.
    Dense(Dtype),
}

/// The group size of MXFP4.
pub(super) const MXFP4_GROUP: usize = 32;

/// A matrix `[rows, columns]` in blocks of rows.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) form: Form,
    pub(super) lanes: usize,
    memory: Memory,
}

impl Matrix {
    /// A matrix of zeros.
    pub(super) fn zeros(rows: usize, columns: usize, form: Form, lanes: usize, arena: &mut Arena) -> Self {
        let mut matrix = Self { rows, columns, form, lanes, memory: arena.zeros(0) };
        matrix.memory = arena.zeros(matrix.block_count() * matrix.block_bytes());
        matrix
    }

    /// Where its weights lie, and how many bytes of them there are.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.memory.bytes().as_ptr().addr(), self.memory.bytes().len())
    }

    pub(super) fn block_count(&self) -> usize {
        self.rows.div_ceil(self.lanes)
    }

    /// How many bytes a block of rows takes.
    pub(super) fn block_bytes(&self) -> usize {
        match self.form {
            Form::Affine { group_size, .. } => self.columns / group_size * self.group_bytes(),
            Form::Mxfp4 => self.columns / MXFP4_GROUP * self.group_bytes(),
            Form::Dense(dtype) => self.columns * self.lanes * dtype.size(),
        }
    }

    /// How many bytes the words of a group take in a block.
    fn words_bytes(&self) -> usize {
        match self.form {
            Form::Affine { bits, group_size, .. } => group_size * bits / 32 * self.lanes * 4,
            Form::Mxfp4 => MXFP4_GROUP / 8 * self.lanes * 4,
            Form::Dense(_) => 0,
        }
    }

    /// How many bytes a group of columns takes in a block.
    pub(super) fn group_bytes(&self) -> usize {
        match self.form {
            Form::Affine { parts, .. } => self.words_bytes() + 2 * self.lanes * parts.size(),
            Form::Mxfp4 => self.words_bytes() + self.lanes * Dtype::BF16.size(),
            Form::Dense(_) => 0,
        }
    }

    /// The bytes of some blocks of rows.
    pub(super) fn blocks(&self, blocks: Range<usize>) -> &[u8] {
        let block_bytes = self.block_bytes();
        &self.memory.bytes()[blocks.start * block_bytes..blocks.end * block_bytes]
    }

    /// Takes whole rows of codes of `source_bits`, packed in little-endian words as MLX packs them, from `row` on.
    pub(super) fn set_codes(&mut self, row: usize, packed: &[u8], source_bits: usize) {
        let (bits, group_size) = match self.form {
            Form::Affine { bits, group_size, .. } => (bits, group_size),
            Form::Mxfp4 => (4, MXFP4_GROUP),
            Form::Dense(_) => return,
        };
        let row_bytes = self.columns * source_bits / 8;
        let (lanes, block_bytes, group_bytes) = (self.lanes, self.block_bytes(), self.group_bytes());
        let words_a_group = group_size * bits / 32;
        let bytes = self.memory.bytes_mut();
        let mut wide = Vec::new();
        for (idx, row_packed) in packed.chunks_exact(row_bytes).enumerate() {
            let row = row + idx;
            let start = row / lanes * block_bytes + row % lanes * 4;
            let words = if source_bits == bits {
                row_packed
            } else {
                widen(row_packed, source_bits, &mut wide);
                &wide
            };
            // Each group's place is known before its words are: no division a word.
            for (group_idx, group) in words.chunks_exact(words_a_group * 4).enumerate() {
                let to = &mut bytes[start + group_idx * group_bytes..];
                for (word, to) in group.as_chunks::<4>().0.iter().zip(to.chunks_mut(lanes * 4)) {
                    let word = u32::from_le_bytes(*word);
                    let word = if bits == 4 { pair_nibbles(word) } else { pair_bytes(word) };
                    to[..4].copy_from_slice(&word.to_ne_bytes());
                }
            }
        }
    }

    /// Takes whole rows of scales (`part` 0) or biases (`part` 1) from `row` on.
    pub(super) fn set_parts(&mut self, row: usize, values: &[u8], part: usize) {
        let (group_size, parts) = match self.form {
            Form::Affine { group_size, parts, .. } => (group_size, parts),
            Form::Mxfp4 => (MXFP4_GROUP, Dtype::BF16),
            Form::Dense(_) => return,
        };
        let (groups, size) = (self.columns / group_size, parts.size());
        let (lanes, block_bytes, group_bytes) = (self.lanes, self.block_bytes(), self.group_bytes());
        let parts_at = self.words_bytes() + part * lanes * size;
        let bytes = self.memory.bytes_mut();
        for (idx, row_values) in values.chunks_exact(groups * size).enumerate() {
            let row = row + idx;
            let start = row / lanes * block_bytes + parts_at + row % lanes * size;
            let places = bytes[start..].chunks_mut(group_bytes);
            // A copy of two bytes whose number the compiler doesn't know is a call.
            match size {
                2 => row_values.as_chunks::<2>().0.iter().zip(places).for_each(|(v, to)| to[..2].copy_from_slice(v)),
                _ => row_values.chunks_exact(size).zip(places).for_each(|(v, to)| to[..size].copy_from_slice(v)),
            }
        }
    }

    /// Takes whole rows of MXFP4's exponents from `row` on.
    pub(super) fn set_exponents(&mut self, row: usize, exponents: &[u8]) {
        // Halved, see `Form::Mxfp4`; 255 means no number there, as in the format.
        let scale = |&exponent: &u8| match exponent {
            255 => f32::NAN,
            exponent => 2_f64.powi(i32::from(exponent) - 128) as f32,
        };
        let scales: Vec<u8> =
            exponents.iter().flat_map(|exponent| half::bf16::from_f32(scale(exponent)).to_le_bytes()).collect();
        self.set_parts(row, &scales, 0);
    }

    /// Takes whole rows of floats from `row` on.
    pub(super) fn set_floats(&mut self, row: usize, values: &[u8]) {
        let Form::Dense(dtype) = self.form else { return };
        let (columns, lanes, size, block_bytes) = (self.columns, self.lanes, dtype.size(), self.block_bytes());
        let bytes = self.memory.bytes_mut();
        for (idx, row_values) in values.chunks_exact(columns * size).enumerate() {
            let row = row + idx;
            let start = row / lanes * block_bytes + row % lanes * size;
            for (column, value) in row_values.chunks_exact(size).enumerate() {
                let at = start + column * lanes * size;
                bytes[at..at + size].copy_from_slice(value);
            }
        }
    }

    /// Writes row `row` as floats into `out`, which has one element a column.
    pub(super) fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        let (block, lane) = (row / self.lanes, row % self.lanes);
        let block = self.blocks(block..block + 1);
        match self.form {
            Form::Dense(dtype) => {
                for (column, out) in out.iter_mut().enumerate() {
                    *out = dtype.float_at(&block[(column * self.lanes + lane) * dtype.size()..]);
                }
            }
            Form::Mxfp4 => {
                for (group, out) in block.chunks_exact(self.group_bytes()).zip(out.chunks_exact_mut(MXFP4_GROUP)) {
                    let scale = Dtype::BF16.float_at(&group[self.words_bytes() + lane * 2..]);
                    for (idx, out) in out.iter_mut().enumerate() {
                        let code = self.code(group, idx, lane, 4);
                        *out = f32::from(DOUBLED_E2M1[code as usize]) * scale;
                    }
                }
            }
            Form::Affine { bits, group_size, parts } => {
                for (group, out) in block.chunks_exact(self.group_bytes()).zip(out.chunks_exact_mut(group_size)) {
                    let part = |part: usize| {
                        parts.float_at(&group[self.words_bytes() + (part * self.lanes + lane) * parts.size()..])
                    };
                    let (scale, bias) = (part(0), part(1));
                    for (idx, out) in out.iter_mut().enumerate() {
                        *out = self.code(group, idx, lane, bits) as f32 * scale + bias;
                    }
                }
            }
        }
    }

    /// The code of the element `idx` of a group, in the row `lane` of its block.
    fn code(&self, group: &[u8], idx: usize, lane: usize, bits: usize) -> u32 {
        let codes_a_word = 32 / bits;
        let at = (idx / codes_a_word * self.lanes + lane) * 4;
        let word = u32::from_ne_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]]);
        let within = idx % codes_a_word;
        word >> (within / 2 * bits + within % 2 * 16) & ((1 << bits) - 1)
    }
}

/// Eight nibbles in order → pairs: elements 0 2 4 6 in the lower half, 1 3 5 7 in the upper.
fn pair_nibbles(word: u32) -> u32 {
    let gather = |nibbles: u32| {
        let bytes = (nibbles | nibbles >> 4) & 0x00FF_00FF;
        (bytes | bytes >> 8) & 0x0000_FFFF
    };
    gather(word & 0x0F0F_0F0F) | gather(word >> 4 & 0x0F0F_0F0F) << 16
}

/// Four bytes in order → pairs: elements 0 2 in the lower half, 1 3 in the upper.
fn pair_bytes(word: u32) -> u32 {
    word & 0xFF00_00FF | word >> 8 & 0x0000_FF00 | word << 8 & 0x00FF_0000
}

/// Spreads codes of 2, 3, 5 or 6 bits, packed without gaps, over bytes.
fn widen(packed: &[u8], bits: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    let mask = (1_u32 << bits) - 1;
    let (mut window, mut held) = (0_u32, 0);
    for &byte in packed {
        window |= u32::from(byte) << held;
        held += 8;
        while held >= bits {
            bytes.push((window & mask) as u8);
            window >>= bits;
            held -= bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every width and group size gives back the values that MLX's packing means.
    #[test]
    fn quantised_rows_come_back() {
        for (bits, group_size, lanes) in
            [(4, 32, 16), (8, 32, 16), (4, 64, 8), (3, 32, 8), (2, 64, 8), (5, 32, 16), (6, 128, 8)]
        {
            let (rows, columns) = (lanes + 3, 128);
            let codes: Vec<u32> = (0..rows * columns).map(|i| (i * 7919 % 1013) as u32 & ((1 << bits) - 1)).collect();
            let mut packed = vec![0_u8; rows * columns * bits / 8];
            for (idx, code) in codes.iter().enumerate() {
                (0..bits).for_each(|bit| {
                    packed[(idx * bits + bit) / 8] |= ((code >> bit & 1) << ((idx * bits + bit) % 8)) as u8
                });
            }
            let groups = columns / group_size;
            let scales: Vec<f32> = (0..rows * groups).map(|i| 0.5 + i as f32).collect();
            let biases: Vec<f32> = (0..rows * groups).map(|i| -0.25 * i as f32).collect();
            let bytes = |floats: &[f32]| floats.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>();
            let kept = if bits == 4 { 4 } else { 8 };
            let form = Form::Affine { bits: kept, group_size, parts: Dtype::F32 };
            let mut matrix = Matrix::zeros(rows, columns, form, lanes, &mut Arena::default());
            let half = columns * bits / 8 * 5;
            matrix.set_codes(0, &packed[..half], bits);
            matrix.set_codes(5, &packed[half..], bits);
            matrix.set_parts(0, &bytes(&scales), 0);
            matrix.set_parts(0, &bytes(&biases), 1);
            let mut row = vec![0.0; columns];
            for row_idx in 0..rows {
                matrix.dequantise_row(row_idx, &mut row);
                for (column, value) in row.iter().enumerate() {
                    let group = row_idx * groups + column / group_size;
                    let expected = codes[row_idx * columns + column] as f32 * scales[group] + biases[group];
                    assert_eq!(*value, expected, "bits {bits}, row {row_idx}, column {column}");
                }
            }
        }
    }
}
