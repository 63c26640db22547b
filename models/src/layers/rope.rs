//! Rotary frequencies, Su et al. 2021, and how they are stretched for long contexts.

use std::f64::consts::TAU;

use crate::{ModelConfig, RopeScaling};

/// Returns the angle that the pair (i, i + head_dim / 2) turns by a position, for each i.
pub(crate) fn inv_freq(config: &ModelConfig) -> Vec<f32> {
    let head_dim = config.head_dim as f64;
    let unscaled =
        (0..config.head_dim / 2).map(|i| config.rope.theta.powf(-2.0 * i as f64 / head_dim));
    unscaled.map(|freq| scale(freq, &config.rope.scaling) as f32).collect()
}

fn scale(freq: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            // How often the pair turns within the trained length decides how much it is stretched.
            let turns = original_max_position_embeddings as f64 * freq / TAU;
            let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = kept.clamp(0.0, 1.0);
            freq * (kept + (1.0 - kept) / factor)
        }
    }
}
