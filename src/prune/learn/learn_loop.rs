//! The loop of all that is learned step by step: minibatches of a block, of the whole model, and MaskPro's draws on the model's loss.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::prune::{PruneError, Snapshot, StepReport, Watch};

/// All that later steps depend on.
pub struct State {
    /// MaskPro's tracker.
    pub tracker: f64,
    /// Contents of the buffers by name.
    pub tensors: BTreeMap<String, Vec<u8>>,
}

/// A parametrisation of masks, or weights, under an objective.
pub trait Learning {
    /// Step `step`, from 0, on the minibatch that is its turn. Of the report it fills in what the step brought; its place and its time are the
    /// loop's.
    ///
    /// # Errors
    /// What the device reports.
    fn step(&mut self, step: u32) -> Result<StepReport, PruneError>;

    /// What a later run can go on from; none where it begins anew.
    ///
    /// # Errors
    /// What the device reports.
    fn state(&mut self) -> Result<Option<State>, PruneError> {
        Ok(None)
    }

    /// Goes back to a state.
    ///
    /// # Errors
    /// [`PruneError::Snapshot`] for one that does not fit; what the device reports.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), PruneError> {
        let tensor = snapshot.tensors.keys().next().cloned().unwrap_or_default();
        Err(PruneError::Snapshot { tensor })
    }
}

/// Steps one after the other, told to whoever watches.
#[derive(Clone, Copy, Debug)]
pub struct LearnLoop {
    /// The block under training; none for the whole model.
    pub block: Option<usize>,
    /// Steps in all.
    pub steps: u32,
}

impl LearnLoop {
    /// Runs the steps, behind those of a state that the watcher has kept. Before a step the watcher is asked whether to stop, and whether
    /// the state is to be kept.
    ///
    /// # Errors
    /// Those of `learning` and of the watcher; [`PruneError::Stopped`] when it asks to stop; [`PruneError::Diverged`] for a loss that is not
    /// finite.
    pub fn run(self, learning: &mut dyn Learning, watch: &mut dyn Watch) -> Result<(), PruneError> {
        let Self { block, steps } = self;
        let number = block.unwrap_or(0);
        let mut first = 0;
        if let Some(kept) = watch.resume(number)? {
            learning.restore(&kept)?;
            first = kept.step;
        }
        for step in first..steps {
            if watch.stop() || watch.due() {
                if let Some(State { tracker, tensors }) = learning.state()? {
                    watch.keep(&Snapshot { block: number, step, tracker, tensors })?;
                }
                if watch.stop() {
                    return Err(PruneError::Stopped);
                }
            }
            let at = Instant::now();
            let brought = learning.step(step)?;
            let report = StepReport { block, step, steps, seconds: at.elapsed().as_secs_f64(), ..brought };
            if !report.loss.is_finite() {
                let place = block.map_or_else(|| "the model".into(), |block| format!("block {block}"));
                return Err(PruneError::Diverged { place, step, loss: report.loss });
            }
            watch.step(&report)?;
        }
        Ok(())
    }
}
