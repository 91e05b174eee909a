//! Gumbel-top-N sampling of masks in integer arithmetic: the twin of `shaders/mask_sample.wgsl`, equal bit for bit.
//!
//! The N greatest of `logit + Gumbel noise` have exactly the law of N draws without replacement from the softmax of the
//! logits. Noise and logits are fixed point (Q8.24: 24 fraction bits in an `i32`), computed by integer operations only, so that
//! equal logits give equal masks on every vendor. The derivation of the noise is in `shaders/shared/gumbel.wgsl`.
//!
//! **Counters.** The noise of weight `i` of a group is word `i % 4` of Philox4x32-10 under the counter
//! `(step, projection, group, i / 4)` and the key `(seed low, seed high)`. Groups are counted row by row over the whole
//! tensor. Projection numbers from 2^31 on are free for other uses of the same seed.

use super::pattern::Pattern;
use super::philox::{key, philox4x32};

/// Logits are kept in `[-LOGIT_LIMIT, LOGIT_LIMIT]`; with the noise they fill Q8.24. The sampler counts logits beyond it as on
/// it, the update kernel clamps to it.
pub const LOGIT_LIMIT: f32 = 100.0;

/// One in Q8.24.
pub const FIXED_ONE: i32 = 1 << 24;

/// `log2(1 + t) = t * (c0 - t * (c1 - ...))` on `[0, 1]` to 2.7e-8: degree 9 through Chebyshev nodes, Q1.31, last first.
const LOG: [u32; 9] = [
    15_881_505,
    90_076_221,
    240_157_550,
    421_419_940,
    591_033_053,
    769_441_393,
    1_032_250_055,
    1_549_064_809,
    3_098_163_904,
];
/// `h((1 - t) / 2) / ln2 = H0 - t * (c0 - t * (c1 - ...))` on `[0, 1]` to 7e-9, where `h(d) = ln(-ln(1 - d) / d)`.
const H: [u32; 9] = [
    4_209_957,
    24_053_907,
    64_928_765,
    116_345_950,
    168_819_583,
    231_298_418,
    333_883_951,
    559_719_274,
    1_371_541_816,
];
/// `h(1/2) / ln2`, Q6.26.
const H0: u32 = 31_623_953;
/// `-log2(ln2)`, Q6.26.
const MINUS_LOG2_LN2: u32 = 35_484_911;
/// `ln2`, Q0.32.
const LN2: u32 = 2_977_044_472;
/// `8 ln2`, Q8.24.
const EIGHT_LN2: i32 = 93_032_640;

fn mul_hi(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// `t * (c0 - t * (c1 - ...))` in Q6.26; `t` is Q0.32, the coefficients Q1.31. Every difference is positive.
fn polynomial(coefficients: &[u32; 9], t: u32) -> u32 {
    let p = coefficients.iter().fold(0, |p, &c| c.wrapping_sub(mul_hi(t, p)));
    (mul_hi(t, p) + 16) >> 5
}

/// Gumbel noise `-ln(-ln u)` of `u = (2 * word + 1) / 2^33` in Q8.24, to an absolute error below 2^-23.
pub fn gumbel(word: u32) -> i32 {
    let upper = word >= 1 << 31;
    let x = word.min(!word) * 2 + 1;
    let n = x.leading_zeros();
    let y = ((n + 2) << 26).wrapping_sub(polynomial(&LOG, (x << n) << 1));
    let biased = if upper {
        y.wrapping_add((8 << 26) - H0).wrapping_add(polynomial(&H, !x))
    } else {
        let m = y.leading_zeros();
        ((m + 3) << 26).wrapping_add(MINUS_LOG2_LN2).wrapping_sub(polynomial(&LOG, (y << m) << 1))
    };
    ((mul_hi(biased, LN2) + 2) >> 2) as i32 - EIGHT_LN2
}

/// A logit in Q8.24, clamped to [`LOGIT_LIMIT`] and truncated towards zero (exact but for what lies below 2^-24).
pub fn fixed(logit: f32) -> i32 {
    (logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT) * FIXED_ONE as f32) as i32
}

/// The kept weights of one group, bit `i` for weight `i`: the `n` greatest of logit plus noise, ties to the lower index.
///
/// `group` is the group's number in its tensor. At most 32 logits are looked at.
pub fn sample_group(logits: &[f32], n: usize, seed: u64, step: u32, projection: u32, group: u32) -> u32 {
    let mut keys = [0i32; 32];
    let mut random = [0; 4];
    for (i, (slot, &logit)) in keys.iter_mut().zip(logits).enumerate() {
        if i % 4 == 0 {
            random = philox4x32([step, projection, group, i as u32 / 4], key(seed));
        }
        *slot = fixed(logit) + gumbel(random[i % 4]);
    }
    top(&keys[..logits.len().min(32)], n)
}

/// Bits of the `n` greatest keys, ties to the lower index.
fn top(keys: &[i32], n: usize) -> u32 {
    let mut kept = 0;
    for (i, mine) in keys.iter().enumerate() {
        let beaten =
            keys.iter().enumerate().filter(|&(j, other)| other > mine || (other == mine && j < i)).count();
        if beaten < n {
            kept |= 1 << i;
        }
    }
    kept
}

/// The mask of a whole tensor: `logits` is `[rows, cols]`, the result `[rows, ceil(cols / 32)]` words, bit `c % 32` of word
/// `c / 32`.
///
/// A length of `logits` other than `rows * cols` or a `cols` that the pattern's M does not divide gives masks of the
/// complete groups that are there; the callers check shapes before.
pub fn sample(
    logits: &[f32],
    rows: usize,
    cols: usize,
    pattern: Pattern,
    seed: u64,
    step: u32,
    projection: u32,
) -> Vec<u32> {
    let (n, m) = (pattern.n(), pattern.m());
    let words_per_row = cols.div_ceil(32);
    let mut words = vec![0u32; rows * words_per_row];
    for (row, values) in logits.chunks_exact(cols.max(1)).take(rows).enumerate() {
        for (g, group) in values.chunks_exact(m).enumerate() {
            let number = (row * (cols / m) + g) as u32;
            let kept = sample_group(group, n, seed, step, projection, number);
            let col = g * m;
            words[row * words_per_row + col / 32] |= kept << (col % 32);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `-ln(-ln u)` in f64 without cancellation at either end.
    fn exact(word: u32) -> f64 {
        let scale = 2f64.powi(-33);
        let e = if word < 1 << 31 {
            -((2.0 * f64::from(word) + 1.0) * scale).ln()
        } else {
            -(-((2.0 * f64::from(!word) + 1.0) * scale)).ln_1p()
        };
        -e.ln()
    }

    fn error(word: u32) -> f64 {
        f64::from(gumbel(word)) / f64::from(FIXED_ONE) - exact(word)
    }

    #[test]
    fn noise_is_accurate_everywhere() {
        let mut worst = (0.0f64, 0u32);
        let mut check = |word: u32| {
            let e = error(word).abs();
            if e > worst.0 {
                worst = (e, word);
            }
        };
        for bit in 0..32 {
            for d in 0..2000u32 {
                check((1u32 << bit).wrapping_add(d));
                check((1u32 << bit).wrapping_sub(d));
                check(!(1u32 << bit).wrapping_add(d));
                check(!(1u32 << bit).wrapping_sub(d));
            }
        }
        // 4.2 million words, evenly spread (an odd stride), and around u = 1/e, where y crosses a power of two
        for i in 0..1u32 << 22 {
            check(i.wrapping_mul(0x9e37_79b1));
        }
        println!("worst error of the noise: {:e} at word {:#x}", worst.0, worst.1);
        assert!(worst.0 < 2f64.powi(-23), "{worst:?}");
    }

    #[test]
    fn noise_is_monotone_up_to_rounding_and_unbiased() {
        let mut sum = 0.0;
        let mut before = i32::MIN;
        const STEP: u32 = 1 << 11;
        const POINTS: u32 = 1 << 21;
        for i in 0..POINTS {
            let g = gumbel(i * STEP + STEP / 2);
            assert!(g >= before.saturating_sub(1), "word {:#x}", i * STEP);
            before = g;
            sum += f64::from(g) / f64::from(FIXED_ONE);
        }
        let mean = sum / f64::from(POINTS);
        // the Gumbel law's mean is Euler's constant; the midpoint rule with 2^21 points is good to 1e-6
        assert!((mean - 0.577_215_664_9).abs() < 2e-6, "{mean}");
        // -ln(2^-33) = 33 ln2, the greatest value
        let greatest = 33.0 * std::f64::consts::LN_2 * f64::from(FIXED_ONE);
        assert!((f64::from(gumbel(u32::MAX)) - greatest).abs() < 2.0);
    }

    #[test]
    fn logits_convert_exactly() {
        assert_eq!(fixed(1.0), FIXED_ONE);
        assert_eq!(fixed(-10.000_001), -167_772_176);
        assert_eq!(fixed(1e9), 100 * FIXED_ONE);
        assert_eq!(fixed(f32::NEG_INFINITY), -100 * FIXED_ONE);
        assert_eq!(fixed(-1e-9), 0);
        assert_eq!(fixed(-1e-40), 0);
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top(&[1, 1, 1, 1], 2), 0b0011);
        assert_eq!(top(&[0, 1, 1, 1], 2), 0b0110);
        assert_eq!(top(&[5, -3, 5, 9], 2), 0b1001);
    }
}
