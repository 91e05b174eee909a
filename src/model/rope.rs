//! Rotary position embedding: base frequencies and the variants that rescale them, as transformers' `modeling_rope_utils` does.

use std::f64::consts::PI;

/// One rotary embedding of a model; blocks may differ in which they use.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    /// The base of the frequencies, `rope_theta`.
    pub theta: f64,
    /// How they are rescaled.
    pub scaling: RopeScaling,
}

/// How frequencies are rescaled, so that a model reaches further than it was trained for.
#[derive(Clone, PartialEq, Debug)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Slow ones divided, fast ones kept.
    Llama3(Llama3),
    /// A base that grows with the length in use (dynamic NTK).
    Dynamic {
        /// The factor.
        factor: f64,
        /// The length up to which nothing changes.
        original: f64,
    },
    /// YaRN, arXiv 2309.00071.
    Yarn(Yarn),
    /// LongRoPE, arXiv 2402.13753: a factor for each frequency, others beyond the original length.
    LongRope {
        /// Divisors up to the original length.
        short: Vec<f64>,
        /// Divisors beyond it.
        long: Vec<f64>,
        /// The original length.
        original: f64,
        /// What cosines and sines are multiplied with.
        attention_factor: f64,
    },
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

/// YaRN: fast frequencies stay, slow ones are divided, and a ramp lies between.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Yarn {
    /// How much the slow ones are divided.
    pub factor: f64,
    /// The context length before the rescaling, in tokens.
    pub original: f64,
    /// Turns within the original length above which a frequency stays.
    pub beta_fast: f64,
    /// Turns below which it is divided wholly.
    pub beta_slow: f64,
    /// Whether the ends of the ramp are whole dimensions.
    pub truncate: bool,
    /// What cosines and sines are multiplied with.
    pub attention_factor: f64,
}

impl Llama3 {
    /// The rescaled angular frequency: unchanged for short wavelengths, divided by `factor` for long ones, and between
    /// the two limits a mean of both, weighted linearly in `original length / wavelength`.
    fn rescale(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * PI / frequency;
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

impl Yarn {
    /// The dimension, of `turned`, whose frequency makes `turns` turns within the original length.
    fn dimension(&self, turns: f64, turned: f64, theta: f64) -> f64 {
        turned * (self.original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
    }

    /// Frequency `i` of `turned / 2`.
    fn rescale(&self, i: usize, frequency: f64, turned: usize, theta: f64) -> f64 {
        let width = turned as f64;
        let mut low = self.dimension(self.beta_fast, width, theta);
        let mut high = self.dimension(self.beta_slow, width, theta);
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001;
        }
        let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / self.factor * slowed + frequency * (1.0 - slowed)
    }
}

impl Rope {
    /// The angular frequencies in radians per token of the `turned` first features of a head, `turned / 2` of them, for texts of
    /// `length` tokens, on which some variants depend; before any rescaling `theta^(-2 i / turned)`.
    pub fn frequencies(&self, turned: usize, length: usize) -> Vec<f64> {
        let exponent = |i: usize| 2.0 * i as f64 / turned as f64;
        let base = |theta: f64, i: usize| theta.powf(-exponent(i));
        let length = length as f64;
        (0..turned / 2)
            .map(|i| {
                let plain = base(self.theta, i);
                match &self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor,
                    RopeScaling::Llama3(scaling) => scaling.rescale(plain),
                    RopeScaling::Dynamic { factor, original } => {
                        let reach = length.max(*original);
                        let grown = factor * reach / original - (factor - 1.0);
                        let width = turned as f64;
                        base(self.theta * grown.powf(width / (width - 2.0)), i)
                    }
                    RopeScaling::Yarn(scaling) => scaling.rescale(i, plain, turned, self.theta),
                    RopeScaling::LongRope { short, long, original, .. } => {
                        let divisors = if length > *original { long } else { short };
                        plain / divisors.get(i).copied().unwrap_or(1.0)
                    }
                }
            })
            .collect()
    }

    /// What cosines and sines are multiplied with.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(scaling) => scaling.attention_factor,
            RopeScaling::LongRope { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }

    /// Whether texts longer than `length` tokens have other frequencies than those up to it, for all of their tokens: then transformers
    /// makes the keys of the tokens so far again. (With [`RopeScaling::Dynamic`] it leaves them.)
    pub fn changes_beyond(&self, length: usize) -> bool {
        matches!(self.scaling, RopeScaling::LongRope { original, .. } if original as usize == length)
    }
}
