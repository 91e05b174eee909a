//! One decoder block forwards and backwards: what learning masks or weights by backpropagation needs of a block.
//!
//! A pass keeps everything its backward pass reads in one [`TrainSpace`]; between two passes a block keeps its input only, and is
//! run forwards again before it is run backwards.

use super::block::RopeTables;
use super::weights::NormWeights;
use super::{BlockWeights, NnError, Sizes};
use crate::gpu::{Buffer, Commands, Gpu, GpuError};
use crate::kernel::{
    Activation, AttentionGradient, Kernels, Layout, Masking, Product, Rows, TransposedProduct, Weight,
    f32_bytes,
};
use crate::model::{Architecture, ProjectionKind};

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

/// A block's projections in the order of [`ProjectionKind::ALL`]; none where there is no such projection.
pub type TrainLinears<'a> = [Option<TrainLinear<'a>>; ProjectionKind::ALL.len()];

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
    /// The inputs of attention and feed-forward layer, where norms make them.
    normed: [Option<Activation>; 2],
    /// Queries, keys and values as the products leave them, where something comes before their rotation.
    raw: Option<[Activation; 3]>,
    q: Activation,
    k: Activation,
    v: Activation,
    attended: Activation,
    /// Log-sum-exp of the scores, and the products of outputs and their gradients, per head.
    heads: [Activation; 2],
    gate: Vec<Activation>,
    up: Vec<Activation>,
    inner: Activation,
    /// What the two parts add, where it is not added as it is, and the gradient of one of them.
    added: Option<[Activation; 3]>,
    /// Gradients of the inputs of attention and feed-forward layer. The second where both read the block's input through norms of
    /// their own: then the first is not used up when the other is made.
    d_normed: Activation,
    d_normed_beside: Option<Activation>,
    d_q: Activation,
    d_k: Activation,
    d_v: Activation,
    d_attended: Activation,
    d_inner: Activation,
    transposed: Activation,
    tables: RopeTables,
    pieces: Vec<(usize, usize)>,
    /// Features of the widest input of a projection, or of a piece of it.
    widest: usize,
}

/// How the two parts of a block meet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meeting {
    /// The feed-forward layer reads what the attention has added to.
    InTurn,
    /// Both read the block's input, through norms of their own.
    Beside,
    /// Both read the same normed input.
    Shared,
}

impl Architecture {
    fn meeting(&self) -> Meeting {
        match (self.block.parallel, self.block.feed_forward_in) {
            (false, _) => Meeting::InTurn,
            (true, Some(_)) => Meeting::Beside,
            (true, None) => Meeting::Shared,
        }
    }
}

impl TrainSpace {
    /// Allocates for batches of at most `sizes.layout`.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, config: &Architecture, sizes: &Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        let (hidden, queries, keys) = (config.hidden_size, config.query_rows(), config.key_rows());
        let pieces: Vec<(usize, usize)> = sizes.pieces().collect();
        let in_pieces = |name: &str| {
            pieces.iter().map(|&(_, rows)| new(name, rows)).collect::<Result<Vec<_>, GpuError>>()
        };
        let normed = |norm: Option<&str>| norm.map(|_| new("normed", hidden)).transpose();
        let raw = || Ok::<_, GpuError>([new("raw q", queries)?, new("raw k", keys)?, new("raw v", keys)?]);
        let added = || {
            let new = || new("added", hidden);
            Ok::<_, GpuError>([new()?, new()?, new()?])
        };
        let beside = config.meeting() == Meeting::Beside;
        let widest = hidden.max(queries).max(sizes.ffn_rows);
        Ok(Self {
            mid: new("residual after attention", hidden)?,
            normed: [normed(config.block.attention_in)?, normed(config.block.feed_forward_in)?],
            raw: config.changes_qkv().then(raw).transpose()?,
            q: new("q", queries)?,
            k: new("k", keys)?,
            v: new("v", keys)?,
            attended: new("attended", queries)?,
            heads: [new("heads", config.num_heads)?, new("heads", config.num_heads)?],
            gate: if config.feed_forward.gated { in_pieces("gate")? } else { Vec::new() },
            up: in_pieces("up")?,
            inner: new("inner", sizes.ffn_rows)?,
            added: config.changes_parts().then(added).transpose()?,
            d_normed: new("gradient of normed", hidden)?,
            d_normed_beside: beside.then(|| new("gradient of normed", hidden)).transpose()?,
            d_q: new("gradient of q", queries)?,
            d_k: new("gradient of k", keys)?,
            d_v: new("gradient of v", keys)?,
            d_attended: new("gradient of attended", queries)?,
            d_inner: new("gradient of inner", sizes.ffn_rows)?,
            transposed: Activation::new(gpu, "activations:transposed input", 4 * t4, widest.div_ceil(4))?,
            tables: RopeTables::new(gpu, config, sizes.layout)?,
            pieces,
            widest,
        })
    }

    /// Bytes of [`TrainSpace::new`].
    pub fn bytes(config: &Architecture, sizes: &Sizes) -> u64 {
        let (hidden, queries, keys) = (config.hidden_size, config.query_rows(), config.key_rows());
        let widest = hidden.max(queries).max(sizes.ffn_rows).next_multiple_of(4);
        let norms = [config.block.attention_in, config.block.feed_forward_in].iter().flatten().count();
        let streams = 2
            + norms
            + if config.changes_parts() { 3 } else { 0 }
            + if config.meeting() == Meeting::Beside { 1 } else { 0 };
        let raw = if config.changes_qkv() { queries + 2 * keys } else { 0 };
        let inner = if config.feed_forward.gated { 2 } else { 1 };
        let rows = streams * hidden
            + 4 * queries
            + 4 * keys
            + raw
            + 2 * config.num_heads
            + inner * config.intermediate_size
            + 2 * sizes.ffn_rows
            + widest;
        f32_bytes(rows, 4 * sizes.layout.t4()) + RopeTables::bytes(config, sizes.layout)
    }
}

/// A block on one batch, forwards and backwards.
pub struct TrainPass<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// What the model computes.
    pub config: &'a Architecture,
    /// Buffers.
    pub ws: &'a TrainSpace,
    /// The batch.
    pub layout: Layout,
    /// Norms of the block.
    pub block: &'a BlockWeights,
    /// Its projections.
    pub linears: TrainLinears<'a>,
}

impl BlockWeights {
    /// The projections under `maskings`, for a [`TrainPass`].
    pub fn train_linears<'a>(&'a self, masking: impl Fn(ProjectionKind) -> Masking<'a>) -> TrainLinears<'a> {
        ProjectionKind::ALL.map(|kind| {
            let linear = self.linears[kind as usize].as_ref()?;
            Some(TrainLinear { weight: &linear.weight, bias: linear.bias.as_ref(), masking: masking(kind) })
        })
    }
}

use ProjectionKind::{Down, Gate, K, O, Q, Up, V};

impl<'a, 'g> TrainPass<'a, 'g> {
    fn rows(&self, of: &'a Activation, count: usize) -> Result<Rows<'a>, NnError> {
        Ok(of.rows(0, count, self.layout.t4())?)
    }

    /// A tensor as wide as the residual stream.
    fn stream(&self, of: &'a Activation) -> Result<Rows<'a>, NnError> {
        self.rows(of, self.config.hidden_size)
    }

    fn train_linear(&self, kind: ProjectionKind) -> Result<&TrainLinear<'a>, NnError> {
        self.linears[kind as usize].as_ref().ok_or(NnError::NoProjection { kind })
    }

    fn product<'p>(&'p self, kind: ProjectionKind, x: Rows<'p>, y: Rows<'p>) -> Result<Product<'p>, NnError> {
        let linear = self.train_linear(kind)?;
        Ok(Product { bias: linear.bias, ..Product::new(linear.weight, x, y) })
    }

    fn forward_product(
        &self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        p: &Product<'_>,
    ) -> Result<(), NnError> {
        Ok(self.kernels.matmul_soft(c, p, self.train_linear(kind)?.masking)?)
    }

    /// The input of a part: `x` through a norm, or itself.
    fn input(
        &self,
        c: &mut Commands<'g>,
        x: Rows<'a>,
        norm: Option<&NormWeights>,
        place: Option<&'a Activation>,
    ) -> Result<Rows<'a>, NnError> {
        let (Some(norm), Some(place)) = (norm, place) else {
            return Ok(x);
        };
        let normed = self.stream(place)?;
        self.kernels.norm(c, x, &norm.over_stream(self.config), normed)?;
        Ok(normed)
    }

    /// The same without making it: it is there since the forward pass.
    fn made_input(&self, x: Rows<'a>, place: Option<&'a Activation>) -> Result<Rows<'a>, NnError> {
        place.map_or(Ok(x), |place| self.stream(place))
    }

    /// Where a part puts what it adds to `to`: there, or aside, to be changed.
    fn aside(&self, part: usize, to: Rows<'a>) -> Result<Rows<'a>, NnError> {
        match &self.ws.added {
            Some(added) if self.changes(part) => self.stream(&added[part]),
            _ => Ok(to),
        }
    }

    /// The norm behind a part, 0 attention or 1 feed-forward layer.
    fn norm_behind(&self, part: usize) -> Option<&'a NormWeights> {
        let block = self.block;
        if part == 0 { block.attention_out.as_ref() } else { block.feed_forward_out.as_ref() }
    }

    /// Whether what a part adds is changed before.
    fn changes(&self, part: usize) -> bool {
        self.norm_behind(part).is_some() || self.config.scales.residual != 1.0
    }

    /// Adds to `to` what a part put aside.
    fn add_aside(
        &self,
        c: &mut Commands<'g>,
        part: usize,
        aside: Rows<'a>,
        to: Rows<'a>,
    ) -> Result<(), NnError> {
        if !self.changes(part) {
            return Ok(());
        }
        match self.norm_behind(part) {
            Some(norm) => {
                // The gradient's buffer is free in the forward pass; the scale is in the norm's gains.
                let normed = self.stream(&self.ws.d_normed)?;
                self.kernels.norm(c, aside, &norm.over_stream(self.config), normed)?;
                Ok(self.kernels.add_scaled(c, normed, 1.0, to)?)
            }
            None => Ok(self.kernels.add_scaled(c, aside, self.config.scales.residual, to)?),
        }
    }

    /// The gradient of what a part's last product makes, from that of the residual stream.
    fn gradient_aside(&self, c: &mut Commands<'g>, part: usize, d: Rows<'a>) -> Result<Rows<'a>, NnError> {
        let Some(added) = self.ws.added.as_ref().filter(|_| self.changes(part)) else {
            return Ok(d);
        };
        let (aside, out) = (self.stream(&added[part])?, self.stream(&added[2])?);
        match self.norm_behind(part) {
            Some(norm) => {
                self.kernels.norm_backward(c, aside, &norm.over_stream(self.config), d, out, false)?;
            }
            None => {
                c.clear(out.buffer, f32_bytes(out.count, 4 * out.t4))?;
                self.kernels.add_scaled(c, d, self.config.scales.residual, out)?;
            }
        }
        Ok(out)
    }

    /// The block's output `y` from its input `x`, both `[hidden, t]`, keeping what [`TrainPass::backward`] reads.
    ///
    /// # Errors
    /// What the device reports.
    pub fn forward(&self, c: &mut Commands<'g>, x: Rows<'a>, y: Rows<'a>) -> Result<(), NnError> {
        let (ws, config, kernels) = (self.ws, self.config, self.kernels);
        let bytes = f32_bytes(config.hidden_size, 4 * self.layout.t4());
        let attention_input = self.input(c, x, self.block.attention_in.as_ref(), ws.normed[0].as_ref())?;
        let [q, k, v] = self.queries_keys_values(c, attention_input)?;
        let heads = config.heads(self.block.index, self.layout.length);
        let attended = self.rows(&ws.attended, config.query_rows())?;
        let lse = self.rows(&ws.heads[0], heads.heads)?;
        kernels.attention(c, [q, k, v], attended, Some(lse), heads, self.layout)?;
        let mid = self.stream(&ws.mid)?;
        c.copy(x.buffer, 0, mid.buffer, 0, bytes)?;
        let to = self.aside(0, mid)?;
        let accumulate = !self.changes(0);
        self.forward_product(c, O, &Product { accumulate, ..self.product(O, attended, to)? })?;
        self.add_aside(c, 0, to, mid)?;
        let normed = match config.meeting() {
            Meeting::InTurn => {
                self.input(c, mid, self.block.feed_forward_in.as_ref(), ws.normed[1].as_ref())?
            }
            Meeting::Beside => {
                self.input(c, x, self.block.feed_forward_in.as_ref(), ws.normed[1].as_ref())?
            }
            Meeting::Shared => attention_input,
        };
        c.copy(mid.buffer, 0, y.buffer, 0, bytes)?;
        let to = self.aside(1, y)?;
        for (i, &(first, count)) in ws.pieces.iter().enumerate() {
            let (up, inner) = (self.rows(&ws.up[i], count)?, self.rows(&ws.inner, count)?);
            let outputs = first..first + count;
            if let Some(gate) = ws.gate.get(i) {
                let gate = self.rows(gate, count)?;
                let outputs = outputs.clone();
                self.forward_product(c, Gate, &Product { outputs, ..self.product(Gate, normed, gate)? })?;
            }
            self.forward_product(c, Up, &Product { outputs, ..self.product(Up, normed, up)? })?;
            self.activate(c, i, inner)?;
            let mut down = self.product(Down, inner, to)?;
            down.inputs = first..first + count;
            down.accumulate = first > 0 || !self.changes(1);
            if first > 0 {
                down.bias = None;
            }
            self.forward_product(c, Down, &down)?;
        }
        self.add_aside(c, 1, to, y)
    }

    /// Queries, keys and values of the attention's input, rotated.
    fn queries_keys_values(&self, c: &mut Commands<'g>, normed: Rows<'a>) -> Result<[Rows<'a>; 3], NnError> {
        let (ws, config, kernels) = (self.ws, self.config, self.kernels);
        let (queries, keys) = (config.query_rows(), config.key_rows());
        let made = [self.rows(&ws.q, queries)?, self.rows(&ws.k, keys)?, self.rows(&ws.v, keys)?];
        for (i, (kind, rows)) in [Q, K, V].into_iter().zip(made).enumerate() {
            let to = match &ws.raw {
                Some(raw) if self.changes_before_rotation(i) => self.rows(&raw[i], rows.count)?,
                _ => rows,
            };
            self.forward_product(c, kind, &self.product(kind, normed, to)?)?;
            if let (Some(shape), Some(norm)) = (&config.qk_norm, self.qk_norm(i)) {
                kernels.norm(c, to, &norm.over_heads(shape, rows.count / config.head_dim), rows)?;
            } else if let Some(clip) = config.attention.clip {
                kernels.clamp_to(c, to, clip, rows)?;
            }
        }
        if let Some([for_q, for_k]) = ws.tables.of(config, self.block.index) {
            kernels.rope(c, made[0], config.rotation(), for_q, self.layout)?;
            kernels.rope(c, made[1], config.rotation(), for_k, self.layout)?;
        }
        Ok(made)
    }

    /// The norm of queries, keys or values, 0 to 2.
    fn qk_norm(&self, i: usize) -> Option<&'a NormWeights> {
        self.block.qk_norm.as_ref()?.get(i)
    }

    fn changes_before_rotation(&self, i: usize) -> bool {
        self.qk_norm(i).is_some() || self.config.attention.clip.is_some()
    }

    /// Makes piece `i` of the input of down.
    fn activate(&self, c: &mut Commands<'g>, i: usize, inner: Rows<'a>) -> Result<(), NnError> {
        let up = self.rows(&self.ws.up[i], inner.count)?;
        let activation = self.config.feed_forward.activation;
        match self.ws.gate.get(i) {
            Some(gate) => {
                Ok(self.kernels.gated_to(c, activation, self.rows(gate, inner.count)?, up, inner)?)
            }
            None => Ok(self.kernels.activate_to(c, activation, up, inner)?),
        }
    }

    /// The gradient of the block's input from that of its output, in place in `d` `[hidden, t]`, which is zero at padding tokens;
    /// gradients of the projections go to `sink`. Without `to_input` nothing of `d` is of use afterwards, and less is computed.
    ///
    /// # Errors
    /// What the device or the sink report.
    pub fn backward(
        &self,
        c: &mut Commands<'g>,
        x: Rows<'a>,
        d: Rows<'a>,
        to_input: bool,
        sink: &mut dyn GradientSink<'g>,
    ) -> Result<(), NnError> {
        let (ws, block) = (self.ws, self.block);
        let d_attention = self.stream(&ws.d_normed)?;
        let d_feed_forward = self.stream(ws.d_normed_beside.as_ref().unwrap_or(&ws.d_normed))?;
        let mid = self.stream(&ws.mid)?;
        let meeting = self.config.meeting();
        let of_attention = self.made_input(x, ws.normed[0].as_ref())?;
        let (source, of_feed_forward) = match meeting {
            Meeting::InTurn => (mid, self.made_input(mid, ws.normed[1].as_ref())?),
            Meeting::Beside => (x, self.made_input(x, ws.normed[1].as_ref())?),
            Meeting::Shared => (x, of_attention),
        };
        self.feed_forward_backward(c, of_feed_forward, d, d_feed_forward, sink)?;
        if meeting == Meeting::InTurn {
            self.input_backward(c, source, block.feed_forward_in.as_ref(), d_feed_forward, d)?;
        }
        let more = meeting == Meeting::Shared;
        self.attention_backward(c, of_attention, d, (d_attention, more), to_input, sink)?;
        if to_input {
            self.input_backward(c, x, block.attention_in.as_ref(), d_attention, d)?;
            if meeting == Meeting::Beside {
                self.input_backward(c, source, block.feed_forward_in.as_ref(), d_feed_forward, d)?;
            }
        }
        Ok(())
    }

    /// Adds to `d` the gradient of `x` from that of a part's input.
    fn input_backward(
        &self,
        c: &mut Commands<'g>,
        x: Rows<'a>,
        norm: Option<&NormWeights>,
        d_input: Rows<'a>,
        d: Rows<'a>,
    ) -> Result<(), NnError> {
        match norm {
            Some(norm) => {
                Ok(self.kernels.norm_backward(c, x, &norm.over_stream(self.config), d_input, d, true)?)
            }
            None => Ok(self.kernels.add_scaled(c, d_input, 1.0, d)?),
        }
    }

    fn feed_forward_backward(
        &self,
        c: &mut Commands<'g>,
        normed: Rows<'a>,
        d: Rows<'a>,
        d_normed: Rows<'a>,
        sink: &mut dyn GradientSink<'g>,
    ) -> Result<(), NnError> {
        let (ws, kernels, activation) = (self.ws, self.kernels, self.config.feed_forward.activation);
        let d = self.gradient_aside(c, 1, d)?;
        for (i, &(first, count)) in ws.pieces.iter().enumerate() {
            let up = self.rows(&ws.up[i], count)?;
            let (inner, d_inner) = (self.rows(&ws.inner, count)?, self.rows(&ws.d_inner, count)?);
            let mut down = self.transposed(Down, d, d_inner)?;
            down.inputs = first..first + count;
            kernels.matmul_transposed(c, &down)?;
            if sink.wants(Down) {
                if ws.pieces.len() > 1 {
                    self.activate(c, i, inner)?;
                }
                let xt = self.transpose(c, inner)?;
                sink.take(c, Down, WeightGradient { d_y: d, xt, first_input: first, first_output: 0 })?;
            }
            let mut gradients = Vec::with_capacity(2);
            match ws.gate.get(i) {
                Some(gate) => {
                    let gate = self.rows(gate, count)?;
                    kernels.gated_backward(c, activation, gate, up, d_inner)?;
                    gradients.push((Gate, gate));
                }
                None => kernels.activate_backward(c, activation, up, d_inner)?,
            }
            gradients.push((Up, up));
            for (number, &(kind, d_y)) in gradients.iter().enumerate() {
                let mut product = self.transposed(kind, d_y, d_normed)?;
                product.outputs = first..first + count;
                product.accumulate = i > 0 || number > 0;
                kernels.matmul_transposed(c, &product)?;
            }
            if gradients.iter().any(|(kind, _)| sink.wants(*kind)) {
                let xt = self.transpose(c, normed)?;
                for (kind, d_y) in gradients {
                    if sink.wants(kind) {
                        sink.take(c, kind, WeightGradient { d_y, xt, first_input: 0, first_output: first })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves the gradient of the attention's input in `d_normed`, or adds it there.
    fn attention_backward(
        &self,
        c: &mut Commands<'g>,
        normed: Rows<'a>,
        d: Rows<'a>,
        (d_normed, more): (Rows<'a>, bool),
        to_input: bool,
        sink: &mut dyn GradientSink<'g>,
    ) -> Result<(), NnError> {
        let (ws, config, kernels) = (self.ws, self.config, self.kernels);
        let heads = config.heads(self.block.index, self.layout.length);
        let (queries, keys) = (config.query_rows(), config.key_rows());
        let d = self.gradient_aside(c, 0, d)?;
        let attended = self.rows(&ws.attended, queries)?;
        let d_o = self.rows(&ws.d_attended, queries)?;
        kernels.matmul_transposed(c, &self.transposed(O, d, d_o)?)?;
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
        if !to_input && ![Q, K, V].into_iter().any(|kind| sink.wants(kind)) {
            return Ok(());
        }
        kernels.attention_backward(c, &gradient, heads, self.layout)?;
        if let Some([for_q, for_k]) = ws.tables.of(config, self.block.index) {
            kernels.rope_backward(c, gradient.d_q, config.rotation(), for_q, self.layout)?;
            kernels.rope_backward(c, gradient.d_k, config.rotation(), for_k, self.layout)?;
        }
        let of_kind = self.before_rotation_backward(c, &gradient)?;
        if to_input {
            for (i, (kind, d_y)) in of_kind.into_iter().enumerate() {
                let product =
                    TransposedProduct { accumulate: more || i > 0, ..self.transposed(kind, d_y, d_normed)? };
                kernels.matmul_transposed(c, &product)?;
            }
        }
        let wanted: Vec<_> = of_kind.into_iter().filter(|(kind, _)| sink.wants(*kind)).collect();
        if !wanted.is_empty() {
            let xt = self.transpose(c, normed)?;
            for (kind, d_y) in wanted {
                sink.take(c, kind, WeightGradient { d_y, xt, first_input: 0, first_output: 0 })?;
            }
        }
        Ok(())
    }

    /// The gradients of what the products of q, k and v make.
    fn before_rotation_backward(
        &self,
        c: &mut Commands<'g>,
        gradient: &AttentionGradient<'a>,
    ) -> Result<[(ProjectionKind, Rows<'a>); 3], NnError> {
        let (config, kernels) = (self.config, self.kernels);
        let mut of_kind = [(Q, gradient.d_q), (K, gradient.d_k), (V, gradient.d_v)];
        let Some(raw) = &self.ws.raw else {
            return Ok(of_kind);
        };
        // Queries and keys themselves are not read any more: their buffers take the gradients.
        let free = [gradient.q, gradient.k, gradient.v];
        for (i, (_, d)) in of_kind.iter_mut().enumerate() {
            let raw = self.rows(&raw[i], d.count)?;
            if let (Some(shape), Some(norm)) = (&config.qk_norm, self.qk_norm(i)) {
                let norm = norm.over_heads(shape, d.count / config.head_dim);
                kernels.norm_backward(c, raw, &norm, *d, free[i], false)?;
                *d = free[i];
            } else if let Some(clip) = config.attention.clip {
                kernels.clamp_backward(c, raw, clip, *d)?;
            }
        }
        Ok(of_kind)
    }

    fn transposed<'p>(
        &'p self,
        kind: ProjectionKind,
        d_y: Rows<'p>,
        d_x: Rows<'p>,
    ) -> Result<TransposedProduct<'p>, NnError> {
        let linear = self.train_linear(kind)?;
        Ok(TransposedProduct::new(linear.weight, linear.masking, d_y, d_x))
    }

    /// `x^T` `[t, features]` with zeros at padding tokens.
    fn transpose(&self, c: &mut Commands<'g>, x: Rows<'_>) -> Result<Rows<'a>, NnError> {
        debug_assert!(x.count <= self.ws.widest);
        let xt = self.ws.transposed.rows(0, 4 * x.t4, x.count / 4)?;
        self.kernels.transpose(c, x, xt, 0, Some((self.layout, 0)), 1.0)?;
        Ok(xt)
    }
}
