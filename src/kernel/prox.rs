//! ProxSparse's proximal step.

use std::ops::Range;

use super::{Kernels, Stream, Weight, shape_error, size};
use crate::gpu::{GpuError, Work};
use crate::model::Dtype;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    groups: u32,
    first: u32,
    lambda: f32,
    pad: u32,
}

impl Kernels<'_> {
    /// Moves every group of four of the rows `rows` of an f32 weight to where `1/2 |w - z|^2 + lambda * R(w)` is least, R the sum of
    /// the magnitudes of the products of three of them: towards two that are not 0.
    ///
    /// # Errors
    /// A type other than f32, columns that are no multiple of 4, `lambda` below 0, or what the device reports.
    pub fn prox24(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        rows: Range<usize>,
        lambda: f32,
    ) -> Result<(), GpuError> {
        const NAME: &str = "prox24";
        let fits = weight.dtype() == Dtype::F32 && weight.cols().is_multiple_of(4) && lambda >= 0.0;
        if !fits {
            let message = format!("{} weights, {} columns, lambda {lambda}", weight.dtype(), weight.cols());
            return Err(shape_error(NAME, message));
        }
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        let k4 = weight.k4();
        for strip in self.strips(NAME, weight, &rows, 0, 1)? {
            let groups = strip.rows() * k4;
            let params = Params {
                groups: size(NAME, groups)?,
                first: size(NAME, (strip.from - strip.chunk.first) * k4)?,
                lambda,
                pad: 0,
            };
            let work = Work { flops: 800.0 * groups as f64, bytes: 32.0 * groups as f64 };
            let bind = [strip.chunk.buffer.all()];
            c.dispatch(&pipeline, &params, &bind, self.fold(groups, lanes), work)?;
        }
        Ok(())
    }
}
