//! ggml's quantised blocks: what they say exactly, and the same in MLX's affine groups of 32.
//!
//! Source: `dequantize_row_*` of ggml-quants.c and gguf-py's `quants.py`. Layouts below are in byte order; `f16` is a
//! little-endian half. In MLX's form a group of 32 has a scale and a bias, `w = code · scale + bias`, and its codes are
//! packed from the lowest bit up (mlx `quantize`, mode affine).

use half::f16;

/// The elements of one of MLX's groups.
pub const GROUP: usize = 32;
/// The most elements in a block.
pub const BLOCK_ELEMENTS_MAX: usize = 256;

/// How a tensor's numbers are stored in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types, reason = "they are ggml's own names")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

use TensorType::{BF16, F16, F32, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_K};

/// ggml's number, the type, its name, elements and bytes of a block.
const TYPES: [(u32, TensorType, &str, u64, u64); 14] = [
    (0, F32, "F32", 1, 4),
    (1, F16, "F16", 1, 2),
    (2, Q4_0, "Q4_0", 32, 18),
    (3, Q4_1, "Q4_1", 32, 20),
    (6, Q5_0, "Q5_0", 32, 22),
    (7, Q5_1, "Q5_1", 32, 24),
    (8, Q8_0, "Q8_0", 32, 34),
    (10, Q2_K, "Q2_K", 256, 84),
    (11, Q3_K, "Q3_K", 256, 110),
    (12, Q4_K, "Q4_K", 256, 144),
    (13, Q5_K, "Q5_K", 256, 176),
    (14, Q6_K, "Q6_K", 256, 210),
    (15, Q8_K, "Q8_K", 256, 292),
    (30, BF16, "BF16", 1, 2),
];

/// The names of types that ggml has and this program doesn't, for messages.
const OTHER_NAMES: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl TensorType {
    /// The type with ggml's number, where it can be converted.
    pub fn from_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    /// What the type with that number is called.
    pub fn name_of(number: u32) -> String {
        let known = TYPES.iter().map(|row| (row.0, row.2)).chain(OTHER_NAMES).find(|row| row.0 == number);
        known.map_or_else(|| format!("{number}"), |(_, name)| name.into())
    }

    /// The names of the types that can be converted.
    pub fn known_names() -> String {
        TYPES.map(|row| row.2).join(", ")
    }

    fn row(self) -> &'static (u32, Self, &'static str, u64, u64) {
        TYPES.iter().find(|row| row.1 == self).expect("the table has every type")
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        self.row().2
    }

    /// How many elements a block has.
    pub fn block_elements(self) -> u64 {
        self.row().3
    }

    /// How many bytes a block has.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// The bits of a code in MLX's form; `None` for types that aren't quantised.
    ///
    /// MLX has no groups of 16, so types with those take 8 bits: the error is at most half of a 255th of a group's range,
    /// an eighth of the step that Q6_K itself has, with 9 bits for an element where f16 would take 16.
    pub fn mlx_bits(self) -> Option<u32> {
        match self {
            F32 | F16 | BF16 => None,
            Q4_0 | Q4_1 | Q4_K => Some(4),
            Q5_0 | Q5_1 | Q5_K => Some(5),
            Q8_0 | Q8_K | Q2_K | Q3_K | Q6_K => Some(8),
        }
    }

    /// Whether scales and biases are products that only 32 bits hold exactly: a half times six bits, or 32 bits as they are.
    pub fn needs_f32_scales(self) -> bool {
        matches!(self, Q4_K | Q5_K | Q8_K)
    }
}

/// One group in MLX's form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// The codes, each below 2 to the power of [`TensorType::mlx_bits`].
    pub codes: [u8; GROUP],
    /// What a code is multiplied by.
    pub scale: f32,
    /// What is then added.
    pub bias: f32,
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The unsigned codes of a block with groups of 32, and each group's exact scale and bias.
///
/// `None` for types whose groups are shorter ([`dequantise`] then [`regroup`] serves those).
pub fn groups(kind: TensorType, block: &[u8], out: &mut Vec<Group>) -> Option<()> {
    let d = half_at(block, 0);
    let nibble = |bytes: &[u8], i: usize| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 };
    let fifth = |bytes: &[u8], i: usize| (bytes[i / 8] >> (i % 8) & 1) << 4;
    match kind {
        // d, 16 bytes: element i low nibbles, element 16 + i high ones.
        Q4_0 => out.push(Group { codes: from_fn(|i| nibble(&block[2..], i)), scale: d, bias: -8.0 * d }),
        // d, m, 16 bytes.
        Q4_1 => out.push(Group { codes: from_fn(|i| nibble(&block[4..], i)), scale: d, bias: half_at(block, 2) }),
        // d, 4 bytes with the fifth bits, 16 bytes.
        Q5_0 => out.push(Group {
            codes: from_fn(|i| nibble(&block[6..], i) | fifth(&block[2..], i)),
            scale: d,
            bias: -16.0 * d,
        }),
        // d, m, 4 bytes with the fifth bits, 16 bytes.
        Q5_1 => out.push(Group {
            codes: from_fn(|i| nibble(&block[8..], i) | fifth(&block[4..], i)),
            scale: d,
            bias: half_at(block, 2),
        }),
        // d, 32 signed bytes.
        Q8_0 => out.push(Group { codes: from_fn(|i| block[2 + i] ^ 0x80), scale: d, bias: -128.0 * d }),
        // f32 d, 256 signed bytes, sums.
        Q8_K => {
            let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
            out.extend((0..8).map(|group| Group {
                codes: from_fn(|i| block[4 + GROUP * group + i] ^ 0x80),
                scale: d,
                bias: -128.0 * d,
            }));
        }
        // d, dmin, 12 bytes with scales and mins, [32 bytes with fifth bits,] 128 bytes with nibbles.
        Q4_K | Q5_K => {
            let dmin = half_at(block, 2);
            let nibbles = if kind == Q4_K { &block[16..] } else { &block[48..] };
            for group in 0..8 {
                let (scale, min) = scale_and_min(&block[4..16], group);
                let code = |i: usize| {
                    let byte = nibbles[group / 2 * 32 + i];
                    let low = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
                    if kind == Q4_K { low } else { low | (block[16 + i] >> group & 1) << 4 }
                };
                out.push(Group { codes: from_fn(code), scale: d * f32::from(scale), bias: -(dmin * f32::from(min)) });
            }
        }
        F32 | F16 | BF16 | Q2_K | Q3_K | Q6_K => return None,
    }
    Some(())
}

fn from_fn(code: impl FnMut(usize) -> u8) -> [u8; GROUP] {
    std::array::from_fn(code)
}

/// The 6-bit scale and min of sub-block `group` of Q4_K and Q5_K (`get_scale_min_k4` of ggml-quants.c).
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let both = packed[group + 4];
        (both & 15 | packed[group - 4] >> 6 << 4, both >> 4 | packed[group] >> 6 << 4)
    }
}

/// The elements of a block, exactly: products and sums of what the block holds, in 64 bits.
pub fn dequantise(kind: TensorType, block: &[u8], out: &mut [f64; BLOCK_ELEMENTS_MAX]) {
    match kind {
        F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]).into(),
        F16 => out[0] = half_at(block, 0).into(),
        BF16 => out[0] = half::bf16::from_le_bytes([block[0], block[1]]).into(),
        Q4_0 | Q5_0 | Q4_1 | Q5_1 => {
            let (signed, five) = (matches!(kind, Q4_0 | Q5_0), matches!(kind, Q5_0 | Q5_1));
            let (d, m) = (f64::from(half_at(block, 0)), f64::from(half_at(block, 2)));
            let high_at = if signed { 2 } else { 4 };
            let high = u32::from_le_bytes([block[high_at], block[high_at + 1], block[high_at + 2], block[high_at + 3]]);
            let low_at = high_at + if five { 4 } else { 0 };
            for j in 0..16 {
                let byte = block[low_at + j];
                for (i, low) in [(j, byte & 15), (j + 16, byte >> 4)] {
                    let code = f64::from(low) + if five { f64::from(high >> i & 1) * 16.0 } else { 0.0 };
                    out[i] = match (signed, five) {
                        (true, false) => d * (code - 8.0),
                        (true, true) => d * (code - 16.0),
                        (false, _) => d * code + m,
                    };
                }
            }
        }
        Q8_0 => {
            let d = f64::from(half_at(block, 0));
            (0..32).for_each(|i| out[i] = d * f64::from(block[2 + i] as i8));
        }
        Q8_K => {
            let d = f64::from(f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
            (0..256).for_each(|i| out[i] = d * f64::from(block[4 + i] as i8));
        }
        Q2_K => dequantise_q2_k(block, out),
        Q3_K => dequantise_q3_k(block, out),
        Q4_K | Q5_K => dequantise_q45_k(kind == Q5_K, block, out),
        Q6_K => dequantise_q6_k(block, out),
    }
}

/// 16 bytes with a 4-bit scale (low) and min (high) for 16 elements, 64 bytes of 2-bit codes, d, dmin.
fn dequantise_q2_k(block: &[u8], out: &mut [f64; BLOCK_ELEMENTS_MAX]) {
    let (d, dmin) = (f64::from(half_at(block, 80)), f64::from(half_at(block, 82)));
    for (i, element) in out.iter_mut().enumerate() {
        let packed = block[i / 16];
        let code = block[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        *element = d * f64::from(packed & 15) * f64::from(code) - dmin * f64::from(packed >> 4);
    }
}

/// 32 bytes with a third bit (set: nothing is subtracted), 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, d.
fn dequantise_q3_k(block: &[u8], out: &mut [f64; BLOCK_ELEMENTS_MAX]) {
    let d = f64::from(half_at(block, 108));
    let scales = &block[96..108];
    for (i, element) in out.iter_mut().enumerate() {
        let group = i / 16;
        let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let scale = low | (scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4;
        let code = block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let third = block[i % 32] >> (i / 32) & 1;
        *element = d * (f64::from(scale) - 32.0) * (f64::from(code) - if third == 0 { 4.0 } else { 0.0 });
    }
}

fn dequantise_q45_k(five: bool, block: &[u8], out: &mut [f64; BLOCK_ELEMENTS_MAX]) {
    let (d, dmin) = (f64::from(half_at(block, 0)), f64::from(half_at(block, 2)));
    let nibbles_at = if five { 48 } else { 16 };
    for (i, element) in out.iter_mut().enumerate() {
        let group = i / 32;
        let (scale, min) = scale_and_min(&block[4..16], group);
        let byte = block[nibbles_at + i / 64 * 32 + i % 32];
        let mut code = byte >> (group % 2 * 4) & 15;
        if five {
            code |= (block[16 + i % 32] >> group & 1) << 4;
        }
        *element = d * f64::from(scale) * f64::from(code) - dmin * f64::from(min);
    }
}

/// 128 bytes of low nibbles, 64 bytes of high pairs, 16 signed scales, d.
fn dequantise_q6_k(block: &[u8], out: &mut [f64; BLOCK_ELEMENTS_MAX]) {
    let d = f64::from(half_at(block, 208));
    for (i, element) in out.iter_mut().enumerate() {
        let (half, within) = (i / 128, i % 128);
        let low = block[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let high = block[128 + half * 32 + within % 32] >> (within / 32 * 2) & 3;
        let code = f64::from(low | high << 4) - 32.0;
        *element = d * f64::from(block[192 + i / 16] as i8) * code;
    }
}

/// Whether everything that a block can say, and MLX's bias for it, is a finite half.
///
/// Only extreme blocks aren't; their tensors then get 32-bit scales.
pub fn fits_half(kind: TensorType, block: &[u8]) -> bool {
    let largest = match kind {
        Q4_0 => half_at(block, 0) * 8.0,
        Q5_0 => half_at(block, 0) * 16.0,
        Q8_0 => half_at(block, 0) * 128.0,
        Q2_K => half_at(block, 80).abs() * 45.0 + half_at(block, 82).abs() * 15.0,
        Q3_K => half_at(block, 108) * 128.0,
        Q6_K => half_at(block, 208) * 4096.0,
        Q4_1 | Q5_1 => return true,
        F32 | F16 | BF16 | Q4_K | Q5_K | Q8_K => return false,
    };
    // A group that spans the whole range has a scale of a 255th of it, rounded up.
    largest.abs() < 65_000.0
}

/// Codes 32 elements with 8 bits, scale and bias being halves where `half` says so.
///
/// Scale and bias are rounded outwards first and the codes chosen for what they became, so that no element is further
/// from its code than half a step.
pub fn regroup(elements: &[f64], half: bool) -> Group {
    let min = elements.iter().copied().fold(f64::INFINITY, f64::min);
    let max = elements.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bias = round_towards(min, f32::NEG_INFINITY, half);
    let scale = round_towards((max - f64::from(bias)) / 255.0, f32::INFINITY, half);
    let code = |element: f64| match scale {
        0.0 => 0,
        _ => ((element - f64::from(bias)) / f64::from(scale)).round().clamp(0.0, 255.0) as u8,
    };
    Group { codes: std::array::from_fn(|i| code(elements[i])), scale, bias }
}

/// The nearest number that is not on the other side of `value`, as a half or with 32 bits.
fn round_towards(value: f64, side: f32, half: bool) -> f32 {
    let up = side > 0.0;
    let missed = |rounded: f64| if up { rounded < value } else { rounded > value };
    if half {
        let mut rounded = f16::from_f64(value);
        if missed(rounded.into()) {
            rounded = next_half(rounded, up);
        }
        return rounded.to_f32();
    }
    let rounded = value as f32;
    match missed(rounded.into()) {
        true if up => rounded.next_up(),
        true => rounded.next_down(),
        false => rounded,
    }
}

fn next_half(value: f16, up: bool) -> f16 {
    let bits = value.to_bits();
    let away = (value.to_f32() >= 0.0) == up;
    match (value.to_f32() == 0.0, away) {
        (true, _) => f16::from_bits(if up { 1 } else { 0x8001 }),
        (false, true) => f16::from_bits(bits + 1),
        (false, false) => f16::from_bits(bits - 1),
    }
}

/// Packs 32 codes of `bits` bits from the lowest bit up and appends the bytes.
pub fn pack(codes: &[u8; GROUP], bits: u32, out: &mut Vec<u8>) {
    let (mut word, mut filled) = (0u32, 0);
    for &code in codes {
        word |= u32::from(code) << filled;
        filled += bits;
        while filled >= 8 {
            out.push(word as u8);
            word >>= 8;
            filled -= 8;
        }
    }
}

#[cfg(test)]
mod tests;
