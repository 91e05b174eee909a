//! One tensor of a checkpoint: stored bytes and their reading as f32.

use std::fmt;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::ModelError;

/// How a weight is stored. Little-endian, as safetensors prescribes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// IEEE double precision, which is narrowed to f32 where it is read.
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
        }
    }

    /// The type that a device holds it in: no device computes in F64.
    #[must_use]
    pub fn on_device(self) -> Self {
        if self == Self::F64 { Self::F32 } else { self }
    }

    /// From the safetensors type; `None` for what is not supported.
    pub fn from_stored(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::BF16),
            safetensors::Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    /// The name as in a safetensors header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F64 => "F64",
        })
    }
}

/// A tensor in the mapped file: `data` has exactly `shape` elements of `dtype`, row-major. The bytes need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// How an element is stored.
    pub dtype: Dtype,
    /// The dimensions, slowest first.
    pub shape: &'a [usize],
    /// The stored bytes.
    pub data: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// The first dimension (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements of one index of the first dimension.
    pub fn row_len(&self) -> usize {
        self.len().checked_div(self.rows()).unwrap_or(0)
    }

    /// The stored bytes of row `r`, or none beyond the last row.
    pub fn row(&self, r: usize) -> Option<&'a [u8]> {
        let bytes = self.row_len() * self.dtype.size();
        let start = r.checked_mul(bytes)?;
        if r >= self.rows() {
            return None;
        }
        self.data.get(start..start.checked_add(bytes)?)
    }

    /// All elements as f32: exactly, but for F64, which is rounded to the nearest.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        decode(self.dtype, self.data, &mut out);
        out
    }

    /// Row `r` as f32, into the front of `out`. Returns false, with `out` untouched, when the row does not exist or
    /// `out` is shorter than a row.
    #[must_use]
    pub fn row_f32(&self, r: usize, out: &mut [f32]) -> bool {
        match (self.row(r), out.get_mut(..self.row_len())) {
            (Some(bytes), Some(out)) => {
                decode(self.dtype, bytes, out);
                true
            }
            _ => false,
        }
    }

    /// Checks that no element is NaN or infinite, at about the speed of memory.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] with the first such element's position.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        const CHUNK: usize = 1 << 14;
        let size = self.dtype.size();
        for (chunk, bytes) in self.data.chunks(CHUNK).enumerate() {
            if !any_not_finite(self.dtype, bytes) {
                continue;
            }
            let mut values = vec![0.0; bytes.len() / size];
            decode(self.dtype, bytes, &mut values);
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(ModelError::NotFinite {
                    tensor: self.name.into(),
                    value: values[i],
                    position: self.position(chunk * (CHUNK / size) + i),
                });
            }
        }
        Ok(())
    }

    /// The indices along each dimension of the flat index `i`.
    fn position(&self, mut i: usize) -> Vec<usize> {
        let mut position: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&n| {
                let at = i.checked_rem(n).unwrap_or(0);
                i = i.checked_div(n).unwrap_or(0);
                at
            })
            .collect();
        position.reverse();
        position
    }
}

/// Whether an element has an exponent of all ones. No early exit within the slice, so that it vectorizes.
fn any_not_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.fold(false, |bad, w| bad | (u32::from_le_bytes(*w) & 0x7f80_0000 == 0x7f80_0000))
        }
        Dtype::F16 | Dtype::BF16 => {
            let exponent = if dtype == Dtype::F16 { 0x7c00 } else { 0x7f80 };
            let words = bytes.as_chunks::<2>().0.iter();
            words.fold(false, |bad, w| bad | (u16::from_le_bytes(*w) & exponent == exponent))
        }
        // Also what is too large for f32.
        Dtype::F64 => {
            let words = bytes.as_chunks::<8>().0.iter();
            words.fold(false, |bad, w| bad | !(f64::from_le_bytes(*w) as f32).is_finite())
        }
    }
}

/// Decodes as many elements as both sides hold.
fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (o, w) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*w);
            }
        }
        Dtype::F64 => {
            for (o, w) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *o = f64::from_le_bytes(*w) as f32;
            }
        }
        Dtype::BF16 => {
            for (o, w) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*w)) << 16);
            }
        }
        Dtype::F16 => {
            // Through an aligned buffer, for the vector conversion of the processor.
            let mut halves = [f16::ZERO; 512];
            for (out, bytes) in out.chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                for (h, w) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *h = f16::from_le_bytes(*w);
                }
                let n = out.len().min(bytes.len() / 2);
                halves[..n].convert_to_f32_slice(&mut out[..n]);
            }
        }
    }
}

/// `values` as stored in `dtype`, rounded to the nearest, ties to even.
pub fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> TensorView<'a> {
        TensorView { name: "w", dtype, shape, data }
    }

    #[test]
    fn every_half_decodes_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        // One byte in front, so that the data is not aligned.
        let shifted: Vec<u8> = std::iter::once(0).chain(bytes).collect();
        for dtype in [Dtype::F16, Dtype::BF16] {
            let shape = [256, 256];
            let values = view(dtype, &shape, &shifted[1..]).to_f32();
            for (bits, v) in (0..=u16::MAX).zip(values) {
                let expected = match dtype {
                    Dtype::F16 => half::f16::from_bits(bits).to_f32(),
                    _ => half::bf16::from_bits(bits).to_f32(),
                };
                assert!(v.to_bits() == expected.to_bits() || (v.is_nan() && expected.is_nan()), "{bits:x}");
            }
        }
    }

    #[test]
    fn encoding_rounds_to_the_nearest_and_decodes_to_itself() {
        let values = [0.0, -0.0, 1.0, -2.5, 1.0 + 1.0 / 1024.0, 6.1e-5, 65504.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let bytes = encode(dtype, &values);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            let shape = [values.len()];
            let once = view(dtype, &shape, &bytes).to_f32();
            assert_eq!(encode(dtype, &once), bytes);
            for (v, o) in values.iter().zip(once) {
                assert!((v - o).abs() <= v.abs() / 256.0, "{dtype}: {v} became {o}");
            }
        }
        // Halfway between two halves: the even one.
        assert_eq!(encode(Dtype::F16, &[1.0 + 1.0 / 2048.0]), f16::ONE.to_le_bytes());
    }

    #[test]
    fn doubles_are_narrowed_to_the_nearest_single() {
        let values = [0.1_f64, -1.0 / 3.0, 1e-46, f64::from(f32::MAX), 1.0 + f64::EPSILON];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = [values.len()];
        let read = view(Dtype::F64, &shape, &data);
        assert_eq!(read.to_f32(), values.map(|v| v as f32));
        assert!(read.check_finite().is_ok());
    }

    #[test]
    fn rows_are_cut_rightly() {
        let data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let t = view(Dtype::F32, &[2, 3], &data);
        let mut row = [0.0; 3];
        assert!(t.row_f32(1, &mut row));
        assert_eq!(row, [3.0, 4.0, 5.0]);
        assert!(!t.row_f32(2, &mut row));
        assert!(!t.row_f32(usize::MAX, &mut row));
        assert!(!t.row_f32(0, &mut row[..2]));
        assert_eq!(view(Dtype::F32, &[0, 3], &[]).row_len(), 0);
    }

    #[test]
    fn the_first_bad_weight_is_named() {
        for (dtype, bad) in [
            (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
            (Dtype::F16, f16::INFINITY.to_le_bytes().to_vec()),
            (Dtype::BF16, half::bf16::NEG_INFINITY.to_le_bytes().to_vec()),
            (Dtype::F64, f64::NAN.to_le_bytes().to_vec()),
            (Dtype::F64, 1e39_f64.to_le_bytes().to_vec()),
        ] {
            let shape = [100, 300];
            let mut data = vec![0x11; 100 * 300 * dtype.size()];
            assert!(view(dtype, &shape, &data).check_finite().is_ok());
            for (r, c) in [(77, 123), (99, 299)] {
                let at = (r * 300 + c) * dtype.size();
                data[at..at + dtype.size()].copy_from_slice(&bad);
            }
            match view(dtype, &shape, &data).check_finite() {
                Err(ModelError::NotFinite { position, .. }) => assert_eq!(position, [77, 123]),
                other => panic!("{other:?}"),
            }
        }
    }
}
