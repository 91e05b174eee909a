//! MaskPro's kernels: sampling, the policy-gradient update, top-N, moments of the gradient.

use bytemuck::{Pod, Zeroable};

use super::{Kernels, MaskBuffer, Stream, cut, shape_error, size};
use crate::gpu::{Binding, Buffer, Defs, GpuError, Work};
use crate::mask::Pattern;

/// Which random numbers a sample takes.
#[derive(Clone, Copy, Debug)]
pub struct SampleAt {
    /// Seed of the run.
    pub seed: u64,
    /// Step of the run.
    pub step: u32,
    /// Number of the projection.
    pub projection: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleParams {
    rows: u32,
    cols: u32,
    words_per_row: u32,
    first_row: u32,
    logits_offset: u32,
    words_offset: u32,
    step: u32,
    projection: u32,
    seed: [u32; 2],
    pad: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowParams {
    rows: u32,
    cols: u32,
    words_per_row: u32,
    logits_offset: u32,
    words_offset: u32,
    step_size: f32,
    pad: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MomentParams {
    rows: u32,
    cols: u32,
    words_per_row: u32,
    advantages: [f32; 3],
    pad: [u32; 2],
}

/// Sums over samples, for the three estimators loss, residual, tracked.
pub struct Moments {
    /// `[3, rows, cols]` sums of the estimates.
    pub sums: Buffer,
    /// `[3, rows, cols]` sums of their squares.
    pub squares: Buffer,
}

/// Rows of one dispatch whose logits fit one binding.
struct RowChunk<'a> {
    logits: Binding<'a>,
    first: u32,
    rows: u32,
    /// Elements from the binding's start to the first row.
    offset: u32,
    words_offset: u32,
}

const WG: u32 = 64;

fn defs(pattern: Pattern) -> Defs {
    vec![("WG", WG), ("N", pattern.n() as u32), ("M", pattern.m() as u32)]
}

impl Kernels<'_> {
    /// Builds the pipelines of sampling, update and top-N for `pattern`, so that the first step does not wait for them.
    ///
    /// # Errors
    /// A kernel that does not compile here.
    pub fn prepare_masks(&self, pattern: Pattern) -> Result<(), GpuError> {
        for name in ["mask_sample", "mask_update", "mask_top"] {
            self.pipeline(name, defs(pattern))?;
        }
        Ok(())
    }

    fn row_chunks<'a>(
        &self,
        kernel: &'static str,
        pattern: Pattern,
        logits: &'a Buffer,
        mask: &MaskBuffer,
    ) -> Result<Vec<RowChunk<'a>>, GpuError> {
        let (rows, cols) = mask.shape();
        let bytes = (rows * cols * 4) as u64;
        if logits.bytes() < bytes || !cols.is_multiple_of(pattern.m()) {
            return Err(shape_error(
                kernel,
                format!("logits of {} bytes for [{rows}, {cols}] and {pattern}", logits.bytes()),
            ));
        }
        let row_bytes = cols as u64 * 4;
        let Some(per_chunk) = cut::bound_rows(self.limits(), rows, row_bytes, 1) else {
            return Err(shape_error(kernel, format!("a row of {row_bytes} bytes cannot be bound")));
        };
        cut::pieces(0..rows, per_chunk)
            .map(|here| {
                let bound = cut::bound(&here, row_bytes, logits.bytes());
                Ok(RowChunk {
                    logits: logits.range(bound.offset, bound.bytes),
                    first: size(kernel, here.start)?,
                    rows: size(kernel, here.len())?,
                    offset: size(kernel, (bound.skipped / 4) as usize)?,
                    words_offset: size(kernel, here.start * mask.words_per_row())?,
                })
            })
            .collect()
    }

    /// Draws a mask from `logits` `[rows, cols]` f32 into `mask`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn mask_sample(
        &self,
        c: Stream<'_, '_>,
        pattern: Pattern,
        logits: &Buffer,
        mask: &MaskBuffer,
        at: SampleAt,
    ) -> Result<(), GpuError> {
        const NAME: &str = "mask_sample";
        let pipeline = self.pipeline(NAME, defs(pattern))?;
        let words = size(NAME, mask.words_per_row())?;
        for chunk in self.row_chunks(NAME, pattern, logits, mask)? {
            let params = SampleParams {
                rows: chunk.rows,
                cols: size(NAME, mask.cols)?,
                words_per_row: words,
                first_row: chunk.first,
                logits_offset: chunk.offset,
                words_offset: chunk.words_offset,
                step: at.step,
                projection: at.projection,
                seed: crate::mask::philox::key(at.seed),
                pad: [0; 2],
            };
            let values = f64::from(chunk.rows) * mask.cols as f64;
            let work = Work { flops: 60.0 * values, bytes: 4.125 * values };
            let grid = self.fold(chunk.rows as usize * words as usize, WG);
            c.dispatch(&pipeline, &params, &[chunk.logits, mask.buffer.all()], grid, work)?;
        }
        Ok(())
    }

    /// The most probable mask of `logits` into `mask`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn mask_top(
        &self,
        c: Stream<'_, '_>,
        pattern: Pattern,
        logits: &Buffer,
        mask: &MaskBuffer,
    ) -> Result<(), GpuError> {
        const NAME: &str = "mask_top";
        let pipeline = self.pipeline(NAME, defs(pattern))?;
        let words = mask.words_per_row();
        for chunk in self.row_chunks(NAME, pattern, logits, mask)? {
            let params = self.row_params(NAME, &chunk, mask, 0.0)?;
            let values = f64::from(chunk.rows) * mask.cols as f64;
            let work = Work { flops: 8.0 * values, bytes: 4.125 * values };
            let grid = self.fold(chunk.rows as usize * words, WG);
            c.dispatch(&pipeline, &params, &[chunk.logits, mask.buffer.all()], grid, work)?;
        }
        Ok(())
    }

    /// `logits += step_size * d log P(mask) / d logits`, the policy-gradient step; `step_size` = -rate * advantage.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn mask_update(
        &self,
        c: Stream<'_, '_>,
        pattern: Pattern,
        logits: &Buffer,
        mask: &MaskBuffer,
        step_size: f32,
    ) -> Result<(), GpuError> {
        const NAME: &str = "mask_update";
        let pipeline = self.pipeline(NAME, defs(pattern))?;
        for chunk in self.row_chunks(NAME, pattern, logits, mask)? {
            let params = self.row_params(NAME, &chunk, mask, step_size)?;
            let values = f64::from(chunk.rows) * mask.cols as f64;
            let work = Work { flops: 20.0 * values, bytes: 8.125 * values };
            let groups = chunk.rows as usize * (mask.cols / pattern.m());
            let grid = self.fold(groups, WG);
            c.dispatch(&pipeline, &params, &[chunk.logits, mask.buffer.all()], grid, work)?;
        }
        Ok(())
    }

    fn row_params(
        &self,
        kernel: &'static str,
        chunk: &RowChunk<'_>,
        mask: &MaskBuffer,
        step_size: f32,
    ) -> Result<RowParams, GpuError> {
        Ok(RowParams {
            rows: chunk.rows,
            cols: size(kernel, mask.cols)?,
            words_per_row: size(kernel, mask.words_per_row())?,
            logits_offset: chunk.offset,
            words_offset: chunk.words_offset,
            step_size,
            pad: [0; 2],
        })
    }

    /// Adds the gradient estimates of one sampled mask, and their squares, to `moments`; `advantages` in the order loss,
    /// residual, tracked.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn score_moments(
        &self,
        c: Stream<'_, '_>,
        pattern: Pattern,
        logits: &Buffer,
        mask: &MaskBuffer,
        advantages: [f32; 3],
        moments: &Moments,
    ) -> Result<(), GpuError> {
        const NAME: &str = "score_moments";
        let (rows, cols) = mask.shape();
        let bytes = (rows * cols * 4) as u64;
        if logits.bytes() < bytes || moments.sums.bytes() < 3 * bytes || moments.squares.bytes() < 3 * bytes {
            return Err(shape_error(NAME, format!("buffers too small for [{rows}, {cols}]")));
        }
        let pipeline = self.pipeline(NAME, defs(pattern))?;
        let params = MomentParams {
            rows: size(NAME, rows)?,
            cols: size(NAME, cols)?,
            words_per_row: size(NAME, mask.words_per_row())?,
            advantages,
            pad: [0; 2],
        };
        let values = (rows * cols) as f64;
        let work = Work { flops: 30.0 * values, bytes: 52.0 * values };
        let grid = self.fold(rows * (cols / pattern.m()), WG);
        let bind = [logits.all(), mask.buffer.all(), moments.sums.all(), moments.squares.all()];
        c.dispatch(&pipeline, &params, &bind, grid, work)
    }
}
