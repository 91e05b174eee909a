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

/// Maximum, logarithm of the sum of exponentials relative to it, and the unit of that logarithm, of one token.
fn log_sum(logits: &[f32], tokens: usize, t: usize) -> (f64, f64, f64) {
    let column = || logits.iter().skip(t).step_by(tokens).map(|&x| f64::from(x));
    let max = column().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut unit) = (0.0, 0.0);
    for logit in column() {
        let gap = logit - max;
        sum += gap.exp();
        unit += EPS * gap.exp() * (((logits.len() / tokens) as f64).sqrt() - gap);
    }
    (max, sum.ln(), unit / sum)
}

/// What underflows in f32 may be any of these: a kernel may take denormal numbers for zero.
const TINY: f64 = 1e-37;

/// `scale * (softmax(logits) - [row is the target])` of all `[vocab, tokens]` logits; zeros for tokens without a target.
/// Unit: `scale * EPS * (p * (4 + |logit - max|) + [row is the target])`, and what the sum of exponentials is off.
pub fn vocab_gradient(logits: &[f32], targets: &[u32], scale: f32, tokens: usize) -> Twin {
    let states: Vec<_> = (0..tokens).map(|t| log_sum(logits, tokens, t)).collect();
    let mut out = Twin::new(tokens);
    for (i, &logit) in logits.iter().enumerate() {
        let (row, t) = (i / tokens, i % tokens);
        if targets[t] == u32::MAX {
            out.push(0.0, 0.0);
            continue;
        }
        let (max, log, unit) = states[t];
        let gap = f64::from(logit) - max;
        let p = (gap - log).exp();
        let hit = if targets[t] as usize == row { 1.0 } else { 0.0 };
        let size = f64::from(scale.abs());
        out.push(f64::from(scale) * (p - hit), size * (p * (EPS * (4.0 - gap) + unit) + EPS * hit + TINY));
    }
    out
}

/// `scale * (p - p_dense)` of all `[vocab, tokens]` logits, and per token `sum p_dense * (log p_dense - log p)`; zeros for tokens
/// without a target; and how many rows are the greatest logit of both models, exact. With `e = EPS * (4 + |logit - max| + |log p|)` and what the sums of exponentials are off, for both models,
/// units: `scale * (p * e + p_dense * e_dense)`; `sum p_dense * (e + e_dense + (sqrt(vocab) * EPS + e_dense) * |difference|)`.
pub fn vocab_kl(
    logits: &[f32],
    dense: &[f32],
    targets: &[u32],
    scale: f32,
    tokens: usize,
) -> ([Twin; 2], Vec<f32>) {
    let vocab = logits.len() / tokens;
    let mut out = [Twin::new(tokens), Twin::new(tokens)];
    let states = |x: &[f32]| (0..tokens).map(|t| log_sum(x, tokens, t)).collect::<Vec<_>>();
    let (of_sparse, of_dense) = (states(logits), states(dense));
    // logarithm of the probability, and how far it is off
    let log = |logit: f32, (max, log, unit): (f64, f64, f64)| {
        let gap = f64::from(logit) - max;
        (gap - log, EPS * (4.0 + gap.abs() + (gap - log).abs()) + unit)
    };
    let (mut sums, mut agree) = (vec![[0.0, 0.0]; tokens], vec![0.0; tokens]);
    for i in 0..logits.len() {
        let t = i % tokens;
        if targets[t] == u32::MAX {
            out[0].push(0.0, 0.0);
            continue;
        }
        let ((q, q_off), (d, d_off)) = (log(logits[i], of_sparse[t]), log(dense[i], of_dense[t]));
        if f64::from(logits[i]) == of_sparse[t].0 && f64::from(dense[i]) == of_dense[t].0 {
            agree[t] += 1.0;
        }
        let size = f64::from(scale.abs());
        out[0]
            .push(f64::from(scale) * (q.exp() - d.exp()), size * (q.exp() * q_off + d.exp() * d_off + TINY));
        sums[t][0] += d.exp() * (d - q);
        let relative = (vocab as f64).sqrt() * EPS + d_off;
        sums[t][1] += (d.exp() + TINY) * (q_off + d_off + relative * (d - q).abs());
    }
    sums.into_iter().for_each(|[sum, unit]| out[1].push(sum, unit));
    (out, agree)
}
