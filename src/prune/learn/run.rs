//! A stage from its windows to its end: the residual streams or outputs that its objective needs, then its loop.

use std::collections::BTreeMap;

use super::{
    Blockwise, EndToEnd, LearnWatch, ModelLoss, Objective, Residency, Stage, Streams, dense_outputs,
};
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::{BitMask, MaskSet};
use crate::model::{Checkpoint, Config, Overlay};
use crate::nn::{Activations, Embedding, Keep, Place, Sizes};
use crate::prune::{PruneError, Selection};

/// A stage on the block or the model objective, and what it works on.
pub struct StageRun<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Config,
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
        let Self { kernels, config, dense, tensors, selection, stage, start, .. } = *self;
        let embedding = Embedding::new(dense, config)?;
        let stream = || {
            let (tokens, sizes) = (windows.tokens(), self.sizes.clone());
            Activations::embed(kernels.gpu(), config, &embedding, tokens, sizes, self.place, Keep::Residual)
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
            let (embedding, residency) = (&embedding, self.residency);
            let learner =
                EndToEnd { kernels, config, dense, tensors, embedding, selection, stage, start, residency };
            return learner.run(c, windows, self.sizes.clone(), outputs.as_ref(), watch);
        }
        let streams = Streams { pruned: stream()?, dense: stream()? };
        let learner = Blockwise { kernels, config, dense, tensors, selection, stage, start };
        learner.run(c, streams, finished, watch)
    }
}
