//! ProxSparse's proximal step: the three candidates in f64 against a search, the device against them.

mod common;
mod reference;

use common::{Matrix, Random, commands, gpu, kernels, open};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{Activation, Kernels, Masking, Preset};
use maskwright::model::Dtype;
use reference::{prox_objective, prox_sweeps, prox24};

/// Groups of all kinds: normal, few values with ties and zeros, equal magnitudes, tiny ones.
fn groups(count: usize, random: &mut Random) -> Vec<[f32; 4]> {
    (0..count)
        .map(|k| match k % 5 {
            0 | 1 => [0; 4].map(|_| random.value(1.0)),
            2 => [0; 4].map(|_| (random.below(7) as f32 - 3.0) / 4.0),
            3 => {
                let size = random.value(2.0);
                [0; 4].map(|_| if random.below(2) == 0 { size } else { -size })
            }
            _ => [0; 4].map(|_| random.value(0.02)),
        })
        .collect()
}

fn wide(z: &[f32; 4]) -> [f64; 4] {
    z.map(f64::from)
}

/// No start of the sweeps, of a few hundred, and no point of a grid is better than the best candidate by more than 1e-7 of the
/// group's square.
#[test]
fn the_best_of_three_candidates_is_the_best() {
    let mut random = Random::new(1);
    let mut worst = (0.0f64, [0.0; 4], 0.0);
    let mut seen = [0usize; 5];
    for z in groups(3000, &mut random) {
        let top = z.iter().fold(0.0f32, |t, z| t.max(z.abs())).max(1e-30);
        // lambda times the largest weight from nothing to far too much, often near 1, where all is close
        let l = match random.below(3) {
            0 => 10f32.powf(random.value(4.0)),
            _ => 10f32.powf(random.value(0.7)),
        };
        let (z, lambda) = (wide(&z).map(f64::abs), f64::from(l / top));
        let found = prox24(&z, lambda);
        seen[found.iter().filter(|w| **w != 0.0).count()] += 1;
        let mut best = f64::INFINITY;
        for start in 0..100 {
            let from = z.map(|z| {
                if start % 3 > 0 && random.below(3) == 0 {
                    0.0
                } else {
                    z * f64::from(random.value(0.5) + 0.5)
                }
            });
            let order = random.below(4);
            let turn = |v: [f64; 4]| [0, 1, 2, 3].map(|i| v[(i + order) % 4]);
            let w = prox_sweeps(turn(from), &turn(z), lambda, 4, 400, 1e-13);
            best = best.min(prox_objective(&w, &turn(z), lambda));
        }
        for point in 0..8 * 8 * 8 * 8 {
            let w = [0, 1, 2, 3].map(|i| z[i] * (point >> (3 * i) & 7) as f64 / 7.0);
            best = best.min(prox_objective(&w, &z, lambda));
        }
        let gap = (prox_objective(&found, &z, lambda) - best) / f64::from(top).powi(2);
        if gap > worst.0 {
            worst = (gap, z, lambda);
        }
    }
    println!("{seen:?} groups of 0 to 4 weights; worst gap {worst:?}");
    assert!(worst.0 < 1e-7);
    assert!(seen[2] > 100 && seen[3] > 100 && seen[4] > 100);
}

fn device(
    gpu: &Gpu,
    all: &[[f32; 4]],
    rows: usize,
    part: std::ops::Range<usize>,
    lambda: f32,
) -> Vec<[f32; 4]> {
    let cols = all.len() * 4 / rows;
    let weight = Matrix::new(rows, cols, Dtype::F32, all.as_flattened()).upload(gpu);
    let k = Kernels::new(gpu, Preset::named("tile64").expect("a preset"));
    let mut c = Commands::new(gpu).expect("commands");
    k.prox24(&mut c, &weight, part, lambda).expect("prox24");
    let mut out = Vec::new();
    for row in 0..rows {
        let to = Activation::new(gpu, "test:out", 1, cols / 4).expect("room");
        let strip = to.rows(0, 1, cols / 4).expect("rows");
        k.effective(&mut c, &weight, Masking::Dense, row..row + 1, strip, false).expect("a copy");
        out.extend(common::read(&mut c, to.buffer(), cols));
    }
    out.as_chunks().0.to_vec()
}

/// The objective is that of f64 but for roundings; signs stay, what is 0 is +0.0, and weights that stay keep their bits.
#[test]
fn prox24_equals_f64() {
    let small = open(GpuOptions { checked: true, max_binding_bytes: Some(4096), ..Default::default() });
    let mut random = Random::new(2);
    let mut worst = 0.0f64;
    for gpu in [gpu(), &small] {
        for lambda in [0.0, 1e-6, 0.1, 0.7, 1.0, 1.5, 3.0, 40.0, 1e4, 1e30] {
            let (rows, part) = (19, 2..18);
            let all = groups(rows * 40, &mut random);
            let got = device(gpu, &all, rows, part.clone(), lambda);
            for (i, (w, z)) in got.iter().zip(&all).enumerate() {
                if !part.contains(&(i / 40)) {
                    assert_eq!(w.map(f32::to_bits), z.map(f32::to_bits), "row {} was touched", i / 40);
                    continue;
                }
                let (exact, lambda) = (wide(z), f64::from(lambda));
                let top = exact.iter().fold(0.0f64, |t, z| t.max(z.abs()));
                let want = prox_objective(&prox24(&exact, lambda), &exact, lambda);
                let gap = (prox_objective(&wide(w), &exact, lambda) - want) / top.powi(2).max(1e-30);
                assert!(gap <= 1e-6, "{z:?} {lambda}: {w:?}, {gap}");
                worst = worst.max(gap);
                for (w, z) in w.iter().zip(z) {
                    assert!(
                        *w == 0.0 && (w.to_bits() == 0 || *z == 0.0)
                            || w * z > 0.0 && w.abs() <= z.abs() * 1.000_001
                    );
                }
                if w.iter().filter(|w| **w != 0.0).count() <= 2 && lambda > 0.0 {
                    assert!(w.iter().zip(z).all(|(w, z)| *w == 0.0 || w == z), "{z:?}: {w:?}");
                }
            }
        }
    }
    println!("worst gap {worst:e}");
}

#[test]
fn shapes_that_do_not_fit() {
    let (k, mut c) = (kernels("tile64"), commands());
    let shape = |r: Result<(), GpuError>| matches!(r, Err(GpuError::Shape { .. }));
    let mut random = Random::new(3);
    let w = |cols, dtype, random: &mut Random| Matrix::random(4, cols, dtype, random).upload(gpu());
    assert!(shape(k.prox24(&mut c, &w(8, Dtype::BF16, &mut random), 0..4, 1.0)));
    assert!(shape(k.prox24(&mut c, &w(6, Dtype::F32, &mut random), 0..4, 1.0)));
    let weight = w(8, Dtype::F32, &mut random);
    assert!(shape(k.prox24(&mut c, &weight, 0..4, -1.0)));
    assert!(shape(k.prox24(&mut c, &weight, 0..4, f32::NAN)));
    assert!(shape(k.prox24(&mut c, &weight, 2..5, 1.0)));
}
