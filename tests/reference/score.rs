//! One-shot scores and their masks.

use maskwright::mask::{BitMask, Pattern};

use super::{EPS, Twin};

/// `sum_j |w[r, j]|`. Unit: `sqrt(K) * EPS * sum`.
pub fn abs_sum_rows(w: &[f32], cols: usize) -> Twin {
    let mut out = Twin::new(1);
    for row in w.chunks_exact(cols) {
        let sum: f64 = row.iter().map(|&w| f64::from(w.abs())).sum();
        out.push(sum, (cols as f64).sqrt() * EPS * sum);
    }
    out
}

/// `sum_r |w[r, j]|`. Unit: `sqrt(K) * EPS * sum`.
pub fn abs_sum_cols(w: &[f32], cols: usize) -> Twin {
    let rows = w.len() / cols;
    let mut out = Twin::new(cols);
    for j in 0..cols {
        let sum: f64 = (0..rows).map(|r| f64::from(w[r * cols + j].abs())).sum();
        out.push(sum, (rows as f64).sqrt() * EPS * sum);
    }
    out
}

/// The score of every weight: magnitude without `h`, else Wanda, or RIA. A row or column of zeros scores 0.
pub fn scores(w: &[f32], cols: usize, h: Option<&[f32]>, ria: bool) -> Vec<f64> {
    let (rows, columns) = (abs_sum_rows(w, cols).value, abs_sum_cols(w, cols).value);
    let share = |size: f64, sum: f64| if sum > 0.0 { size / sum } else { 0.0 };
    w.iter()
        .enumerate()
        .map(|(i, w)| {
            let (size, norm) = (f64::from(w.abs()), h.map_or(1.0, |h| f64::from(h[i % cols]).sqrt()));
            match ria {
                true => (share(size, rows[i / cols]) + share(size, columns[i % cols])) * norm.sqrt(),
                false => size * norm,
            }
        })
        .collect()
}

/// The N highest scores of every group, ties to the lower index.
pub fn score_mask(scores: &[f64], cols: usize, pattern: Pattern) -> BitMask {
    let mut mask = BitMask::zeros(scores.len() / cols, cols);
    for (g, group) in scores.chunks_exact(pattern.m()).enumerate() {
        let mut order: Vec<usize> = (0..pattern.m()).collect();
        order.sort_by(|&a, &b| group[b].total_cmp(&group[a]).then(a.cmp(&b)));
        for &i in &order[..pattern.n()] {
            let at = g * pattern.m() + i;
            mask.set(at / cols, at % cols, true);
        }
    }
    mask
}

/// The largest relative gain that exchanging a kept weight of a group for a pruned one would make: 0 for a right mask, a
/// few roundings where two scores are almost equal.
pub fn best_exchange(scores: &[f64], cols: usize, pattern: Pattern, mask: &BitMask) -> f64 {
    let mut best = 0.0f64;
    for (g, group) in scores.chunks_exact(pattern.m()).enumerate() {
        let kept = |i: usize| {
            let at = g * pattern.m() + i;
            mask.get(at / cols, at % cols)
        };
        let (mut lowest, mut highest) = (f64::INFINITY, 0.0f64);
        for (i, &s) in group.iter().enumerate() {
            match kept(i) {
                true => lowest = lowest.min(s),
                false => highest = highest.max(s),
            }
        }
        if highest > lowest {
            best = best.max((highest - lowest) / highest);
        }
    }
    best
}
