//! The head's backward pass: the loss of every token again, now with its gradient by the residual stream.

use super::head::targets;
use super::{Batch, HeadPass, HeadSpace, NnError, Sizes, TokenLoss};
use crate::gpu::{Buffer, Commands, Gpu, GpuError};
use crate::kernel::{Activation, Layout, Masking, Rows, TransposedProduct, f32_bytes};
use crate::model::Config;

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

/// What the gradient takes beside them.
pub(super) struct TrainingSpace {
    d_normed: Activation,
    dense: Option<DenseSpace>,
}

/// What the dense model's logits take.
struct DenseSpace {
    normed: Activation,
    logits: Activation,
    state: Activation,
    kl: Buffer,
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
    pub fn training(gpu: &Gpu, config: &Config, sizes: &Sizes, kl: bool) -> Result<Self, NnError> {
        let (hidden, t4) = (config.hidden_size, sizes.layout.t4());
        let rows = training_rows(sizes.vocab_rows);
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        let dense = || -> Result<DenseSpace, NnError> {
            Ok(DenseSpace {
                normed: new("normed of the dense model", hidden)?,
                logits: new("vocabulary of the dense model", rows)?,
                state: new("loss of the dense model", 3)?,
                kl: gpu.alloc("activations:divergence", f32_bytes(1, 4 * t4))?,
            })
        };
        let dense = if kl { Some(dense()?) } else { None };
        let d_normed = new("gradient of the normed", hidden)?;
        let mut out = Self::new(gpu, sizes)?;
        if rows > sizes.vocab_rows {
            out.logits = new("vocabulary", rows)?;
        }
        out.training = Some(TrainingSpace { d_normed, dense });
        Ok(out)
    }

    /// Bytes of [`HeadSpace::training`].
    pub fn training_bytes(config: &Config, sizes: &Sizes, kl: bool) -> u64 {
        let rows = training_rows(sizes.vocab_rows);
        let more = rows.saturating_sub(sizes.vocab_rows) + config.hidden_size;
        let dense = if kl { config.hidden_size + rows + 3 + 1 } else { 0 };
        Self::bytes(sizes) + f32_bytes(more + dense, 4 * sizes.layout.t4())
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
    #[allow(clippy::too_many_arguments)] // three tensors of one shape: grouping them would hide which is which
    pub fn gradient(
        &self,
        c: &mut Commands<'g>,
        batch: &Batch,
        x: Rows<'_>,
        normed: Rows<'_>,
        d_x: Rows<'_>,
        loss: HeadLoss<'_>,
        scale: f32,
    ) -> Result<HeadLosses, NnError> {
        let missing = || shape("no room for gradients of this loss: made with HeadSpace::training?");
        let (ws, vocab, t4) = (self.ws, self.config.vocab_size, x.t4);
        let training = ws.training.as_ref().ok_or_else(missing)?;
        let dense = match loss {
            HeadLoss::CrossEntropy => None,
            HeadLoss::Kl { dense } => Some((training.dense.as_ref().ok_or_else(missing)?, dense)),
        };
        let rows = training_rows(ws.vocab_rows);
        let chunks = || (0..vocab).step_by(rows).map(|first| (first, rows.min(vocab - first)));
        let state = ws.state.rows(0, 3, t4)?;
        c.write(&ws.targets, 0, &targets(batch))?;
        self.norm(c, x, normed)?;
        if let Some((space, dense)) = dense {
            self.norm(c, dense, space.normed.rows(0, x.count, t4)?)?;
            c.clear(&space.kl, 16 * t4 as u64)?;
        }
        for (first, rows) in chunks() {
            let logits = self.logits_of(c, normed, first, rows, &ws.logits)?;
            self.kernels.vocab_reduce(c, logits, first, &ws.targets, state)?;
            if let Some((space, _)) = dense {
                let normed = space.normed.rows(0, x.count, t4)?;
                let logits = self.logits_of(c, normed, first, rows, &space.logits)?;
                let state = space.state.rows(0, 3, t4)?;
                self.kernels.vocab_reduce(c, logits, first, &ws.targets, state)?;
            }
        }
        let d_normed = training.d_normed.rows(0, x.count, t4)?;
        // The logits of a single chunk are still there.
        let again = chunks().count() > 1;
        for (first, rows) in chunks() {
            if again {
                self.logits_of(c, normed, first, rows, &ws.logits)?;
            }
            let padded = rows.next_multiple_of(4);
            let logits = ws.logits.rows(0, padded, t4)?;
            match dense {
                None => {
                    self.kernels.vocab_gradient(c, logits, rows, first, &ws.targets, state, scale)?;
                }
                Some((space, _)) => {
                    if again {
                        let normed = space.normed.rows(0, x.count, t4)?;
                        self.logits_of(c, normed, first, rows, &space.logits)?;
                    }
                    let of_dense = space.logits.rows(0, padded, t4)?;
                    let states = (state, space.state.rows(0, 3, t4)?);
                    let targets = &ws.targets;
                    self.kernels
                        .vocab_kl(c, logits, of_dense, rows, states.0, states.1, targets, scale, &space.kl)?;
                }
            }
            let product = TransposedProduct {
                outputs: first..first + rows,
                accumulate: first > 0,
                ..TransposedProduct::new(&self.weights.output, Masking::Dense, logits, d_normed)
            };
            self.kernels.matmul_transposed(c, &product)?;
        }
        c.clear(d_x.buffer, f32_bytes(d_x.count, 4 * t4))?;
        let gain = &self.weights.final_norm;
        self.kernels.rms_norm_backward(c, x, gain, self.config.rms_norm_eps, d_normed, d_x)?;
        let tokens = self.read_losses(c, batch.layout)?;
        let kl = match dense {
            None => None,
            Some((space, _)) => Some(self.read_kl(c, &space.kl, batch.layout)?),
        };
        Ok(HeadLosses { tokens, kl })
    }

    /// Divergences of the predicted tokens.
    fn read_kl(&self, c: &mut Commands<'g>, kl: &Buffer, layout: Layout) -> Result<Vec<f64>, NnError> {
        let all: Vec<f32> = c.read(kl, 0, 4 * layout.t4())?;
        let mut out = Vec::with_capacity(layout.windows * (layout.length - 1));
        for (window, tokens) in all.chunks_exact(4 * layout.window4()).enumerate() {
            for &value in &tokens[..layout.length - 1] {
                let value = f64::from(value);
                if !value.is_finite() {
                    return Err(NnError::NotFinite { window, value });
                }
                out.push(value);
            }
        }
        Ok(out)
    }
}

fn shape(message: &str) -> NnError {
    GpuError::Shape { kernel: "head", message: message.to_string() }.into()
}
