//! Central differences of f64 twins, which take f32.

use super::Random;

/// Steps of the differences: inputs are multiples of it, so that every step is exact in f32.
const STEP: f32 = 1.0 / 1024.0;

/// Multiples of [`STEP`] in `[-scale, scale)`.
pub fn even(random: &mut Random, count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|_| (random.value(scale) / STEP).round() * STEP).collect()
}

/// Holds `gradient` against differences of fourth order of `loss` at every element of `x`.
#[track_caller]
pub fn check_differences(label: &str, x: &[f32], gradient: &[f64], loss: impl Fn(&[f32]) -> f64) {
    let size = gradient.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    assert!(size > 0.0, "{label}: a gradient of zero shows nothing");
    let mut moved = x.to_vec();
    for (i, &want) in gradient.iter().enumerate() {
        let mut at = |steps: f32| {
            moved[i] = x[i] + steps * STEP;
            loss(&moved)
        };
        let (near, far) = (at(1.0) - at(-1.0), at(2.0) - at(-2.0));
        moved[i] = x[i];
        let got = (8.0 * near - far) / (12.0 * f64::from(STEP));
        assert!(
            (got - want).abs() <= 1e-7 * size,
            "{label}: element {i}: differences {got}, gradient {want}"
        );
    }
}
