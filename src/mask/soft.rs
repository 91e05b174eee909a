//! Logits of masks that are learned by backpropagation: where they start, and the strict masks that they end as.

use super::philox::{key, philox4x32};
use super::rank::unrank;
use super::{BitMask, MaskError, Pattern};

/// A logit per weight, `[rows, cols]`: `kept` where the mask keeps, 0 elsewhere.
pub fn logits_of(mask: &BitMask, kept: f32) -> Vec<f32> {
    let (rows, cols) = (mask.rows(), mask.cols());
    (0..rows * cols).map(|i| if mask.get(i / cols, i % cols) { kept } else { 0.0 }).collect()
}

/// The strict mask of a logit per weight: the N greatest of every group, ties to the lower index.
///
/// # Errors
/// Columns that M does not divide, a number of logits other than `rows * cols`, or NaN.
pub fn top_of(rows: usize, cols: usize, pattern: Pattern, logits: &[f32]) -> Result<BitMask, MaskError> {
    check(rows, cols, rows.checked_mul(cols), logits)?;
    BitMask::top_n(rows, cols, pattern, |row, out| out.copy_from_slice(&logits[row * cols..][..cols]))
}

/// Standard deviation of the logits per pattern before the prior.
const SPREAD: f64 = 0.01;
/// Counter of the draws: apart from those of the samplers and of the noise.
const START: u32 = 64;

/// A logit per pattern, `[rows, groups, combinations]`, as MaskLLM starts them: `pi` from N(0, 0.01^2), then
/// `pi_k += alpha * std(pi) * (<m0, S_k> - N / 2)` with the start mask m0 (Fang et al. 2024; alpha = 3 there).
///
/// # Errors
/// Columns that M does not divide.
pub fn pattern_logits(
    start: &BitMask,
    pattern: Pattern,
    alpha: f32,
    seed: u64,
    projection: u32,
) -> Result<Vec<f32>, MaskError> {
    pattern.groups(start.cols())?;
    let count = pattern.combinations() as u32;
    let patterns: Vec<u32> = (0..count).filter_map(|k| unrank(pattern, k)).collect();
    let mut out = Vec::with_capacity(start.rows() * start.cols() / pattern.m() * patterns.len());
    for group in 0..start.groups(pattern).count() as u32 {
        for k in 0..count {
            let words = philox4x32([0, projection, group, START + k], key(seed));
            out.push((SPREAD * normal(words[0], words[1])) as f32);
        }
    }
    let strength = f64::from(alpha) * deviation(&out);
    let half = pattern.n() as f64 / 2.0;
    for (logits, kept) in out.chunks_exact_mut(patterns.len()).zip(start.groups(pattern)) {
        for (logit, pattern) in logits.iter_mut().zip(&patterns) {
            *logit += (strength * (f64::from((kept & pattern).count_ones()) - half)) as f32;
        }
    }
    Ok(out)
}

/// A standard normal number (Box and Muller 1958).
fn normal(a: u32, b: u32) -> f64 {
    let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    (-2.0 * uniform(a).ln()).sqrt() * (std::f64::consts::TAU * uniform(b)).cos()
}

/// The standard deviation of a sample, as `torch.std` has it; of one value 0.
fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count.max(1.0);
    let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    (squares / (count - 1.0).max(1.0)).sqrt()
}

/// The strict mask of a logit per pattern: the pattern with the greatest of every group, ties to the lower rank.
///
/// # Errors
/// Columns that M does not divide, a wrong number of logits, or NaN.
pub fn best_patterns(
    rows: usize,
    cols: usize,
    pattern: Pattern,
    logits: &[f32],
) -> Result<BitMask, MaskError> {
    let (groups, count) = (pattern.groups(cols)?, pattern.combinations() as usize);
    check(rows, cols, rows.checked_mul(groups * count), logits)?;
    let mut mask = BitMask::try_zeros(rows, cols)?;
    for (i, logits) in logits.chunks_exact(count).enumerate() {
        let mut best = 0;
        for (k, logit) in logits.iter().enumerate() {
            if logit.is_nan() {
                return Err(MaskError::NotANumber { row: i / groups, col: i % groups * pattern.m() });
            }
            if *logit > logits[best] {
                best = k;
            }
        }
        mask.or_group(i / groups, i % groups, pattern, unrank(pattern, best as u32).unwrap_or(0));
    }
    Ok(mask)
}

fn check(rows: usize, cols: usize, expected: Option<usize>, logits: &[f32]) -> Result<(), MaskError> {
    match expected == Some(logits.len()) {
        true => Ok(()),
        false => {
            let expected = expected.unwrap_or(usize::MAX);
            Err(MaskError::Logits { rows, cols, expected, found: logits.len() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(pattern: Pattern, rows: usize, cols: usize) -> BitMask {
        let mut state = 1u32;
        BitMask::top_n(rows, cols, pattern, |_, out| {
            for s in out {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *s = (state >> 8) as f32;
            }
        })
        .unwrap()
    }

    #[test]
    fn logits_of_a_mask_end_as_it() {
        for (n, m) in [(1, 2), (2, 4), (4, 8), (8, 16)] {
            let pattern = Pattern::new(n, m).unwrap();
            let mask = start(pattern, 5, 6 * m);
            let logits = logits_of(&mask, 2.5);
            assert!(logits.iter().all(|&l| l == 0.0 || l == 2.5));
            assert_eq!(top_of(5, 6 * m, pattern, &logits).unwrap(), mask);
            assert!(top_of(5, 6 * m, pattern, &logits[1..]).is_err());
        }
        // ties to the lower index
        let mask = top_of(1, 4, Pattern::TWO_OF_FOUR, &[1.0, 0.0, 1.0, 1.0]).unwrap();
        assert_eq!(mask.words(), [0b0101]);
    }

    #[test]
    fn patterns_start_around_the_mask() {
        for (n, m) in [(1, 4), (2, 4), (2, 8)] {
            let pattern = Pattern::new(n, m).unwrap();
            let (rows, cols) = (40, 16 * m);
            let mask = start(pattern, rows, cols);
            let plain = pattern_logits(&mask, pattern, 0.0, 7, 1).unwrap();
            let count = plain.len() as f64;
            let mean = plain.iter().map(|&l| f64::from(l)).sum::<f64>() / count;
            assert!(mean.abs() < 4.0 * SPREAD / count.sqrt(), "{mean}");
            assert!((deviation(&plain) / SPREAD - 1.0).abs() < 4.0 / (2.0 * count).sqrt());
            let prior = pattern_logits(&mask, pattern, 3.0, 7, 1).unwrap();
            let per_group = pattern.combinations() as usize;
            for (i, (a, b)) in plain.iter().zip(&prior).enumerate() {
                let kept = mask.groups(pattern).nth(i / per_group).unwrap();
                let common = (kept & unrank(pattern, (i % per_group) as u32).unwrap()).count_ones();
                let want = 3.0 * deviation(&plain) * (f64::from(common) - n as f64 / 2.0);
                assert!((f64::from(b - a) - want).abs() < 1e-6);
            }
            assert_ne!(plain, pattern_logits(&mask, pattern, 0.0, 7, 2).unwrap());
            // a prior that outweighs the draws
            let strong = pattern_logits(&mask, pattern, 100.0, 7, 1).unwrap();
            assert_eq!(best_patterns(rows, cols, pattern, &strong).unwrap(), mask);
        }
    }

    #[test]
    fn best_patterns_are_checked() {
        let pattern = Pattern::TWO_OF_FOUR;
        let mask =
            best_patterns(1, 8, pattern, &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(mask.unwrap().words(), [0b0011_0101]);
        assert!(best_patterns(1, 8, pattern, &[0.0; 11]).is_err());
        assert!(best_patterns(1, 6, pattern, &[0.0; 9]).is_err());
        let logits = [0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0];
        assert!(matches!(
            best_patterns(1, 4, pattern, &logits),
            Err(MaskError::NotANumber { row: 0, col: 0 })
        ));
    }
}
