//! Rotary wavelengths: position / wavelength is the angle; and how they are stretched to longer contexts.

use std::f64::consts::PI;

use crate::engine::checkpoint::RopeScaling;

/// The wavelengths of heads of `dim` elements, `dim / 2` of them.
pub(super) fn wavelengths(dim: usize, base: f64, scaling: Option<RopeScaling>) -> Vec<f64> {
    let plain = (0..dim).step_by(2).map(|i| base.powf(i as f64 / dim as f64));
    match scaling {
        None => plain.collect(),
        Some(RopeScaling::Linear { factor }) => plain.map(|wave| wave * factor).collect(),
        // Llama 3.1 stretches the long ones (its report, section 3.4.1).
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions }) => plain
            .map(|wave| {
                let turns = original_positions / (2.0 * PI * wave);
                let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                wave / ((1.0 - smooth) / factor + smooth)
            })
            .collect(),
        // YaRN (Peng and others 2023, section 3.2), with the range rounded outwards as mlx-lm does whatever
        // `truncate` says: gpt-oss asks for `false`, and its published numbers were made either way.
        Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions }) => {
            let at = |turns: f64| dim as f64 * (original_positions / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
            let low = at(beta_fast).floor().max(0.0);
            let high = at(beta_slow).ceil().min(dim as f64 - 1.0);
            let width = if high > low { high - low } else { 0.001 };
            plain
                .enumerate()
                .map(|(i, wave)| {
                    let keep = 1.0 - ((i as f64 - low) / width).clamp(0.0, 1.0);
                    factor * wave / (factor * keep + 1.0 - keep)
                })
                .collect()
        }
    }
}

/// What the scores of attention are multiplied with beside the heads' own factor: YaRN multiplies q and k alike.
pub(super) fn score_factor(scaling: Option<RopeScaling>) -> f32 {
    match scaling {
        Some(RopeScaling::Yarn { factor, .. }) if factor > 1.0 => (0.1 * factor.ln() + 1.0).powi(2) as f32,
        _ => 1.0,
    }
}
