//! The sampling law and its score on the host: the integer sampler against enumerated probabilities, the probability
//! against a sum over draw orders, the score against finite differences and against a second formula.

mod reference;

use maskwright::mask::Pattern;
use maskwright::mask::gumbel::{sample, sample_group};
use maskwright::mask::philox::philox4x32;
use reference::law::{distribution, kept_sets, probability, score, softmax};
use reference::law_f32 as single;

/// Reproducible logits: uniform in `[-scale, scale]`.
fn logits(m: usize, scale: f64, case: u32) -> Vec<f64> {
    (0..m as u32)
        .map(|i| {
            let word = philox4x32([case, i, 0, 0], [11, 12])[0];
            let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
            // exact in f32, so that f32 and f64 code see the same numbers
            f64::from((scale * (2.0 * u - 1.0)) as f32)
        })
        .collect()
}

/// `ln` of the gamma function by Lanczos' series (Numerical Recipes 6.1): relative error below 2e-10.
fn ln_gamma(x: f64) -> f64 {
    let series = [
        76.180_091_729_471_46,
        -86.505_320_329_416_77,
        24.014_098_240_830_91,
        -1.231_739_572_450_155,
        0.120_865_097_386_617_9e-2,
        -0.539_523_938_495_3e-5,
    ];
    let t = x + 5.5 - (x + 0.5) * (x + 5.5).ln();
    let sum = series.iter().enumerate().fold(1.000_000_000_190_015, |s, (i, c)| s + c / (x + 1.0 + i as f64));
    -t + (2.506_628_274_631_000_5 * sum / x).ln()
}

/// Chance that a chi-square variable with `freedom` degrees exceeds `x`: the regularised upper incomplete gamma function.
fn chi_square_tail(x: f64, freedom: usize) -> f64 {
    let (a, x) = (freedom as f64 / 2.0, x / 2.0);
    let front = (-x + a * x.ln() - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut sum, mut term) = (1.0 / a, 1.0 / a);
        for k in 1..1000 {
            term *= x / (a + f64::from(k));
            sum += term;
        }
        return 1.0 - front * sum;
    }
    // Lentz's continued fraction
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1e300, 1.0 / b);
    let mut h = d;
    for k in 1..1000 {
        let an = -f64::from(k) * (f64::from(k) - a);
        b += 2.0;
        d = 1.0 / (an * d + b);
        c = b + an / c;
        h *= d * c;
    }
    front * h
}

/// p-value of observed counts against expected ones; cells below 5 expected are pooled.
fn p_value(cells: impl Iterator<Item = (u64, f64)>) -> f64 {
    let (mut statistic, mut used) = (0.0, 0usize);
    let (mut rare_seen, mut rare_expected) = (0u64, 0.0);
    for (seen, expected) in cells {
        if expected < 5.0 {
            rare_seen += seen;
            rare_expected += expected;
        } else {
            statistic += (seen as f64 - expected).powi(2) / expected;
            used += 1;
        }
    }
    if rare_expected >= 5.0 {
        statistic += (rare_seen as f64 - rare_expected).powi(2) / rare_expected;
        used += 1;
    } else if rare_expected > 0.0 {
        // too few for a cell of its own, but a flood of impossible sets must not pass
        assert!(rare_seen as f64 <= rare_expected + 10.0, "{rare_seen} rare sets");
    }
    chi_square_tail(statistic, used - 1)
}

#[test]
fn chi_square_tail_agrees_with_tables() {
    for (x, freedom, p) in [(3.841, 1, 0.05), (11.345, 3, 0.01), (101.879, 63, 0.001_36)] {
        let got = chi_square_tail(x, freedom);
        assert!((got / p - 1.0).abs() < 0.1, "{x} {freedom}: {got} {p}");
    }
}

/// 200 000 groups for each pattern, logits (flat, mild, sharp) and seed; p must exceed 1e-4 in each of the 36 cases. (A right
/// sampler fails one of them by chance once in 280 choices of the seeds; these are fixed.)
#[test]
fn sampler_has_the_unordered_law() {
    const DRAWS: usize = 200_000;
    for (n, m) in [(1, 4), (2, 4), (4, 8), (3, 4)] {
        for (case, scale) in [(1, 0.0), (2, 1.0), (3, 5.0)] {
            let one = logits(m, scale, case);
            let law = distribution(&one, n);
            let row: Vec<f32> = one.iter().map(|&l| l as f32).collect();
            let all = row.repeat(DRAWS);
            for seed in [1u64, 2, 0x0123_4567_89ab_cdef] {
                let pattern = Pattern::new(n, m).unwrap();
                // one long row: the groups are independent draws of the same logits
                let words = sample(&all, 1, all.len(), pattern, seed, 7, 3);
                let mut seen = vec![0u64; 1 << m];
                for g in 0..DRAWS {
                    let bit = g * m;
                    seen[(words[bit / 32] >> (bit % 32)) as usize & ((1 << m) - 1)] += 1;
                }
                let total: u64 = law.iter().map(|&(kept, _)| seen[kept as usize]).sum();
                assert_eq!(total, DRAWS as u64, "{n}:{m}: sets of a wrong size");
                let p = p_value(law.iter().map(|&(kept, p)| (seen[kept as usize], p * DRAWS as f64)));
                println!("{n}:{m} scale {scale} seed {seed:#x}: p = {p:.4}");
                assert!(p > 1e-4, "{n}:{m} scale {scale} seed {seed:#x}: p = {p:e}");
            }
        }
    }
}

/// Seed words, step and projection enter the draw like the group does.
#[test]
fn steps_projections_and_seeds_give_other_draws() {
    let flat = [0.0f32; 4];
    let draw = |seed, step, projection, group| sample_group(&flat, 2, seed, step, projection, group);
    let base: Vec<u32> = (0..64).map(|g| draw(5, 0, 0, g)).collect();
    let others: [Vec<u32>; 4] = [
        (0..64).map(|g| draw(6, 0, 0, g)).collect(),
        (0..64).map(|g| draw(5 + (1 << 32), 0, 0, g)).collect(),
        (0..64).map(|g| draw(5, 1, 0, g)).collect(),
        (0..64).map(|g| draw(5, 0, 1, g)).collect(),
    ];
    for other in others {
        let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count();
        // one in six by chance: 10.7 +- 3
        assert!(equal < 25, "{equal} of 64 groups are equal");
    }
}

/// Groups are numbered over the tensor and packed by rows with a tail.
#[test]
fn tensors_are_packed_by_rows() {
    let (rows, cols, m) = (3, 44, 4);
    let values: Vec<f32> = logits(rows * cols, 2.0, 9).iter().map(|&l| l as f32).collect();
    let words = sample(&values, rows, cols, Pattern::new(2, m).unwrap(), 99, 4, 5);
    assert_eq!(words.len(), rows * 2);
    for row in 0..rows {
        assert_eq!(words[row * 2 + 1] >> (cols - 32), 0, "tail bits");
        for g in 0..cols / m {
            let at = row * cols + g * m;
            let kept = sample_group(&values[at..at + m], 2, 99, 4, 5, (at / m) as u32);
            let col = g * m;
            assert_eq!(words[row * 2 + col / 32] >> (col % 32) & 15, kept);
        }
    }
}

/// Sum over all orders in which the kept weights can be drawn.
fn by_orders(p: &[f64], kept: u32, left: f64) -> f64 {
    if kept == 0 {
        return 1.0;
    }
    (0..p.len())
        .filter(|i| kept >> i & 1 == 1)
        .map(|i| p[i] / left * by_orders(p, kept & !(1 << i), left - p[i]))
        .sum()
}

#[test]
fn probability_is_the_sum_over_orders() {
    for (n, m, scale) in [(1, 2, 3.0), (2, 4, 3.0), (3, 4, 2.0), (4, 8, 3.0), (7, 8, 1.0)] {
        for case in 0..5 {
            let l = logits(m, scale, case);
            let p = softmax(&l);
            for (kept, got) in distribution(&l, n) {
                let want = by_orders(&p, kept, 1.0);
                assert!((got / want - 1.0).abs() < 1e-9, "{n}:{m} {kept:#b}: {got} {want}");
            }
        }
    }
}

#[test]
fn probabilities_sum_to_one() {
    for (n, m, scale) in [(2, 4, 15.0), (5, 8, 9.0), (8, 16, 1.0), (13, 16, 2.0), (15, 16, 1.0)] {
        let total: f64 = distribution(&logits(m, scale, 4), n).iter().map(|x| x.1).sum();
        assert!((total - 1.0).abs() < 1e-10, "{n}:{m}: {total}");
    }
    assert_eq!(kept_sets(8, 16).len(), 12_870);
}

#[test]
fn sets_outside_the_group_have_no_probability() {
    assert_eq!(probability(&[0.0; 4], 0b1_0001), 0.0);
    assert_eq!(probability(&[], 0), 0.0);
    assert_eq!(probability(&[0.0; 4], 0b1111), 1.0);
    assert_eq!(score(&[0.0; 4], 0b1111), vec![0.0; 4]);
    assert_eq!(score(&[0.0; 4], 0), vec![0.0; 4]);
    assert_eq!(single::score(&[0.0; 4], 0b10011), vec![0.0; 4]);
}

/// d log P / d logits by the forward and backward recursions in probabilities and the softmax Jacobian: another route to
/// the same number. With F as in the law, B(S) = 1 and B(T) = sum_j B(T + j) p_j / (1 - p(T)),
/// dP/dp_i = sum_{T without i} F(T) B(T+i) / (1 - p(T)) + sum_{T with i} sum_{j not in T} F(T) p_j B(T+j) / (1 - p(T))^2.
fn score_by_jacobian(logits: &[f64], kept: u32) -> Vec<f64> {
    let p = softmax(logits);
    let ids: Vec<usize> = (0..p.len()).filter(|i| kept >> i & 1 == 1).collect();
    let full = (1usize << ids.len()) - 1;
    let left = |t: usize| {
        1.0 - ids.iter().enumerate().filter(|(j, _)| t >> j & 1 == 1).map(|(_, &i)| p[i]).sum::<f64>()
    };
    let (mut f, mut b) = (vec![0.0; full + 1], vec![0.0; full + 1]);
    f[0] = 1.0;
    b[full] = 1.0;
    for t in 1..=full {
        f[t] = (0..ids.len())
            .filter(|j| t >> j & 1 == 1)
            .map(|j| f[t & !(1 << j)] * p[ids[j]] / left(t & !(1 << j)))
            .sum();
    }
    for t in (0..full).rev() {
        b[t] = (0..ids.len()).filter(|j| t >> j & 1 == 0).map(|j| b[t | 1 << j] * p[ids[j]] / left(t)).sum();
    }
    let mut dp = vec![0.0; p.len()];
    for (k, &i) in ids.iter().enumerate() {
        for t in 0..full {
            if t >> k & 1 == 0 {
                dp[i] += f[t] * b[t | 1 << k] / left(t);
            } else {
                dp[i] += f[t] * b[t] / left(t);
            }
        }
        dp[i] /= f[full];
    }
    let mean: f64 = dp.iter().zip(&p).map(|(d, p)| d * p).sum();
    dp.iter().zip(&p).map(|(d, p)| p * (d - mean)).collect()
}

#[test]
fn score_agrees_with_finite_differences_and_the_jacobian_form() {
    for (n, m) in
        [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (7, 8), (3, 16), (8, 16), (12, 16), (15, 16)]
    {
        for (case, scale) in [(1, 0.5), (2, 2.0), (3, 4.0)] {
            let l = logits(m, scale, case + 10 * n as u32);
            let sets = kept_sets(n, m);
            for kept in sets.iter().step_by(1 + sets.len() / 8) {
                let s = score(&l, *kept);
                let jacobian = score_by_jacobian(&l, *kept);
                assert!(s.iter().sum::<f64>().abs() < 1e-12);
                for i in 0..m {
                    let h = 1e-4;
                    let at = |d: f64| {
                        let mut moved = l.clone();
                        moved[i] += d;
                        probability(&moved, *kept).ln()
                    };
                    // fourth order: error h^4 times the fifth derivative, and 1e-16 / h of rounding
                    let slope = (8.0 * (at(h) - at(-h)) - at(2.0 * h) + at(-2.0 * h)) / (12.0 * h);
                    assert!((s[i] - slope).abs() < 1e-9, "{n}:{m} {kept:#b} {i}: {} {slope}", s[i]);
                    assert!(
                        (s[i] - jacobian[i]).abs() < 1e-9,
                        "{n}:{m} {kept:#b} {i}: {} {}",
                        s[i],
                        jacobian[i]
                    );
                }
            }
        }
    }
}

/// The expectation of the score is zero: what makes the estimators unbiased for any baseline.
#[test]
fn score_has_mean_zero() {
    for (n, m, scale) in [(1, 4, 3.0), (2, 4, 3.0), (4, 8, 2.0)] {
        let l = logits(m, scale, 21);
        let mut mean = vec![0.0; m];
        for (kept, p) in distribution(&l, n) {
            for (sum, s) in mean.iter_mut().zip(score(&l, kept)) {
                *sum += p * s;
            }
        }
        assert!(mean.iter().all(|x| x.abs() < 1e-12), "{mean:?}");
    }
}

/// The f32 formulas against f64, for sets as a sampler draws them: `2e-6 + 2e-6 * |score|`.
#[test]
fn single_precision_score_is_accurate() {
    let mut worst = (0.0f64, String::new());
    for m in [2, 4, 8, 16] {
        for n in 1..m {
            for (case, scale) in [(1, 0.0), (2, 0.3), (3, 2.0), (4, 6.0), (5, 15.0), (6, 30.0)] {
                for draw in 0..6 {
                    let l = logits(m, scale, case + 100 * draw + 1000 * n as u32);
                    let row: Vec<f32> = l.iter().map(|&x| x as f32).collect();
                    let kept = sample_group(&row, n, 3, draw, 0, 0);
                    let want = score(&l, kept);
                    for (got, want) in single::score(&row, kept).iter().zip(&want) {
                        let error = (f64::from(*got) - want).abs() / (1.0 + want.abs());
                        if error.is_nan() || error > worst.0 {
                            worst = (error, format!("{n}:{m} scale {scale} {kept:#b}: {got} {want}"));
                        }
                    }
                }
            }
        }
    }
    println!("worst error / (1 + |score|): {:e}, {}", worst.0, worst.1);
    assert!(worst.0 < 2e-6, "{worst:?}");
}
