//! Soft masks, their gradients, and Adam, one group and one value at a time.

use maskwright::kernel::{Relaxation, SampleAt};
use maskwright::mask::Pattern;
use maskwright::mask::gumbel::{FIXED_ONE, gumbel};
use maskwright::mask::philox::{key, philox4x32};
use maskwright::mask::rank::unrank;

use super::{EPS, Twin, inclusion, inclusion_gradient};

/// Noise of the kernels for a weight.
pub fn weight_noise(at: SampleAt, cols: usize, row: usize, col: usize) -> f64 {
    let quad = (row * cols.div_ceil(4) + col / 4) as u32;
    let random = philox4x32([at.step, at.projection, quad, 16], key(at.seed));
    f64::from(gumbel(random[col % 4])) / f64::from(FIXED_ONE)
}

/// Noise of the kernels for pattern `k` of a group, groups counted row by row.
pub fn pattern_noise(at: SampleAt, group: usize, k: usize) -> f64 {
    let random = philox4x32([at.step, at.projection, group as u32, 32 + k as u32 / 4], key(at.seed));
    f64::from(gumbel(random[k % 4])) / f64::from(FIXED_ONE)
}

/// log(sum of e^a over those that `take` takes).
pub(super) fn log_sum(a: &[f64], take: impl Fn(usize) -> bool) -> f64 {
    let of = || a.iter().enumerate().filter(|&(i, _)| take(i)).map(|(_, &a)| a);
    let top = of().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return top;
    }
    top + of().map(|a| (a - top).exp()).sum::<f64>().ln()
}

/// Shares and their complements' logarithms.
fn softmax(a: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let all = log_sum(a, |_| true);
    let share = a.iter().map(|a| (a - all).exp()).collect();
    let rest = (0..a.len()).map(|i| log_sum(a, |j| j != i) - all).collect();
    (share, rest)
}

/// The keys of round `k`, for `shake` > 0 moved by about as much as f32 moves them: a rounding of the largest key, and of a logarithm times
/// the removal (2^-22 is half of what WGSL allows it), with the signs of that number.
fn shake_keys(keys: &mut [f64], k: usize, removal: f64, shake: u32) {
    let size = keys.iter().fold(0.0f64, |s, a| s.max(a.abs()));
    let error = EPS * (1.0 + size) + if k > 0 { removal * 2f64.powi(-22) } else { 0.0 };
    for (i, a) in keys.iter_mut().enumerate().filter(|_| shake > 0) {
        let word = philox4x32([shake, k as u32, i as u32, 0], [5, 6])[0];
        *a += error * (f64::from(word) / 2_147_483_648.0 - 1.0);
    }
}

/// The keys of every round: the first, then those with what was drawn removed.
fn rounds(keys: &[f64], n: usize, removal: f64, shake: u32) -> Vec<Vec<f64>> {
    let mut out = vec![keys.to_vec()];
    for k in 0..n {
        shake_keys(&mut out[k], k, removal, shake);
        if k + 1 < n {
            let (_, rest) = softmax(&out[k]);
            out.push(out[k].iter().zip(&rest).map(|(a, r)| a + removal * r).collect());
        }
    }
    out
}

/// The soft top-N of the keys of a group.
pub fn soft_top(keys: &[f64], n: usize, relaxation: Relaxation) -> Vec<f64> {
    shaken_top(keys, n, relaxation, 0)
}

fn shaken(keys: &[f64], shake: u32) -> Vec<f64> {
    let mut keys = keys.to_vec();
    shake_keys(&mut keys, 0, 0.0, shake);
    keys
}

fn shaken_top(keys: &[f64], n: usize, relaxation: Relaxation, shake: u32) -> Vec<f64> {
    match relaxation {
        Relaxation::Rounds { removal } => rounds_top(keys, n, f64::from(removal), shake),
        law => inclusion(&shaken(keys, shake), n, law),
    }
}

fn rounds_top(keys: &[f64], n: usize, removal: f64, shake: u32) -> Vec<f64> {
    let mut out = vec![0.0; keys.len()];
    for a in rounds(keys, n, removal, shake) {
        for (out, share) in out.iter_mut().zip(softmax(&a).0) {
            *out += share;
        }
    }
    out
}

/// d <g, soft_top(keys)> / d keys.
pub fn soft_top_gradient(keys: &[f64], n: usize, relaxation: Relaxation, g: &[f64]) -> Vec<f64> {
    shaken_gradient(keys, n, relaxation, g, 0)
}

fn shaken_gradient(keys: &[f64], n: usize, relaxation: Relaxation, g: &[f64], shake: u32) -> Vec<f64> {
    match relaxation {
        Relaxation::Rounds { removal } => rounds_gradient(keys, n, f64::from(removal), g, shake),
        law => inclusion_gradient(&shaken(keys, shake), n, law, g),
    }
}

/// By the derivatives of every step.
fn rounds_gradient(keys: &[f64], n: usize, removal: f64, g: &[f64], shake: u32) -> Vec<f64> {
    let m = keys.len();
    let mut d = vec![0.0; m];
    for (k, a) in rounds(keys, n, removal, shake).iter().enumerate().rev() {
        let (share, rest) = softmax(a);
        let all = log_sum(a, |_| true);
        let mut step = vec![0.0; m];
        for j in 0..m {
            for i in 0..m {
                // d share_i / d a_j, without the difference of two numbers near 1
                let by = if i == j { share[i] * rest[i].exp() } else { -share[i] * share[j] };
                step[j] += g[i] * by;
                if k + 1 < n {
                    let by = if i == j { -share[i] } else { share[i] * (a[j] - all - rest[i]).exp() };
                    step[j] += removal * d[i] * by;
                }
            }
        }
        for j in 0..m {
            d[j] += step[j];
        }
    }
    d
}

/// The largest change that shaken keys make in `of(0)`.
fn sensitivity(of: impl Fn(u32) -> Vec<f64>) -> f64 {
    let exact = of(0);
    (1..=4)
        .flat_map(&of)
        .zip(exact.iter().cycle())
        .fold(0.0, |most, (shaken, exact)| most.max((shaken - exact).abs()))
}

/// The soft mask of keys of the patterns, and its parts.
pub fn soft_patterns(keys: &[f64], pattern: Pattern) -> (Vec<f64>, Vec<f64>) {
    let (y, _) = softmax(keys);
    let mut mask = vec![0.0; pattern.m()];
    for (k, y) in y.iter().enumerate() {
        let kept = unrank(pattern, k as u32).expect("a pattern");
        for (i, mask) in mask.iter_mut().enumerate() {
            *mask += if kept >> i & 1 == 1 { *y } else { 0.0 };
        }
    }
    (mask, y)
}

/// d <g, mask> / d keys of the patterns.
pub fn soft_patterns_gradient(keys: &[f64], pattern: Pattern, g: &[f64]) -> Vec<f64> {
    let (_, y) = soft_patterns(keys, pattern);
    let inner: Vec<f64> = (0..y.len())
        .map(|k| {
            let kept = unrank(pattern, k as u32).expect("a pattern");
            g.iter().enumerate().filter(|&(i, _)| kept >> i & 1 == 1).map(|(_, g)| g).sum()
        })
        .collect();
    let mean: f64 = y.iter().zip(&inner).map(|(y, s)| y * s).sum();
    y.iter().zip(&inner).map(|(y, s)| y * (s - mean)).collect()
}

/// The relaxations of a pattern, the rounds with this removal.
pub fn relaxations(n: usize, removal: f32) -> Vec<Relaxation> {
    let mut out = vec![Relaxation::Rounds { removal }, Relaxation::FixedSize];
    out.extend((n <= Relaxation::MOST_DRAWS).then_some(Relaxation::Draws));
    out
}

/// What makes soft masks of a tensor.
#[derive(Clone, Copy)]
pub struct SoftCase {
    pub pattern: Pattern,
    pub temperature: f32,
    /// Of top-N masks.
    pub relaxation: Relaxation,
    /// Of patterns.
    pub scale: f32,
    pub noise: Option<(SampleAt, f32)>,
}

impl SoftCase {
    /// Keys of the group that starts at `at` of the row-major logits `[rows, cols]`.
    fn top_keys(&self, logits: &[f32], cols: usize, at: usize) -> Vec<f64> {
        (at..at + self.pattern.m())
            .map(|i| {
                let noise =
                    self.noise.map_or(0.0, |(n, s)| f64::from(s) * weight_noise(n, cols, i / cols, i % cols));
                (f64::from(logits[i]) + noise) / f64::from(self.temperature)
            })
            .collect()
    }

    fn pattern_keys(&self, logits: &[f32], group: usize) -> Vec<f64> {
        let count = self.pattern.combinations() as usize;
        (0..count)
            .map(|k| {
                let noise = self.noise.map_or(0.0, |(n, s)| f64::from(s) * pattern_noise(n, group, k));
                (f64::from(self.scale) * f64::from(logits[group * count + k]) + noise)
                    / f64::from(self.temperature)
            })
            .collect()
    }

    /// Relative error of a share of patterns: keys are rounded once, an error of a key is one of its share.
    fn error(&self, keys: &[f64]) -> f64 {
        EPS * (4.0 + 2.0 * keys.iter().fold(0.0f64, |s, k| s.max(k.abs())))
    }
}

/// Effective weights `[rows, cols]` under a soft top-N mask (`top`) or soft patterns. Unit: |w| times 4 EPS and what roundings of the keys
/// make of the group's masks.
pub fn effective(w: &[f32], cols: usize, logits: &[f32], case: &SoftCase, top: bool) -> Twin {
    let (n, m) = (case.pattern.n(), case.pattern.m());
    let mut out = Twin::new(cols);
    for (g, group) in w.chunks_exact(m).enumerate() {
        let (mask, error) = if top {
            let keys = case.top_keys(logits, cols, g * m);
            let error = sensitivity(|shake| shaken_top(&keys, n, case.relaxation, shake));
            (soft_top(&keys, n, case.relaxation), 4.0 * EPS + error)
        } else {
            let keys = case.pattern_keys(logits, g);
            (soft_patterns(&keys, case.pattern).0, case.error(&keys))
        };
        for (w, mask) in group.iter().zip(mask) {
            out.push(f64::from(*w) * mask, error * f64::from(w.abs()) + 1e-37);
        }
    }
    out
}

/// The gradient by the logits of top-N masks, `gradient` `[rows, cols]`. Unit: 4 EPS N times the group's largest |w g| and
/// gradient, and what roundings of the keys make of it.
pub fn adam_mask(w: &[f32], cols: usize, logits: &[f32], case: &SoftCase, gradient: &[f32]) -> Twin {
    let (n, m) = (case.pattern.n(), case.pattern.m());
    let temperature = f64::from(case.temperature);
    let mut out = Twin::new(cols);
    for at in (0..w.len()).step_by(m) {
        let keys = case.top_keys(logits, cols, at);
        let g: Vec<f64> = (at..at + m).map(|i| f64::from(w[i]) * f64::from(gradient[i])).collect();
        let exact = soft_top_gradient(&keys, n, case.relaxation, &g);
        let size = g.iter().chain(&exact).fold(0.0f64, |s, g| s.max(g.abs()));
        let error = sensitivity(|shake| shaken_gradient(&keys, n, case.relaxation, &g, shake));
        for d in exact {
            out.push(d / temperature, (4.0 * EPS * n as f64 * size + error) / temperature + 1e-37);
        }
    }
    out
}

/// The gradient by the logits of patterns, with that of `- regulariser (w mask)^2`. Unit: that of [`effective`], times scale /
/// temperature, N, and the group's largest |w g|.
pub fn adam_patterns(
    w: &[f32],
    cols: usize,
    logits: &[f32],
    case: &SoftCase,
    regulariser: f32,
    gradient: &[f32],
) -> Twin {
    let (n, m) = (case.pattern.n(), case.pattern.m());
    let slope = f64::from(case.scale) / f64::from(case.temperature);
    let mut out = Twin::new(cols);
    for group in 0..w.len() / m {
        let keys = case.pattern_keys(logits, group);
        let (mask, _) = soft_patterns(&keys, case.pattern);
        let g: Vec<f64> = (0..m)
            .map(|i| {
                let (w, g) = (f64::from(w[group * m + i]), f64::from(gradient[group * m + i]));
                w * g - 2.0 * f64::from(regulariser) * w * w * mask[i]
            })
            .collect();
        let size = g.iter().fold(0.0f64, |s, g| s.max(g.abs()));
        for d in soft_patterns_gradient(&keys, case.pattern, &g) {
            out.push(slope * d, case.error(&keys) * size * n as f64 * slope + 1e-37);
        }
    }
    out
}

/// Adam's constants: rate, beta1, beta2, eps, decay, step.
pub type AdamCase = (f64, f64, f64, f64, f64, u32);

/// A step of AdamW: the new value and moments. `torch.optim.AdamW`, written down from its documentation.
pub fn adam_weight(x: f64, m: f64, v: f64, g: f64, adam: AdamCase) -> [f64; 3] {
    let (rate, beta1, beta2, eps, decay, step) = adam;
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let m_hat = m / (1.0 - beta1.powf(f64::from(step)));
    let v_hat = v / (1.0 - beta2.powf(f64::from(step)));
    [x - rate * decay * x - rate * m_hat / (v_hat.sqrt() + eps), m, v]
}
