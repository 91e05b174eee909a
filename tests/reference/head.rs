//! The head as a whole: last norm, output matrix, loss of the predicted tokens, gradient by the residual stream.

use super::{EPS, Twin};

/// Weights of a head.
pub struct Head<'a> {
    pub gain: &'a [f32],
    pub eps: f32,
    /// `[vocab, hidden]`.
    pub output: &'a [f32],
}

/// One token: its normed features, `r`, logarithms of the probabilities, and their errors in units of `EPS`.
struct Token {
    normed: Vec<f64>,
    r: f64,
    log_p: Vec<f64>,
    off: Vec<f64>,
}

/// Values `[predicted tokens]`, and the gradient `[hidden, tokens]` of `scale` times the sum of the loss.
pub struct HeadTwin {
    pub nll: Vec<f64>,
    pub kl: Vec<f64>,
    pub d_x: Twin,
}

impl Head<'_> {
    fn token(&self, x: &[f64]) -> Token {
        let hidden = x.len() as f64;
        let mean = x.iter().map(|v| v * v).sum::<f64>() / hidden;
        let r = 1.0 / (mean + f64::from(self.eps)).sqrt();
        let normed: Vec<f64> = x.iter().zip(self.gain).map(|(x, &g)| x * r * f64::from(g)).collect();
        let rows = || self.output.chunks_exact(x.len());
        let terms = |row: &[f32]| normed.iter().zip(row).map(|(n, &w)| n * f64::from(w)).collect::<Vec<_>>();
        let logits: Vec<f64> = rows().map(|row| terms(row).iter().sum()).collect();
        // The norm, the product, and the exponential of the distance from the greatest logit.
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
        let size = |row: &[f32]| terms(row).iter().map(|t| t.abs()).sum::<f64>();
        let off =
            rows().zip(&logits).map(|(row, l)| 2.0 * hidden.sqrt() * size(row) + 4.0 + max - l).collect();
        Token { normed, r, log_p: logits.iter().map(|l| l - log_sum).collect(), off }
    }

    /// The loss of the tokens that have a target, from the residual stream `x` `[hidden, tokens]`: the divergence from the
    /// distribution behind `dense` where there is one.
    ///
    /// Unit of the gradient: what the roundings of the logits, of the product with the output matrix and of the norm's sums come
    /// to when all have the same sign but those within a sum.
    pub fn gradient(&self, x: &[f32], dense: Option<&[f32]>, targets: &[u32], scale: f32) -> HeadTwin {
        let (tokens, hidden) = (targets.len(), self.gain.len());
        let column =
            |x: &[f32], t: usize| -> Vec<f64> { (0..hidden).map(|h| f64::from(x[h * tokens + t])).collect() };
        let mut out = HeadTwin { nll: vec![], kl: vec![], d_x: Twin::new(tokens) };
        out.d_x.value = vec![0.0; x.len()];
        out.d_x.unit = vec![0.0; x.len()];
        for (t, &target) in targets.iter().enumerate().filter(|(_, target)| **target != u32::MAX) {
            let (at, own) = (column(x, t), self.token(&column(x, t)));
            out.nll.push(-own.log_p[target as usize]);
            let goal = dense.map(|d| self.token(&column(d, t)));
            if let Some(d) = &goal {
                out.kl.push(d.log_p.iter().zip(&own.log_p).map(|(d, q)| d.exp() * (d - q)).sum());
            }
            let (mut d_normed, mut unit) = (vec![0.0; hidden], vec![0.0; hidden]);
            let vocab = own.log_p.len() as f64;
            for (row, weights) in self.output.chunks_exact(hidden).enumerate() {
                let p = own.log_p[row].exp();
                let (goal, goal_off) = match &goal {
                    Some(d) => (d.log_p[row].exp(), d.log_p[row].exp() * d.off[row]),
                    None => (if row == target as usize { 1.0 } else { 0.0 }, 0.0),
                };
                let off = p * own.off[row] + goal_off + goal + vocab.sqrt() * (p - goal).abs();
                for (h, &w) in weights.iter().enumerate() {
                    d_normed[h] += f64::from(scale) * (p - goal) * f64::from(w);
                    unit[h] += EPS * f64::from(scale) * off * f64::from(w).abs();
                }
            }
            let share = |of: &dyn Fn(usize) -> f64| (0..hidden).map(of).sum::<f64>() * own.r / hidden as f64;
            // x gain = normed / r
            let dot = share(&|h| own.normed[h] / own.r * d_normed[h]);
            let size = share(&|h| (own.normed[h] / own.r * d_normed[h]).abs());
            let dot_unit = share(&|h| (own.normed[h] / own.r).abs() * unit[h]);
            for h in 0..hidden {
                let along = at[h] * own.r * own.r;
                let direct = own.r * f64::from(self.gain[h]);
                let rounding = (direct * d_normed[h]).abs() + along.abs() * size;
                out.d_x.value[h * tokens + t] = direct * d_normed[h] - along * dot;
                out.d_x.unit[h * tokens + t] =
                    direct.abs() * unit[h] + along.abs() * dot_unit + EPS * (hidden as f64).sqrt() * rounding;
            }
        }
        out
    }
}
