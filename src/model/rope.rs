//! Rotary position embedding: the base frequencies and the Llama-3 rescaling.

use super::Config;

/// Rotary embedding of a model.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rope {
    /// The base of the frequencies, `rope_theta`.
    pub theta: f64,
    /// The Llama-3 rescaling, or none.
    pub scaling: Option<Llama3>,
}

/// Llama-3 frequency rescaling (rope type `llama3`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Llama3 {
    /// How much the low frequencies are slowed.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are slowed wholly.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay.
    pub high_freq_factor: f64,
    /// The context length before the rescaling, in tokens.
    pub original_max_position_embeddings: f64,
}

impl Llama3 {
    /// The rescaled angular frequency: unchanged for short wavelengths, divided by `factor` for long ones, and between
    /// the two limits a mean of both, weighted linearly in `original length / wavelength`.
    fn rescale(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let turns = self.original_max_position_embeddings / wavelength;
        if turns < self.low_freq_factor {
            frequency / self.factor
        } else if turns > self.high_freq_factor {
            frequency
        } else {
            let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - kept) * frequency / self.factor + kept * frequency
        }
    }
}

impl Config {
    /// The angular frequencies in radians per token, `head_dim / 2` of them: `theta^(-2 i / head_dim)`, rescaled for
    /// Llama-3. Dimension `i` of a head turns together with `i + head_dim / 2` (the half-split convention of Hugging
    /// Face checkpoints).
    pub fn inv_freq(&self) -> Vec<f64> {
        (0..self.head_dim / 2)
            .map(|i| {
                let frequency = self.rope.theta.powf(-2.0 * i as f64 / self.head_dim as f64);
                match &self.rope.scaling {
                    Some(scaling) => scaling.rescale(frequency),
                    None => frequency,
                }
            })
            .collect()
    }
}
