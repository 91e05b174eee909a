//! SparseGPT, one row after the other.

use maskwright::mask::{BitMask, Pattern};

use super::{EPS, Twin};

/// What became of a panel.
pub struct Pruned {
    /// The updated weights.
    pub weights: Twin,
    /// How far, in units, a pruned weight's score lies above a kept one's of the same group: at most 0 where all choices are the
    /// best ones.
    pub choice: f64,
}

/// The weights `[rows, n]` pruned as rows of `mask` from `first_row` on. `u` `[n, n]` is upper triangular.
///
/// Choices may differ in near ties, after which nothing is comparable any more. So the mask is given, and the twin says by how much its
/// choices are not the best.
///
/// Unit: roundings, EPS of each value, and what the errors of earlier columns' weights make of them through e, added up as
/// if their signs were random (the squares are added).
pub fn sparsegpt_block(
    w: &[f32],
    u: &[f64],
    dead: &[bool],
    pattern: Pattern,
    mask: &BitMask,
    first_row: usize,
) -> Pruned {
    let n = dead.len();
    let mut out = Pruned { weights: Twin::new(n), choice: f64::NEG_INFINITY };
    for (i, row) in w.chunks_exact(n).enumerate() {
        let bit = |j: usize| mask.get(first_row + i, j);
        let mut value: Vec<f64> =
            row.iter().zip(dead).map(|(&w, &dead)| if dead { 0.0 } else { f64::from(w) }).collect();
        let mut variance = vec![0.0f64; n];
        for j in 0..n {
            if j % pattern.m() == 0 {
                let group = j..j + pattern.m();
                // A quotient has an error of up to 2.5 units in the last place (WGSL, accuracy of division).
                let score = |k: usize| (value[k] / u[k * n + k]).abs();
                let unit = |k: usize| variance[k].sqrt() / u[k * n + k] + 1.5 * EPS * score(k);
                for pruned in group.clone().filter(|&k| !bit(k)) {
                    for kept in group.clone().filter(|&k| bit(k)) {
                        let above = score(pruned) - score(kept);
                        let units = if above == 0.0 { 0.0 } else { above / (unit(pruned) + unit(kept)) };
                        out.choice = out.choice.max(if units.is_nan() { f64::INFINITY } else { units });
                    }
                }
            }
            if bit(j) {
                continue;
            }
            let pivot = u[j * n + j];
            let error = value[j] / pivot;
            let error_variance = variance[j] / (pivot * pivot) + (EPS * error).powi(2);
            for k in j + 1..n {
                let change = error * u[j * n + k];
                value[k] -= change;
                variance[k] += error_variance * u[j * n + k].powi(2)
                    + (EPS * change).powi(2)
                    + if change == 0.0 { 0.0 } else { (EPS * value[k]).powi(2) };
            }
            (value[j], variance[j]) = (0.0, 0.0);
        }
        for (j, (value, variance)) in value.into_iter().zip(variance).enumerate() {
            // Dead columns that are kept are exact zeros, too.
            out.weights.push(value, if dead[j] { 0.0 } else { variance.sqrt() });
        }
    }
    out
}
