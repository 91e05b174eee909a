//! Gram matrices and what is made of square matrices.

use super::{EPS, Twin};

/// `h[i, j] = before[i, j] + sum over real tokens of x[i, t] x[j, t]`, all of it. Unit: `sqrt(T) * EPS * sum of |x_i x_j|`.
pub fn gram(x: &[f32], before: &[f64], n: usize, window: usize, length: usize) -> Twin {
    let tokens = x.len() / n;
    let real: Vec<usize> = (0..tokens).filter(|t| t % window < length).collect();
    let mut out = Twin::new(n);
    for i in 0..n {
        for j in 0..n {
            let (mut sum, mut size) = (before[i * n + j], before[i * n + j].abs());
            for &t in &real {
                let product = f64::from(x[i * tokens + t]) * f64::from(x[j * tokens + t]);
                sum += product;
                size += product.abs();
            }
            out.push(sum, (real.len() as f64).sqrt() * EPS * size);
        }
    }
    out
}

/// `scale * a^T` of `a` `[rows, cols]`, columns that pad a window as zeros. Exact where scale is a power of two.
pub fn transpose(a: &[f32], cols: usize, window: usize, length: usize, scale: f32) -> Twin {
    let rows = a.len() / cols;
    let value = |c: usize, r: usize| if c % window < length { scale * a[r * cols + c] } else { 0.0 };
    let values: Vec<f32> = (0..cols).flat_map(|c| (0..rows).map(move |r| value(c, r))).collect();
    Twin::exact(&values, rows)
}

/// `h` with its upper triangle replaced by the lower one's mirror image.
pub fn mirror(h: &[f32], n: usize) -> Twin {
    let values: Vec<f32> =
        (0..n * n).map(|i| (i / n, i % n)).map(|(r, c)| h[r.max(c) * n + r.min(c)]).collect();
    Twin::exact(&values, n)
}

/// The diagonal.
pub fn diagonal(h: &[f32], n: usize) -> Twin {
    Twin::exact(&(0..n).map(|i| h[i * n + i]).collect::<Vec<_>>(), n)
}
