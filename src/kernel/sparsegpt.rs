//! SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774) on a panel of weights.
//!
//! Every column j that is pruned moves the columns k behind it by `-e_j U_jk`, with `inverse(H + lambda I) = U^T U`. Here
//! `H + lambda I = R R^T`, `U = R^-1` ([`GramFactor`]), and only the diagonal blocks of U are at hand. They suffice: with d the change
//! that a weight has had in all, `d_I = (w' - w)_I`, the least squares that those moves solve say for a block of columns I
//!
//! ```text
//! w'_I before it is pruned = w_I - sum over the blocks J before it of d_J R_JI U_II
//! ```
//!
//! Within a block the columns go from left to right in pieces of 16, which `sparsegpt_block` prunes: it chooses the mask of every group
//! from the weights as they are by then, and makes the errors e of the pruned ones; the columns behind get `-e U[piece, ..]` by
//! products. Behind a block `d_I = -(sum of d_J R_JI + e) U_II`, which goes on to the columns behind in two levels, so that the whole panel
//! is read and written once in 128 columns and not once in 64.

use std::ops::Range;

use super::{Activation, GramFactor, Kernels, MaskBuffer, Rows, Stream, cut, f32_bytes, shape_error, size};
use crate::gpu::{Gpu, GpuError, Work};
use crate::mask::Pattern;

/// Columns of a piece: those that one invocation holds. Chunks of the factor start at multiples of it.
const INNER: usize = 16;
/// Columns whose changes go to all later columns in one product.
const OUTER: usize = 128;

const WG: u32 = 64;

/// A panel to prune.
pub struct SparseGpt<'a> {
    /// `[rows, n]` f32, rows of a projection from `first_row` on: becomes the updated weights, 0 where pruned and in the columns of dead
    /// inputs.
    pub weights: Rows<'a>,
    /// Room for `[rows, n]` f32: what the changes so far bring to every column, `-sum of d_J R_J`.
    pub arrived: Rows<'a>,
    /// Of the Gram matrix of the projection's inputs.
    pub factor: &'a GramFactor,
    /// What is kept.
    pub pattern: Pattern,
    /// Mask of the whole projection, of which the panel's rows are written.
    pub mask: &'a MaskBuffer,
    /// The panel's first row.
    pub first_row: usize,
}

/// Errors of the columns of a block, and changes of some blocks.
pub struct SparseGptScratch {
    errors: Activation,
    changes: Activation,
}

impl SparseGptScratch {
    /// For panels of up to `rows` rows of `n` columns.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, rows: usize, n: usize) -> Result<Self, GpuError> {
        let room = |name: &str, columns: usize| Activation::new(gpu, name, rows, columns.min(n) / 4);
        Ok(Self {
            errors: room("scratch:sparsegpt errors", cut::FACTOR)?,
            changes: room("scratch:sparsegpt changes", OUTER)?,
        })
    }

    /// Bytes of [`SparseGptScratch::new`].
    pub fn bytes(rows: usize, n: usize) -> u64 {
        f32_bytes(rows, cut::FACTOR.min(n)) + f32_bytes(rows, OUTER.min(n))
    }
}

impl SparseGpt<'_> {
    /// The columns in runs of whole blocks of the factor, at most [`OUTER`] together.
    fn outers(&self) -> Vec<Vec<Range<usize>>> {
        let mut out: Vec<Vec<Range<usize>>> = Vec::new();
        for block in self.factor.blocks() {
            match out.last_mut() {
                Some(run) if run.first().is_some_and(|first| block.end - first.start <= OUTER) => {
                    run.push(block);
                }
                _ => out.push(vec![block]),
            }
        }
        out
    }
}

impl Kernels<'_> {
    /// Prunes a panel: of every group those with the greatest `w_j^2 / U_jj^2` are kept, ties to the lower index; the error
    /// `e = w_j / U_jj` of each other one moves the columns k > j of its row by `-e U_jk`. Rows do not depend on each other.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn sparsegpt(
        &self,
        c: Stream<'_, '_>,
        job: &SparseGpt<'_>,
        scratch: &SparseGptScratch,
    ) -> Result<(), GpuError> {
        let (n, w, pattern) = (job.factor.n(), job.weights, job.pattern);
        let (rows, cols) = job.mask.shape();
        let fits = 4 * w.t4 == n && job.arrived.t4 == w.t4 && job.arrived.count == w.count;
        if !fits || cols != n || job.first_row + w.count > rows || !n.is_multiple_of(pattern.m()) {
            return Err(shape_error(
                "sparsegpt",
                format!(
                    "[{}, {}] at row {} of a mask [{rows}, {cols}], {pattern}, a factor of {n} rows",
                    w.count,
                    4 * w.t4,
                    job.first_row
                ),
            ));
        }
        let changes = scratch.changes.rows(0, w.count, OUTER.min(n) / 4)?;
        for run in job.outers() {
            let Some((first, last)) = run.first().zip(run.last()) else {
                continue;
            };
            let outer = first.start..last.end;
            for block in run {
                let at = (block.start - outer.start) / 4;
                let changed = changes.columns(at, block.len() / 4);
                self.prune_block(c, job, scratch, &block, changed)?;
                self.bring(c, job, &block, changed, block.end..outer.end)?;
            }
            let changed = changes.columns(0, outer.len() / 4);
            self.bring(c, job, &outer, changed, outer.end..n)?;
        }
        Ok(())
    }

    /// Prunes a block of columns; their changes go into `changed`.
    fn prune_block(
        &self,
        c: Stream<'_, '_>,
        job: &SparseGpt<'_>,
        scratch: &SparseGptScratch,
        block: &Range<usize>,
        changed: Rows<'_>,
    ) -> Result<(), GpuError> {
        let width4 = cut::FACTOR.min(job.factor.n()) / 4;
        let errors = scratch.errors.rows(0, job.weights.count, width4)?.columns(0, block.len() / 4);
        let [weights, arrived] =
            [job.weights, job.arrived].map(|rows| rows.columns(block.start / 4, block.len() / 4));
        let u = job.factor.square(block)?;
        if block.start > 0 {
            self.product_f32(c, arrived, u, weights, true)?;
            self.product_f32(c, arrived, u, changed, false)?;
        }
        for piece in cut::pieces(block.clone(), INNER) {
            let (at, to) = (piece.start - block.start, piece.end - block.start);
            let e = errors.columns(at / 4, piece.len() / 4);
            self.sparsegpt_block(c, job, piece.start, e)?;
            if piece.end < block.end {
                let behind = (block.end - piece.end) / 4;
                let x = Rows { first: u.first + at, count: to - at, ..u }.columns(to / 4, behind);
                self.product_f32(c, e, x, weights.columns(to / 4, behind), true)?;
            }
        }
        self.product_f32(c, errors, u, changed, block.start > 0)
    }

    /// Adds what the changes of the columns `from` mean for the columns `to`.
    fn bring(
        &self,
        c: Stream<'_, '_>,
        job: &SparseGpt<'_>,
        from: &Range<usize>,
        changed: Rows<'_>,
        to: Range<usize>,
    ) -> Result<(), GpuError> {
        if to.is_empty() {
            return Ok(());
        }
        let y = job.arrived.columns(to.start / 4, to.len() / 4);
        for chunk in &job.factor.parts.chunks {
            let here = cut::overlap(&chunk.range(), from);
            if !here.is_empty() {
                let a = changed.columns((here.start - from.start) / 4, here.len() / 4);
                let x = job.factor.parts.rows(chunk, here.start - chunk.first, here.len());
                // Nothing has arrived from before the first column.
                self.product_f32(c, a, x.columns(to.start / 4, to.len() / 4), y, here.start > 0)?;
            }
        }
        Ok(())
    }

    /// Prunes the columns from `first` on, as many as `errors` has.
    fn sparsegpt_block(
        &self,
        c: Stream<'_, '_>,
        job: &SparseGpt<'_>,
        first: usize,
        errors: Rows<'_>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "sparsegpt_block";
        let (n, m) = (job.pattern.n() as u32, job.pattern.m() as u32);
        let pipeline = self.pipeline(NAME, vec![("WG", WG), ("N", n), ("M", m)])?;
        let Some(chunk) = job.factor.parts.chunks.iter().find(|k| k.range().contains(&first)) else {
            return Err(shape_error(NAME, format!("column {first} of {}", job.factor.n())));
        };
        let (w, stride, words) = (job.weights, job.factor.n() / 4, job.mask.words_per_row());
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
            size(NAME, job.first_row * words + first / 32)?,
            size(NAME, words)?,
            size(NAME, first % 32)?,
        ];
        let values = (w.count * cols) as f64;
        let work = Work { flops: (cols as f64 + 8.0) * values, bytes: 12.0 * values };
        let bind = [
            chunk.buffer.all(),
            job.factor.diagonal.all(),
            w.buffer.all(),
            errors.buffer.all(),
            job.mask.buffer.all(),
        ];
        c.dispatch(&pipeline, &params, &bind, self.fold(w.count, WG), work)
    }
}
