//! The stages of a run that learn by backpropagation: what runs, and what is kept of it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::RunError;
use super::keeper::{Keeper, Kept, Training};
use super::plan::RunPlan;
use super::stage_flow::Flow;
use super::stage_plan::stage_name;
use crate::calib::Windows;
use crate::folder::{FolderError, RunFolder, RunPaths};
use crate::fsio;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::model::Overlay;
use crate::prune::learn::{Objective, Stage, StageRun, shuffled};
use crate::prune::{BlockStore, Conditions, PruneError, Snapshot};

/// A stage with its windows and how they go through it.
pub(super) struct Prepared<'a> {
    stage: &'a Stage,
    windows: Windows,
    flow: Flow,
    conditions: Conditions,
}

/// What the stages have come to.
pub(super) struct Staged<'a> {
    pub(super) masks: MaskSet,
    pub(super) tensors: Overlay<'a>,
    pub(super) stopped: bool,
    stores: Vec<(RunPaths, BlockStore)>,
}

impl Staged<'_> {
    /// Removes what was kept for `--resume`, unless it holds weights that are nowhere else.
    pub(super) fn finish(self, keep_weights: bool) -> Result<(), RunError> {
        for (paths, store) in self.stores {
            // Left by a run that ended between its last block and this.
            let state = paths.training();
            if state.exists() {
                fsio::remove_file(&state).map_err(FolderError::os(state))?;
            }
            store.finish(keep_weights)?;
            // Not empty where weights are kept in it.
            let _ = fsio::remove_dir(paths.root());
        }
        Ok(())
    }
}

impl RunPlan<'_> {
    /// A stage of this run.
    pub(super) fn stage_run<'s, 'g>(
        &'s self,
        kernels: &'s Kernels<'g>,
        stage: &'s Stage,
        flow: Flow,
        start: &'s MaskSet,
        tensors: &'s Overlay<'s>,
    ) -> StageRun<'s, 'g> {
        StageRun {
            kernels,
            config: self.config(),
            dense: tensors.base(),
            tensors,
            selection: &self.selection,
            stage,
            objective: None,
            start,
            sizes: flow.sizes,
            place: flow.place,
            residency: flow.residency,
        }
    }

    /// What the stages work on, in their order.
    pub(super) fn prepare<'s>(
        &self,
        kernels: &Kernels<'_>,
        stages: &'s [Stage],
        conditions: &Conditions,
    ) -> Result<Vec<Prepared<'s>>, RunError> {
        let Some(calib) = &self.calib else {
            return Ok(Vec::new());
        };
        let prepare = |stage: &'s Stage| {
            let windows = shuffled(calib, stage.seed, stage.batch)?;
            let flow = self.stage_plans(kernels).flow(stage)?;
            let conditions = conditions.of_stage(stage, flow.residency, &windows, &flow.sizes);
            Ok(Prepared { stage, windows, flow, conditions })
        };
        stages.iter().map(prepare).collect()
    }

    /// Whether the stages of an unfinished run can go on as they were begun; changes nothing.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn check_stages(&self, run: &RunPaths, stages: &[Prepared<'_>]) -> Result<(), RunError> {
        for (number, Prepared { stage, conditions, .. }) in stages.iter().enumerate() {
            let paths = run.stage(number + 1);
            if paths.manifest().exists() {
                let store = BlockStore::open(&paths, conditions, stage.pattern, self.provenance())?;
                store.masks(self.checkpoint()?)?;
                Snapshot::read(&paths.training())?;
            }
        }
        Ok(())
    }

    /// Runs the stages behind each other; each goes on from where an interrupted run left it.
    pub(super) fn run_stages<'a, 'g>(
        &'a self,
        folder: &mut RunFolder,
        kernels: &Kernels<'g>,
        stages: Vec<Prepared<'_>>,
        (start, tensors): (MaskSet, Overlay<'a>),
        earlier: &[Value],
    ) -> Result<Staged<'a>, RunError> {
        let checkpoint = self.checkpoint()?;
        let mut staged = Staged { masks: start, tensors, stopped: false, stores: Vec::new() };
        for (number, Prepared { stage, windows, flow, conditions }) in stages.into_iter().enumerate() {
            let what = stage_name(stage);
            self.observer.note(&format!("stage {}: {what}", number + 1));
            let paths = folder.paths().stage(number + 1);
            let (pattern, provenance) = (stage.pattern, self.provenance());
            let mut store = if paths.manifest().exists() {
                let store = BlockStore::open(&paths, &conditions, pattern, provenance)?;
                store.remove_leftovers()?;
                store
            } else {
                fsio::create_dir_all(paths.root()).map_err(FolderError::os(paths.root()))?;
                BlockStore::create(&paths, conditions, pattern, provenance)?
            };
            let state = paths.training();
            tell_again(folder, number, earlier, &store, &state)?;
            let (layers, by_block) = (self.config().num_layers, stage.objective != Objective::Model);
            if store.len() < layers {
                let mut tensors = Overlay::new(checkpoint);
                tensors.extend(&staged.tensors)?;
                let mut finished = Vec::new();
                if by_block {
                    finished = store.masks(checkpoint)?;
                    store.add_to(&mut tensors)?;
                }
                let total = if by_block { layers as u64 } else { u64::from(stage.steps) };
                let every = Duration::try_from_secs_f64(self.spec.learn.keep_every).unwrap_or(Duration::MAX);
                let kept = Kept { store: &mut store, folder: &mut *folder };
                let training = Training { number, state, every, by_block };
                let bar = self.observer.task(&what, total);
                let mut keeper =
                    Keeper::new(self.observer, checkpoint, bar, layers, Some(kept), Some(training));
                let run = self.stage_run(kernels, stage, flow, &staged.masks, &tensors);
                match run.run(&mut Commands::new(kernels.gpu())?, &windows, &finished, &mut keeper) {
                    Err(PruneError::Stopped) => staged.stopped = true,
                    other => other?,
                }
            }
            if staged.stopped {
                return Ok(staged);
            }
            folder.phase(format!("stage {}: {what}", number + 1));
            for masks in store.masks(checkpoint)? {
                staged.masks.masks.extend(masks);
            }
            store.add_to(&mut staged.tensors)?;
            staged.stores.push((paths, store));
        }
        Ok(staged)
    }
}

/// Metrics of the steps of an interrupted run that are not made again, and of what its stages had finished.
fn tell_again(
    folder: &mut RunFolder,
    number: usize,
    earlier: &[Value],
    store: &BlockStore,
    state: &Path,
) -> Result<(), RunError> {
    let kept = Snapshot::read(state)?;
    let steps = |block: Option<usize>, before: u32| {
        earlier.iter().filter(move |l| {
            let step = l["step"].as_u64().filter(|s| *s < u64::from(before));
            step.is_some()
                && l["stage"] == json!(number + 1)
                && l["block"].as_u64() == block.map(|b| b as u64)
        })
    };
    for learned in store.learned() {
        for line in steps(learned.block, u32::MAX) {
            folder.metric(line)?;
        }
        folder.metric(&metric(number, json!(learned)))?;
    }
    if let Some(kept) = kept {
        // Of a block, or of the model.
        for block in [Some(kept.block), None] {
            for line in steps(block, kept.step) {
                folder.metric(line)?;
            }
        }
    }
    Ok(())
}

fn metric(number: usize, mut line: Value) -> Value {
    line["stage"] = json!(number + 1);
    line
}
