//! Exact group descent against f64: one sweep's choices, the fixed point by brute force, panels, row chunks of weights and H,
//! products in workgroup memory and in storage.

mod common;
mod reference;

use std::ops::Range;

use common::{DTYPES, Matrix, Random, activation, gpu, open, pattern, preset, presets, upload_mask};
use maskwright::gpu::{Commands, Gpu, GpuOptions};
use maskwright::kernel::{Descent, Kernels, Square};
use maskwright::mask::{BitMask, Pattern};
use maskwright::model::Dtype;

const TOLERANCE: f32 = 1e-6;

/// A Gram matrix of inputs that a few directions have in common, and weights none of which is 0.
struct Problem {
    w: Matrix,
    h: Vec<f32>,
    start: BitMask,
    pattern: Pattern,
}

impl Problem {
    fn new(rows: usize, n: usize, dtype: Dtype, pattern: Pattern, random: &mut Random) -> Self {
        let tokens = 2 * n;
        let common = random.values(3 * tokens, 1.0);
        let x: Vec<f64> = (0..n)
            .flat_map(|_| {
                let mix = random.values(3, 1.0);
                let scale = 1.0 + random.value(0.9);
                (0..tokens)
                    .map(|t| {
                        let shared: f32 = (0..3).map(|i| mix[i] * common[i * tokens + t]).sum();
                        f64::from(scale * (shared + random.value(1.0)))
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        let dot =
            |i: usize, j: usize| -> f64 { (0..tokens).map(|t| x[i * tokens + t] * x[j * tokens + t]).sum() };
        let h = (0..n * n).map(|i| dot((i / n).max(i % n), (i / n).min(i % n)) as f32).collect();
        let mut values = random.values(rows * n, 1.0);
        values.iter_mut().for_each(|v| *v += 0.01f32.copysign(*v));
        let w = Matrix::new(rows, n, dtype, &values);
        let start = BitMask::top_n(rows, n, pattern, |r, s| {
            s.iter_mut().zip(&w.values[r * n..]).for_each(|(s, v)| *s = v.abs());
        });
        Self { start: start.expect("a mask"), w, h, pattern }
    }

    /// Descends on the device in passes until none changes anything, or one pass of `sweeps` alone. The masks of rows outside stay.
    fn run(&self, gpu: &Gpu, name: &str, rows: Range<usize>, only: Option<u32>) -> BitMask {
        let kernels = Kernels::new(gpu, preset(name));
        let mut c = Commands::new(gpu).expect("commands");
        let (n, panel) = (self.w.cols, rows.len());
        let h = Square::new(gpu, "test:h", n).expect("room");
        h.write(&mut c, &self.h).expect("a write");
        let (weight, mask) = (self.w.upload(gpu), upload_mask(gpu, &self.start));
        let products = activation(gpu, panel, n / 4, &vec![0.0; panel * n]);
        let y = products.rows(0, panel, n / 4).expect("rows");
        kernels
            .weight_times_square(&mut c, &weight, Some((&mask, true)), rows.clone(), &h, y)
            .expect("products");
        let moves = Descent::moves(gpu, panel).expect("room");
        for pass in 0..60 {
            let d = Descent {
                weight: &weight,
                h: &h,
                mask: &mask,
                pattern: self.pattern,
                rows: rows.clone(),
                products: &products,
                moves: &moves,
                pass,
                sweeps: only.unwrap_or(4),
                tolerance: TOLERANCE,
            };
            kernels.descent(&mut c, &d).expect("descent");
            let counts: Vec<u32> = c.read(&moves, Descent::counts_of(pass, panel), panel).expect("counts");
            if only.is_some() || counts.iter().all(|&n| n == 0) {
                break;
            }
            assert!(pass < 59, "no end");
        }
        let words = c.read(mask.buffer(), 0, self.start.words().len()).expect("the mask");
        BitMask::from_words(self.w.rows, n, words).expect("a mask")
    }

    fn errors(&self, mask: &BitMask) -> Vec<f64> {
        (0..self.w.rows).map(|r| reference::row_error(&self.w.values, &self.h, mask, r)).collect()
    }

    /// Strict, no row worse than at the start, and no single change of a group helps.
    fn check_fixed_point(&self, label: &str, got: &BitMask, rows: Range<usize>) {
        got.check(self.pattern).unwrap_or_else(|e| panic!("{label}: {e}"));
        let (before, after) = (self.errors(&self.start), self.errors(got));
        for r in rows {
            assert!(
                after[r] <= before[r] * (1.0 + 1e-6),
                "{label}: row {r}: {} after {}",
                after[r],
                before[r]
            );
            let gain = reference::group_gain(&self.w.values, &self.h, got, r, self.pattern);
            // What counts is a share of the error that the row had in its last pass; c has rounding errors of f32.
            let allowed = f64::from(TOLERANCE) * after[r] + 2e-5 * before[r];
            assert!(gain <= allowed, "{label}: row {r}: a change still gains {gain:e} of {}", after[r]);
        }
    }
}

/// Groups in which two masks differ, of all.
fn share_of_groups(a: &BitMask, b: &BitMask, pattern: Pattern) -> f64 {
    a.groups_changed(b, pattern) as f64 / (a.rows() * a.cols() / pattern.m()) as f64
}

const PATTERNS: [(usize, usize); 9] =
    [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (8, 16), (12, 16), (15, 16)];

/// Kernel `descent` to its fixed point for every pattern, in every storage format.
#[test]
fn fixed_points() {
    let mut random = Random::new(1);
    for name in presets() {
        for (i, (n, m)) in PATTERNS.into_iter().enumerate() {
            let pattern = pattern(n, m);
            for (rows, cols) in [(1, m.max(4)), (7, 5 * m.max(4)), (5, 176)] {
                let problem = Problem::new(rows, cols, DTYPES[i % 3], pattern, &mut random);
                let got = problem.run(gpu(), name, 0..rows, None);
                problem.check_fixed_point(&format!("{name} {pattern} {rows} x {cols}"), &got, 0..rows);
                let twin =
                    reference::descent(&problem.w.values, &problem.h, &problem.start, pattern, 60, 1e-6);
                let (ours, theirs): (f64, f64) =
                    (problem.errors(&got).iter().sum(), problem.errors(&twin).iter().sum());
                // Rounding may decide a close call otherwise, and lead to another minimum of that row.
                assert!(ours <= theirs * 1.05, "{name} {pattern} {rows} x {cols}: {ours} for {theirs}");
            }
        }
    }
}

/// One sweep makes the twin's choices, but for close calls.
#[test]
fn one_sweep() {
    let mut random = Random::new(2);
    for name in presets() {
        for (n, m) in PATTERNS {
            let pattern = pattern(n, m);
            let problem = Problem::new(24, 192, Dtype::F32, pattern, &mut random);
            let got = problem.run(gpu(), name, 0..24, Some(1));
            let twin = reference::descent(&problem.w.values, &problem.h, &problem.start, pattern, 1, 1e-6);
            let differ = share_of_groups(&got, &twin, pattern);
            let moved = share_of_groups(&problem.start, &twin, pattern);
            println!("{name} {pattern}: {moved:.3} of the groups moved, {differ:.4} differ from the twin");
            assert!(differ <= 0.01 && moved > 0.02, "{name} {pattern}: {differ} of the groups differ");
        }
    }
}

/// A panel in the middle of the rows: the others keep their masks, and the panel gets those it has alone.
#[test]
fn panels() {
    let mut random = Random::new(3);
    for name in presets() {
        let problem = Problem::new(21, 64, Dtype::F16, Pattern::TWO_OF_FOUR, &mut random);
        let all = problem.run(gpu(), name, 0..21, None);
        let part = problem.run(gpu(), name, 5..16, None);
        for r in 0..21 {
            let want = if (5..16).contains(&r) { &all } else { &problem.start };
            for j in 0..64 {
                assert_eq!(part.get(r, j), want.get(r, j), "{name}: row {r}, column {j}");
            }
        }
    }
}

/// H and weights in row chunks; the order of the sweep is the same, so the choices are, but for close calls.
#[test]
fn row_chunks() {
    let limits = GpuOptions { checked: true, max_binding_bytes: Some(32 * 4 * 96), ..Default::default() };
    let small = open(limits);
    let mut random = Random::new(4);
    for name in presets() {
        for (n, m) in [(2, 4), (4, 8), (8, 16), (1, 2)] {
            let pattern = pattern(n, m);
            let problem = Problem::new(70, 96, Dtype::F32, pattern, &mut random);
            let rows = 3..23;
            let got = problem.run(&small, name, rows.clone(), None);
            problem.check_fixed_point(&format!("{name} {pattern}"), &got, rows.clone());
            let once = problem.run(&small, name, rows.clone(), Some(1));
            let whole = problem.run(gpu(), name, rows, Some(1));
            let differ = share_of_groups(&once, &whole, pattern);
            assert!(differ <= 0.002, "{name} {pattern}: {differ} of the groups differ");
        }
    }
}

/// Products that do not fit workgroup memory stay in storage: the same choices.
#[test]
fn products_in_storage() {
    let little = open(GpuOptions { checked: true, max_workgroup_bytes: Some(1024), ..Default::default() });
    let mut random = Random::new(5);
    for (n, m) in [(2, 4), (2, 8), (8, 16)] {
        let pattern = pattern(n, m);
        let problem = Problem::new(9, 272, Dtype::BF16, pattern, &mut random);
        let (a, b) = (problem.run(gpu(), "rows16", 0..9, None), problem.run(&little, "rows16", 0..9, None));
        assert_eq!(a, b, "{pattern}");
    }
}
