//! Masks on the host: the pattern, packed bits, ranks of group masks and the mask files. No GPU.

mod bits;
mod census;
mod error;
mod file;
mod masks;
mod npy;
pub mod npz;
mod parse;
mod pattern;
pub mod rank;
mod reader;

// The sampling law and its random numbers:
pub mod gumbel;
pub mod philox;

// Masks learned by backpropagation:
pub mod soft;

pub use bits::BitMask;
pub use census::Census;
pub use error::MaskError;
pub use file::{MaskFile, Provenance, SourceTensor};
pub use masks::Masks;
pub use pattern::Pattern;
pub use reader::MaskReader;

use std::collections::BTreeMap;

use crate::model::Architecture;

/// The masks of a model's projections, by tensor name (`model.layers.0.mlp.up_proj.weight`). A projection without an
/// entry stays dense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskSet {
    /// The pattern that every mask has.
    pub pattern: Pattern,
    /// Tensor name to mask.
    pub masks: BTreeMap<String, BitMask>,
}

impl MaskSet {
    /// No masks yet.
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern, masks: BTreeMap::new() }
    }

    /// The mask of a projection, if it is pruned.
    pub fn get(&self, tensor: &str) -> Option<&BitMask> {
        self.masks.get(tensor)
    }

    /// Checks every mask: exactly N ones in every group.
    ///
    /// # Errors
    /// [`MaskError::In`] with the tensor, the first bad row and group.
    pub fn check(&self) -> Result<(), MaskError> {
        for (name, mask) in &self.masks {
            mask.check(self.pattern).map_err(|e| e.within(name))?;
        }
        Ok(())
    }

    /// Checks that every mask belongs to a projection of the model and has its shape.
    ///
    /// # Errors
    /// [`MaskError::NoProjection`] and [`MaskError::Shape`].
    pub fn check_model(&self, config: &Architecture) -> Result<(), MaskError> {
        Masks::check_model(self, config)
    }

    /// Kept weights of all masks.
    pub fn count_ones(&self) -> u64 {
        self.masks.values().map(BitMask::count_ones).sum()
    }

    /// Weights under all masks.
    pub fn weights(&self) -> u64 {
        self.masks.values().map(|m| m.rows() as u64 * m.cols() as u64).sum()
    }
}
