//! Norms over groups of rows, and their gradients.

use maskwright::model::NormKind;

use super::{EPS, Twin};

/// A norm with its weights, as the kernel's.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub kind: NormKind,
    /// `[rows]`, or where they are shared `[rows / groups]`.
    pub gain: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub eps: f32,
    pub groups: usize,
    pub shared: bool,
}

/// What a token has in a group: mean (0 where none is taken), `r`, and the mean size of the features less the mean.
struct Moments {
    mean: f64,
    r: f64,
    size: f64,
}

impl<'a> Norm<'a> {
    pub fn rms(gain: &'a [f32], eps: f32) -> Self {
        Self { kind: NormKind::Rms, gain, bias: None, eps, groups: 1, shared: false }
    }

    /// Index of the weights of row `row`, in groups of `features`.
    fn weight(&self, row: usize, features: usize) -> usize {
        if self.shared { row % features } else { row }
    }

    fn moments(&self, column: &[f64]) -> Moments {
        let n = column.len() as f64;
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => column.iter().sum::<f64>() / n,
        };
        let square = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let size = column.iter().map(|v| (v - mean).abs()).sum::<f64>() / n;
        Moments { mean, r: 1.0 / (square + f64::from(self.eps)).sqrt(), size }
    }
}

/// Column `t` of group `group` of `x` `[rows, tokens]`.
fn column(x: &[f32], features: usize, tokens: usize, group: usize, t: usize) -> Vec<f64> {
    (0..features).map(|h| f64::from(x[(group * features + h) * tokens + t])).collect()
}

/// The norm per token and group. With `n` features and `d` a feature less the mean (of Layer), unit: `EPS` times
/// `r |gain| (sqrt(n) (|d| + mean |d|) + |mean|)`, the `mean |d|` for Layer alone, and `|y|` where there is a bias. As exact as
/// the mean itself where the mean is large.
pub fn norm(x: &[f32], norm: &Norm<'_>, tokens: usize) -> Twin {
    let rows = x.len() / tokens;
    let features = rows / norm.groups;
    let mut out = Twin::new(tokens);
    for group in 0..norm.groups {
        let columns: Vec<_> = (0..tokens).map(|t| column(x, features, tokens, group, t)).collect();
        let moments: Vec<_> = columns.iter().map(|x| norm.moments(x)).collect();
        for h in 0..features {
            let at = norm.weight(group * features + h, features);
            for (x, m) in columns.iter().zip(&moments) {
                let (d, gain) = (x[h] - m.mean, f64::from(norm.gain[at]));
                let bias = norm.bias.map_or(0.0, |b| f64::from(b[at]));
                let y = d * m.r * gain + bias;
                let about = if norm.kind == NormKind::Layer { m.size } else { 0.0 };
                let parts = (features as f64).sqrt() * (d.abs() + about) + m.mean.abs();
                out.push(
                    y,
                    EPS * (m.r * gain.abs() * parts + if norm.bias.is_some() { y.abs() } else { 0.0 }),
                );
            }
        }
    }
    out
}

/// The same: who loads a gain makes no difference.
pub fn norm_lanes(x: &[f32], of: &Norm<'_>, tokens: usize) -> Twin {
    norm(x, of, tokens)
}

/// `before`, and the gradient of `sum d_y * norm(x)` with respect to `x`: with `q = gain d_y` and `d` a feature less the mean (of
/// Layer), `r (q - mean q) - d r^3 mean(q d)`, `mean q` for Layer alone. Unit: `EPS` times `|before|`, and times `sqrt(n)` of the sizes
/// of all three with the means taken of sizes; what the mean is off by, `EPS |mean|`, and what the sums are, shows in `d`.
pub fn norm_backward(x: &[f32], norm: &Norm<'_>, d_y: &[f32], before: &[f32], tokens: usize) -> Twin {
    let rows = x.len() / tokens;
    let features = rows / norm.groups;
    let n = features as f64;
    let mut out = Twin::new(tokens);
    out.value = vec![0.0; x.len()];
    out.unit = vec![0.0; x.len()];
    for group in 0..norm.groups {
        for t in 0..tokens {
            let x = column(x, features, tokens, group, t);
            let m = norm.moments(&x);
            let gain = |h: usize| f64::from(norm.gain[norm.weight(group * features + h, features)]);
            let d_y = column(d_y, features, tokens, group, t);
            let q: Vec<f64> = d_y.iter().enumerate().map(|(h, d)| gain(h) * d).collect();
            let mean = |of: &dyn Fn(usize) -> f64| (0..features).map(of).sum::<f64>() / n;
            let (up, up_size) = match norm.kind {
                NormKind::Rms => (0.0, 0.0),
                NormKind::Layer => (mean(&|h| q[h]), mean(&|h| q[h].abs())),
            };
            let along = m.r.powi(3) * mean(&|h| q[h] * (x[h] - m.mean));
            let along_size = m.r.powi(3) * mean(&|h| (q[h] * (x[h] - m.mean)).abs());
            let about = if norm.kind == NormKind::Layer { m.size } else { 0.0 };
            // what the mean's error makes of mean(q d): that of the sum of d, times mean |q|
            let off = m.r.powi(3) * about * up_size;
            for h in 0..features {
                let i = (group * features + h) * tokens + t;
                let d = x[h] - m.mean;
                let parts = m.r * (q[h].abs() + up_size) + (d.abs() + about) * (along_size + off);
                let before = f64::from(before[i]);
                out.value[i] = before + m.r * (q[h] - up) - d * along;
                out.unit[i] = EPS * (before.abs() + n.sqrt() * parts + m.mean.abs() * along_size);
            }
        }
    }
    out
}

/// The same: who loads a gain makes no difference.
pub fn norm_backward_lanes(x: &[f32], of: &Norm<'_>, d_y: &[f32], before: &[f32], tokens: usize) -> Twin {
    norm_backward(x, of, d_y, before, tokens)
}
