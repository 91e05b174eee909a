//! Element by element against f64: nonlinearities and their gradients, scaled sums, limits; and the f64 gradients against central
//! differences of the forward twins.

mod common;
mod reference;

use common::differences::{check_differences, even};
use common::{Random, Worst, activation, commands, gpu, kernels, presets, read, same_bits, untouched};
use maskwright::gpu::GpuError;
use maskwright::kernel::{Activation, Rows};
use maskwright::model::ActivationKind;
use reference::Twin;

/// Features and vec4s of tokens, around the lanes of all presets.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (1, 63), (1, 64), (1, 255), (1, 256), (65, 1), (257, 1), (13, 37)];

fn all(x: &Activation, rows: usize, t4: usize) -> Rows<'_> {
    x.rows(0, rows, t4).expect("rows")
}

fn worst_of(name: &'static str, kind: ActivationKind) -> Worst {
    println!("{kind:?}:");
    Worst::new(name, 8.0)
}

/// `sum upstream * value`: a loss behind a forward twin.
fn against(upstream: &[f32], forward: &Twin) -> f64 {
    upstream.iter().zip(&forward.value).map(|(&u, &v)| f64::from(u) * v).sum()
}

/// Values of the error function to all digits of f64 (Abramowitz and Stegun, table 7.1, and mpmath).
#[test]
fn error_function() {
    for (x, want) in [
        (0.0, 1.0),
        (0.5, 0.479_500_122_186_953_5),
        (1.0, 0.157_299_207_050_285_13),
        (2.0, 4.677_734_981_047_266e-3),
        (2.6, 2.360_344_165_293_491_5e-4),
        (5.0, 1.537_459_794_428_035e-12),
        (-1.0, 1.842_700_792_949_715),
    ] {
        let got = reference::erfc(x);
        assert!((got / want - 1.0).abs() < 1e-13, "erfc({x}) = {got}, not {want}");
    }
}

#[test]
fn twins_against_differences() {
    let mut random = Random::new(2);
    for kind in ActivationKind::ALL {
        for scale in [1.0, 4.0] {
            let (mut gate, up) = (even(&mut random, 40, scale), even(&mut random, 40, 2.0));
            // No difference reaches over the bend of max(x, 0).
            gate.iter_mut().for_each(|g| *g += (0.0625f32).copysign(*g));
            let d = random.values(40, 1.0);
            let [d_gate, d_up] = reference::gated_backward(kind, &gate, &up, &d);
            let label = format!("{kind:?}, scale {scale}");
            check_differences(&format!("{label}, gate"), &gate, &d_gate.value, |g| {
                against(&d, &reference::gated(kind, g, &up))
            });
            check_differences(&format!("{label}, up"), &up, &d_up.value, |u| {
                against(&d, &reference::gated(kind, &gate, u))
            });
            let d_x = reference::activate_backward(kind, &gate, &d);
            check_differences(&label, &gate, &d_x.value, |x| against(&d, &reference::activate(kind, x)));
        }
    }
}

/// In place and elsewhere, with the same bits, and inputs as they were; then the gradient in place of the inputs.
#[test]
fn gated() {
    let mut random = Random::new(5);
    for kind in ActivationKind::ALL {
        let mut worst = worst_of("gated", kind);
        let mut backward = [worst_of("gated_backward, gate", kind), worst_of("gated_backward, up", kind)];
        for name in presets() {
            let kernels = kernels(name);
            for (features, t4) in SHAPES {
                for scale in [1.0, 6.0, 20.0, 90.0, 1e4] {
                    let count = features * 4 * t4;
                    let (gate, up) = (random.values(count, scale), random.values(count, 3.0));
                    let d = random.values(count, 1.0);
                    let on = |v: &[f32]| activation(gpu(), features, t4, v);
                    let (ga, ua, da, out) = (on(&gate), on(&up), on(&d), on(&untouched(count)));
                    let [g, u, d_inner, o] = [&ga, &ua, &da, &out].map(|a| all(a, features, t4));
                    let label = format!("{name} {kind:?} [{features}, {}] x {scale}", 4 * t4);
                    let mut c = commands();
                    kernels.gated_to(&mut c, kind, g, u, o).expect("gated_to");
                    same_bits(&format!("{label}: gate"), &read(&mut c, ga.buffer(), count), &gate);
                    let elsewhere = read(&mut c, out.buffer(), count);
                    worst.check(&label, &elsewhere, &reference::gated(kind, &gate, &up));
                    let copy = on(&gate);
                    kernels.gated(&mut c, kind, all(&copy, features, t4), u).expect("gated");
                    same_bits(&label, &elsewhere, &read(&mut c, copy.buffer(), count));
                    kernels.gated_backward(&mut c, kind, g, u, d_inner).expect("gated_backward");
                    let want = reference::gated_backward(kind, &gate, &up, &d);
                    for ((worst, on), want) in backward.iter_mut().zip([&ga, &ua]).zip(&want) {
                        worst.check(&label, &read(&mut c, on.buffer(), count), want);
                    }
                }
            }
        }
    }
}

/// The same without a gate.
#[test]
fn activate() {
    let mut random = Random::new(6);
    for kind in ActivationKind::ALL {
        let (mut worst, mut backward) = (worst_of("activate", kind), worst_of("activate_backward", kind));
        for name in presets() {
            let kernels = kernels(name);
            for (features, t4) in SHAPES {
                for scale in [1.0, 6.0, 20.0, 90.0, 1e4] {
                    let count = features * 4 * t4;
                    let (x, d) = (random.values(count, scale), random.values(count, 1.0));
                    let on = |v: &[f32]| activation(gpu(), features, t4, v);
                    let (xa, da, out) = (on(&x), on(&d), on(&untouched(count)));
                    let [xr, d_inner, o] = [&xa, &da, &out].map(|a| all(a, features, t4));
                    let label = format!("{name} {kind:?} [{features}, {}] x {scale}", 4 * t4);
                    let mut c = commands();
                    kernels.activate_to(&mut c, kind, xr, o).expect("activate_to");
                    same_bits(&format!("{label}: x"), &read(&mut c, xa.buffer(), count), &x);
                    let elsewhere = read(&mut c, out.buffer(), count);
                    worst.check(&label, &elsewhere, &reference::activate(kind, &x));
                    let copy = on(&x);
                    kernels.activate(&mut c, kind, all(&copy, features, t4)).expect("activate");
                    same_bits(&label, &elsewhere, &read(&mut c, copy.buffer(), count));
                    kernels.activate_backward(&mut c, kind, xr, d_inner).expect("activate_backward");
                    let want = reference::activate_backward(kind, &x, &d);
                    backward.check(&label, &read(&mut c, xa.buffer(), count), &want);
                }
            }
        }
    }
}

/// Numbers that no model has, and the ends of what the approximations were made for: finite values and slopes, near zero below.
#[test]
fn activations_of_absurd_numbers_are_finite() {
    let x = [
        0.0, -0.0, 1e-38, -1e-38, 8.0, -8.0, 13.9, -13.9, 14.1, -14.1, 16.1, -16.1, 1e15, -1e15, 3e18, -3e18,
    ];
    let on = |v: &[f32]| activation(gpu(), 1, 4, v);
    for name in presets() {
        for kind in ActivationKind::ALL {
            let (xa, out, d) = (on(&x), on(&untouched(16)), on(&[1.0; 16]));
            let mut c = commands();
            kernels(name).activate_to(&mut c, kind, all(&xa, 1, 4), all(&out, 1, 4)).expect("activate_to");
            let y = read(&mut c, out.buffer(), 16);
            kernels(name)
                .activate_backward(&mut c, kind, all(&xa, 1, 4), all(&d, 1, 4))
                .expect("activate_backward");
            let slope = read(&mut c, xa.buffer(), 16);
            for ((x, y), slope) in x.iter().zip(&y).zip(&slope) {
                let label = format!("{name} {kind:?} of {x}: {y}, slope {slope}");
                assert!(y.is_finite() && slope.is_finite(), "{label}");
                // The exponentials are stopped at e^80: 3e18 e^-80 is 5e-17.
                assert!(*x > -10.0 || y.abs() < 1e-3 && slope.abs() < 1e-3, "{label}");
            }
        }
    }
}

#[test]
fn add_scaled() {
    let mut worst = Worst::new("add_scaled", 1.0);
    let mut random = Random::new(7);
    for name in presets() {
        let kernels = kernels(name);
        for (features, t4) in SHAPES {
            for alpha in [1.0, -0.3, 0.0, 12.5] {
                let count = features * 4 * t4;
                let (from, to) = (random.values(count, 2.0), random.values(count, 3.0));
                let (fa, ta) = (activation(gpu(), features, t4, &from), activation(gpu(), features, t4, &to));
                let mut c = commands();
                kernels
                    .add_scaled(&mut c, all(&fa, features, t4), alpha, all(&ta, features, t4))
                    .expect("add_scaled");
                let label = format!("{name} [{features}, {}] x {alpha}", 4 * t4);
                worst.check(
                    &label,
                    &read(&mut c, ta.buffer(), count),
                    &reference::add_scaled(&from, alpha, &to),
                );
            }
        }
    }
}

/// `clamp_to` and `clamp_backward`: exact, with numbers at the limit, which is not beyond it.
#[test]
fn clamp() {
    let mut worst = Worst::new("clamp_to and clamp_backward", 0.0);
    let mut random = Random::new(8);
    for name in presets() {
        let kernels = kernels(name);
        for (features, t4) in SHAPES {
            let count = features * 4 * t4;
            let (mut x, d) = (random.values(count, 10.0), random.values(count, 1.0));
            (x[0], x[1], x[2]) = (8.0, -8.0, 1e30);
            let on = |v: &[f32]| activation(gpu(), features, t4, v);
            let (xa, ya, da) = (on(&x), on(&untouched(count)), on(&d));
            let [xr, yr, dr] = [&xa, &ya, &da].map(|a| all(a, features, t4));
            let mut c = commands();
            kernels.clamp_to(&mut c, xr, 8.0, yr).expect("clamp_to");
            kernels.clamp_backward(&mut c, xr, 8.0, dr).expect("clamp_backward");
            let label = format!("{name} [{features}, {}]", 4 * t4);
            worst.check(&label, &read(&mut c, ya.buffer(), count), &reference::clamp_to(&x, 8.0));
            let got = read(&mut c, da.buffer(), count);
            assert!(got[0] == d[0] && got[1] == d[1] && got[2] == 0.0, "{label}");
            worst.check(&label, &got, &reference::clamp_backward(&x, 8.0, &d));
        }
    }
}

/// Shapes that do not fit are errors of the call.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &[0.5; 16 * 16]);
    let (wide, odd, part) = (all(&x, 16, 4), all(&x, 12, 4), x.rows(4, 12, 4).expect("rows"));
    let kind = ActivationKind::Gelu;
    let mut c = commands();
    let results = [
        kernels.gated(&mut c, kind, wide, odd),
        kernels.gated(&mut c, kind, part, part),
        kernels.gated_to(&mut c, kind, wide, wide, odd),
        kernels.gated_backward(&mut c, kind, wide, odd, wide),
        kernels.gated_backward(&mut c, kind, odd, odd, part),
        kernels.activate(&mut c, kind, part),
        kernels.activate_to(&mut c, kind, wide, odd),
        kernels.activate_backward(&mut c, kind, wide, odd),
        kernels.add_scaled(&mut c, wide, 1.0, odd),
        kernels.add_scaled(&mut c, part, 1.0, odd),
        kernels.clamp_to(&mut c, wide, 1.0, odd),
        kernels.clamp_to(&mut c, wide, 0.0, wide),
        kernels.clamp_backward(&mut c, wide, 1.0, odd),
        kernels.clamp_backward(&mut c, wide, f32::INFINITY, wide),
    ];
    for (i, result) in results.into_iter().enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert!(matches!(error, GpuError::Shape { .. }), "call {i}: {error}");
    }
}
