//! Backward pass of causal attention, by the explicit formulas of the softmax.

use maskwright::kernel::Heads;

use super::attention::{capped, score_error, seen};
use super::{EPS, Twin};

/// What the backward pass starts from: `q`, `d_o` `[heads * head_dim, tokens]`, `k`, `v` `[kv_heads * head_dim, tokens]`, in
/// windows of `window` (padded) tokens.
#[derive(Clone, Copy)]
pub struct AttentionCase<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub d_o: &'a [f32],
    pub heads: Heads,
    pub window: usize,
    pub tokens: usize,
}

/// What is smaller may be 0 in f32.
const TINY: f64 = f32::MIN_POSITIVE as f64;

/// A value and how much an f32 implementation may be off.
#[derive(Clone, Copy, Default)]
struct Inexact(f64, f64);

/// One query and one key it sees.
#[derive(Clone, Copy)]
struct Pair {
    key: usize,
    /// Probability.
    p: Inexact,
    /// Gradient of the scaled product of query and key.
    ds: Inexact,
}

impl AttentionCase<'_> {
    fn at(&self, x: &[f32], row: usize, t: usize) -> f64 {
        f64::from(x[row * self.tokens + t])
    }

    fn scale(&self) -> f64 {
        f64::from(self.heads.scale)
    }

    /// First rows of a query head and of its key head.
    fn rows(&self, head: usize) -> (usize, usize) {
        let group = self.heads.heads / self.heads.kv_heads;
        (head * self.heads.head_dim, head / group * self.heads.head_dim)
    }

    /// Sum over features of a head of `x[.., i] * y[.., j]`, and of the absolute values.
    fn dot(&self, x: (&[f32], usize, usize), y: (&[f32], usize, usize)) -> (f64, f64) {
        let products =
            (0..self.heads.head_dim).map(|c| self.at(x.0, x.1 + c, x.2) * self.at(y.0, y.1 + c, y.2));
        products.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()))
    }

    /// Log-sum-exp of the scores of query `i`, its error, and the scores with their slopes.
    fn scores(&self, head: usize, i: usize) -> (Inexact, Vec<(f64, f64)>) {
        let (qr, kr) = self.rows(head);
        let mut worst: f64 = 0.0;
        let scores: Vec<(f64, f64)> = seen(self.heads, self.window, i)
            .map(|j| {
                let (sum, abs) = self.dot((self.q, qr, i), (self.k, kr, j));
                worst = worst.max(score_error(self.heads, self.scale() * sum, self.scale().abs() * abs));
                capped(self.heads, self.scale() * sum)
            })
            .collect();
        let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
        let total: f64 = scores.iter().map(|s| (s.0 - top).exp()).sum();
        let error = worst + EPS * (scores.len() as f64).sqrt();
        (Inexact(top + total.ln(), error), scores)
    }

    /// All keys of query `i`. An error of a score or of the log-sum-exp is a relative error of a probability; the gradient of a
    /// probability and `delta` are sums over the features, whose error is not relative to their difference. The slope of the cap,
    /// `1 - tanh^2`, is off by as much as `tanh` is, times two.
    fn pairs(&self, head: usize, i: usize) -> Vec<Pair> {
        let (qr, kr) = self.rows(head);
        let keys = seen(self.heads, self.window, i);
        let (lse, scores) = self.scores(head, i);
        let p: Vec<f64> = scores.iter().map(|s| (s.0 - lse.0).exp()).collect();
        let dp: Vec<(f64, f64)> =
            keys.clone().map(|j| self.dot((self.d_o, qr, i), (self.v, kr, j))).collect();
        let delta: f64 = p.iter().zip(&dp).map(|(p, g)| p * g.0).sum();
        let size: f64 = p.iter().zip(&dp).map(|(p, g)| p * g.1).sum();
        let rounding = EPS * (self.heads.head_dim as f64).sqrt();
        let off = self.heads.cap.map_or(0.0, |cap| 2.0 * (lse.1 / f64::from(cap) + EPS));
        let pair = |(n, (&p, g)): (usize, (&f64, &(f64, f64)))| {
            let slope = scores[n].1;
            let ds = p * (g.0 - delta);
            let error = lse.1 * ds.abs() + (p * rounding + TINY) * (g.1 + size);
            let ds = Inexact(ds * slope, error * slope + off * ds.abs());
            Pair { key: keys.start + n, p: Inexact(p, lse.1 * p + TINY), ds }
        };
        p.iter().zip(&dp).enumerate().map(pair).collect()
    }

    /// Adds `weight * x` and what it may be off to `rows` of `out` from `row` on, at token `t`.
    fn add(&self, out: &mut [Inexact], row: usize, t: usize, weight: Inexact, x: (&[f32], usize, usize)) {
        for c in 0..self.heads.head_dim {
            let x = self.at(x.0, x.1 + c, x.2);
            let sum = &mut out[(row + c) * self.tokens + t];
            // Rounding of the sum itself: at most a window's keys, or queries times the heads of a group.
            let terms = (self.window * self.heads.heads / self.heads.kv_heads) as f64;
            sum.0 += weight.0 * x;
            sum.1 += (weight.1 + EPS * terms.sqrt() * weight.0.abs()) * x.abs() + TINY;
        }
    }

    fn twin(&self, out: Vec<Inexact>) -> Twin {
        let mut twin = Twin::new(self.tokens);
        out.into_iter().for_each(|x| twin.push(x.0, x.1));
        twin
    }
}

/// Log-sum-exp of each query's scores, `[heads, tokens]`. Unit: `A + EPS * sqrt(keys)`, `A` as in `attention`.
pub fn log_sum_exp(case: AttentionCase<'_>) -> Twin {
    let mut out = Vec::new();
    for head in 0..case.heads.heads {
        out.extend((0..case.tokens).map(|i| case.scores(head, i).0));
    }
    case.twin(out)
}

/// `delta[h, i] = sum_d o d_o`. Unit: `sqrt(head_dim) * EPS * sum_d |o d_o|`.
pub fn attention_delta(o: &[f32], d_o: &[f32], head_dim: usize, tokens: usize) -> Twin {
    let mut out = Twin::new(tokens);
    for head in 0..o.len() / head_dim / tokens {
        for t in 0..tokens {
            let at = |c: usize| (head * head_dim + c) * tokens + t;
            let products = (0..head_dim).map(|c| f64::from(o[at(c)]) * f64::from(d_o[at(c)]));
            let (sum, abs) = products.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
            out.push(sum, (head_dim as f64).sqrt() * EPS * abs);
        }
    }
    out
}

/// `d_q_i = scale * sum_{j <= i} ds[i, j] k_j` with `ds[i, j] = p[i, j] (d_o_i . v_j - sum_l p[i, l] d_o_i . v_l)`, times the slope
/// of the cap, over the keys that are seen.
/// Unit: the sum of `|k_j|` times the error of `ds`, see `pairs`, and of the roundings of the sum.
pub fn attention_backward_q(case: AttentionCase<'_>) -> Twin {
    let mut out = vec![Inexact::default(); case.q.len()];
    for head in 0..case.heads.heads {
        let (qr, kr) = case.rows(head);
        for i in 0..case.tokens {
            for Pair { key, ds, .. } in case.pairs(head, i) {
                let ds = Inexact(case.scale() * ds.0, case.scale() * ds.1);
                case.add(&mut out, qr, i, ds, (case.k, kr, key));
            }
        }
    }
    case.twin(out)
}

/// `d_k_j = scale * sum ds[i, j] q_i` and `d_v_j = sum p[i, j] d_o_i`, over the queries from j on and the heads of the group.
/// Units as in `attention_backward_q`.
pub fn attention_backward_kv(case: AttentionCase<'_>) -> [Twin; 2] {
    let mut d_k = vec![Inexact::default(); case.k.len()];
    let mut d_v = d_k.clone();
    for head in 0..case.heads.heads {
        let (qr, kr) = case.rows(head);
        for i in 0..case.tokens {
            for Pair { key, p, ds } in case.pairs(head, i) {
                let ds = Inexact(case.scale() * ds.0, case.scale() * ds.1);
                case.add(&mut d_k, kr, key, ds, (case.q, qr, i));
                case.add(&mut d_v, kr, key, p, (case.d_o, qr, i));
            }
        }
    }
    [d_k, d_v].map(|x| case.twin(x))
}

/// Both at once: d_q, d_k, d_v.
pub fn attention_backward_lanes(case: AttentionCase<'_>) -> [Twin; 3] {
    let [d_k, d_v] = attention_backward_kv(case);
    [attention_backward_q(case), d_k, d_v]
}
