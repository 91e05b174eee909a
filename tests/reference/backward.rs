//! Gradients of the norm, the activation and the losses. Each is held against central differences of the forward twin in
//! `tests/kernel_backward_elementwise.rs`.

use super::{EPS, Twin};

/// `d_x + r * gain * d_y - x * r^3 / n * sum_i(gain_i * d_y_i * x_i)`, `r = 1 / sqrt(mean(x^2) + eps)`, per token.
/// Unit: `EPS * (|d_x| + sqrt(n) * (|r gain d_y| + |x| r^3 / n * sum_i |gain_i d_y_i x_i|))`.
pub fn rms_norm_backward(x: &[f32], gain: &[f32], eps: f32, d_y: &[f32], d_x: &[f32], tokens: usize) -> Twin {
    let n = gain.len() as f64;
    let at = |v: &[f32], h: usize, t: usize| f64::from(v[h * tokens + t]);
    // r, the sum over the features, and the sum of its terms' sizes
    let sums: Vec<[f64; 3]> = (0..tokens)
        .map(|t| {
            let (mut square, mut dot, mut size) = (0.0, 0.0, 0.0);
            for (h, &g) in gain.iter().enumerate() {
                let term = at(x, h, t) * f64::from(g) * at(d_y, h, t);
                square += at(x, h, t).powi(2);
                dot += term;
                size += term.abs();
            }
            [1.0 / (square / n + f64::from(eps)).sqrt(), dot, size]
        })
        .collect();
    let mut out = Twin::new(tokens);
    for (h, &g) in gain.iter().enumerate() {
        for (t, &[r, dot, size]) in sums.iter().enumerate() {
            let (direct, share) = (r * f64::from(g) * at(d_y, h, t), at(x, h, t) * r.powi(3) / n);
            let parts = direct.abs() + share.abs() * size;
            out.push(at(d_x, h, t) + direct - share * dot, EPS * (at(d_x, h, t).abs() + n.sqrt() * parts));
        }
    }
    out
}

/// The same: who loads a gain makes no difference.
pub fn rms_norm_backward_lanes(
    x: &[f32],
    gain: &[f32],
    eps: f32,
    d_y: &[f32],
    d_x: &[f32],
    tokens: usize,
) -> Twin {
    rms_norm_backward(x, gain, eps, d_y, d_x, tokens)
}

/// Gradients of `silu(gate) * up` with respect to gate and up. Units: `EPS * (1 + |gate|)` times the sum of the terms' sizes (the
/// error of the exponential grows with its argument), and at least `1e-30` of the other factors, since the kernel stops the
/// exponential at e^80.
pub fn swiglu_backward(gate: &[f32], up: &[f32], d_inner: &[f32]) -> [Twin; 2] {
    let mut out = [Twin::new(gate.len()), Twin::new(gate.len())];
    for ((&g, &u), &d) in gate.iter().zip(up).zip(d_inner) {
        let (g, u, d) = (f64::from(g), f64::from(u), f64::from(d));
        let (s, rest) = (1.0 / (1.0 + (-g).exp()), 1.0 / (1.0 + g.exp()));
        let unit = EPS * (1.0 + g.abs()) * s * d.abs();
        let tiny = 1e-30 * (1.0 + g.abs()) * d.abs();
        out[0].push(d * u * s * (1.0 + g * rest), (unit * (1.0 + g.abs() * rest) + tiny) * u.abs());
        out[1].push(d * g * s, (unit + tiny) * g.abs());
    }
    out
}

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
