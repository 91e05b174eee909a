//! A stage from its windows to its end: the residual streams or outputs that its objective needs, then its loop.

use std::collections::BTreeMap;

use super::blockwise::{Blockwise, Streams};
use super::endtoend::EndToEnd;
use super::{LearnWatch, ModelLoss, Objective, Residency, Stage, dense_outputs};
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::{Kernels, Layout, MaskBuffer};
use crate::mask::{BitMask, MaskSet};
use crate::model::{Architecture, Checkpoint, Overlay, ProjectionKind};
use crate::nn::{
    Activations, BlockWeights, Embedding, Keep, Place, Sizes, TrainLinears, TrainPass, TrainSpace,
};
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
    /// Trains on `windows`, in the order of [`super::shuffled`]; on the block objective the blocks behind those whose masks are `finished`.
    ///
    /// # Errors
    /// What the device or the watcher report; [`PruneError::Stopped`] when the watcher asks to stop; [`PruneError::Diverged`].
    pub fn run(
        &self,
        c: &mut Commands<'g>,
        windows: &Windows,
        finished: &[BTreeMap<String, BitMask>],
        watch: &mut dyn LearnWatch,
    ) -> Result<(), PruneError> {
        let Self { kernels, config, dense, stage, .. } = *self;
        let embedding = Embedding::new(dense, config)?;
        let stream = || {
            let (tokens, sizes) = (windows.tokens(), self.sizes.clone());
            Activations::embed(kernels.gpu(), &embedding, tokens, sizes, self.place, Keep::Residual)
        };
        if stage.objective == Objective::Model {
            let outputs = match stage.loss {
                ModelLoss::Kl => {
                    let mut stream = stream()?;
                    dense_outputs(kernels, c, config, dense, &mut stream)?;
                    Some(stream)
                }
                ModelLoss::Lm => None,
            };
            let learner = EndToEnd { run: self, embedding: &embedding };
            return learner.train_all(c, windows, self.sizes.clone(), outputs.as_ref(), watch);
        }
        let streams = Streams { pruned: stream()?, dense: stream()? };
        Blockwise { run: self }.train_all(c, streams, finished, watch)
    }

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
