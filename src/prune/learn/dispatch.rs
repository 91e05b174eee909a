//! A stage from its windows to its end: the residual streams or outputs that its objective needs, then its loop.

use std::collections::BTreeMap;

use super::endtoend::{EndToEnd, Seen};
use super::walk::{Blockwise, Streams};
use super::{ModelLoss, Objective, StageRun, dense_outputs};
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::mask::BitMask;
use crate::nn::{Activations, Embedding, Keep};
use crate::prune::{PruneError, Watch};

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
        watch: &mut dyn Watch,
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
            let seen = Seen { windows, dense: outputs.as_ref() };
            return learner.train_all(c, seen, self.sizes.clone(), watch);
        }
        let streams = Streams { pruned: stream()?, dense: stream()? };
        Blockwise { run: self }.train_all(c, streams, finished, watch)
    }
}
