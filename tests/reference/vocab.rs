//! Log-sum-exp over the vocabulary.

use super::{EPS, Twin};

/// A logit behind a soft cap `cap * tanh(x / cap)`, if there is one, and its slope, with what they are off by.
#[derive(Clone, Copy)]
struct Logit {
    value: f64,
    /// `2 EPS |value|` behind a cap, else 0.
    off: f64,
    slope: f64,
    /// `4 EPS` behind a cap, else 0.
    slope_off: f64,
}

impl Logit {
    fn new(x: f32, cap: Option<f32>) -> Self {
        let x = f64::from(x);
        let Some(cap) = cap.map(f64::from) else {
            return Self { value: x, off: 0.0, slope: 1.0, slope_off: 0.0 };
        };
        let h = (x / cap).tanh();
        Self {
            value: cap * h,
            off: 2.0 * EPS * (cap * h).abs(),
            slope: (x / cap).cosh().powi(-2),
            slope_off: 4.0 * EPS,
        }
    }
}

/// Per token: greatest logit, sum of exponentials relative to it, the target's logit (0 when it has none).
pub struct VocabState {
    /// Exact, but for what a cap is off by.
    pub max: Twin,
    /// Unit: `EPS * sum_r e_r (sqrt(V) + |logit_r - max|)` with `e_r = exp(logit_r - max)`: WGSL's exponential is off by
    /// `3 + 2 |x|` units of its last place; and what caps are off by.
    pub sum: Twin,
    /// Exact, but for what a cap is off by.
    pub target: Twin,
    /// `max + ln(sum) - target`. Unit: that of the sum, relative, and three roundings.
    pub loss: Twin,
}

/// The state after all `[vocab, tokens]` logits.
pub fn vocab_reduce(logits: &[f32], targets: &[u32], tokens: usize, cap: Option<f32>) -> VocabState {
    let vocab = logits.len() / tokens;
    let [max, sum, target, loss] = [(); 4].map(|()| Twin::new(tokens));
    let mut out = VocabState { max, sum, target, loss };
    for (t, &target) in targets.iter().enumerate() {
        let state = LogSum::new(logits, tokens, t, cap);
        let chosen = if (target as usize) < vocab {
            Logit::new(logits[target as usize * tokens + t], cap)
        } else {
            Logit { value: 0.0, off: 0.0, slope: 0.0, slope_off: 0.0 }
        };
        out.max.push(state.max.value, state.max.off);
        out.target.push(chosen.value, chosen.off);
        out.sum.push(state.log.exp(), state.unit * state.log.exp());
        let off = state.unit + 3.0 * EPS + state.max.off + chosen.off;
        out.loss.push(state.max.value + state.log - chosen.value, off);
    }
    out
}

/// Greatest logit of a token, logarithm of the sum of exponentials relative to it, and the unit of that logarithm.
#[derive(Clone, Copy)]
struct LogSum {
    max: Logit,
    log: f64,
    unit: f64,
}

impl LogSum {
    fn new(logits: &[f32], tokens: usize, t: usize, cap: Option<f32>) -> Self {
        let column = || logits.iter().skip(t).step_by(tokens).map(|&x| Logit::new(x, cap));
        let max =
            column().fold(column().next().expect("a logit"), |a, b| if b.value > a.value { b } else { a });
        let (mut sum, mut unit) = (0.0, 0.0);
        for logit in column() {
            let gap = logit.value - max.value;
            sum += gap.exp();
            let roundings = EPS * (((logits.len() / tokens) as f64).sqrt() - gap);
            unit += gap.exp() * (roundings + logit.off + max.off);
        }
        Self { max, log: sum.ln(), unit: unit / sum }
    }

    fn all(logits: &[f32], tokens: usize, cap: Option<f32>) -> Vec<Self> {
        (0..tokens).map(|t| Self::new(logits, tokens, t, cap)).collect()
    }
}

/// What underflows in f32 may be any of these: a kernel may take denormal numbers for zero.
const TINY: f64 = 1e-37;

/// `scale * (softmax(logits) - [row is the target])` of all `[vocab, tokens]` logits, times the slope of the cap; zeros for tokens
/// without a target. Unit: `scale * EPS * (p * (4 + |logit - max|) + [row is the target])`, and what the sum of exponentials and the
/// cap are off.
pub fn vocab_gradient(logits: &[f32], targets: &[u32], scale: f32, tokens: usize, cap: Option<f32>) -> Twin {
    let states = LogSum::all(logits, tokens, cap);
    let mut out = Twin::new(tokens);
    for (i, &x) in logits.iter().enumerate() {
        let (row, t) = (i / tokens, i % tokens);
        if targets[t] == u32::MAX {
            out.push(0.0, 0.0);
            continue;
        }
        let (state, logit) = (states[t], Logit::new(x, cap));
        let gap = logit.value - state.max.value;
        let p = (gap - state.log).exp();
        let hit = if targets[t] as usize == row { 1.0 } else { 0.0 };
        let off = p * (EPS * (4.0 - gap) + state.unit + logit.off + state.max.off) + EPS * hit + TINY;
        let size = f64::from(scale.abs());
        out.push(
            f64::from(scale) * (p - hit) * logit.slope,
            size * (off * (logit.slope + logit.slope_off) + (p - hit).abs() * logit.slope_off),
        );
    }
    out
}

/// `scale * (p - p_dense)` of all `[vocab, tokens]` logits, times the slope of the cap, and per token `sum p_dense * (log p_dense - log
/// p)`; zeros for tokens without a target; and how many rows are the greatest logit of both models: the least and the most of them,
/// which differ where a cap leaves several logits nearer to the greatest one than it is off. `caps` are those of `logits` and of `dense`. With `e = EPS * (4 + |logit - max| + |log p|)` and what the sums of exponentials and the caps are off, for
/// both models, units: `scale * (p * e + p_dense * e_dense)`; `sum p_dense * (e + e_dense + (sqrt(vocab) * EPS + e_dense) *
/// |difference|)`.
pub fn vocab_kl(
    logits: &[f32],
    dense: &[f32],
    targets: &[u32],
    scale: f32,
    tokens: usize,
    caps: [Option<f32>; 2],
) -> ([Twin; 2], Vec<[f32; 2]>) {
    let vocab = logits.len() / tokens;
    let mut out = [Twin::new(tokens), Twin::new(tokens)];
    let of_sparse = LogSum::all(logits, tokens, caps[0]);
    let of_dense = LogSum::all(dense, tokens, caps[1]);
    // logarithm of the probability, and how far it is off
    let log = |logit: Logit, state: LogSum| {
        let gap = logit.value - state.max.value;
        let caps = logit.off + state.max.off;
        (gap - state.log, EPS * (4.0 + gap.abs() + (gap - state.log).abs()) + state.unit + caps)
    };
    let is_greatest =
        |logit: Logit, state: LogSum| logit.value >= state.max.value - 4.0 * (logit.off + state.max.off);
    let mut sums = vec![[0.0, 0.0]; tokens];
    // rows that may be the greatest of both, of `logits`, and of `dense`
    let mut greatest = vec![[0usize; 3]; tokens];
    for i in 0..logits.len() {
        let t = i % tokens;
        if targets[t] == u32::MAX {
            out[0].push(0.0, 0.0);
            continue;
        }
        let (own, other) = (Logit::new(logits[i], caps[0]), Logit::new(dense[i], caps[1]));
        let ((q, q_off), (d, d_off)) = (log(own, of_sparse[t]), log(other, of_dense[t]));
        let (a, b) = (is_greatest(own, of_sparse[t]), is_greatest(other, of_dense[t]));
        for (count, is) in greatest[t].iter_mut().zip([a && b, a, b]) {
            *count += usize::from(is);
        }
        let size = f64::from(scale.abs());
        let off = q.exp() * q_off + d.exp() * d_off + TINY;
        let difference = q.exp() - d.exp();
        out[0].push(
            f64::from(scale) * difference * own.slope,
            size * (off * (own.slope + own.slope_off) + difference.abs() * own.slope_off),
        );
        sums[t][0] += d.exp() * (d - q);
        let relative = (vocab as f64).sqrt() * EPS + d_off;
        sums[t][1] += (d.exp() + TINY) * (q_off + d_off + relative * (d - q).abs());
    }
    sums.into_iter().for_each(|[sum, unit]| out[1].push(sum, unit));
    let sure = |[_, a, b]: [usize; 3]| caps == [None; 2] || a == 1 && b == 1;
    let agree = greatest.iter().map(|&g| [if sure(g) { g[0] as f32 } else { 0.0 }, g[0] as f32]).collect();
    (out, agree)
}
