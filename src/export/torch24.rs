//! The compressed layout of PyTorch's semi-structured tensors (CUTLASS, sm80), as
//! `torch.sparse._semi_structured_conversions.sparse_semi_structured_from_dense_cutlass` makes it.
//!
//! Of every four weights of a row two are stored, in order, and four bits name their places: `p0 | p1 << 2`. f32 keeps one of
//! two, written as if each f32 were two halves. The metadata elements are then interleaved over rows and pairs of columns.

use std::path::Path;

use safetensors::Dtype as Stored;
use serde_json::json;

use crate::fsio;
use crate::mask::Pattern;
use crate::model::Dtype;

use super::elements;
pub use super::elements::qualifies;
use super::hf::Summary;
use super::packed::{self, Codec, Coded, Part, Weight};
use super::{ExportError, LayoutError, MaskedModel};

/// Places of the kept weights by the flags "weight i is not zero" (bit i), as the reference picks them.
const NIBBLES: [u8; 16] = [14, 8, 9, 4, 14, 8, 9, 4, 14, 12, 13, 4, 14, 12, 13, 4];

/// The description beside the shards.
pub const INDEX: &str = "torch24.json";
/// What the description says it is.
pub(super) const FORMAT: &str = "maskwright-torch24";
pub(super) const VERSION: u32 = 1;
/// The loader beside the shards.
pub const LOADER: &str = "load_torch24.py";
const LOADER_TEXT: &str = include_str!("load_torch24.py");

/// What the layout depends on in an element type.
#[derive(Clone, Copy)]
struct Layout {
    /// Bytes of an element.
    size: usize,
    /// Weights behind one nibble.
    group: usize,
    /// Weights kept of a group.
    kept: usize,
    /// Bytes of a metadata element; it holds twice as many nibbles.
    meta: usize,
    /// Rows must be a multiple of this.
    rows: usize,
    /// Columns must be a multiple of this, for the layout and for the class at run time.
    cols: [usize; 2],
}

impl Layout {
    fn of(dtype: Stored) -> Option<Self> {
        match dtype {
            Stored::F16 | Stored::BF16 => {
                Some(Self { size: 2, group: 4, kept: 2, meta: 2, rows: 32, cols: [32, 64] })
            }
            Stored::F32 => Some(Self { size: 4, group: 2, kept: 1, meta: 2, rows: 32, cols: [16, 32] }),
            Stored::I8 => Some(Self { size: 1, group: 4, kept: 2, meta: 4, rows: 16, cols: [64, 128] }),
            _ => None,
        }
    }

    /// The layout of a weight, or why it has none. `runtime` asks for what the tensor class needs, which is more.
    fn check(dtype: Stored, rows: usize, cols: usize, runtime: bool) -> Result<Self, String> {
        let layout = Self::of(dtype).ok_or_else(|| format!("there is no such layout for {dtype}"))?;
        let multiple = layout.cols[usize::from(runtime)];
        if rows == 0 || cols == 0 || !rows.is_multiple_of(layout.rows) || !cols.is_multiple_of(multiple) {
            return Err(format!(
                "{rows} x {cols} does not fit: in {dtype}, rows must be a multiple of {} and columns of {multiple}",
                layout.rows
            ));
        }
        Ok(layout)
    }

    /// Columns of the metadata.
    fn meta_cols(self, cols: usize) -> usize {
        cols / self.group / (2 * self.meta)
    }

    /// Where metadata element `(r, c)` goes.
    fn place(self, rows: usize, r: usize, c: usize) -> usize {
        let (group, interleave) = if self.meta == 2 { (32, 4) } else { (16, 2) };
        let mut row = r / group * group + r % 8 * interleave + r % group / 8;
        let mut col = c;
        match (row % 2, col % 2) {
            (0, 1) => (row, col) = (row + 1, col - 1),
            (1, 0) => (row, col) = (row - 1, col + 1),
            _ => {}
        }
        col / 2 * 2 * rows + row * 2 + col % 2
    }
}

/// A compressed weight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compressed {
    /// The kept weights, `[rows, cols / 2]`, little-endian.
    pub packed: Vec<u8>,
    /// The reordered metadata, `[rows, meta_cols]`, of i16 (i32 for an i8 weight), little-endian.
    pub meta: Vec<u8>,
    /// Columns of the metadata.
    pub meta_cols: usize,
}

/// The places of the two weights that are kept of a group of four, `p0 | p1 << 2`; bit `i` of `flags` = weight `i` is not zero.
pub fn nibble(flags: usize) -> u8 {
    NIBBLES.get(flags).copied().unwrap_or(14)
}

/// Compresses a weight `[rows, cols]` of F16, BF16, F32 or I8, given as its bytes. Groups with more weights than the layout
/// holds lose some, as in the reference; -0.0 counts as zero.
///
/// # Errors
/// Why the type or the shape has no such layout.
pub fn pack(dtype: Stored, rows: usize, cols: usize, dense: &[u8]) -> Result<Compressed, LayoutError> {
    let layout = Layout::check(dtype, rows, cols, false)?;
    let Layout { size, group, kept, meta: meta_size, .. } = layout;
    elements::expect_len(dense, rows, cols, size)?;
    let meta_cols = layout.meta_cols(cols);
    let mut packed = Vec::with_capacity(dense.len() / 2);
    let mut meta = vec![0u8; rows * meta_cols * meta_size];
    for (r, row) in dense.chunks_exact(cols * size).enumerate() {
        for (g, weights) in row.chunks_exact(group * size).enumerate() {
            let mut flags = 0usize;
            for (i, weight) in weights.chunks_exact(size).enumerate() {
                flags |= usize::from(!elements::is_zero(weight, dtype)) << i;
            }
            let nibble = match group {
                // The first of two is kept when it is not zero, else the second.
                2 => 14 - 10 * (flags as u8 & 1),
                _ => nibble(flags),
            };
            for p in places(nibble, kept) {
                packed.extend_from_slice(weights.get(p * size..(p + 1) * size).unwrap_or(&[]));
            }
            let place = layout.place(rows, r, g / (2 * meta_size)) * meta_size + g % (2 * meta_size) / 2;
            if let Some(byte) = meta.get_mut(place) {
                *byte |= nibble << (g % 2 * 4);
            }
        }
    }
    Ok(Compressed { packed, meta, meta_cols })
}

/// The dense weight of a compressed one: the inverse of [`pack`].
///
/// # Errors
/// A type or shape without such a layout, a wrong number of bytes, and places that hardware does not know.
pub fn unpack(
    dtype: Stored,
    rows: usize,
    cols: usize,
    packed: &[u8],
    meta: &[u8],
) -> Result<Vec<u8>, LayoutError> {
    let layout = Layout::check(dtype, rows, cols, false)?;
    let Layout { size, group, kept, meta: meta_size, .. } = layout;
    elements::expect_len(packed, rows, cols / 2, size)?;
    elements::expect_len(meta, rows, layout.meta_cols(cols), meta_size)?;
    let mut dense = vec![0u8; rows * cols * size];
    let mut values = packed.chunks_exact(size);
    for (r, row) in dense.chunks_exact_mut(cols * size).enumerate() {
        for (g, weights) in row.chunks_exact_mut(group * size).enumerate() {
            let place = layout.place(rows, r, g / (2 * meta_size)) * meta_size + g % (2 * meta_size) / 2;
            let nibble = meta.get(place).map_or(0, |b| b >> (g % 2 * 4) & 15);
            let valid = match group {
                2 => matches!(nibble, 4 | 14),
                _ => matches!(nibble, 4 | 8 | 9 | 12 | 13 | 14),
            };
            if !valid {
                let what = format!("has the metadata {nibble:#x}, which means nothing");
                return Err(LayoutError::Group { row: r, group: g, what });
            }
            for p in places(nibble, kept) {
                if let (Some(to), Some(from)) = (weights.get_mut(p * size..(p + 1) * size), values.next()) {
                    to.copy_from_slice(from);
                }
            }
        }
    }
    Ok(dense)
}

/// The kept places of a group. An f32 stands for two halves, so its nibble names halves.
fn places(nibble: u8, kept: usize) -> impl Iterator<Item = usize> {
    let [first, second] = [usize::from(nibble & 3), usize::from(nibble >> 2)];
    let first = if kept == 1 { first / 2 } else { first };
    [first, second].into_iter().take(kept)
}

/// Whether a weight `[rows, cols]` under a mask of `pattern` can be packed and its tensor class takes it.
///
/// # Errors
/// Why not.
pub fn fits(pattern: Pattern, dtype: Dtype, rows: usize, cols: usize) -> Result<(), String> {
    Layout::check(elements::stored(dtype), rows, cols, true)?;
    if dtype == Dtype::F32 && pattern.n() != 1 {
        return Err(format!(
            "F32 weights keep 1 of 2 in this layout, the mask is {pattern}; convert the model to F16 or BF16 first"
        ));
    }
    if !qualifies(pattern) {
        return Err(format!("{pattern} is not what 2:4 hardware runs"));
    }
    Ok(())
}

/// Writes the model to the new folder `out`: shards `torch24-*.safetensors` beside `torch24.json` and the loader. Their names are
/// not those of a model's weights, so that no other loader takes the folder for a model and fills it with random weights.
///
/// # Errors
/// As [`super::hf::write`]; and [`ExportError::Format`] when no projection can be packed.
pub fn write(model: &MaskedModel<'_>, out: &Path) -> Result<Summary, ExportError> {
    packed::write(&Torch24, model, out)
}

pub(super) struct Torch24;

impl Codec for Torch24 {
    const NAME: &'static str = "torch24";
    const VALUES: &'static str = "packed";

    fn fits(&self, pattern: Pattern, Weight { dtype, rows, cols }: Weight) -> Result<(), String> {
        fits(pattern, dtype, rows, cols)
    }

    fn parts(&self, Weight { dtype, rows, cols }: Weight) -> Vec<Part> {
        let dtype = elements::stored(dtype);
        let Some(layout) = Layout::of(dtype) else { return Vec::new() };
        let (meta, meta_cols) =
            (if layout.meta == 2 { Stored::I16 } else { Stored::I32 }, layout.meta_cols(cols));
        vec![Part::new(Self::VALUES, dtype, [rows, cols / 2]), Part::new("meta", meta, [rows, meta_cols])]
    }

    fn encode(&self, weight: Weight, masked: &[u8], part: &str) -> Result<Vec<u8>, LayoutError> {
        let done = pack(elements::stored(weight.dtype), weight.rows, weight.cols, masked)?;
        Ok(if part == Self::VALUES { done.packed } else { done.meta })
    }

    fn decode(&self, weight: Weight, parts: &[&[u8]]) -> Result<Vec<u8>, LayoutError> {
        let [values, meta] = *parts else { return Err(LayoutError::Unfit("it has two parts".into())) };
        unpack(elements::stored(weight.dtype), weight.rows, weight.cols, values, meta)
    }

    fn shard_name(&self, number: usize, of: usize, _: &str) -> String {
        format!("torch24-{:05}-of-{of:05}.safetensors", number + 1)
    }

    fn finish(&self, folder: &Path, done: &Coded<'_>) -> Result<(), ExportError> {
        let projections: Vec<_> = done
            .projections
            .iter()
            .map(|p| {
                json!({ "name": p.name, "shape": p.shape, "dtype": p.dtype.to_string(),
                    "packed": p.dense_because.is_none(), "dense_because": p.dense_because })
            })
            .collect();
        let text = json!({
            "format": FORMAT,
            "format_version": VERSION,
            "pattern": done.pattern.to_string(),
            "layout": "torch.sparse.SparseSemiStructuredTensorCUTLASS, sm80",
            "shards": done.shards,
            "projections": projections,
        });
        fsio::write_bytes(&folder.join(INDEX), format!("{text:#}\n").as_bytes())?;
        Ok(fsio::write_bytes(&folder.join(LOADER), LOADER_TEXT.as_bytes())?)
    }
}
