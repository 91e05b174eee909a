//! Least-squares repair: both kernels against their twins, the whole against a Cholesky solution in f64.

mod common;
mod reference;

use common::{
    DTYPES, Matrix, Random, Worst, activation, gpu, open, pattern, preset, random_mask, read, untouched,
    upload_mask,
};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{Kernels, Lstsq, LstsqOptions, LstsqPanel, LstsqReport, LstsqScratch, Square};
use maskwright::mask::{BitMask, Pattern};
use maskwright::model::Dtype;
use reference::LstsqState;

const PRESETS: [&str; 2] = ["tile64", "rows16"];

/// Gram matrix of inputs that mostly move along three directions, beside noise of the given size, in columns whose norms
/// differ by a factor of up to 30.
fn correlated(n: usize, noise: f32, random: &mut Random) -> Vec<f32> {
    let tokens = 2 * n + 8;
    let mix = random.values(3 * n, 1.0);
    let size: Vec<f32> = (0..n).map(|_| 10f32.powf(random.value(0.75))).collect();
    let x: Vec<f64> = (0..tokens)
        .flat_map(|_| {
            let along = [random.value(4.0), random.value(2.0), random.value(1.0)];
            let noise: Vec<f32> = random.values(n, noise);
            let value = |j: usize| {
                let dominant: f32 = (0..3).map(|k| along[k] * mix[k * n + j]).sum();
                f64::from(size[j] * (dominant + noise[j]))
            };
            (0..n).map(value).collect::<Vec<_>>()
        })
        .collect();
    let mut h = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..tokens).map(|t| x[t * n + i] * x[t * n + j]).sum();
            h[i * n + j] = sum as f32;
            h[j * n + i] = sum as f32;
        }
    }
    h
}

fn square(gpu: &Gpu, c: &mut Commands<'_>, n: usize, values: &[f32]) -> Square {
    let h = Square::new(gpu, "test:square", n).expect("room");
    h.write(c, values).expect("a write");
    h
}

fn magnitude_mask(m: &Matrix, pattern: Pattern) -> BitMask {
    let scores: Vec<f64> = m.values.iter().map(|w| f64::from(w.abs())).collect();
    reference::score_mask(&scores, m.cols, pattern)
}

fn mean_diagonal(h: &[f32], n: usize) -> f64 {
    (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64
}

/// Repairs the rows; the panel held NaN before, and so does what is beside it.
fn repair(
    gpu: &Gpu,
    name: &str,
    m: &Matrix,
    bits: &BitMask,
    rows: std::ops::Range<usize>,
    h: &[f32],
    options: LstsqOptions,
) -> (Vec<f32>, LstsqReport) {
    let kernels = Kernels::new(gpu, preset(name));
    let mut c = Commands::new(gpu).expect("commands");
    let (n, count) = (m.cols, rows.len());
    let h = square(gpu, &mut c, n, h);
    let (weight, mask) = (m.upload(gpu), upload_mask(gpu, bits));
    let scratch = LstsqScratch::new(gpu, count + 1, n).expect("room");
    let out = activation(gpu, count + 2, n / 4, &untouched((count + 2) * n));
    let job = Lstsq { weight: &weight, mask: &mask, rows, h: &h, options };
    let panel = out.rows(1, count, n / 4).expect("rows");
    let report = kernels.lstsq(&mut c, &job, &scratch, panel).expect("a repair");
    let got = read(&mut c, out.buffer(), (count + 2) * n);
    assert!(got[..n].iter().chain(&got[(count + 1) * n..]).all(|v| v.is_nan()), "written beside the rows");
    (got[n..(count + 1) * n].to_vec(), report)
}

/// What is to be seen of a repair: largest relative excess of the damped error over the minimum, and of the plain error.
struct Excess {
    damped: f64,
    plain: f64,
}

/// Checks what must hold of every repair, and compares with the exact solution.
fn compare(
    label: &str,
    m: &Matrix,
    bits: &BitMask,
    rows: std::ops::Range<usize>,
    h: &[f32],
    damping: f64,
    result: &(Vec<f32>, LstsqReport),
) -> Excess {
    let n = m.cols;
    let lambda = damping * mean_diagonal(h, n);
    let (got, report) = result;
    let mut excess = Excess { damped: 0.0, plain: 0.0 };
    assert_eq!((report.before.len(), report.after.len()), (rows.len(), rows.len()));
    for (i, row) in rows.enumerate() {
        let w = &m.values[row * n..][..n];
        let new = &got[i * n..][..n];
        let kept: Vec<bool> = (0..n).map(|j| bits.get(row, j)).collect();
        for j in (0..n).filter(|&j| !kept[j]) {
            assert!(new[j] == 0.0, "{label}: row {row}, column {j} is pruned but {}", new[j]);
        }
        let change: Vec<f64> = w.iter().zip(new).map(|(&w, &v)| f64::from(w) - f64::from(v)).collect();
        let pruned: Vec<f64> =
            w.iter().zip(&kept).map(|(&w, &k)| if k { 0.0 } else { f64::from(w) }).collect();
        let exact = reference::least_squares(w, &kept, h, lambda);
        let (before, _) = reference::damped_error(&pruned, h, &kept, lambda);
        let (error, size) = reference::damped_error(&change, h, &kept, lambda);
        let (least, least_size) = reference::damped_error(&exact, h, &kept, lambda);
        // What rounding leaves of c . c H in f32.
        let sizes: Vec<f64> = change.iter().map(|c| c.abs()).collect();
        let absolute: Vec<f32> = h.iter().map(|h| h.abs()).collect();
        let unit =
            (n as f64).sqrt() * reference::EPS * reference::damped_error(&sizes, &absolute, &kept, 0.0).0;
        assert!(error <= before + unit, "{label}: row {row}: {before:e} before, {error:e} after");
        assert!(report.after[i] <= report.before[i], "{label}: row {row}");
        let (b, a) = (f64::from(report.before[i]), f64::from(report.after[i]));
        assert!(
            (b - before).abs() <= unit.max(1e-5 * before),
            "{label}: row {row}: before {b:e}, {before:e}"
        );
        assert!((a - error).abs() <= 2.0 * unit, "{label}: row {row}: after {a:e}, {error:e}, unit {unit:e}");
        let least_damped = least + least_size;
        if least_damped > 0.0 {
            excess.damped = excess.damped.max((error + size) / least_damped - 1.0);
            excess.plain = excess.plain.max(error / least - 1.0);
        }
    }
    excess
}

#[test]
fn lstsq_residual_and_lstsq_step() {
    let mut random = Random::new(1);
    let mut worst = Worst::new("lstsq", 2.0);
    for name in PRESETS {
        let kernels = common::kernels(name);
        for (n, rows, first) in [(4, 1, 0), (12, 5, 2), (64, 33, 0), (132, 7, 3), (200, 3, 1), (1028, 2, 0)] {
            for case in 0..4 {
                let label = format!("{name} {rows} x {n}, case {case}");
                let bits = random_mask(rows + first, n, &mut random);
                let zero = |values: Vec<f32>| -> Vec<f32> {
                    let kept = |i: usize| bits.get(first + i / n, i % n);
                    values.iter().enumerate().map(|(i, &v)| if kept(i) { v } else { 0.0 }).collect()
                };
                let count = rows * n;
                let mut inverse: Vec<f32> = (0..n).map(|_| 10f32.powf(random.value(1.0))).collect();
                inverse[n / 2] = 0.0;
                let change = random.values(count, 1.0);
                let mut direction = zero(random.values(count, 1.0));
                (0..rows).for_each(|r| direction[r * n + n / 2] = 0.0);
                let residual = zero(random.values(count, 1.0));
                // Mostly along the direction, so that curvatures are positive; flat in one row, and in another at rest.
                let product: Vec<f32> = (0..count)
                    .map(|i| match (case, i / n) {
                        (3, 1) => 0.0,
                        _ => 2.0 * direction[i] + random.value(0.5),
                    })
                    .collect();
                let lambda = if case == 3 { 0.0 } else { 0.3 };
                let state: Vec<[f32; 4]> = (0..rows)
                    .map(|r| {
                        let now = if r % 3 == 2 { 1e-9 } else { 2.5 };
                        [now, 3.0, if case == 1 { -1e6 } else { 1e6 }, 5.0]
                    })
                    .collect();
                let twin = LstsqState {
                    mask: &bits,
                    first,
                    lambda,
                    inverse: &inverse,
                    product: &product,
                    change: &change,
                    residual: &residual,
                    direction: &direction,
                    state: &state,
                };
                let mask = upload_mask(gpu(), &bits);
                let scratch = LstsqScratch::new(gpu(), rows, n).expect("room");
                let on_gpu = activation(gpu(), rows + 1, n / 4, &[untouched(n), change.clone()].concat());
                let rows_of = on_gpu.rows(1, rows, n / 4).expect("rows");
                let panel = LstsqPanel { mask: &mask, first, lambda, change: rows_of, scratch: &scratch };
                for step in [false, true] {
                    let mut c = common::commands();
                    let untouched = untouched(count);
                    c.write(on_gpu.buffer(), 4 * n as u64, &change).expect("a write");
                    c.write(scratch.product.buffer(), 0, &product).expect("a write");
                    c.write(&scratch.inverse, 0, &inverse).expect("a write");
                    c.write(&scratch.state, 0, &state).expect("a write");
                    let (r, d) = if step { (&residual, &direction) } else { (&untouched, &untouched) };
                    c.write(scratch.residual.buffer(), 0, r).expect("a write");
                    c.write(scratch.direction.buffer(), 0, d).expect("a write");
                    let want = if step {
                        kernels.lstsq_step(&mut c, &panel, 1e-3).expect("lstsq_step");
                        reference::lstsq_step(&twin, 1e-3)
                    } else {
                        kernels.lstsq_residual(&mut c, &panel, case == 0).expect("lstsq_residual");
                        reference::lstsq_residual(&twin, case == 0)
                    };
                    let got = read(&mut c, on_gpu.buffer(), count + n);
                    worst.check(&format!("{label}, step {step}: change"), &got[n..], &want.change);
                    let got = read(&mut c, scratch.residual.buffer(), count);
                    worst.check(&format!("{label}, step {step}: residual"), &got, &want.residual);
                    let got = read(&mut c, scratch.direction.buffer(), count);
                    worst.check(&format!("{label}, step {step}: direction"), &got, &want.direction);
                    let got = read(&mut c, &scratch.state, 4 * rows);
                    worst.check(&format!("{label}, step {step}: state"), &got, &want.state);
                }
            }
        }
    }
}

/// The minimum of the damped error within 1e-3, for condition numbers up to about 1e6, all storage types and patterns, H whole and in chunks.
#[test]
fn reaches_the_minimum() {
    let small =
        open(GpuOptions { checked: true, max_binding_bytes: Some(64 * 4 * 200), ..Default::default() });
    let mut random = Random::new(2);
    // Of the last ones only 1e-5 of the error remains, and f32 knows no more of it than this.
    for (noise, damping, allowed) in
        [(0.3, 1e-2, 1e-3), (0.1, 1e-3, 1e-3), (0.03, 1e-4, 1e-3), (0.01, 1e-4, 1e-2)]
    {
        for (i, n) in [4, 12, 64, 132, 200].into_iter().enumerate() {
            let h = correlated(n, noise, &mut random);
            for (j, (keep, of)) in [(2, 4), (1, 4), (4, 8)].into_iter().enumerate() {
                if n % of != 0 {
                    continue;
                }
                // The kernels of the other presets are many times slower on a software driver.
                let name = match noise < 0.3 && gpu().subgroup_size() == Some(8) {
                    true => "lanes32",
                    false => PRESETS[(i + j) % 2],
                };
                let gpu = if (i + j) % 2 == 0 { gpu() } else { &small };
                let m = Matrix::random(17, n, DTYPES[(i + j) % 3], &mut random);
                let bits = magnitude_mask(&m, pattern(keep, of));
                let options = LstsqOptions { damping, tolerance: 1e-5, max_iterations: 2000 };
                let result = repair(gpu, name, &m, &bits, 3..14, &h, options);
                let label = format!("{name} {} {keep}:{of} n {n} noise {noise} damping {damping}", m.dtype);
                let excess = compare(&label, &m, &bits, 3..14, &h, damping, &result);
                println!(
                    "{label}: to {:.1e} in {} steps, residual {:.1e}, excess {:.1e} damped, {:.1e} plain",
                    result.1.after.iter().sum::<f32>() / result.1.before.iter().sum::<f32>(),
                    result.1.iterations,
                    result.1.residual,
                    excess.damped,
                    excess.plain
                );
                assert!(excess.damped < allowed && excess.plain < allowed, "{label}");
            }
        }
    }
}

/// The same bits every time; with H in chunks the same errors.
#[test]
fn reproducible() {
    let small =
        open(GpuOptions { checked: true, max_binding_bytes: Some(64 * 4 * 132), ..Default::default() });
    let mut random = Random::new(3);
    let n = 132;
    let h = correlated(n, 0.1, &mut random);
    let m = Matrix::random(9, n, Dtype::BF16, &mut random);
    let bits = magnitude_mask(&m, Pattern::TWO_OF_FOUR);
    let options = LstsqOptions::default();
    let (first, report) = repair(gpu(), "tile64", &m, &bits, 0..9, &h, options);
    for _ in 0..3 {
        let (again, other) = repair(gpu(), "tile64", &m, &bits, 0..9, &h, options);
        common::same_bits("again", &again, &first);
        assert_eq!(other, report);
    }
    // Chunks of H change where the sums of a product are cut, no more.
    let (_, chunked) = repair(&small, "tile64", &m, &bits, 0..9, &h, options);
    for (a, b) in chunked.after.iter().zip(&report.after) {
        assert!((a - b).abs() < 1e-2 * b, "{a} in chunks, {b} whole");
    }
}

/// The default tolerance: within 1 % of the minimum's damped error in every row.
#[test]
fn default_options() {
    let mut random = Random::new(4);
    let n = 200;
    let h = correlated(n, 0.3, &mut random);
    let m = Matrix::random(40, n, Dtype::BF16, &mut random);
    let bits = magnitude_mask(&m, Pattern::TWO_OF_FOUR);
    let options = LstsqOptions::default();
    let result = repair(gpu(), "tile64", &m, &bits, 0..40, &h, options);
    let excess = compare("default", &m, &bits, 0..40, &h, options.damping, &result);
    println!("{} steps, residual {:.1e}, {:.1e}", result.1.iterations, result.1.residual, excess.damped);
    assert!(result.1.residual < 3e-3 && excess.damped < 1e-2);
    let (before, after): (f32, f32) = (result.1.before.iter().sum(), result.1.after.iter().sum());
    assert!(after < 0.9 * before, "{before} before, {after} after");
    // Few steps are fewer, and still no worse than none.
    for max_iterations in [0, 1, 5] {
        let few = LstsqOptions { max_iterations, ..options };
        let result = repair(gpu(), "tile64", &m, &bits, 0..40, &h, few);
        assert_eq!(result.1.iterations, max_iterations);
        compare("few steps", &m, &bits, 0..40, &h, few.damping, &result);
    }
}

/// Rows of zeros, inputs of zeros, no inputs at all, nothing to prune, nothing kept.
#[test]
fn zeros() {
    let mut random = Random::new(5);
    let n = 64;
    for damping in [0.0, 1e-4, 1e-2] {
        let options = LstsqOptions { damping, tolerance: 1e-4, max_iterations: 500 };
        let mut m = Matrix::random(6, n, Dtype::F32, &mut random);
        m.values[2 * n..3 * n].fill(0.0);
        m = Matrix::new(6, n, Dtype::F32, &m.values);
        let mut bits = magnitude_mask(&m, Pattern::TWO_OF_FOUR);
        for j in 0..n {
            bits.set(4, j, true);
            bits.set(5, j, false);
        }
        let kept = |i: usize| if bits.get(i / n, i % n) { m.values[i] } else { 0.0 };
        let unchanged: Vec<f32> = (0..6 * n).map(kept).collect();
        let (got, report) = repair(gpu(), "tile64", &m, &bits, 0..6, &vec![0.0; n * n], options);
        assert_eq!((got, report.iterations), (unchanged.clone(), 0));
        assert_eq!((report.residual, report.after), (0.0, vec![0.0; 6]));

        // Every third input never moves, and H has a rank of 20.
        let mut h = correlated(n, 0.0, &mut random);
        let more = correlated(n, 0.3, &mut random);
        for (i, v) in h.iter_mut().enumerate() {
            let (r, c) = (i / n, i % n);
            if r < 20 && c < 20 {
                *v += more[i];
            }
            if r % 3 == 1 || c % 3 == 1 {
                *v = 0.0;
            }
        }
        let (got, report) = repair(gpu(), "rows16", &m, &bits, 0..6, &h, options);
        println!("damping {damping}: {} steps, residual {:.1e}", report.iterations, report.residual);
        assert!(got.iter().all(|v| v.is_finite() && v.abs() < 1e3), "damping {damping}");
        for i in (0..6 * n).filter(|i| i % n % 3 == 1 || matches!(i / n, 2 | 4 | 5)) {
            assert_eq!(got[i], unchanged[i], "damping {damping}: row {}, column {}", i / n, i % n);
        }
        assert!(report.before.iter().zip(&report.after).all(|(b, a)| a <= b));
        assert!(report.after[0] < 0.9 * report.before[0], "{report:?}");
    }
}

/// More rows than one dimension of the grid holds.
#[test]
fn folded_grid() {
    let few = open(GpuOptions { checked: true, max_workgroups: Some(255), ..Default::default() });
    let (rows, n) = (255 + 77, 4);
    let mut random = Random::new(6);
    let h = correlated(n, 0.5, &mut random);
    let m = Matrix::random(rows, n, Dtype::F16, &mut random);
    let bits = magnitude_mask(&m, Pattern::TWO_OF_FOUR);
    let options = LstsqOptions { damping: 1e-2, tolerance: 1e-4, max_iterations: 100 };
    let result = repair(&few, "tile64", &m, &bits, 0..rows, &h, options);
    let excess = compare("many rows", &m, &bits, 0..rows, &h, options.damping, &result);
    assert!(excess.damped < 1e-3, "{:e}", excess.damped);
}

#[test]
fn memory_and_errors() {
    let (rows, n) = (10, 12);
    // On a device of its own: other tests allocate at the same time.
    let alone = open(GpuOptions::default());
    let before = alone.memory_in_use();
    let there = LstsqScratch::new(&alone, rows, n).expect("room");
    assert_eq!(alone.memory_in_use() - before, LstsqScratch::bytes(rows, n));
    drop(there);
    let scratch = LstsqScratch::new(gpu(), rows, n).expect("room");

    let kernels = common::kernels("tile64");
    let mut c = common::commands();
    let mut random = Random::new(7);
    let m = Matrix::random(20, n, Dtype::F32, &mut random);
    let (weight, mask) = (m.upload(gpu()), upload_mask(gpu(), &magnitude_mask(&m, Pattern::TWO_OF_FOUR)));
    let good = correlated(n, 0.3, &mut random);
    let mut bad = good.clone();
    bad[n + 1] = f32::NAN;
    let out = activation(gpu(), 20, n / 4, &untouched(20 * n));
    let mut run = |values: &[f32], rows: std::ops::Range<usize>, count: usize| {
        let h = square(gpu(), &mut c, n, values);
        let job = Lstsq { weight: &weight, mask: &mask, rows, h: &h, options: LstsqOptions::default() };
        kernels.lstsq(&mut c, &job, &scratch, out.rows(0, count, n / 4).expect("rows"))
    };
    assert!(run(&good, 10..20, 10).is_ok());
    assert!(matches!(run(&good, 0..11, 11), Err(GpuError::Shape { .. })), "more rows than the scratch");
    assert!(matches!(run(&good, 0..9, 10), Err(GpuError::Shape { .. })), "another number of rows");
    assert!(matches!(run(&good, 15..25, 10), Err(GpuError::Shape { .. })), "rows that are not there");
    assert!(matches!(run(&good, 3..3, 0), Err(GpuError::Shape { .. })), "no rows");
    assert!(matches!(run(&bad, 0..5, 5), Err(GpuError::Device { .. })), "NaN on the diagonal");
    bad[0] = f32::INFINITY;
    assert!(matches!(run(&bad, 0..5, 5), Err(GpuError::Device { .. })), "infinity on the diagonal");
}
