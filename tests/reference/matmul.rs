//! Products with frozen, masked weights.

use std::ops::Range;

use maskwright::mask::BitMask;

use super::{EPS, Twin};

/// `y[n, t] = sum_k w[n, k] x[k, t] (+ bias[n]) (+ before[n, t])`.
#[derive(Clone)]
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub w: &'a [f32],
    pub cols: usize,
    /// Rows of `w` that are made.
    pub outputs: Range<usize>,
    /// Columns of `w` that are used.
    pub inputs: Range<usize>,
    /// `[inputs, tokens]`.
    pub x: &'a [f32],
    pub tokens: usize,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[outputs, tokens]`.
    pub before: Option<&'a [f32]>,
}

/// Unit: `sqrt(K) * EPS * (sum |w| |x| + |bias| + |before|)`.
pub fn matmul_rows(p: &Product<'_>) -> Twin {
    let mut out = Twin::new(p.tokens);
    let root = (p.inputs.len() as f64).sqrt();
    for n in p.outputs.clone() {
        let (mut sum, mut size) = (vec![0.0; p.tokens], vec![0.0; p.tokens]);
        for (row, k) in p.inputs.clone().enumerate() {
            let w = f64::from(p.w[n * p.cols + k]);
            for (t, &x) in p.x[row * p.tokens..(row + 1) * p.tokens].iter().enumerate() {
                sum[t] += w * f64::from(x);
                size[t] += (w * f64::from(x)).abs();
            }
        }
        for t in 0..p.tokens {
            let added = [p.bias.map(|b| b[n]), p.before.map(|b| b[(n - p.outputs.start) * p.tokens + t])];
            for a in added.into_iter().flatten() {
                sum[t] += f64::from(a);
                size[t] += f64::from(a).abs();
            }
            out.push(sum[t], root * EPS * size[t]);
        }
    }
    out
}

/// The same: who loads a weight makes no difference.
pub fn matmul_lanes(p: &Product<'_>) -> Twin {
    matmul_rows(p)
}

/// The same with a mask: zeros where the bit is 0.
pub fn matmul_tile(p: &Product<'_>, mask: Option<&BitMask>) -> Twin {
    match mask {
        Some(mask) => matmul_rows(&Product { w: &mask_apply(p.w, mask), ..p.clone() }),
        None => matmul_rows(p),
    }
}

/// The weights where the bit is 1, +0.0 elsewhere.
pub fn mask_apply(w: &[f32], mask: &BitMask) -> Vec<f32> {
    let cols = mask.cols();
    w.iter().enumerate().map(|(i, &v)| if mask.get(i / cols, i % cols) { v } else { 0.0 }).collect()
}
