//! The projections of a model: the linear layers that are pruned.

use std::fmt;

use super::Architecture;
use super::architecture::PlaceInTensor;

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
    /// Up projection of the feed-forward layer; its first one where it has no gate.
    Up,
    /// Down projection of the feed-forward layer: its last.
    Down,
}

impl ProjectionKind {
    /// All seven, in the order in which every list of projections walks a block. Architectures without a gate have six,
    /// [`Architecture::kinds`].
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

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
    /// Its name, `model.layers.0.self_attn.q_proj.weight`: that of the stored tensor, or, of a part of a fused one, with the
    /// part's name before `.weight`, as in `model.layers.0.self_attn.qkv_proj.q.weight`.
    pub name: String,
    /// The tensor that it is stored in.
    pub stored: String,
    /// Where it lies there.
    pub place: PlaceInTensor,
    /// The block it belongs to.
    pub block: usize,
    /// Which layer of the block.
    pub kind: ProjectionKind,
    /// Output features.
    pub rows: usize,
    /// Input features, along which the groups run.
    pub cols: usize,
}

impl Projection {
    /// The name under which its bias is asked for (which exists only where the architecture says so).
    pub fn bias_name(&self) -> String {
        bias_of(&self.name)
    }

    /// The tensor that its bias is stored in.
    pub fn stored_bias(&self) -> String {
        bias_of(&self.stored)
    }
}

/// The bias beside a weight.
fn bias_of(weight: &str) -> String {
    format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight))
}

impl Architecture {
    /// The projection of one block, `[out_features, in_features]`.
    ///
    /// # Panics
    /// For a kind that is not among [`Architecture::kinds`].
    pub fn projection(&self, block: usize, kind: ProjectionKind) -> Projection {
        use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
        let (rows, cols) = match kind {
            Q => (self.query_rows(), self.hidden_size),
            K | V => (self.key_rows(), self.hidden_size),
            O => (self.hidden_size, self.query_rows()),
            Gate | Up => (self.intermediate_size, self.hidden_size),
            Down => (self.hidden_size, self.intermediate_size),
        };
        let Some(place) = self.names.places[kind as usize] else {
            unreachable!("an architecture without {kind}");
        };
        let module = self.module(block, place.module);
        let stored = format!("{module}.weight");
        let name = if place.part.is_some() { format!("{module}.{kind}.weight") } else { stored.clone() };
        Projection { name, stored, place, block, kind, rows, cols }
    }

    /// All projections, block by block in the order of [`Architecture::kinds`].
    pub fn projections(&self) -> Vec<Projection> {
        (0..self.num_layers).flat_map(|block| self.block_projections(block)).collect()
    }

    /// Those of one block.
    pub fn block_projections(&self, block: usize) -> impl Iterator<Item = Projection> + '_ {
        self.kinds().map(move |kind| self.projection(block, kind))
    }

    /// The place among [`Architecture::projections`] of a block's projection; nothing where there is none of that kind.
    pub fn projection_index(&self, block: usize, kind: ProjectionKind) -> Option<usize> {
        Some(block * self.kinds_count() + self.kinds().position(|k| k == kind)?)
    }
}
