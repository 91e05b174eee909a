//! The Cholesky factor of a damped Gram matrix against f64: sizes, row chunks, conditioning, dead inputs, matrices that are not
//! positive definite.

mod common;
mod reference;

use std::ops::Range;

use common::{Random, Worst, commands, gpu, open, preset, presets};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{Factored, GramFactor, Kernels, Square};

/// Units (see the twin) that an element may be off. A blocked factorisation in f32 stays below 1: its sums are as long as
/// those of the bound, which has the root of their length for the signs of roundings, and more of |R| |R|^T than they use.
const TOLERANCE: f64 = 1.0;

fn limited(bytes: u64) -> Gpu {
    open(GpuOptions { checked: true, max_binding_bytes: Some(bytes), ..Default::default() })
}

/// X X^T of `tokens` inputs with correlated features: each is one of its own plus `mix` of a few common ones. f64, rounded.
fn gram(n: usize, tokens: usize, mix: f64, random: &mut Random) -> Vec<f32> {
    let common = 3;
    let x: Vec<Vec<f64>> = (0..tokens)
        .map(|_| {
            let shared: Vec<f64> = (0..common).map(|_| f64::from(random.value(1.0))).collect();
            (0..n).map(|i| f64::from(random.value(1.0)) + mix * shared[i % common]).collect()
        })
        .collect();
    let mut h = vec![0.0f32; n * n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = x.iter().map(|x| x[i] * x[j]).sum();
            h[i * n + j] = sum as f32;
            h[j * n + i] = sum as f32;
        }
    }
    h
}

fn lambda(h: &[f32], n: usize, damp: f64) -> f32 {
    let alive = |d: f32| if d == 0.0 { 1.0 } else { f64::from(d) };
    (damp * (0..n).map(|i| alive(h[i * n + i])).sum::<f64>() / n as f64) as f32
}

struct OnGpu {
    h: Square,
    factor: GramFactor,
}

fn upload(gpu: &Gpu, c: &mut Commands<'_>, h: &[f32], n: usize) -> OnGpu {
    let square = Square::new(gpu, "test:square", n).expect("room");
    square.write(c, h).expect("a write");
    OnGpu { h: square, factor: GramFactor::new(gpu, "test:factor", n).expect("room") }
}

/// A factor as the device has it.
struct Found {
    parts: Vec<f32>,
    blocks: Vec<Range<usize>>,
    /// The damping used.
    damp: f64,
}

/// Factors `h` on the device. The matrix itself must not change.
fn factor(gpu: &Gpu, name: &str, h: &[f32], n: usize, damp: f64) -> Result<Found, GpuError> {
    let kernels = Kernels::new(gpu, preset(name));
    let mut c = Commands::new(gpu)?;
    let on = upload(gpu, &mut c, h, n);
    let damp = kernels.factor(&mut c, &on.h, damp, &on.factor)?;
    common::same_bits("the matrix", &on.h.read(&mut c)?, h);
    Ok(Found { parts: on.factor.parts().read(&mut c)?, blocks: on.factor.blocks().collect(), damp })
}

fn check(worst: &mut Worst, label: &str, h: &[f32], n: usize, found: &Found) {
    let (got, blocks) = (&found.parts, &found.blocks);
    let damped = reference::damp(h, n, lambda(h, n, found.damp));
    let want =
        reference::factor_block(&damped, n, blocks).unwrap_or_else(|| panic!("{label}: not positive in f64"));
    worst.check(label, got, &want);
    assert_eq!((blocks[0].start, blocks[blocks.len() - 1].end), (0, n), "{label}");
    assert!(blocks.windows(2).all(|b| b[0].end == b[1].start), "{label}: {blocks:?}");
    for i in 0..n {
        assert!(got[i * n + i] > 0.0, "{label}: diagonal element {i} is {}", got[i * n + i]);
        assert!(got[i * n..i * n + i].iter().all(|&v| v == 0.0), "{label}: row {i} is not upper triangular");
    }
}

#[test]
fn sizes() {
    let mut worst = Worst::new("factor", TOLERANCE);
    let mut random = Random::new(1);
    // Beyond 256 rows several blocks are updated together.
    for n in [4, 8, 12, 60, 64, 68, 96, 128, 132, 200, 320, 580] {
        let h = gram(n, 2 * n, 1.0, &mut random);
        for name in presets() {
            let found = factor(gpu(), name, &h, n, 0.01).expect("a factor");
            assert_eq!(found.damp, 0.01);
            check(&mut worst, &format!("{name} {n}"), &h, n, &found);
        }
    }
}

/// One block only: `damp` and `factor_block` alone. `U H U^T = I` says so without the twin's factor.
#[test]
fn blocks() {
    let mut random = Random::new(2);
    for n in (4..=64).step_by(4) {
        let h = gram(n, 3 * n, 0.3, &mut random);
        for name in presets() {
            let u = factor(gpu(), name, &h, n, 0.01).expect("a factor").parts;
            let damped = reference::damp(&h, n, lambda(&h, n, 0.01));
            let full = |i: usize, j: usize| damped[i.min(j) * n + i.max(j)];
            for i in 0..n {
                for j in 0..n {
                    let sum: f64 = (i..n)
                        .flat_map(|k| (j..n).map(move |l| (k, l)))
                        .map(|(k, l)| f64::from(u[i * n + k]) * full(k, l) * f64::from(u[j * n + l]))
                        .sum();
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((sum - want).abs() < 2e-4, "{name} {n}: {sum} at {i}, {j}");
                }
            }
        }
    }
}

/// Row chunks of 16, 32, 48 and 80 rows: blocks that are smaller, and products over several chunks.
#[test]
fn row_chunks() {
    let mut worst = Worst::new("factor in chunks", TOLERANCE);
    let mut random = Random::new(3);
    for (n, chunk) in [(36, 16), (68, 16), (132, 32), (100, 48), (200, 80), (176, 80), (388, 176)] {
        let h = gram(n, 2 * n, 1.0, &mut random);
        let small = limited((4 * n * chunk) as u64);
        for name in presets() {
            let found = factor(&small, name, &h, n, 0.01).expect("a factor");
            check(&mut worst, &format!("{name} {n} in chunks of {chunk}"), &h, n, &found);
        }
    }
}

/// Fewer inputs than features, strong correlation, features of very different size: only damping makes these definite.
#[test]
fn ill_conditioned() {
    let mut worst = Worst::new("ill-conditioned", TOLERANCE);
    let mut random = Random::new(4);
    for (n, tokens, mix, spread) in [(68, 5, 1.0, 0.0), (132, 40, 30.0, 0.0), (96, 400, 1.0, 3.0)] {
        let mut h = gram(n, tokens, mix, &mut random);
        // Scale of feature i: 10^(-spread .. 0)
        let scale = |i: usize| 10f32.powf(-spread * i as f32 / n as f32);
        h.iter_mut().enumerate().for_each(|(i, v)| *v *= scale(i / n) * scale(i % n));
        for damp in [0.1, 0.01, 0.001] {
            for name in presets() {
                let found = factor(gpu(), name, &h, n, damp).expect("a factor");
                assert_eq!(found.damp, damp);
                check(&mut worst, &format!("{name} {n} of {tokens}, damping {damp}"), &h, n, &found);
            }
        }
    }
}

/// Inputs that are always 0: U's diagonal has 1 / sqrt(1 + lambda) there, and nothing beside it.
#[test]
fn dead_inputs() {
    let mut worst = Worst::new("dead inputs", TOLERANCE);
    let n = 76;
    let mut h = gram(n, 200, 1.0, &mut Random::new(5));
    let dead = [0, 3, 17, 63, 64, 75];
    for &d in &dead {
        for i in 0..n {
            h[d * n + i] = 0.0;
            h[i * n + d] = if i % 2 == 0 { 0.0 } else { -0.0 };
        }
    }
    for name in presets() {
        let found = factor(gpu(), name, &h, n, 0.01).expect("a factor");
        check(&mut worst, name, &h, n, &found);
        let got = found.parts;
        let want = 1.0 / (1.0 + f64::from(lambda(&h, n, 0.01))).sqrt();
        for &d in &dead {
            for j in 0..n {
                let value = f64::from(got[d * n + j]);
                assert!(
                    if j == d { (value / want - 1.0).abs() < 1e-6 } else { value == 0.0 },
                    "{d}, {j}: {value}"
                );
                assert!(j == d || got[j * n + d] == 0.0);
            }
        }
    }
}

/// Runs `try_factor` and the ladder on a matrix with one diagonal element replaced.
fn broken(h: &[f32], n: usize, at: usize, value: f32) -> (Factored, Result<f64, GpuError>) {
    let mut h = h.to_vec();
    h[at * n + at] = value;
    let kernels = Kernels::new(gpu(), preset("tile64"));
    let mut c = commands();
    let on = upload(gpu(), &mut c, &h, n);
    let once = kernels.try_factor(&mut c, &on.h, 0.01, &on.factor);
    let ladder = kernels.factor(&mut c, &on.h, 0.01, &on.factor);
    (once.unwrap_or(Factored::Done), ladder)
}

#[test]
fn not_positive() {
    let n = 100;
    let h = gram(n, 300, 0.2, &mut Random::new(6));
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f32>() / n as f32;
    for at in [0, 40, 64, 99] {
        // Below zero by some tenths of the mean: damping of 1 turns it round, which the ladder finds.
        let (once, ladder) = broken(&h, n, at, -0.3 * mean);
        assert!(matches!(once, Factored::NotPositive { row } if row <= at), "{once:?} for {at}");
        assert_eq!(ladder.expect("more damping helps"), 1.0, "row {at}");
        // Far below: nothing helps.
        let (once, ladder) = broken(&h, n, at, -50.0 * mean);
        assert!(matches!(once, Factored::NotPositive { .. }), "{once:?}");
        let error = ladder.expect_err("nothing helps");
        assert!(matches!(error, GpuError::NotPositive { n: 100, damp, .. } if damp == 10.0), "{error}");
        for bad in [f32::NAN, f32::INFINITY] {
            let error = broken(&h, n, at, bad).1.expect_err("not finite");
            assert!(matches!(error, GpuError::NotPositive { row, .. } if row == at), "{error}");
        }
    }
}

/// A NaN or an infinity beside the diagonal is noticed in a pivot.
#[test]
fn not_finite_beside_the_diagonal() {
    let n = 72;
    for bad in [f32::NAN, f32::INFINITY] {
        for (i, j) in [(0, 1), (3, 70), (65, 70), (10, 50)] {
            let mut h = gram(n, 100, 0.2, &mut Random::new(7));
            h[i * n + j] = bad;
            h[j * n + i] = bad;
            for name in presets() {
                let kernels = Kernels::new(gpu(), preset(name));
                let mut c = commands();
                let on = upload(gpu(), &mut c, &h, n);
                let once = kernels.try_factor(&mut c, &on.h, 0.01, &on.factor).expect("an end");
                assert!(matches!(once, Factored::NotPositive { row } if row <= i), "{name}: {once:?}");
            }
        }
    }
}

/// Without damping, a matrix of lower rank cannot be factored exactly; the ladder starts at its least step then.
#[test]
fn damping_from_zero() {
    let n = 64;
    // All features alike: the first elimination leaves exact zeros.
    let h = vec![4.0f32; n * n];
    let found = factor(gpu(), "rows16", &h, n, 0.0).expect("a factor");
    assert_eq!(found.damp, 1e-4);
    check(&mut Worst::new("damping from zero", TOLERANCE), "rank 1", &h, n, &found);
    let wrong = factor(gpu(), "rows16", &h, n, f64::NAN).err();
    assert!(matches!(wrong, Some(GpuError::Shape { .. })));
}

/// The memory plan is what is allocated, on devices of their own: the tests beside this one allocate, too.
#[test]
fn planned_bytes() {
    for (bytes, n) in [(None, 4), (None, 68), (None, 132), (Some(16 * 4 * 36), 36), (Some(48 * 4 * 100), 100)]
    {
        let gpu = open(GpuOptions { checked: true, max_binding_bytes: bytes, ..Default::default() });
        let before = gpu.memory_in_use();
        let _factor = GramFactor::new(&gpu, "test:factor", n).expect("room");
        assert_eq!(gpu.memory_in_use() - before, GramFactor::device_bytes(&gpu, n), "{n} rows");
    }
}

/// The same bits every time.
#[test]
fn repeatable() {
    let n = 132;
    let h = gram(n, 200, 1.0, &mut Random::new(8));
    for name in presets() {
        let first = factor(gpu(), name, &h, n, 0.01).expect("a factor").parts;
        for _ in 0..5 {
            let again = factor(gpu(), name, &h, n, 0.01).expect("a factor").parts;
            common::same_bits(name, &again, &first);
        }
    }
}
