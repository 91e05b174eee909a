//! The projections of a model: the linear layers that are pruned.

use std::fmt;

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

/// Where a projection lies: a whole tensor or some of its outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlaceInTensor {
    /// The module, behind the block's number: `self_attn.q_proj`.
    pub module: &'static str,
    /// The outputs of the stored tensor that belong to it; none: all.
    pub part: Option<Part>,
    /// Stored `[inputs, outputs]`.
    pub transposed: bool,
}

/// Some outputs of a stored tensor: runs of `run` outputs, `stride` apart, the first run at `first`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The first output.
    pub first: usize,
    /// Outputs of a run.
    pub run: usize,
    /// From one run to the next.
    pub stride: usize,
    /// All outputs of the stored tensor.
    pub of: usize,
}

impl PlaceInTensor {
    /// A whole tensor `[outputs, inputs]`.
    pub const fn whole(module: &'static str) -> Self {
        Self { module, part: None, transposed: false }
    }

    /// Outputs `first..first + run` of `of`.
    pub const fn rows(module: &'static str, first: usize, run: usize, of: usize) -> Self {
        Self { module, part: Some(Part { first, run, stride: run, of }), transposed: false }
    }

    /// The same, stored `[inputs, outputs]`.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Self { transposed: true, ..self }
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
