//! Norms, rotary embedding, activation, vocabulary reduction.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::preset::SUBGROUP;
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

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    features: u32,
    t4: u32,
    eps: f32,
    pad: u32,
}

impl Kernels<'_> {
    /// `y = x * gain / sqrt(mean(x^2) + eps)` per token; `x`, `y` `[features, t]`, `gain` `[features]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn rms_norm(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        gain: &Buffer,
        eps: f32,
        y: Rows<'_>,
    ) -> Result<(), GpuError> {
        // With subgroups the gains are loaded by eight.
        let preset = self.preset();
        let (name, tile, defs) = if preset.subgroups() && x.count.is_multiple_of(SUBGROUP as usize) {
            ("rms_norm_lanes", 2 * SUBGROUP, vec![("SUBGROUP", SUBGROUP)])
        } else {
            let (lanes, slices) = preset.reduce;
            ("rms_norm", lanes, sliced_defs(lanes, slices))
        };
        let whole = x.first == 0 && y.first == 0 && x.count == y.count && x.t4 == y.t4;
        if !whole || gain.bytes() < 4 * x.count as u64 {
            return Err(shape_error(name, format!("x {} rows, y {} rows", x.count, y.count)));
        }
        let pipeline = self.pipeline(name, defs)?;
        let params = NormParams { features: size(name, x.count)?, t4: size(name, x.t4)?, eps, pad: 0 };
        let values = (x.count * x.t4 * 4) as f64;
        let work = Work { flops: 4.0 * values, bytes: 12.0 * values };
        let grid = [x.t4.div_ceil(tile as usize) as u32, 1, 1];
        c.dispatch(&pipeline, &params, &[x.buffer.all(), gain.all(), y.buffer.all()], grid, work)
    }

    /// Rotary embedding of `x` `[heads * head_dim, t]` in place; `table` `[2, head_dim / 2, window]` cos then sin.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn rope(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        head_dim: usize,
        table: &Buffer,
        layout: Layout,
    ) -> Result<(), GpuError> {
        self.rotate(c, x, head_dim, table, layout, false)
    }

    /// Backward pass of [`Kernels::rope`], in place: gradients `x` rotated by the negative angles.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn rope_backward(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        head_dim: usize,
        table: &Buffer,
        layout: Layout,
    ) -> Result<(), GpuError> {
        self.rotate(c, x, head_dim, table, layout, true)
    }

    fn rotate(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        head_dim: usize,
        table: &Buffer,
        layout: Layout,
        backward: bool,
    ) -> Result<(), GpuError> {
        const NAME: &str = "rope";
        let half = head_dim / 2;
        let fits = x.first == 0
            && head_dim > 0
            && x.count.is_multiple_of(head_dim)
            && x.t4 == layout.t4()
            && table.bytes() >= (2 * half * layout.window4() * 16) as u64;
        if !fits {
            return Err(shape_error(NAME, format!("{} rows of heads of {head_dim}", x.count)));
        }
        let lanes = self.preset().lanes;
        let mut defs = vec![("LANES", lanes)];
        if backward {
            defs.push(("BACKWARD", 1));
        }
        let pipeline = self.pipeline(NAME, defs)?;
        let pairs = x.count / 2;
        let params =
            [size(NAME, pairs)?, size(NAME, half)?, size(NAME, x.t4)?, size(NAME, layout.window4())?];
        let work = Work { flops: 24.0 * (pairs * x.t4) as f64, bytes: 64.0 * (pairs * x.t4) as f64 };
        let grid = self.fold(pairs * x.t4, lanes);
        c.dispatch(&pipeline, &params, &[table.all(), x.buffer.all()], grid, work)
    }

    /// `gate = silu(gate) * up`, both `[features, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn swiglu(&self, c: Stream<'_, '_>, gate: Rows<'_>, up: Rows<'_>) -> Result<(), GpuError> {
        self.activate(c, gate, up, None)
    }

    /// `out = silu(gate) * up`, all `[features, t]`; `gate` stays for the backward pass.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn swiglu_to(
        &self,
        c: Stream<'_, '_>,
        gate: Rows<'_>,
        up: Rows<'_>,
        out: Rows<'_>,
    ) -> Result<(), GpuError> {
        self.activate(c, gate, up, Some(out))
    }

    fn activate(
        &self,
        c: Stream<'_, '_>,
        gate: Rows<'_>,
        up: Rows<'_>,
        out: Option<Rows<'_>>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "swiglu";
        let fits = |r: Rows<'_>| r.first == 0 && r.count == gate.count && r.t4 == gate.t4;
        if ![gate, up].into_iter().chain(out).all(fits) {
            let to = out.map(|o| format!(", out {} rows", o.count)).unwrap_or_default();
            return Err(shape_error(NAME, format!("gate {} rows, up {} rows{to}", gate.count, up.count)));
        }
        let lanes = self.preset().lanes;
        let mut defs = vec![("LANES", lanes)];
        let mut bind = vec![gate.buffer.all(), up.buffer.all()];
        if let Some(out) = out {
            defs.push(("OUT", 1));
            bind.push(out.buffer.all());
        }
        let pipeline = self.pipeline(NAME, defs)?;
        let count = gate.count * gate.t4;
        let params = [size(NAME, count)?, 0, 0, 0];
        let work = Work { flops: 16.0 * count as f64, bytes: 48.0 * count as f64 };
        c.dispatch(&pipeline, &params, &bind, self.fold(count, lanes), work)
    }

    /// Adds the logits of vocabulary rows `first..first + logits.count` to the running log-sum-exp `state` `[3, t]` (maximum, sum,
    /// target's logit); `targets` `[t]` u32.
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
    ) -> Result<(), GpuError> {
        const NAME: &str = "vocab_reduce";
        let fits = logits.first == 0
            && logits.count > 0
            && state.count == 3
            && state.t4 == logits.t4
            && targets.bytes() >= 16 * logits.t4 as u64;
        if !fits {
            return Err(shape_error(NAME, format!("{} rows of logits", logits.count)));
        }
        let (lanes, slices) = self.preset().reduce;
        let pipeline = self.pipeline(NAME, sliced_defs(lanes, slices))?;
        let grid = [logits.t4.div_ceil(lanes as usize) as u32, 1, 1];
        let bind = [logits.buffer.all(), targets.all(), state.buffer.all()];
        for block in vocabulary_blocks(logits.count, slices) {
            let (t4, first) = (size(NAME, logits.t4)?, size(NAME, first)?);
            let params = [size(NAME, block.start)?, size(NAME, block.end)?, t4, first];
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
