//! What all elementwise kernels share, and the reduction over the vocabulary.

use std::ops::Range;

use super::activation::positive;
use super::{Activation, Kernels, Rows, Stream, shape_error, size};
use crate::gpu::{Buffer, Defs, GpuError, Work};

/// Shader defs of a kernel that reduces `slices` shares over a workgroup of `lanes` x `slices`.
pub(super) fn sliced_defs(lanes: u32, slices: u32) -> Defs {
    vec![("LANES", lanes), ("SLICES", slices), ("INVOCATIONS", lanes * slices)]
}

/// Rows of the logits that one dispatch takes where an invocation walks all rows of its tokens: on a CPU the rows of many tokens lie
/// pages apart, and more of them than the translation buffer holds take more than twice as long. A multiple of four: the cut does
/// not change how `vocab_reduce` adds.
const BLOCK_ROWS: usize = 64;

/// The rows of each dispatch that walks `rows` rows of the vocabulary in `slices` shares.
pub(super) fn vocabulary_blocks(rows: usize, slices: u32) -> impl Iterator<Item = Range<usize>> {
    let block = if slices == 1 { BLOCK_ROWS } else { rows.max(1) };
    (0..rows).step_by(block).map(move |start| start..rows.min(start + block))
}

/// A soft cap as a parameter, and what it adds to the defs.
pub(super) fn capped(
    kernel: &'static str,
    cap: Option<f32>,
    def: &'static str,
    defs: &mut Defs,
) -> Result<f32, GpuError> {
    let Some(cap) = cap else { return Ok(0.0) };
    positive(kernel, "cap", cap)?;
    defs.push((def, 1));
    Ok(cap)
}

/// Padded layout of a batch: `windows` windows of `length` tokens, each padded to `4 * window4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of windows.
    pub windows: usize,
    /// Real tokens of a window.
    pub length: usize,
}

impl Layout {
    /// Padded tokens of a window, in vec4s.
    pub fn window4(self) -> usize {
        self.length.div_ceil(4)
    }

    /// Padded tokens of the batch, in vec4s.
    pub fn t4(self) -> usize {
        self.windows * self.window4()
    }
}

impl Kernels<'_> {
    /// Adds the logits of vocabulary rows `first..first + logits.count` to the running log-sum-exp `state` `[3, t]` (maximum, sum,
    /// target's logit); `targets` `[t]` u32. With `cap` all three are those of `cap * tanh(logits / cap)`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn vocab_reduce(
        &self,
        c: Stream<'_, '_>,
        logits: Rows<'_>,
        first: usize,
        targets: &Buffer,
        state: Rows<'_>,
        cap: Option<f32>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "vocab_reduce";
        let mut cap_defs = Defs::new();
        let cap = capped(NAME, cap, "CAP", &mut cap_defs)?;
        let fits = logits.first == 0
            && logits.count > 0
            && state.count == 3
            && state.t4 == logits.t4
            && targets.bytes() >= 16 * logits.t4 as u64;
        if !fits {
            return Err(shape_error(NAME, format!("{} rows of logits", logits.count)));
        }
        let (lanes, slices) = self.preset().reduce;
        let pipeline = self.pipeline(NAME, [sliced_defs(lanes, slices), cap_defs].concat())?;
        let grid = [logits.t4.div_ceil(lanes as usize) as u32, 1, 1];
        let bind = [logits.buffer.all(), targets.all(), state.buffer.all()];
        for block in vocabulary_blocks(logits.count, slices) {
            let (t4, first) = (size(NAME, logits.t4)?, size(NAME, first)?);
            let params =
                [size(NAME, block.start)?, size(NAME, block.end)?, t4, first, cap.to_bits(), 0, 0, 0];
            let values = 4.0 * (block.len() * logits.t4) as f64;
            let work = Work { flops: 4.0 * values, bytes: 4.0 * values };
            c.dispatch(&pipeline, &params, &bind, grid, work)?;
        }
        Ok(())
    }

    /// Multiply-adds in registers: `workgroups` workgroups run `steps` rounds each; returns the operations recorded.
    ///
    /// # Errors
    /// What the device reports.
    pub fn peak(
        &self,
        c: Stream<'_, '_>,
        out: &Activation,
        workgroups: u32,
        steps: u32,
    ) -> Result<f64, GpuError> {
        const NAME: &str = "peak";
        let lanes = self.preset().lanes;
        let invocations = workgroups as usize * lanes as usize;
        if out.buffer().bytes() < 4 * invocations as u64 {
            return Err(shape_error(NAME, format!("{invocations} invocations")));
        }
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        let flops = 128.0 * f64::from(steps) * invocations as f64;
        let work = Work { flops, bytes: 0.0 };
        let params = [steps, 0.999f32.to_bits(), 0, 0];
        c.dispatch(&pipeline, &params, &[out.buffer().all()], [workgroups, 1, 1], work)?;
        Ok(flops)
    }
}
