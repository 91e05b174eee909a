//! The Cholesky factor that SparseGPT needs of a damped Gram matrix, without an inverse.
//!
//! SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774) works with the upper triangular U of `inverse(H + lambda I) = U^T U`.
//! Factoring from the last row up, `H + lambda I = R R^T` with R upper triangular, `U = R^-1`. R itself does: the columns that are
//! pruned together see U in their own block only, where `U_II = R_II^-1`, and what they changed reaches later columns through R
//! ([`Kernels::sparsegpt`]). So the inverse of the triangle, as much work as the factor, is never made. One sweep over blocks of rows
//! I, the last one first; J are all rows above:
//!
//! 1. `factor_block`: `H_II = R_II R_II^T`, and `D = R_II^-1` in its place
//! 2. `R_JI = H_JI D^T`, then `H_JJ -= R_JI R_JI^T` in the upper triangle
//!
//! Everything happens in place in the upper triangle; of the lower one, what the products of step 2 cover is written, too, and becomes
//! zero in step 1. All but that step are products.

use std::ops::Range;

use super::tensor::Chunk;
use super::{Activation, Kernels, Rows, Square, Stream, cut, f32_bytes, shape_error, size};
use crate::gpu::{Buffer, Gpu, GpuError, Work};

/// A damping of 0 that does not suffice is followed by this one.
const LEAST_DAMP: f64 = 1e-4;
/// Damping beyond this would leave little of the matrix: lambda is then as large as ten times its mean diagonal element.
const MOST_DAMP: f64 = 10.0;

/// The factor of one matrix, and what it takes to make it.
pub struct GramFactor {
    /// `[n, n]`: blocks U_II on the diagonal, -R right of them, zeros below.
    pub(super) parts: Square,
    /// Diagonal of H `[n]`, undamped: a zero marks a dead input.
    pub(super) diagonal: Buffer,
    /// Rows of a block and of all its products.
    block: usize,
    /// Two of `[block, n]`, one also used as `[n, block]`.
    panels: [Activation; 2],
    /// D `[block, block]`.
    inverse: Activation,
    status: Buffer,
}

/// How a factorisation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factored {
    /// The factor is there.
    Done,
    /// The pivot of this row was not positive or not finite; what is in the buffers is of no use.
    NotPositive {
        /// The first such row, counted from the top; rows are walked from the last one up.
        row: usize,
    },
}

impl GramFactor {
    /// Buffers for matrices `[n, n]`, n a multiple of 4.
    ///
    /// # Errors
    /// When the device has no room, or does not bind 16 rows.
    pub fn new(gpu: &Gpu, label: &str, n: usize) -> Result<Self, GpuError> {
        let parts = Square::new(gpu, label, n)?;
        let block = cut::factor_rows(gpu.limits(), n);
        let panel = || Activation::new(gpu, "scratch:factor panel", block, n / 4);
        Ok(Self {
            parts,
            diagonal: gpu.alloc("scratch:factor diagonal", f32_bytes(1, n))?,
            block,
            panels: [panel()?, panel()?],
            inverse: Activation::new(gpu, "scratch:factor block", block, block / 4)?,
            status: gpu.alloc("scratch:factor status", 16)?,
        })
    }

    /// Bytes of [`GramFactor::new`] on the device.
    pub fn device_bytes(gpu: &Gpu, n: usize) -> u64 {
        let block = cut::factor_rows(gpu.limits(), n);
        Square::device_bytes(n) + f32_bytes(1 + 2 * block, n) + f32_bytes(block, block) + 16
    }

    /// Rows, and columns.
    pub fn n(&self) -> usize {
        self.parts.n()
    }

    /// `[n, n]`, zeros below the diagonal: in the square of each of [`GramFactor::blocks`] the same square of U, right of them -R.
    pub fn parts(&self) -> &Square {
        &self.parts
    }

    /// U in the square of one of [`GramFactor::blocks`].
    pub(super) fn square(&self, block: &Range<usize>) -> Result<Rows<'_>, GpuError> {
        let Some(chunk) = self.parts.chunks.iter().find(|chunk| chunk.range().contains(&block.start)) else {
            return Err(shape_error("factor", format!("row {} of {}", block.start, self.n())));
        };
        let rows = self.parts.rows(chunk, block.start - chunk.first, block.len());
        Ok(rows.columns(block.start / 4, block.len() / 4))
    }

    /// Rows that were factored together, from the first on: at most 64, in one row chunk.
    pub fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        self.parts.chunks.iter().flat_map(|chunk| cut::pieces(chunk.range(), self.block))
    }
}

/// Some rows of the matrix that lie in one chunk, factored together.
struct Block<'a> {
    chunk: &'a Chunk,
    first: usize,
    rows: usize,
}

impl Block<'_> {
    /// First row, counted from the chunk's start.
    fn local(&self) -> usize {
        self.first - self.chunk.first
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DampParams {
    rows: u32,
    stride: u32,
    first: u32,
    lambda: f32,
}

impl Kernels<'_> {
    /// The upper triangular R with `H + lambda I = R R^T`, `lambda = damp * mean of H's diagonal`, into `out` with its diagonal blocks
    /// inverted. `h` `[n, n]` is complete ([`Kernels::mirror`]) and stays as it is. Zeros on the diagonal (dead inputs) count as 1.
    ///
    /// Where rounding errors or the matrix leave a pivot that is not positive, damping is raised to ten times as much until it works.
    /// Returns the damping that did.
    ///
    /// # Errors
    /// [`GpuError::NotPositive`] when a damping of 10 is not enough or the diagonal is not finite; shapes that do not fit; what the
    /// device reports.
    pub fn factor(
        &self,
        c: Stream<'_, '_>,
        h: &Square,
        damp: f64,
        out: &GramFactor,
    ) -> Result<f64, GpuError> {
        let mut damp = damp;
        loop {
            let Factored::NotPositive { row } = self.try_factor(c, h, damp, out)? else {
                return Ok(damp);
            };
            let more = (10.0 * damp).max(LEAST_DAMP);
            // A little slack: repeated products by ten are rounded.
            if more > MOST_DAMP * 1.001 {
                return Err(GpuError::NotPositive { row, n: h.n(), damp });
            }
            damp = more;
        }
    }

    /// [`Kernels::factor`] with this damping only.
    ///
    /// # Errors
    /// [`GpuError::NotPositive`] when the diagonal is not finite; shapes that do not fit; what the device reports.
    pub fn try_factor(
        &self,
        c: Stream<'_, '_>,
        h: &Square,
        damp: f64,
        out: &GramFactor,
    ) -> Result<Factored, GpuError> {
        let n = h.n();
        if out.n() != n || !damp.is_finite() || damp < 0.0 {
            return Err(shape_error("factor", format!("{n} rows into {}, damping {damp}", out.n())));
        }
        self.diagonal(c, h, &out.diagonal)?;
        let diagonal: Vec<f32> = c.read(&out.diagonal, 0, n)?;
        if let Some(row) = diagonal.iter().position(|d| !d.is_finite()) {
            return Err(GpuError::NotPositive { row, n, damp });
        }
        let alive = |d: f32| if d == 0.0 { 1.0 } else { f64::from(d) };
        let mean = diagonal.iter().map(|&d| alive(d)).sum::<f64>() / n as f64;
        out.parts.copy_from(c, h)?;
        self.damp(c, &out.parts, (damp * mean) as f32)?;
        c.write(&out.status, 0, &[0u32; 4])?;
        for chunk in out.parts.chunks.iter().rev() {
            let blocks: Vec<_> = cut::pieces(chunk.range(), out.block).collect();
            for rows in blocks.into_iter().rev() {
                let block = Block { chunk, first: rows.start, rows: rows.len() };
                self.factor_block(c, out, &block)?;
                self.eliminate(c, out, &block)?;
            }
        }
        let status = c.read::<u32>(&out.status, 0, 1)?;
        Ok(match status.first() {
            Some(&failed) if failed > 0 => Factored::NotPositive { row: failed as usize - 1 },
            _ => Factored::Done,
        })
    }

    /// Adds lambda to the diagonal.
    fn damp(&self, c: Stream<'_, '_>, h: &Square, lambda: f32) -> Result<(), GpuError> {
        const NAME: &str = "damp";
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        for chunk in &h.chunks {
            let params = DampParams {
                rows: size(NAME, chunk.rows)?,
                stride: size(NAME, h.n())?,
                first: size(NAME, chunk.first)?,
                lambda,
            };
            let work = Work { flops: 0.0, bytes: 8.0 * chunk.rows as f64 };
            c.dispatch(&pipeline, &params, &[chunk.buffer.all()], self.fold(chunk.rows, lanes), work)?;
        }
        Ok(())
    }

    /// Step 1: D in the place of the diagonal block, zeros on its left; and D in `f.inverse`.
    fn factor_block(&self, c: Stream<'_, '_>, f: &GramFactor, b: &Block<'_>) -> Result<(), GpuError> {
        const NAME: &str = "factor_block";
        let pipeline = self.pipeline(NAME, vec![("LANES", self.preset().lanes)])?;
        let stride = f.n() / 4;
        let params = [
            size(NAME, b.rows)?,
            size(NAME, b.local() * stride + b.first / 4)?,
            size(NAME, stride)?,
            size(NAME, b.first)?,
            size(NAME, f.block / 4)?,
            size(NAME, b.first / 4)?,
            0,
            0,
        ];
        let values = (b.rows * b.rows) as f64;
        let bytes = 12.0 * values + 4.0 * (b.rows * b.first) as f64;
        let work = Work { flops: values * b.rows as f64, bytes };
        let bind = [b.chunk.buffer.all(), f.inverse.buffer().all(), f.status.all()];
        c.dispatch(&pipeline, &params, &bind, [1, 1, 1], work)
    }

    /// D of a block, as an operand.
    fn inverse_of<'a>(f: &'a GramFactor, b: &Block<'_>) -> Result<Rows<'a>, GpuError> {
        Ok(f.inverse.rows(0, b.rows, f.block / 4)?.columns(0, b.rows / 4))
    }

    /// Step 2. R_JI is written negated, as the product needs it.
    fn eliminate(&self, c: Stream<'_, '_>, f: &GramFactor, b: &Block<'_>) -> Result<(), GpuError> {
        let n4 = f.n() / 4;
        let (above, cols4) = (b.first, b.rows / 4);
        if above == 0 {
            return Ok(());
        }
        // Products cannot read from the buffer they write to, so R_JI is in the panels, as it is and transposed.
        let [first, second] = &f.panels;
        let given = first.rows(0, b.rows, n4)?.columns(0, above / 4);
        let solved = second.rows(0, b.rows, n4)?.columns(0, above / 4);
        let parts = || {
            let chunks = f.parts.chunks.iter().filter(|chunk| chunk.first < above);
            chunks.map(|chunk| (chunk, chunk.rows.min(above - chunk.first)))
        };
        for (chunk, rows) in parts() {
            let from = f.parts.rows(chunk, 0, rows).columns(above / 4, cols4);
            self.transpose(c, from, given, chunk.first / 4, None, 1.0)?;
        }
        self.product_f32(c, Self::inverse_of(f, b)?, given, solved, false)?;
        let negated = first.rows(0, above, cols4)?;
        self.transpose(c, solved, negated, 0, None, -1.0)?;
        let strip = self.strip(f.n());
        for (chunk, rows) in parts() {
            let from = solved.columns(chunk.first / 4, rows / 4);
            self.transpose(c, from, f.parts.rows(chunk, 0, rows), above / 4, None, -1.0)?;
            for strip in cut::pieces(chunk.first..chunk.first + rows, strip) {
                let (count, row) = (strip.len(), strip.start);
                let a = Rows { first: row, count, ..negated };
                let x = solved.columns(row / 4, (above - row) / 4);
                let y = f.parts.rows(chunk, row - chunk.first, count).columns(row / 4, x.t4);
                self.product_f32(c, a, x, y, true)?;
            }
        }
        Ok(())
    }

    /// Rows of a triangle that are multiplied as one rectangle.
    fn strip(&self, n: usize) -> usize {
        cut::triangle_rows(n, 4, self.preset().row_unit())
    }
}
