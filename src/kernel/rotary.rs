//! Rotary position embedding, and its gradient.

use bytemuck::{Pod, Zeroable};

use super::{Kernels, Layout, Rows, Stream, shape_error, size};
use crate::gpu::{Buffer, GpuError, Work};

/// Which features of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotary {
    /// Features of a head.
    pub head_dim: usize,
    /// The first of them, an even number, turn; the others stay.
    pub turned: usize,
    /// Features `2 i` and `2 i + 1` are a pair, instead of `i` and `i + turned / 2`.
    pub interleaved: bool,
}

impl Rotary {
    /// The usual one: all features turn, in halves.
    pub fn halves(head_dim: usize) -> Self {
        Self { head_dim, turned: head_dim, interleaved: false }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeParams {
    pairs: u32,
    half: u32,
    t4: u32,
    window4: u32,
    head_dim: u32,
    step: u32,
    across: u32,
    pad: u32,
}

impl Kernels<'_> {
    /// Rotary embedding of `x` `[heads * head_dim, t]` in place; `table` `[2, turned / 2, window]` cosines then sines, which may be
    /// scaled.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn rope(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        rotary: Rotary,
        table: &Buffer,
        layout: Layout,
    ) -> Result<(), GpuError> {
        self.rotate(c, x, rotary, table, layout, false)
    }

    /// Backward pass of [`Kernels::rope`], in place: gradients `x` rotated by the negative angles, with the scale that the table has.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn rope_backward(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        rotary: Rotary,
        table: &Buffer,
        layout: Layout,
    ) -> Result<(), GpuError> {
        self.rotate(c, x, rotary, table, layout, true)
    }

    fn rotate(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        rotary: Rotary,
        table: &Buffer,
        layout: Layout,
        backward: bool,
    ) -> Result<(), GpuError> {
        const NAME: &str = "rope";
        let Rotary { head_dim, turned, interleaved } = rotary;
        let half = turned / 2;
        let fits = x.first == 0
            && half > 0
            && turned.is_multiple_of(2)
            && turned <= head_dim
            && x.count.is_multiple_of(head_dim)
            && x.t4 == layout.t4()
            && table.bytes() >= (2 * half * layout.window4() * 16) as u64;
        if !fits {
            let heads = format!("heads of {head_dim}, of which {turned} turn");
            return Err(shape_error(NAME, format!("{} rows of {heads}, {layout:?}", x.count)));
        }
        let lanes = self.preset().lanes;
        let mut defs = vec![("LANES", lanes)];
        if backward {
            defs.push(("BACKWARD", 1));
        }
        let pipeline = self.pipeline(NAME, defs)?;
        let pairs = x.count / head_dim * half;
        let half = size(NAME, half)?;
        let (step, across) = if interleaved { (2, 1) } else { (1, half) };
        let params = RopeParams {
            pairs: size(NAME, pairs)?,
            half,
            t4: size(NAME, x.t4)?,
            window4: size(NAME, layout.window4())?,
            head_dim: size(NAME, head_dim)?,
            step,
            across,
            pad: 0,
        };
        let work = Work { flops: 24.0 * (pairs * x.t4) as f64, bytes: 64.0 * (pairs * x.t4) as f64 };
        let grid = self.fold(pairs * x.t4, lanes);
        c.dispatch(&pipeline, &params, &[table.all(), x.buffer.all()], grid, work)
    }
}
