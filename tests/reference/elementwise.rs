//! Rotary embedding, the multiply-add peak.

use super::{EPS, Twin};

/// Which features of a head turn together, as the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    pub head_dim: usize,
    pub turned: usize,
    pub interleaved: bool,
}

impl Rotary {
    /// Which pair of its head a feature belongs to, whether it is the second one, and the feature that it turns with; none where it
    /// stays.
    fn pair(&self, feature: usize) -> Option<(usize, bool, usize)> {
        let half = self.turned / 2;
        if feature >= self.turned {
            None
        } else if self.interleaved {
            Some((feature / 2, feature % 2 == 1, feature ^ 1))
        } else {
            Some((feature % half, feature >= half, (feature + half) % self.turned))
        }
    }
}

/// Rotation of the pairs of each head by the angles of `table` `[2, turned / 2, window]` (cos, then sin).
/// Unit: `sqrt(2) * EPS * (|a cos| + |b sin|)`.
pub fn rope(x: &[f32], table: &[f32], rotary: Rotary, window: usize, tokens: usize) -> Twin {
    let mut out = Twin::new(tokens);
    for row in 0..x.len() / tokens {
        let feature = row % rotary.head_dim;
        for t in 0..tokens {
            let own = f64::from(x[row * tokens + t]);
            let Some((pair, second, partner)) = rotary.pair(feature) else {
                out.push(own, 0.0);
                continue;
            };
            let angle = |i: usize| f64::from(table[i * window + t % window]);
            let (cos, sin) = (angle(pair), angle(rotary.turned / 2 + pair));
            let other = f64::from(x[(row - feature + partner) * tokens + t]);
            let (one, two) = (own * cos, if second { other * sin } else { -other * sin });
            out.push(one + two, 2f64.sqrt() * EPS * (one.abs() + two.abs()));
        }
    }
    out
}

/// The same with the negative angles.
pub fn rope_backward(x: &[f32], table: &[f32], rotary: Rotary, window: usize, tokens: usize) -> Twin {
    let (cos, sin) = table.split_at(rotary.turned / 2 * window);
    let negative: Vec<f32> = cos.iter().copied().chain(sin.iter().map(|s| -s)).collect();
    rope(x, &negative, rotary, window, tokens)
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
