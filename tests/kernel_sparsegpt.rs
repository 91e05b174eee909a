//! SparseGPT against f64, with the device's own choices: every pattern, sizes, row chunks of U, dead inputs, ties; and what it is for.

mod common;
mod reference;

use common::{Random, Worst, activation, gpu, open, pattern, preset, presets, read};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{Activation, GramFactor, Kernels, MaskBuffer, SparseGpt, SparseGptScratch, Square};
use maskwright::mask::{BitMask, Pattern};

const PATTERNS: [(usize, usize); 7] = [(1, 2), (2, 4), (1, 4), (3, 4), (2, 8), (4, 8), (8, 16)];

/// Units of the twin: its roundings have random signs, what is made of them is taken as independent, which it is not quite.
const TOLERANCE: f64 = 2.0;

fn limited(bytes: u64) -> Gpu {
    open(GpuOptions { checked: true, max_binding_bytes: Some(bytes), ..Default::default() })
}

/// Gram matrix of correlated features of different size, the dead ones always 0.
fn gram(n: usize, dead: &[bool], random: &mut Random) -> Vec<f32> {
    let x: Vec<Vec<f64>> = (0..2 * n + 16)
        .map(|_| {
            let common: Vec<f64> = (0..4).map(|_| f64::from(random.value(1.0))).collect();
            let one = |i: usize| f64::from(random.value(1.0)) + common[i % 4] + common[i % 3];
            let all: Vec<f64> = (0..n).map(one).collect();
            (0..n).map(|i| if dead[i] { 0.0 } else { all[i] * (1.0 + (i % 7) as f64) }).collect()
        })
        .collect();
    let entry = |i: usize, j: usize| x.iter().map(|x| x[i] * x[j]).sum::<f64>() as f32;
    (0..n * n).map(|k| entry((k / n).min(k % n), (k / n).max(k % n))).collect()
}

struct Done {
    weights: Vec<f32>,
    mask: BitMask,
    /// U of the factor that the device has.
    upper: Vec<f64>,
}

/// Prunes `w` as the rows from `first` on of a projection of `rows` rows, whose mask is all ones before.
fn prune(
    gpu: &Gpu,
    name: &str,
    w: &[f32],
    h: &[f32],
    pattern: Pattern,
    first: usize,
    rows: usize,
) -> Result<Done, GpuError> {
    let n = (h.len() as f64).sqrt() as usize;
    let count = w.len() / n;
    let kernels = Kernels::new(gpu, preset(name));
    let mut c = Commands::new(gpu)?;
    let square = Square::new(gpu, "test:square", n)?;
    square.write(&mut c, h)?;
    let factor = GramFactor::new(gpu, "test:factor", n)?;
    kernels.factor(&mut c, &square, 0.01, &factor)?;
    let panel = activation(gpu, count, n / 4, w);
    // What is left there must not matter.
    let arrived = activation(gpu, count, n / 4, &vec![f32::NAN; count * n]);
    let scratch = SparseGptScratch::new(gpu, count, n)?;
    let mask = MaskBuffer::upload(gpu, "test:mask", &BitMask::ones(rows, n))?;
    let job = SparseGpt {
        weights: panel.rows(0, count, n / 4)?,
        arrived: arrived.rows(0, count, n / 4)?,
        factor: &factor,
        pattern,
        mask: &mask,
        first_row: first,
    };
    kernels.sparsegpt(&mut c, &job, &scratch)?;
    let blocks: Vec<_> = factor.blocks().collect();
    let words: Vec<u32> = c.read(mask.buffer(), 0, rows * mask.words_per_row())?;
    Ok(Done {
        weights: read(&mut c, panel.buffer(), w.len()),
        mask: BitMask::from_words(rows, n, words).expect("a mask without tail bits"),
        upper: reference::upper_of(&factor.parts().read(&mut c)?, n, &blocks),
    })
}

struct Case {
    pattern: Pattern,
    n: usize,
    rows: usize,
    dead: Vec<bool>,
    w: Vec<f32>,
    h: Vec<f32>,
}

impl Case {
    fn new(pattern: Pattern, n: usize, rows: usize, dead: &[usize], random: &mut Random) -> Self {
        let dead: Vec<bool> = (0..n).map(|i| dead.contains(&i)).collect();
        Self { pattern, n, rows, w: random.values(rows * n, 1.0), h: gram(n, &dead, random), dead }
    }

    /// Prunes it and holds mask and weights against the twin.
    fn check(&self, gpu: &Gpu, name: &str, worst: &mut Worst, choices: &mut f64) -> Done {
        let label = format!("{name} {} of {} x {}", self.pattern, self.rows, self.n);
        let (first, rows) = (3, self.rows + 5);
        let done = prune(gpu, name, &self.w, &self.h, self.pattern, first, rows).expect(&label);
        for row in 0..rows {
            if !(first..first + self.rows).contains(&row) {
                assert!(
                    (0..self.n).all(|j| done.mask.get(row, j)),
                    "{label}: row {row} of the mask was touched"
                );
            }
        }
        for (i, group) in done.mask.groups(self.pattern).enumerate() {
            let row = i / (self.n / self.pattern.m());
            if (first..first + self.rows).contains(&row) {
                assert_eq!(group.count_ones() as usize, self.pattern.n(), "{label}: group {i}");
            }
        }
        for (i, &w) in done.weights.iter().enumerate() {
            let (row, j) = (i / self.n, i % self.n);
            let zero = !done.mask.get(first + row, j) || self.dead[j];
            assert!(!zero || w == 0.0, "{label}: weight {row}, {j} is {w}");
        }
        let want =
            reference::sparsegpt_block(&self.w, &done.upper, &self.dead, self.pattern, &done.mask, first);
        assert!(want.choice <= TOLERANCE, "{label}: a choice is {} units from the best", want.choice);
        *choices = choices.max(want.choice);
        worst.check(&label, &done.weights, &want.weights);
        done
    }
}

#[test]
fn patterns_and_sizes() {
    let mut random = Random::new(1);
    let (mut worst, mut choices) = (Worst::new("sparsegpt_block", TOLERANCE), 0.0);
    for (keep, of) in PATTERNS {
        for (n, rows) in [
            (4, 1),
            (8, 3),
            (12, 65),
            (16, 5),
            (48, 7),
            (60, 9),
            (128, 4),
            (132, 6),
            (208, 70),
            (272, 3),
            (448, 5),
        ] {
            if n % of == 0 {
                let case = Case::new(pattern(keep, of), n, rows, &[], &mut random);
                for name in presets() {
                    case.check(gpu(), name, &mut worst, &mut choices);
                }
            }
        }
    }
    println!("choices: worst {choices:.3} units from the best");
}

/// Factors in chunks that start inside of 128 columns.
#[test]
fn row_chunks() {
    let mut random = Random::new(2);
    let (mut worst, mut choices) = (Worst::new("U in chunks", TOLERANCE), 0.0);
    for (n, chunk) in [(48, 16), (208, 48), (272, 80)] {
        let small = limited((4 * n * chunk) as u64);
        for (keep, of) in [(1, 2), (2, 4), (8, 16)] {
            let case = Case::new(pattern(keep, of), n, 11, &[], &mut random);
            for name in presets() {
                case.check(&small, name, &mut worst, &mut choices);
            }
        }
    }
}

#[test]
fn dead_inputs() {
    let mut random = Random::new(3);
    let (mut worst, mut choices) = (Worst::new("dead inputs", TOLERANCE), 0.0);
    for (keep, of) in PATTERNS {
        // A whole group of up to eight, single ones, a last one.
        let dead = [0, 1, 2, 3, 4, 5, 6, 7, 18, 33, 34, 35, 100, 143];
        let case = Case::new(pattern(keep, of), 144, 9, &dead, &mut random);
        for name in presets() {
            let done = case.check(gpu(), name, &mut worst, &mut choices);
            // Of scores that are all 0 the lower indices stay.
            let m = of.min(8);
            for row in 3..12 {
                let kept: Vec<bool> = (0..m).map(|j| done.mask.get(row, j)).collect();
                let want: Vec<bool> = (0..m).map(|j| j < keep).collect();
                assert!(of > 8 || kept == want, "{keep}:{of}: {kept:?}");
            }
        }
    }
}

/// A matrix that is a multiple of I moves nothing, so the mask is that of the magnitudes, bit for bit, ties included.
#[test]
fn ties_and_magnitudes() {
    let mut random = Random::new(4);
    let (n, rows) = (144, 40);
    let h: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 4.0 } else { 0.0 }).collect();
    let w: Vec<f32> = (0..n * rows).map(|_| [-0.5, -0.25, 0.0, 0.25, 0.5, 1.0][random.below(6)]).collect();
    for (keep, of) in PATTERNS {
        let pattern = pattern(keep, of);
        let want = BitMask::top_n(rows, n, pattern, |row, scores| {
            scores.iter_mut().zip(&w[row * n..]).for_each(|(s, w)| *s = w.abs());
        });
        let kept = reference::mask_apply(&w, want.as_ref().expect("a mask"));
        for name in presets() {
            let done = prune(gpu(), name, &w, &h, pattern, 0, rows).expect("pruned");
            assert_eq!(Some(&done.mask), want.as_ref().ok(), "{name} {pattern}");
            assert!(done.weights == kept, "{name} {pattern}: weights changed");
        }
    }
}

/// tr(D H D^T) of the change from `w` to `v`.
fn error(w: &[f32], v: &[f32], h: &[f32], n: usize) -> f64 {
    let mut sum = 0.0;
    for (w, v) in w.chunks_exact(n).zip(v.chunks_exact(n)) {
        let d: Vec<f64> = w.iter().zip(v).map(|(&w, &v)| f64::from(w) - f64::from(v)).collect();
        for (i, di) in d.iter().enumerate() {
            sum += di * d.iter().zip(&h[i * n..]).map(|(dj, &h)| dj * f64::from(h)).sum::<f64>();
        }
    }
    sum
}

/// On correlated inputs the updated weights have much less error than those that Wanda keeps.
#[test]
fn less_error_than_wanda() {
    let mut random = Random::new(5);
    for (keep, of, n) in [(2, 4, 128), (1, 4, 320), (4, 8, 128), (8, 16, 320)] {
        let case = Case::new(pattern(keep, of), n, 64, &[], &mut random);
        let wanda = BitMask::top_n(case.rows, n, case.pattern, |row, scores| {
            for (j, s) in scores.iter_mut().enumerate() {
                *s = case.w[row * n + j].abs() * case.h[j * n + j].sqrt();
            }
        });
        let kept = reference::mask_apply(&case.w, &wanda.expect("a mask"));
        let done = prune(gpu(), "tile64", &case.w, &case.h, case.pattern, 0, case.rows).expect("pruned");
        let [ours, theirs, all] =
            [&done.weights, &kept, &vec![0.0; kept.len()]].map(|v| error(&case.w, v, &case.h, n));
        println!("{}: {:.4} of the output, Wanda {:.4}", case.pattern, ours / all, theirs / all);
        assert!(ours < 0.8 * theirs, "{}: {ours} for {theirs}", case.pattern);
    }
}

#[test]
fn wrong_shapes() {
    let kernels = common::kernels("rows16");
    let mut c = common::commands();
    let [factor, other] = [12, 16].map(|n| GramFactor::new(gpu(), "test:factor", n).expect("room"));
    let scratch = SparseGptScratch::new(gpu(), 4, 12).expect("room");
    let [panel, arrived] = [0.0, 0.0].map(|v| activation(gpu(), 4, 3, &[v; 48]));
    let mask = MaskBuffer::new(gpu(), "test:mask", 6, 12).expect("room");
    let mut wrong = |factor: &GramFactor, pattern: Pattern, first_row: usize, room: &Activation, rows| {
        let weights = panel.rows(0, 4, 3).expect("rows");
        let arrived = room.rows(0, rows, 3).expect("rows");
        let job = SparseGpt { weights, arrived, factor, pattern, mask: &mask, first_row };
        matches!(kernels.sparsegpt(&mut c, &job, &scratch), Err(GpuError::Shape { .. }))
    };
    assert!(wrong(&factor, pattern(2, 8), 0, &arrived, 4), "12 columns in groups of 8");
    assert!(wrong(&factor, pattern(2, 4), 3, &arrived, 4), "rows 3 .. 7 of 6");
    assert!(wrong(&other, pattern(2, 4), 0, &arrived, 4), "a factor of 16 rows for 12 columns");
    assert!(wrong(&factor, pattern(2, 4), 0, &arrived, 3), "room for three rows");
}
