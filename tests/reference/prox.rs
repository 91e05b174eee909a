//! ProxSparse's proximal operator.

/// `1/2 |w - z|^2 + lambda * R(w)`.
pub fn prox_objective(w: &[f64; 4], z: &[f64; 4], lambda: f64) -> f64 {
    let distance: f64 = w.iter().zip(z).map(|(w, z)| (w - z).powi(2)).sum();
    let triples: f64 =
        (0..4).map(|out| (0..4).filter(|&i| i != out).map(|i| w[i].abs()).product::<f64>()).sum();
    0.5 * distance + lambda * triples
}

/// Exact minimisation over one weight after another, the last first, until nothing changes by `stop`; `used` weights.
pub fn prox_sweeps(
    start: [f64; 4],
    z: &[f64; 4],
    lambda: f64,
    used: usize,
    sweeps: usize,
    stop: f64,
) -> [f64; 4] {
    let mut w = start;
    for _ in 0..sweeps {
        let mut change = 0.0;
        for i in (0..used).rev() {
            let [a, b, c] = [1, 2, 3].map(|k| w[(i + k) % 4]);
            let new = (z[i] - lambda * (a * b + b * c + c * a)).max(0.0);
            change += (new - w[i]).abs();
            w[i] = new;
        }
        if change < stop {
            break;
        }
    }
    w
}

/// The best multiple of the first `used` of `z`: the root of `3 lambda R(z) t^2 + |z|^2 t - |z|^2`.
fn on_ray(z: &[f64; 4], lambda: f64, used: usize) -> [f64; 4] {
    let mut z = *z;
    z[used..].fill(0.0);
    let square: f64 = z.iter().map(|z| z * z).sum();
    let r = 3.0 * lambda * prox_objective(&z, &z, 1.0);
    let t = 2.0 * square / (square + (square * square + 4.0 * r * square).sqrt());
    z.map(|z| t * z)
}

/// The best of the three candidates of ProxSparse's theorem, the sweeps from the best multiple of z.
pub fn prox24(z: &[f64; 4], lambda: f64) -> [f64; 4] {
    let mut order = [0, 1, 2, 3];
    order.sort_by(|&a, &b| z[b].abs().total_cmp(&z[a].abs()).then(a.cmp(&b)));
    let top = z[order[0]].abs();
    if top == 0.0 {
        return *z;
    }
    let sorted = order.map(|i| z[i].abs() / top);
    let lambda = lambda * top;
    let two = [sorted[0], sorted[1], 0.0, 0.0];
    let three = prox_sweeps(on_ray(&sorted, lambda, 3), &sorted, lambda, 3, 100, 1e-8);
    let four = prox_sweeps(on_ray(&sorted, lambda, 4), &sorted, lambda, 4, 100, 1e-8);
    let mut best = two;
    for other in [three, four] {
        if prox_objective(&other, &sorted, lambda) < prox_objective(&best, &sorted, lambda) {
            best = other;
        }
    }
    let mut out = [0.0; 4];
    for (&i, w) in order.iter().zip(best) {
        out[i] = (w * top).copysign(z[i]);
    }
    out
}
