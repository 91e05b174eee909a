//! The f64 twins of soft masks: probabilities against sums over all that can be drawn, gradients against differences.

mod common;
mod reference;

use common::{Random, pattern};
use maskwright::kernel::Relaxation;
use reference::relaxations;

const PATTERNS: [(usize, usize); 9] =
    [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (7, 8), (2, 16), (8, 16)];

/// The probability of each key to be taken, by the sum over all subsets, or over all sequences of draws.
fn enumerated(keys: &[f64], n: usize, relaxation: Relaxation) -> Vec<f64> {
    fn follow(keys: &[f64], left: usize, taken: usize, probability: f64, out: &mut [f64]) {
        let free: Vec<usize> = (0..keys.len()).filter(|i| taken >> i & 1 == 0).collect();
        let sum: f64 = free.iter().map(|&i| keys[i].exp()).sum();
        for i in free {
            let p = probability * keys[i].exp() / sum;
            out[i] += p;
            if left > 1 {
                follow(keys, left - 1, taken | 1 << i, p, out);
            }
        }
    }
    let m = keys.len();
    let mut out = vec![0.0; m];
    if relaxation == Relaxation::Draws {
        follow(keys, n, 0, 1.0, &mut out);
        return out;
    }
    let mut all = 0.0;
    for set in (0..1usize << m).filter(|s| s.count_ones() as usize == n) {
        let of = |i: &usize| set >> i & 1 == 1;
        let p = (0..m).filter(of).map(|i| keys[i]).sum::<f64>().exp();
        all += p;
        (0..m).filter(of).for_each(|i| out[i] += p);
    }
    out.iter().map(|p| p / all).collect()
}

#[test]
fn twins_are_probabilities() {
    let mut random = Random::new(9);
    for (n, m) in PATTERNS {
        for relaxation in relaxations(n, 1.0).into_iter().skip(1) {
            for scale in [0.0, 1.0, 10.0] {
                let keys: Vec<f64> = random.values(m, scale).into_iter().map(f64::from).collect();
                let want = enumerated(&keys, n, relaxation);
                for (got, want) in reference::soft_top(&keys, n, relaxation).iter().zip(want) {
                    assert!((got - want).abs() < 1e-12, "{n}:{m} {relaxation:?}: {got} for {want}");
                }
            }
        }
    }
}

/// The derivatives that the twins are made of, against differences of the masks.
#[test]
fn twins_are_derivatives() {
    let mut random = Random::new(1);
    let mut worst = 0.0f64;
    for (n, m) in PATTERNS {
        for (scale, removal) in [(0.0, 1.0), (2.0, 1.0), (3.0, 4.0), (6.0, 20.0)] {
            let relaxations = relaxations(n, removal);
            for relaxation in (0..8).flat_map(|_| relaxations.iter().copied()) {
                let keys: Vec<f64> = random.values(m, scale).into_iter().map(f64::from).collect();
                let g: Vec<f64> = random.values(m, 1.0).into_iter().map(f64::from).collect();
                let of = |keys: &[f64]| -> f64 {
                    reference::soft_top(keys, n, relaxation).iter().zip(&g).map(|(m, g)| m * g).sum()
                };
                let d = reference::soft_top_gradient(&keys, n, relaxation, &g);
                worst = worst.max(difference(&keys, &d, of));
            }
        }
    }
    for (n, m) in [(1, 2), (2, 4), (4, 8)] {
        let p = pattern(n, m);
        let count = p.combinations() as usize;
        let keys: Vec<f64> = random.values(count, 3.0).into_iter().map(f64::from).collect();
        let g: Vec<f64> = random.values(m, 1.0).into_iter().map(f64::from).collect();
        let of = |keys: &[f64]| -> f64 {
            reference::soft_patterns(keys, p).0.iter().zip(&g).map(|(m, g)| m * g).sum()
        };
        worst = worst.max(difference(&keys, &reference::soft_patterns_gradient(&keys, p, &g), of));
    }
    println!("worst difference {worst:e}");
    assert!(worst < 1e-6);
}

/// The largest distance of `d` from central differences of fourth order, relative to 1 + |d|.
fn difference(at: &[f64], d: &[f64], of: impl Fn(&[f64]) -> f64) -> f64 {
    let h = 1e-4;
    let by = |i: usize, x: f64| {
        let mut moved = at.to_vec();
        moved[i] += x;
        of(&moved)
    };
    (0..at.len())
        .map(|i| {
            let slope = (8.0 * (by(i, h) - by(i, -h)) - (by(i, 2.0 * h) - by(i, -2.0 * h))) / (12.0 * h);
            (slope - d[i]).abs() / (1.0 + d[i].abs())
        })
        .fold(0.0, f64::max)
}
