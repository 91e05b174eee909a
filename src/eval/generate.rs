//! What a model writes: greedy or sampled continuations of token sequences.

use std::ops::ControlFlow;

use crate::gpu::Commands;
use crate::mask::philox::{key, philox4x32};
use crate::nn::{Decoder, Generator, Masks, NnError};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// The most likely one, the lowest id among equals.
    Greedy,
    /// Drawn from the softmax of the logits over the temperature.
    Sampled {
        /// The temperature, above 0.
        temperature: f64,
        /// Equal seeds give equal texts from equal logits, however many sequences run together.
        seed: u64,
    },
}

/// Counters of the draws: those of masks have projection numbers below 2^31 in this word.
const TOKENS: u32 = 1 << 31;

impl Choice {
    /// The next token of sequence number `sequence`, which has `position` tokens; `None` where the logits are not finite.
    pub fn next(self, logits: &[f32], sequence: u32, position: u32) -> Option<u32> {
        if logits.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let chosen = match self {
            Self::Greedy => logits.iter().position(|&v| v == top),
            Self::Sampled { temperature, seed } => {
                let weight = |v: f32| ((f64::from(v) - f64::from(top)) / temperature).exp();
                let total: f64 = logits.iter().map(|&v| weight(v)).sum();
                let [high, low, ..] = philox4x32([sequence, TOKENS, position, 0], key(seed));
                let uniform = (u64::from(high) << 21 | u64::from(low) >> 11) as f64 / (1u64 << 53) as f64;
                let mut left = uniform * total;
                let drawn = logits.iter().position(|&v| {
                    left -= weight(v);
                    left < 0.0
                });
                // Roundings of the sum may leave a last bit over.
                drawn.or_else(|| logits.iter().rposition(|&v| weight(v) > 0.0))
            }
        };
        chosen.and_then(|i| u32::try_from(i).ok())
    }
}

/// What is generated, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Generation<'a> {
    /// At most so many tokens behind the prompt, at least 1.
    pub tokens: usize,
    /// Tokens that end a sequence.
    pub ends: &'a [u32],
    /// How tokens are chosen.
    pub choice: Choice,
    /// Number of the first sequence, for the draws.
    pub first: u32,
}

/// A continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Its tokens, that which ended it included.
    pub ids: Vec<u32>,
    /// Whether a token ended it, not the number asked for.
    pub ended: bool,
}

/// Continues `sequences` prompts of equal length, `prompts` `[sequences, length]`, under `masks`. `progress` is called with the number
/// of tokens done, and the sequences so far; where it breaks off, those are returned.
///
/// # Errors
/// What the device reports; a token outside the vocabulary; logits that are not finite.
pub fn generate<'g>(
    decoder: &Decoder<'g, '_>,
    c: &mut Commands<'g>,
    masks: Masks<'_>,
    prompts: &[u32],
    sequences: usize,
    what: Generation<'_>,
    mut progress: impl FnMut(usize, &[Continuation]) -> ControlFlow<()>,
) -> Result<Vec<Continuation>, NnError> {
    let length = prompts.len() / sequences.max(1);
    // The last token is not fed back.
    let capacity = length + what.tokens.saturating_sub(1);
    let mut generator = Generator::new(decoder, masks, sequences, capacity)?;
    let mut out = vec![Continuation { ids: Vec::new(), ended: false }; sequences];
    let mut logits = generator.prompt(c, prompts)?;
    for done in 1..=what.tokens {
        let mut next = vec![0; sequences];
        for (i, sequence) in out.iter_mut().enumerate().filter(|(_, s)| !s.ended) {
            let (number, position) = (what.first.wrapping_add(i as u32), generator.seen() as u32);
            let Some(token) = what.choice.next(&logits[i], number, position) else {
                return Err(NnError::NotFinite { window: i, value: f64::NAN });
            };
            sequence.ids.push(token);
            sequence.ended = what.ends.contains(&token);
            next[i] = token;
        }
        if progress(done, &out).is_break() {
            break;
        }
        if done == what.tokens || out.iter().all(|s| s.ended) {
            break;
        }
        logits = generator.step(c, &next)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::Choice;

    #[test]
    fn greedy_takes_the_first_of_equals_and_no_nan() {
        assert_eq!(Choice::Greedy.next(&[1.0, 3.0, 3.0], 0, 0), Some(1));
        assert_eq!(Choice::Greedy.next(&[1.0, f32::NAN], 0, 0), None);
    }

    /// Frequencies of 40 000 draws against the softmax, each within four standard errors.
    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, -2.0, 0.5];
        let draws = 40_000;
        for temperature in [0.5, 1.0, 2.0] {
            let choice = Choice::Sampled { temperature, seed: 7 };
            let mut counts = [0u32; 4];
            for i in 0..draws {
                counts[choice.next(&logits, i % 100, i / 100).unwrap() as usize] += 1;
            }
            let weights = logits.map(|v| (f64::from(v) / temperature).exp());
            let total: f64 = weights.iter().sum();
            for (count, weight) in counts.into_iter().zip(weights) {
                let (p, n) = (weight / total, f64::from(draws));
                let off = (f64::from(count) - n * p).abs();
                assert!(off < 4.0 * (n * p * (1.0 - p)).sqrt(), "{temperature}: {counts:?}");
            }
        }
    }

    /// A temperature near 0 takes the most likely token, without overflow.
    #[test]
    fn cold_is_greedy() {
        let choice = Choice::Sampled { temperature: 1e-9, seed: 0 };
        assert!((0..50).all(|i| choice.next(&[5.0, 900.0, -900.0], i, i) == Some(1)));
    }
}
