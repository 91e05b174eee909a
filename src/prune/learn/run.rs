//! A stage and what it works on.

use super::{BlockObjective, Residency, Stage};
use crate::kernel::{Kernels, Layout, MaskBuffer};
use crate::mask::{BitMask, MaskSet};
use crate::model::{Architecture, Checkpoint, Overlay, ProjectionKind};
use crate::nn::{BlockWeights, Place, Sizes, TrainLinears, TrainPass, TrainSpace};
use crate::prune::{PruneError, Selection};

/// The masks of a block on the device, in the order of [`ProjectionKind::ALL`]; none: dense, or no such projection.
pub(super) type MaskBuffers = [Option<MaskBuffer>; ProjectionKind::ALL.len()];

/// A stage on the block or the model objective, and what it works on.
pub struct StageRun<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Architecture,
    /// The dense model.
    pub dense: &'a Checkpoint,
    /// Its weights, with those that earlier stages and finished blocks changed.
    pub tensors: &'a Overlay<'a>,
    /// What is pruned.
    pub selection: &'a Selection,
    /// What is trained, and how.
    pub stage: &'a Stage,
    /// What the block objective minimises; none: the squared error.
    pub objective: Option<&'a dyn BlockObjective>,
    /// The masks that it starts from.
    pub start: &'a MaskSet,
    /// Batches in which windows go through a block; whole ones make a minibatch.
    pub sizes: Sizes,
    /// Where residual streams are kept.
    pub place: Place,
    /// Where blocks wait while others are at work, on the model objective.
    pub residency: Residency,
}

impl<'g> StageRun<'_, 'g> {
    /// The masks of block `index` on the device, as `mask` knows them by the projections' names.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn mask_buffers<'m>(
        &self,
        index: usize,
        mask: impl Fn(&str) -> Option<&'m BitMask>,
    ) -> Result<MaskBuffers, PruneError> {
        let mut out = MaskBuffers::default();
        for p in self.config.block_projections(index) {
            let upload = |m| MaskBuffer::upload(self.kernels.gpu(), "masks:block", m);
            out[p.kind as usize] = mask(&p.name).map(upload).transpose()?;
        }
        Ok(out)
    }

    /// A pass through one block.
    pub(super) fn pass<'a>(
        &'a self,
        ws: &'a TrainSpace,
        block: &'a BlockWeights,
        layout: Layout,
        linears: TrainLinears<'a>,
    ) -> TrainPass<'a, 'g> {
        TrainPass { kernels: self.kernels, config: self.config, ws, layout, block, linears }
    }
}
