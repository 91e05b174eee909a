//! Layer by layer: options, memory, and how windows go through the blocks.

use clap::ArgAction::Set;
use serde::Serialize;

use super::RunError;
use super::memory::MemorySpec;
use super::stage_plan::StagePlan;
use crate::gpu::Gpu;
use crate::mask::Pattern;
use crate::model::Architecture;
use crate::nn::{MemoryPlan, Place, total};
use crate::prune::learn::Objective;
use crate::prune::plan::{self, Carried, WalkPlan};
use crate::prune::{Inputs, OneShot, OneShotOptions, Repair, StartMask};

/// Where activations are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Keeping {
    /// On the device where they fit, else in host memory
    Auto,
    /// On the device
    Gpu,
    /// In host memory
    Host,
}

/// What happens to the kept weights once the mask is fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Repairing {
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

/// The one-shot methods, and start masks made by them.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Layer by layer")]
pub struct WalkSpec {
    /// What the inputs of a projection have seen when its statistics are taken
    #[arg(long, value_enum, default_value_t = Inputs::Pruned)]
    pub inputs: Inputs,
    /// sparsegpt: damping of the Gram matrix, as a share of the mean of its diagonal
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub damp: f64,
    /// descent: smallest gain of a change, as a share of the row's error
    #[arg(long, value_name = "SHARE", default_value_t = 1e-6)]
    pub tolerance: f32,
    /// descent: sweeps over the groups of a row, at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub max_sweeps: u32,
    /// Where the activations of all windows are kept; masks are the same
    #[arg(long, value_enum, default_value_t = Keeping::Auto)]
    pub activations: Keeping,
    /// Bounds on memory.
    #[command(flatten)]
    #[serde(flatten)]
    pub memory: MemorySpec,
}

/// What happens to the weights under a mask.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Repair")]
pub struct RepairSpec {
    /// What happens to the kept weights once the mask is fixed; several, with commas, follow each other
    #[arg(long, value_enum, value_delimiter = ',', action = Set, num_args = 1, default_value = "none")]
    pub repair: Vec<Repairing>,
    /// Damping of the least squares of --repair lstsq, as a share of the mean of the Gram matrix's diagonal
    #[arg(long, value_name = "SHARE", default_value_t = 3e-2)]
    pub repair_damp: f64,
    /// Steps of --repair block and model; a number for each, or one for all [default: 100]
    #[arg(long, value_name = "N", value_delimiter = ',', action = Set, num_args = 1)]
    pub repair_steps: Vec<u32>,
    /// Learning rate of --repair block and model, likewise [default: 0.001]
    #[arg(long, value_name = "RATE", value_delimiter = ',', action = Set, num_args = 1)]
    pub repair_rate: Vec<f32>,
    /// Clamp re-fitted and trained weights to the largest number of the type they are stored in; without it one beyond ends the run
    #[arg(long)]
    pub clamp_weights: bool,
}

impl RepairSpec {
    /// The repair that belongs to the walk.
    pub(super) fn in_walk(&self) -> Repair {
        let of = |repair: &Repairing| match repair {
            Repairing::Update => Some(Repair::Update),
            Repairing::Lstsq => Some(Repair::Lstsq),
            _ => None,
        };
        self.repair.iter().find_map(of).unwrap_or(Repair::None)
    }

    /// The objectives of the repairs that train, in their order.
    pub(super) fn trained(&self) -> Vec<Objective> {
        let of = |repair: &Repairing| match repair {
            Repairing::Block => Some(Objective::Block),
            Repairing::Model => Some(Objective::Model),
            _ => None,
        };
        self.repair.iter().filter_map(of).collect()
    }
}

impl WalkSpec {
    /// Options of a method that starts from `start` where it needs one, and is repaired as `repair` says.
    ///
    /// # Errors
    /// Numbers that are none, a repair that is not the method's.
    pub(super) fn options(
        &self,
        pattern: Pattern,
        (method, start): (OneShot, StartMask),
        repairs: &RepairSpec,
    ) -> Result<OneShotOptions, RunError> {
        let bad = |what: &str| Err(RunError::options(what));
        let repair = repairs.in_walk();
        if repair == Repair::Update && method != OneShot::SparseGpt {
            return bad("--repair update belongs to --method sparsegpt; the others take --repair lstsq");
        }
        let share = |v: f64| v.is_finite() && v >= 0.0;
        if !(share(self.damp) && share(repairs.repair_damp) && share(f64::from(self.tolerance))) {
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
            repair_damp: repairs.repair_damp,
            tolerance: self.tolerance,
            max_sweeps: self.max_sweeps,
            clamp: repairs.clamp_weights,
            ..OneShotOptions::new(pattern, method)
        })
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
            Keeping::Gpu => Place::Gpu,
            Keeping::Host => Place::Host,
            Keeping::Auto if spare.is_some() => Place::Host,
            Keeping::Auto => plan::choose_place(gpu, config, carried, self.budget()),
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
    ) -> Result<(), RunError> {
        if let Some(walk) = walk {
            self.check(walk, carried)?;
        }
        stages.iter().try_for_each(|stage| self.check_stage(stage))
    }

    fn check_stage(&self, plan: &StagePlan) -> Result<(), RunError> {
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
    pub(super) fn check_measuring(&self, plan: &MemoryPlan) -> Result<(), RunError> {
        let remedies = ["use a shorter --eval-window", "use fewer --eval-windows"];
        self.memory.fits("measuring on the text of --eval", (&plan.gpu, &plan.host), remedies)
    }

    fn check(&self, plan: &WalkPlan, carried: Option<Carried>) -> Result<(), RunError> {
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
