//! Effective weights under soft masks on a device against f64: patterns, types, noise, transposition, row ranges, row chunks.

mod common;
mod reference;

use std::ops::Range;

use common::{
    DTYPES, Matrix, Random, Worst, commands, gpu, kernels, open, pattern, preset, random_mask, read,
    same_bits, untouched, upload_mask, vector,
};
use half::f16;
use maskwright::gpu::{Buffer, Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{
    Activation, Kernels, Masking, Noise, Relaxation, SampleAt, SoftPatterns, SoftTopN, StateType, Weight,
};
use maskwright::mask::Pattern;
use maskwright::model::Dtype;
use reference::{SoftCase, Twin, relaxations};

const PATTERNS: [(usize, usize); 9] =
    [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (7, 8), (2, 16), (8, 16)];
const AT: SampleAt = SampleAt { seed: 0x0123_4567_89ab_cdef, step: 9, projection: 4 };

fn limited() -> Gpu {
    open(GpuOptions { checked: true, max_binding_bytes: Some(8192), ..Default::default() })
}

/// Logits as the device has them: f16 values are rounded before.
fn upload_logits(gpu: &Gpu, logits: &mut [f32], state: StateType) -> Buffer {
    match state {
        StateType::F32 => vector(gpu, logits),
        StateType::F16 => {
            let half: Vec<f16> = logits.iter().map(|&l| f16::from_f32(l)).collect();
            for (l, h) in logits.iter_mut().zip(&half) {
                *l = h.to_f32();
            }
            vector(gpu, bytemuck::cast_slice::<f16, u16>(&half))
        }
    }
}

/// Runs the kernel for some rows and gives them as `[rows, cols]`, whichever way they were written; checks the padding.
fn run(
    gpu: &Gpu,
    name: &str,
    weight: &Weight,
    masking: Masking<'_>,
    rows: Range<usize>,
    transposed: bool,
) -> Vec<f32> {
    let (cols, k4, count) = (weight.cols(), weight.k4(), rows.len());
    let (lines, t4) = if transposed { (cols, count.div_ceil(4)) } else { (count, k4) };
    // a row before and one behind that must not be touched
    let out = Activation::new(gpu, "test:out", lines + 2, t4).expect("room");
    let mut c = Commands::new(gpu).expect("commands");
    let size = (lines + 2) * 4 * t4;
    c.write(out.buffer(), 0, &untouched(size)).expect("a write");
    let strip = out.rows(1, lines, t4).expect("rows");
    Kernels::new(gpu, preset(name))
        .effective(&mut c, weight, masking, rows, strip, transposed)
        .expect("effective");
    let got = read(&mut c, out.buffer(), size);
    let edge = |part: &[f32]| assert!(part.iter().all(|v| v.is_nan()), "written outside of the rows");
    edge(&got[..4 * t4]);
    edge(&got[(lines + 1) * 4 * t4..]);
    let got = &got[4 * t4..(lines + 1) * 4 * t4];
    let used = if transposed { count } else { cols };
    for line in got.chunks_exact(4 * t4) {
        assert!(line[used..].iter().all(|&v| v == 0.0), "padding");
    }
    (0..count * cols)
        .map(|i| match transposed {
            true => got[i % cols * 4 * t4 + i / cols],
            false => got[i / cols * 4 * t4 + i % cols],
        })
        .collect()
}

type Parts = Vec<(Range<usize>, bool)>;

/// Rows of a tensor and the parts of them to make; on a device with small bindings more rows than one binding takes.
fn parts(gpu: &Gpu) -> (usize, Parts) {
    match gpu.options().max_binding_bytes {
        Some(_) => (61, vec![(0..25, false), (19..44, false), (8..33, true), (60..61, true)]),
        None => (21, vec![(0..21, false), (0..21, true), (3..8, false), (8..13, true)]),
    }
}

fn effective_exact(gpu: &Gpu, shape: (usize, usize), parts: &[(Range<usize>, bool)], random: &mut Random) {
    let (rows, cols) = shape;
    for dtype in DTYPES {
        let m = Matrix::random(rows, cols, dtype, random);
        let mask = random_mask(rows, cols, random);
        let (weight, bits) = (m.upload(gpu), upload_mask(gpu, &mask));
        let kept: Vec<f32> =
            (0..rows * cols).map(|i| if mask.get(i / cols, i % cols) { m.values[i] } else { 0.0 }).collect();
        for (part, transposed) in parts {
            let label = format!("{dtype} {rows} x {cols} {part:?} {transposed}");
            let slice = |v: &[f32]| v[part.start * cols..part.end * cols].to_vec();
            let got = run(gpu, "tile64", &weight, Masking::Dense, part.clone(), *transposed);
            same_bits(&label, &got, &slice(&m.values));
            let got = run(gpu, "rows16", &weight, Masking::Bits(&bits), part.clone(), *transposed);
            same_bits(&label, &got, &slice(&kept));
        }
    }
}

#[test]
fn effective_without_logits_is_exact() {
    let mut random = Random::new(1);
    for (rows, cols) in [(1, 4), (5, 6), (37, 64), (70, 132)] {
        let parts = [0..rows, rows / 8 * 4..rows, 0..rows.min(5)];
        let parts: Parts = parts.into_iter().flat_map(|p| [(p.clone(), false), (p, true)]).collect();
        effective_exact(gpu(), (rows, cols), &parts, &mut random);
    }
    let parts = [(0..9, false), (8..20, false), (8..20, true), (60..61, true)];
    effective_exact(&limited(), (61, 132), &parts, &mut random);
}

fn part_of(twin: &Twin, rows: &Range<usize>) -> Twin {
    let cut = |v: &[f64]| v[rows.start * twin.width..rows.end * twin.width].to_vec();
    Twin { value: cut(&twin.value), unit: cut(&twin.unit), width: twin.width }
}

/// Keys apart by nothing, a little, and far more than f32 exponentials hold; temperatures down to 0.05.
const RANGES: [(f32, f32); 4] = [(0.0, 1.0), (1.0, 1.0), (10.0, 1.0), (10.0, 0.05)];

fn effective_of_soft_top_n(pick: usize, worst: &mut Worst) {
    let small = limited();
    let mut random = Random::new(2);
    for (i, (n, of)) in PATTERNS.into_iter().enumerate() {
        for (scale, temperature) in RANGES {
            for (gpu, state, noise) in [
                (gpu(), StateType::F16, None),
                (gpu(), StateType::F32, Some((AT, 0.7f32))),
                (&small, StateType::F32, None),
            ] {
                // One type a pattern: what takes long here is to compile a kernel for each.
                let dtype = DTYPES[i % 3];
                let (rows, parts) = parts(gpu);
                let cols = if of == 2 { 50 } else { 48 };
                let Some(&relaxation) = relaxations(n, 1.0 / temperature).get(pick) else {
                    continue;
                };
                let p = pattern(n, of);
                let m = Matrix::random(rows, cols, dtype, &mut random);
                let mut logits = random.values(rows * cols, scale);
                let buffer = upload_logits(gpu, &mut logits, state);
                let case = SoftCase { pattern: p, temperature, relaxation, scale: 1.0, noise };
                let want = reference::effective(&m.values, cols, &logits, &case, true);
                let soft = SoftTopN {
                    pattern: p,
                    logits: &buffer,
                    state,
                    temperature,
                    relaxation,
                    noise: noise.map(|(at, scale)| Noise { at, scale }),
                };
                let weight = m.upload(gpu);
                for (part, transposed) in parts {
                    let label = format!(
                        "{p} {relaxation:?} {scale} {temperature} {state:?} {dtype} {part:?} {transposed} {}",
                        noise.is_some()
                    );
                    let got = run(gpu, "tile64", &weight, Masking::TopN(soft), part.clone(), transposed);
                    worst.check(&label, &got, &part_of(&want, &part));
                }
            }
        }
    }
}

#[test]
fn effective_of_rounds() {
    effective_of_soft_top_n(0, &mut Worst::new("soft top-N of rounds", 6.0));
}

#[test]
fn effective_of_subsets_of_fixed_size() {
    effective_of_soft_top_n(1, &mut Worst::new("soft top-N of fixed size", 6.0));
}

#[test]
fn effective_of_draws() {
    effective_of_soft_top_n(2, &mut Worst::new("soft top-N of draws", 6.0));
}

/// The mask of all N that keeps weights of a group: in [0, 1], N in all, at every temperature.
#[test]
fn inclusion_probabilities_add_up() {
    let (rows, cols) = (16, 64);
    let weight = Matrix::new(rows, cols, Dtype::F32, &vec![1.0; rows * cols]).upload(gpu());
    let mut random = Random::new(8);
    for of in [2, 4, 8, 16] {
        for n in 1..of {
            for (scale, temperature) in RANGES {
                let logits = vector(gpu(), &random.values(rows * cols, scale));
                for relaxation in relaxations(n, 1.0).into_iter().skip(1) {
                    let p = pattern(n, of);
                    let soft = SoftTopN {
                        pattern: p,
                        logits: &logits,
                        state: StateType::F32,
                        temperature,
                        relaxation,
                        noise: None,
                    };
                    let mask = run(gpu(), "tile64", &weight, Masking::TopN(soft), 0..rows, false);
                    for group in mask.chunks_exact(of) {
                        let sum: f32 = group.iter().sum();
                        let label = format!("{p} {relaxation:?} {scale} {temperature}: {group:?}");
                        assert!((sum - n as f32).abs() <= 1e-5 * n as f32, "{label}");
                        assert!(group.iter().all(|v| (0.0..=1.000_002).contains(v)), "{label}");
                    }
                }
            }
        }
    }
}

#[test]
fn effective_of_soft_patterns() {
    let small = limited();
    let mut worst = Worst::new("soft patterns", 3.0);
    let mut random = Random::new(3);
    let patterns = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (2, 16)];
    for (i, (n, of)) in patterns.into_iter().enumerate() {
        for (scale, temperature) in RANGES {
            for (noise, gpu) in [(None, gpu()), (Some((AT, 1.0f32)), &small)] {
                let dtype = DTYPES[i % 3];
                let (rows, parts) = parts(gpu);
                let cols = if of == 2 { 34 } else { 32 };
                let p = pattern(n, of);
                let m = Matrix::random(rows, cols, dtype, &mut random);
                let logits = random.values(rows * (cols / of) * p.combinations() as usize, scale);
                let buffer = vector(gpu, &logits);
                let kappa = 1.5;
                let case = SoftCase {
                    pattern: p,
                    temperature,
                    relaxation: Relaxation::FixedSize,
                    scale: kappa,
                    noise,
                };
                let want = reference::effective(&m.values, cols, &logits, &case, false);
                let noise = noise.map(|(at, scale)| Noise { at, scale });
                let soft = SoftPatterns { pattern: p, logits: &buffer, temperature, scale: kappa, noise };
                let weight = m.upload(gpu);
                for (part, transposed) in parts {
                    let label = format!("{p} {scale} {temperature} {dtype} {part:?} {transposed}");
                    let got = run(gpu, "tile64", &weight, Masking::Patterns(soft), part.clone(), transposed);
                    worst.check(&label, &got, &part_of(&want, &part));
                }
            }
        }
    }
}

/// A cold mask is the hard top-N, but of rounds with removal 1, which is why there is one.
#[test]
fn cold_masks_are_hard() {
    let (rows, cols) = (64, 64);
    for (n, of) in PATTERNS {
        let p: Pattern = pattern(n, of);
        let mut random = Random::new(4);
        // distinct in a group, in a random order
        let mut logits = vec![0.0; rows * cols];
        for group in logits.chunks_exact_mut(of) {
            let mut order: Vec<usize> = (0..of).collect();
            for i in (1..of).rev() {
                order.swap(i, random.below(i + 1));
            }
            for (l, o) in group.iter_mut().zip(order) {
                *l = o as f32 * 3.0 - 10.0;
            }
        }
        let buffer = vector(gpu(), &logits);
        let weight = Matrix::new(rows, cols, Dtype::F32, &vec![1.0; rows * cols]).upload(gpu());
        let mask = |relaxation: Relaxation| {
            let soft = SoftTopN {
                pattern: p,
                logits: &buffer,
                state: StateType::F32,
                temperature: 0.05,
                relaxation,
                noise: None,
            };
            run(gpu(), "tile64", &weight, Masking::TopN(soft), 0..rows, false)
        };
        for relaxation in relaxations(n, 20.0) {
            let mut worst = 0.0f32;
            for (group, l) in mask(relaxation).chunks_exact(of).zip(logits.chunks_exact(of)) {
                for (m, l) in group.iter().zip(l) {
                    let hard = if l.round() as i32 > ((of - n) as i32) * 3 - 12 { 1.0 } else { 0.0 };
                    worst = worst.max((m - hard).abs());
                }
            }
            assert!(worst < 1e-5, "{p} {relaxation:?}: {worst}");
        }
        if n > 1 {
            assert!(mask(Relaxation::Rounds { removal: 1.0 }).iter().any(|&m| m > 1.4), "{p}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let k = kernels("tile64");
    let mut c = commands();
    let weight = Matrix::random(8, 12, Dtype::F32, &mut Random::new(6)).upload(gpu());
    let out = Activation::new(gpu(), "test:out", 12, 3).expect("room");
    let logits = vector(gpu(), &[0.0f32; 96]);
    let relaxed = |n, m, temperature, relaxation| {
        Masking::TopN(SoftTopN {
            pattern: pattern(n, m),
            logits: &logits,
            state: StateType::F32,
            temperature,
            relaxation,
            noise: None,
        })
    };
    let soft = |n, m, temperature| relaxed(n, m, temperature, Relaxation::Draws);
    let patterns = Masking::Patterns(SoftPatterns {
        pattern: pattern(8, 16),
        logits: &logits,
        temperature: 1.0,
        scale: 1.0,
        noise: None,
    });
    let shape = |r: Result<(), GpuError>| matches!(r, Err(GpuError::Shape { .. }));
    let rows = |count, t4| out.rows(0, count, t4).expect("rows");
    assert!(k.effective(&mut c, &weight, soft(2, 4, 1.0), 0..8, rows(8, 3), false).is_ok());
    assert!(shape(k.effective(&mut c, &weight, soft(2, 8, 1.0), 0..8, rows(8, 3), false)));
    assert!(shape(k.effective(&mut c, &weight, soft(2, 4, 0.0), 0..8, rows(8, 3), false)));
    match k.effective(&mut c, &weight, relaxed(3, 4, 1.0, Relaxation::Draws), 0..8, rows(8, 3), false) {
        Err(GpuError::Shape { message, .. }) => assert!(message.contains("fixed size"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(shape(k.effective(&mut c, &weight, patterns, 0..8, rows(8, 3), false)));
    assert!(shape(k.effective(&mut c, &weight, Masking::Dense, 0..8, rows(7, 3), false)));
    assert!(shape(k.effective(&mut c, &weight, Masking::Dense, 1..9, rows(8, 3), false)));
    assert!(shape(k.effective(&mut c, &weight, Masking::Dense, 2..8, rows(12, 2), true)));
}
