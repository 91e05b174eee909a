//! Panels: some rows of a weight as f32, and the squared error that a change of them makes.

use std::ops::Range;

use super::matmul::weight_def;
use super::{Kernels, MaskBuffer, Rows, Stream, Weight, cut, shape_error, size};
use crate::gpu::{Buffer, GpuError, Work};

/// Which weights of a matrix go into a panel.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// All.
    All,
    /// Those that a mask keeps, the others as 0.
    Kept(&'a MaskBuffer),
    /// Those that a mask prunes, the others as 0.
    Pruned(&'a MaskBuffer),
    /// All, minus what is in the panel, times a number.
    Minus(f32),
}

impl Kernels<'_> {
    /// Rows `rows` of a weight into the panel `out` `[rows, cols]` f32.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn spread(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        part: Part<'_>,
        rows: Range<usize>,
        out: Rows<'_>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "spread";
        let k4 = weight.k4();
        let mask = match part {
            Part::Kept(mask) | Part::Pruned(mask) => Some(mask),
            Part::All | Part::Minus(_) => None,
        };
        let fits = rows.end <= weight.rows()
            && rows.len() == out.count
            && out.t4 == k4
            && out.stride == k4
            && mask.is_none_or(|m| m.shape() == (weight.rows(), weight.cols()));
        if !fits {
            return Err(shape_error(NAME, format!("rows {rows:?} of {} x {}", weight.rows(), weight.cols())));
        }
        let scale = if let Part::Minus(scale) = part { scale } else { 1.0 };
        let lanes = self.preset().lanes;
        let mut defs = vec![weight_def(weight.dtype()), ("LANES", lanes)];
        match part {
            Part::All => {}
            Part::Kept(_) | Part::Pruned(_) => defs.push(("MASK", 1)),
            Part::Minus(_) => defs.push(("MINUS", 1)),
        }
        let pipeline = self.pipeline(NAME, defs)?;
        for chunk in &weight.chunks {
            let here = cut::overlap(&chunk.range(), &rows);
            if here.is_empty() {
                continue;
            }
            let (from, elements) = (here.start, here.len() * k4);
            let params = [
                size(NAME, here.len())?,
                size(NAME, k4)?,
                size(NAME, (from - chunk.first) * k4)?,
                size(NAME, from)?,
                size(NAME, mask.map_or(0, MaskBuffer::words_per_row))?,
                if matches!(part, Part::Pruned(_)) { u32::MAX } else { 0 },
                size(NAME, out.at + (out.first + from - rows.start) * k4)?,
                scale.to_bits(),
            ];
            let mut bind = vec![chunk.buffer.all(), out.buffer.all()];
            bind.extend(mask.map(|m| m.buffer.all()));
            let bytes = elements as f64 * (16.0 + 4.0 * weight.dtype().size() as f64);
            c.dispatch(&pipeline, &params, &bind, self.fold(elements, lanes), Work { flops: 0.0, bytes })?;
        }
        Ok(())
    }

    /// `out[out_row + r] = sum_j a[r, j] b[r, j]`: with `a` a change of weights and `b` its product with a Gram matrix, the
    /// squared output error of every row. `a`, `b` `[rows, cols]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn row_dot(
        &self,
        c: Stream<'_, '_>,
        a: Rows<'_>,
        b: Rows<'_>,
        out: &Buffer,
        out_row: usize,
    ) -> Result<(), GpuError> {
        const NAME: &str = "row_dot";
        let whole = |r: &Rows<'_>| r.first == 0 && r.at == 0 && r.stride == r.t4;
        let fits = a.count == b.count
            && a.t4 == b.t4
            && whole(&a)
            && whole(&b)
            && out.bytes() >= 4 * (out_row + a.count) as u64;
        if !fits {
            return Err(shape_error(NAME, format!("{} and {} rows into row {out_row}", a.count, b.count)));
        }
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        let params = [size(NAME, a.count)?, size(NAME, a.t4)?, size(NAME, out_row)?, 0];
        let values = 4.0 * (a.count * a.t4) as f64;
        let work = Work { flops: 2.0 * values, bytes: 8.0 * values };
        let bind = [a.buffer.all(), b.buffer.all(), out.all()];
        c.dispatch(&pipeline, &params, &bind, self.fold(a.count, 1), work)
    }
}
