//! Element by element: nonlinearities, their gradients, scaled sums, limits.

use std::f64::consts::{PI, SQRT_2};

use maskwright::model::ActivationKind;

use super::{EPS, Twin};

/// `1 - erf(x)`: the series of `erf` whose terms have one sign, and the continued fraction of `erfc` from 2.5 on, both to the last
/// digits (Abramowitz and Stegun 7.1.6 and 7.1.14).
pub fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let bell = (-x * x).exp() / PI.sqrt();
    if x < 2.5 {
        let (mut term, mut sum) = (2.0 * x, 0.0);
        for n in 1..200 {
            sum += term;
            term *= 2.0 * x * x / f64::from(2 * n + 1);
        }
        return 1.0 - bell * sum;
    }
    bell / (1..400).rev().fold(x, |below, n| x + f64::from(n) / 2.0 / below)
}

/// A function and its slope at a point, with the units of their errors.
pub struct Point {
    pub value: f64,
    pub unit: f64,
    pub slope: f64,
    pub slope_unit: f64,
}

/// The nonlinearity at `x`. Units: `EPS` times the sizes of the terms; those with an exponential times `1 + |its argument|`, by which the
/// error of the exponential grows; and `1e-30`, since the kernels stop exponentials at e^80, and below 1e-38 numbers are zero.
pub fn point(kind: ActivationKind, x: f64) -> Point {
    match kind {
        ActivationKind::Silu => {
            let (s, rest) = (1.0 / (1.0 + (-x).exp()), 1.0 / (1.0 + x.exp()));
            logistic(x, x.abs(), s, x * rest)
        }
        ActivationKind::GeluTanh => {
            let scale = 2.0 * (2.0 / PI).sqrt();
            let u = scale * (x + 0.044715 * x.powi(3));
            let (s, rest) = (1.0 / (1.0 + (-u).exp()), 1.0 / (1.0 + u.exp()));
            let bend = if rest == 0.0 { 0.0 } else { x * rest * scale * (1.0 + 3.0 * 0.044715 * x * x) };
            // Beyond |u| = 80 the exponential is stopped or zero.
            logistic(x, u.abs().min(80.0), s, bend)
        }
        ActivationKind::Gelu => {
            let (p, low) = (erfc(-x / SQRT_2) / 2.0, erfc(x.abs() / SQRT_2) / 2.0);
            let bell = (-x * x / 2.0).exp() / (2.0 * PI).sqrt();
            // Of 1 - low only low has the error of the exponential; whose argument is a rounded product.
            let grown = 1.0 + x * x;
            let unit = EPS * (p + low * grown);
            Point {
                value: x * p,
                unit: x.abs() * (unit + TINY),
                slope: p + x * bell,
                slope_unit: unit + EPS * (x * bell).abs() * grown + TINY * (1.0 + x.abs()),
            }
        }
        ActivationKind::Relu => {
            let slope = if x > 0.0 { 1.0 } else { 0.0 };
            Point { value: x.max(0.0), unit: 0.0, slope, slope_unit: 0.0 }
        }
        ActivationKind::Relu2 => {
            let m = x.max(0.0);
            Point { value: m * m, unit: EPS * m * m, slope: 2.0 * m, slope_unit: 0.0 }
        }
    }
}

const TINY: f64 = 1e-30;

/// `x s` with the logistic function `s` of an argument of size `size`, and the slope `s (1 + bend)`.
fn logistic(x: f64, size: f64, s: f64, bend: f64) -> Point {
    let unit = EPS * (1.0 + size) * s;
    // s (1 - s) has the relative error of both.
    let bent = 2.0 * bend.abs();
    let tiny = TINY * (1.0 + x.abs());
    Point {
        value: x * s,
        unit: x.abs() * (unit + TINY),
        slope: s * (1.0 + bend),
        slope_unit: unit * (1.0 + bent) + tiny * (1.0 + x.abs().min(1e4)),
    }
}

/// `f(gate) * up`. Unit: that of `f`, times `|up|`, and `EPS * |y|`.
pub fn gated(kind: ActivationKind, gate: &[f32], up: &[f32]) -> Twin {
    let mut out = Twin::new(gate.len());
    for (&g, &u) in gate.iter().zip(up) {
        let (f, u) = (point(kind, f64::from(g)), f64::from(u));
        out.push(f.value * u, f.unit * u.abs() + EPS * (f.value * u).abs());
    }
    out
}

/// Gradients of `f(gate) * up` with respect to gate and up. Units: those of slope and value times the other factors, and `EPS * |value|`.
pub fn gated_backward(kind: ActivationKind, gate: &[f32], up: &[f32], d_inner: &[f32]) -> [Twin; 2] {
    let mut out = [Twin::new(gate.len()), Twin::new(gate.len())];
    for ((&g, &u), &d) in gate.iter().zip(up).zip(d_inner) {
        let (f, u, d) = (point(kind, f64::from(g)), f64::from(u), f64::from(d));
        let both = d * u;
        out[0].push(both * f.slope, both.abs() * (f.slope_unit + EPS * f.slope.abs()));
        out[1].push(d * f.value, d.abs() * (f.unit + EPS * f.value.abs()));
    }
    out
}

/// `f(x)`. Unit: that of `f`.
pub fn activate(kind: ActivationKind, x: &[f32]) -> Twin {
    gated(kind, x, &vec![1.0; x.len()])
}

/// The gradient of `f(x)`. Unit: that of the slope times the other factor, and `EPS * |value|`.
pub fn activate_backward(kind: ActivationKind, x: &[f32], d_inner: &[f32]) -> Twin {
    let [d_x, _] = gated_backward(kind, x, &vec![1.0; x.len()], d_inner);
    d_x
}

/// `to + alpha * from`. Unit: `EPS * (|to| + |alpha * from|)`.
pub fn add_scaled(from: &[f32], alpha: f32, to: &[f32]) -> Twin {
    let mut out = Twin::new(from.len());
    for (&from, &to) in from.iter().zip(to) {
        let (more, to) = (f64::from(alpha) * f64::from(from), f64::from(to));
        out.push(to + more, EPS * (to.abs() + more.abs()));
    }
    out
}

/// `x` within the limits, exact.
pub fn clamp_to(x: &[f32], limit: f32) -> Twin {
    Twin::exact(&x.iter().map(|x| x.clamp(-limit, limit)).collect::<Vec<_>>(), x.len())
}

/// `d` where `x` is within the limits, else zero, exact.
pub fn clamp_backward(x: &[f32], limit: f32, d: &[f32]) -> Twin {
    let kept = x.iter().zip(d).map(|(x, &d)| if x.abs() > limit { 0.0 } else { d });
    Twin::exact(&kept.collect::<Vec<_>>(), x.len())
}
