//! Masked products with frozen weights.

use bytemuck::{Pod, Zeroable};

use super::preset::{Matmul, SUBGROUP};
use super::tensor::Chunk;
use super::{Kernels, MaskBuffer, Rows, Stream, Weight, cut, shape_error, size};
use crate::gpu::{Buffer, GpuError, Work};
use crate::model::Dtype;

/// `y (+)= (W * mask)[:, inputs] x (+ bias)`.
#[derive(Clone)]
pub struct Product<'a> {
    /// Frozen weights `[n, k]`.
    pub weight: &'a Weight,
    /// Kept weights; `None` = all.
    pub mask: Option<&'a MaskBuffer>,
    /// Uses the weights that the mask prunes instead.
    pub complement: bool,
    /// Added to each output `[n]` f32.
    pub bias: Option<&'a Buffer>,
    /// Output features made: rows of the weight.
    pub outputs: std::ops::Range<usize>,
    /// Input features used: columns of the weight; the start a multiple of 4.
    pub inputs: std::ops::Range<usize>,
    /// Input activations, one row per input used.
    pub x: Rows<'a>,
    /// Output activations, one row per output made.
    pub y: Rows<'a>,
    /// Adds to `y` instead of overwriting it (residual connections, inputs in pieces).
    pub accumulate: bool,
}

impl<'a> Product<'a> {
    /// The whole product.
    pub fn new(weight: &'a Weight, x: Rows<'a>, y: Rows<'a>) -> Self {
        Self {
            weight,
            mask: None,
            complement: false,
            bias: None,
            outputs: 0..weight.rows(),
            inputs: 0..weight.cols(),
            x,
            y,
            accumulate: false,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n: u32,
    k4: u32,
    t4: u32,
    w_stride: u32,
    w_first: u32,
    x_at: u32,
    x_stride: u32,
    y_at: u32,
    y_stride: u32,
    bias_row: u32,
    pad: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MaskedParams {
    base: Params,
    bit_row: u32,
    bit_k4: u32,
    words: u32,
    flip: u32,
}

/// Rows of one chunk that one dispatch makes.
struct Piece<'a> {
    weights: &'a Buffer,
    /// Row of `weights` at which the piece starts, and the weight's row that it is.
    local: usize,
    row: usize,
    rows: usize,
}

/// One dispatch: `y (+)= A x (+ bias)`, where A is any stored matrix.
pub(super) struct Call<'a> {
    pub(super) weights: &'a Buffer,
    pub(super) dtype: Dtype,
    /// Packed elements of a row of A, and the one at which its first row starts.
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// The bias and its first element.
    pub(super) bias: Option<(&'a Buffer, usize)>,
    /// Mask, its first row, its first input / 4, and what its bits are combined with (GPU presets only).
    pub(super) mask: Option<(&'a MaskBuffer, usize, usize, u32)>,
    pub(super) x: Rows<'a>,
    pub(super) y: Rows<'a>,
    pub(super) accumulate: bool,
}

/// What the mask bits are combined with.
fn flip(p: &Product<'_>) -> u32 {
    if p.complement { u32::MAX } else { 0 }
}

pub(super) fn weight_def(dtype: Dtype) -> (&'static str, u32) {
    let code = match dtype {
        // F64 is narrowed where it is uploaded.
        Dtype::F32 | Dtype::F64 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
    };
    ("WEIGHT", code)
}

impl Kernels<'_> {
    /// Bytes of scratch that masked products with matrices of at most `largest` bytes need under this preset.
    pub fn scratch_bytes(&self, largest: u64) -> u64 {
        match self.preset().matmul {
            Matmul::Rows(_) | Matmul::Lanes(_) => cut::masked_bytes(self.limits(), largest),
            Matmul::Tile => 0,
        }
    }

    /// Records `y (+)= (W * mask) x (+ bias)` in as many dispatches as binding limits and submit lengths ask for.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn matmul(&self, c: Stream<'_, '_>, p: &Product<'_>) -> Result<(), GpuError> {
        self.check_product(p)?;
        let (n, k, t) = (p.outputs.len(), p.inputs.len(), 4 * p.x.t4);
        if n == 0 || t == 0 {
            return Ok(());
        }
        let mut most = self.rows_at_once(c, k, t);
        let scratch = match (self.preset().matmul, p.mask) {
            (Matmul::Rows(_) | Matmul::Lanes(_), Some(_)) => {
                let row = Weight::device_bytes(1, p.weight.cols(), p.weight.dtype());
                let rows = p.weight.rows();
                most = most.min(cut::masked_rows(self.limits(), rows, row));
                Some(self.take_scratch(self.scratch_bytes(row * rows as u64).max(row))?)
            }
            _ => None,
        };
        for chunk in &p.weight.chunks {
            for rows in cut::pieces(cut::overlap(&chunk.range(), &p.outputs), most) {
                self.piece(c, p, chunk, rows.start, rows.len(), scratch.as_ref())?;
            }
        }
        if let Some(scratch) = scratch {
            self.return_scratch(scratch);
        }
        Ok(())
    }

    pub(super) fn check_product(&self, p: &Product<'_>) -> Result<(), GpuError> {
        let fits = p.outputs.end <= p.weight.rows()
            && p.inputs.end <= p.weight.cols()
            && p.inputs.start.is_multiple_of(4)
            && (p.inputs.len().is_multiple_of(4) || p.inputs.end == p.weight.cols())
            && p.x.count == p.inputs.len().next_multiple_of(4)
            && p.y.count == p.outputs.len()
            && p.x.t4 == p.y.t4
            && p.mask.is_none_or(|m| m.shape() == (p.weight.rows(), p.weight.cols()));
        if fits {
            return Ok(());
        }
        Err(shape_error(
            "matmul",
            format!(
                "weight [{}, {}] rows {:?} columns {:?}, x [{}, {}], y [{}, {}], mask {:?}",
                p.weight.rows(),
                p.weight.cols(),
                p.outputs,
                p.inputs,
                p.x.count,
                4 * p.x.t4,
                p.y.count,
                4 * p.y.t4,
                p.mask.map(MaskBuffer::shape)
            ),
        ))
    }

    fn lock_scratch(&self) -> std::sync::MutexGuard<'_, Option<Buffer>> {
        self.scratch.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Gives back what [`Kernels::take_scratch`] took.
    pub(super) fn return_scratch(&self, scratch: Buffer) {
        *self.lock_scratch() = Some(scratch);
    }

    pub(super) fn take_scratch(&self, bytes: u64) -> Result<Buffer, GpuError> {
        if let Some(old) = self.lock_scratch().take()
            && old.bytes() >= bytes
        {
            return Ok(old);
        }
        self.gpu().alloc("scratch:effective weights", bytes)
    }

    fn piece(
        &self,
        c: Stream<'_, '_>,
        p: &Product<'_>,
        chunk: &Chunk,
        row: usize,
        rows: usize,
        scratch: Option<&Buffer>,
    ) -> Result<(), GpuError> {
        let mut piece = Piece { weights: &chunk.buffer, local: row - chunk.first, row, rows };
        if let (Some(scratch), Some(mask)) = (scratch, p.mask) {
            self.mask_apply(c, p, mask, &piece, scratch)?;
            piece.weights = scratch;
            piece.local = 0;
        }
        self.product(c, p, &piece)
    }

    /// Masked copy of the piece's rows at the start of `out`.
    fn mask_apply(
        &self,
        c: Stream<'_, '_>,
        p: &Product<'_>,
        mask: &MaskBuffer,
        piece: &Piece<'_>,
        out: &Buffer,
    ) -> Result<(), GpuError> {
        const NAME: &str = "mask_apply";
        let weight = p.weight;
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![weight_def(weight.dtype()), ("LANES", lanes)])?;
        let k4 = weight.k4();
        let elements = piece.rows * k4;
        let params = [
            size(NAME, piece.rows)?,
            size(NAME, k4)?,
            size(NAME, mask.words_per_row())?,
            size(NAME, piece.row)?,
            size(NAME, piece.local * k4)?,
            flip(p),
            0,
            0,
        ];
        let work = Work { flops: 0.0, bytes: elements as f64 * (8.0 * weight.dtype().size() as f64 + 0.5) };
        let bind = [piece.weights.all(), mask.buffer.all(), out.all()];
        c.dispatch(&pipeline, &params, &bind, self.fold(elements, lanes), work)
    }

    fn product(&self, c: Stream<'_, '_>, p: &Product<'_>, piece: &Piece<'_>) -> Result<(), GpuError> {
        let k4 = p.weight.k4();
        self.call(
            c,
            &Call {
                weights: piece.weights,
                dtype: p.weight.dtype(),
                stride: k4,
                first: piece.local * k4 + p.inputs.start / 4,
                n: piece.rows,
                k: p.inputs.len(),
                bias: p.bias.map(|bias| (bias, piece.row)),
                mask: p.mask.map(|mask| (mask, piece.row, p.inputs.start / 4, flip(p))),
                x: p.x,
                y: Rows { first: p.y.first + piece.row - p.outputs.start, count: piece.rows, ..p.y },
                accumulate: p.accumulate,
            },
        )
    }

    /// `y (+)= a x` in f32: `a` `[n, k]`, `x` `[k, t]`, `y` `[n, t]`, k a multiple of 4, cut into short dispatches.
    pub(super) fn product_f32(
        &self,
        c: Stream<'_, '_>,
        a: Rows<'_>,
        x: Rows<'_>,
        y: Rows<'_>,
        accumulate: bool,
    ) -> Result<(), GpuError> {
        self.product_with_bias(c, a, None, x, y, accumulate)
    }

    /// [`Kernels::product_f32`] with a bias, given with its element for the first row.
    pub(super) fn product_with_bias(
        &self,
        c: Stream<'_, '_>,
        a: Rows<'_>,
        bias: Option<(&Buffer, usize)>,
        x: Rows<'_>,
        y: Rows<'_>,
        accumulate: bool,
    ) -> Result<(), GpuError> {
        let k = 4 * a.t4;
        if x.count != k || y.count != a.count || y.t4 != x.t4 {
            return Err(shape_error(
                "product_f32",
                format!("[{}, {k}] x [{}, {}] into [{}, {}]", a.count, x.count, 4 * x.t4, y.count, 4 * y.t4),
            ));
        }
        let most = self.rows_at_once(c, k, 4 * x.t4);
        for rows in cut::pieces(0..a.count, most) {
            let (row, n) = (rows.start, rows.len());
            self.call(
                c,
                &Call {
                    weights: a.buffer,
                    dtype: Dtype::F32,
                    stride: a.stride,
                    first: a.at + (a.first + row) * a.stride,
                    n,
                    k,
                    bias: bias.map(|(bias, first)| (bias, first + row)),
                    mask: None,
                    x,
                    y: Rows { first: y.first + row, count: n, ..y },
                    accumulate,
                },
            )?;
        }
        Ok(())
    }

    /// Rows of a product of `k` inputs and `t` tokens that one dispatch may make.
    fn rows_at_once(&self, c: Stream<'_, '_>, k: usize, t: usize) -> usize {
        let flops = 2.0 * k as f64 * t as f64;
        cut::dispatch_rows(self.limits(), flops, c.max_dispatch_flops(), self.preset().row_unit())
    }

    /// One dispatch of the preset's product kernel.
    pub(super) fn call(&self, c: Stream<'_, '_>, call: &Call<'_>) -> Result<(), GpuError> {
        let preset = self.preset();
        let (name, tile_t4, unit) = match preset.matmul {
            Matmul::Rows(_) => ("matmul_rows", 8, preset.row_unit()),
            Matmul::Lanes(_) => ("matmul_lanes", 16, preset.row_unit()),
            Matmul::Tile => ("matmul_tile", 16, preset.row_unit()),
        };
        let (x, y) = (call.x, call.y);
        let base = Params {
            n: size(name, call.n)?,
            k4: size(name, call.k.div_ceil(4))?,
            t4: size(name, x.t4)?,
            w_stride: size(name, call.stride)?,
            w_first: size(name, call.first)?,
            x_at: size(name, x.at + x.first * x.stride)?,
            x_stride: size(name, x.stride)?,
            y_at: size(name, y.at + y.first * y.stride)?,
            y_stride: size(name, y.stride)?,
            bias_row: size(name, call.bias.map_or(0, |(_, row)| row))?,
            pad: [0; 2],
        };
        let mut defs = vec![weight_def(call.dtype)];
        match preset.matmul {
            Matmul::Rows(rows) => defs.extend([("LANES", 8), ("ROWS", rows)]),
            Matmul::Lanes(rows) => defs.extend([("SUBGROUP", SUBGROUP), ("ROWS", rows)]),
            Matmul::Tile => {}
        }
        let mut bind = vec![call.weights.all(), x.buffer.all(), y.buffer.all()];
        if let Some((bias, _)) = call.bias {
            defs.push(("BIAS", 1));
            bind.push(bias.all());
        }
        if call.accumulate {
            defs.push(("ACCUMULATE", 1));
        }
        let grid = [x.t4.div_ceil(tile_t4) as u32, call.n.div_ceil(unit) as u32, 1];
        let (n, k, t) = (call.n as f64, call.k as f64, 4.0 * x.t4 as f64);
        let work =
            Work { flops: 2.0 * n * k * t, bytes: n * k * call.dtype.size() as f64 + 4.0 * t * (k + n) };
        if preset.matmul != Matmul::Tile {
            let pipeline = self.pipeline(name, defs)?;
            return c.dispatch(&pipeline, &base, &bind, grid, work);
        }
        let mut params = MaskedParams { base, bit_row: 0, bit_k4: 0, words: 0, flip: 0 };
        if let Some((mask, row, k4, flip)) = call.mask {
            defs.push(("MASK", 1));
            bind.push(mask.buffer.all());
            params.bit_row = size(name, row)?;
            params.bit_k4 = size(name, k4)?;
            params.words = size(name, mask.words_per_row())?;
            params.flip = flip;
        }
        let pipeline = self.pipeline(name, defs)?;
        c.dispatch(&pipeline, &params, &bind, grid, work)
    }
}
