//! Products of the backward pass: with the transposed weights, and of two activations over their tokens; and the forward product
//! with weights under a soft mask.

use std::ops::Range;

use super::effective::Masking;
use super::{Kernels, MaskBuffer, Product, Rows, Stream, Weight, cut, f32_bytes, shape_error};
use crate::gpu::{Buffer, GpuError};

/// `d_x (+)= (W * mask)[outputs, inputs]^T d_y`.
pub struct TransposedProduct<'a> {
    /// Weights `[n, k]`.
    pub weight: &'a Weight,
    /// What they are multiplied with.
    pub masking: Masking<'a>,
    /// Rows of the weight that are used; the start a multiple of 4.
    pub outputs: Range<usize>,
    /// Columns of the weight that are used: one row of `d_x` each.
    pub inputs: Range<usize>,
    /// Gradient of the outputs, their number rounded up to a multiple of 4 rows; rows behind the outputs are zero.
    pub d_y: Rows<'a>,
    /// Gradient of the inputs.
    pub d_x: Rows<'a>,
    /// Adds to `d_x` instead of overwriting it.
    pub accumulate: bool,
}

impl<'a> TransposedProduct<'a> {
    /// The whole product.
    pub fn new(weight: &'a Weight, masking: Masking<'a>, d_y: Rows<'a>, d_x: Rows<'a>) -> Self {
        let (outputs, inputs) = (0..weight.rows(), 0..weight.cols());
        Self { weight, masking, outputs, inputs, d_y, d_x, accumulate: false }
    }
}

/// Rows of a scratch buffer that is used as `[count, 4 * t4]`.
fn panel(buffer: &Buffer, count: usize, t4: usize) -> Rows<'_> {
    Rows { buffer, first: 0, count, t4, stride: t4, at: 0 }
}

impl Kernels<'_> {
    /// Bytes of scratch that [`Kernels::matmul_soft`] and [`Kernels::matmul_transposed`] need for a weight of that shape.
    pub fn panel_bytes(&self, rows: usize, cols: usize) -> u64 {
        f32_bytes(cut::effective_rows(self.limits(), rows, cols), cols.next_multiple_of(4))
    }

    /// Records the product `p`, whose own mask is none, with the weights under `masking`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn matmul_soft(
        &self,
        c: Stream<'_, '_>,
        p: &Product<'_>,
        masking: Masking<'_>,
    ) -> Result<(), GpuError> {
        match masking {
            Masking::Dense => return self.matmul(c, p),
            Masking::Bits(mask) => return self.matmul(c, &Product { mask: Some(mask), ..p.clone() }),
            Masking::TopN(_) | Masking::Patterns(_) => self.check_product(p)?,
        }
        let k4 = p.weight.k4();
        let most = cut::effective_rows(self.limits(), p.weight.rows(), p.weight.cols());
        let scratch = self.take_scratch(self.panel_bytes(p.weight.rows(), p.weight.cols()))?;
        for rows in cut::pieces(p.outputs.clone(), most) {
            let row = rows.start;
            let a = panel(&scratch, rows.len(), k4);
            self.effective(c, p.weight, masking, rows.clone(), a, false)?;
            let a = a.columns(p.inputs.start / 4, p.inputs.len().div_ceil(4));
            let y = Rows { first: p.y.first + row - p.outputs.start, count: rows.len(), ..p.y };
            self.product_with_bias(c, a, p.bias.map(|b| (b, row)), p.x, y, p.accumulate)?;
        }
        self.return_scratch(scratch);
        Ok(())
    }

    /// Records `p`, panel by panel of the weight's rows.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn matmul_transposed(&self, c: Stream<'_, '_>, p: &TransposedProduct<'_>) -> Result<(), GpuError> {
        let (rows, cols) = (p.weight.rows(), p.weight.cols());
        let fits = p.outputs.end <= rows
            && p.inputs.end <= cols
            && p.outputs.start.is_multiple_of(4)
            && p.d_y.count == p.outputs.len().next_multiple_of(4)
            && p.d_x.count == p.inputs.len()
            && p.d_x.t4 == p.d_y.t4;
        if !fits {
            let message = format!(
                "weight [{rows}, {cols}] rows {:?} columns {:?}, d_y [{}, {}], d_x [{}, {}]",
                p.outputs,
                p.inputs,
                p.d_y.count,
                4 * p.d_y.t4,
                p.d_x.count,
                4 * p.d_x.t4
            );
            return Err(shape_error("matmul_transposed", message));
        }
        let most = cut::effective_rows(self.limits(), rows, cols);
        let scratch = self.take_scratch(self.panel_bytes(rows, cols))?;
        for here in cut::pieces(p.outputs.clone(), most) {
            let (row, t4) = (here.start, here.len().div_ceil(4));
            let transposed = panel(&scratch, cols, t4);
            self.effective(c, p.weight, p.masking, here, transposed, true)?;
            let a = Rows { first: p.inputs.start, count: p.inputs.len(), ..transposed };
            let d_y = Rows { first: p.d_y.first + row - p.outputs.start, count: 4 * t4, ..p.d_y };
            self.product_f32(c, a, d_y, p.d_x, p.accumulate || row > p.outputs.start)?;
        }
        self.return_scratch(scratch);
        Ok(())
    }

    /// `gradient (+)= d_y x^T` for some outputs of a projection: `d_y` `[outputs, t]`, `xt` `[t, inputs]` its transposed input
    /// with zeros at padding tokens, `gradient` `[outputs, inputs]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn weight_gradient(
        &self,
        c: Stream<'_, '_>,
        d_y: Rows<'_>,
        xt: Rows<'_>,
        gradient: Rows<'_>,
        accumulate: bool,
    ) -> Result<(), GpuError> {
        self.product_f32(c, d_y, xt, gradient, accumulate)
    }
}

impl<'a> From<Option<&'a MaskBuffer>> for Masking<'a> {
    fn from(mask: Option<&'a MaskBuffer>) -> Self {
        mask.map_or(Self::Dense, Self::Bits)
    }
}
