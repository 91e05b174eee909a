//! The score of a sampled group in f32, operation by operation as `shaders/shared/score.wgsl` computes it.
//!
//! [`super::law::score`] is the f64 reference. Against it, over all patterns and random logits with gaps up to 60, these
//! formulas are off by at most 2e-7 of `1 + |score|` (measured; `tests/law.rs` asserts 2e-6). A driver's `exp`, allowed
//! `3 + 2|x|` units in the last place, adds to that. Three forms, by the number N of kept weights:
//!
//! - N = 1, 2: closed;
//! - N = 3 to 8: the recursion over the 2^N subsets of the kept set;
//! - N = 9 to 15 (of 16): 2^15 values do not fit private memory, so the integral over the time of the first arrival
//!   outside the kept set, by the trapezoidal rule in `ln t`, whose error falls exponentially with the step: 2e-3 at a step
//!   of 0.5 (flat 13:16), below f32's rounding at 0.25.

/// Above this gap to the greatest dropped logit, a kept logit counts as being there.
pub const GAP_MAX: f32 = 20.0;
/// Below this gap to the greatest dropped logit, a logit counts as being there.
pub const GAP_MIN: f32 = -80.0;
/// The quadrature runs over this many nodes from this `ln t` on, in these steps.
const NODES: u32 = 88;
const LN_T_FIRST: f32 = -17.5;
const LN_T_STEP: f32 = 0.25;
/// Greatest N that takes the subset recursion.
pub const RECURSION_MAX: usize = 8;
/// Divisors are kept above this.
const TINY: f32 = 1e-37;

/// Derivatives of the log probability of `kept` by the group's logits. At most 16 logits; at least one kept, one dropped
/// (anything else gives zeros).
pub fn score(logits: &[f32], kept: u32) -> Vec<f32> {
    let mut scores = vec![0.0; logits.len()];
    let n = kept.count_ones() as usize;
    if logits.len() > 16 || kept >> logits.len() != 0 || n == 0 || n >= logits.len() {
        return scores;
    }
    let is_kept = |i: usize| kept >> i & 1 == 1;
    let reference = (0..logits.len()).filter(|&i| !is_kept(i)).map(|i| logits[i]).fold(-3.0e38, f32::max);
    let weights: Vec<f32> = logits.iter().map(|l| (l - reference).clamp(GAP_MIN, GAP_MAX).exp()).collect();
    let outside: f32 = (0..weights.len()).filter(|&i| !is_kept(i)).map(|i| weights[i]).sum();
    let inside: Vec<f32> = (0..weights.len()).filter(|&i| is_kept(i)).map(|i| weights[i]).collect();
    let of_kept = match inside[..] {
        [w] => vec![outside / (outside + w)],
        [w, x] => pair(w, x, outside),
        _ if n <= RECURSION_MAX => recursion(&inside, outside),
        _ => race(&inside, outside),
    };
    let sum: f32 = of_kept.iter().sum();
    let mut of_kept = of_kept.into_iter();
    for (i, (s, w)) in scores.iter_mut().zip(&weights).enumerate() {
        *s = match is_kept(i) {
            true => of_kept.next().unwrap_or(0.0),
            false => -w * (sum / outside),
        };
    }
    scores
}

fn pair(w: f32, x: f32, r: f32) -> Vec<f32> {
    let both = r + r + (w + x);
    let r_over_z = r / (r + (w + x));
    let one = |mine: f32, other: f32| (r + other) * r_over_z / (r + mine) * (1.0 + mine / both);
    vec![one(w, x), one(x, w)]
}

fn recursion(w: &[f32], r: f32) -> Vec<f32> {
    let full = (1usize << w.len()) - 1;
    let mut f = vec![0.0f32; full];
    let mut v = vec![0.0f32; full];
    for t in 0..full {
        let mut left = r;
        let mut chance = if t == 0 { 1.0 } else { 0.0 };
        let mut time = 0.0;
        for (j, weight) in w.iter().enumerate() {
            let before = t & !(1 << j);
            if before == t {
                left += weight;
            } else {
                chance += weight * f[before];
                time += weight * v[before];
            }
        }
        f[t] = chance / left;
        v[t] = (f[t] + time) / left;
    }
    let last = |j: usize| full & !(1 << j);
    let probability: f32 = w.iter().enumerate().map(|(j, w)| w * f[last(j)]).sum();
    w.iter().enumerate().map(|(j, w)| r * w * v[last(j)] / probability.max(TINY)).collect()
}

fn race(w: &[f32], r: f32) -> Vec<f32> {
    let mut probability = 0.0f32;
    let mut scores = vec![0.0f32; w.len()];
    let mut ratios = vec![0.0f32; w.len()];
    for node in 0..NODES {
        let t = (LN_T_FIRST + LN_T_STEP * node as f32).exp();
        let mut density = t * (-(r * t).min(80.0)).exp();
        for (ratio, weight) in ratios.iter_mut().zip(w) {
            let x = (weight * t).min(80.0);
            let absent = (-x).exp();
            // 1 - e^-x, by its series where the subtraction would cancel
            let arrived = if x < 0.3 {
                let tail = 0.041_666_668 - x * (0.008_333_334 - x * 0.001_388_888_9);
                x * (1.0 - x * (0.5 - x * (0.166_666_67 - x * tail)))
            } else {
                1.0 - absent
            };
            *ratio = x * absent / arrived.max(TINY);
            density *= arrived;
        }
        probability += density;
        for (s, ratio) in scores.iter_mut().zip(&ratios) {
            *s += density * ratio;
        }
    }
    scores.iter().map(|s| s / probability.max(TINY)).collect()
}
