//! Sums over the vocabulary: the running log-sum-exp of every token, and what the host makes of it and of divergences, in f64.

use std::ops::Range;

use super::elementwise::{capped, sliced_defs};
use super::{Kernels, Rows, Stream, shape_error, size};
use crate::gpu::{Buffer, Defs, GpuError, Work};

/// Rows of the running log-sum-exp of tokens: greatest logit, the logit that exponentials are taken from, their sum in four levels, the
/// target's logit.
pub const VOCAB_STATE: usize = 7;

/// Rows of what [`Kernels::vocab_kl`] adds up: a sum in four levels, agreement of the greatest logits, what was added to every difference.
pub const DIVERGENCE: usize = 6;

/// The log-sum-exp of one token over the whole vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSum {
    /// The greatest logit.
    pub top: f64,
    /// The logit that exponentials are taken from, near the greatest one.
    pub near: f64,
    /// Sum of `exp(logit - near)`.
    pub sum: f64,
    /// The target's logit, 0 without a target.
    pub target: f64,
}

/// The four levels of a sum, from row `first` on, of token `t`.
fn levels(rows: &[f32], tokens: usize, first: usize, t: usize) -> f64 {
    (first..first + 4).map(|row| f64::from(rows[row * tokens + t])).sum()
}

impl LogSum {
    /// Of token `t` of a state [`VOCAB_STATE`, tokens] read back.
    pub fn of(state: &[f32], tokens: usize, t: usize) -> Self {
        let row = |row: usize| f64::from(state[row * tokens + t]);
        Self { top: row(0), near: row(1), sum: levels(state, tokens, 2, t), target: row(6) }
    }

    /// Negative log-likelihood of the target, in nats.
    pub fn loss(&self) -> f64 {
        (self.near - self.target) + self.sum.ln()
    }

    /// `sum p_dense * (log p_dense - log p)` in nats, of token `t` of sums [`DIVERGENCE`, tokens] read back; this is the state of p.
    pub fn divergence(&self, dense: &Self, sums: &[f32], tokens: usize, t: usize) -> f64 {
        let offset = f64::from(sums[5 * tokens + t]);
        levels(sums, tokens, 0, t) / dense.sum + ((self.sum.ln() - dense.sum.ln()) - offset)
    }
}

/// Whether the greatest logits of both models are of one row, of token `t` of sums [`DIVERGENCE`, tokens] read back.
pub fn agrees(sums: &[f32], tokens: usize, t: usize) -> bool {
    sums[4 * tokens + t] > 0.0
}

/// Rows of the logits that one dispatch takes where an invocation walks all rows of its tokens: on a CPU the rows of many tokens lie
/// pages apart, and more of them than the translation buffer holds take more than twice as long. A block of
/// `vocab_reduce`: the cut does not change how it adds.
const BLOCK_ROWS: usize = 64;

/// The rows of each dispatch that walks `rows` rows of the vocabulary in `slices` shares.
pub(super) fn vocabulary_blocks(rows: usize, slices: u32) -> impl Iterator<Item = Range<usize>> {
    let block = if slices == 1 { BLOCK_ROWS } else { rows.max(1) };
    (0..rows).step_by(block).map(move |start| start..rows.min(start + block))
}

impl Kernels<'_> {
    /// Adds the logits of vocabulary rows `first..first + logits.count` to the running log-sum-exp `state` [`VOCAB_STATE`, t]
    /// (`shaders/vocab_reduce.wgsl`; [`LogSum`] reads it); `targets` `[t]` u32. With `cap` a logit is `cap * tanh(logits / cap)`. The
    /// logarithm of the sum is right to about 1e-6, whatever the vocabulary.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn vocab_reduce(
        &self,
        c: Stream<'_, '_>,
        logits: Rows<'_>,
        first: usize,
        targets: &Buffer,
        state: Rows<'_>,
        cap: Option<f32>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "vocab_reduce";
        let mut cap_defs = Defs::new();
        let cap = capped(NAME, cap, "CAP", &mut cap_defs)?;
        let fits = logits.first == 0
            && logits.count > 0
            && state.count == VOCAB_STATE
            && state.t4 == logits.t4
            && targets.bytes() >= 16 * logits.t4 as u64;
        if !fits {
            return Err(shape_error(NAME, format!("{} rows of logits", logits.count)));
        }
        let (lanes, slices) = self.preset().reduce;
        let pipeline = self.pipeline(NAME, [sliced_defs(lanes, slices), cap_defs].concat())?;
        let grid = [logits.t4.div_ceil(lanes as usize) as u32, 1, 1];
        let bind = [logits.buffer.all(), targets.all(), state.buffer.all()];
        for block in vocabulary_blocks(logits.count, slices) {
            let (t4, first) = (size(NAME, logits.t4)?, size(NAME, first)?);
            let params =
                [size(NAME, block.start)?, size(NAME, block.end)?, t4, first, cap.to_bits(), 0, 0, 0];
            let values = 4.0 * (block.len() * logits.t4) as f64;
            let work = Work { flops: 4.0 * values, bytes: 4.0 * values };
            c.dispatch(&pipeline, &params, &bind, grid, work)?;
        }
        Ok(())
    }
}
