//! What all elementwise kernels share.

use super::activation::positive;
use super::{Activation, Kernels, Stream, shape_error};
use crate::gpu::{Defs, GpuError, Work};

/// Shader defs of a kernel that reduces `slices` shares over a workgroup of `lanes` x `slices`.
pub(super) fn sliced_defs(lanes: u32, slices: u32) -> Defs {
    vec![("LANES", lanes), ("SLICES", slices), ("INVOCATIONS", lanes * slices)]
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

    /// Whether a token of the batch, counted with the padding, pads its window.
    pub fn is_padding(self, token: usize) -> bool {
        token % (4 * self.window4()).max(1) >= self.length
    }

    /// Padded tokens of the batch, in vec4s.
    pub fn t4(self) -> usize {
        self.windows * self.window4()
    }
}

impl Kernels<'_> {
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
