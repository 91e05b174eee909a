//! SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774) on a panel of weights.
//!
//! The columns go from left to right in blocks of 16, which `sparsegpt_block` prunes: it chooses the mask of every group from the
//! weights as they are by then, and makes the errors e of the pruned ones. The columns behind get `-e U[block, ..]` by products, in two
//! levels, so that the whole panel is read and written once in 128 columns and not once in 16.

use super::{
    Activation, InverseFactor, Kernels, MaskBuffer, Rows, Stream, cut, f32_bytes, shape_error, size,
};
use crate::gpu::{GpuError, Work};
use crate::mask::Pattern;

/// Columns of a block: those that one invocation holds. Chunks of U start at multiples of it.
const INNER: usize = 16;
/// Columns whose errors go to all later columns in one product; a multiple of [`INNER`].
const OUTER: usize = 128;

const WG: u32 = 64;

/// A panel being pruned.
struct Pruning<'a> {
    w: Rows<'a>,
    factor: &'a InverseFactor,
    pattern: Pattern,
    mask: &'a MaskBuffer,
    first_row: usize,
}

impl Kernels<'_> {
    /// Errors of a block of columns for [`Kernels::sparsegpt`], for panels of up to `rows` rows of `n` columns.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn sparsegpt_scratch(&self, rows: usize, n: usize) -> Result<Activation, GpuError> {
        Activation::new(self.gpu(), "scratch:sparsegpt errors", rows, OUTER.min(n) / 4)
    }

    /// Bytes of [`Kernels::sparsegpt_scratch`].
    pub fn sparsegpt_scratch_bytes(rows: usize, n: usize) -> u64 {
        f32_bytes(rows, OUTER.min(n))
    }

    /// Prunes the panel `w` `[rows, n]` f32, which holds rows of a projection from `first_row` on, to `pattern`: the mask of
    /// these rows goes into `mask`, and `w` becomes the updated weights, 0 where pruned and in the columns of dead inputs. `factor` belongs to the
    /// Gram matrix of the projection's inputs.
    ///
    /// Of every group those with the greatest `w_j^2 / U_jj^2` are kept, ties to the lower index; the error
    /// `e = w_j / U_jj` of each other one moves the columns k > j of its row by `-e U_jk`. Rows do not depend on each other.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn sparsegpt(
        &self,
        c: Stream<'_, '_>,
        w: Rows<'_>,
        factor: &InverseFactor,
        pattern: Pattern,
        (mask, first_row): (&MaskBuffer, usize),
        errors: &Activation,
    ) -> Result<(), GpuError> {
        let n = factor.n();
        let (rows, cols) = mask.shape();
        if 4 * w.t4 != n || cols != n || first_row + w.count > rows || !n.is_multiple_of(pattern.m()) {
            return Err(shape_error(
                "sparsegpt",
                format!(
                    "[{}, {}] at row {first_row} of a mask [{rows}, {cols}], {pattern}, U of {n} rows",
                    w.count,
                    4 * w.t4
                ),
            ));
        }
        let pruning = Pruning { w, factor, pattern, mask, first_row };
        let errors = errors.rows(0, w.count, OUTER.min(n) / 4)?;
        for outer in cut::pieces(0..n, OUTER) {
            let (first, end) = (outer.start, outer.end);
            for inner in cut::pieces(outer, INNER) {
                let (at, to) = (inner.start, inner.end);
                let e = errors.columns((at - first) / 4, (to - at) / 4);
                self.sparsegpt_block(c, &pruning, at, e)?;
                self.pass_on(c, &pruning, at, e, to..end)?;
            }
            let e = errors.columns(0, (end - first) / 4);
            self.pass_on(c, &pruning, first, e, end..n)?;
        }
        Ok(())
    }

    /// Prunes the columns from `first` on, as many as `errors` has.
    fn sparsegpt_block(
        &self,
        c: Stream<'_, '_>,
        p: &Pruning<'_>,
        first: usize,
        errors: Rows<'_>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "sparsegpt_block";
        let (n, m) = (p.pattern.n() as u32, p.pattern.m() as u32);
        let pipeline = self.pipeline(NAME, vec![("WG", WG), ("N", n), ("M", m)])?;
        let Some(chunk) = p.factor.u.chunks.iter().find(|k| k.range().contains(&first)) else {
            return Err(shape_error(NAME, format!("column {first} of {}", p.factor.n())));
        };
        let (w, stride, words) = (p.w, p.factor.n() / 4, p.mask.words_per_row());
        let cols = 4 * errors.t4;
        let params = [
            size(NAME, w.count)?,
            size(NAME, cols)?,
            size(NAME, w.at + w.first * w.stride + first / 4)?,
            size(NAME, w.stride)?,
            size(NAME, (first - chunk.first) * stride + first / 4)?,
            size(NAME, stride)?,
            size(NAME, errors.at + errors.first * errors.stride)?,
            size(NAME, errors.stride)?,
            size(NAME, first / 4)?,
            size(NAME, p.first_row * words + first / 32)?,
            size(NAME, words)?,
            size(NAME, first % 32)?,
        ];
        let values = (w.count * cols) as f64;
        let work = Work { flops: (cols as f64 + 8.0) * values, bytes: 12.0 * values };
        let bind = [
            chunk.buffer.all(),
            p.factor.diagonal.all(),
            w.buffer.all(),
            errors.buffer.all(),
            p.mask.buffer.all(),
        ];
        c.dispatch(&pipeline, &params, &bind, self.fold(w.count, WG), work)
    }

    /// Adds `errors U[first.., to]` to the columns `to`; the errors are negated already.
    fn pass_on(
        &self,
        c: Stream<'_, '_>,
        p: &Pruning<'_>,
        first: usize,
        errors: Rows<'_>,
        to: std::ops::Range<usize>,
    ) -> Result<(), GpuError> {
        if to.is_empty() {
            return Ok(());
        }
        let u = &p.factor.u;
        let y = p.w.columns(to.start / 4, to.len() / 4);
        for chunk in &u.chunks {
            let here = cut::overlap(&chunk.range(), &(first..first + 4 * errors.t4));
            if !here.is_empty() {
                let a = errors.columns((here.start - first) / 4, here.len() / 4);
                let x = u.rows(chunk, here.start - chunk.first, here.len()).columns(y.at - p.w.at, y.t4);
                self.product_f32(c, a, x, y, true)?;
            }
        }
        Ok(())
    }
}
