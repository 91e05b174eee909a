//! One-shot masks on the device: the N highest scores of every group of weights.

use super::matmul::weight_def;
use super::{Kernels, MaskBuffer, Stream, Weight, shape_error, size};
use crate::gpu::{Buffer, Gpu, GpuError, Work};
use crate::mask::Pattern;

/// How the weights of a projection are scored; h `[cols]` f32 holds the squared norms of the inputs, which
/// [`Kernels::diagonal`] takes from a Gram matrix.
#[derive(Clone, Copy)]
pub enum Score<'a> {
    /// `|w|`.
    Magnitude,
    /// `|w| sqrt(h_j)` (Wanda: Sun et al. 2023, arXiv 2306.11695); of h.
    Wanda(&'a Buffer),
    /// `(|w| / sum_j |w_rj| + |w| / sum_r |w_rj|) h_j^(1/4)` (RIA: Zhang et al., ICLR 2024, a = 1/2, without its channel
    /// permutation); of h and the sums that [`Kernels::abs_sums`] has made of the same weight.
    Ria(&'a Buffer, &'a AbsSums),
}

/// Row and column sums of the sizes of a weight.
pub struct AbsSums {
    /// `[rows]` f32.
    pub rows: Buffer,
    /// `[cols]` f32, padded to a multiple of four.
    pub cols: Buffer,
}

impl AbsSums {
    /// Room for the sums of any weight of at most `rows` x `cols`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(gpu: &Gpu, rows: usize, cols: usize) -> Result<Self, GpuError> {
        Ok(Self {
            rows: gpu.alloc("scratch:row sums", 4 * rows as u64)?,
            cols: gpu.alloc("scratch:column sums", 4 * cols as u64)?,
        })
    }

    /// Bytes on the device.
    pub fn device_bytes(rows: usize, cols: usize) -> u64 {
        4 * (rows.next_multiple_of(4) + cols.next_multiple_of(4)) as u64
    }

    fn fits(&self, weight: &Weight) -> bool {
        self.rows.bytes() >= 4 * weight.rows() as u64 && self.cols.bytes() >= 16 * weight.k4() as u64
    }
}

/// Invocations of a workgroup, one mask word each.
const WG: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ScoreParams {
    rows: u32,
    cols: u32,
    k4: u32,
    words: u32,
    row: u32,
    pad: [u32; 3],
}

impl Kernels<'_> {
    /// Row and column sums of `|W|` into `sums`.
    ///
    /// # Errors
    /// Too little room in `sums`, or what the device reports.
    pub fn abs_sums(&self, c: Stream<'_, '_>, weight: &Weight, sums: &AbsSums) -> Result<(), GpuError> {
        if !sums.fits(weight) {
            let message = format!("no room for the sums of {} x {}", weight.rows(), weight.cols());
            return Err(shape_error("abs_sums", message));
        }
        for chunk in &weight.chunks {
            self.abs_sum_rows(c, weight, chunk, sums)?;
            self.abs_sum_cols(c, weight, chunk, sums)?;
        }
        Ok(())
    }

    fn abs_sum_rows(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        chunk: &super::tensor::Chunk,
        sums: &AbsSums,
    ) -> Result<(), GpuError> {
        const NAME: &str = "abs_sum_rows";
        let defs = vec![weight_def(weight.dtype()), ("LANES", self.preset().lanes)];
        let pipeline = self.pipeline(NAME, defs)?;
        let params = [size(NAME, chunk.rows)?, size(NAME, weight.k4())?, size(NAME, chunk.first)?, 0];
        let bind = [chunk.buffer.all(), sums.rows.all()];
        c.dispatch(&pipeline, &params, &bind, self.fold(chunk.rows, 1), read_once(weight, chunk.rows))
    }

    fn abs_sum_cols(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        chunk: &super::tensor::Chunk,
        sums: &AbsSums,
    ) -> Result<(), GpuError> {
        const NAME: &str = "abs_sum_cols";
        let (lanes, slices) = self.preset().reduce;
        let mut defs = vec![weight_def(weight.dtype())];
        defs.extend(super::elementwise::sliced_defs(lanes, slices));
        let pipeline = self.pipeline(NAME, defs)?;
        let params = [size(NAME, chunk.rows)?, size(NAME, weight.k4())?, u32::from(chunk.first > 0), 0];
        let bind = [chunk.buffer.all(), sums.cols.all()];
        let grid = [size(NAME, weight.k4().div_ceil(lanes as usize))?, 1, 1];
        c.dispatch(&pipeline, &params, &bind, grid, read_once(weight, chunk.rows))
    }

    /// The mask that keeps the N highest scores of every group of M into `mask` `[rows, cols]`, ties to the lower index, as
    /// [`crate::mask::BitMask::top_n`] does. For magnitudes it is the same mask bit for bit; the other scores are
    /// computed in f32, and where two of a group are equal but for their roundings either may be kept.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn score_mask(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        score: Score<'_>,
        pattern: Pattern,
        mask: &MaskBuffer,
    ) -> Result<(), GpuError> {
        const NAME: &str = "score_mask";
        let (rows, cols) = (weight.rows(), weight.cols());
        let (code, norms, sums) = match score {
            Score::Magnitude => (0, None, None),
            Score::Wanda(h) => (1, Some(h), None),
            Score::Ria(h, sums) => (2, Some(h), Some(sums)),
        };
        let fits = mask.shape() == (rows, cols)
            && cols.is_multiple_of(pattern.m())
            && norms.is_none_or(|h| h.bytes() >= 16 * weight.k4() as u64)
            && sums.is_none_or(|s| s.fits(weight));
        if !fits {
            let message = format!("weight {rows} x {cols}, mask {:?}, {pattern}", mask.shape());
            return Err(shape_error(NAME, message));
        }
        let (n, m) = (size(NAME, pattern.n())?, size(NAME, pattern.m())?);
        let defs = vec![weight_def(weight.dtype()), ("SCORE", code), ("WG", WG), ("N", n), ("M", m)];
        let pipeline = self.pipeline(NAME, defs)?;
        let words = mask.words_per_row();
        for chunk in &weight.chunks {
            let params = ScoreParams {
                rows: size(NAME, chunk.rows)?,
                cols: size(NAME, cols)?,
                k4: size(NAME, weight.k4())?,
                words: size(NAME, words)?,
                row: size(NAME, chunk.first)?,
                pad: [0; 3],
            };
            let mut bind = vec![chunk.buffer.all(), mask.buffer.all()];
            bind.extend(norms.map(Buffer::all));
            bind.extend(sums.into_iter().flat_map(|s| [s.rows.all(), s.cols.all()]));
            let grid = self.fold(chunk.rows * words, WG);
            c.dispatch(&pipeline, &params, &bind, grid, read_once(weight, chunk.rows))?;
        }
        Ok(())
    }
}

/// Some rows of a weight read once, a few operations for each element.
fn read_once(weight: &Weight, rows: usize) -> Work {
    let values = 4.0 * (rows * weight.k4()) as f64;
    Work { flops: 8.0 * values, bytes: values * weight.dtype().size() as f64 }
}
