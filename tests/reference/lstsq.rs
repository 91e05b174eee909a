//! Conjugate gradients on the kept weights of each row, step by step, and the exact solution.

use maskwright::mask::BitMask;

use super::{EPS, Twin};

/// A panel's numbers before a kernel: `[rows, n]` but for `inverse` `[n]` and `state` `[rows]`.
pub struct LstsqState<'a> {
    pub mask: &'a BitMask,
    pub first: usize,
    pub lambda: f32,
    pub inverse: &'a [f32],
    pub product: &'a [f32],
    pub change: &'a [f32],
    pub residual: &'a [f32],
    pub direction: &'a [f32],
    pub state: &'a [[f32; 4]],
}

/// The numbers after it; `state` four to a row.
pub struct LstsqTwin {
    pub change: Twin,
    pub residual: Twin,
    pub direction: Twin,
    pub state: Twin,
}

impl LstsqTwin {
    fn new(n: usize) -> Self {
        Self { change: Twin::new(n), residual: Twin::new(n), direction: Twin::new(n), state: Twin::new(4) }
    }
}

/// A sum and what rounding may leave of it: `sqrt(K) * EPS * sum of sizes`.
fn sum(terms: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = terms.clone().count() as f64;
    (terms.clone().sum(), count.sqrt() * EPS * terms.map(f64::abs).sum::<f64>())
}

/// The true residual, the first direction, the errors. Units: of elements `EPS` times what is added, of sums as `row_dot`.
pub fn lstsq_residual(s: &LstsqState<'_>, start: bool) -> LstsqTwin {
    let (n, lambda) = (s.inverse.len(), f64::from(s.lambda));
    let mut out = LstsqTwin::new(n);
    for (row, old) in s.state.iter().enumerate() {
        let at = |v: &[f32], j: usize| f64::from(v[row * n + j]);
        let kept = |j: usize| s.mask.get(s.first + row, j);
        let (error, error_unit) = sum((0..n).map(|j| at(s.change, j) * at(s.product, j)));
        let before = if start { error } else { f64::from(old[2]) };
        let worse = error > before;
        let r = |j: usize| match kept(j) && !worse {
            true => at(s.product, j) + lambda * at(s.change, j),
            false => 0.0,
        };
        for j in 0..n {
            let unit = if r(j) == 0.0 { 0.0 } else { EPS * (at(s.product, j).abs() + r(j).abs()) };
            let inverse = f64::from(s.inverse[j]);
            out.change.push(if worse && kept(j) { 0.0 } else { at(s.change, j) }, 0.0);
            out.residual.push(r(j), unit);
            out.direction.push(inverse * r(j), inverse * unit + EPS * (inverse * r(j)).abs());
        }
        let (size, _) = sum((0..n).map(|j| r(j) * r(j) * f64::from(s.inverse[j])));
        let part = |j: usize| (at(s.product, j).abs() + r(j).abs()) * r(j).abs() * f64::from(s.inverse[j]);
        let unit = 4.0 * (n as f64).sqrt() * EPS * (0..n).map(part).sum::<f64>();
        out.state.push(size, unit);
        let (strain, strain_unit) = sum((0..n).filter(|&j| kept(j)).map(|j| at(s.change, j).powi(2)));
        let damped = if worse { before } else { error + lambda * strain };
        out.state.push(damped, error_unit + 2.0 * lambda * strain_unit + EPS * damped.abs());
        out.state.push(before, if start { error_unit } else { 0.0 });
        out.state.push(error.min(before), error_unit);
    }
    out
}

/// One step. Units follow the roundings of the two sums through alpha and beta.
pub fn lstsq_step(s: &LstsqState<'_>, tolerance: f32) -> LstsqTwin {
    let (n, lambda) = (s.inverse.len(), f64::from(s.lambda));
    let mut out = LstsqTwin::new(n);
    for (row, old) in s.state.iter().enumerate() {
        let at = |v: &[f32], j: usize| f64::from(v[row * n + j]);
        let old = old.map(f64::from);
        let copy = |twin: &mut Twin, v: &[f32]| (0..n).for_each(|j| twin.push(at(v, j), 0.0));
        if old[0] <= f64::from(tolerance * tolerance) * old[1] {
            copy(&mut out.change, s.change);
            copy(&mut out.residual, s.residual);
            copy(&mut out.direction, s.direction);
            old.into_iter().for_each(|v| out.state.push(v, 0.0));
            continue;
        }
        let inverse = |j: usize| f64::from(s.inverse[j]);
        let applied = |j: usize| match s.mask.get(s.first + row, j) {
            true => at(s.product, j) + lambda * at(s.direction, j),
            false => 0.0,
        };
        let loose = |j: usize| at(s.product, j).abs() + lambda * at(s.direction, j).abs();
        let (curvature, _) = sum((0..n).map(|j| at(s.direction, j) * applied(j)));
        let spread =
            (n as f64).sqrt() * EPS * (0..n).map(|j| at(s.direction, j).abs() * loose(j)).sum::<f64>();
        let diagonal =
            |j: usize| if inverse(j) > 0.0 { at(s.direction, j).powi(2) / inverse(j) } else { 0.0 };
        let flat = curvature <= 2f64.powi(-22) * (0..n).map(diagonal).sum::<f64>();
        let alpha = if flat { 0.0 } else { old[0] / curvature };
        // Relative, of alpha.
        let doubt = if flat { 0.0 } else { 4.0 * EPS + spread / curvature.abs() };
        let r = |j: usize| at(s.residual, j) - alpha * applied(j);
        let r_unit =
            |j: usize| EPS * at(s.residual, j).abs() + alpha.abs() * ((2.0 * EPS + doubt) * loose(j));
        let size = (0..n).map(|j| r(j).powi(2) * inverse(j)).sum::<f64>();
        let size_unit = (0..n).map(|j| (2.0 * r(j).abs() + r_unit(j)) * r_unit(j) * inverse(j)).sum::<f64>()
            + (n as f64).sqrt() * EPS * size;
        let beta = size / old[0];
        for j in 0..n {
            let moved = alpha * at(s.direction, j);
            out.change.push(
                at(s.change, j) - moved,
                EPS * at(s.change, j).abs() + (2.0 * EPS + doubt) * moved.abs(),
            );
            out.residual.push(r(j), r_unit(j));
            let along = at(s.direction, j).abs();
            let unit = inverse(j) * (r_unit(j) + 2.0 * EPS * r(j).abs())
                + along * (size_unit / old[0] + 4.0 * EPS * beta);
            out.direction.push(inverse(j) * r(j) + beta * at(s.direction, j), unit);
        }
        out.state.push(if flat { -old[0] } else { size }, if flat { 0.0 } else { size_unit });
        let lowered = alpha * old[0];
        out.state.push(
            (old[1] - lowered).max(2f64.powi(-20) * old[2]),
            EPS * old[1].abs() + (2.0 * EPS + doubt) * lowered.abs(),
        );
        old[2..].iter().for_each(|&v| out.state.push(v, 0.0));
    }
    out
}

/// `(c H c, lambda |c|^2 over the kept columns)` of a row's change c.
pub fn damped_error(c: &[f64], h: &[f32], kept: &[bool], lambda: f64) -> (f64, f64) {
    let n = c.len();
    let product = |i: usize| (0..n).map(|j| f64::from(h[i * n + j]) * c[j]).sum::<f64>();
    let error = (0..n).map(|i| c[i] * product(i)).sum();
    let size = (0..n).filter(|&j| kept[j]).map(|j| c[j] * c[j]).sum::<f64>();
    (error, lambda * size)
}

/// The change `z - d` of a row that minimises its damped error, by a Cholesky factorisation.
pub fn least_squares(w: &[f32], kept: &[bool], h: &[f32], lambda: f64) -> Vec<f64> {
    let n = w.len();
    let mut c: Vec<f64> = w.iter().zip(kept).map(|(&w, &k)| if k { 0.0 } else { f64::from(w) }).collect();
    let s: Vec<usize> = (0..n).filter(|&j| kept[j]).collect();
    let at = |i: usize, j: usize| f64::from(h[s[i] * n + s[j]]) + if i == j { lambda } else { 0.0 };
    let right: Vec<f64> = s.iter().map(|&i| (0..n).map(|j| f64::from(h[i * n + j]) * c[j]).sum()).collect();
    let m = s.len();
    let mut l = vec![0.0; m * m];
    let mut x = right;
    for i in 0..m {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| l[i * m + k] * l[j * m + k]).sum();
            let rest = at(i, j) - dot;
            l[i * m + j] = if i == j { rest.sqrt() } else { rest / l[j * m + j] };
        }
        let dot: f64 = (0..i).map(|k| l[i * m + k] * x[k]).sum();
        x[i] = (x[i] - dot) / l[i * m + i];
    }
    for i in (0..m).rev() {
        let dot: f64 = (i + 1..m).map(|k| l[k * m + i] * x[k]).sum();
        x[i] = (x[i] - dot) / l[i * m + i];
    }
    for (&j, d) in s.iter().zip(x) {
        c[j] = -d;
    }
    c
}
