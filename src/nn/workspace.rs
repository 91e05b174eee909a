//! Activations of a forward pass, allocated once for the largest batch.

use super::{BlockSpace, HeadSpace, NnError, PlanItem, Sizes};
use crate::gpu::Gpu;
use crate::kernel::{Activation, f32_bytes};
use crate::model::Architecture;

impl Sizes {
    /// What [`Workspace::new`] allocates.
    pub fn plan(&self, config: &Architecture) -> PlanItem {
        let branch = if self.parallel { self.hidden } else { 0 };
        let own = f32_bytes(self.hidden + self.queries + self.ffn_rows + branch, 4 * self.layout.t4());
        PlanItem::new("activations", own + BlockSpace::bytes(config, self) + HeadSpace::bytes(self))
    }
}

/// The buffers of a forward pass.
pub struct Workspace {
    /// Their sizes; a batch may be smaller.
    pub sizes: Sizes,
    pub(super) block: BlockSpace,
    pub(super) x: Activation,
    pub(super) attended: Activation,
    pub(super) branch: Option<Activation>,
    pub(super) inner: Activation,
    pub(super) head: HeadSpace,
}

impl Workspace {
    /// Allocates for batches of at most `sizes.layout`.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(gpu: &Gpu, config: &Architecture, sizes: Sizes) -> Result<Self, NnError> {
        let t4 = sizes.layout.t4();
        let new = |name: &str, rows| Activation::new(gpu, &format!("activations:{name}"), rows, t4);
        Ok(Self {
            block: BlockSpace::new(gpu, config, &sizes)?,
            x: new("residual", sizes.hidden)?,
            attended: new("attended", sizes.queries)?,
            branch: sizes.parallel.then(|| new("branch", sizes.hidden)).transpose()?,
            inner: new("inner", sizes.ffn_rows)?,
            head: HeadSpace::new(gpu, &sizes)?,
            sizes,
        })
    }
}
