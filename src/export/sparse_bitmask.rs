//! One weight in the layout `sparse-bitmask` of compressed-tensors up to 0.14.0.1: any pattern, or none. For reading tensors of old
//! models and for tools that still take them; not a format of whole models here, since transformers 4.57.6 fails to load such a model and
//! vLLM never ran one.

use safetensors::Dtype as Stored;

use super::LayoutError;
use super::elements;

/// A compressed weight `[rows, cols]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SparseBitmask {
    /// The weights that are not zero, row by row, little-endian.
    pub compressed: Vec<u8>,
    /// `[rows, ceil(cols / 8)]`, bit `c % 8` of byte `c / 8` = not zero.
    pub bitmask: Vec<u8>,
    /// `[rows]`: how many weights lie before each row's.
    pub row_offsets: Vec<i64>,
}

/// Compresses a weight, given as its bytes. -0.0 counts as zero and is lost.
///
/// # Errors
/// A type that the format does not have, no weights, a wrong number of bytes.
pub fn encode(dtype: Stored, rows: usize, cols: usize, dense: &[u8]) -> Result<SparseBitmask, LayoutError> {
    let size = check(dtype, rows, cols)?;
    elements::expect_len(dense, rows, cols, size)?;
    let per_row = cols.div_ceil(8);
    let mut out = SparseBitmask {
        compressed: Vec::new(),
        bitmask: vec![0; rows * per_row],
        row_offsets: Vec::with_capacity(rows),
    };
    let lines = dense.chunks_exact(cols * size).zip(out.bitmask.chunks_exact_mut(per_row));
    for (row, bits) in lines {
        out.row_offsets.push((out.compressed.len() / size) as i64);
        for (weights, byte) in row.chunks(8 * size).zip(bits) {
            for (weight, i) in weights.chunks_exact(size).zip(0..) {
                if !elements::is_zero(weight, dtype) {
                    *byte |= 1 << i;
                    out.compressed.extend_from_slice(weight);
                }
            }
        }
    }
    Ok(out)
}

/// The bytes of an element, when the format has such weights.
fn check(dtype: Stored, rows: usize, cols: usize) -> Result<usize, String> {
    if rows == 0 || cols == 0 {
        return Err(format!("{rows} x {cols} holds no weights"));
    }
    super::ct24::element_bytes(dtype)
}

/// The dense weight of a compressed one.
///
/// # Errors
/// A type that the format does not have, parts that do not fit each other or the shape.
pub fn decode(
    dtype: Stored,
    rows: usize,
    cols: usize,
    coded: &SparseBitmask,
) -> Result<Vec<u8>, LayoutError> {
    let size = check(dtype, rows, cols)?;
    let per_row = cols.div_ceil(8);
    elements::expect_len(&coded.bitmask, rows, per_row, 1)?;
    let count: usize = coded.bitmask.iter().map(|byte| byte.count_ones() as usize).sum();
    elements::expect_len(&coded.compressed, 1, count, size)?;
    if coded.row_offsets.len() != rows {
        let found = coded.row_offsets.len();
        return Err(LayoutError::Unfit(format!("{found} row offsets for {rows} rows")));
    }
    let unfit = |row: usize, what: &str| LayoutError::Unfit(format!("row {row} {what}"));
    let mut dense = Vec::with_capacity(coded.bitmask.len().saturating_mul(8 * size));
    let mut values = coded.compressed.chunks_exact(size);
    let zero = vec![0; size];
    for (row, (bits, offset)) in coded.bitmask.chunks_exact(per_row).zip(&coded.row_offsets).enumerate() {
        let before = count - values.len();
        if i64::try_from(before).ok() != Some(*offset) {
            return Err(unfit(row, &format!("starts at {before}, but its offset is {offset}")));
        }
        for col in 0..8 * per_row {
            let kept = bits.get(col / 8).is_some_and(|byte| byte >> (col % 8) & 1 == 1);
            match (col < cols, kept) {
                (true, true) => dense.extend_from_slice(values.next().unwrap_or(&zero)),
                (true, false) => dense.extend_from_slice(&zero),
                (false, true) => {
                    return Err(unfit(row, "of the bitmask has a bit set behind its last column"));
                }
                (false, false) => {}
            }
        }
    }
    Ok(dense)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_and_what_does_not_fit() {
        let dense: Vec<u8> = [1.5f32, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0]
            .iter()
            .chain(&[0.0; 10])
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let coded = encode(Stored::F32, 2, 10, &dense).expect("fits");
        assert_eq!(coded.bitmask, [0b101, 1, 0, 0]);
        assert_eq!(coded.row_offsets, [0, 3]);
        assert_eq!(decode(Stored::F32, 2, 10, &coded).expect("fits"), dense);
        let broken = |change: fn(&mut SparseBitmask)| {
            let mut coded = coded.clone();
            change(&mut coded);
            decode(Stored::F32, 2, 10, &coded).expect_err("broken").to_string()
        };
        assert!(broken(|c| c.bitmask[1] |= 4).contains("bytes"));
        assert!(broken(|c| (c.bitmask[1], c.bitmask[0]) = (5, 1)).contains("behind its last column"));
        assert!(broken(|c| c.row_offsets[1] = 2).contains("offset is 2"));
        assert!(broken(|c| c.row_offsets.clear()).contains("0 row offsets"));
        assert!(encode(Stored::F64, 2, 10, &dense).is_err());
        // However many rows of nothing: nothing is allocated for them.
        assert!(
            encode(Stored::F32, usize::MAX, 0, &[]).is_err()
                && encode(Stored::F32, 0, usize::MAX, &[]).is_err()
        );
    }
}
