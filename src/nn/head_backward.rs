//! The head's backward pass: the loss of every token again, now with its gradient by the residual stream.

use super::head::{DenseSpace, losses_of, read_state, shape};
use super::{Batch, HeadPass, HeadSpace, NnError, Sizes, TokenLoss};
use crate::gpu::{Commands, Gpu};
use crate::kernel::{Activation, Masking, Rows, Softmax, TransposedProduct, VOCAB_STATE, f32_bytes};
use crate::model::Architecture;

/// What the head's gradient is of.
#[derive(Clone, Copy)]
pub enum HeadLoss<'a> {
    /// Negative log-likelihood of the next token.
    CrossEntropy,
    /// Divergence of the next token's distribution from that of the dense model: `sum p_dense * (log p_dense - log p)`.
    Kl {
        /// The dense model's residual stream behind the last block, `[hidden, t]`.
        dense: Rows<'a>,
    },
}

/// What [`HeadPass::gradient`] reports.
#[derive(Clone, Debug)]
pub struct HeadLosses {
    /// Negative log-likelihoods, whatever the gradient is of.
    pub tokens: TokenLoss,
    /// Divergences `[windows, length - 1]` in nats, where the gradient is of them.
    pub kl: Option<Vec<f64>>,
}

impl HeadLosses {
    /// Mean over all predictions of what the gradient is of.
    pub fn mean(&self) -> f64 {
        match &self.kl {
            Some(kl) => kl.iter().sum::<f64>() / kl.len().max(1) as f64,
            None => self.tokens.mean(),
        }
    }
}

/// Vocabulary rows at once in the backward pass: its product takes four at a time.
fn training_rows(vocab_rows: usize) -> usize {
    (vocab_rows / 4 * 4).max(4)
}

impl HeadSpace {
    /// Allocates for gradients, too; with `kl` also those of [`HeadLoss::Kl`].
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn training(gpu: &Gpu, config: &Architecture, sizes: &Sizes, kl: bool) -> Result<Self, NnError> {
        let (hidden, t4) = (config.hidden_size, sizes.layout.t4());
        let rows = training_rows(sizes.vocab_rows);
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        let mut out = Self::new(gpu, sizes)?;
        if rows > sizes.vocab_rows {
            out.logits = new("vocabulary", rows)?;
        }
        out.d_normed = Some(new("gradient of the normed", hidden)?);
        out.dense = kl.then(|| DenseSpace::new(gpu, hidden, rows, t4)).transpose()?;
        Ok(out)
    }

    /// Bytes of [`HeadSpace::training`].
    pub fn training_bytes(config: &Architecture, sizes: &Sizes, kl: bool) -> u64 {
        let rows = training_rows(sizes.vocab_rows);
        let more = rows.saturating_sub(sizes.vocab_rows) + config.hidden_size;
        let t4 = sizes.layout.t4();
        let dense = if kl { DenseSpace::bytes(config.hidden_size, rows, t4) } else { 0 };
        Self::bytes(sizes) + f32_bytes(more, 4 * t4) + dense
    }
}

impl<'g> HeadPass<'_, 'g> {
    /// The loss of `batch` from the residual stream `x` behind the last block, and in `d_x` the gradient of `scale` times the sum of
    /// the loss over all predicted tokens with respect to `x`; all `[hidden, t]`, `normed` is scratch. `scale` = 1 / predicted
    /// tokens makes it the gradient of the mean. Blocks until the loss is there.
    ///
    /// The vocabulary is walked twice: what the softmax needs of all logits is known only after the first walk, and the logits are
    /// not kept.
    ///
    /// # Errors
    /// What the device reports; a space without room for this; a loss that is not finite.
    pub fn gradient(
        &self,
        c: &mut Commands<'g>,
        batch: &Batch,
        x: Rows<'_>,
        normed: Rows<'_>,
        d_x: Rows<'_>,
        (loss, scale): (HeadLoss<'_>, f32),
    ) -> Result<HeadLosses, NnError> {
        let missing = || shape("no room for gradients of this loss: made with HeadSpace::training?");
        let (ws, t4) = (self.ws, x.t4);
        let d_normed = ws.d_normed.as_ref().ok_or_else(missing)?.rows(0, x.count, t4)?;
        let dense = match loss {
            HeadLoss::CrossEntropy => None,
            HeadLoss::Kl { dense } => Some(self.dense_side(dense, self.weights).ok_or_else(missing)?),
        };
        let rows = training_rows(ws.vocab_rows);
        self.reduce(c, batch, x, normed, rows, dense.as_ref())?;
        // The logits of a single chunk are still there.
        let again = self.chunks(rows).count() > 1;
        for (first, rows) in self.chunks(rows) {
            if again {
                self.logits_of(c, normed, first, rows, &ws.logits)?;
            }
            let logits = ws.logits.rows(0, rows.next_multiple_of(4), t4)?;
            match &dense {
                None => {
                    let state = ws.state.rows(0, VOCAB_STATE, t4)?;
                    let cap = self.config.logit_cap;
                    self.kernels.vocab_gradient(
                        c,
                        logits,
                        first..first + rows,
                        &ws.targets,
                        Softmax { state, cap },
                        scale,
                    )?;
                }
                Some(dense) => self.divergence(c, logits, (first, rows), again, dense, scale)?,
            }
            let product = TransposedProduct {
                outputs: first..first + rows,
                accumulate: first > 0,
                ..TransposedProduct::new(&self.weights.output, Masking::Dense, logits, d_normed)
            };
            self.kernels.matmul_transposed(c, &product)?;
        }
        c.clear(d_x.buffer, f32_bytes(d_x.count, 4 * t4))?;
        let norm = self.weights.final_norm.over_stream(self.config);
        self.kernels.norm_backward(c, x, &norm, d_normed, d_x, true)?;
        let own = read_state(c, &ws.state, batch.layout)?;
        let tokens = losses_of(&own, batch.layout)?;
        let kl = match &dense {
            None => None,
            Some(dense) => Some(dense.read(c, batch.layout, &own)?.0.kl),
        };
        Ok(HeadLosses { tokens, kl })
    }
}
