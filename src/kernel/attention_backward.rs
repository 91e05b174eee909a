//! Backward pass of attention.

use super::attention::AttentionParams;
use super::preset::SUBGROUP;
use super::{Heads, Kernels, Layout, Rows, Stream, shape_error, size};
use crate::gpu::{GpuError, Work};

/// Tensors of the backward pass of causal attention, all used from their first row. `q`, `k` are those after the rotary
/// embedding. Padding tokens get gradients of 0 where `d_o` is 0 there.
#[derive(Clone, Copy)]
pub struct AttentionGradient<'a> {
    /// `[heads * head_dim, t]`, as in the forward pass.
    pub q: Rows<'a>,
    /// `[kv_heads * head_dim, t]`, as in the forward pass.
    pub k: Rows<'a>,
    /// `[kv_heads * head_dim, t]`, as in the forward pass.
    pub v: Rows<'a>,
    /// `[heads * head_dim, t]`: what the forward pass made.
    pub o: Rows<'a>,
    /// `[heads, t]`: what the forward pass made.
    pub lse: Rows<'a>,
    /// `[heads * head_dim, t]`: gradient of `o`.
    pub d_o: Rows<'a>,
    /// `[heads, t]`: scratch. (A kernel that has no binding left for it keeps the same in `d_q`.)
    pub delta: Rows<'a>,
    /// `[heads * head_dim, t]`: gets the gradient of `q`.
    pub d_q: Rows<'a>,
    /// `[kv_heads * head_dim, t]`: gets the gradient of `k`.
    pub d_k: Rows<'a>,
    /// `[kv_heads * head_dim, t]`: gets the gradient of `v`.
    pub d_v: Rows<'a>,
}

impl AttentionGradient<'_> {
    /// An error unless all tensors have the shapes of `heads` and `layout`.
    fn check(&self, heads: Heads, layout: Layout) -> Result<(), GpuError> {
        let Heads { heads: h, kv_heads, head_dim, .. } = heads;
        let has = |count: usize, rows: &[Rows<'_>]| {
            rows.iter().all(|r| r.first == 0 && r.count == count && r.t4 == layout.t4())
        };
        let fits = heads.valid()
            && has(h * head_dim, &[self.q, self.o, self.d_o, self.d_q])
            && has(kv_heads * head_dim, &[self.k, self.v, self.d_k, self.d_v])
            && has(h, &[self.lse, self.delta]);
        if fits {
            return Ok(());
        }
        let rows =
            [self.q, self.k, self.v, self.o, self.lse, self.d_o, self.delta, self.d_q, self.d_k, self.d_v];
        let rows = rows.map(|r| r.count);
        Err(shape_error("attention_backward", format!("{rows:?} rows (q to d_v) for {heads:?}, {layout:?}")))
    }
}

impl Kernels<'_> {
    /// Gradients of `q`, `k` and `v` of [`Kernels::attention`] from that of its output, within each window. The softmax is made
    /// again from the saved log-sum-exp, block by block (Dao et al. 2022, <https://arxiv.org/abs/2205.14135>), so nothing of
    /// size t x t is stored. Query heads that share a key head are summed inside the kernels.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn attention_backward(
        &self,
        c: Stream<'_, '_>,
        g: &AttentionGradient<'_>,
        heads: Heads,
        layout: Layout,
    ) -> Result<(), GpuError> {
        g.check(heads, layout)?;
        if layout.t4() == 0 {
            return Ok(());
        }
        let (lanes, dim) = (self.preset().attention.0, size("attention_backward", heads.head_dim)?);
        let subgroups = self.preset().subgroups() && dim.is_multiple_of(4);
        if subgroups {
            self.attention_delta(c, g, g.d_q, dim, heads)?;
        } else {
            self.attention_delta(c, g, g.delta, 1, heads)?;
        }
        let (tokens, width) = (4.0 * layout.t4() as f64, (heads.heads * heads.head_dim) as f64);
        // What one product of all queries with their keys takes, and each tensor once.
        let product = tokens * heads.keys(layout.length) * width;
        let once = 4.0 * tokens * (5 * g.q.count + 4 * g.k.count) as f64;
        let (q, k, v, d_o) = (g.q.buffer.all(), g.k.buffer.all(), g.v.buffer.all(), g.d_o.buffer.all());
        let (lse, delta) = (g.lse.buffer.all(), g.delta.buffer.all());
        let (d_q, d_k, d_v) = (g.d_q.buffer.all(), g.d_k.buffer.all(), g.d_v.buffer.all());
        if subgroups {
            const NAME: &str = "attention_backward_lanes";
            let defs = [vec![("SUBGROUP", SUBGROUP)], heads.defs(layout.length)].concat();
            let pipeline = self.pipeline(NAME, defs)?;
            let params = AttentionParams::new(NAME, heads, layout, 0)?;
            let grid = [size(NAME, layout.windows)?, size(NAME, heads.kv_heads)?, 1];
            let work = Work { flops: 5.0 * product, bytes: once };
            let bind = [q, k, v, d_o, lse, d_q, d_k, d_v];
            return c.dispatch(&pipeline, &params, &bind, grid, work);
        }
        let tiles = layout.window4().div_ceil(lanes as usize);
        let defs = [vec![("LANES", lanes), ("HEAD_DIM", dim)], heads.defs(layout.length)].concat();
        let name = "attention_backward_q";
        let pipeline = self.pipeline(name, defs.clone())?;
        let params = AttentionParams::new(name, heads, layout, tiles)?;
        let grid = |heads| Ok::<_, GpuError>([size(name, tiles * layout.windows)?, size(name, heads)?, 1]);
        let work = Work { flops: 3.0 * product, bytes: once };
        let bind = [q, k, v, d_o, lse, delta, d_q];
        c.dispatch(&pipeline, &params, &bind, grid(heads.heads)?, work)?;
        let pipeline = self.pipeline("attention_backward_kv", defs)?;
        let work = Work { flops: 4.0 * product, bytes: once };
        let bind = [q, k, v, d_o, lse, delta, d_k, d_v];
        c.dispatch(&pipeline, &params, &bind, grid(heads.kv_heads)?, work)
    }

    /// Sums over the features of each head of `o * d_o`, into the first of `stride` rows that `to` has for each head.
    fn attention_delta(
        &self,
        c: Stream<'_, '_>,
        g: &AttentionGradient<'_>,
        to: Rows<'_>,
        stride: u32,
        heads: Heads,
    ) -> Result<(), GpuError> {
        const NAME: &str = "attention_delta";
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        let params = [size(NAME, heads.heads)?, size(NAME, heads.head_dim)?, size(NAME, g.o.t4)?, stride];
        let values = 4.0 * (g.o.count * g.o.t4) as f64;
        let work = Work { flops: 2.0 * values, bytes: 8.0 * values };
        let grid = self.fold(heads.heads * g.o.t4, lanes);
        c.dispatch(&pipeline, &params, &[g.o.buffer.all(), g.d_o.buffer.all(), to.buffer.all()], grid, work)
    }
}
