//! The end of the model: last norm, output matrix, and the loss of every token, without ever holding all logits.

use super::weights::{NormWeights, vector, vector_bytes};
use super::{Batch, NnError, Sizes, Tensors, TokenLoss};
use crate::gpu::{Buffer, Commands, Gpu, GpuError};
use crate::kernel::{
    Activation, DIVERGENCE, Kernels, Layout, LogSum, Product, Rows, VOCAB_STATE, Weight, cut, f32_bytes,
};
use crate::model::{Architecture, Checkpoint, Dtype, ModelError};

/// Weights of the last norm and of the output matrix.
pub struct HeadWeights {
    /// The last norm, with the architecture's scale of the logits on it.
    pub final_norm: NormWeights,
    /// Output matrix `[vocab, hidden]` (the embedding when tied).
    pub output: Weight,
    /// Its bias `[vocab]`.
    pub bias: Option<Buffer>,
}

impl HeadWeights {
    /// Uploads them.
    ///
    /// # Errors
    /// What the checkpoint or the device report.
    pub fn upload(gpu: &Gpu, tensors: Tensors<'_>, config: &Architecture) -> Result<Self, NnError> {
        Ok(Self {
            final_norm: NormWeights::upload(
                gpu,
                tensors,
                config,
                &config.final_norm_module(),
                config.scales.logits,
            )?,
            output: Weight::upload(gpu, "weights:output", &tensors.tensor(&config.output_name())?)?,
            bias: if config.output_bias {
                Some(vector(gpu, tensors, &config.output_bias_name())?)
            } else {
                None
            },
        })
    }

    /// Bytes of [`HeadWeights::upload`].
    ///
    /// # Errors
    /// A tensor that the checkpoint lacks.
    pub fn bytes(checkpoint: &Checkpoint, config: &Architecture) -> Result<u64, NnError> {
        Self::bytes_as(config, &|name| Ok(checkpoint.tensor(name)?.dtype))
    }

    /// The same with the types that `dtype` gives.
    ///
    /// # Errors
    /// Those of `dtype`.
    pub fn bytes_as(
        config: &Architecture,
        dtype: &dyn Fn(&str) -> Result<Dtype, ModelError>,
    ) -> Result<u64, NnError> {
        let dtype = dtype(&config.output_name())?;
        let output = Weight::device_bytes(config.vocab_size, config.hidden_size, dtype);
        let bias = if config.output_bias { vector_bytes(config.vocab_size) } else { 0 };
        Ok(NormWeights::bytes(config) + output.next_multiple_of(16) + bias)
    }
}

/// The buffers of the loss.
pub struct HeadSpace {
    pub(super) logits: Activation,
    pub(super) state: Activation,
    pub(super) targets: Buffer,
    pub(super) vocab_rows: usize,
    /// What gradients take beside them: that of the normed residual stream.
    pub(super) d_normed: Option<Activation>,
    pub(super) dense: Option<DenseSpace>,
}

impl HeadSpace {
    /// Allocates for batches of at most `sizes.layout`.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, sizes: &Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        Ok(Self {
            logits: Activation::new(gpu, "activations:vocabulary", sizes.vocab_rows, t4)?,
            state: Activation::new(gpu, "activations:loss", VOCAB_STATE, t4)?,
            targets: gpu.alloc("activations:targets", f32_bytes(1, 4 * t4))?,
            vocab_rows: sizes.vocab_rows,
            d_normed: None,
            dense: None,
        })
    }

    /// Bytes of [`HeadSpace::new`].
    pub fn bytes(sizes: &Sizes) -> u64 {
        f32_bytes(sizes.vocab_rows + VOCAB_STATE + 1, 4 * sizes.layout.t4())
    }
}

/// The head on one batch.
#[derive(Clone, Copy)]
pub struct HeadPass<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// What the model computes.
    pub config: &'a Architecture,
    /// The weights.
    pub weights: &'a HeadWeights,
    /// Buffers.
    pub ws: &'a HeadSpace,
}

impl<'g> HeadPass<'_, 'g> {
    /// Losses of `batch` from the residual stream `x` behind the last block; `normed` `[hidden, t]` is scratch. Blocks until the
    /// result is there.
    ///
    /// # Errors
    /// What the device reports; a loss that is not finite.
    pub fn losses(
        &self,
        c: &mut Commands<'g>,
        batch: &Batch,
        x: Rows<'_>,
        normed: Rows<'_>,
    ) -> Result<TokenLoss, NnError> {
        self.reduce(c, batch, x, normed, self.ws.vocab_rows, None)?;
        let state = read_state(c, &self.ws.state, batch.layout)?;
        losses_of(&state, batch.layout)
    }

    /// The pieces of the vocabulary, of at most `most` rows: first row and number of rows.
    pub(super) fn chunks(&self, most: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        cut::pieces(0..self.config.vocab_size, most).map(|r| (r.start, r.len()))
    }

    /// Walks the vocabulary in pieces of `rows` rows: what the softmax of every token needs of all logits, also of the `dense` side.
    pub(super) fn reduce(
        &self,
        c: &mut Commands<'g>,
        batch: &Batch,
        x: Rows<'_>,
        normed: Rows<'_>,
        rows: usize,
        dense: Option<&DenseSide<'_, 'g>>,
    ) -> Result<(), NnError> {
        let (ws, targets) = (self.ws, &self.ws.targets);
        c.write(targets, 0, &next_tokens(batch))?;
        self.norm(c, x, normed)?;
        if let Some(dense) = dense {
            dense.start(c)?;
        }
        for (first, rows) in self.chunks(rows) {
            let logits = self.logits_of(c, normed, first, rows, &ws.logits)?;
            let (state, cap) = (ws.state.rows(0, VOCAB_STATE, x.t4)?, self.config.logit_cap);
            self.kernels.vocab_reduce(c, logits, first, targets, state, cap)?;
            if let Some(dense) = dense {
                let logits = dense.logits(c, first, rows)?;
                self.kernels.vocab_reduce(c, logits, first, targets, dense.state()?, dense.cap())?;
            }
        }
        Ok(())
    }

    pub(super) fn norm(&self, c: &mut Commands<'g>, x: Rows<'_>, normed: Rows<'_>) -> Result<(), NnError> {
        Ok(self.kernels.norm(c, x, &self.weights.final_norm.over_stream(self.config), normed)?)
    }

    /// Logits of the vocabulary rows `first..first + rows` at the start of `out`, before their cap.
    pub(super) fn logits_of<'o>(
        &self,
        c: &mut Commands<'g>,
        normed: Rows<'_>,
        first: usize,
        rows: usize,
        out: &'o Activation,
    ) -> Result<Rows<'o>, NnError> {
        let logits = out.rows(0, rows, normed.t4)?;
        let bias = self.weights.bias.as_ref();
        let product = Product { bias, ..Product::new(&self.weights.output, normed, logits) };
        self.kernels.matmul(c, &Product { outputs: first..first + rows, ..product })?;
        Ok(logits)
    }

    /// All logits `[tokens, vocab]` of a small batch: for tests and fixtures, since the product never needs them at once.
    ///
    /// # Errors
    /// What the device reports.
    pub fn logits(
        &self,
        c: &mut Commands<'g>,
        layout: Layout,
        x: Rows<'_>,
        normed: Rows<'_>,
    ) -> Result<Vec<Vec<f32>>, NnError> {
        let (vocab, t4) = (self.config.vocab_size, layout.t4());
        self.norm(c, x, normed)?;
        let mut out = vec![vec![0.0; vocab]; layout.windows * layout.length];
        for (first, rows) in self.chunks(self.ws.vocab_rows) {
            self.logits_of(c, normed, first, rows, &self.ws.logits)?;
            let chunk: Vec<f32> = c.read(self.ws.logits.buffer(), 0, rows * 4 * t4)?;
            for (token, row) in out.iter_mut().enumerate() {
                let t = token / layout.length * 4 * layout.window4() + token % layout.length;
                for r in 0..rows {
                    let logit = chunk[r * 4 * t4 + t];
                    row[first + r] = self.config.logit_cap.map_or(logit, |cap| cap * (logit / cap).tanh());
                }
            }
        }
        Ok(out)
    }
}

/// What the dense model's logits take.
pub(super) struct DenseSpace {
    pub(super) normed: Activation,
    pub(super) logits: Activation,
    pub(super) state: Activation,
    /// [`DIVERGENCE`, t].
    pub(super) kl: Buffer,
}

impl DenseSpace {
    /// Allocates for `rows` rows of the vocabulary at once, and a residual stream `[hidden, 4 * t4]`.
    pub(super) fn new(gpu: &Gpu, hidden: usize, rows: usize, t4: usize) -> Result<Self, NnError> {
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        Ok(Self {
            normed: new("normed of the dense model", hidden)?,
            logits: new("vocabulary of the dense model", rows)?,
            state: new("loss of the dense model", VOCAB_STATE)?,
            kl: gpu.alloc("activations:divergence", f32_bytes(DIVERGENCE, 4 * t4))?,
        })
    }

    /// Bytes of [`DenseSpace::new`].
    pub(super) fn bytes(hidden: usize, rows: usize, t4: usize) -> u64 {
        f32_bytes(hidden + rows + VOCAB_STATE + DIVERGENCE, 4 * t4)
    }
}

/// The dense model's head on the same batch.
pub(super) struct DenseSide<'a, 'g> {
    pub(super) pass: HeadPass<'a, 'g>,
    pub(super) space: &'a DenseSpace,
    pub(super) x: Rows<'a>,
}

impl<'a, 'g> DenseSide<'a, 'g> {
    fn normed(&self) -> Result<Rows<'a>, NnError> {
        Ok(self.space.normed.rows(0, self.x.count, self.x.t4)?)
    }

    pub(super) fn start(&self, c: &mut Commands<'g>) -> Result<(), NnError> {
        c.clear(&self.space.kl, f32_bytes(DIVERGENCE, 4 * self.x.t4))?;
        self.pass.norm(c, self.x, self.normed()?)
    }

    pub(super) fn logits(
        &self,
        c: &mut Commands<'g>,
        first: usize,
        rows: usize,
    ) -> Result<Rows<'a>, NnError> {
        self.pass.logits_of(c, self.normed()?, first, rows, &self.space.logits)
    }

    /// The cap of its logits.
    pub(super) fn cap(&self) -> Option<f32> {
        self.pass.config.logit_cap
    }

    pub(super) fn state(&self) -> Result<Rows<'a>, NnError> {
        Ok(self.space.state.rows(0, VOCAB_STATE, self.x.t4)?)
    }
}

/// A shape that the head cannot be run with.
pub(super) fn shape(message: &str) -> NnError {
    GpuError::Shape { kernel: "head", message: message.to_string() }.into()
}

/// The running log-sum-exp of the tokens of a batch, on the host.
pub(super) fn read_state(
    c: &mut Commands<'_>,
    state: &Activation,
    layout: Layout,
) -> Result<Vec<f32>, NnError> {
    Ok(c.read(state.buffer(), 0, VOCAB_STATE * 4 * layout.t4())?)
}

/// A number of each predicted token from its place among the padded tokens, which must be finite: `[windows, length - 1]`.
pub(super) fn of_predicted(layout: Layout, of: impl Fn(usize) -> f64) -> Result<Vec<f64>, NnError> {
    let stride = 4 * layout.window4();
    let mut out = Vec::with_capacity(layout.windows * (layout.length - 1));
    for window in 0..layout.windows {
        for t in window * stride..window * stride + layout.length - 1 {
            let value = of(t);
            if !value.is_finite() {
                return Err(NnError::NotFinite { window, value });
            }
            out.push(value);
        }
    }
    Ok(out)
}

/// Losses from what [`read_state`] has read, in f64.
pub(super) fn losses_of(state: &[f32], layout: Layout) -> Result<TokenLoss, NnError> {
    let tokens = 4 * layout.t4();
    let nll = of_predicted(layout, |t| LogSum::of(state, tokens, t).loss())?;
    Ok(TokenLoss { nll, layout })
}

/// The next token of every position but each window's last, which gets none.
fn next_tokens(batch: &Batch) -> Vec<u32> {
    let stride = 4 * batch.layout.window4();
    let mut out = vec![u32::MAX; batch.layout.windows * stride];
    for (w, window) in batch.ids.chunks_exact(batch.layout.length).enumerate() {
        for (i, &next) in window.iter().skip(1).enumerate() {
            out[w * stride + i] = next;
        }
    }
    out
}
