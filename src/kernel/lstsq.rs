//! Least-squares repair: the kept weights that lose least, by conjugate gradients on all rows of a panel at once.
//!
//! A row w with its pruned part z (w where pruned, 0 elsewhere) and its kept columns S is given the change d of its kept
//! weights that minimises `(z - d) H (z - d) + lambda |d|^2`, H the Gram matrix of the inputs: the solution of
//!
//! ```text
//! (H_SS + lambda I) d = (H z)_S        lambda = damping * mean of the diagonal of H
//! ```
//!
//! Every row has an S of its own, so a factorisation would have to be made per row. Conjugate gradients (Hestenes and Stiefel
//! 1952) need products only: with the mask as projector, all rows share one product of their directions with H per step. The
//! preconditioner is the diagonal of H + lambda I (Jacobi), since input norms differ by orders of magnitude.
//!
//! What is kept is c = z - d, the change of the whole row: then c H gives at once the true residual, `(c H + lambda c)_S`, and the
//! row's error, `c . c H`. When the steps end it is computed afresh, and if the rounding errors of the steps have let the true
//! residual drift away, the steps start once more from it.

use std::ops::Range;

use super::{Activation, Kernels, MaskBuffer, Part, Rows, Square, Stream, Weight, shape_error, size};
use crate::gpu::{Buffer, Gpu, GpuError, Work};

/// When the steps end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LstsqOptions {
    /// Of the mean of H's diagonal: pulls towards no change, and bounds the condition number.
    pub damping: f64,
    /// A row rests when its residual, in the norm of the preconditioner, is this share of the root of its damped error: that
    /// error is then within `tolerance^2 * k` of its minimum, k the condition number of the preconditioned matrix. f32 reaches
    /// 1e-5 where k is up to 1e4 and 1e-3 where it is 1e6.
    pub tolerance: f64,
    /// Products with H at the most, but for two or three that check.
    pub max_iterations: usize,
}

impl Default for LstsqOptions {
    /// On a small model pruned to 2:4, held-out perplexity hardly depends on a damping from 1e-4 to 1e-1 with 32 768 tokens of
    /// calibration; with 4 096 tokens the larger ones are better by 2 to 6 %. This tolerance leaves the worst row within 0.1 %
    /// of its minimum there.
    fn default() -> Self {
        Self { damping: 3e-2, tolerance: 1e-3, max_iterations: 200 }
    }
}

/// The repair of some rows of a weight.
pub struct Lstsq<'a> {
    /// Frozen weights `[all rows, n]`.
    pub weight: &'a Weight,
    /// Which are kept.
    pub mask: &'a MaskBuffer,
    /// The rows to repair.
    pub rows: Range<usize>,
    /// Gram matrix of the inputs `[n, n]`, both triangles.
    pub h: &'a Square,
    /// When the steps end.
    pub options: LstsqOptions,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq)]
pub struct LstsqReport {
    /// Steps made: products with H.
    pub iterations: usize,
    /// The true residual at the end in the terms of [`LstsqOptions::tolerance`], in the worst row.
    pub residual: f64,
    /// Squared output error of each row under the mask alone: z H z.
    pub before: Vec<f32>,
    /// The same with the repaired weights; never above `before`.
    pub after: Vec<f32>,
}

/// Device memory of [`Kernels::lstsq`], for panels of up to so many rows.
pub struct LstsqScratch {
    /// `[rows, n]`.
    pub residual: Activation,
    /// `[rows, n]`.
    pub direction: Activation,
    /// `[rows, n]`: a product with H.
    pub product: Activation,
    /// `[rows]` of four f32: squared size of the residual, damped error, error at the start, error at its last check.
    pub state: Buffer,
    /// `[n]`: one over the diagonal of H + lambda I.
    pub inverse: Buffer,
    rows: usize,
    n: usize,
}

impl LstsqScratch {
    /// Room for `rows` rows of `n` columns, n a multiple of 4.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, rows: usize, n: usize) -> Result<Self, GpuError> {
        let panel = |label| Activation::new(gpu, label, rows, n / 4);
        Ok(Self {
            residual: panel("scratch:residual")?,
            direction: panel("scratch:direction")?,
            product: panel("scratch:product with H")?,
            state: gpu.alloc("scratch:state of rows", 16 * rows as u64)?,
            inverse: gpu.alloc("scratch:inverse diagonal", 4 * n as u64)?,
            rows,
            n,
        })
    }

    /// Bytes on the device, without the panel of new weights.
    pub fn bytes(rows: usize, n: usize) -> u64 {
        let (rows, n) = (rows as u64, n as u64);
        12 * rows * n + 16 * rows + 4 * n
    }
}

/// One panel on its way: what both kernels need.
pub struct LstsqPanel<'a> {
    /// Which weights are kept.
    pub mask: &'a MaskBuffer,
    /// Row of the mask that the panel's first row is.
    pub first: usize,
    /// Added to the diagonal of H.
    pub lambda: f32,
    /// The changes c `[rows, n]`.
    pub change: Rows<'a>,
    /// The rest of the device memory.
    pub scratch: &'a LstsqScratch,
}

impl LstsqPanel<'_> {
    fn part<'b>(&self, of: &'b Activation) -> Result<Rows<'b>, GpuError> {
        of.rows(0, self.change.count, self.change.t4)
    }

    fn check(&self, kernel: &'static str) -> Result<(), GpuError> {
        let (rows, t4, s) = (self.change.count, self.change.t4, self.scratch);
        let fits = self.mask.cols == 4 * t4
            && self.first + rows <= self.mask.rows
            && (1..=s.rows).contains(&rows)
            && s.n == 4 * t4
            && self.change.stride == t4;
        if fits {
            return Ok(());
        }
        let message = format!(
            "{rows} rows of {} from row {} on, mask {:?}, scratch for {} of {}",
            4 * t4,
            self.first,
            self.mask.shape(),
            s.rows,
            s.n
        );
        Err(shape_error(kernel, message))
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ResidualParams {
    n: u32,
    k4: u32,
    words: u32,
    bit_row: u32,
    c_first: u32,
    start: u32,
    lambda: f32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct StepParams {
    n: u32,
    k4: u32,
    words: u32,
    bit_row: u32,
    c_first: u32,
    lambda: f32,
    tolerance2: f32,
    pad: u32,
}

/// Steps between two looks at the residuals, each of which waits for the device.
const CHECK: usize = 4;
/// Looks without a smaller residual than ever before in the worst row, after which the steps end. Residuals of conjugate
/// gradients rise and fall on their way down.
const STALLED: usize = 16;
/// Fresh starts from the true residual.
const RESTARTS: usize = 2;

/// What a read-back of the state says.
struct Look {
    /// Largest squared residual as a share of the damped error; of all rows, and of those that still move.
    worst: f64,
    moving: f64,
}

impl Kernels<'_> {
    /// Repairs the kept weights of `job.rows`; the new weights, 0 where pruned, go into `out` `[rows, n]` f32.
    ///
    /// # Errors
    /// Shapes that do not fit, a Gram matrix or weights that are not finite, or what the device reports.
    pub fn lstsq(
        &self,
        c: Stream<'_, '_>,
        job: &Lstsq<'_>,
        scratch: &LstsqScratch,
        out: Rows<'_>,
    ) -> Result<LstsqReport, GpuError> {
        const NAME: &str = "lstsq";
        let (rows, n) = (job.rows.len(), job.h.n());
        if job.weight.cols() != n || out.count != rows || scratch.n != n {
            let message = format!("{} columns for {n}, {rows} rows into {}", job.weight.cols(), out.count);
            return Err(shape_error(NAME, message));
        }
        let lambda = self.precondition(c, job.h, job.options.damping, scratch)?;
        let panel = LstsqPanel { mask: job.mask, first: job.rows.start, lambda, change: out, scratch };
        panel.check(NAME)?;
        self.spread(c, job.weight, Part::Pruned(job.mask), job.rows.clone(), out)?;
        let mut look = self.lstsq_check(c, job.h, &panel, true)?;
        let (tolerance2, mut iterations) = (job.options.tolerance.powi(2), 0);
        for _ in 0..=RESTARTS {
            let left = job.options.max_iterations - iterations;
            if look.worst <= tolerance2 || left == 0 {
                break;
            }
            iterations += self.lstsq_steps(c, job, &panel, left)?;
            let worst = look.worst;
            look = self.lstsq_check(c, job.h, &panel, false)?;
            // A fresh start that gained less than half has met the limit of f32.
            if look.worst > 0.25 * worst {
                break;
            }
        }
        let state = c.read::<[f32; 4]>(&scratch.state, 0, rows)?;
        self.spread(c, job.weight, Part::Minus(1.0), job.rows.clone(), out)?;
        Ok(LstsqReport {
            iterations,
            residual: look.worst.sqrt(),
            before: state.iter().map(|s| s[2]).collect(),
            after: state.iter().map(|s| s[3]).collect(),
        })
    }

    /// One over the diagonal of H + lambda I into the scratch; returns lambda.
    fn precondition(
        &self,
        c: Stream<'_, '_>,
        h: &Square,
        damping: f64,
        scratch: &LstsqScratch,
    ) -> Result<f32, GpuError> {
        self.diagonal(c, h, &scratch.inverse)?;
        let diagonal = c.read::<f32>(&scratch.inverse, 0, h.n())?;
        let lambda = damping * diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / h.n() as f64;
        if !lambda.is_finite() || lambda < 0.0 || diagonal.iter().any(|d| !d.is_finite()) {
            return Err(not_finite());
        }
        // A column that no input ever used, undamped: its weights stay.
        let inverse = |d: f32| match f64::from(d) + lambda {
            sum if sum > f64::from(f32::MIN_POSITIVE) => (1.0 / sum) as f32,
            _ => 0.0,
        };
        let inverse: Vec<f32> = diagonal.into_iter().map(inverse).collect();
        c.write(&scratch.inverse, 0, &inverse)?;
        Ok(lambda as f32)
    }

    /// The true residual and the errors of the changes so far.
    fn lstsq_check(
        &self,
        c: Stream<'_, '_>,
        h: &Square,
        panel: &LstsqPanel<'_>,
        start: bool,
    ) -> Result<Look, GpuError> {
        self.times_square(c, panel.change, h, panel.part(&panel.scratch.product)?)?;
        self.lstsq_residual(c, panel, start)?;
        self.look(c, panel, 0.0)
    }

    /// Steps until every row rests, `most` are made, or nothing falls; returns how many were made.
    fn lstsq_steps(
        &self,
        c: Stream<'_, '_>,
        job: &Lstsq<'_>,
        panel: &LstsqPanel<'_>,
        most: usize,
    ) -> Result<usize, GpuError> {
        let s = panel.scratch;
        let (direction, product) = (panel.part(&s.direction)?, panel.part(&s.product)?);
        let tolerance = job.options.tolerance as f32;
        let (mut done, mut lowest, mut stalled) = (0, f64::INFINITY, 0);
        while done < most {
            let now = CHECK.min(most - done);
            for _ in 0..now {
                self.times_square(c, direction, job.h, product)?;
                self.lstsq_step(c, panel, tolerance)?;
            }
            done += now;
            let look = self.look(c, panel, 1.0001 * f64::from(tolerance * tolerance))?;
            stalled = if look.moving < lowest { 0 } else { stalled + 1 };
            lowest = lowest.min(look.moving);
            if look.moving == 0.0 || stalled == STALLED {
                break;
            }
        }
        Ok(done)
    }

    /// Reads how far the rows are. A row rests at a share of `tolerance2`, give or take a rounding.
    fn look(&self, c: Stream<'_, '_>, panel: &LstsqPanel<'_>, tolerance2: f64) -> Result<Look, GpuError> {
        let state = c.read::<[f32; 4]>(&panel.scratch.state, 0, panel.change.count)?;
        let mut look = Look { worst: 0.0, moving: 0.0 };
        for [now, damped, before, after] in state {
            if ![now, damped, before, after].iter().all(|v| v.is_finite()) {
                return Err(not_finite());
            }
            let share = f64::from(now) / f64::from(damped.max(f32::MIN_POSITIVE));
            look.worst = look.worst.max(share.abs());
            if share > tolerance2 {
                look.moving = look.moving.max(share);
            }
        }
        Ok(look)
    }

    /// Residual, direction and state of a panel's rows from its changes and, in the scratch, their product with H; at the
    /// `start` also what later ones are compared with.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn lstsq_residual(
        &self,
        c: Stream<'_, '_>,
        panel: &LstsqPanel<'_>,
        start: bool,
    ) -> Result<(), GpuError> {
        const NAME: &str = "lstsq_residual";
        panel.check(NAME)?;
        let x = panel.change;
        let params = ResidualParams {
            n: size(NAME, x.count)?,
            k4: size(NAME, x.t4)?,
            words: size(NAME, panel.mask.words_per_row())?,
            bit_row: size(NAME, panel.first)?,
            c_first: size(NAME, x.at + x.first * x.stride)?,
            start: u32::from(start),
            lambda: panel.lambda,
            pad: 0,
        };
        let values = 4.0 * (x.count * x.t4) as f64;
        self.row_kernel(c, NAME, panel, &params, Work { flops: 8.0 * values, bytes: 24.0 * values })
    }

    /// One step for all rows of a panel that still move (see [`LstsqOptions::tolerance`]). The
    /// scratch holds the product of the directions with H.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn lstsq_step(
        &self,
        c: Stream<'_, '_>,
        panel: &LstsqPanel<'_>,
        tolerance: f32,
    ) -> Result<(), GpuError> {
        const NAME: &str = "lstsq_step";
        panel.check(NAME)?;
        let x = panel.change;
        let params = StepParams {
            n: size(NAME, x.count)?,
            k4: size(NAME, x.t4)?,
            words: size(NAME, panel.mask.words_per_row())?,
            bit_row: size(NAME, panel.first)?,
            c_first: size(NAME, x.at + x.first * x.stride)?,
            lambda: panel.lambda,
            tolerance2: tolerance * tolerance,
            pad: 0,
        };
        let values = 4.0 * (x.count * x.t4) as f64;
        self.row_kernel(c, NAME, panel, &params, Work { flops: 20.0 * values, bytes: 44.0 * values })
    }

    /// Both kernels bind the same.
    fn row_kernel<P: bytemuck::NoUninit>(
        &self,
        c: Stream<'_, '_>,
        name: &'static str,
        panel: &LstsqPanel<'_>,
        params: &P,
        work: Work,
    ) -> Result<(), GpuError> {
        let s = panel.scratch;
        let pipeline = self.pipeline(name, vec![("LANES", self.preset().lanes)])?;
        let bind = [
            panel.mask.buffer.all(),
            s.inverse.all(),
            s.product.buffer().all(),
            panel.change.buffer.all(),
            s.residual.buffer().all(),
            s.direction.buffer().all(),
            s.state.all(),
        ];
        c.dispatch(&pipeline, params, &bind, self.fold(panel.change.count, 1), work)
    }
}

fn not_finite() -> GpuError {
    GpuError::Device {
        during: "lstsq".into(),
        message: "the Gram matrix or the weights are not finite, or so large that their products are not"
            .into(),
    }
}
