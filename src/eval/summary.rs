//! What was measured window by window, as means with confidence intervals.

use std::ops::Range;

use super::{Comparison, Perplexity};
use crate::mask::philox::{key, philox4x32};

/// Resamples of a bootstrap.
const RESAMPLES: u32 = 2000;

/// A number and its 95 % confidence interval: percentiles of a bootstrap over windows (Efron 1979), which says how much another text of
/// the same kind and length could give, and nothing of other kinds of text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Of all windows.
    pub value: f64,
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

impl Estimate {
    /// `statistic` of the means of the `columns`, which have one entry for each window. Windows are drawn with replacement, the same ones
    /// for all columns, and always the same draws for a number of windows. No windows give NaN.
    pub fn of<const N: usize>(columns: [&[f64]; N], statistic: impl Fn([f64; N]) -> f64) -> Self {
        let windows = columns.iter().map(|c| c.len()).min().unwrap_or(0);
        let mean = |sums: [f64; N]| statistic(sums.map(|s| s / windows as f64));
        let value = mean(columns.map(|c| c[..windows].iter().sum()));
        let mut all: Vec<f64> = (0..RESAMPLES)
            .map(|resample| {
                let mut sums = [0.0; N];
                for four in 0..windows.div_ceil(4) {
                    let words = philox4x32([resample, four as u32, 0, 0], key(0));
                    for word in words.into_iter().take(windows - 4 * four) {
                        let i = ((u64::from(word) * windows as u64) >> 32) as usize;
                        sums.iter_mut().zip(columns).for_each(|(sum, column)| *sum += column[i]);
                    }
                }
                mean(sums)
            })
            .collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
        Self { value, low: at(0.025), high: at(0.975) }
    }
}

/// Means of every window.
#[derive(Clone, Debug)]
pub struct WindowMeans {
    /// Losses in nats.
    pub nll: Vec<f64>,
    /// Of the dense model on the same windows: losses, divergences from it, shares of tokens with its most likely token.
    pub beside: Option<[Vec<f64>; 3]>,
}

impl From<Perplexity> for WindowMeans {
    fn from(alone: Perplexity) -> Self {
        Self { nll: alone.window_means, beside: None }
    }
}

impl From<Comparison> for WindowMeans {
    fn from(c: Comparison) -> Self {
        let beside = [c.dense.window_means, c.kl_means, c.top1_means];
        Self { nll: c.model.window_means, beside: Some(beside) }
    }
}

/// What a text, or several, say of a model.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Windows measured.
    pub windows: usize,
    /// Mean loss in nats per token.
    pub nll: f64,
    /// exp of the mean loss.
    pub perplexity: Estimate,
    /// Beside the dense model.
    pub beside: Option<BesideSummary>,
}

impl Summary {
    /// Whether a loss is so large that its exponential, or that of a difference of losses, is beyond the largest number.
    pub fn overflows(&self) -> bool {
        let beside = self.beside.iter().flat_map(|b| [b.dense, b.ratio]);
        std::iter::once(self.perplexity).chain(beside).any(|e| !(e.value.is_finite() && e.high.is_finite()))
    }
}

/// Said where [`Summary::overflows`], or the perplexity of a table does.
pub const OVERFLOW: &str = "a perplexity is the exponential of a loss, and here beyond the largest number: read nll, the mean loss in nats per token";

/// A model beside the dense one.
#[derive(Clone, Copy, Debug)]
pub struct BesideSummary {
    /// Perplexity of the dense model.
    pub dense: Estimate,
    /// Perplexity over that of the dense model, window by window.
    pub ratio: Estimate,
    /// Mean of `sum p_dense * (log p_dense - log p)` in nats per predicted token.
    pub kl: Estimate,
    /// Share of the predicted tokens with the dense model's most likely token.
    pub top1: Estimate,
}

impl WindowMeans {
    /// Of the windows `which`.
    pub fn summary(&self, which: Range<usize>) -> Summary {
        let nll = &self.nll[which.clone()];
        let beside = self.beside.as_ref().map(|beside| {
            let [dense, kl, top1] = beside.each_ref().map(|column| &column[which.clone()]);
            BesideSummary {
                dense: Estimate::of([dense], |[dense]| dense.exp()),
                ratio: Estimate::of([nll, dense], |[own, dense]| (own - dense).exp()),
                kl: Estimate::of([kl], |[kl]| kl),
                top1: Estimate::of([top1], |[top1]| top1),
            }
        });
        // The loss is a mean of losses: the exponential of a large one overflows.
        let mean = nll.iter().sum::<f64>() / nll.len() as f64;
        Summary { windows: nll.len(), nll: mean, perplexity: Estimate::of([nll], |[nll]| nll.exp()), beside }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The interval of a mean of many normal numbers is that of theory, within the noise of 2000 resamples.
    #[test]
    fn intervals_are_those_of_theory() {
        let n = 1000;
        // Normal numbers through their quantiles: no luck in it.
        let values: Vec<f64> = (0..n)
            .map(|i| {
                let p = (f64::from(i) + 0.5) / f64::from(n);
                // Logistic quantiles, variance pi^2 / 3.
                5.0 + (p / (1.0 - p)).ln()
            })
            .collect();
        let found = Estimate::of([&values], |[mean]| mean);
        let error = (std::f64::consts::PI.powi(2) / 3.0 / f64::from(n)).sqrt();
        assert!((found.value - 5.0).abs() < 1e-9, "{found:?}");
        for (bound, sign) in [(found.low, -1.0), (found.high, 1.0)] {
            let off = (bound - 5.0) / (sign * 1.96 * error) - 1.0;
            assert!(off.abs() < 0.08, "{found:?}");
        }
    }

    /// A loss whose exponential overflows is what it is.
    #[test]
    fn a_loss_is_a_mean_of_losses() {
        let means = WindowMeans { nll: vec![3000.25, 3001.75, 2998.0, 3004.0], beside: None };
        let summary = means.summary(0..4);
        assert_eq!(summary.nll, 3001.0);
        assert!(summary.perplexity.value.is_infinite() && summary.overflows());
        let usual = WindowMeans { nll: vec![3.0, 4.0], beside: None }.summary(0..2);
        assert!(usual.nll == 3.5 && !usual.overflows());
        // A model that is lost beside one that is not.
        let beside = Some([vec![1.0, 2.0], vec![9.0, 9.0], vec![0.0, 0.0]]);
        let lost = WindowMeans { nll: vec![800.0, 801.0], beside }.summary(0..2);
        assert!(lost.overflows() && lost.beside.is_some_and(|b| b.ratio.value.is_infinite()));
    }

    /// A ratio is made of pairs: where one model is always as much worse, it has no spread.
    #[test]
    fn ratios_are_paired() {
        let dense: Vec<f64> = (0..50).map(|i| f64::from(i) / 10.0).collect();
        let own: Vec<f64> = dense.iter().map(|d| d + 0.5).collect();
        let beside = Some([dense.clone(), vec![0.1; 50], vec![0.9; 50]]);
        let summary = WindowMeans { nll: own, beside }.summary(10..40);
        let beside = summary.beside.unwrap();
        assert_eq!(summary.windows, 30);
        for bound in [beside.ratio.value, beside.ratio.low, beside.ratio.high] {
            assert!((bound - 0.5f64.exp()).abs() < 1e-9, "{beside:?}");
        }
        assert!(beside.dense.low < beside.dense.value && beside.dense.value < beside.dense.high);
    }
}
