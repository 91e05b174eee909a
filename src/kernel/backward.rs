//! Gradients of the losses.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::elementwise::{capped, sliced_defs};
use super::vocab::{DIVERGENCE, VOCAB_STATE, vocabulary_blocks};
use super::{Kernels, Layout, Rows, Stream, f32_bytes, shape_error, size};
use crate::gpu::{Buffer, Defs, GpuError, Work};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ErrorParams {
    features: u32,
    t4: u32,
    window4: u32,
    length: u32,
    scale: f32,
    pad: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GradientParams {
    rows: u32,
    count: u32,
    t4: u32,
    first: u32,
    scale: f32,
    cap: f32,
    pad: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct KlParams {
    rows: u32,
    start: u32,
    end: u32,
    t4: u32,
    scale: f32,
    caps: [f32; 2],
    first: u32,
}

/// Rows of the logits that an invocation of `vocab_gradient` makes.
const GRADIENT_ROWS: u32 = 16;

/// Whether all are whole tensors of one shape.
fn alike(rows: &[Rows<'_>]) -> bool {
    rows.iter().all(|r| r.first == 0 && r.count == rows[0].count && r.t4 == rows[0].t4)
}

/// The softmax over the whole vocabulary of the tokens of a batch.
#[derive(Clone, Copy)]
pub struct Softmax<'a> {
    /// What [`Kernels::vocab_reduce`] has left after all rows, [`VOCAB_STATE`, t].
    pub state: Rows<'a>,
    /// Where there is one, it is the softmax of `cap * tanh(logits / cap)`.
    pub cap: Option<f32>,
}

impl Kernels<'_> {
    /// `errors` `[t]` = `w * sum over features of (y - target)^2` per token, and `y = scale * w * (y - target)` in place, with `w` of
    /// `token_weights` `[t]`, or 1; `y`, `target` `[features, t]`. Tokens that pad a window get zeros in both.
    /// `y` is the gradient of `scale / 2 * sum(errors)`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn squared_error(
        &self,
        c: Stream<'_, '_>,
        [y, target]: [Rows<'_>; 2],
        token_weights: Option<&Buffer>,
        scale: f32,
        errors: &Buffer,
        layout: Layout,
    ) -> Result<(), GpuError> {
        const NAME: &str = "squared_error";
        let vector = 16 * y.t4 as u64;
        let fits = alike(&[y, target])
            && y.t4 == layout.t4()
            && errors.bytes() >= vector
            && token_weights.is_none_or(|w| w.bytes() >= vector);
        if !fits {
            return Err(shape_error(NAME, format!("y {} rows, target {} rows", y.count, target.count)));
        }
        let (lanes, slices) = self.preset().reduce;
        let mut defs = sliced_defs(lanes, slices);
        let mut bind = vec![y.buffer.all(), target.buffer.all(), errors.all()];
        if let Some(weights) = token_weights {
            defs.push(("WEIGHTS", 1));
            bind.push(weights.all());
        }
        let pipeline = self.pipeline(NAME, defs)?;
        let params = ErrorParams {
            features: size(NAME, y.count)?,
            t4: size(NAME, y.t4)?,
            window4: size(NAME, layout.window4())?,
            length: size(NAME, layout.length)?,
            scale,
            pad: [0; 3],
        };
        let values = (y.count * y.t4 * 4) as f64;
        let work = Work { flops: 5.0 * values, bytes: 12.0 * values };
        c.dispatch(&pipeline, &params, &bind, [y.t4.div_ceil(lanes as usize) as u32, 1, 1], work)
    }

    /// `logits = scale * (softmax - [row is the target])` in place, for the vocabulary rows `chunk`, with the `softmax` of all rows, where
    /// `targets` is `[t]` u32. Tokens without a target
    /// (`u32::MAX`) get zeros, and so do the rows of `logits` behind the chunk, which pad it. With a cap the gradient is still
    /// that of the logits in the buffer.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn vocab_gradient(
        &self,
        c: Stream<'_, '_>,
        logits: Rows<'_>,
        chunk: Range<usize>,
        targets: &Buffer,
        Softmax { state, cap }: Softmax<'_>,
        scale: f32,
    ) -> Result<(), GpuError> {
        const NAME: &str = "vocab_gradient";
        let (first, rows) = (chunk.start, chunk.len());
        let mut cap_defs = Defs::new();
        let cap = capped(NAME, cap, "CAP", &mut cap_defs)?;
        if !fits_chunk(logits, rows, targets) || !fits_state(logits, state) {
            return Err(shape_error(NAME, format!("{rows} of {} rows of logits", logits.count)));
        }
        let (lanes, slices) = self.preset().reduce;
        let pipeline = self.pipeline(NAME, [sliced_defs(lanes, slices), cap_defs].concat())?;
        let params = GradientParams {
            rows: size(NAME, rows)?,
            count: size(NAME, logits.count)?,
            t4: size(NAME, logits.t4)?,
            first: size(NAME, first)?,
            scale,
            cap,
            pad: [0; 2],
        };
        let values = (logits.count * logits.t4 * 4) as f64;
        let work = Work { flops: 4.0 * values, bytes: 8.0 * values };
        let down = logits.count.div_ceil((GRADIENT_ROWS * slices) as usize);
        let grid = [logits.t4.div_ceil(lanes as usize) as u32, size(NAME, down)?, 1];
        let bind = [logits.buffer.all(), targets.all(), state.buffer.all()];
        c.dispatch(&pipeline, &params, &bind, grid, work)
    }

    /// Adds to `kl` [`DIVERGENCE`, t], zeros before the first chunk, the share of the vocabulary rows `chunk` in the divergence
    /// `sum p_dense * (log p_dense - log p)`, where `p` is the first softmax, of `logits`, `p_dense` the second, of `dense`, and how many rows are the greatest logit of both: [`LogSum::divergence`](super::LogSum::divergence) and
    /// [`agrees`](super::agrees) read it; and `logits = scale * (p - p_dense)` in place. Tokens without one of `targets` `[t]` u32 (`u32::MAX`) add nothing and get zeros; the rows of `logits`
    /// behind the chunk, which pad it, get zeros. With caps the gradient is still that of the logits in the buffer.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn vocab_kl(
        &self,
        c: Stream<'_, '_>,
        [logits, dense]: [Rows<'_>; 2],
        chunk: Range<usize>,
        [own, other]: [Softmax<'_>; 2],
        targets: &Buffer,
        (scale, kl): (f32, &Buffer),
    ) -> Result<(), GpuError> {
        const NAME: &str = "vocab_kl";
        let (first, rows) = (chunk.start, chunk.len());
        let (state, dense_state) = (own.state, other.state);
        let mut cap_defs = Defs::new();
        let caps = [
            capped(NAME, own.cap, "CAP", &mut cap_defs)?,
            capped(NAME, other.cap, "DENSE_CAP", &mut cap_defs)?,
        ];
        let fits = fits_chunk(logits, rows, targets)
            && alike(&[logits, dense])
            && fits_state(logits, state)
            && fits_state(logits, dense_state)
            && kl.bytes() >= f32_bytes(DIVERGENCE, 4 * logits.t4);
        if !fits {
            let message = format!("{rows} of {} rows of logits, {} of dense ones", logits.count, dense.count);
            return Err(shape_error(NAME, message));
        }
        let (lanes, slices) = self.preset().reduce;
        let pipeline = self.pipeline(NAME, [sliced_defs(lanes, slices), cap_defs].concat())?;
        let bind = [
            logits.buffer.all(),
            dense.buffer.all(),
            state.buffer.all(),
            dense_state.buffer.all(),
            targets.all(),
            kl.all(),
        ];
        let grid = [logits.t4.div_ceil(lanes as usize) as u32, 1, 1];
        for block in vocabulary_blocks(logits.count, slices) {
            let params = KlParams {
                rows: size(NAME, rows)?,
                start: size(NAME, block.start)?,
                end: size(NAME, block.end)?,
                t4: size(NAME, logits.t4)?,
                scale,
                caps,
                first: size(NAME, first)?,
            };
            let values = (block.len() * logits.t4 * 4) as f64;
            let work = Work { flops: 10.0 * values, bytes: 12.0 * values };
            c.dispatch(&pipeline, &params, &bind, grid, work)?;
        }
        Ok(())
    }
}

/// Whether `logits` is a chunk of `rows` rows and what pads it, with a target for every token.
fn fits_chunk(logits: Rows<'_>, rows: usize, targets: &Buffer) -> bool {
    let t4 = logits.t4 as u64;
    logits.first == 0 && rows > 0 && rows <= logits.count && targets.bytes() >= 16 * t4
}

/// Whether `state` is the running log-sum-exp of the tokens of `logits`.
fn fits_state(logits: Rows<'_>, state: Rows<'_>) -> bool {
    state.first == 0 && state.count == VOCAB_STATE && state.t4 == logits.t4
}
