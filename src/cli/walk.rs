//! Layer-by-layer pruning from the command line: its options, its progress, and what is kept of each block.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ArgAction::Set;
use serde_json::json;

use super::CliError;
use super::calib_args::CalibChoice;
use super::context::{DeviceArgs, Model};
use super::memory::MemoryArgs;
use super::output::Progress;
use super::stage_plan::{StagePlan, Stored};
use crate::calib::Windows;
use crate::folder::RunFolder;
use crate::gpu::{Commands, Gpu};
use crate::kernel::Kernels;
use crate::mask::{MaskSet, Pattern};
use crate::model::{Architecture, Overlay};
use crate::nn::{Activations, Embedding, Keep, MemoryPlan, Place, PlanItem, total};
use crate::prune::learn::Objective;
use crate::prune::plan::{self, Carried, WalkPlan};
use crate::prune::{
    BlockResult, BlockStore, Conditions, InputNorms, Inputs, OneShot, OneShotOptions, ProjectionReport,
    PruneError, Repair, Schedule, Selection, StartMask, Watch,
};

/// Windows of a walk and how they are carried.
pub(super) type WalkWindows<'a> = Option<(&'a Windows, Carried)>;

/// Where activations are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum ActivationsArg {
    /// On the device where they fit, else in host memory
    Auto,
    /// On the device
    Gpu,
    /// In host memory
    Host,
}

/// What happens to the kept weights once the mask is fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum RepairArg {
    /// They stay bit-identical to the source
    None,
    /// Those that sparsegpt's error propagation ends with (sparsegpt only)
    Update,
    /// Least squares on each projection's output, row by row
    Lstsq,
    /// Trained so that each block's output, fed by the repaired blocks before it, meets the dense block's
    Block,
    /// Trained so that the model's next-token distribution meets the dense model's
    Model,
}

/// A repair that trains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TrainedRepair(pub(super) Objective);

/// Options of the one-shot methods, and of start masks made by them.
#[derive(clap::Args)]
#[command(next_help_heading = "Layer by layer")]
pub(super) struct WalkArgs {
    /// What the inputs of a projection have seen when its statistics are taken
    #[arg(long, value_enum, default_value_t = Inputs::Pruned)]
    inputs: Inputs,
    /// What happens to the kept weights once the mask is fixed; several, with commas, follow each other
    #[arg(long, value_enum, value_delimiter = ',', action = Set, num_args = 1, default_value = "none")]
    repair: Vec<RepairArg>,
    /// Damping of the least squares of --repair lstsq, as a share of the mean of the Gram matrix's diagonal
    #[arg(long, value_name = "SHARE", default_value_t = 3e-2)]
    repair_damp: f64,
    /// Clamp re-fitted and trained weights to the largest number of the type they are stored in; without it one beyond ends the run
    #[arg(long)]
    pub(super) clamp_weights: bool,
    /// sparsegpt: damping of the Gram matrix, as a share of the mean of its diagonal
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    damp: f64,
    /// descent: smallest gain of a change, as a share of the row's error
    #[arg(long, value_name = "SHARE", default_value_t = 1e-6)]
    tolerance: f32,
    /// descent: sweeps over the groups of a row, at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_sweeps: u32,
    /// Where the activations of all windows are kept; masks are the same
    #[arg(long, value_enum, default_value_t = ActivationsArg::Auto)]
    activations: ActivationsArg,
    #[command(flatten)]
    pub(super) memory: MemoryArgs,
}

impl WalkArgs {
    /// Options of a method that starts from `start` where it needs one.
    pub(super) fn options(
        &self,
        pattern: Pattern,
        method: OneShot,
        start: StartMask,
    ) -> Result<OneShotOptions, CliError> {
        let bad = |what: &str| Err(CliError::Usage(what.to_string()));
        let repair = self.one_shot_repair();
        if repair == Repair::Update && method != OneShot::SparseGpt {
            return bad("--repair update belongs to --method sparsegpt; the others take --repair lstsq");
        }
        let share = |v: f64| v.is_finite() && v >= 0.0;
        if !(share(self.damp) && share(self.repair_damp) && share(f64::from(self.tolerance))) {
            return bad("--damp, --repair-damp and --tolerance must be numbers of at least 0");
        }
        if self.max_sweeps == 0 {
            return bad("--max-sweeps must be at least 1");
        }
        self.memory.check()?;
        Ok(OneShotOptions {
            start,
            repair,
            inputs: self.inputs,
            damp: self.damp,
            repair_damp: self.repair_damp,
            tolerance: self.tolerance,
            max_sweeps: self.max_sweeps,
            clamp: self.clamp_weights,
            ..OneShotOptions::new(pattern, method)
        })
    }

    /// The repair that belongs to the walk.
    pub(super) fn one_shot_repair(&self) -> Repair {
        let of = |arg: &RepairArg| match arg {
            RepairArg::Update => Some(Repair::Update),
            RepairArg::Lstsq => Some(Repair::Lstsq),
            _ => None,
        };
        self.repair.iter().find_map(of).unwrap_or(Repair::None)
    }

    /// Whether nothing is repaired.
    pub(super) fn keeps_weights(&self) -> bool {
        self.repair.iter().all(|repair| *repair == RepairArg::None)
    }

    /// The repairs that train, in their order.
    pub(super) fn trained_repairs(&self) -> Vec<TrainedRepair> {
        let of = |arg: &RepairArg| match arg {
            RepairArg::Block => Some(TrainedRepair(Objective::Block)),
            RepairArg::Model => Some(TrainedRepair(Objective::Model)),
            _ => None,
        };
        self.repair.iter().filter_map(of).collect()
    }

    pub(super) fn budget(&self) -> Option<u64> {
        self.memory.gpu()
    }

    /// How windows are carried: on the device where they fit. For a learning method (`spare` windows at a time) in host memory, since
    /// learning has little use for device memory that only its start mask needs.
    pub(super) fn carried(
        &self,
        gpu: &Gpu,
        config: &Architecture,
        windows: usize,
        window: usize,
        spare: Option<usize>,
    ) -> Carried {
        let mut carried =
            Carried { windows, window, together: spare.unwrap_or(usize::MAX), place: Place::Host };
        carried.place = match self.activations {
            ActivationsArg::Gpu => Place::Gpu,
            ActivationsArg::Host => Place::Host,
            ActivationsArg::Auto if spare.is_some() => Place::Host,
            ActivationsArg::Auto => plan::choose_place(gpu, config, carried, self.budget()),
        };
        if let Some(budget) = self.budget() {
            carried.fit(gpu, config, budget / 2);
        }
        carried
    }

    /// Refuses plans that are larger than what may be used, with what to change.
    pub(super) fn check_all(
        &self,
        walk: Option<&WalkPlan>,
        carried: Option<Carried>,
        stages: &[StagePlan],
    ) -> Result<(), CliError> {
        if let Some(walk) = walk {
            self.check(walk, carried)?;
        }
        stages.iter().try_for_each(|stage| self.check_stage(stage))
    }

    fn check_stage(&self, plan: &StagePlan) -> Result<(), CliError> {
        self.memory.fits(
            &format!("the plan of a stage ({})", plan.name),
            (&plan.gpu, &plan.host),
            [
                "use a smaller --batch, a shorter --window, --activations host, --blocks streamed, or the block objective",
                "use fewer --windows, a shorter --window, --state f16, --blocks resident, or the block objective",
            ],
        )
    }

    /// Refuses an evaluation that takes more memory than may be used.
    pub(super) fn check_measuring(&self, plan: &MemoryPlan) -> Result<(), CliError> {
        let remedies = ["use a shorter --eval-window", "use fewer --eval-windows"];
        self.memory.fits("measuring on the text of --eval", (&plan.gpu, &plan.host), remedies)
    }

    fn check(&self, plan: &WalkPlan, carried: Option<Carried>) -> Result<(), CliError> {
        let item = |name: &str| plan.gpu.iter().find(|i| i.item == name).map_or(0, |i| i.bytes);
        let remedy = match carried {
            Some(c) if c.place == Place::Gpu => {
                "keep the activations in host memory with --activations host, or use fewer --windows"
            }
            Some(c) if c.together == 1 && item("activations") > total(&plan.gpu) / 4 => {
                "use a shorter --window"
            }
            _ => "weights, statistics and scratch of one block need it: use a device with more memory",
        };
        let remedies = [remedy, "use fewer --windows, or a shorter --window"];
        self.memory.fits("the plan", (&plan.gpu, &plan.host), remedies)
    }
}

/// What a walk has brought.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) masks: std::collections::BTreeMap<String, crate::mask::BitMask>,
    pub(super) norms: InputNorms,
    pub(super) reports: Vec<ProjectionReport>,
    pub(super) stopped: bool,
}

/// A walk from the command line.
pub(super) struct Walk<'a> {
    pub(super) device: &'a DeviceArgs,
    pub(super) model: &'a Model,
    pub(super) selection: &'a Selection,
    pub(super) options: &'a OneShotOptions,
    /// Masks that are started from, where they come from a file.
    pub(super) starts: Option<&'a MaskSet>,
}

impl Walk<'_> {
    /// The plan for windows that are carried as said.
    pub(super) fn plan(&self, kernels: &Kernels<'_>, carried: Option<Carried>) -> Result<WalkPlan, CliError> {
        let stored = Stored::Files(&self.model.checkpoint);
        let dtype = |name: &str| stored.of(name);
        Ok(plan::walk(kernels, &self.model.config, &dtype, self.selection, self.options, carried)?)
    }

    /// Walks the blocks from the first that `store` does not have. Each finished block goes into the store, its masks and reports
    /// into the result.
    pub(super) fn run<'g>(
        &self,
        kernels: &Kernels<'g>,
        c: &mut Commands<'g>,
        windows: WalkWindows<'_>,
        store: Option<(&mut BlockStore, &mut RunFolder)>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Walked, CliError> {
        let (config, checkpoint) = (&self.model.config, &self.model.checkpoint);
        let mut walked = Walked::default();
        let (mut finished, mut overlay) = (Vec::new(), Overlay::new(checkpoint));
        let mut store = store;
        if let Some((store, folder)) = &mut store {
            finished = store.masks(checkpoint)?;
            overlay = store.overlay(checkpoint)?;
            for report in store.reports() {
                folder.metric(&json!(report))?;
                walked.reports.push(report.clone());
            }
            for masks in &finished {
                walked.masks.extend(masks.clone());
            }
        }
        let gpu = kernels.gpu();
        let activations = match windows {
            Some((windows, carried)) => {
                let (sizes, place) = (carried.sizes(gpu, config), carried.place);
                let embedding = Embedding::new(checkpoint, config)?;
                let tokens = windows.tokens();
                Some(Activations::embed(gpu, &embedding, tokens, sizes, place, Keep::Inputs)?)
            }
            None => None,
        };
        let schedule = Schedule {
            kernels,
            config,
            tensors: &overlay,
            selection: self.selection,
            options: self.options,
            starts: self.starts,
        };
        let mut keeper = Keeper {
            checkpoint,
            blocks: Progress::new("blocks", config.num_layers as u64, self.device.quiet),
            parts: None,
            store,
            walked,
            stop: stop.clone(),
        };
        let ended = schedule.run(c, activations, &finished, &mut keeper);
        let Keeper { blocks, parts, mut walked, .. } = keeper;
        parts.into_iter().for_each(Progress::end);
        blocks.end();
        match ended {
            Err(PruneError::Stopped) => walked.stopped = true,
            other => other?,
        }
        Ok(walked)
    }
}

/// Shows the progress of a walk and keeps its blocks.
struct Keeper<'a> {
    checkpoint: &'a crate::model::Checkpoint,
    blocks: Progress,
    parts: Option<Progress>,
    store: Option<(&'a mut BlockStore, &'a mut RunFolder)>,
    walked: Walked,
    stop: Arc<AtomicBool>,
}

impl Watch for Keeper<'_> {
    fn stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn part(&mut self, block: usize, done: usize, total: usize) {
        let parts =
            self.parts.get_or_insert_with(|| self.blocks.inner(format!("block {block}"), total as u64));
        parts.at(done as u64, String::new);
    }

    fn projection(&mut self, _block: usize, report: &ProjectionReport) {
        let line = line(report);
        self.blocks.line(|| line);
    }

    fn block(&mut self, result: BlockResult) -> Result<(), PruneError> {
        if let Some(parts) = self.parts.take() {
            parts.end();
        }
        if let Some((store, folder)) = &mut self.store {
            store.add(self.checkpoint, &result)?;
            for report in &result.reports {
                folder.metric(&json!(report))?;
            }
        }
        let done = result.block as u64 + 1;
        self.walked.norms.insert(result.block, result.squared_norms);
        self.walked.masks.extend(result.masks);
        self.walked.reports.extend(result.reports);
        self.blocks.at(done, || format!("{done} blocks done"));
        Ok(())
    }
}

/// "model.layers.0.mlp.down_proj  output error 0.0612 -> 0.0231, repaired 0.0107".
fn line(report: &ProjectionReport) -> String {
    let name = report.name.strip_suffix(".weight").unwrap_or(&report.name);
    let mut out = name.to_string();
    match (report.start, report.error) {
        (Some(start), Some(error)) => out.push_str(&format!("  output error {start:.5} -> {error:.5}")),
        (None, Some(error)) => out.push_str(&format!("  output error {error:.5}")),
        _ => {}
    }
    if let Some(repaired) = report.repaired {
        out.push_str(&format!(", repaired {repaired:.5}"));
    }
    if let Some(damp) = report.damp_raised {
        out.push_str(&format!(", damping raised to {damp}"));
    }
    out
}

/// All that masks depend on, as the manifest of a run keeps it; `options` of the walk, where there is one.
pub(super) fn conditions(
    model: &Model,
    selection: &Selection,
    options: Option<&OneShotOptions>,
    kernels: &Kernels<'_>,
    choice: Option<CalibChoice>,
    windows: WalkWindows<'_>,
    start_file: Option<&Path>,
) -> Result<Conditions, CliError> {
    let mut out = Conditions::new(&model.folder, &model.checkpoint, selection, kernels.preset().name)?;
    options.into_iter().for_each(|options| out.walk(options));
    choice.into_iter().for_each(|choice| out.segments(choice.name()));
    start_file.into_iter().for_each(|path| out.start_mask(path));
    if let Some((windows, carried)) = windows {
        out.windows(windows, &carried.sizes(kernels.gpu(), &model.config));
    }
    Ok(out)
}

/// Rows of a plan for a table.
pub(super) fn plan_rows(items: &[PlanItem]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> =
        items.iter().map(|i| vec![i.item.to_string(), i.bytes.to_string()]).collect();
    rows.push(vec!["total".into(), total(items).to_string()]);
    rows
}
