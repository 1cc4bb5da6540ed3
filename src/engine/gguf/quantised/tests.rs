//! Blocks against gguf-py's own reading of them (`tests/vectors/gguf-blocks.json`), and MLX's form against both.

use proptest::prelude::*;

use super::*;

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).expect("it is hexadecimal") as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// MLX's reading of packed codes: element i is in bits `i * bits` of the little-endian stream.
fn unpack(bytes: &[u8], bits: u32) -> Vec<u8> {
    let bit = |at: u32| u32::from(bytes[at as usize / 8] >> (at % 8) & 1);
    (0..GROUP as u32).map(|i| (0..bits).map(|b| bit(i * bits + b) << b).sum::<u32>() as u8).collect()
}

#[test]
fn blocks_mean_what_gguf_py_says() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../../tests/vectors/gguf-blocks.json")).expect("it is JSON");
    let types = vectors["types"].as_object().expect("it has types");
    assert_eq!(types.len(), 10);
    for (name, vector) in types {
        let kind = TYPES.iter().find(|row| row.2 == name).expect("the type is known").1;
        let expected: Vec<f64> = vector["elements"]
            .as_array()
            .expect("it has elements")
            .iter()
            .map(|n| n.as_f64().expect("it is a number"))
            .collect();
        let blocks = vector["blocks"].as_array().expect("it has blocks");
        for (block, expected) in blocks.iter().zip(expected.chunks_exact(kind.block_elements() as usize)) {
            check_block(kind, &bytes_of(block.as_str().expect("it is text")), expected);
        }
    }
}

fn check_block(kind: TensorType, block: &[u8], expected: &[f64]) {
    assert_eq!(block.len() as u64, kind.block_bytes());
    let mut exact = [0.0; BLOCK_ELEMENTS_MAX];
    dequantise(kind, block, &mut exact);
    for (i, (&found, &expected)) in exact.iter().zip(expected).enumerate() {
        // gguf-py rounds to 32 bits after each step; we don't.
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(0.1), "{kind:?} {i}: {found} {expected}");
    }
    let mut ours = Vec::new();
    let lossless = groups(kind, block, &mut ours).is_some();
    if !lossless {
        ours.extend(exact[..expected.len()].chunks_exact(GROUP).map(|group| regroup(group, true)));
    }
    assert_eq!(ours.len() * GROUP, expected.len());
    let bits = kind.mlx_bits().expect("it is quantised");
    for (group, exact) in ours.iter().zip(exact.chunks_exact(GROUP)) {
        let mut packed = Vec::new();
        pack(&group.codes, bits, &mut packed);
        assert_eq!(packed.len(), bits as usize * 4);
        let codes = unpack(&packed, bits);
        for (&code, &exact) in codes.iter().zip(exact) {
            let written = f64::from(code) * f64::from(group.scale) + f64::from(group.bias);
            let error_max = if lossless { 0.0 } else { f64::from(group.scale) * 0.5 };
            assert!((written - exact).abs() <= error_max, "{kind:?}: {written} {exact}");
        }
    }
}

#[test]
fn extreme_scales_are_noticed() {
    let block = |kind: TensorType, d: f32| {
        let mut block = vec![0x7f; kind.block_bytes() as usize];
        let at = match kind {
            Q6_K => 208,
            Q3_K => 108,
            _ => 0,
        };
        block[at..at + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        block
    };
    for (kind, fits, breaks) in
        [(Q8_0, 500.0, 520.0), (Q4_0, 8000.0, 8200.0), (Q5_0, 4000.0, 4100.0), (Q6_K, 15.0, 16.0), (Q3_K, 500.0, 520.0)]
    {
        assert!(fits_half(kind, &block(kind, fits)), "{kind:?}");
        assert!(!fits_half(kind, &block(kind, breaks)), "{kind:?}");
        assert!(!fits_half(kind, &block(kind, -breaks)), "{kind:?}");
        assert!(!fits_half(kind, &block(kind, f32::NAN)), "{kind:?}");
    }
}

#[test]
fn every_type_has_one_row_and_names_are_shown() {
    for (number, kind, name, ..) in TYPES {
        assert_eq!(TensorType::from_number(number), Some(kind));
        assert_eq!((kind.as_str(), TensorType::name_of(number).as_str()), (name, name));
    }
    assert_eq!(TensorType::from_number(23), None);
    assert_eq!(TensorType::name_of(23), "IQ4_XS");
    assert_eq!(TensorType::name_of(4), "4", "Q4_2 was removed from ggml");
}

proptest! {
    #[test]
    fn eight_bits_are_never_off_by_more_than_half_a_step(
        elements in prop::collection::vec(-60_000.0..60_000.0f64, 32),
        exponent in -12i32..0,
        half in any::<bool>(),
    ) {
        let elements: Vec<f64> = elements.iter().map(|n| n * 10f64.powi(exponent)).collect();
        let group = regroup(&elements, half);
        if half {
            prop_assert_eq!(f16::from_f32(group.scale).to_f32(), group.scale);
            prop_assert_eq!(f16::from_f32(group.bias).to_f32(), group.bias);
        }
        for (&code, &element) in group.codes.iter().zip(&elements) {
            let written = f64::from(code) * f64::from(group.scale) + f64::from(group.bias);
            prop_assert!((written - element).abs() <= f64::from(group.scale) * 0.5 * (1.0 + 1e-9));
        }
    }
}
