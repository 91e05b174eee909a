//! What the stages of a run will take: how windows go through them, memory, operations.

use serde_json::{Value, json};

use super::CliError;
use super::prune::Args;
use crate::kernel::Kernels;
use crate::model::{Architecture, Checkpoint, Dtype, ModelError};
use crate::nn::{Place, PlanItem, Sizes, total};
use crate::prune::Selection;
use crate::prune::learn::plan::Planned;
use crate::prune::learn::{Objective, Residency, Stage, whole_minibatches};

/// The types in which a model's tensors are stored.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    /// As its files have them.
    Files(&'a Checkpoint),
    /// All in one: of a model that is not there yet.
    All(Dtype),
}

impl Stored<'_> {
    /// The type of a tensor.
    pub(super) fn of(self, name: &str) -> Result<Dtype, ModelError> {
        match self {
            Self::Files(checkpoint) => Ok(checkpoint.tensor(name)?.dtype),
            Self::All(dtype) => Ok(dtype),
        }
    }
}

/// How windows go through a stage.
pub(super) struct Flow {
    /// Windows in whole minibatches.
    pub(super) windows: usize,
    pub(super) sizes: Sizes,
    pub(super) place: Place,
    pub(super) residency: Residency,
}

/// What a stage takes.
pub(super) struct StagePlan {
    /// "relaxed on the block objective".
    pub(super) name: String,
    /// Device memory at its peak.
    pub(super) gpu: Vec<PlanItem>,
    /// Host memory, without the mapped files of the model.
    pub(super) host: Vec<PlanItem>,
    /// Operations, where they are known.
    pub(super) flops: Option<f64>,
}

impl StagePlan {
    /// Seconds at a rate of operations.
    pub(super) fn seconds(&self, rate: f64) -> Option<f64> {
        self.flops.map(|flops| flops / rate)
    }

    pub(super) fn json(&self, rate: Option<f64>) -> Value {
        json!({
            "stage": self.name, "plan": self.gpu, "total": total(&self.gpu), "host": self.host, "flops": self.flops,
            "seconds": rate.and_then(|rate| self.seconds(rate)),
        })
    }
}

/// "relaxed on the block objective".
pub(super) fn stage_name(stage: &Stage) -> String {
    let word = |value: Value| value.as_str().unwrap_or_default().to_string();
    format!("{} on the {} objective", word(json!(stage.trains)), word(json!(stage.objective)))
}

/// Plans the stages of one run.
pub(super) struct StagePlans<'a, 'g> {
    pub(super) kernels: &'a Kernels<'g>,
    pub(super) config: &'a Architecture,
    pub(super) stored: Stored<'a>,
    pub(super) selection: &'a Selection,
    pub(super) args: &'a Args,
    /// Calibration windows, and the tokens of one.
    pub(super) windows: usize,
    pub(super) window: usize,
}

impl StagePlans<'_, '_> {
    /// Batches and places of a stage.
    pub(super) fn flow(&self, stage: &Stage) -> Result<Flow, CliError> {
        let (gpu, config, walk) = (self.kernels.gpu(), self.config, &self.args.walk);
        let windows = whole_minibatches(self.windows, stage.batch)?;
        let carried = walk.carried(gpu, config, windows, self.window, None);
        let budget = walk.budget();
        let residency = self.args.train.blocks.unwrap_or(Residency::Resident);
        let mut flow = Flow { windows, sizes: carried.sizes(gpu, config), place: carried.place, residency };
        // As many windows at once as divide a minibatch and fit; blocks stream where even one window does not.
        for sizes in carried.sizes_for(gpu, config, stage) {
            flow.sizes = sizes;
            let Some(budget) = budget else {
                return Ok(flow);
            };
            if total(&self.with(stage, &flow)?.gpu) <= budget {
                return Ok(flow);
            }
            if self.args.train.blocks.is_none() && stage.objective == Objective::Model {
                flow.residency = Residency::Streamed;
                if total(&self.with(stage, &flow)?.gpu) <= budget {
                    return Ok(flow);
                }
                flow.residency = Residency::Resident;
            }
        }
        Ok(flow)
    }

    /// The plan of a stage.
    fn plan(&self, stage: &Stage) -> Result<StagePlan, CliError> {
        self.with(stage, &self.flow(stage)?)
    }

    fn with(&self, stage: &Stage, flow: &Flow) -> Result<StagePlan, CliError> {
        let dtype = |name: &str| self.stored.of(name);
        let planned = Planned {
            kernels: self.kernels,
            config: self.config,
            dtype: &dtype,
            selection: self.selection,
            sizes: &flow.sizes,
            windows: flow.windows,
            place: flow.place,
            residency: flow.residency,
        };
        Ok(StagePlan {
            name: stage_name(stage),
            gpu: planned.memory(stage)?,
            host: planned.host(stage),
            flops: Some(planned.flops(stage)),
        })
    }

    /// The plans of all stages, in their order.
    pub(super) fn all(&self, stages: &[Stage]) -> Result<Vec<StagePlan>, CliError> {
        stages.iter().map(|stage| self.plan(stage)).collect()
    }
}
