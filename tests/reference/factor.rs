//! Factors of Gram matrices.

use std::ops::Range;

use super::{EPS, Twin};

/// The upper triangle of `H + lambda I`, zeros below it; a diagonal element of 0 counts as 1. The sum is that of f32.
pub fn damp(h: &[f32], n: usize, lambda: f32) -> Vec<f64> {
    let value = |r: usize, c: usize| match h[r * n + c] {
        _ if c < r => 0.0,
        v if c > r => v,
        0.0 => 1.0 + lambda,
        v => v + lambda,
    };
    (0..n * n).map(|i| f64::from(value(i / n, i % n))).collect()
}

/// `a b` for upper triangular matrices.
fn upper_product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for k in i..n {
            let factor = a[i * n + k];
            for j in k..n {
                out[i * n + j] += factor * b[k * n + j];
            }
        }
    }
    out
}

/// The inverse of an upper triangular matrix.
fn upper_inverse(r: &[f64], n: usize) -> Vec<f64> {
    let mut u = vec![0.0; n * n];
    for j in 0..n {
        u[j * n + j] = 1.0 / r[j * n + j];
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| r[i * n + k] * u[k * n + j]).sum();
            u[i * n + j] = -sum / r[i * n + i];
        }
    }
    u
}

/// U = R^-1 of what a factor holds: U in the squares of the blocks, -R right of them.
pub fn upper_of(parts: &[f32], n: usize, blocks: &[Range<usize>]) -> Vec<f64> {
    let mut r: Vec<f64> = parts.iter().map(|&v| -f64::from(v)).collect();
    for block in blocks {
        let side = block.len();
        let square: Vec<f64> =
            block.clone().flat_map(|i| block.clone().map(move |j| f64::from(parts[i * n + j]))).collect();
        let inverse = upper_inverse(&square, side);
        for (i, row) in block.clone().zip(inverse.chunks_exact(side)) {
            r[i * n + block.start..i * n + block.end].copy_from_slice(row);
        }
    }
    upper_inverse(&r, n)
}

/// What a factor of `A = R R^T` holds, R upper triangular, of the upper triangle of A `[n, n]`: U = R^-1 in the squares of `blocks`, -R
/// right of them; `None` when a pivot is not positive.
///
/// Unit of a value: to first order, what a change of A by `sqrt(n) * EPS * |R| |R|^T` makes of it. That is the backward error of
/// a Cholesky factorisation in f32 in the units of this module (Higham, Accuracy and Stability of Numerical Algorithms, 10.1), and
/// how much of it arrives depends on A alone: with E the change, `R^-1 dR + (R^-1 dR)^T = U E U^T`, so `|dR| <= |R| upper(|U| |E| |U|^T)`
/// and `|dU| <= upper(|U| |E| |U|^T) |U|`, a condition number for every element. The roundings of the inversion, `|U| |R| |U|`, are in it.
pub fn factor_block(a: &[f64], n: usize, blocks: &[Range<usize>]) -> Option<Twin> {
    let mut r = a.to_vec();
    for j in (0..n).rev() {
        let pivot = r[j * n + j];
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        let root = pivot.sqrt();
        r[j * n + j] = root;
        for i in 0..j {
            r[i * n + j] /= root;
        }
        for i in 0..j {
            for k in i..j {
                r[i * n + k] -= r[i * n + j] * r[k * n + j];
            }
        }
    }
    let u = upper_inverse(&r, n);
    let absolute = |m: &[f64]| m.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let sizes = absolute(&u);
    let product = upper_product(&sizes, &absolute(&r), n);
    // |U| |R| |R|^T |U|^T, its upper triangle
    let mut change = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            change[i * n + j] = (j..n).map(|k| product[i * n + k] * product[j * n + k]).sum();
        }
    }
    let units = |m: Vec<f64>| m.iter().map(|v| (n as f64).sqrt() * EPS * v).collect::<Vec<_>>();
    let mut out = Twin {
        value: r.iter().map(|v| -v).collect(),
        unit: units(upper_product(&absolute(&r), &change, n)),
        width: n,
    };
    let unit = units(upper_product(&change, &sizes, n));
    for block in blocks {
        for i in block.clone() {
            out.value[i * n..i * n + block.start].fill(0.0);
            out.unit[i * n..i * n + block.start].fill(0.0);
            let square = i * n + block.start..i * n + block.end;
            out.value[square.clone()].copy_from_slice(&u[square.clone()]);
            out.unit[square.clone()].copy_from_slice(&unit[square]);
        }
    }
    Some(out)
}
