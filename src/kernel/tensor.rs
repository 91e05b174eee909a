//! Tensors on the device: weights in row chunks, activations, bit masks.

use std::borrow::Cow;
use std::ops::Range;

use crate::gpu::{Buffer, Commands, Gpu, GpuError};
use crate::mask::BitMask;
use crate::model::{Dtype, TensorView, encode};

use super::{cut, f32_bytes, shape_error};

/// An activation `[rows, 4 * t4]` in f32: one row per feature, tokens contiguous.
pub struct Activation {
    pub(super) buffer: Buffer,
    rows: usize,
    t4: usize,
}

impl Activation {
    /// Allocates `rows` features of `4 * t4` tokens.
    ///
    /// # Errors
    /// When it does not fit the device, or one binding of it.
    pub fn new(gpu: &Gpu, label: &str, rows: usize, t4: usize) -> Result<Self, GpuError> {
        let bytes = f32_bytes(rows, 4 * t4);
        if bytes > gpu.max_binding_bytes() {
            return Err(GpuError::BindingTooLarge {
                label: label.to_string(),
                bytes,
                limit: gpu.max_binding_bytes(),
                remedy: "use a smaller batch or window".into(),
            });
        }
        Ok(Self { buffer: gpu.alloc(label, bytes)?, rows, t4 })
    }

    /// All rows, for the first `t4` vec4s of tokens of a tensor that was allocated for at least as many.
    ///
    /// # Errors
    /// When it holds fewer.
    pub fn rows(&self, first: usize, count: usize, t4: usize) -> Result<Rows<'_>, GpuError> {
        if (first + count) * t4 > self.rows * self.t4 {
            return Err(shape_error(
                "activation",
                format!(
                    "`{}` holds [{}, 4 * {}], asked for rows {first}..{} of 4 * {t4} tokens",
                    self.buffer.label(),
                    self.rows,
                    self.t4,
                    first + count
                ),
            ));
        }
        Ok(Rows { buffer: &self.buffer, first, count, t4, stride: t4, at: 0 })
    }

    /// Rows, and vec4s of tokens, that it was allocated for.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.t4)
    }

    /// The buffer behind it.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

/// Some rows of an activation that is used as `[.., 4 * t4]`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The whole buffer.
    pub buffer: &'a Buffer,
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
    /// Tokens / 4.
    pub t4: usize,
    /// vec4s from one row to the next: `t4`, or more where only some columns are used.
    pub(super) stride: usize,
    /// vec4 at which the used columns start.
    pub(super) at: usize,
}

impl Rows<'_> {
    /// `count` of these rows, from row `first` of them on.
    #[must_use]
    pub fn part(self, first: usize, count: usize) -> Self {
        Self { first: self.first + first, count, ..self }
    }

    /// Reads the rows, `[count, 4 * t4]`, after all that is recorded.
    ///
    /// # Errors
    /// For a part of the columns; what the device reports.
    pub fn download(self, c: &mut Commands<'_>) -> Result<Vec<f32>, GpuError> {
        c.read(self.buffer, self.begin()?, self.count * 4 * self.t4)
    }

    /// Writes the rows, `[count, 4 * t4]`, after all that is recorded.
    ///
    /// # Errors
    /// For a part of the columns, or values of another number; what the device reports.
    pub fn upload(self, c: &mut Commands<'_>, values: &[f32]) -> Result<(), GpuError> {
        if values.len() != self.count * 4 * self.t4 {
            let found = format!("{} values for {} rows of {}", values.len(), self.count, 4 * self.t4);
            return Err(shape_error("upload", found));
        }
        c.write(self.buffer, self.begin()?, values)
    }

    /// The byte at which the rows begin, where nothing lies between them.
    fn begin(&self) -> Result<u64, GpuError> {
        if self.stride != self.t4 || self.at != 0 {
            return Err(shape_error("rows", "a part of the columns has no one place".into()));
        }
        Ok(f32_bytes(self.first, 4 * self.t4))
    }

    /// The columns from vec4 `first` on, `t4` vec4s of them.
    #[must_use]
    pub fn columns(self, first: usize, t4: usize) -> Self {
        Self { at: self.at + first, t4, ..self }
    }
}

pub(super) struct Chunk {
    pub(super) buffer: Buffer,
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl Chunk {
    /// Its rows, counted from the start of the matrix.
    pub(super) fn range(&self) -> Range<usize> {
        self.first..self.first + self.rows
    }
}

/// A frozen matrix `[rows, cols]` in its stored type, each row padded to a multiple of four elements, cut into row chunks that
/// fit one binding.
pub struct Weight {
    pub(super) chunks: Vec<Chunk>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) dtype: Dtype,
}

impl Weight {
    /// Packed groups of four per row.
    pub fn k4(&self) -> usize {
        self.cols.div_ceil(4)
    }

    /// Rows (output features).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (input features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Stored type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes on the device.
    pub fn device_bytes(rows: usize, cols: usize, dtype: Dtype) -> u64 {
        rows as u64 * (cols.next_multiple_of(4) * dtype.on_device().size()) as u64
    }

    /// Uploads a matrix of the checkpoint, F64 as F32.
    ///
    /// # Errors
    /// When the tensor is not a matrix or the device has no room.
    pub fn upload(gpu: &Gpu, label: &str, view: &TensorView<'_>) -> Result<Self, GpuError> {
        let &[rows, cols] = view.shape else {
            return Err(shape_error(
                "weight",
                format!("{} has shape {:?}, a matrix is needed", view.name, view.shape),
            ));
        };
        let dtype = view.dtype.on_device();
        let size = dtype.size();
        let stride = cols.next_multiple_of(4) * size;
        let limit = gpu.limits().piece();
        let per_chunk = cut::weight_rows(gpu.limits(), rows, stride as u64);
        if (per_chunk * stride) as u64 > limit {
            return Err(GpuError::BindingTooLarge {
                label: label.to_string(),
                bytes: (per_chunk * stride) as u64,
                limit,
                remedy: format!("{per_chunk} rows must fit: use another adapter"),
            });
        }
        let chunk = |r: Range<usize>| {
            let buffer = gpu.alloc(label, (r.len() * stride) as u64)?;
            Ok(Chunk { buffer, first: r.start, rows: r.len() })
        };
        let chunks = cut::pieces(0..rows, per_chunk).map(chunk).collect::<Result<_, GpuError>>()?;
        let out = Self { chunks, rows, cols, dtype };
        out.fill(gpu, view)?;
        Ok(out)
    }

    /// Writes the elements of `view`, which has the shape and, on a device, the type of this weight.
    fn fill(&self, gpu: &Gpu, view: &TensorView<'_>) -> Result<(), GpuError> {
        let data = match view.dtype {
            Dtype::F64 => Cow::Owned(encode(Dtype::F32, &view.to_f32())),
            _ => Cow::Borrowed(view.data),
        };
        let row = self.cols * self.dtype.size();
        let stride = self.cols.next_multiple_of(4) * self.dtype.size();
        for chunk in &self.chunks {
            let data = &data[chunk.first * row..(chunk.first + chunk.rows) * row];
            if self.cols.is_multiple_of(4) {
                gpu.upload(&chunk.buffer, 0, data)?;
            } else {
                let mut padded = vec![0u8; chunk.rows * stride];
                for (to, from) in padded.chunks_exact_mut(stride).zip(data.chunks_exact(row)) {
                    to[..from.len()].copy_from_slice(from);
                }
                gpu.upload(&chunk.buffer, 0, &padded)?;
            }
        }
        Ok(())
    }

    /// Its row chunks.
    pub fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.chunks.iter().map(|chunk| &chunk.buffer)
    }

    /// Reads an f32 weight `[rows, cols]`.
    ///
    /// # Errors
    /// Another type, or what the device reports.
    pub fn read(&self, c: &mut Commands<'_>) -> Result<Vec<f32>, GpuError> {
        if self.dtype != Dtype::F32 {
            return Err(shape_error("weight", format!("{} read as {}", self.dtype, Dtype::F32)));
        }
        let stride = self.cols.next_multiple_of(4);
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for chunk in &self.chunks {
            let values: Vec<f32> = c.read(&chunk.buffer, 0, chunk.rows * stride)?;
            values.chunks_exact(stride).for_each(|row| out.extend(&row[..self.cols]));
        }
        Ok(out)
    }

    /// Overwrites the weight, after what is recorded in `c`, with another of the same shape and type.
    ///
    /// # Errors
    /// Another shape or type, or what the device reports.
    pub fn overwrite(&self, c: &mut Commands<'_>, view: &TensorView<'_>) -> Result<(), GpuError> {
        if view.shape != [self.rows, self.cols] || view.dtype.on_device() != self.dtype {
            let message = format!("{} {:?} over [{}, {}]", view.dtype, view.shape, self.rows, self.cols);
            return Err(shape_error("weight", message));
        }
        c.submit()?;
        self.fill(c.gpu(), view)
    }
}

/// A bit mask on the device, laid out as [`BitMask`].
pub struct MaskBuffer {
    pub(super) buffer: Buffer,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl MaskBuffer {
    /// Words per row.
    pub fn words_per_row(&self) -> usize {
        self.cols.div_ceil(32)
    }

    /// Bytes on the device.
    pub fn device_bytes(rows: usize, cols: usize) -> u64 {
        (rows * cols.div_ceil(32) * 4) as u64
    }

    /// Allocates an all-zero mask.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(gpu: &Gpu, label: &str, rows: usize, cols: usize) -> Result<Self, GpuError> {
        Ok(Self { buffer: gpu.alloc(label, Self::device_bytes(rows, cols))?, rows, cols })
    }

    /// Allocates and fills it from the host.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload(gpu: &Gpu, label: &str, mask: &BitMask) -> Result<Self, GpuError> {
        let out = Self::new(gpu, label, mask.rows(), mask.cols())?;
        gpu.upload(&out.buffer, 0, bytemuck::cast_slice(mask.words()))?;
        Ok(out)
    }

    /// The buffer behind it.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
}
