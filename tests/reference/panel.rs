//! Panels of weights and their errors.

use maskwright::mask::BitMask;

use super::{EPS, Twin, mask_apply};

/// The weights, those that a mask keeps or prunes (`true`: prunes), or the weights minus others. Exact but for the difference,
/// whose unit is `EPS * (|w| + |v|)`.
pub fn spread(w: &[f32], cols: usize, mask: Option<(&BitMask, bool)>, minus: Option<&[f32]>) -> Twin {
    if let Some(v) = minus {
        let mut out = Twin::new(cols);
        for (&w, &v) in w.iter().zip(v) {
            out.push(f64::from(w) - f64::from(v), EPS * f64::from(w.abs() + v.abs()));
        }
        return out;
    }
    let Some((mask, pruned)) = mask else {
        return Twin::exact(w, cols);
    };
    let kept = mask_apply(w, mask);
    let values: Vec<f32> = w
        .iter()
        .enumerate()
        .map(|(i, &w)| if pruned { if mask.get(i / cols, i % cols) { 0.0 } else { w } } else { kept[i] })
        .collect();
    Twin::exact(&values, cols)
}

/// `sum_j a[r, j] b[r, j]`. Unit: `sqrt(K) * EPS * sum |a b|`.
pub fn row_dot(a: &[f32], b: &[f32], cols: usize) -> Twin {
    let mut out = Twin::new(1);
    for (a, b) in a.chunks_exact(cols).zip(b.chunks_exact(cols)) {
        let products: Vec<f64> = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).collect();
        let size: f64 = products.iter().map(|p| p.abs()).sum();
        out.push(products.iter().sum(), (cols as f64).sqrt() * EPS * size);
    }
    out
}
