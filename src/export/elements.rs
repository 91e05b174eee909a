//! What packed layouts ask of patterns, types and elements.

use safetensors::Dtype as Stored;

use crate::mask::Pattern;
use crate::model::Dtype;

/// Whether the pattern can run on 2:4 hardware: no aligned four has more than two kept weights.
pub fn qualifies(pattern: Pattern) -> bool {
    pattern.n() <= 2
}

/// The type as the safetensors library names it.
pub(super) fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F64 => Stored::F64,
        Dtype::F16 => Stored::F16,
        Dtype::BF16 => Stored::BF16,
    }
}

/// Whether an element is zero; the sign of a float does not matter.
pub(super) fn is_zero(element: &[u8], dtype: Stored) -> bool {
    let sign = if dtype == Stored::I8 { 0xff } else { 0x7f };
    match element.split_last() {
        Some((last, rest)) => last & sign == 0 && rest.iter().all(|&b| b == 0),
        None => true,
    }
}

/// Checks the number of bytes of `rows x cols` elements.
pub(super) fn expect_len(bytes: &[u8], rows: usize, cols: usize, size: usize) -> Result<(), String> {
    let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(size));
    if expected != Some(bytes.len()) {
        return Err(format!(
            "{rows} x {cols} elements of {size} bytes are expected, {} bytes found",
            bytes.len()
        ));
    }
    Ok(())
}
