//! Norm, rotary embedding, activation, statistics, the multiply-add peak.

use super::{EPS, Twin};

/// `y = x * gain / sqrt(mean(x^2) + eps)` per token. Unit: `sqrt(features) * EPS * |y|`.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, tokens: usize) -> Twin {
    let features = gain.len();
    let mut out = Twin::new(tokens);
    let scale: Vec<f64> = (0..tokens)
        .map(|t| {
            let squares: f64 = (0..features).map(|h| f64::from(x[h * tokens + t]).powi(2)).sum();
            1.0 / (squares / features as f64 + f64::from(eps)).sqrt()
        })
        .collect();
    for (h, &g) in gain.iter().enumerate() {
        for t in 0..tokens {
            let y = f64::from(x[h * tokens + t]) * scale[t] * f64::from(g);
            out.push(y, (features as f64).sqrt() * EPS * y.abs());
        }
    }
    out
}

/// The same: who loads a gain makes no difference.
pub fn rms_norm_lanes(x: &[f32], gain: &[f32], eps: f32, tokens: usize) -> Twin {
    rms_norm(x, gain, eps, tokens)
}

/// Half-split rotation of each head by the angles of `table` `[2, head_dim / 2, window]` (cos, then sin).
/// Unit: `sqrt(2) * EPS * (|a cos| + |b sin|)`.
pub fn rope(x: &[f32], table: &[f32], head_dim: usize, window: usize, tokens: usize) -> Twin {
    let half = head_dim / 2;
    let mut out = Twin::new(tokens);
    for row in 0..x.len() / tokens {
        let (head, i) = (row / head_dim, row % head_dim);
        let f = i % half;
        for t in 0..tokens {
            let cos = f64::from(table[f * window + t % window]);
            let sin = f64::from(table[(half + f) * window + t % window]);
            let a = f64::from(x[(head * head_dim + f) * tokens + t]);
            let b = f64::from(x[(head * head_dim + half + f) * tokens + t]);
            let (one, two) = if i < half { (a * cos, -b * sin) } else { (b * cos, a * sin) };
            out.push(one + two, 2f64.sqrt() * EPS * (one.abs() + two.abs()));
        }
    }
    out
}

/// The same with the negative angles.
pub fn rope_backward(x: &[f32], table: &[f32], head_dim: usize, window: usize, tokens: usize) -> Twin {
    let (cos, sin) = table.split_at(head_dim / 2 * window);
    let negative: Vec<f32> = cos.iter().copied().chain(sin.iter().map(|s| -s)).collect();
    rope(x, &negative, head_dim, window, tokens)
}

/// `silu(gate) * up`. Unit: `EPS * (1 + |gate|) * |y|` (the error of the exponential grows with its argument), and at least
/// `1e-30 * |up|`, since the kernel stops the exponential at e^80.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Twin {
    let mut out = Twin::new(gate.len());
    for (&g, &u) in gate.iter().zip(up) {
        let (g, u) = (f64::from(g), f64::from(u));
        let y = g / (1.0 + (-g).exp()) * u;
        out.push(y, EPS * (1.0 + g.abs()) * y.abs() + 1e-30 * u.abs());
    }
    out
}

/// Sixty-four times `c`, which starts at the lane's number and goes through `c * scale + lane` in every step.
/// Unit: `sqrt(64 * steps) * EPS * |value|`.
pub fn peak(steps: u32, lanes: usize, invocations: usize) -> Twin {
    let mut out = Twin::new(lanes);
    for i in 0..invocations {
        let lane = (i % lanes) as f64;
        let c = (0..steps).fold(lane, |c, _| c * f64::from(0.999f32) + lane);
        out.push(64.0 * c, (64.0 * f64::from(steps)).sqrt() * EPS * 64.0 * c);
    }
    out
}
