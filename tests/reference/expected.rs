//! Masks in expectation in f64: of a row whose groups are drawn independently, and what one draw of the noise gives in place of it.

use super::law::{distribution, score};
use maskwright::kernel::SampleAt;
use maskwright::mask::Pattern;
use maskwright::mask::gumbel::{FIXED_ONE, fixed, gumbel};
use maskwright::mask::philox::{key, philox4x32};

/// One row: weights and logits `[n]`, H `[n, n]`.
pub struct ExpectedRow<'a> {
    pub w: &'a [f64],
    pub logits: &'a [f64],
    pub h: &'a [f64],
    pub pattern: Pattern,
}

/// The sum of `a_i H_ij b_j` over a group whose columns start at `at`.
fn form(h: &[f64], n: usize, at: usize, a: &[f64], b: &[f64]) -> f64 {
    let inner = |i: usize| b.iter().enumerate().map(|(j, b)| h[(at + i) * n + at + j] * b).sum::<f64>();
    a.iter().enumerate().map(|(i, a)| a * inner(i)).sum()
}

impl ExpectedRow<'_> {
    fn groups(&self) -> impl Iterator<Item = usize> {
        (0..self.w.len()).step_by(self.pattern.m())
    }

    /// The pruned weights of the group at column `at` that keeps `kept`.
    fn rest(&self, at: usize, kept: u32) -> Vec<f64> {
        (0..self.pattern.m()).map(|i| if kept >> i & 1 == 1 { 0.0 } else { self.w[at + i] }).collect()
    }

    fn law(&self, at: usize) -> Vec<(u32, f64)> {
        distribution(&self.logits[at..at + self.pattern.m()], self.pattern.n())
    }

    /// Expected pruned weights.
    pub fn expected_pruned(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.w.len()];
        for at in self.groups() {
            for (kept, p) in self.law(at) {
                for (out, z) in out[at..].iter_mut().zip(self.rest(at, kept)) {
                    *out += p * z;
                }
            }
        }
        out
    }

    /// `z H`.
    pub fn times(&self, z: &[f64]) -> Vec<f64> {
        let n = z.len();
        (0..n).map(|i| (0..n).map(|j| self.h[i * n + j] * z[j]).sum()).collect()
    }

    /// (Expected error, its gradient by the logits, for each logit the largest cost of a pattern of its group), the last to measure
    /// errors by: group by group, the others as `z` `[n]`, with `c` = z H.
    pub fn expected_step(&self, z: &[f64], c: &[f64]) -> (f64, Vec<f64>, Vec<f64>) {
        let (n, m) = (self.w.len(), self.pattern.m());
        let (mut error, mut gradient, mut size) = (0.0, vec![0.0; n], vec![0.0; n]);
        for at in self.groups() {
            let own = &z[at..at + m];
            let others: Vec<f64> = (0..m)
                .map(|i| c[at + i] - (0..m).map(|j| self.h[(at + i) * n + at + j] * own[j]).sum::<f64>())
                .collect();
            error += own.iter().zip(&others).map(|(z, o)| z * o).sum::<f64>();
            for (kept, p) in self.law(at) {
                let pruned = self.rest(at, kept);
                let alone = form(self.h, n, at, &pruned, &pruned);
                let cost = alone + 2.0 * pruned.iter().zip(&others).map(|(z, o)| z * o).sum::<f64>();
                error += p * alone;
                for (i, s) in score(&self.logits[at..at + m], kept).into_iter().enumerate() {
                    gradient[at + i] += p * cost * s;
                    size[at + i] = f64::max(size[at + i], cost.abs());
                }
            }
        }
        (error, gradient, size)
    }

    /// (Expected error, its gradient) as the sum over all masks of the row.
    pub fn over_all_masks(&self) -> (f64, Vec<f64>) {
        let m = self.pattern.m();
        let groups: Vec<usize> = self.groups().collect();
        let laws: Vec<Vec<(u32, f64)>> = groups.iter().map(|&at| self.law(at)).collect();
        let masks: usize = laws.iter().map(Vec::len).product();
        let (mut error, mut gradient) = (0.0, vec![0.0; self.w.len()]);
        for mask in 0..masks {
            let (mut left, mut p, mut z, mut scores) = (mask, 1.0, Vec::new(), Vec::new());
            for (law, &at) in laws.iter().zip(&groups) {
                let (kept, of) = law[left % law.len()];
                left /= law.len();
                p *= of;
                z.extend(self.rest(at, kept));
                scores.extend(score(&self.logits[at..at + m], kept));
            }
            let e: f64 = self.times(&z).iter().zip(&z).map(|(c, z)| c * z).sum();
            error += p * e;
            gradient.iter_mut().zip(scores).for_each(|(g, s)| *g += p * e * s);
        }
        (error, gradient)
    }

    /// One draw with the noise `noise[i]` of each weight (fixed point): (shares that are pruned given the others' noise `[n]`, gradient in
    /// which each weight's own noise is in expectation, the largest cost of an exchange), the other groups as `z`, `c` = z H.
    pub fn drawn(&self, noise: &[i32], z: &[f64], c: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (n, m, keep) = (self.w.len(), self.pattern.m(), self.pattern.n());
        let (mut shares, mut gradient, mut size) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        for at in self.groups() {
            let keys: Vec<i32> = (0..m).map(|i| fixed(self.logits[at + i] as f32) + noise[at + i]).collect();
            let cost = |kept: u32| {
                let pruned = self.rest(at, kept);
                let inner = |i: usize| (0..m).map(|j| self.h[(at + i) * n + at + j] * z[at + j]).sum::<f64>();
                let others: f64 = (0..m).map(|i| pruned[i] * (c[at + i] - inner(i))).sum();
                form(self.h, n, at, &pruned, &pruned) + 2.0 * others
            };
            for i in 0..m {
                // The others from the greatest key on; ties to the lower index.
                let mut order: Vec<usize> = (0..m).filter(|&j| j != i).collect();
                order.sort_by_key(|&j| (-i64::from(keys[j]), j));
                let bits = |of: &[usize]| of.iter().map(|j| 1u32 << j).sum::<u32>();
                let bound = f64::from(keys[order[keep - 1]]) / f64::from(FIXED_ONE);
                let odds = (self.logits[at + i] - bound).exp();
                let (with, without) = (cost(bits(&order[..keep - 1]) | 1 << i), cost(bits(&order[..keep])));
                shares[at + i] = (-odds).exp();
                gradient[at + i] = odds * (-odds).exp() * (with - without);
                size[at + i] = with.abs() + without.abs();
            }
        }
        (shares, gradient, size)
    }
}

/// Noise of draw `number` of the weights of row `row` with `cols` columns, in fixed point.
pub fn drawn_noise(at: SampleAt, cols: usize, m: usize, row: usize, number: u32) -> Vec<i32> {
    let word = |j: usize| {
        let group = (row * (cols / m) + j / m) as u32;
        let quad = (j % m / 4) as u32;
        philox4x32([at.step, at.projection, group, 64 + 4 * number + quad], key(at.seed))[j % 4]
    };
    (0..cols).map(|j| gumbel(word(j))).collect()
}
