//! Log-sum-exp over the vocabulary.

use super::{EPS, Twin};

/// Per token: greatest logit, sum of exponentials relative to it, the target's logit (0 when it has none).
pub struct VocabState {
    /// Exact.
    pub max: Vec<f32>,
    /// Unit: `EPS * sum_r e_r (sqrt(V) + |logit_r - max|)` with `e_r = exp(logit_r - max)`: WGSL's exponential is off by
    /// `3 + 2 |x|` units of its last place.
    pub sum: Twin,
    /// Exact.
    pub target: Vec<f32>,
    /// `max + ln(sum) - target`. Unit: that of the sum, relative, and three roundings.
    pub loss: Twin,
}

/// The state after all `[vocab, tokens]` logits.
pub fn vocab_reduce(logits: &[f32], targets: &[u32], tokens: usize) -> VocabState {
    let vocab = logits.len() / tokens;
    let mut out = VocabState { max: vec![], sum: Twin::new(tokens), target: vec![], loss: Twin::new(tokens) };
    for (t, &target) in targets.iter().enumerate() {
        let column = || (0..vocab).map(|r| logits[r * tokens + t]);
        let max = column().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut unit) = (0.0, 0.0);
        for logit in column() {
            let gap = f64::from(logit) - f64::from(max);
            sum += gap.exp();
            unit += EPS * gap.exp() * ((vocab as f64).sqrt() - gap);
        }
        let chosen = if (target as usize) < vocab { logits[target as usize * tokens + t] } else { 0.0 };
        out.max.push(max);
        out.target.push(chosen);
        out.sum.push(sum, unit);
        out.loss.push(f64::from(max) + sum.ln() - f64::from(chosen), unit / sum + 3.0 * EPS);
    }
    out
}
