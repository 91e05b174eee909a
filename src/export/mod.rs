//! Writing what a deployment needs. No GPU.

pub(crate) mod copy;
pub mod ct24;
mod elements;
mod error;
mod folder;
pub mod hf;
mod packed;
pub mod sparse_bitmask;
pub mod torch24;

pub use error::{ExportError, LayoutError};
pub use folder::{PackedFolder, PackedFormat};

use crate::mask::{Masks, Provenance};
use crate::model::{Architecture, Overlay};

/// A masked model, as every format writes it.
#[derive(Clone, Copy)]
pub struct MaskedModel<'a> {
    /// The dense weights, some of them perhaps re-fitted.
    pub tensors: &'a Overlay<'a>,
    /// What the source's config.json says.
    pub config: &'a Architecture,
    /// The masks; a projection without one stays dense.
    pub masks: &'a dyn Masks,
    /// How the masks came to be.
    pub provenance: &'a Provenance,
}
