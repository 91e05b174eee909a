//! What the error of each token counts for on the block objective.

use super::TokenWeights;

/// What is known of the tokens of all windows, in the order of the batches; tokens that pad a window have zeros.
#[derive(Default)]
pub(super) struct Energies {
    /// Squared norm of the dense block's update.
    pub(super) update: Vec<f32>,
    /// Squared norm of the dense stream behind the block; empty where nobody asks.
    pub(super) stream: Vec<f32>,
}

/// Beyond how many times the median a token is a class of its own.
const MASSIVE: f32 = 10.0;
/// A stream of less than this share of the mean energy does not count for more.
const LEAST: f64 = 1e-6;

impl Energies {
    /// The weights, with a mean of about 1 over the tokens of nonzero update; none where all tokens count alike.
    pub(super) fn weights(&self, by: TokenWeights) -> Option<Vec<f32>> {
        let real = self.update.iter().filter(|u| **u > 0.0).count().max(1) as f64;
        let mut weights: Vec<f64> = match by {
            TokenWeights::Even => return None,
            TokenWeights::Stream => {
                let mean = self.stream.iter().map(|&s| f64::from(s)).sum::<f64>() / real;
                let least = (LEAST * mean).max(f64::MIN_POSITIVE);
                let of = |(&s, &u): (&f32, &f32)| if u > 0.0 { 1.0 / f64::from(s).max(least) } else { 0.0 };
                self.stream.iter().zip(&self.update).map(of).collect()
            }
            TokenWeights::Classes => {
                let most = MASSIVE * self.median();
                let energy = |massive: bool| -> f64 {
                    let of_class = self.update.iter().filter(|u| (**u > most) == massive);
                    of_class.map(|&u| f64::from(u)).sum()
                };
                let [ordinary, massive] = [false, true].map(|class| energy(class).max(f64::MIN_POSITIVE));
                let of = |&u: &f32| match u {
                    u if u > most => 1.0 / massive,
                    u if u > 0.0 => 1.0 / ordinary,
                    _ => 0.0,
                };
                self.update.iter().map(of).collect()
            }
        };
        let mean = weights.iter().sum::<f64>() / real;
        if mean > 0.0 && mean.is_finite() {
            weights.iter_mut().for_each(|w| *w /= mean);
        }
        Some(weights.into_iter().map(|w| w as f32).collect())
    }

    /// Energy of the update of all tokens under `weights`.
    pub(super) fn total(&self, weights: Option<&[f32]>) -> f64 {
        let weight = |i: usize| weights.and_then(|w| w.get(i)).map_or(1.0, |&w| f64::from(w));
        self.update.iter().enumerate().map(|(i, &u)| weight(i) * f64::from(u)).sum()
    }

    /// The median over the tokens whose update is not zero.
    fn median(&self) -> f32 {
        let mut all: Vec<f32> = self.update.iter().copied().filter(|u| *u > 0.0).collect();
        let middle = all.len() / 2;
        if all.is_empty() { 0.0 } else { *all.select_nth_unstable_by(middle, f32::total_cmp).1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energies() -> Energies {
        // Nine tokens alike, one that is massive, one that pads a window.
        let update = [vec![1.0; 9], vec![1e4, 0.0]].concat();
        let stream = [vec![2.0; 9], vec![2e4, 0.0]].concat();
        Energies { update, stream }
    }

    #[test]
    fn classes_share_the_energy() {
        let (e, all) = (energies(), energies().weights(TokenWeights::Classes).expect("weights"));
        let part = |range: std::ops::Range<usize>| -> f64 {
            range.map(|i| f64::from(all[i]) * f64::from(e.update[i])).sum()
        };
        assert!((part(0..9) / part(9..10) - 1.0).abs() < 1e-5);
        assert_eq!(all[10], 0.0);
        assert!((e.total(Some(&all)) - part(0..10)).abs() < 1e-9);
        // The massive token keeps a weight: its error counts as much as that of all others together.
        let alike = Energies { update: vec![1.0; 8], stream: vec![1.0; 8] };
        assert_eq!(alike.weights(TokenWeights::Classes), Some(vec![1.0; 8]));
    }

    #[test]
    fn the_stream_divides() {
        let all = energies().weights(TokenWeights::Stream).expect("weights");
        assert!((f64::from(all[0] / all[9]) - 1e4).abs() < 1.0 && all[10] == 0.0);
        assert!((all.iter().map(|&w| f64::from(w)).sum::<f64>() / 10.0 - 1.0).abs() < 1e-6);
        assert_eq!(energies().weights(TokenWeights::Even), None);
        assert!((energies().total(None) - 10009.0).abs() < 1e-9);
        // Nothing to divide by.
        let none = Energies { update: vec![0.0; 4], stream: vec![0.0; 4] };
        for by in [TokenWeights::Stream, TokenWeights::Classes] {
            assert_eq!(none.weights(by), Some(vec![0.0; 4]));
        }
    }
}
