//! Norms and their gradients against f64, and the f64 gradients against central differences of the forward twins.

mod common;
mod reference;

use common::differences::{check_differences, even};
use common::{
    Random, Worst, activation, commands, gpu, kernels, presets, read, same_bits, untouched, vector,
};
use maskwright::gpu::{Buffer, GpuError};
use maskwright::kernel::{Activation, Norm, Rows};
use maskwright::model::NormKind;

const KINDS: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];

/// Features of a group, groups, whether they share the gains, and vec4s of tokens: around the lanes and slices of all presets, and
/// what the kernels with subgroups leave to the others.
const SHAPES: [(usize, usize, bool, usize); 15] = [
    (1, 1, false, 1),
    (15, 1, false, 7),
    (16, 1, false, 8),
    (17, 1, false, 9),
    (31, 1, true, 15),
    (64, 1, false, 16),
    (192, 1, false, 33),
    (257, 1, false, 17),
    (1031, 1, false, 3),
    (2048, 1, false, 1),
    (1, 5, true, 3),
    (8, 3, true, 17),
    (8, 3, false, 5),
    (20, 7, true, 3),
    (128, 2, false, 2),
];

/// Scales of the features with where they lie about, and what is added to the mean square.
const SCALES: [(f32, f32, f32); 6] = [
    (1.0, 0.0, 1e-5),
    (1e-4, 1e-4, 1e-5),
    (1e9, -2e9, 1e-6),
    (1e-12, 0.0, 1e-5),
    (1.0, 1000.0, 1e-5),
    (0.0, 300.0, 1e-5),
];

fn all(x: &Activation, rows: usize, t4: usize) -> Rows<'_> {
    x.rows(0, rows, t4).expect("rows")
}

/// Features in `[middle - scale, middle + scale)`; the first token is one of zeros, as padding is.
fn features(random: &mut Random, rows: usize, tokens: usize, scale: f32, middle: f32) -> Vec<f32> {
    let mut x: Vec<f32> = random.values(rows * tokens, scale).iter().map(|v| v + middle).collect();
    (0..rows).for_each(|h| x[h * tokens] = 0.0);
    x
}

fn on_gpu<'a>(norm: &reference::Norm<'_>, gain: &'a Buffer, bias: Option<&'a Buffer>) -> Norm<'a> {
    Norm { kind: norm.kind, gain, bias, eps: norm.eps, groups: norm.groups, shared: norm.shared }
}

/// `norm` and `norm_lanes`, also with activations that were allocated for more tokens, as in the last batch of an evaluation.
#[test]
fn norm() {
    let mut random = Random::new(1);
    for kind in KINDS {
        let mut worst = Worst::new(if kind == NormKind::Rms { "norm, Rms" } else { "norm, Layer" }, 6.0);
        for name in presets() {
            let kernels = kernels(name);
            for (count, groups, shared, t4) in SHAPES {
                for (i, (scale, middle, eps)) in SCALES.into_iter().enumerate() {
                    let rows = count * groups;
                    let x = features(&mut random, rows, 4 * t4, scale, middle);
                    let weights = if shared { count } else { rows };
                    let (gain, bias) = (random.values(weights, 2.0), random.values(weights, 1.0));
                    let bias = (i % 2 == 1).then_some(&bias[..]);
                    let twin = reference::Norm { kind, gain: &gain, bias, eps, groups, shared };
                    let (g, b) = (vector(gpu(), &gain), bias.map(|b| vector(gpu(), b)));
                    let allocated = [x.clone(), random.values(rows * 4 * 5, 1.0)].concat();
                    let xa = activation(gpu(), rows, t4 + 5, &allocated);
                    let ya = activation(gpu(), rows, t4 + 5, &untouched(allocated.len()));
                    let mut c = commands();
                    kernels
                        .norm(&mut c, all(&xa, rows, t4), &on_gpu(&twin, &g, b.as_ref()), all(&ya, rows, t4))
                        .expect("norm");
                    let got = read(&mut c, ya.buffer(), allocated.len());
                    let label =
                        format!("{name} {kind:?} {groups} x [{count}, {}] {middle:e} +- {scale:e}", 4 * t4);
                    worst.check(&label, &got[..x.len()], &reference::norm(&x, &twin, 4 * t4));
                    assert!(got[x.len()..].iter().all(|v| v.is_nan()), "{label}: written behind the tokens");
                }
            }
        }
    }
}

/// `norm_backward` and `norm_backward_lanes`: written over what is there, and added to it, also with activations that were allocated for
/// more tokens.
#[test]
fn norm_backward() {
    let mut random = Random::new(4);
    for kind in KINDS {
        let name = if kind == NormKind::Rms { "norm_backward, Rms" } else { "norm_backward, Layer" };
        let mut worst = Worst::new(name, 6.0);
        for name in presets() {
            let kernels = kernels(name);
            for (count, groups, shared, t4) in SHAPES {
                for (scale, middle, eps) in SCALES {
                    let rows = count * groups;
                    let values = rows * 4 * t4;
                    let x = features(&mut random, rows, 4 * t4, scale, middle);
                    let gain = random.values(if shared { count } else { rows }, 2.0);
                    let d_y = random.values(values, 1.0);
                    let twin = reference::Norm { kind, gain: &gain, bias: None, eps, groups, shared };
                    let g = vector(gpu(), &gain);
                    let (xa, da) = (activation(gpu(), rows, t4, &x), activation(gpu(), rows, t4, &d_y));
                    for accumulate in [false, true] {
                        let before = if accumulate { random.values(values, 1.0) } else { untouched(values) };
                        let spare = untouched(rows * 4 * 5);
                        let out = activation(gpu(), rows, t4 + 5, &[&before[..], &spare[..]].concat());
                        let (xr, dr, to) = (all(&xa, rows, t4), all(&da, rows, t4), all(&out, rows, t4));
                        let mut c = commands();
                        kernels
                            .norm_backward(&mut c, xr, &on_gpu(&twin, &g, None), dr, to, accumulate)
                            .expect("norm_backward");
                        let got = read(&mut c, out.buffer(), values + spare.len());
                        let before = if accumulate { before } else { vec![0.0; values] };
                        let want = reference::norm_backward(&x, &twin, &d_y, &before, 4 * t4);
                        let label = format!(
                            "{name} {kind:?} {groups} x [{count}, {}] {middle:e} +- {scale:e}, {accumulate}",
                            4 * t4
                        );
                        worst.check(&label, &got[..values], &want);
                        assert!(
                            got[values..].iter().all(|v| v.is_nan()),
                            "{label}: written behind the tokens"
                        );
                    }
                }
            }
        }
    }
}

/// One group of all rows is the same, bit for bit, whether or not its gains are called shared; and so is each of several groups and
/// the norm of its rows alone.
#[test]
fn groups_are_norms_of_their_rows() {
    let mut random = Random::new(7);
    let (count, groups, t4) = (24, 3, 5);
    let (rows, values) = (count * groups, count * 4 * t4);
    let x = random.values(groups * values, 2.0);
    let gain = random.values(count, 2.0);
    let g = vector(gpu(), &gain);
    for name in presets() {
        let kernels = kernels(name);
        for kind in KINDS {
            let mut c = commands();
            let mut run = |x: &[f32], rows: usize, groups: usize, shared: bool| {
                let xa = activation(gpu(), rows, t4, x);
                let ya = activation(gpu(), rows, t4, &untouched(x.len()));
                let norm = Norm { kind, gain: &g, bias: None, eps: 1e-5, groups, shared };
                kernels.norm(&mut c, all(&xa, rows, t4), &norm, all(&ya, rows, t4)).expect("norm");
                read(&mut c, ya.buffer(), x.len())
            };
            let together = run(&x, rows, groups, true);
            let one_by_one: Vec<f32> =
                x.chunks_exact(values).enumerate().flat_map(|(i, x)| run(x, count, 1, i % 2 == 0)).collect();
            same_bits(&format!("{name} {kind:?}"), &together, &one_by_one);
        }
    }
}

#[test]
fn twins_against_differences() {
    let mut random = Random::new(1);
    for kind in KINDS {
        for (count, groups, shared, tokens) in
            [(1, 1, false, 2), (5, 1, false, 3), (16, 1, true, 2), (4, 3, true, 2), (3, 2, false, 3)]
        {
            if count == 1 && kind == NormKind::Layer {
                continue; // a gradient of zero shows nothing
            }
            let (rows, values) = (count * groups, count * groups * tokens);
            let (x, d_y) = (even(&mut random, values, 2.0), random.values(values, 1.0));
            let weights = if shared { count } else { rows };
            let (gain, bias) = (random.values(weights, 2.0), random.values(weights, 2.0));
            let norm = reference::Norm { kind, gain: &gain, bias: Some(&bias), eps: 0.5, groups, shared };
            let twin = reference::norm_backward(&x, &norm, &d_y, &vec![0.0; values], tokens);
            check_differences(&format!("{kind:?} {groups} x [{count}, {tokens}]"), &x, &twin.value, |x| {
                let y = reference::norm(x, &norm, tokens);
                d_y.iter().zip(&y.value).map(|(&d, &y)| f64::from(d) * y).sum()
            });
        }
    }
}

/// Shapes that do not fit are errors of the call.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &vec![0.5; 16 * 16]);
    let (wide, odd, part) = (all(&x, 16, 4), all(&x, 12, 4), x.rows(4, 12, 4).expect("rows"));
    let (v, small) = (x.buffer(), vector(gpu(), &[0.0f32; 4]));
    let norm =
        |gain, bias, groups, shared| Norm { kind: NormKind::Layer, gain, bias, eps: 1e-5, groups, shared };
    let mut c = commands();
    let results = [
        kernels.norm(&mut c, wide, &Norm::rms(&small, 1e-5), wide),
        kernels.norm(&mut c, wide, &Norm::rms(v, 1e-5), odd),
        kernels.norm(&mut c, part, &Norm::rms(v, 1e-5), odd),
        kernels.norm(&mut c, wide, &norm(v, Some(&small), 1, false), wide),
        kernels.norm(&mut c, wide, &norm(v, None, 0, true), wide),
        kernels.norm(&mut c, wide, &norm(v, None, 3, true), wide),
        kernels.norm(&mut c, wide, &norm(&small, None, 4, false), wide),
        kernels.norm(&mut c, wide, &norm(&small, None, 2, true), wide),
        kernels.norm_backward(&mut c, wide, &Norm::rms(&small, 1e-5), wide, wide, true),
        kernels.norm_backward(&mut c, wide, &Norm::rms(v, 1e-5), odd, wide, true),
        kernels.norm_backward(&mut c, odd, &Norm::rms(v, 1e-5), odd, part, true),
        kernels.norm_backward(&mut c, wide, &norm(v, None, 5, true), wide, wide, false),
    ];
    for (i, result) in results.into_iter().enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert!(matches!(error, GpuError::Shape { .. }), "call {i}: {error}");
        println!("{error}");
    }
}
