//! The forward pass and the loss of every token.

use super::{BlockWeights, DecoderWeights, Embedding, NnError, Workspace};
use crate::gpu::{Buffer, Commands};
use crate::kernel::{Heads, Kernels, Layout, MaskBuffer, Product, Rows};
use crate::model::{Config, ProjectionKind};

/// Masks of all projections in the order of [`Config::projections`]; `None` = dense.
pub type Masks<'a> = &'a [Option<&'a MaskBuffer>];

/// Windows of tokens that go through the model together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[windows, length]` token ids.
    pub ids: Vec<u32>,
    /// Number and length of the windows.
    pub layout: Layout,
}

/// Which input of a block is shown to an observer. Each is the input of the projections named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Input of q, k and v.
    Attention,
    /// Input of o.
    AttentionOutput,
    /// Input of gate and up.
    FeedForward,
    /// Input of down: rows from the given one on.
    Down(usize),
}

/// Called with each distinct input of a block's projections: block, which input, rows.
pub type Observe<'o, 'g> =
    &'o mut dyn FnMut(&mut Commands<'g>, usize, Observed, Rows<'_>) -> Result<(), NnError>;

/// Loss of every predicted token of a batch.
#[derive(Clone, Debug)]
pub struct TokenLoss {
    /// `[windows, length - 1]` negative log-likelihoods in nats.
    pub nll: Vec<f64>,
    /// Number and length of the windows.
    pub layout: Layout,
}

impl TokenLoss {
    /// Mean over the predictions of each window.
    pub fn window_means(&self) -> Vec<f64> {
        let n = self.layout.length - 1;
        self.nll.chunks_exact(n).map(|w| w.iter().sum::<f64>() / n as f64).collect()
    }

    /// Mean over all predictions.
    pub fn mean(&self) -> f64 {
        self.nll.iter().sum::<f64>() / self.nll.len().max(1) as f64
    }
}

/// A decoder whose blocks are all resident.
pub struct Decoder<'g, 'm> {
    /// The kernels it runs on.
    pub kernels: &'m Kernels<'g>,
    /// The model's configuration.
    pub config: &'m Config,
    /// Its weights.
    pub weights: &'m DecoderWeights,
    /// Its embedding, on the host.
    pub embedding: Embedding<'m>,
}

impl<'g> Decoder<'g, '_> {
    /// Losses of `batch` under `masks`, as [`TokenLoss`]. Blocks until the result is there.
    ///
    /// # Errors
    /// What the device reports; a token outside the vocabulary; a loss that is not finite.
    pub fn losses(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        batch: &Batch,
        masks: Masks<'_>,
    ) -> Result<TokenLoss, NnError> {
        self.embed(c, ws, batch)?;
        self.blocks(c, ws, batch.layout, masks, None)?;
        self.vocabulary(c, ws, batch)?;
        self.read_losses(c, ws, batch.layout)
    }

    /// Builds every pipeline that [`Decoder::losses`] needs under `masks`, by running a batch of one window, and waits for the
    /// driver's compiler. The workspace must hold one window of its layout.
    ///
    /// # Errors
    /// A kernel that does not compile here.
    pub fn warm_up(&self, c: &mut Commands<'g>, ws: &Workspace, masks: Masks<'_>) -> Result<(), NnError> {
        let layout = Layout { windows: 1, length: ws.sizes.layout.length };
        let batch = Batch { ids: vec![0; layout.length], layout };
        self.losses(c, ws, &batch, masks).map(|_| ())
    }

    /// Runs only embedding and blocks, showing the projections' inputs to `observe`.
    ///
    /// # Errors
    /// What the device or the observer report.
    pub fn observe(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        batch: &Batch,
        masks: Masks<'_>,
        observe: Observe<'_, 'g>,
    ) -> Result<(), NnError> {
        self.embed(c, ws, batch)?;
        self.blocks(c, ws, batch.layout, masks, Some(observe))
    }

    fn embed(&self, c: &mut Commands<'g>, ws: &Workspace, batch: &Batch) -> Result<(), NnError> {
        let layout = batch.layout;
        if let Some(reach) = self.config.sliding_window
            && layout.length > reach
        {
            return Err(NnError::SlidingWindow { window: layout.length, reach });
        }
        let x = self.embedding.gather(&batch.ids, layout.length, layout.window4())?;
        Ok(c.write(ws.x.buffer(), 0, &x)?)
    }

    fn blocks(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        layout: Layout,
        masks: Masks<'_>,
        mut observe: Option<Observe<'_, 'g>>,
    ) -> Result<(), NnError> {
        for (i, block) in self.weights.blocks.iter().enumerate() {
            let pass = BlockPass { decoder: self, ws, layout, block, index: i, masks };
            pass.attention(c, &mut observe)?;
            pass.feed_forward(c, &mut observe)?;
        }
        Ok(())
    }

    /// Walks the vocabulary in chunks; afterwards the state has (maximum, sum, target) per token.
    fn vocabulary(&self, c: &mut Commands<'g>, ws: &Workspace, batch: &Batch) -> Result<(), NnError> {
        let (layout, t4) = (batch.layout, batch.layout.t4());
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        c.write(&ws.targets, 0, &targets(batch))?;
        let x = ws.x.rows(0, hidden, t4)?;
        let normed = ws.normed.rows(0, hidden, t4)?;
        self.kernels.rms_norm(c, x, &self.weights.final_norm, self.config.rms_norm_eps, normed)?;
        let chunk = ws.sizes.vocab_rows;
        for first in (0..vocab).step_by(chunk) {
            let rows = chunk.min(vocab - first);
            let logits = ws.logits.rows(0, rows, t4)?;
            let mut product = Product::new(&self.weights.output, normed, logits);
            product.outputs = first..first + rows;
            self.kernels.matmul(c, &product)?;
            self.kernels.vocab_reduce(c, logits, first, &ws.targets, ws.state.rows(0, 3, layout.t4())?)?;
        }
        Ok(())
    }

    fn read_losses(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        layout: Layout,
    ) -> Result<TokenLoss, NnError> {
        let tokens = 4 * layout.t4();
        let state: Vec<f32> = c.read(ws.state.buffer(), 0, 3 * tokens)?;
        let stride = 4 * layout.window4();
        let mut nll = Vec::with_capacity(layout.windows * (layout.length - 1));
        for w in 0..layout.windows {
            for i in 0..layout.length - 1 {
                let t = w * stride + i;
                let value = |row: usize| f64::from(state[row * tokens + t]);
                let loss = value(0) + value(1).ln() - value(2);
                if !loss.is_finite() {
                    return Err(NnError::NotFinite { window: w, value: loss });
                }
                nll.push(loss);
            }
        }
        Ok(TokenLoss { nll, layout })
    }

    /// All logits `[tokens, vocab]` of a small batch: for tests and fixtures, since the product never needs them at once.
    ///
    /// # Errors
    /// What the device reports.
    pub fn logits(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        batch: &Batch,
        masks: Masks<'_>,
    ) -> Result<Vec<Vec<f32>>, NnError> {
        let (layout, t4) = (batch.layout, batch.layout.t4());
        self.embed(c, ws, batch)?;
        self.blocks(c, ws, layout, masks, None)?;
        let x = ws.x.rows(0, self.config.hidden_size, t4)?;
        let normed = ws.normed.rows(0, self.config.hidden_size, t4)?;
        self.kernels.rms_norm(c, x, &self.weights.final_norm, self.config.rms_norm_eps, normed)?;
        let vocab = self.config.vocab_size;
        let mut out = vec![vec![0.0; vocab]; layout.windows * layout.length];
        for first in (0..vocab).step_by(ws.sizes.vocab_rows) {
            let rows = ws.sizes.vocab_rows.min(vocab - first);
            let mut product = Product::new(&self.weights.output, normed, ws.logits.rows(0, rows, t4)?);
            product.outputs = first..first + rows;
            self.kernels.matmul(c, &product)?;
            let chunk: Vec<f32> = c.read(ws.logits.buffer(), 0, rows * 4 * t4)?;
            for (token, row) in out.iter_mut().enumerate() {
                let t = token / layout.length * 4 * layout.window4() + token % layout.length;
                for r in 0..rows {
                    row[first + r] = chunk[r * 4 * t4 + t];
                }
            }
        }
        Ok(out)
    }
}

/// One block of one forward pass.
struct BlockPass<'a, 'g, 'm> {
    decoder: &'a Decoder<'g, 'm>,
    ws: &'a Workspace,
    layout: Layout,
    block: &'a BlockWeights,
    index: usize,
    masks: Masks<'a>,
}

impl<'g> BlockPass<'_, 'g, '_> {
    fn mask(&self, kind: ProjectionKind) -> Option<&MaskBuffer> {
        self.masks.get(self.index * ProjectionKind::ALL.len() + kind as usize).copied().flatten()
    }

    fn product<'p>(&'p self, kind: ProjectionKind, x: Rows<'p>, y: Rows<'p>) -> Product<'p> {
        let linear = &self.block.linears[kind as usize];
        Product { mask: self.mask(kind), bias: linear.bias.as_ref(), ..Product::new(&linear.weight, x, y) }
    }

    fn norm(&self, c: &mut Commands<'g>, gain: &Buffer) -> Result<(), NnError> {
        let d = self.decoder;
        let (hidden, t4) = (d.config.hidden_size, self.layout.t4());
        let x = self.ws.x.rows(0, hidden, t4)?;
        let normed = self.ws.normed.rows(0, hidden, t4)?;
        Ok(d.kernels.rms_norm(c, x, gain, d.config.rms_norm_eps, normed)?)
    }

    fn attention(&self, c: &mut Commands<'g>, observe: &mut Option<Observe<'_, 'g>>) -> Result<(), NnError> {
        use ProjectionKind::{K, O, Q, V};
        let (d, ws, t4) = (self.decoder, self.ws, self.layout.t4());
        let (config, kernels) = (d.config, d.kernels);
        let heads =
            Heads { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        self.norm(c, &self.block.input_norm)?;
        let normed = ws.normed.rows(0, config.hidden_size, t4)?;
        if let Some(observe) = observe {
            observe(c, self.index, Observed::Attention, normed)?;
        }
        let q = ws.q.rows(0, heads.heads * heads.head_dim, t4)?;
        let k = ws.k.rows(0, heads.kv_heads * heads.head_dim, t4)?;
        let v = ws.v.rows(0, heads.kv_heads * heads.head_dim, t4)?;
        let attended = ws.attended.rows(0, q.count, t4)?;
        kernels.matmul(c, &self.product(Q, normed, q))?;
        kernels.matmul(c, &self.product(K, normed, k))?;
        kernels.matmul(c, &self.product(V, normed, v))?;
        kernels.rope(c, q, heads.head_dim, &ws.table, self.layout)?;
        kernels.rope(c, k, heads.head_dim, &ws.table, self.layout)?;
        kernels.attention(c, q, k, v, attended, heads, self.layout)?;
        if let Some(observe) = observe {
            observe(c, self.index, Observed::AttentionOutput, attended)?;
        }
        let x = ws.x.rows(0, config.hidden_size, t4)?;
        let output = Product { accumulate: true, ..self.product(O, attended, x) };
        Ok(kernels.matmul(c, &output)?)
    }

    /// The feed-forward layer in pieces of its inner features, each of which fits the workspace.
    fn feed_forward(
        &self,
        c: &mut Commands<'g>,
        observe: &mut Option<Observe<'_, 'g>>,
    ) -> Result<(), NnError> {
        use ProjectionKind::{Down, Gate, Up};
        let (d, ws, t4) = (self.decoder, self.ws, self.layout.t4());
        let kernels = d.kernels;
        self.norm(c, &self.block.post_norm)?;
        let normed = ws.normed.rows(0, d.config.hidden_size, t4)?;
        if let Some(observe) = observe {
            observe(c, self.index, Observed::FeedForward, normed)?;
        }
        let x = ws.x.rows(0, d.config.hidden_size, t4)?;
        let inner = d.config.intermediate_size;
        for first in (0..inner).step_by(ws.sizes.ffn_rows) {
            let rows = ws.sizes.ffn_rows.min(inner - first);
            let gate = ws.gate.rows(0, rows, t4)?;
            let up = ws.up.rows(0, rows, t4)?;
            kernels
                .matmul(c, &Product { outputs: first..first + rows, ..self.product(Gate, normed, gate) })?;
            kernels.matmul(c, &Product { outputs: first..first + rows, ..self.product(Up, normed, up) })?;
            kernels.swiglu(c, gate, up)?;
            if let Some(observe) = observe {
                observe(c, self.index, Observed::Down(first), gate)?;
            }
            let mut down = self.product(Down, gate, x);
            down.inputs = first..first + rows;
            down.accumulate = true;
            if first > 0 {
                down.bias = None;
            }
            kernels.matmul(c, &down)?;
        }
        Ok(())
    }
}

/// The next token of every position but each window's last, which gets none.
fn targets(batch: &Batch) -> Vec<u32> {
    let stride = 4 * batch.layout.window4();
    let mut out = vec![u32::MAX; batch.layout.windows * stride];
    for (w, window) in batch.ids.chunks_exact(batch.layout.length).enumerate() {
        for (i, &next) in window.iter().skip(1).enumerate() {
            out[w * stride + i] = next;
        }
    }
    out
}
