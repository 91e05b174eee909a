//! Panels of weights against f64: storage formats, masks, row chunks; row errors.

mod common;
mod reference;

use common::{
    DTYPES, Matrix, Random, Worst, activation, gpu, open, preset, presets, random_mask, read, untouched,
    upload_mask, vector,
};
use maskwright::gpu::{Commands, GpuOptions};
use maskwright::kernel::{Kernels, Part};

#[test]
fn spread() {
    let small = open(GpuOptions { checked: true, max_binding_bytes: Some(4096), ..Default::default() });
    let mut worst = Worst::new("spread", 1.0);
    let mut random = Random::new(1);
    for gpu in [gpu(), &small] {
        for (name, dtype) in presets().into_iter().flat_map(|p| DTYPES.map(|d| (p, d))) {
            for (rows, cols, range) in [(1, 4, 0..1), (37, 36, 0..20), (37, 36, 11..32), (29, 132, 25..29)] {
                let kernels = Kernels::new(gpu, preset(name));
                let m = Matrix::random(rows, cols, dtype, &mut random);
                let (weight, bits) = (m.upload(gpu), random_mask(rows, cols, &mut random));
                let mask = upload_mask(gpu, &bits);
                let n = range.len();
                let cut = range.start * cols..range.end * cols;
                let other = random.values(n * cols, 1.0);
                let parts = [
                    ("all", Part::All, None),
                    ("kept", Part::Kept(&mask), Some((&bits, false))),
                    ("pruned", Part::Pruned(&mask), Some((&bits, true))),
                    ("minus", Part::Minus(-4.0), None),
                ];
                for (what, part, twin) in parts {
                    let before = if what == "minus" { other.clone() } else { untouched(n * cols) };
                    let out = activation(gpu, n, cols / 4, &before);
                    let mut c = Commands::new(gpu).expect("commands");
                    let to = out.rows(0, n, cols / 4).expect("rows");
                    kernels.spread(&mut c, &weight, part, range.clone(), to).expect("spread");
                    let got = read(&mut c, out.buffer(), n * cols);
                    let want = match what {
                        "minus" => {
                            let mut all = reference::spread(&m.values[cut.clone()], cols, None, Some(&other));
                            // Exact: a power of two.
                            all.value.iter_mut().for_each(|v| *v *= -4.0);
                            all.unit.iter_mut().for_each(|u| *u *= 4.0);
                            all
                        }
                        _ => {
                            let mut all = reference::spread(&m.values, cols, twin, None);
                            all.value = all.value[cut.clone()].to_vec();
                            all.unit.truncate(n * cols);
                            all
                        }
                    };
                    worst.check(&format!("{name} {dtype} {rows} x {cols} {range:?} {what}"), &got, &want);
                }
            }
        }
    }
}

#[test]
fn row_dot() {
    let mut worst = Worst::new("row_dot", 2.0);
    let mut random = Random::new(2);
    for name in presets() {
        let kernels = common::kernels(name);
        for (rows, cols) in [(1, 4), (3, 252), (17, 256), (5, 1028), (70, 260)] {
            let (a, b) = (random.values(rows * cols, 1.0), random.values(rows * cols, 1.0));
            let (on_a, on_b) = (activation(gpu(), rows, cols / 4, &a), activation(gpu(), rows, cols / 4, &b));
            let out = vector(gpu(), &untouched(rows + 2));
            let mut c = common::commands();
            let (ra, rb) = (on_a.rows(0, rows, cols / 4), on_b.rows(0, rows, cols / 4));
            kernels.row_dot(&mut c, ra.expect("rows"), rb.expect("rows"), &out, 1).expect("row_dot");
            let got = read(&mut c, &out, rows + 2);
            worst.check(
                &format!("{name} {rows} x {cols}"),
                &got[1..=rows],
                &reference::row_dot(&a, &b, cols),
            );
            assert!(got[0].is_nan() && got[rows + 1].is_nan(), "{name}: written beside the rows");
        }
    }
}
