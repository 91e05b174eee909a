//! The projections of a model: the linear layers that are pruned.

use std::fmt;

use super::Config;

/// Which linear layer of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ProjectionKind {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the feed-forward layer.
    Gate,
    /// Up projection of the feed-forward layer.
    Up,
    /// Down projection of the feed-forward layer.
    Down,
}

impl ProjectionKind {
    /// All seven, in the order in which every list of projections walks a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The part of the tensor name between the block's prefix and `.weight`: `self_attn.q_proj`.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// One short word: `q`, `k`, `v`, `o`, `gate`, `up`, `down`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for ProjectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// One projection: a weight `[rows, cols]` = `[out_features, in_features]`, row-major.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Projection {
    /// The full tensor name, `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The block it belongs to.
    pub block: usize,
    /// Which layer of the block.
    pub kind: ProjectionKind,
    /// Output features.
    pub rows: usize,
    /// Input features: the contiguous dimension, along which the groups run.
    pub cols: usize,
}

impl Projection {
    /// The bias's tensor name (which exists only where the configuration says so).
    pub fn bias_name(&self) -> String {
        format!("model.layers.{}.{}.bias", self.block, self.kind.module())
    }
}

impl Config {
    /// The projection of one block, `[out_features, in_features]` by the configuration.
    pub fn projection(&self, block: usize, kind: ProjectionKind) -> Projection {
        use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
        let queries = self.num_heads * self.head_dim;
        let keys = self.num_kv_heads * self.head_dim;
        let (rows, cols) = match kind {
            Q => (queries, self.hidden_size),
            K | V => (keys, self.hidden_size),
            O => (self.hidden_size, queries),
            Gate | Up => (self.intermediate_size, self.hidden_size),
            Down => (self.hidden_size, self.intermediate_size),
        };
        let name = format!("model.layers.{block}.{}.weight", kind.module());
        Projection { name, block, kind, rows, cols }
    }

    /// All projections, block by block in the order q k v o gate up down.
    pub fn projections(&self) -> Vec<Projection> {
        (0..self.num_layers)
            .flat_map(|block| ProjectionKind::ALL.map(|kind| self.projection(block, kind)))
            .collect()
    }
}
