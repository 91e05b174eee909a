//! The stages of a run that learn by backpropagation: what runs, what is kept of it, what is shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::CliError;
use super::job::Job;
use super::output::Progress;
use super::stage_flow::{Flow, StagePlans};
use super::stage_plan::{Stored, stage_name};
use crate::calib::Windows;
use crate::folder::{FolderError, RunFolder, RunPaths};
use crate::fsio;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::model::{Checkpoint, Overlay};
use crate::prune::learn::{LearnWatch, Objective, Snapshot, Stage, StageRun, StepReport, shuffled};
use crate::prune::{BlockResult, BlockStore, Conditions, Learned, PruneError};

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
    pub(super) fn finish(self, keep_weights: bool) -> Result<(), CliError> {
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

impl Job<'_> {
    /// What plans the stages.
    pub(super) fn plans<'s, 'g>(&'s self, kernels: &'s Kernels<'g>) -> StagePlans<'s, 'g> {
        StagePlans {
            kernels,
            config: &self.model.config,
            stored: Stored::Files(&self.model.checkpoint),
            selection: self.selection,
            args: self.args,
            windows: self.calib.as_ref().map_or(0, Windows::count),
            window: self.calib.as_ref().map_or(0, Windows::window),
        }
    }

    /// A stage of this job.
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
            config: &self.model.config,
            dense: &self.model.checkpoint,
            tensors,
            selection: self.selection,
            stage,
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
    ) -> Result<Vec<Prepared<'s>>, CliError> {
        let Some(calib) = &self.calib else {
            return Ok(Vec::new());
        };
        let prepare = |stage: &'s Stage| {
            let windows = shuffled(calib, stage.seed, stage.batch)?;
            let flow = self.plans(kernels).flow(stage)?;
            let conditions = conditions.of_stage(stage, flow.residency, &windows, &flow.sizes);
            Ok(Prepared { stage, windows, flow, conditions })
        };
        stages.iter().map(prepare).collect()
    }

    /// Whether the stages of an unfinished run can go on as they were begun; changes nothing.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn check_stages(&self, run: &RunPaths, stages: &[Prepared<'_>]) -> Result<(), CliError> {
        for (number, Prepared { stage, conditions, .. }) in stages.iter().enumerate() {
            let paths = run.stage(number + 1);
            if paths.manifest().exists() {
                let store = BlockStore::open(&paths, conditions, stage.pattern, self.provenance())?;
                store.masks(&self.model.checkpoint)?;
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
        stop: &Arc<AtomicBool>,
    ) -> Result<Staged<'a>, CliError> {
        let mut staged = Staged { masks: start, tensors, stopped: false, stores: Vec::new() };
        for (number, Prepared { stage, windows, flow, conditions }) in stages.into_iter().enumerate() {
            let what = stage_name(stage);
            self.device.note(|| format!("stage {}: {what}", number + 1));
            let paths = folder.paths().stage(number + 1);
            let (pattern, provenance) = (stage.pattern, self.provenance());
            let store = if paths.manifest().exists() {
                let store = BlockStore::open(&paths, &conditions, pattern, provenance)?;
                store.remove_leftovers()?;
                store
            } else {
                fsio::create_dir_all(paths.root()).map_err(FolderError::os(paths.root()))?;
                BlockStore::create(&paths, conditions, pattern, provenance)?
            };
            let state = paths.training();
            tell_again(folder, number, earlier, &store, &state)?;
            let layers = self.model.config.num_layers;
            let total = match stage.objective {
                Objective::Model => u64::from(stage.steps),
                _ => layers as u64,
            };
            let mut keeper = Keeper {
                checkpoint: &self.model.checkpoint,
                number,
                state,
                bar: Progress::new(&what, total, self.device.quiet),
                steps: None,
                store,
                folder: &mut *folder,
                stop: stop.clone(),
                kept: Instant::now(),
                every: Duration::try_from_secs_f64(self.args.train.keep_every).unwrap_or(Duration::MAX),
                layers,
                by_block: stage.objective != Objective::Model,
            };
            if keeper.store.len() < layers {
                let mut tensors = Overlay::new(&self.model.checkpoint);
                tensors.extend(&staged.tensors)?;
                let mut finished = Vec::new();
                if keeper.by_block {
                    finished = keeper.store.masks(&self.model.checkpoint)?;
                    keeper.store.add_to(&mut tensors)?;
                }
                let run = self.stage_run(kernels, stage, flow, &staged.masks, &tensors);
                match run.run(&mut Commands::new(kernels.gpu())?, &windows, &finished, &mut keeper) {
                    Err(PruneError::Stopped) => staged.stopped = true,
                    other => other?,
                }
            }
            let Keeper { bar, steps, store, .. } = keeper;
            steps.into_iter().for_each(Progress::end);
            bar.end();
            if staged.stopped {
                return Ok(staged);
            }
            folder.phase(format!("stage {}: {what}", number + 1));
            for masks in store.masks(&self.model.checkpoint)? {
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
) -> Result<(), CliError> {
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

/// Shows the progress of a stage and keeps what it brings.
struct Keeper<'a> {
    checkpoint: &'a Checkpoint,
    number: usize,
    state: PathBuf,
    bar: Progress,
    /// Steps of a block.
    steps: Option<Progress>,
    store: BlockStore,
    folder: &'a mut RunFolder,
    stop: Arc<AtomicBool>,
    kept: Instant,
    every: Duration,
    /// Blocks of the model, and whether they are trained one by one.
    layers: usize,
    by_block: bool,
}

impl Keeper<'_> {
    fn learned(&mut self, learned: &Learned) -> Result<(), PruneError> {
        self.folder.metric(&metric(self.number, json!(learned)))?;
        let place = learned.block.map_or("model".into(), |b| format!("block {b}"));
        let taken = if learned.kept { "" } else { "; the start is kept" };
        let Learned { start, error, groups_changed, .. } = learned;
        self.bar.line(|| {
            format!("{place}: error {start:.5} -> {error:.5}, {groups_changed} groups changed{taken}")
        });
        Ok(())
    }
}

impl LearnWatch for Keeper<'_> {
    fn stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn due(&self) -> bool {
        !self.every.is_zero() && self.kept.elapsed() >= self.every
    }

    fn keep(&mut self, snapshot: &Snapshot) -> Result<(), PruneError> {
        self.kept = Instant::now();
        snapshot.write(&self.state)
    }

    fn resume(&mut self, block: usize) -> Result<Option<Snapshot>, PruneError> {
        Ok(Snapshot::read(&self.state)?.filter(|s| s.block == block))
    }

    fn step(&mut self, report: &StepReport) -> Result<(), PruneError> {
        self.folder.metric(&metric(self.number, json!(report)))?;
        let done = u64::from(report.step + 1);
        let loss = || format!("loss {:.5}", report.loss);
        match report.block {
            Some(block) => {
                let bar = &self.bar;
                let steps = self
                    .steps
                    .get_or_insert_with(|| bar.inner(format!("block {block}"), u64::from(report.steps)));
                steps.at(done, loss);
            }
            None => self.bar.at(done, loss),
        }
        Ok(())
    }

    fn block(&mut self, result: &BlockResult) -> Result<(), PruneError> {
        if let Some(steps) = self.steps.take() {
            steps.end();
        }
        let done = result.block as u64 + 1;
        if result.block < self.store.len() {
            // A model's blocks come together: an interruption between them had kept this one.
            return Ok(());
        }
        self.store.add(self.checkpoint, result)?;
        if let Some(learned) = &result.learned {
            self.learned(learned)?;
            if learned.block.is_some() {
                self.bar.at(done, || format!("{done} blocks done"));
            }
        }
        let last = self.store.len() == self.layers;
        if self.state.exists() && (self.by_block || last) {
            fsio::remove_file(&self.state).map_err(FolderError::os(&self.state))?;
        }
        Ok(())
    }
}
