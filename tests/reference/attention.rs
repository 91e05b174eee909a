//! Causal attention with grouped query heads.

use std::ops::Range;

use maskwright::kernel::Heads;

use super::{EPS, Twin};

/// The keys that the query at token `i` sees, in windows of `window` (padded) tokens.
pub fn seen(h: Heads, window: usize, i: usize) -> Range<usize> {
    let first = i / window * window;
    h.window.map_or(first, |near| first.max((i + 1).saturating_sub(near)))..i + 1
}

/// A score from the scaled product, and how much it changes with it.
pub fn capped(h: Heads, product: f64) -> (f64, f64) {
    h.cap.map_or((product, 1.0), |cap| {
        let tanh = (product / f64::from(cap)).tanh();
        (f64::from(cap) * tanh, 1.0 - tanh * tanh)
    })
}

/// How much a score may be off: the scaled product by `sqrt(head_dim) * EPS * size`, `size` being the sum of its terms' absolute
/// values, of which a cap lets through as much as its slope and, far off, no more than a change of the cap; then come its own roundings.
pub fn score_error(h: Heads, product: f64, size: f64) -> f64 {
    let rounding = EPS * (h.head_dim as f64).sqrt() * size;
    h.cap.map_or(rounding, |_| {
        // The slope of the least product that this one may have come out as.
        let near = (product.abs() - rounding).max(0.0);
        rounding * capped(h, near).1 + 2.0 * EPS * capped(h, product).0.abs()
    })
}

/// `o[h, :, i] = sum_j softmax_j(scale * q_i . k_j) v_j` over the keys that are seen within each window of `window` (padded) tokens,
/// the scores capped if they are to be.
///
/// Unit: `(A + EPS * sqrt(keys)) * sum_j p_j |v_j|`, where `A` is the greatest error of a score of the query: that, and one of the
/// exponential's argument, is a relative error of its weight.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], h: Heads, window: usize, tokens: usize) -> Twin {
    let d = h.head_dim;
    let scale = f64::from(h.scale);
    let at = |x: &[f32], row: usize, t: usize| f64::from(x[row * tokens + t]);
    let mut value = vec![0.0; h.heads * d * tokens];
    let mut unit = value.clone();
    for head in 0..h.heads {
        let (qr, kr) = (head * d, head / (h.heads / h.kv_heads) * d);
        for i in 0..tokens {
            let keys = seen(h, window, i);
            let mut error: f64 = 0.0;
            let scores: Vec<f64> = keys
                .clone()
                .map(|j| {
                    let products = (0..d).map(|c| scale * at(q, qr + c, i) * at(k, kr + c, j));
                    let (sum, abs) = products.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                    error = error.max(score_error(h, sum, abs));
                    capped(h, sum).0
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let total: f64 = weights.iter().sum();
            let factor = error + EPS * (keys.len() as f64).sqrt();
            for c in 0..d {
                let (mut sum, mut abs) = (0.0, 0.0);
                for (w, j) in weights.iter().zip(keys.clone()) {
                    let x = w / total * at(v, kr + c, j);
                    sum += x;
                    abs += x.abs();
                }
                value[(qr + c) * tokens + i] = sum;
                unit[(qr + c) * tokens + i] = factor * abs;
            }
        }
    }
    Twin { value, unit, width: tokens }
}

/// The attention of the last of `seen` tokens of each window of `window` columns in `k` and `v`; `q` and the result have a column for each of
/// `sequences` sequences (and padding, which is not computed). Value and unit are those of [`attention`].
pub fn attention_step(
    [q, k, v]: [&[f32]; 3],
    h: Heads,
    sequences: usize,
    q_tokens: usize,
    window: usize,
    seen: usize,
) -> Twin {
    let rows = h.heads * h.head_dim;
    let kv_tokens = k.len() / (h.kv_heads * h.head_dim);
    let mut out =
        Twin { value: vec![0.0; rows * q_tokens], unit: vec![0.0; rows * q_tokens], width: q_tokens };
    for w in 0..sequences {
        // The window alone; its last query is the one that is asked for.
        let cut = |x: &[f32]| -> Vec<f32> {
            let rows = x.chunks_exact(kv_tokens);
            rows.flat_map(|row| row[w * window..w * window + seen].to_vec()).collect()
        };
        let queries: Vec<f32> =
            q.chunks_exact(q_tokens).flat_map(|row| std::iter::repeat_n(row[w], seen)).collect();
        let all = attention(&queries, &cut(k), &cut(v), h, seen, seen);
        for r in 0..rows {
            out.value[r * q_tokens + w] = all.value[r * seen + seen - 1];
            out.unit[r * q_tokens + w] = all.unit[r * seen + seen - 1];
        }
    }
    out
}

/// Runs of columns: `to` with `length` columns of each of `windows` windows from `from`; (columns in all, from window to window, first).
pub fn copy_columns(
    from: (&[f32], [usize; 3]),
    to: (&[f32], [usize; 3]),
    windows: usize,
    length: usize,
) -> Vec<f32> {
    let (from, [from_tokens, from_window, from_at]) = from;
    let (to, [to_tokens, to_window, to_at]) = to;
    let mut out = to.to_vec();
    for (source, target) in from.chunks_exact(from_tokens).zip(out.chunks_exact_mut(to_tokens)) {
        for w in 0..windows {
            let (a, b) = (w * from_window + from_at, w * to_window + to_at);
            target[b..b + length].copy_from_slice(&source[a..a + length]);
        }
    }
    out
}

/// The same: who loads a key makes no difference.
pub fn attention_lanes(q: &[f32], k: &[f32], v: &[f32], h: Heads, window: usize, tokens: usize) -> Twin {
    attention(q, k, v, h, window, tokens)
}
