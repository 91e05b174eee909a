//! One decoder block on one batch, step by step: a whole forward pass walks the steps, layer-by-layer pruning stops between them.

use super::{BlockWeights, Masks, NnError, Sizes};
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernel::{Activation, Heads, Kernels, Layout, MaskBuffer, Product, Rows, f32_bytes};
use crate::model::{Config, ProjectionKind};

/// Masks of one block's projections, in the order of [`ProjectionKind::ALL`]; `None` = dense.
pub type BlockMasks<'a> = [Option<&'a MaskBuffer>; ProjectionKind::ALL.len()];

/// The masks of block `index` among those of a model; none where there are none.
pub(super) fn block_masks<'a>(masks: Masks<'a>, index: usize) -> BlockMasks<'a> {
    let first = index * ProjectionKind::ALL.len();
    std::array::from_fn(|i| masks.get(first + i).copied().flatten())
}

/// What a block needs while it runs, and nobody afterwards.
pub struct BlockSpace {
    normed: Activation,
    q: Activation,
    k: Activation,
    v: Activation,
    up: Activation,
    table: Buffer,
}

impl BlockSpace {
    /// Allocates for batches of at most `sizes.layout`, with the rotary table of its window.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, config: &Config, sizes: &Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        let keys = config.num_kv_heads * config.head_dim;
        Ok(Self {
            normed: new("normed", config.hidden_size)?,
            q: new("q", config.num_heads * config.head_dim)?,
            k: new("k", keys)?,
            v: new("v", keys)?,
            up: new("up", sizes.ffn_rows)?,
            table: gpu.alloc_init("activations:rope", &rope_table(config, 0..4 * sizes.layout.window4()))?,
        })
    }

    /// The buffer of normed activations, for a batch: scratch between two blocks.
    ///
    /// # Errors
    /// When it is too small.
    pub fn normed(&self, config: &Config, layout: Layout) -> Result<Rows<'_>, NnError> {
        Ok(self.normed.rows(0, config.hidden_size, layout.t4())?)
    }

    /// Makes every token of later batches of `layout`, which is one window, stand at `position`.
    pub(super) fn stand_at(
        &self,
        c: &mut Commands<'_>,
        config: &Config,
        layout: Layout,
        position: usize,
    ) -> Result<(), NnError> {
        let table = rope_table(config, std::iter::repeat_n(position, 4 * layout.window4()));
        Ok(c.write(&self.table, 0, &table)?)
    }

    /// Bytes of [`BlockSpace::new`].
    pub fn bytes(config: &Config, sizes: &Sizes) -> u64 {
        let heads = config.num_heads + 2 * config.num_kv_heads;
        let rows = config.hidden_size + heads * config.head_dim + sizes.ffn_rows;
        let table = f32_bytes(config.head_dim / 2 * 2, 4 * sizes.layout.window4());
        f32_bytes(rows, 4 * sizes.layout.t4()) + table
    }
}

/// `[2, head_dim / 2, positions]`: cosines, then sines, of position times inverse frequency, computed in f64.
pub(super) fn rope_table(config: &Config, positions: impl Iterator<Item = usize> + Clone) -> Vec<f32> {
    let frequencies = config.inv_freq();
    let angles = |f: &f64| {
        let f = *f;
        positions.clone().map(move |p| p as f64 * f)
    };
    let cos = frequencies.iter().flat_map(|f| angles(f).map(|a| a.cos() as f32));
    let sin = frequencies.iter().flat_map(|f| angles(f).map(|a| a.sin() as f32));
    cos.chain(sin).collect()
}

/// One block of one forward pass.
pub struct BlockPass<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Config,
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
    fn product<'p>(&'p self, kind: ProjectionKind, x: Rows<'p>, y: Rows<'p>) -> Product<'p> {
        let linear = &self.block.linears[kind as usize];
        let mask = self.masks[kind as usize];
        Product { mask, bias: linear.bias.as_ref(), ..Product::new(&linear.weight, x, y) }
    }

    fn norm(&self, c: &mut Commands<'g>, x: Rows<'_>, gain: &Buffer) -> Result<Rows<'a>, NnError> {
        let normed = self.ws.normed(self.config, self.layout)?;
        self.kernels.rms_norm(c, x, gain, self.config.rms_norm_eps, normed)?;
        Ok(normed)
    }

    /// The input of q, k and v from the residual stream `x`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn attention_input(&self, c: &mut Commands<'g>, x: Rows<'_>) -> Result<Rows<'a>, NnError> {
        self.norm(c, x, &self.block.input_norm)
    }

    /// Attention on its normed input, without the output projection: the input of o.
    ///
    /// # Errors
    /// What the device reports.
    pub fn attend(&self, c: &mut Commands<'g>, normed: Rows<'_>, attended: Rows<'_>) -> Result<(), NnError> {
        let [q, k, v] = self.queries_keys_values(c, normed)?;
        Ok(self.kernels.attention(c, q, k, v, attended, None, self.heads(), self.layout)?)
    }

    /// Shapes of the attention.
    pub(super) fn heads(&self) -> Heads {
        let config = self.config;
        Heads::new(config.num_heads, config.num_kv_heads, config.head_dim)
    }

    /// Queries, keys and values of the normed input, rotated.
    pub(super) fn queries_keys_values(
        &self,
        c: &mut Commands<'g>,
        normed: Rows<'_>,
    ) -> Result<[Rows<'a>; 3], NnError> {
        use ProjectionKind::{K, Q, V};
        let (ws, kernels, heads, t4) = (self.ws, self.kernels, self.heads(), self.layout.t4());
        let q = ws.q.rows(0, heads.heads * heads.head_dim, t4)?;
        let k = ws.k.rows(0, heads.kv_heads * heads.head_dim, t4)?;
        let v = ws.v.rows(0, heads.kv_heads * heads.head_dim, t4)?;
        kernels.matmul(c, &self.product(Q, normed, q))?;
        kernels.matmul(c, &self.product(K, normed, k))?;
        kernels.matmul(c, &self.product(V, normed, v))?;
        kernels.rope(c, q, heads.head_dim, &ws.table, self.layout)?;
        kernels.rope(c, k, heads.head_dim, &ws.table, self.layout)?;
        Ok([q, k, v])
    }

    /// Adds the output projection to the residual stream.
    ///
    /// # Errors
    /// What the device reports.
    pub fn attention_output(
        &self,
        c: &mut Commands<'g>,
        attended: Rows<'_>,
        x: Rows<'_>,
    ) -> Result<(), NnError> {
        let output = Product { accumulate: true, ..self.product(ProjectionKind::O, attended, x) };
        Ok(self.kernels.matmul(c, &output)?)
    }

    /// The input of gate and up from the residual stream.
    ///
    /// # Errors
    /// What the device reports.
    pub fn feed_forward_input(&self, c: &mut Commands<'g>, x: Rows<'_>) -> Result<Rows<'a>, NnError> {
        self.norm(c, x, &self.block.post_norm)
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
        let up = self.ws.up.rows(0, inner.count, self.layout.t4())?;
        let outputs = first..first + inner.count;
        self.kernels.matmul(c, &Product { outputs: outputs.clone(), ..self.product(Gate, normed, inner) })?;
        self.kernels.matmul(c, &Product { outputs, ..self.product(Up, normed, up) })?;
        Ok(self.kernels.swiglu(c, inner, up)?)
    }

    /// Adds what down makes of the features `first..` of its input to the residual stream.
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
        let mut down = self.product(ProjectionKind::Down, inner, x);
        down.inputs = first..first + inner.count;
        down.accumulate = true;
        if first > 0 {
            down.bias = None;
        }
        Ok(self.kernels.matmul(c, &down)?)
    }
}
