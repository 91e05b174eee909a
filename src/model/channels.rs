//! Channels whose order a decoder does not depend on, where the tensors on both sides of them change it together.

use std::fmt;

/// Channels that can be put into another order at no cost: the model stays an ordinary one that computes the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Channels {
    /// The features inside the feed-forward layer of a block: outputs of gate and up, inputs of down.
    Ffn,
    /// The features of a block's values: outputs of v, inputs of o. Within a key head, alike for all query heads that share it.
    Heads,
    /// The residual stream, one order for the whole model: embeddings, norms, inputs of q, k, v, gate and up, outputs of o and down,
    /// output matrix.
    Residual,
}

impl Channels {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Ffn, Self::Heads, Self::Residual];

    /// `ffn`, `heads`, `residual`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ffn => "ffn",
            Self::Heads => "heads",
            Self::Residual => "residual",
        }
    }
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
