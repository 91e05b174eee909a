//! The law of a sampled mask in f64: probabilities of kept sets under draws without replacement from a softmax, and their score.
//!
//! A kept set is a bit pattern, bit `i` for weight `i` of the group. Groups have at most 16 weights.

/// Softmax of a group's logits.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// All kept sets of `n` out of `m` weights, in increasing order of their bit patterns. Empty when `m` exceeds 16.
pub fn kept_sets(n: usize, m: usize) -> Vec<u32> {
    if m > 16 {
        return Vec::new();
    }
    (0..1u32 << m).filter(|bits| bits.count_ones() as usize == n).collect()
}

/// Every kept set of `n` weights with its probability.
pub fn distribution(logits: &[f64], n: usize) -> Vec<(u32, f64)> {
    kept_sets(n, logits.len()).into_iter().map(|kept| (kept, probability(logits, kept))).collect()
}

/// The unordered probability of `kept`: that `kept.count_ones()` draws without replacement from the softmax of `logits` give
/// exactly this set, in whatever order. By the subset recursion, all terms positive. Zero for a set that is not within the group.
pub fn probability(logits: &[f64], kept: u32) -> f64 {
    Recursion::of(logits, kept).map_or(0.0, |r| r.probability)
}

/// The score: the derivatives of `ln probability(logits, kept)` by the logits. They sum to zero. Zeros for a set that is
/// empty, is the whole group, or is not within the group.
///
/// The recursion is the one of `shaders/shared/score.wgsl`; its derivation stands there.
pub fn score(logits: &[f64], kept: u32) -> Vec<f64> {
    let mut scores = vec![0.0; logits.len()];
    let Some(r) = Recursion::of(logits, kept) else {
        return scores;
    };
    if r.outside <= 0.0 {
        return scores;
    }
    let sum: f64 = r.scores.iter().sum();
    let mut inside = r.scores.iter();
    for (i, (s, w)) in scores.iter_mut().zip(&r.weights).enumerate() {
        *s = if kept >> i & 1 == 1 { inside.next().copied().unwrap_or(0.0) } else { -w / r.outside * sum };
    }
    scores
}

/// What the recursion over the subsets of a kept set gives.
struct Recursion {
    /// `exp(logit - reference)` of the group.
    weights: Vec<f64>,
    /// Their sum outside the kept set.
    outside: f64,
    probability: f64,
    /// Scores of the kept weights, in order.
    scores: Vec<f64>,
}

impl Recursion {
    fn of(logits: &[f64], kept: u32) -> Option<Self> {
        if logits.is_empty() || logits.len() > 16 || kept >> logits.len() != 0 {
            return None;
        }
        let is_kept = |i: &usize| kept >> i & 1 == 1;
        // The reference is the greatest logit outside, so that the sum outside is about one whatever the logits are.
        let reference =
            (0..logits.len()).filter(|i| !is_kept(i)).map(|i| logits[i]).fold(f64::NEG_INFINITY, f64::max);
        if reference == f64::NEG_INFINITY {
            // everything is kept: certain
            return Some(Self {
                weights: vec![1.0; logits.len()],
                outside: 0.0,
                probability: 1.0,
                scores: vec![0.0; logits.len()],
            });
        }
        let weights: Vec<f64> = logits.iter().map(|l| (l - reference).clamp(-600.0, 100.0).exp()).collect();
        let outside = (0..weights.len()).filter(|i| !is_kept(i)).map(|i| weights[i]).sum::<f64>();
        let inside: Vec<f64> = (0..weights.len()).filter(is_kept).map(|i| weights[i]).collect();

        // f(T) = chance(T) / D(T), v(T) = that times the mean time / D(T), for all subsets T of the kept set
        let n = inside.len();
        let full = (1usize << n) - 1;
        let mut f = vec![0.0; full + 1];
        let mut v = vec![0.0; full + 1];
        let mut probability = 1.0;
        for t in 0..=full {
            let mut left = outside;
            let mut chance = if t == 0 { 1.0 } else { 0.0 };
            let mut time = 0.0;
            for (j, w) in inside.iter().enumerate() {
                let before = t & !(1 << j);
                if before == t {
                    left += w;
                } else {
                    chance += w * f[before];
                    time += w * v[before];
                }
            }
            f[t] = chance / left;
            v[t] = (f[t] + time) / left;
            probability = chance;
        }
        let scores =
            inside.iter().enumerate().map(|(j, w)| outside * w * v[full & !(1 << j)] / probability).collect();
        Some(Self { weights, outside, probability, scores })
    }
}
