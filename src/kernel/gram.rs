//! Square symmetric matrices in row chunks, and the Gram matrix X X^T of activations.

use std::ops::Range;

use super::tensor::Chunk;
use super::{
    Activation, Kernels, Layout, MaskBuffer, Product, Rows, Stream, Weight, cut, f32_bytes, shape_error, size,
};
use crate::gpu::{Buffer, Gpu, GpuError, Work};

/// A square matrix `[n, n]` in f32, n a multiple of 4, in row chunks that fit one binding.
pub struct Square {
    pub(super) chunks: Vec<Chunk>,
    n: usize,
}

impl Square {
    /// Allocates a matrix of zeros.
    ///
    /// # Errors
    /// When the device has no room, or does not bind a few rows.
    pub fn new(gpu: &Gpu, label: &str, n: usize) -> Result<Self, GpuError> {
        if n == 0 || !n.is_multiple_of(4) {
            return Err(shape_error("gram", format!("`{label}` of {n} rows: a multiple of 4 is needed")));
        }
        let row = 4 * n as u64;
        let (limits, per_chunk) = (gpu.limits(), cut::square_rows(gpu.limits(), n));
        if per_chunk as u64 * row > limits.piece() {
            return Err(GpuError::BindingTooLarge {
                label: label.to_string(),
                bytes: per_chunk as u64 * row,
                limit: limits.piece(),
                remedy: format!("{per_chunk} rows must fit: use another adapter"),
            });
        }
        let chunk = |r: Range<usize>| {
            let buffer = gpu.alloc(label, r.len() as u64 * row)?;
            Ok(Chunk { buffer, first: r.start, rows: r.len() })
        };
        let chunks = cut::pieces(0..n, per_chunk).map(chunk).collect::<Result<_, GpuError>>()?;
        Ok(Self { chunks, n })
    }

    /// Rows, and columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes on the device.
    pub fn device_bytes(n: usize) -> u64 {
        4 * n as u64 * n as u64
    }

    /// Rows `first..first + count` of a chunk, counted from the chunk's start.
    pub(super) fn rows<'a>(&self, chunk: &'a Chunk, first: usize, count: usize) -> Rows<'a> {
        let t4 = self.n / 4;
        Rows { buffer: &chunk.buffer, first, count, t4, stride: t4, at: 0 }
    }

    /// Reads the whole matrix, row by row.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self, c: Stream<'_, '_>) -> Result<Vec<f32>, GpuError> {
        let mut out = Vec::with_capacity(self.n * self.n);
        for chunk in &self.chunks {
            out.extend(c.read::<f32>(&chunk.buffer, 0, chunk.rows * self.n)?);
        }
        Ok(out)
    }

    /// Overwrites the whole matrix.
    ///
    /// # Errors
    /// A wrong number of values, or what the device reports.
    pub fn write(&self, c: Stream<'_, '_>, values: &[f32]) -> Result<(), GpuError> {
        if values.len() != self.n * self.n {
            return Err(shape_error("gram", format!("{} values for {} rows", values.len(), self.n)));
        }
        for chunk in &self.chunks {
            c.write(&chunk.buffer, 0, &values[chunk.first * self.n..][..chunk.rows * self.n])?;
        }
        Ok(())
    }

    /// Copies `from`, of the same size, into it.
    ///
    /// # Errors
    /// Another size, or what the device reports.
    pub fn copy_from(&self, c: Stream<'_, '_>, from: &Self) -> Result<(), GpuError> {
        if self.n != from.n {
            return Err(shape_error("gram", format!("{} rows into {}", from.n, self.n)));
        }
        for (to, from) in self.chunks.iter().zip(&from.chunks) {
            c.copy(&from.buffer, 0, &to.buffer, 0, 4 * (to.rows * self.n) as u64)?;
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TransposeParams {
    rows4: u32,
    cols4: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
    window4: u32,
    length: u32,
    col4: u32,
    scale: f32,
    pad: [u32; 2],
}

/// The input of a [`Kernels::gram`]: rows of one or several activations, one behind the other.
pub type Pieces<'a, 'b> = &'a [Rows<'b>];

impl Kernels<'_> {
    /// A matrix for [`Kernels::gram`] to transpose pieces of an input of `n` features into, of `tokens` tokens at the most.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn gram_scratch(&self, n: usize, tokens: usize) -> Result<Activation, GpuError> {
        let block = cut::block_tokens(self.limits(), n, tokens);
        Activation::new(self.gpu(), "scratch:transposed input", block, n / 4)
    }

    /// Bytes of [`Kernels::gram_scratch`].
    pub fn gram_scratch_bytes(&self, n: usize, tokens: usize) -> u64 {
        f32_bytes(cut::block_tokens(self.limits(), n, tokens), n)
    }

    /// Adds X X^T over the real tokens of a batch to the lower triangle of `h`: `x` `[n, t]` in pieces along the features.
    /// [`Kernels::mirror`] completes the matrix when all batches are in.
    ///
    /// Blocks of 512 tokens are transposed (padding tokens as zeros) and multiplied; their sums are added up in `h`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn gram(
        &self,
        c: Stream<'_, '_>,
        x: Pieces<'_, '_>,
        layout: Layout,
        scratch: &Activation,
        h: &Square,
    ) -> Result<(), GpuError> {
        let (n, t4) = (h.n, layout.t4());
        let features: usize = x.iter().map(|p| p.count).sum();
        if features != n || x.iter().any(|p| p.t4 != t4 || !p.count.is_multiple_of(4)) {
            return Err(shape_error("gram", format!("{features} features for {n} rows, {t4} x 4 tokens")));
        }
        let block4 = cut::block_tokens(self.limits(), n, 4 * t4) / 4;
        for tokens in cut::pieces(0..t4, block4) {
            let (first, here) = (tokens.start, tokens.len());
            let transposed = scratch.rows(0, 4 * here, n / 4)?;
            let mut row = 0;
            for piece in x {
                let from = piece.columns(first, here);
                self.transpose(c, from, transposed, row / 4, Some((layout, first)), 1.0)?;
                row += piece.count;
            }
            let mut row = 0;
            for piece in x {
                self.add_outer(c, piece.columns(first, here), row, transposed, h)?;
                row += piece.count;
            }
        }
        Ok(())
    }

    /// Adds `a xt` to the rows from `row` on of the lower triangle: `a` `[rows, block]`, `xt` `[block, n]`.
    fn add_outer(
        &self,
        c: Stream<'_, '_>,
        a: Rows<'_>,
        row: usize,
        xt: Rows<'_>,
        h: &Square,
    ) -> Result<(), GpuError> {
        // Strips of rows, each multiplied up to its last diagonal element only.
        let strip = cut::triangle_rows(h.n, 8, self.preset().row_unit());
        for chunk in &h.chunks {
            for strip in cut::pieces(cut::overlap(&chunk.range(), &(row..row + a.count)), strip) {
                let (at, rows) = (strip.start, strip.len());
                let a = Rows { first: a.first + at - row, count: rows, ..a };
                let y = h.rows(chunk, at - chunk.first, rows).columns(0, (at + rows) / 4);
                self.product_f32(c, a, xt.columns(0, y.t4), y, true)?;
            }
        }
        Ok(())
    }

    /// Completes a symmetric matrix whose lower triangle was computed.
    ///
    /// # Errors
    /// What the device reports.
    pub fn mirror(&self, c: Stream<'_, '_>, h: &Square) -> Result<(), GpuError> {
        const NAME: &str = "mirror";
        let lanes = self.preset().lanes;
        let stride = h.n / 4;
        for (i, chunk) in h.chunks.iter().enumerate() {
            let n4 = chunk.rows / 4;
            let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
            let params = [size(NAME, n4)?, size(NAME, stride)?, size(NAME, chunk.first / 4)?, 0];
            let work = Work { flops: 0.0, bytes: 16.0 * (chunk.rows * chunk.rows) as f64 };
            c.dispatch(&pipeline, &params, &[chunk.buffer.all()], self.fold(n4 * n4, lanes), work)?;
            for above in &h.chunks[..i] {
                let from = h.rows(chunk, 0, chunk.rows).columns(above.first / 4, above.rows / 4);
                let to = h.rows(above, 0, above.rows);
                self.transpose(c, from, to, chunk.first / 4, None, 1.0)?;
            }
        }
        Ok(())
    }

    /// `out[c, 4 * out4 + r] = scale * x[r, c]`. With a layout, the columns of `x` are tokens of that batch from the given vec4
    /// on, and padding tokens read as 0.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn transpose(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        out: Rows<'_>,
        out4: usize,
        windows: Option<(Layout, usize)>,
        scale: f32,
    ) -> Result<(), GpuError> {
        const NAME: &str = "transpose";
        if !x.count.is_multiple_of(4) || out.count < 4 * x.t4 || out.t4 < out4 + x.count / 4 {
            return Err(shape_error(
                NAME,
                format!("[{}, 4 x {}] into [{}, 4 x {}]", x.count, x.t4, out.count, out.t4),
            ));
        }
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        let (layout, col4) = windows.unwrap_or((Layout { windows: 0, length: 0 }, 0));
        let params = TransposeParams {
            rows4: size(NAME, x.count / 4)?,
            cols4: size(NAME, x.t4)?,
            x_at: size(NAME, x.at + x.first * x.stride)?,
            x_stride: size(NAME, x.stride)?,
            out_at: size(NAME, out.at + out.first * out.stride + out4)?,
            out_stride: size(NAME, out.stride)?,
            window4: size(NAME, layout.window4())?,
            length: size(NAME, layout.length)?,
            col4: size(NAME, col4)?,
            scale,
            pad: [0; 2],
        };
        let work = Work { flops: 0.0, bytes: 32.0 * (x.count * x.t4) as f64 };
        let grid = self.fold(x.count / 4 * x.t4, lanes);
        c.dispatch(&pipeline, &params, &[x.buffer.all(), out.buffer.all()], grid, work)
    }

    /// The diagonal of `h` into `out` `[n]`: for a Gram matrix the squared norms of its inputs.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn diagonal(&self, c: Stream<'_, '_>, h: &Square, out: &Buffer) -> Result<(), GpuError> {
        const NAME: &str = "diagonal";
        if out.bytes() < 4 * h.n as u64 {
            return Err(shape_error(NAME, format!("{} rows into {} bytes", h.n, out.bytes())));
        }
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        for chunk in &h.chunks {
            let params = [size(NAME, chunk.rows)?, size(NAME, h.n)?, size(NAME, chunk.first)?, 0];
            let work = Work { flops: 0.0, bytes: 8.0 * chunk.rows as f64 };
            let bind = [chunk.buffer.all(), out.all()];
            c.dispatch(&pipeline, &params, &bind, self.fold(chunk.rows, lanes), work)?;
        }
        Ok(())
    }

    /// `y = (W * mask) H` for the rows `outputs` of a weight; with the mask's complement, where it says so, `y = (W * !mask) H`; without a mask `y = W H`.
    /// `y` `[outputs, n]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn weight_times_square(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        mask: Option<(&MaskBuffer, bool)>,
        outputs: Range<usize>,
        h: &Square,
        y: Rows<'_>,
    ) -> Result<(), GpuError> {
        if weight.cols() != h.n {
            let message = format!("{} columns for {} rows", weight.cols(), h.n);
            return Err(shape_error("weight_times_square", message));
        }
        for (i, chunk) in h.chunks.iter().enumerate() {
            let x = h.rows(chunk, 0, chunk.rows);
            let product = Product {
                mask: mask.map(|(mask, _)| mask),
                complement: mask.is_some_and(|(_, complement)| complement),
                outputs: outputs.clone(),
                inputs: chunk.range(),
                accumulate: i > 0,
                ..Product::new(weight, x, y)
            };
            self.matmul(c, &product)?;
        }
        Ok(())
    }

    /// `y = a H`, `a` and `y` `[rows, n]` in f32.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn times_square(
        &self,
        c: Stream<'_, '_>,
        a: Rows<'_>,
        h: &Square,
        y: Rows<'_>,
    ) -> Result<(), GpuError> {
        if a.t4 != h.n / 4 {
            return Err(shape_error("times_square", format!("{} columns for {} rows", 4 * a.t4, h.n)));
        }
        for (i, chunk) in h.chunks.iter().enumerate() {
            let x = h.rows(chunk, 0, chunk.rows);
            self.product_f32(c, a.columns(chunk.first / 4, chunk.rows / 4), x, y, i > 0)?;
        }
        Ok(())
    }

    /// Adds to `y` `[n, cols]` the product of `a` with the rows `rows` of `h`, `a` `[n, rows]` being that many of its columns; `rows`
    /// are multiples of 4.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn add_times_square(
        &self,
        c: Stream<'_, '_>,
        a: Rows<'_>,
        h: &Square,
        rows: Range<usize>,
        y: Rows<'_>,
    ) -> Result<(), GpuError> {
        let whole = rows.start.is_multiple_of(4) && rows.end.is_multiple_of(4) && rows.end <= h.n;
        if !whole || 4 * a.t4 != rows.len() {
            let message = format!("{} columns for the rows {rows:?} of {}", 4 * a.t4, h.n);
            return Err(shape_error("add_times_square", message));
        }
        for chunk in &h.chunks {
            let here = cut::overlap(&chunk.range(), &rows);
            if !here.is_empty() {
                let x = h.rows(chunk, here.start - chunk.first, here.len());
                self.product_f32(c, a.columns((here.start - rows.start) / 4, here.len() / 4), x, y, true)?;
            }
        }
        Ok(())
    }
}
