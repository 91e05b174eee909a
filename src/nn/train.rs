//! One decoder block forwards and backwards: what learning masks or weights by backpropagation needs of a block.
//!
//! A pass keeps everything its backward pass reads in one [`TrainSpace`]; between two passes a block keeps its input only, and is
//! run forwards again before it is run backwards.

use super::block::rope_table;
use super::{BlockWeights, NnError, Sizes};
use crate::gpu::{Buffer, Commands, Gpu, GpuError};
use crate::kernel::{
    Activation, AttentionGradient, Heads, Kernels, Layout, Masking, Product, Rows, TransposedProduct, Weight,
    f32_bytes,
};
use crate::model::{Config, ProjectionKind};

/// A projection as a training pass sees it.
#[derive(Clone, Copy)]
pub struct TrainLinear<'a> {
    /// `[out, in]`.
    pub weight: &'a Weight,
    /// `[out]` f32.
    pub bias: Option<&'a Buffer>,
    /// What the weights are multiplied with.
    pub masking: Masking<'a>,
}

/// The gradient of a projection's effective weights, d_y x^T, as far as one call has it.
pub struct WeightGradient<'a> {
    /// Gradient of the outputs `[out, t]`.
    pub d_y: Rows<'a>,
    /// The transposed input `[t, inputs]`, zeros at padding tokens.
    pub xt: Rows<'a>,
    /// First input feature of `xt`: others than 0 where the feed-forward layer comes in pieces.
    pub first_input: usize,
    /// First output feature of `d_y`, likewise.
    pub first_output: usize,
}

/// Who takes the gradients of a block's projections.
pub trait GradientSink<'g> {
    /// Whether the gradient of a projection is wanted at all.
    fn wants(&self, kind: ProjectionKind) -> bool;
    /// Takes a gradient. The projection's weights and mask are not read any more in this pass, so they may change.
    ///
    /// # Errors
    /// What the device reports.
    fn take(
        &mut self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        gradient: WeightGradient<'_>,
    ) -> Result<(), NnError>;
}

/// Everything between the input and the output of a block, and the gradients of all that.
pub struct TrainSpace {
    mid: Activation,
    normed: [Activation; 2],
    q: Activation,
    k: Activation,
    v: Activation,
    attended: Activation,
    /// Log-sum-exp of the scores, and the products of outputs and their gradients, per head.
    heads: [Activation; 2],
    gate: Vec<Activation>,
    up: Vec<Activation>,
    inner: Activation,
    d_normed: Activation,
    d_q: Activation,
    d_k: Activation,
    d_v: Activation,
    d_attended: Activation,
    d_inner: Activation,
    transposed: Activation,
    table: Buffer,
    pieces: Vec<(usize, usize)>,
    /// Features of the widest input of a projection, or of a piece of it.
    widest: usize,
}

impl TrainSpace {
    /// Allocates for batches of at most `sizes.layout`.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, config: &Config, sizes: &Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        let (hidden, queries) = (config.hidden_size, config.num_heads * config.head_dim);
        let keys = config.num_kv_heads * config.head_dim;
        let pieces: Vec<(usize, usize)> = sizes.pieces().collect();
        let in_pieces = |name: &str| {
            pieces.iter().map(|&(_, rows)| new(name, rows)).collect::<Result<Vec<_>, GpuError>>()
        };
        let widest = hidden.max(queries).max(sizes.ffn_rows);
        Ok(Self {
            mid: new("residual after attention", hidden)?,
            normed: [new("normed", hidden)?, new("normed", hidden)?],
            q: new("q", queries)?,
            k: new("k", keys)?,
            v: new("v", keys)?,
            attended: new("attended", queries)?,
            heads: [new("heads", config.num_heads)?, new("heads", config.num_heads)?],
            gate: in_pieces("gate")?,
            up: in_pieces("up")?,
            inner: new("inner", sizes.ffn_rows)?,
            d_normed: new("gradient of normed", hidden)?,
            d_q: new("gradient of q", queries)?,
            d_k: new("gradient of k", keys)?,
            d_v: new("gradient of v", keys)?,
            d_attended: new("gradient of attended", queries)?,
            d_inner: new("gradient of inner", sizes.ffn_rows)?,
            transposed: Activation::new(gpu, "activations:transposed input", 4 * t4, widest.div_ceil(4))?,
            table: gpu.alloc_init("activations:rope", &rope_table(config, 0..4 * sizes.layout.window4()))?,
            pieces,
            widest,
        })
    }

    /// Bytes of [`TrainSpace::new`].
    pub fn bytes(config: &Config, sizes: &Sizes) -> u64 {
        let (hidden, queries) = (config.hidden_size, config.num_heads * config.head_dim);
        let keys = config.num_kv_heads * config.head_dim;
        let widest = hidden.max(queries).max(sizes.ffn_rows).next_multiple_of(4);
        let rows = 4 * hidden
            + 4 * queries
            + 4 * keys
            + 2 * config.num_heads
            + 2 * config.intermediate_size
            + 2 * sizes.ffn_rows
            + widest;
        let table = f32_bytes(config.head_dim / 2 * 2, 4 * sizes.layout.window4());
        f32_bytes(rows, 4 * sizes.layout.t4()) + table
    }
}

/// A block on one batch, forwards and backwards.
pub struct TrainPass<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Config,
    /// Buffers.
    pub ws: &'a TrainSpace,
    /// The batch.
    pub layout: Layout,
    /// Norms of the block.
    pub block: &'a BlockWeights,
    /// Its projections, in the order of [`ProjectionKind::ALL`].
    pub linears: [TrainLinear<'a>; ProjectionKind::ALL.len()],
}

impl BlockWeights {
    /// The projections under `maskings`, for a [`TrainPass`].
    pub fn train_linears<'a>(
        &'a self,
        masking: impl Fn(ProjectionKind) -> Masking<'a>,
    ) -> [TrainLinear<'a>; ProjectionKind::ALL.len()] {
        ProjectionKind::ALL.map(|kind| {
            let linear = &self.linears[kind as usize];
            TrainLinear { weight: &linear.weight, bias: linear.bias.as_ref(), masking: masking(kind) }
        })
    }
}

use ProjectionKind::{Down, Gate, K, O, Q, Up, V};

impl<'a, 'g> TrainPass<'a, 'g> {
    fn heads(&self) -> Heads {
        let c = self.config;
        Heads::new(c.num_heads, c.num_kv_heads, c.head_dim)
    }

    fn rows(&self, of: &'a Activation, count: usize) -> Result<Rows<'a>, NnError> {
        Ok(of.rows(0, count, self.layout.t4())?)
    }

    fn product<'p>(&'p self, kind: ProjectionKind, x: Rows<'p>, y: Rows<'p>) -> Product<'p> {
        let linear = &self.linears[kind as usize];
        Product { bias: linear.bias, ..Product::new(linear.weight, x, y) }
    }

    fn forward_product(
        &self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        p: &Product<'_>,
    ) -> Result<(), NnError> {
        Ok(self.kernels.matmul_soft(c, p, self.linears[kind as usize].masking)?)
    }

    fn linear(
        &self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        x: Rows<'_>,
        y: Rows<'_>,
    ) -> Result<(), NnError> {
        self.forward_product(c, kind, &self.product(kind, x, y))
    }

    /// The block's output `y` from its input `x`, both `[hidden, t]`, keeping what [`TrainPass::backward`] reads.
    ///
    /// # Errors
    /// What the device reports.
    pub fn forward(&self, c: &mut Commands<'g>, x: Rows<'_>, y: Rows<'_>) -> Result<(), NnError> {
        let (ws, config, kernels) = (self.ws, self.config, self.kernels);
        let (heads, eps, hidden) = (self.heads(), config.rms_norm_eps, config.hidden_size);
        let (queries, keys) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let bytes = f32_bytes(hidden, 4 * self.layout.t4());
        let normed = self.rows(&ws.normed[0], hidden)?;
        kernels.rms_norm(c, x, &self.block.input_norm, eps, normed)?;
        let (q, k, v) = (self.rows(&ws.q, queries)?, self.rows(&ws.k, keys)?, self.rows(&ws.v, keys)?);
        self.linear(c, Q, normed, q)?;
        self.linear(c, K, normed, k)?;
        self.linear(c, V, normed, v)?;
        kernels.rope(c, q, heads.head_dim, &ws.table, self.layout)?;
        kernels.rope(c, k, heads.head_dim, &ws.table, self.layout)?;
        let attended = self.rows(&ws.attended, queries)?;
        let lse = self.rows(&ws.heads[0], heads.heads)?;
        kernels.attention(c, q, k, v, attended, Some(lse), heads, self.layout)?;
        let mid = self.rows(&ws.mid, hidden)?;
        c.copy(x.buffer, 0, mid.buffer, 0, bytes)?;
        self.forward_product(c, O, &Product { accumulate: true, ..self.product(O, attended, mid) })?;
        let normed = self.rows(&ws.normed[1], hidden)?;
        kernels.rms_norm(c, mid, &self.block.post_norm, eps, normed)?;
        c.copy(mid.buffer, 0, y.buffer, 0, bytes)?;
        for (i, &(first, count)) in ws.pieces.iter().enumerate() {
            let (gate, up) = (self.rows(&ws.gate[i], count)?, self.rows(&ws.up[i], count)?);
            let inner = self.rows(&ws.inner, count)?;
            let outputs = first..first + count;
            self.forward_product(
                c,
                Gate,
                &Product { outputs: outputs.clone(), ..self.product(Gate, normed, gate) },
            )?;
            self.forward_product(c, Up, &Product { outputs, ..self.product(Up, normed, up) })?;
            kernels.swiglu_to(c, gate, up, inner)?;
            let mut down = self.product(Down, inner, y);
            down.inputs = first..first + count;
            down.accumulate = true;
            if first > 0 {
                down.bias = None;
            }
            self.forward_product(c, Down, &down)?;
        }
        Ok(())
    }

    /// The gradient of the block's input from that of its output, in place in `d` `[hidden, t]`, which is zero at padding tokens;
    /// gradients of the projections go to `sink`. Without `to_input` nothing of `d` is of use afterwards, and less is computed.
    ///
    /// # Errors
    /// What the device or the sink report.
    pub fn backward(
        &self,
        c: &mut Commands<'g>,
        x: Rows<'_>,
        d: Rows<'_>,
        to_input: bool,
        sink: &mut dyn GradientSink<'g>,
    ) -> Result<(), NnError> {
        let hidden = self.config.hidden_size;
        let (kernels, eps) = (self.kernels, self.config.rms_norm_eps);
        let d_normed = self.rows(&self.ws.d_normed, hidden)?;
        self.feed_forward_backward(c, d, d_normed, sink)?;
        let mid = self.rows(&self.ws.mid, hidden)?;
        kernels.rms_norm_backward(c, mid, &self.block.post_norm, eps, d_normed, d)?;
        self.attention_backward(c, d, d_normed, to_input, sink)?;
        if to_input {
            kernels.rms_norm_backward(c, x, &self.block.input_norm, eps, d_normed, d)?;
        }
        Ok(())
    }

    fn feed_forward_backward(
        &self,
        c: &mut Commands<'g>,
        d: Rows<'_>,
        d_normed: Rows<'_>,
        sink: &mut dyn GradientSink<'g>,
    ) -> Result<(), NnError> {
        let (ws, kernels) = (self.ws, self.kernels);
        let normed = self.rows(&ws.normed[1], self.config.hidden_size)?;
        for (i, &(first, count)) in ws.pieces.iter().enumerate() {
            let (gate, up) = (self.rows(&ws.gate[i], count)?, self.rows(&ws.up[i], count)?);
            let (inner, d_inner) = (self.rows(&ws.inner, count)?, self.rows(&ws.d_inner, count)?);
            let mut down = self.transposed(Down, d, d_inner);
            down.inputs = first..first + count;
            kernels.matmul_transposed(c, &down)?;
            if sink.wants(Down) {
                if ws.pieces.len() > 1 {
                    kernels.swiglu_to(c, gate, up, inner)?;
                }
                let xt = self.transpose(c, inner)?;
                sink.take(c, Down, WeightGradient { d_y: d, xt, first_input: first, first_output: 0 })?;
            }
            kernels.swiglu_backward(c, gate, up, d_inner)?;
            for (kind, d_y) in [(Gate, gate), (Up, up)] {
                let mut product = self.transposed(kind, d_y, d_normed);
                product.outputs = first..first + count;
                product.accumulate = i > 0 || kind == Up;
                kernels.matmul_transposed(c, &product)?;
            }
            if sink.wants(Gate) || sink.wants(Up) {
                let xt = self.transpose(c, normed)?;
                for (kind, d_y) in [(Gate, gate), (Up, up)] {
                    if sink.wants(kind) {
                        sink.take(c, kind, WeightGradient { d_y, xt, first_input: 0, first_output: first })?;
                    }
                }
            }
        }
        Ok(())
    }

    fn attention_backward(
        &self,
        c: &mut Commands<'g>,
        d: Rows<'_>,
        d_normed: Rows<'_>,
        to_input: bool,
        sink: &mut dyn GradientSink<'g>,
    ) -> Result<(), NnError> {
        let (ws, kernels, heads) = (self.ws, self.kernels, self.heads());
        let (queries, keys) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let attended = self.rows(&ws.attended, queries)?;
        let d_o = self.rows(&ws.d_attended, queries)?;
        kernels.matmul_transposed(c, &self.transposed(O, d, d_o))?;
        if sink.wants(O) {
            let xt = self.transpose(c, attended)?;
            sink.take(c, O, WeightGradient { d_y: d, xt, first_input: 0, first_output: 0 })?;
        }
        let gradient = AttentionGradient {
            q: self.rows(&ws.q, queries)?,
            k: self.rows(&ws.k, keys)?,
            v: self.rows(&ws.v, keys)?,
            o: attended,
            lse: self.rows(&ws.heads[0], heads.heads)?,
            d_o,
            delta: self.rows(&ws.heads[1], heads.heads)?,
            d_q: self.rows(&ws.d_q, queries)?,
            d_k: self.rows(&ws.d_k, keys)?,
            d_v: self.rows(&ws.d_v, keys)?,
        };
        let of_kind = [(Q, gradient.d_q), (K, gradient.d_k), (V, gradient.d_v)];
        if !to_input && !of_kind.iter().any(|(kind, _)| sink.wants(*kind)) {
            return Ok(());
        }
        kernels.attention_backward(c, &gradient, heads, self.layout)?;
        kernels.rope_backward(c, gradient.d_q, heads.head_dim, &ws.table, self.layout)?;
        kernels.rope_backward(c, gradient.d_k, heads.head_dim, &ws.table, self.layout)?;
        if to_input {
            for (i, (kind, d_y)) in of_kind.into_iter().enumerate() {
                let product = TransposedProduct { accumulate: i > 0, ..self.transposed(kind, d_y, d_normed) };
                kernels.matmul_transposed(c, &product)?;
            }
        }
        let wanted: Vec<_> = of_kind.into_iter().filter(|(kind, _)| sink.wants(*kind)).collect();
        if !wanted.is_empty() {
            let xt = self.transpose(c, self.rows(&ws.normed[0], self.config.hidden_size)?)?;
            for (kind, d_y) in wanted {
                sink.take(c, kind, WeightGradient { d_y, xt, first_input: 0, first_output: 0 })?;
            }
        }
        Ok(())
    }

    fn transposed<'p>(&'p self, kind: ProjectionKind, d_y: Rows<'p>, d_x: Rows<'p>) -> TransposedProduct<'p> {
        let linear = &self.linears[kind as usize];
        TransposedProduct::new(linear.weight, linear.masking, d_y, d_x)
    }

    /// `x^T` `[t, features]` with zeros at padding tokens.
    fn transpose(&self, c: &mut Commands<'g>, x: Rows<'_>) -> Result<Rows<'a>, NnError> {
        debug_assert!(x.count <= self.ws.widest);
        let xt = self.ws.transposed.rows(0, 4 * x.t4, x.count / 4)?;
        self.kernels.transpose(c, x, xt, 0, Some((self.layout, 0)), 1.0)?;
        Ok(xt)
    }
}
