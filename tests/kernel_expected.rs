//! Expected masks under MaskPro's law and the step on the expected error, on a device against f64, and f64 against all masks of a row.

mod common;
mod reference;

use common::{
    DTYPES, Matrix, Random, Worst, activation, gpu, open, pattern, preset, read, untouched, vector,
};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{Drawn, ExpectedStep, Kernels, SampleAt, Square, Weight};
use maskwright::mask::Pattern;
use maskwright::mask::gumbel::LOGIT_LIMIT;
use reference::{EPS, ExpectedRow, Twin, drawn_noise};

/// One of each kind: a driver takes seconds to compile the sets of a pattern.
const PATTERNS: [(usize, usize); 6] = [(1, 2), (1, 4), (2, 4), (2, 8), (4, 8), (8, 16)];
const AT: SampleAt = SampleAt { seed: 0x0123_4567_89ab_cdef, step: 9, projection: 4 };
const DRAWS: u32 = 3;

/// Weights and a Gram matrix of inputs that have a direction in common.
struct Problem {
    w: Matrix,
    h: Vec<f32>,
    logits: Vec<f32>,
    pattern: Pattern,
}

impl Problem {
    fn new(rows: usize, n: usize, kind: usize, pattern: Pattern, scale: f32, random: &mut Random) -> Self {
        let tokens = n + 3;
        let x: Vec<f32> = random.values(n * tokens, 1.0).iter().map(|v| v + 0.3).collect();
        let dot =
            |i: usize, j: usize| -> f32 { (0..tokens).map(|t| x[i * tokens + t] * x[j * tokens + t]).sum() };
        let h = (0..n * n).map(|i| dot((i / n).max(i % n), (i / n).min(i % n))).collect();
        let w = Matrix::random(rows, n, DTYPES[kind % 3], random);
        Self { w, h, logits: random.values(rows * n, scale), pattern }
    }

    fn wide(&self, values: &[f32], r: usize) -> Vec<f64> {
        values[r * self.w.cols..(r + 1) * self.w.cols].iter().map(|&v| f64::from(v)).collect()
    }

    /// `f` of every row.
    fn each<T>(&self, f: impl Fn(usize, &ExpectedRow<'_>) -> T) -> Vec<T> {
        let h: Vec<f64> = self.h.iter().map(|&v| f64::from(v)).collect();
        let row = |r| {
            let (w, logits) = (self.wide(&self.w.values, r), self.wide(&self.logits, r));
            f(r, &ExpectedRow { w: &w, logits: &logits, h: &h, pattern: self.pattern })
        };
        (0..self.w.rows).map(row).collect()
    }

    /// The shares of the weights that are pruned, of row `r`: exact, or the mean of the draws.
    fn shares(&self, r: usize, row: &ExpectedRow<'_>) -> Vec<f64> {
        let (n, m) = (self.w.cols, self.pattern.m());
        if m <= Drawn::EXACT {
            let ones = vec![1.0; n];
            return ExpectedRow { w: &ones, ..*row }.expected_pruned();
        }
        let zeros = vec![0.0; n];
        let mut mean = vec![0.0; n];
        for number in 0..DRAWS {
            let noise = drawn_noise(AT, n, m, r, number);
            let (shares, ..) = row.drawn(&noise, &zeros, &zeros);
            mean.iter_mut().zip(shares).for_each(|(mean, s)| *mean += s / f64::from(DRAWS));
        }
        mean
    }

    /// The gradient of row `r` and the size of what it is made of.
    fn gradient(&self, r: usize, row: &ExpectedRow<'_>, z: &[f64], c: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (n, m) = (self.w.cols, self.pattern.m());
        if m <= Drawn::EXACT {
            let (_, gradient, size) = row.expected_step(z, c);
            return (gradient, size);
        }
        let (mut mean, mut most) = (vec![0.0; n], vec![0.0f64; n]);
        for number in 0..DRAWS {
            let (_, gradient, size) = row.drawn(&drawn_noise(AT, n, m, r, number), z, c);
            mean.iter_mut().zip(gradient).for_each(|(mean, g)| *mean += g / f64::from(DRAWS));
            most.iter_mut().zip(size).for_each(|(most, s)| *most = most.max(s));
        }
        (mean, most)
    }

    fn law<'a>(&self, logits: &'a maskwright::gpu::Buffer) -> Drawn<'a> {
        Drawn { pattern: self.pattern, logits, draws: DRAWS, at: AT }
    }

    /// Both kernels on the rows `rows`, the columns in two parts where there are two.
    fn check(&self, gpu: &Gpu, rows: std::ops::Range<usize>, worst: &mut [Worst; 2]) {
        let label = format!("{} {:?} of {} x {}", self.pattern, rows, self.w.rows, self.w.cols);
        let k = Kernels::new(gpu, preset("rows16"));
        let mut c = Commands::new(gpu).expect("commands");
        let (n, panel) = (self.w.cols, rows.len());
        let weight: Weight = self.w.upload(gpu);
        let logits = vector(gpu, &self.logits);
        let law = self.law(&logits);
        let pruned = activation(gpu, panel, n / 4, &untouched(panel * n));
        let out = pruned.rows(0, panel, n / 4).expect("rows");
        k.expected_pruned(&mut c, &weight, &law, (rows.clone(), 0..n), out, None).expect("expected masks");
        let z = read(&mut c, pruned.buffer(), panel * n);
        let mut twin = Twin::new(n);
        for (r, shares) in self.each(|r, row| self.shares(r, row)).iter().enumerate() {
            if rows.contains(&r) {
                for (w, share) in self.wide(&self.w.values, r).iter().zip(shares) {
                    twin.push(w * share, EPS * w.abs());
                }
            }
        }
        worst[0].check(&label, &z, &twin);

        // From what the device has, so that one error is measured at a time.
        let h = Square::new(gpu, "test:h", n).expect("room");
        h.write(&mut c, &self.h).expect("a write");
        let products = activation(gpu, panel, n / 4, &vec![0.0; panel * n]);
        k.times_square(&mut c, out, &h, products.rows(0, panel, n / 4).expect("rows")).expect("products");
        let y = read(&mut c, products.buffer(), panel * n);
        let scales: Vec<f32> = (0..panel).map(|r| 1.0 / (1.0 + r as f32)).collect();
        let scales_on = vector(gpu, &scales);
        let rate = 0.01f32;
        let span = self.pattern.m().max(4);
        let half = n / 2 / span * span;
        for columns in [0..half, half..n].into_iter().filter(|part| !part.is_empty()) {
            let step = ExpectedStep {
                weight: &weight,
                h: &h,
                law,
                rows: rows.clone(),
                columns,
                pruned: &pruned,
                products: &products,
                scales: &scales_on,
                rate,
            };
            k.expected_step(&mut c, &step).expect("a step");
        }
        let moved = read(&mut c, &logits, self.logits.len());
        let mut twin = Twin::new(n);
        let all = self.each(|r, row| match rows.contains(&r) {
            true => {
                let at = r - rows.start;
                let part =
                    |v: &[f32]| v[at * n..(at + 1) * n].iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
                let (g, size) = self.gradient(r, row, &part(&z), &part(&y));
                let by = f64::from(rate) * f64::from(scales[at]);
                (0..n).map(|i| (by * g[i], by * size[i])).collect()
            }
            false => vec![(0.0, 0.0); n],
        });
        for (l, (by, size)) in self.logits.iter().zip(all.into_iter().flatten()) {
            let new = f64::from(*l) - by;
            let clamped = new.clamp(f64::from(-LOGIT_LIMIT), f64::from(LOGIT_LIMIT));
            twin.push(clamped, EPS * (if size == 0.0 { 0.0 } else { clamped.abs() } + size));
        }
        worst[1].check(&label, &moved, &twin);

        // The masks of some columns anew: what moved, and what stays.
        let part = half..n;
        let change = activation(gpu, panel, part.len() / 4, &untouched(panel * part.len()));
        let moved_rows = change.rows(0, panel, part.len() / 4).expect("rows");
        k.expected_pruned(&mut c, &weight, &law, (rows, part.clone()), out, Some(moved_rows))
            .expect("a part");
        let (new, change) =
            (read(&mut c, pruned.buffer(), panel * n), read(&mut c, change.buffer(), panel * part.len()));
        for r in 0..panel {
            for j in 0..n {
                let (old, new) = (z[r * n + j], new[r * n + j]);
                match part.contains(&j) {
                    true => {
                        assert_eq!(new - old, change[r * part.len() + j - part.start], "{label}: {r} {j}")
                    }
                    false => assert_eq!(new, old, "{label}: {r} {j}"),
                }
            }
        }
    }
}

fn tolerances() -> [Worst; 2] {
    [Worst::new("expected pruned weights", 16.0), Worst::new("step on the expected error", 16.0)]
}

/// Patterns of every kind, stored types, and logits from flat to far apart; a panel in the middle of the rows.
#[test]
fn kernels_equal_f64() {
    let mut worst = tolerances();
    let mut random = Random::new(1);
    for (i, (n, m)) in PATTERNS.into_iter().enumerate() {
        for (rows, groups, scale) in [(1, 1, 1.0), (7, 5, 3.0), (5, 3, 0.0), (3, 2, 12.0), (3, 3, 90.0)] {
            let p = pattern(n, m);
            let problem = Problem::new(rows, groups * m.max(4), i, p, scale, &mut random);
            problem.check(gpu(), rows / 3..rows, &mut worst);
        }
    }
}

/// Weights, H and logits in row chunks.
#[test]
fn row_chunks() {
    let small =
        open(GpuOptions { checked: true, max_binding_bytes: Some(4 * 96 * 16), ..Default::default() });
    let mut worst = tolerances();
    let mut random = Random::new(2);
    for (n, m) in [(2, 4), (8, 16)] {
        Problem::new(21, 96, 1, pattern(n, m), 2.0, &mut random).check(&small, 3..16, &mut worst);
    }
}

/// The expected error and its gradient, group by group, are the sums over all masks of a row.
#[test]
fn expectations_are_sums_over_all_masks() {
    let mut random = Random::new(3);
    for (n, m, groups) in
        [(1, 2, 5), (1, 4, 4), (2, 4, 4), (3, 4, 3), (4, 8, 2), (7, 8, 2), (15, 16, 2), (2, 16, 1)]
    {
        for scale in [0.5, 3.0] {
            let problem = Problem::new(1, groups * m, 0, pattern(n, m), scale, &mut random);
            problem.each(|_, row| {
                let z = row.expected_pruned();
                let (error, gradient, _) = row.expected_step(&z, &row.times(&z));
                let (want, slope) = row.over_all_masks();
                assert!((error / want - 1.0).abs() < 1e-12, "{n}:{m}: {error} {want}");
                for (g, s) in gradient.iter().zip(&slope) {
                    assert!((g - s).abs() < 1e-12 * want, "{n}:{m}: {g} {s}");
                }
            });
        }
    }
}

/// The mean over many draws is the exact share, and the exact gradient, within their standard errors.
#[test]
fn draws_have_no_bias() {
    let mut random = Random::new(4);
    for (n, m) in [(2, 4), (4, 8)] {
        let problem = Problem::new(1, 2 * m, 0, pattern(n, m), 1.5, &mut random);
        problem.each(|_, row| {
            let z = row.expected_pruned();
            let c = row.times(&z);
            let (_, gradient, _) = row.expected_step(&z, &c);
            let ones = vec![1.0; z.len()];
            let shares = ExpectedRow { w: &ones, ..*row }.expected_pruned();
            let want = [shares, gradient].concat();
            let (mut sums, mut squares) = (vec![0.0; want.len()], vec![0.0; want.len()]);
            let count = 20_000;
            for number in 0..count {
                let noise = drawn_noise(AT, z.len(), m, 0, number);
                let (shares, gradient, _) = row.drawn(&noise, &z, &c);
                for (i, v) in shares.into_iter().chain(gradient).enumerate() {
                    sums[i] += v;
                    squares[i] += v * v;
                }
            }
            let count = f64::from(count);
            for (i, want) in want.iter().enumerate() {
                let mean = sums[i] / count;
                let error = ((squares[i] / count - mean * mean) / count).sqrt();
                assert!(
                    (mean - want).abs() < 4.5 * error + 1e-9,
                    "{n}:{m} {i}: {mean} for {want} +- {error}"
                );
            }
        });
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let k = Kernels::new(gpu(), preset("rows16"));
    let mut c = Commands::new(gpu()).expect("commands");
    let problem = Problem::new(3, 16, 0, pattern(4, 8), 1.0, &mut Random::new(5));
    let (weight, logits) = (problem.w.upload(gpu()), vector(gpu(), &problem.logits));
    let out = activation(gpu(), 3, 4, &[0.0; 48]);
    let law = problem.law(&logits);
    let mut pruned = |law: Drawn<'_>, columns| {
        let rows = out.rows(0, 3, 4).expect("rows");
        let result = k.expected_pruned(&mut c, &weight, &law, (0..3, columns), rows, None);
        assert!(matches!(result, Ok(()) | Err(GpuError::Shape { .. })), "{result:?}");
        result.is_ok()
    };
    assert!(pruned(law, 0..16) && pruned(law, 8..16));
    assert!(!pruned(law, 4..16) && !pruned(law, 0..12) && !pruned(law, 0..24));
    assert!(!pruned(Drawn { draws: 0, ..law }, 0..16));
    let few = vector(gpu(), &[0.0f32; 40]);
    assert!(!pruned(Drawn { logits: &few, ..law }, 0..16));
}
