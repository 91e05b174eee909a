//! Gradients by the logits of soft masks, and steps of Adam, on a device against f64.

mod common;
mod reference;

use std::ops::Range;

use common::{
    DTYPES, Matrix, Random, Worst, commands, gpu, kernels, open, pattern, random_mask, read, untouched,
    upload_mask, vector,
};
use half::f16;
use maskwright::gpu::{Buffer, Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{
    Activation, Adam, AdamState, Kernels, Learn, Noise, Preset, Relaxation, SampleAt, Soft, SoftPatterns,
    SoftTopN, StateType, Weight,
};
use maskwright::model::Dtype;
use reference::{AdamCase, EPS, SoftCase, Twin, relaxations};

const PATTERNS: [(usize, usize); 9] =
    [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (7, 8), (2, 16), (8, 16)];
const AT: SampleAt = SampleAt { seed: 77, step: 3, projection: 6 };
/// Largest logit and temperature: from no gap at all to far more than f32 exponentials hold.
const RANGES: [(f32, f32); 4] = [(0.0, 1.0), (1.0, 1.0), (10.0, 1.0), (10.0, 0.05)];

fn limited() -> Gpu {
    open(GpuOptions { checked: true, max_binding_bytes: Some(8192), ..Default::default() })
}

fn on(gpu: &Gpu) -> Kernels<'_> {
    Kernels::new(gpu, Preset::named("tile64").expect("a preset"))
}

/// Rows of a tensor and the part that is worked on; with small bindings, over a chunk's end.
fn part(gpu: &Gpu) -> (usize, Range<usize>) {
    if gpu.options().max_binding_bytes.is_some() { (61, 17..47) } else { (9, 2..9) }
}

fn cut(twin: &Twin, rows: &Range<usize>) -> Twin {
    let cut = |v: &[f64]| v[rows.start * twin.width..rows.end * twin.width].to_vec();
    Twin { value: cut(&twin.value), unit: cut(&twin.unit), width: twin.width }
}

/// A gradient of some rows, as an activation with a row before it; `all` is `[rows, cols]`.
fn strip(gpu: &Gpu, all: &[f32], cols: usize, rows: &Range<usize>) -> Activation {
    let wide = cols.next_multiple_of(4);
    let out = Activation::new(gpu, "test:gradient", rows.len() + 1, wide / 4).expect("room");
    let mut data = vec![f32::NAN; wide];
    for r in rows.clone() {
        data.extend(&all[r * cols..(r + 1) * cols]);
        data.resize(data.len() + wide - cols, 7.0);
    }
    gpu.upload(out.buffer(), 0, bytemuck::cast_slice(&data)).expect("an upload");
    out
}

fn gradient(
    gpu: &Gpu,
    weight: &Weight,
    soft: Soft<'_>,
    g: &Activation,
    rows: &Range<usize>,
    width: usize,
) -> Vec<f32> {
    let mut c = Commands::new(gpu).expect("commands");
    let out = vector(gpu, &untouched(weight.rows() * width));
    let strip = g.rows(1, rows.len(), weight.k4()).expect("rows");
    on(gpu)
        .learn_logits(&mut c, weight, soft, strip, rows.clone(), Learn::Gradient(&out))
        .expect("a gradient");
    let got = read(&mut c, &out, weight.rows() * width);
    let (first, last) = (rows.start * width, rows.end * width);
    assert!(got[..first].iter().chain(&got[last..]).all(|v| v.is_nan()), "other rows were written");
    got[first..last].to_vec()
}

/// f16 logits are rounded on the host as well.
fn upload_logits(gpu: &Gpu, logits: &mut [f32], state: StateType) -> Buffer {
    if state == StateType::F32 {
        return vector(gpu, logits);
    }
    let half: Vec<f16> = logits.iter().map(|&l| f16::from_f32(l)).collect();
    for (l, h) in logits.iter_mut().zip(&half) {
        *l = h.to_f32();
    }
    vector(gpu, bytemuck::cast_slice::<f16, u16>(&half))
}

fn adam_mask_gradient(pick: usize, worst: &mut Worst) {
    let small = limited();
    let mut random = Random::new(2);
    for (n, of) in PATTERNS {
        for (gpu, state, noise) in [
            (gpu(), StateType::F32, None),
            (gpu(), StateType::F16, Some((AT, 0.7f32))),
            (&small, StateType::F32, Some((AT, 1.0))),
        ] {
            for (scale, temperature) in RANGES {
                let (rows, part) = part(gpu);
                let cols = if of == 2 { 50 } else { 48 };
                let Some(&relaxation) = relaxations(n, 1.0 / temperature).get(pick) else {
                    continue;
                };
                let p = pattern(n, of);
                let dtype = DTYPES[n % 3];
                let m = Matrix::random(rows, cols, dtype, &mut random);
                let mut logits = random.values(rows * cols, scale);
                let g = random.values(rows * cols, 1e-3);
                let buffer = upload_logits(gpu, &mut logits, state);
                let case = SoftCase { pattern: p, temperature, relaxation, scale: 1.0, noise };
                let want = reference::adam_mask(&m.values, cols, &logits, &case, &g);
                let soft = SoftTopN {
                    pattern: p,
                    logits: &buffer,
                    state,
                    temperature,
                    relaxation,
                    noise: noise.map(|(at, scale)| Noise { at, scale }),
                };
                let label = format!("{p} {relaxation:?} {scale} {temperature} {state:?} {dtype}");
                let strip = strip(gpu, &g, cols, &part);
                let got = gradient(gpu, &m.upload(gpu), Soft::TopN(soft), &strip, &part, cols);
                worst.check(&label, &got, &cut(&want, &part));
            }
        }
    }
}

#[test]
fn adam_mask_gradient_of_rounds() {
    adam_mask_gradient(0, &mut Worst::new("gradient of rounds", 6.0));
}

#[test]
fn adam_mask_gradient_of_subsets_of_fixed_size() {
    adam_mask_gradient(1, &mut Worst::new("gradient of fixed size", 6.0));
}

#[test]
fn adam_mask_gradient_of_draws() {
    adam_mask_gradient(2, &mut Worst::new("gradient of draws", 6.0));
}

/// A step with the weights under training leaves the same logits and moments as one without, and the gradient times the soft mask.
#[test]
fn adam_mask_jointly_leaves_the_gradient_by_the_weights() {
    let small = limited();
    let mut worst = Worst::new("gradient by the weights", 6.0);
    let mut random = Random::new(11);
    for (gpu, (n, of)) in [(gpu(), (1, 2)), (gpu(), (2, 4)), (gpu(), (4, 8)), (&small, (2, 4))] {
        let (rows, part) = part(gpu);
        let cols = if of == 2 { 50 } else { 48 };
        let p = pattern(n, of);
        let weight = Matrix::random(rows, cols, Dtype::F32, &mut random).upload(gpu);
        let (temperature, noise) = (0.5, Some((AT, 0.7f32)));
        for relaxation in relaxations(n, 1.0 / temperature) {
            let logits = random.values(rows * cols, 1.0);
            let g = random.values(rows * cols, 1e-3);
            let case = SoftCase { pattern: p, temperature, relaxation, scale: 1.0, noise };
            let want = reference::effective(&g, cols, &logits, &case, true);
            let [alone, jointly] = [false, true].map(|jointly| {
                let buffer = vector(gpu, &logits);
                let moments = AdamState::new(gpu, "test:moments", rows * cols, StateType::F32).expect("room");
                let soft = SoftTopN {
                    pattern: p,
                    logits: &buffer,
                    state: StateType::F32,
                    temperature,
                    relaxation,
                    noise: noise.map(|(at, scale)| Noise { at, scale }),
                };
                let strip = strip(gpu, &g, cols, &part);
                let taken = strip.rows(1, part.len(), weight.k4()).expect("rows");
                let (k, adam) = (on(gpu), adam(1).0);
                let mut c = Commands::new(gpu).expect("commands");
                let into = if jointly { Learn::Joint } else { Learn::Step };
                let into = into(&moments, adam);
                k.learn_logits(&mut c, &weight, Soft::TopN(soft), taken, part.clone(), into).expect("a step");
                let state = [&buffer, &moments.first, &moments.second];
                let left = read(&mut c, strip.buffer(), (part.len() + 1) * 4 * weight.k4());
                (state.map(|b| read(&mut c, b, rows * cols)), left)
            });
            assert_eq!(alone.0, jointly.0, "{p} {relaxation:?}: the step");
            let wide = 4 * weight.k4();
            let got: Vec<f32> =
                jointly.1.chunks_exact(wide).skip(1).flat_map(|r| &r[..cols]).copied().collect();
            worst.check(&format!("{p} {relaxation:?}"), &got, &cut(&want, &part));
        }
    }
}

#[test]
fn adam_patterns_gradient() {
    let small = limited();
    let mut worst = Worst::new("gradient of soft patterns", 3.0);
    let mut random = Random::new(3);
    for (n, of) in [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (2, 16)] {
        for (gpu, noise) in [(gpu(), None), (&small, Some((AT, 1.0f32)))] {
            for (scale, temperature) in RANGES {
                let (rows, part) = part(gpu);
                let cols = if of == 2 { 34 } else { 32 };
                let p = pattern(n, of);
                let dtype = DTYPES[n % 3];
                let width = cols / of * p.combinations() as usize;
                let m = Matrix::random(rows, cols, dtype, &mut random);
                let logits = random.values(rows * width, scale);
                let g = random.values(rows * cols, 1e-3);
                let buffer = vector(gpu, &logits);
                let (kappa, regulariser) = (1.5, 2e-3);
                let case = SoftCase {
                    pattern: p,
                    temperature,
                    relaxation: Relaxation::FixedSize,
                    scale: kappa,
                    noise,
                };
                let mut want = reference::adam_patterns(&m.values, cols, &logits, &case, regulariser, &g);
                want.width = width;
                let noise = noise.map(|(at, scale)| Noise { at, scale });
                let soft = SoftPatterns { pattern: p, logits: &buffer, temperature, scale: kappa, noise };
                let strip = strip(gpu, &g, cols, &part);
                let soft = Soft::Patterns(soft, regulariser);
                let got = gradient(gpu, &m.upload(gpu), soft, &strip, &part, width);
                worst.check(&format!("{p} {scale} {temperature} {dtype}"), &got, &cut(&want, &part));
            }
        }
    }
}

fn adam(step: u32) -> (Adam, AdamCase) {
    let adam = Adam { rate: 0.02, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step };
    let wide = |x: f32| f64::from(x);
    let case =
        (wide(adam.rate), wide(adam.beta1), wide(adam.beta2), wide(adam.eps), wide(adam.decay), adam.step);
    (adam, case)
}

/// Value and moments after a step of every value; units: a few roundings of what is added up.
fn stepped(x: &[f32], m: &[f32], v: &[f32], g: &[f32], case: AdamCase, width: usize) -> [Twin; 3] {
    let mut out = [Twin::new(width), Twin::new(width), Twin::new(width)];
    for i in 0..x.len() {
        let [x, m, v, g] = [x, m, v, g].map(|s| f64::from(s[i]));
        let [x1, m1, v1] = reference::adam_weight(x, m, v, g, case);
        // a rounding of the numerator counts as much as it is large beside the root
        let root = (v1.sqrt() / (1.0 - case.1.powf(f64::from(case.5)))).max(1e-30);
        out[0].push(x1, EPS * (x.abs() + 4.0 * case.0 * (1.0 + (m.abs() + g.abs()) / root)) + 1e-37);
        out[1].push(m1, EPS * (m.abs() + g.abs()) + 1e-37);
        out[2].push(v1, EPS * (v + g * g) + 1e-37);
    }
    out
}

/// Three steps: each from the state that the device had, with the gradient that it had (tested above).
#[test]
fn adam_mask_and_adam_patterns_steps() {
    let small = limited();
    let mut worst = Worst::new("steps on logits", 4.0);
    let mut random = Random::new(4);
    for (gpu, (n, of)) in [gpu(), &small].into_iter().flat_map(|g| [(1, 2), (2, 4), (4, 8)].map(|p| (g, p))) {
        for patterns in [false, true] {
            let (rows, part) = part(gpu);
            let cols = if of == 2 { 50 } else { 48 };
            let p = pattern(n, of);
            let width = if patterns { cols / of * p.combinations() as usize } else { cols };
            let m = Matrix::random(rows, cols, Dtype::BF16, &mut random);
            let weight = m.upload(gpu);
            let buffer = vector(gpu, &random.values(rows * width, 1.0));
            let moments = AdamState::new(gpu, "test:moments", rows * width, StateType::F32).expect("room");
            let mut c = Commands::new(gpu).expect("commands");
            for step in 1..4 {
                let noise = Some(Noise { at: SampleAt { step, ..AT }, scale: 0.5 });
                let top = SoftTopN {
                    pattern: p,
                    logits: &buffer,
                    state: StateType::F32,
                    temperature: 0.5,
                    relaxation: relaxations(n, 2.0)[step as usize % relaxations(n, 2.0).len()],
                    noise,
                };
                let mixed = SoftPatterns { pattern: p, logits: &buffer, temperature: 0.5, scale: 2.0, noise };
                let soft = if patterns { Soft::Patterns(mixed, 1e-3) } else { Soft::TopN(top) };
                let g = strip(gpu, &random.values(rows * cols, 1e-4), cols, &part);
                let slope = gradient(gpu, &weight, soft, &g, &part, width);
                let state = |c: &mut Commands<'_>| {
                    [&buffer, &moments.first, &moments.second].map(|b| read(c, b, rows * width))
                };
                let before = state(&mut c);
                let rows_of_g = g.rows(1, part.len(), weight.k4()).expect("rows");
                let (adam, case) = adam(step);
                let k = on(gpu);
                let into = Learn::Step(&moments, adam);
                k.learn_logits(&mut c, &weight, soft, rows_of_g, part.clone(), into).expect("a step");
                let after = state(&mut c);
                let (first, last) = (part.start * width, part.end * width);
                let [x, m, v] = [0, 1, 2].map(|i| &before[i][first..last]);
                let want = stepped(x, m, v, &slope, case, width);
                for (i, want) in want.iter().enumerate() {
                    let label = format!("{p} patterns {patterns} step {step} value {i}");
                    worst.check(&label, &after[i][first..last], want);
                    assert_eq!(before[i][..first], after[i][..first], "{label}");
                    assert_eq!(before[i][last..], after[i][last..], "{label}");
                }
            }
        }
    }
}

const MOMENT_SCALE: f64 = 65_536.0;

fn halves(c: &mut Commands<'_>, buffer: &Buffer, count: usize) -> Vec<f64> {
    let words: Vec<u16> = c.read(buffer, 0, count).expect("the state");
    words.into_iter().map(|w| f16::from_bits(w).to_f64()).collect()
}

/// Distance of f16 neighbours around x.
fn spacing(x: f64) -> f64 {
    2f64.powi(x.abs().max(2f64.powi(-14)).log2().floor() as i32 - 10)
}

/// 16 bits: every value within one unit of the exact one, and right in the mean, over steps far smaller than a unit.
#[test]
fn adam_mask_in_16_bits_is_unbiased() {
    for ((n, of), base) in [((2, 4), 3.3f32), ((1, 2), 5e-6), ((4, 8), -0.7)] {
        let (rows, cols, p) = (64, if of == 2 { 258 } else { 256 }, pattern(n, of));
        // every group alike
        let mut random = Random::new(5);
        let (w, g, l) = (random.values(of, 1.0), random.values(of, 1e-5), random.values(of, 1.0));
        let repeat = |v: &[f32]| -> Vec<f32> { (0..rows * cols).map(|i| v[i % of]).collect() };
        let m = Matrix::new(rows, cols, Dtype::F32, &repeat(&w));
        let weight = m.upload(gpu());
        let mut logits = repeat(&l.iter().map(|l| base + base * 0.1 * l).collect::<Vec<_>>());
        let buffer = upload_logits(gpu(), &mut logits, StateType::F16);
        let exact = vector(gpu(), &logits);
        let moments = AdamState::new(gpu(), "test:moments", rows * cols, StateType::F16).expect("room");
        let g = strip(gpu(), &repeat(&g), cols, &(0..rows));
        let rows_of_g = || g.rows(1, rows, weight.k4()).expect("rows");
        let soft = |logits, state| SoftTopN {
            pattern: p,
            logits,
            state,
            temperature: 1.0,
            relaxation: Relaxation::FixedSize,
            noise: None,
        };
        let slope = gradient(gpu(), &weight, Soft::TopN(soft(&exact, StateType::F32)), &g, &(0..rows), cols);
        let mut c = commands();
        // a step of a hundredth of a unit of the logits
        let unit = spacing(f64::from(base));
        let adam =
            Adam { rate: (unit / 100.0) as f32, beta1: 0.9, beta2: 0.999, eps: 0.0, decay: 0.0, step: 1 };
        let k = kernels("tile64");
        k.learn_logits(
            &mut c,
            &weight,
            Soft::TopN(soft(&buffer, StateType::F16)),
            rows_of_g(),
            0..rows,
            Learn::Step(&moments, adam),
        )
        .expect("a step");
        let x = halves(&mut c, &buffer, rows * cols);
        let first = halves(&mut c, &moments.first, rows * cols);
        let root = halves(&mut c, &moments.second, rows * cols);
        for i in 0..of {
            let case = (f64::from(adam.rate), 0.9f32.into(), 0.999f32.into(), 0.0, 0.0, 1);
            let [want, m1, v1] =
                reference::adam_weight(f64::from(logits[i]), 0.0, 0.0, f64::from(slope[i]), case);
            let mean = |v: &[f64], want: f64, units: f64| {
                let u = spacing(want);
                let all: Vec<f64> = v.iter().skip(i).step_by(of).copied().collect();
                let count = all.len() as f64;
                for x in &all {
                    assert!((x - want).abs() <= u * units, "{p} {i}: {x} for {want}, unit {u}");
                }
                let off = (all.iter().sum::<f64>() / count - want) / u;
                // a rounding has at most half a unit of standard deviation
                assert!(
                    units < 1.0 || off.abs() < 2.5 / count.sqrt(),
                    "{p} {i}: {off} units off in the mean"
                );
            };
            mean(&x, want, 1.001);
            mean(&first, m1 * MOMENT_SCALE, 0.501);
            mean(&root, v1.sqrt() * MOMENT_SCALE, 1.001);
        }
    }
}

#[test]
fn adam_weight_steps() {
    let small = limited();
    let mut worst = Worst::new("steps on weights", 4.0);
    let mut random = Random::new(6);
    for (gpu, masked) in [gpu(), &small].into_iter().flat_map(|g| [false, true].map(|m| (g, m))) {
        let (rows, part) = part(gpu);
        for cols in [46usize, 50, 32] {
            let wide = cols.next_multiple_of(4);
            let mask = random_mask(rows, cols, &mut random);
            let kept = |i: usize| !masked || mask.get(i / cols, i % cols);
            let values: Vec<f32> = random
                .values(rows * cols, 1.0)
                .iter()
                .enumerate()
                .map(|(i, &w)| if kept(i) { w } else { 0.0 })
                .collect();
            let weight = Matrix::new(rows, cols, Dtype::F32, &values).upload(gpu);
            let bits = upload_mask(gpu, &mask);
            let moments = AdamState::new(gpu, "test:moments", rows * wide, StateType::F32).expect("room");
            let mut c = Commands::new(gpu).expect("commands");
            let k = on(gpu);
            let unpadded =
                |v: &[f32]| -> Vec<f32> { (0..rows * cols).map(|i| v[i / cols * wide + i % cols]).collect() };
            for step in 1..4 {
                let all = random.values(rows * cols, 1e-4);
                let g = strip(gpu, &all, cols, &part);
                let state = |c: &mut Commands<'_>| {
                    // in pieces that one binding holds
                    let mut w = Vec::new();
                    for first in (0..rows).step_by(10) {
                        let count = 10.min(rows - first);
                        let out = Activation::new(gpu, "test:out", count, wide / 4).expect("room");
                        let to = out.rows(0, count, wide / 4).expect("rows");
                        let dense = maskwright::kernel::Masking::Dense;
                        k.effective(c, &weight, dense, first..first + count, to, false).expect("a copy");
                        w.extend(read(c, out.buffer(), count * wide));
                    }
                    let of = |c: &mut Commands<'_>, b: &Buffer| unpadded(&read(c, b, rows * wide));
                    [unpadded(&w), of(c, &moments.first), of(c, &moments.second)]
                };
                let before = state(&mut c);
                let (adam, case) = adam(step);
                let strip = g.rows(1, part.len(), wide / 4).expect("rows");
                let mask = masked.then_some(&bits);
                k.adam_weight(&mut c, &weight, mask, strip, part.clone(), (&moments, adam)).expect("a step");
                let after = state(&mut c);
                let [x, m, v] = &before;
                let want = stepped(x, m, v, &all, case, cols);
                let moved = |i: usize| kept(i) && part.contains(&(i / cols));
                for (n, want) in want.iter().enumerate() {
                    worst.check_where(&format!("{cols} {masked} value {n}"), &after[n], want, moved);
                    for i in (0..rows * cols).filter(|&i| !moved(i)) {
                        assert_eq!(after[n][i].to_bits(), before[n][i].to_bits(), "value {n} at {i}");
                    }
                    if masked {
                        assert!((0..rows * cols).all(|i| kept(i) || after[n][i].to_bits() == 0));
                    }
                }
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let k = kernels("tile64");
    let mut c = commands();
    let m = Matrix::random(8, 12, Dtype::F32, &mut Random::new(7));
    let (weight, logits) = (m.upload(gpu()), vector(gpu(), &[0.0f32; 96]));
    let g = Activation::new(gpu(), "test:g", 8, 3).expect("room");
    let rows = |count| g.rows(0, count, 3).expect("rows");
    let state = |n| AdamState::new(gpu(), "test:moments", n, StateType::F32).expect("room");
    let soft = SoftTopN {
        pattern: pattern(2, 4),
        logits: &logits,
        state: StateType::F32,
        temperature: 1.0,
        relaxation: Relaxation::FixedSize,
        noise: None,
    };
    let (adam, _) = adam(1);
    let shape = |r: Result<(), GpuError>| matches!(r, Err(GpuError::Shape { .. }));
    assert!(
        k.learn_logits(&mut c, &weight, Soft::TopN(soft), rows(8), 0..8, Learn::Step(&state(96), adam))
            .is_ok()
    );
    assert!(shape(k.learn_logits(
        &mut c,
        &weight,
        Soft::TopN(soft),
        rows(8),
        0..8,
        Learn::Step(&state(80), adam)
    )));
    assert!(shape(k.learn_logits(
        &mut c,
        &weight,
        Soft::TopN(soft),
        rows(7),
        0..8,
        Learn::Step(&state(96), adam)
    )));
    assert!(shape(k.learn_logits(
        &mut c,
        &weight,
        Soft::TopN(soft),
        rows(8),
        1..9,
        Learn::Step(&state(96), adam)
    )));
    let short = vector(gpu(), &[0.0f32; 80]);
    assert!(shape(k.learn_logits(&mut c, &weight, Soft::TopN(soft), rows(8), 0..8, Learn::Gradient(&short))));
    let half = Matrix::random(8, 12, Dtype::F16, &mut Random::new(8)).upload(gpu());
    assert!(shape(k.adam_weight(&mut c, &half, None, rows(8), 0..8, (&state(96), adam))));
    assert!(shape(k.adam_weight(&mut c, &weight, None, rows(8), 0..8, (&state(80), adam))));
    assert_eq!(AdamState::device_bytes(6, StateType::F16), 24);
}
