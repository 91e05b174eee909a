//! Gradients of the losses. Each is held against central differences of the forward twin in
//! `tests/kernel_backward_elementwise.rs`.

use super::{EPS, Twin};

/// `scale * w * (y - target)` and, per token, `w * sum over features of (y - target)^2`; zeros where `real` says no.
/// Units: `3 * EPS * |value|`, and `sqrt(features) * EPS` of the sum.
pub fn squared_error(
    y: &[f32],
    target: &[f32],
    weights: &[f32],
    scale: f32,
    real: impl Fn(usize) -> bool,
) -> [Twin; 2] {
    let tokens = weights.len();
    let features = y.len() / tokens;
    let (mut gradient, mut errors) = (Twin::new(tokens), Twin::new(tokens));
    let weight = |t: usize| if real(t) { f64::from(weights[t]) } else { 0.0 };
    let off = |i: usize| f64::from(y[i]) - f64::from(target[i]);
    for i in 0..y.len() {
        let value = f64::from(scale) * weight(i % tokens) * off(i);
        gradient.push(value, 3.0 * EPS * value.abs());
    }
    for t in 0..tokens {
        let sum: f64 = (0..features).map(|h| off(h * tokens + t).powi(2)).sum();
        errors.push(weight(t) * sum, (features as f64).sqrt() * EPS * (weight(t) * sum).abs());
    }
    [gradient, errors]
}
