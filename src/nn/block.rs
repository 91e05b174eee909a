//! One decoder block on one batch, step by step: a whole forward pass walks the steps, layer-by-layer pruning stops between them.

use super::weights::NormWeights;
use super::{BlockWeights, Masks, NnError, Sizes};
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernel::{Activation, Heads, Kernels, Layout, MaskBuffer, Product, Rotary, Rows, f32_bytes};
use crate::model::{Architecture, ProjectionKind};

/// Masks of one block's projections, in the order of [`ProjectionKind::ALL`]; `None` = dense.
pub type BlockMasks<'a> = [Option<&'a MaskBuffer>; ProjectionKind::ALL.len()];

/// The masks of block `index` among those of a model; none where there are none.
pub(super) fn block_masks<'a>(config: &Architecture, masks: Masks<'a>, index: usize) -> BlockMasks<'a> {
    ProjectionKind::ALL.map(|kind| masks.get(config.projection_index(index, kind)?).copied().flatten())
}

/// The rotary tables of a model: for queries and for keys, which are the same unless queries grow, of each of its rotary
/// embeddings.
pub(super) struct RopeTables(Vec<(Buffer, Option<Buffer>)>);

impl RopeTables {
    /// For windows of `layout`.
    pub(super) fn new(gpu: &Gpu, config: &Architecture, layout: Layout) -> Result<Self, NnError> {
        let positions = 0..4 * layout.window4();
        let table = |of, grow| {
            gpu.alloc_init(
                "activations:rope",
                &rope_table(config, of, layout.length, positions.clone(), grow),
            )
        };
        let grows = config.attention.growth.is_some();
        let both = |of| Ok((table(of, false)?, grows.then(|| table(of, true)).transpose()?));
        Ok(Self((0..config.ropes.len()).map(both).collect::<Result<_, NnError>>()?))
    }

    /// Bytes of [`RopeTables::new`].
    pub(super) fn bytes(config: &Architecture, layout: Layout) -> u64 {
        let each = if config.attention.growth.is_some() { 2 } else { 1 };
        each * config.ropes.len() as u64 * f32_bytes(config.rotary.turned, 4 * layout.window4())
    }

    /// Those of a block for its queries and its keys, none where they stay as they are.
    pub(super) fn of(&self, config: &Architecture, block: usize) -> Option<[&Buffer; 2]> {
        let (keys, queries) = self.0.get(config.layers.get(block)?.rope?)?;
        Some([queries.as_ref().unwrap_or(keys), keys])
    }
}

/// What a block needs while it runs, and nobody afterwards.
pub struct BlockSpace {
    normed: Activation,
    q: Activation,
    k: Activation,
    v: Activation,
    /// Queries or keys or values as the product leaves them, where something comes before their rotation.
    raw: Option<Activation>,
    up: Option<Activation>,
    /// What a part of the block adds, where it is not added as it is.
    added: Option<Activation>,
    tables: RopeTables,
}

impl BlockSpace {
    /// Allocates for batches of at most `sizes.layout`, with the rotary table of its window.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, config: &Architecture, sizes: &Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        let keys = config.key_rows();
        Ok(Self {
            normed: new("normed", config.hidden_size)?,
            q: new("q", config.query_rows())?,
            k: new("k", keys)?,
            v: new("v", keys)?,
            raw: config.changes_qkv().then(|| new("raw", config.query_rows())).transpose()?,
            up: config.feed_forward.gated.then(|| new("up", sizes.ffn_rows)).transpose()?,
            added: config.changes_parts().then(|| new("added", config.hidden_size)).transpose()?,
            tables: RopeTables::new(gpu, config, sizes.layout)?,
        })
    }

    /// The buffer of normed activations, for a batch: scratch between two blocks.
    ///
    /// # Errors
    /// When it is too small.
    pub fn normed(&self, config: &Architecture, layout: Layout) -> Result<Rows<'_>, NnError> {
        Ok(self.normed.rows(0, config.hidden_size, layout.t4())?)
    }

    /// Makes every token of later batches of `layout`, which is one window, stand at `position`.
    pub(super) fn stand_at(
        &self,
        c: &mut Commands<'_>,
        config: &Architecture,
        layout: Layout,
        position: usize,
    ) -> Result<(), NnError> {
        for (i, (keys, queries)) in self.tables.0.iter().enumerate() {
            for (buffer, grow) in [(Some(keys), false), (queries.as_ref(), true)] {
                let positions = std::iter::repeat_n(position, 4 * layout.window4());
                if let Some(buffer) = buffer {
                    c.write(buffer, 0, &rope_table(config, i, position + 1, positions, grow))?;
                }
            }
        }
        Ok(())
    }

    /// Bytes of [`BlockSpace::new`].
    pub fn bytes(config: &Architecture, sizes: &Sizes) -> u64 {
        let mut rows = config.hidden_size + config.query_rows() + 2 * config.key_rows();
        if config.changes_qkv() {
            rows += config.query_rows();
        }
        if config.feed_forward.gated {
            rows += sizes.ffn_rows;
        }
        if config.changes_parts() {
            rows += config.hidden_size;
        }
        f32_bytes(rows, 4 * sizes.layout.t4()) + RopeTables::bytes(config, sizes.layout)
    }
}

impl Architecture {
    /// Whether queries, keys or values are changed between the product and the rotation.
    pub(super) fn changes_qkv(&self) -> bool {
        self.qk_norm.is_some() || self.attention.clip.is_some()
    }

    /// Whether what a part of the block adds to the residual stream is changed before.
    pub(super) fn changes_parts(&self) -> bool {
        self.block.attention_out.is_some()
            || self.block.feed_forward_out.is_some()
            || self.scales.residual != 1.0
    }

    /// The shapes of a block's attention on windows of `length` tokens.
    pub(super) fn heads(&self, block: usize, length: usize) -> Heads {
        let window = self.layers.get(block).and_then(|layer| layer.window).filter(|window| *window < length);
        Heads {
            heads: self.num_heads,
            kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: self.attention.scale,
            cap: self.attention.cap,
            window,
        }
    }

    /// As the kernels take the rotation.
    pub(super) fn rotation(&self) -> Rotary {
        let (turned, interleaved) = (self.rotary.turned, self.rotary.interleaved);
        Rotary { head_dim: self.head_dim, turned, interleaved }
    }
}

/// `[2, turned / 2, positions]`: cosines, then sines, of position times inverse frequency, computed in f64, of rotary embedding `of`
/// for texts of `length` tokens; `grow`: times what queries grow by.
fn rope_table(
    config: &Architecture,
    of: usize,
    length: usize,
    positions: impl Iterator<Item = usize> + Clone,
    grow: bool,
) -> Vec<f32> {
    let Some(rope) = config.ropes.get(of) else {
        return Vec::new();
    };
    let (frequencies, factor) = (rope.frequencies(config.rotary.turned, length), rope.attention_factor());
    let growth = config.attention.growth.filter(|_| grow);
    let mut table = Vec::new();
    for part in [f64::cos, f64::sin] {
        for f in &frequencies {
            let value = |p: usize| part(p as f64 * f) * factor * growth.map_or(1.0, |g| g.at(p));
            table.extend(positions.clone().map(|p| value(p) as f32));
        }
    }
    table
}

/// One block of one forward pass.
pub struct BlockPass<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// What the model computes.
    pub config: &'a Architecture,
    /// Buffers for what is not kept.
    pub ws: &'a BlockSpace,
    /// The batch.
    pub layout: Layout,
    /// The block's weights.
    pub block: &'a BlockWeights,
    /// The block's masks.
    pub masks: BlockMasks<'a>,
}

impl<'a, 'g> BlockPass<'a, 'g> {
    fn product<'p>(&'p self, kind: ProjectionKind, x: Rows<'p>, y: Rows<'p>) -> Result<Product<'p>, NnError> {
        let linear = self.block.linear(kind)?;
        let mask = self.masks[kind as usize];
        Ok(Product { mask, bias: linear.bias.as_ref(), ..Product::new(&linear.weight, x, y) })
    }

    /// The input of a part of the block: the residual stream through a norm, or itself.
    fn input<'x>(
        &self,
        c: &mut Commands<'g>,
        x: Rows<'x>,
        norm: Option<&NormWeights>,
    ) -> Result<Rows<'x>, NnError>
    where
        'a: 'x,
    {
        let Some(norm) = norm else {
            return Ok(x);
        };
        let normed = self.ws.normed(self.config, self.layout)?;
        self.kernels.norm(c, x, &norm.over_stream(self.config), normed)?;
        Ok(normed)
    }

    /// The input of q, k and v from the residual stream `x`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn attention_input<'x>(&self, c: &mut Commands<'g>, x: Rows<'x>) -> Result<Rows<'x>, NnError>
    where
        'a: 'x,
    {
        self.input(c, x, self.block.attention_in.as_ref())
    }

    /// Attention on its normed input, without the output projection: the input of o.
    ///
    /// # Errors
    /// What the device reports.
    pub fn attend(&self, c: &mut Commands<'g>, normed: Rows<'_>, attended: Rows<'_>) -> Result<(), NnError> {
        let [q, k, v] = self.queries_keys_values(c, normed)?;
        let heads = self.config.heads(self.block.index, self.layout.length);
        Ok(self.kernels.attention(c, [q, k, v], attended, None, heads, self.layout)?)
    }

    /// Queries, keys and values of the normed input, rotated.
    pub(super) fn queries_keys_values(
        &self,
        c: &mut Commands<'g>,
        normed: Rows<'_>,
    ) -> Result<[Rows<'a>; 3], NnError> {
        use ProjectionKind::{K, Q, V};
        let (ws, config, kernels, t4) = (self.ws, self.config, self.kernels, self.layout.t4());
        let (queries, keys) = (config.query_rows(), config.key_rows());
        let made =
            [(Q, ws.q.rows(0, queries, t4)?), (K, ws.k.rows(0, keys, t4)?), (V, ws.v.rows(0, keys, t4)?)];
        for (i, (kind, rows)) in made.into_iter().enumerate() {
            let norm = match (&config.qk_norm, &self.block.qk_norm) {
                (Some(shape), Some(norms)) => {
                    norms.get(i).map(|n| n.over_heads(shape, rows.count / config.head_dim))
                }
                _ => None,
            };
            match (&ws.raw, norm, config.attention.clip) {
                (Some(raw), Some(norm), _) => {
                    let raw = raw.rows(0, rows.count, t4)?;
                    kernels.matmul(c, &self.product(kind, normed, raw)?)?;
                    kernels.norm(c, raw, &norm, rows)?;
                }
                (Some(raw), None, Some(clip)) => {
                    let raw = raw.rows(0, rows.count, t4)?;
                    kernels.matmul(c, &self.product(kind, normed, raw)?)?;
                    kernels.clamp_to(c, raw, clip, rows)?;
                }
                _ => kernels.matmul(c, &self.product(kind, normed, rows)?)?,
            }
        }
        let [(_, q), (_, k), (_, v)] = made;
        if let Some([for_q, for_k]) = ws.tables.of(config, self.block.index) {
            kernels.rope(c, q, config.rotation(), for_q, self.layout)?;
            kernels.rope(c, k, config.rotation(), for_k, self.layout)?;
        }
        Ok([q, k, v])
    }

    /// Adds to `x`, or with `set` puts there, what the projection `kind` makes of the features `first..` of its input; with the last
    /// of them also through the norm and the scale that come behind it.
    fn add(
        &self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        (input, first): (Rows<'_>, usize),
        norm: Option<&NormWeights>,
        (x, set): (Rows<'_>, bool),
    ) -> Result<(), NnError> {
        let direct = norm.is_none() && self.config.scales.residual == 1.0;
        let to = match &self.ws.added {
            Some(added) if !direct => added.rows(0, x.count, x.t4)?,
            _ => x,
        };
        let mut product = self.product(kind, input, to)?;
        let last = first + input.count == product.inputs.end;
        product.inputs = first..first + input.count;
        product.accumulate = first > 0 || (direct && !set);
        if first > 0 {
            product.bias = None;
        }
        self.kernels.matmul(c, &product)?;
        if direct || !last {
            return Ok(());
        }
        let (added, scale) = match norm {
            None => (to, self.config.scales.residual),
            Some(norm) => {
                // The scale is in the norm's gains.
                let normed = self.ws.normed(self.config, self.layout)?;
                self.kernels.norm(c, to, &norm.over_stream(self.config), normed)?;
                (normed, 1.0)
            }
        };
        if set {
            c.clear(x.buffer, f32_bytes(x.count, 4 * x.t4))?;
        }
        Ok(self.kernels.add_scaled(c, added, scale, x)?)
    }

    /// Adds the attention's output to the residual stream `x`; where both parts of the block read its input, puts it into `branch`
    /// `[hidden, t]`, for [`BlockPass::join`].
    ///
    /// # Errors
    /// What the device reports.
    pub fn attention_output(
        &self,
        c: &mut Commands<'g>,
        attended: Rows<'_>,
        x: Rows<'_>,
        branch: Option<Rows<'_>>,
    ) -> Result<(), NnError> {
        let to = branch.map_or((x, false), |branch| (branch, true));
        self.add(c, ProjectionKind::O, (attended, 0), self.block.attention_out.as_ref(), to)
    }

    /// The input of the feed-forward layer from the residual stream.
    ///
    /// # Errors
    /// What the device reports.
    pub fn feed_forward_input<'x>(&self, c: &mut Commands<'g>, x: Rows<'x>) -> Result<Rows<'x>, NnError>
    where
        'a: 'x,
    {
        let shared = if self.config.block.parallel { self.block.attention_in.as_ref() } else { None };
        self.input(c, x, self.block.feed_forward_in.as_ref().or(shared))
    }

    /// Features `first..` of the input of down, as many as `inner` has rows.
    ///
    /// # Errors
    /// What the device reports.
    pub fn inner(
        &self,
        c: &mut Commands<'g>,
        normed: Rows<'_>,
        first: usize,
        inner: Rows<'_>,
    ) -> Result<(), NnError> {
        use ProjectionKind::{Gate, Up};
        let (outputs, activation) = (first..first + inner.count, self.config.feed_forward.activation);
        let Some(up) = &self.ws.up else {
            self.kernels.matmul(c, &Product { outputs, ..self.product(Up, normed, inner)? })?;
            return Ok(self.kernels.activate(c, activation, inner)?);
        };
        let up = up.rows(0, inner.count, self.layout.t4())?;
        self.kernels
            .matmul(c, &Product { outputs: outputs.clone(), ..self.product(Gate, normed, inner)? })?;
        self.kernels.matmul(c, &Product { outputs, ..self.product(Up, normed, up)? })?;
        Ok(self.kernels.gated(c, activation, inner, up)?)
    }

    /// Adds what down makes of the features `first..` of its input to the residual stream. The pieces come in order; with the
    /// last one nothing of the normed input is left.
    ///
    /// # Errors
    /// What the device reports.
    pub fn down(
        &self,
        c: &mut Commands<'g>,
        inner: Rows<'_>,
        first: usize,
        x: Rows<'_>,
    ) -> Result<(), NnError> {
        let norm = self.block.feed_forward_out.as_ref();
        self.add(c, ProjectionKind::Down, (inner, first), norm, (x, false))
    }

    /// Adds what [`BlockPass::attention_output`] put into `branch`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn join(&self, c: &mut Commands<'g>, branch: Option<Rows<'_>>, x: Rows<'_>) -> Result<(), NnError> {
        match branch {
            Some(branch) => Ok(self.kernels.add_scaled(c, branch, 1.0, x)?),
            None => Ok(()),
        }
    }

    /// Everything behind the attention's result, in `pieces` of the feed-forward layer: first feature and buffer of each.
    ///
    /// # Errors
    /// What the device reports.
    pub fn behind_attention<'p>(
        &self,
        c: &mut Commands<'g>,
        attended: Rows<'_>,
        x: Rows<'_>,
        branch: Option<Rows<'_>>,
        pieces: impl IntoIterator<Item = (usize, Rows<'p>)>,
    ) -> Result<(), NnError> {
        self.attention_output(c, attended, x, branch)?;
        let normed = self.feed_forward_input(c, x)?;
        // Without a norm the input is the stream itself, which the pieces then must not change before all have read it.
        for (first, inner) in pieces {
            self.inner(c, normed, first, inner)?;
            self.down(c, inner, first, x)?;
        }
        self.join(c, branch, x)
    }
}
