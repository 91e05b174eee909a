//! Weights that were re-fitted, in the type that the model stores them in.

use half::{bf16, f16};

use super::PruneError;
use crate::model::{Dtype, TensorView, encode};
use crate::nn::NnError;

/// The largest number of a type.
fn largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 | Dtype::F64 => f32::MAX,
        Dtype::F16 => f16::MAX.to_f32(),
        Dtype::BF16 => bf16::MAX.to_f32(),
    }
}

/// Whether a number becomes infinite as `dtype`.
fn is_beyond(dtype: Dtype, value: f32) -> bool {
    let stored = match dtype {
        Dtype::F32 | Dtype::F64 => value,
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
    };
    value.is_finite() && stored.is_infinite()
}

/// The re-fitted `values` of the tensor `name` `[rows, cols]` as `dtype`; with `clamp` those beyond its largest number become that.
///
/// # Errors
/// [`PruneError::Unstorable`] naming the first value beyond the largest number of the type; a value that is not finite.
pub(super) fn stored(
    name: &str,
    dtype: Dtype,
    shape: [usize; 2],
    values: &[f32],
    clamp: bool,
) -> Result<Vec<u8>, PruneError> {
    let beyond = || values.iter().enumerate().filter(|(_, value)| is_beyond(dtype, **value));
    let most = largest(dtype);
    let bytes = match beyond().next() {
        None => encode(dtype, values),
        Some((at, &value)) if !clamp => {
            let (cols, count) = (shape[1].max(1), beyond().count());
            let position = [at / cols, at % cols];
            return Err(PruneError::Unstorable { tensor: name.into(), dtype, value, position, count, most });
        }
        Some(_) => {
            log::warn!(
                "{name}: {} re-fitted weights beyond {most}, the end of {dtype}: clamped",
                beyond().count()
            );
            let clamped = values.iter().map(|&v| if is_beyond(dtype, v) { v.clamp(-most, most) } else { v });
            encode(dtype, &clamped.collect::<Vec<f32>>())
        }
    };
    TensorView { name, dtype, shape: &shape, data: &bytes }.check_finite().map_err(NnError::from)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 65 504 is the largest half; up to 65 520 numbers are rounded to it.
    #[test]
    fn what_a_type_cannot_hold_is_named_or_clamped() {
        let values = [1.0, 65_504.0, 65_519.0, -65_520.0, 7e4, 2.0];
        let fails = |values: &[f32], clamp| stored("w", Dtype::F16, [2, 3], values, clamp).unwrap_err();
        match fails(&values, false) {
            PruneError::Unstorable { value, position, count, most, .. } => {
                assert_eq!((value, position, count, most), (-65_520.0, [1, 0], 2, 65_504.0));
            }
            other => panic!("{other}"),
        }
        let text = fails(&values, false).to_string();
        assert!(text.contains("F16") && text.contains("--clamp-weights") && text.contains("65504"), "{text}");
        let clamped = stored("w", Dtype::F16, [2, 3], &values, true).unwrap();
        let want = [1.0, 65_504.0, 65_504.0, -65_504.0, 65_504.0, 2.0];
        assert_eq!(clamped, encode(Dtype::F16, &want));
        // Other types have room.
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
            assert_eq!(stored("w", dtype, [2, 3], &values, false).unwrap(), encode(dtype, &values));
        }
        assert!(stored("w", Dtype::BF16, [1, 1], &[f32::MAX], false).is_err());
        // What is no number is not clamped.
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(matches!(fails(&[bad], true), PruneError::Nn(_)));
        }
    }
}
