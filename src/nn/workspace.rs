//! Activations of a forward pass, allocated once for the largest batch.

use super::{NnError, PlanItem};
use crate::gpu::{Buffer, Gpu};
use crate::kernel::{Activation, Layout, f32_bytes};
use crate::model::Config;

/// Bytes of the vocabulary logits kept at once.
const LOGITS_TARGET: u64 = 16 << 20;

/// Rows of every activation for a batch of `layout`, under a binding limit.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// The batch.
    pub layout: Layout,
    /// Features of the feed-forward layer held at once: all of them, or pieces that fit a binding.
    pub ffn_rows: usize,
    /// Vocabulary rows held at once.
    pub vocab_rows: usize,
    hidden: usize,
    queries: usize,
    keys: usize,
    half_head: usize,
}

impl Sizes {
    /// Sizes for `config` and `layout` where one binding holds `limit` bytes.
    pub fn new(config: &Config, layout: Layout, limit: u64) -> Self {
        let row = f32_bytes(1, 4 * layout.t4()).max(1);
        let fit = |bytes: u64, rows: usize, unit: usize| {
            let most = (bytes / row) as usize;
            if most >= rows { rows } else { (most / unit * unit).max(unit).min(rows) }
        };
        Self {
            layout,
            ffn_rows: fit(limit, config.intermediate_size, 32),
            vocab_rows: fit(limit.min(LOGITS_TARGET), config.vocab_size, 64),
            hidden: config.hidden_size,
            queries: config.num_heads * config.head_dim,
            keys: config.num_kv_heads * config.head_dim,
            half_head: config.head_dim / 2,
        }
    }

    /// The most windows of `length` tokens, up to `most`, of which every activation fits one binding of `limit` bytes. At
    /// least one: a single window that does not fit is reported when it is allocated.
    pub fn windows_that_fit(config: &Config, length: usize, most: usize, limit: u64) -> usize {
        let widest = config.hidden_size.max(config.num_heads * config.head_dim);
        let window = f32_bytes(widest, length.next_multiple_of(4)).max(1);
        ((limit / window) as usize).clamp(1, most.max(1))
    }

    fn table_bytes(&self) -> u64 {
        f32_bytes(2 * self.half_head, 4 * self.layout.window4())
    }

    /// What [`Workspace::new`] allocates.
    pub fn plan(&self) -> PlanItem {
        let rows =
            2 * self.hidden + 2 * self.queries + 2 * self.keys + 2 * self.ffn_rows + self.vocab_rows + 3 + 1;
        PlanItem::new("activations", f32_bytes(rows, 4 * self.layout.t4()) + self.table_bytes())
    }
}

/// The buffers of a forward pass.
pub struct Workspace {
    /// Their sizes; a batch may be smaller.
    pub sizes: Sizes,
    pub(super) x: Activation,
    pub(super) normed: Activation,
    pub(super) q: Activation,
    pub(super) k: Activation,
    pub(super) v: Activation,
    pub(super) attended: Activation,
    pub(super) gate: Activation,
    pub(super) up: Activation,
    pub(super) logits: Activation,
    pub(super) state: Activation,
    pub(super) targets: Buffer,
    pub(super) table: Buffer,
}

impl Workspace {
    /// Allocates for batches of at most `sizes.layout`, with the rotary table of its window.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, config: &Config, sizes: Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        Ok(Self {
            x: new("residual", sizes.hidden)?,
            normed: new("normed", sizes.hidden)?,
            q: new("q", sizes.queries)?,
            k: new("k", sizes.keys)?,
            v: new("v", sizes.keys)?,
            attended: new("attended", sizes.queries)?,
            gate: new("gate", sizes.ffn_rows)?,
            up: new("up", sizes.ffn_rows)?,
            logits: new("vocabulary", sizes.vocab_rows)?,
            state: new("loss", 3)?,
            targets: gpu.alloc("activations:targets", f32_bytes(1, 4 * t4))?,
            table: gpu.alloc_init("activations:rope", &rope_table(config, sizes.layout))?,
            sizes,
        })
    }
}

/// `[2, head_dim / 2, padded window]`: cosines, then sines, of position times inverse frequency, computed in f64.
fn rope_table(config: &Config, layout: Layout) -> Vec<f32> {
    let positions = 4 * layout.window4();
    let frequencies = config.inv_freq();
    let angle = |f: &f64, p: usize| p as f64 * f;
    let cos = frequencies.iter().flat_map(|f| (0..positions).map(move |p| angle(f, p).cos() as f32));
    let sin = frequencies.iter().flat_map(|f| (0..positions).map(move |p| angle(f, p).sin() as f32));
    cos.chain(sin).collect()
}
