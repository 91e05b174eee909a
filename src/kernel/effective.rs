//! Effective weights: frozen or trained weights under no mask, a bit mask, or a soft mask that is being learned.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::matmul::weight_def;
use super::soft::{LOG2_E, element, noise_params, state_def};
use super::{
    Kernels, MaskBuffer, Rows, SoftPatterns, SoftTopN, StateType, Stream, Weight, shape_error, size,
};
use crate::gpu::{Binding, Buffer, Defs, GpuError, Work};

/// What multiplies a weight.
#[derive(Clone, Copy)]
pub enum Masking<'a> {
    /// Nothing.
    Dense,
    /// A strict mask.
    Bits(&'a MaskBuffer),
    /// A soft top-N mask from a logit per weight.
    TopN(SoftTopN<'a>),
    /// A soft mask from a logit per pattern.
    Patterns(SoftPatterns<'a>),
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    k4: u32,
    w_first: u32,
    out_at: u32,
    out_stride: u32,
    out_rows: u32,
    first_row: u32,
    words: u32,
    state_at: u32,
    state_stride: u32,
    step: u32,
    projection: u32,
    seed: [u32; 2],
    gain: f32,
    noise: f32,
    removal: f32,
    fours: u32,
    pad: u32,
}

/// What the logits of a masking are, and what the kernel needs to read them.
struct Source<'a> {
    defs: Defs,
    logits: Option<&'a Buffer>,
    /// Bytes of a row of logits and of one element of them.
    row_bytes: u64,
    element: u64,
    params: Params,
}

const NAME: &str = "effective";

impl Kernels<'_> {
    /// Rows `rows` of the effective weights, in f32.
    ///
    /// `out` is `[rows, cols]`, or transposed `[cols, rows]`; the second axis padded to a multiple of 4 with zeros, and, transposed,
    /// the first one, too, as far as `out` has rows for it. Transposed, `rows` starts at a multiple of 4.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn effective(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        masking: Masking<'_>,
        rows: Range<usize>,
        out: Rows<'_>,
        transposed: bool,
    ) -> Result<(), GpuError> {
        let (k4, cols, count) = (weight.k4(), weight.cols(), rows.len());
        let fits = match transposed {
            false => out.count == count && out.t4 == k4,
            true => {
                (cols..=4 * k4).contains(&out.count)
                    && out.t4 == count.div_ceil(4)
                    && rows.start.is_multiple_of(4)
            }
        };
        if !fits || rows.end > weight.rows() {
            return Err(shape_error(
                NAME,
                format!(
                    "rows {rows:?} of [{}, {cols}] into [{}, {}]{}",
                    weight.rows(),
                    out.count,
                    4 * out.t4,
                    if transposed { " transposed" } else { "" }
                ),
            ));
        }
        let source = source(weight, masking)?;
        let lanes = self.preset().lanes;
        let mut defs = vec![weight_def(weight.dtype()), ("LANES", lanes)];
        if transposed {
            defs.push(("TRANSPOSED", 1));
        }
        defs.extend(source.defs);
        let pipeline = self.pipeline(NAME, defs)?;
        let span = match masking {
            Masking::Dense | Masking::Bits(_) => 1,
            Masking::TopN(SoftTopN { pattern, .. }) | Masking::Patterns(SoftPatterns { pattern, .. }) => {
                (pattern.m() / 4).max(1)
            }
        };
        let unit = if transposed { 4 } else { 1 };
        for strip in self.strips(NAME, weight, &rows, source.row_bytes, unit)? {
            let done = strip.from - rows.start;
            let start = out.at + out.first * out.stride;
            let mut params = Params {
                rows: size(NAME, strip.rows())?,
                cols: size(NAME, cols)?,
                k4: size(NAME, k4)?,
                w_first: size(NAME, (strip.from - strip.chunk.first) * k4)?,
                out_at: size(NAME, start + if transposed { done / 4 } else { done * out.stride })?,
                out_stride: size(NAME, out.stride)?,
                out_rows: size(NAME, out.count)?,
                first_row: size(NAME, strip.from)?,
                ..source.params
            };
            let mut bind: Vec<Binding<'_>> = vec![strip.chunk.buffer.all(), out.buffer.all()];
            if let Masking::Bits(mask) = masking {
                bind.push(mask.buffer.all());
            }
            if let Some(logits) = source.logits {
                let (binding, skipped) = strip.bind(logits, source.row_bytes);
                bind.push(binding);
                params.state_at = size(NAME, (skipped / source.element) as usize)?;
            }
            let values = (strip.rows() * 4 * k4) as f64;
            let flops = if source.logits.is_some() { 60.0 * values } else { 0.0 };
            let bytes =
                values * (4.0 + weight.dtype().size() as f64) + strip.rows() as f64 * source.row_bytes as f64;
            let units = if transposed { strip.rows().div_ceil(4) } else { strip.rows() };
            let grid = self.fold(units * (k4 / span), lanes);
            c.dispatch(&pipeline, &params, &bind, grid, Work { flops, bytes })?;
        }
        Ok(())
    }
}

fn source<'a>(weight: &Weight, masking: Masking<'a>) -> Result<Source<'a>, GpuError> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut out = Source {
        defs: defs_of(0, 1, 4, 4, StateType::F32, false),
        logits: None,
        row_bytes: 0,
        element: 1,
        params: Params::zeroed(),
    };
    let wrong = |message: String| Err(shape_error(NAME, message));
    match masking {
        Masking::Dense => {}
        Masking::Bits(mask) => {
            if mask.shape() != (rows, cols) {
                return wrong(format!("a mask {:?} for [{rows}, {cols}]", mask.shape()));
            }
            out.defs = defs_of(1, 1, 4, 4, StateType::F32, false);
            out.params.words = size(NAME, mask.words_per_row())?;
        }
        Masking::TopN(soft) => {
            let elements = soft.row_elements(NAME, weight)?;
            let (n, m) = (soft.pattern.n() as u32, soft.pattern.m() as u32);
            let relaxation = soft.relaxation.def(soft.pattern);
            out.defs = top_defs((n, m), relaxation, soft.state, soft.noise.is_some());
            out.logits = Some(soft.logits);
            out.row_bytes = (cols * soft.state.size()) as u64;
            out.element = (element(soft.pattern) * soft.state.size()) as u64;
            let noise = noise_params(soft.noise, soft.temperature);
            out.params = Params {
                state_stride: size(NAME, elements)?,
                step: noise.step,
                projection: noise.projection,
                seed: noise.seed,
                gain: LOG2_E / soft.temperature,
                noise: noise.factor,
                removal: soft.relaxation.removal(),
                ..out.params
            };
        }
        Masking::Patterns(soft) => {
            let (count, pairs) = soft.row_pairs(NAME, weight)?;
            let (n, m) = (soft.pattern.n() as u32, soft.pattern.m() as u32);
            out.defs = defs_of(3, n, m, count as u32, StateType::F32, soft.noise.is_some());
            out.logits = Some(soft.logits);
            out.row_bytes = 8 * pairs as u64;
            out.element = 8;
            let noise = noise_params(soft.noise, soft.temperature);
            out.params = Params {
                state_stride: size(NAME, pairs)?,
                step: noise.step,
                projection: noise.projection,
                seed: noise.seed,
                gain: soft.scale * LOG2_E / soft.temperature,
                noise: noise.factor,
                fours: count.div_ceil(4) as u32,
                ..out.params
            };
        }
    }
    Ok(out)
}

/// Defs of a masking; N, M and COUNT must be there always.
pub(super) fn defs_of(masking: u32, n: u32, m: u32, count: u32, state: StateType, noise: bool) -> Defs {
    masked_defs(masking, (n, m), count, 0, state, noise)
}

/// The same of soft top-N masks.
pub(super) fn top_defs(pattern: (u32, u32), relaxation: u32, state: StateType, noise: bool) -> Defs {
    masked_defs(2, pattern, 2, relaxation, state, noise)
}

fn masked_defs(
    masking: u32,
    (n, m): (u32, u32),
    count: u32,
    relaxation: u32,
    state: StateType,
    noise: bool,
) -> Defs {
    let mut out = vec![
        ("MASKING", masking),
        ("N", n),
        ("M", m),
        ("COUNT", count),
        ("RELAXATION", relaxation),
        state_def(state),
    ];
    if noise {
        out.push(("NOISE", 1));
    }
    out
}
