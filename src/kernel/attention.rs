//! Attention of whole windows, and what all attention kernels are told of it.

use bytemuck::{Pod, Zeroable};

use super::preset::SUBGROUP;
use super::{Kernels, Layout, Rows, Stream, shape_error, size};
use crate::gpu::{Defs, GpuError, Work};

/// Shapes of one attention call, and how its scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// What the products of queries and keys are multiplied with.
    pub scale: f32,
    /// Soft cap: a score `s`, after the scale, becomes `cap * tanh(s / cap)`.
    pub cap: Option<f32>,
    /// A query at position `i` sees the keys `j <= i` with `i - j < window`.
    pub window: Option<usize>,
}

impl Heads {
    /// The usual attention: scale `1 / sqrt(head_dim)`, no cap, and all keys up to the query are seen.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), cap: None, window: None }
    }

    /// Whether these are numbers that a kernel can work with.
    pub(super) fn valid(self) -> bool {
        self.kv_heads > 0
            && self.head_dim > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.scale.is_finite()
            && self.cap.is_none_or(|cap| cap.is_finite() && cap > 0.0)
            && self.window.is_none_or(|window| window > 0)
    }

    /// How many keys a query sees at most, if that is fewer than the `length` there are. A window that leaves nothing out is none: the
    /// kernels without it are faster.
    pub(super) fn reach(self, length: usize) -> Option<usize> {
        self.window.filter(|&window| window < length)
    }

    /// The defs of the kernels' variant, for sequences of `length` tokens.
    pub(super) fn defs(self, length: usize) -> Defs {
        let cap = self.cap.map(|_| ("CAP", 1));
        cap.into_iter().chain(self.reach(length).map(|_| ("WINDOW", 1))).collect()
    }

    /// Twice the number of keys that a query of a window of `length` tokens sees, on average and about.
    pub(super) fn keys(self, length: usize) -> f64 {
        let seen = self.reach(length).unwrap_or(length) as f64;
        seen * (2.0 - seen / length.max(1) as f64)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct AttentionParams {
    t4: u32,
    window4: u32,
    group: u32,
    tiles: u32,
    scale: f32,
    head_dim: u32,
    cap: f32,
    reach: u32,
}

impl AttentionParams {
    /// For a kernel that cuts each window into `tiles`.
    pub(super) fn new(
        kernel: &'static str,
        heads: Heads,
        layout: Layout,
        tiles: usize,
    ) -> Result<Self, GpuError> {
        Ok(Self {
            t4: size(kernel, layout.t4())?,
            window4: size(kernel, layout.window4())?,
            group: size(kernel, heads.heads / heads.kv_heads)?,
            tiles: size(kernel, tiles)?,
            scale: heads.scale,
            head_dim: size(kernel, heads.head_dim)?,
            cap: heads.cap.unwrap_or(0.0),
            reach: size(kernel, heads.reach(layout.length).unwrap_or(0))?,
        })
    }
}

impl Kernels<'_> {
    /// Causal attention within each window: `q`, `o` `[heads * head_dim, t]`, `k`, `v` `[kv_heads * head_dim, t]`.
    /// `lse` `[heads, t]`, if any, gets the natural logarithm of the sum of the exponentials of each query's scores, scaled and capped.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn attention(
        &self,
        c: Stream<'_, '_>,
        [q, k, v]: [Rows<'_>; 3],
        o: Rows<'_>,
        lse: Option<Rows<'_>>,
        heads: Heads,
        layout: Layout,
    ) -> Result<(), GpuError> {
        // With subgroups the scores are made of four features at a time.
        let (preset, dim) = (self.preset(), size("attention", heads.head_dim)?);
        let (name, tile, mut defs) = if preset.subgroups() && dim.is_multiple_of(4) {
            ("attention_lanes", 2 * SUBGROUP, vec![("SUBGROUP", SUBGROUP)])
        } else {
            let (lanes, keys) = preset.attention;
            ("attention", lanes, vec![("LANES", lanes), ("KEYS", keys), ("HEAD_DIM", dim)])
        };
        let (t4, window4) = (layout.t4(), layout.window4());
        let Heads { heads: h, kv_heads, head_dim, .. } = heads;
        let fits = heads.valid()
            && q.count == h * head_dim
            && o.count == q.count
            && k.count == kv_heads * head_dim
            && v.count == k.count
            && lse.is_none_or(|l| l.count == h)
            && [q, k, v, o].iter().chain(lse.as_ref()).all(|r| r.first == 0 && r.t4 == t4);
        if !fits {
            return Err(shape_error(
                name,
                format!("q {} k {} v {} o {} rows for {heads:?}", q.count, k.count, v.count, o.count),
            ));
        }
        if lse.is_some() {
            defs.push(("LSE", 1));
        }
        defs.extend(heads.defs(layout.length));
        let pipeline = self.pipeline(name, defs)?;
        let tiles = window4.div_ceil(tile as usize);
        // The grid's width holds windows x tiles: long batches are cut into runs of windows by the caller's binding limits
        // long before 65 535.
        let grid = [size(name, tiles * layout.windows)?, size(name, h)?, 1];
        let params = AttentionParams::new(name, heads, layout, tiles)?;
        let tokens = 4.0 * t4 as f64;
        let work = Work {
            flops: 2.0 * tokens * heads.keys(layout.length) * (h * head_dim) as f64,
            bytes: 4.0 * tokens * (2 * q.count + 2 * k.count) as f64,
        };
        let mut bind = vec![q.buffer.all(), k.buffer.all(), v.buffer.all(), o.buffer.all()];
        bind.extend(lse.map(|l| l.buffer.all()));
        c.dispatch(&pipeline, &params, &bind, grid, work)
    }
}
