//! How windows go through the stages of a run, as far as memory lets them.

use super::RunError;
use super::spec::RunSpec;
use super::stage_plan::{StagePlan, Stored, stage_name};
use crate::kernel::Kernels;
use crate::model::Architecture;
use crate::nn::{Place, Sizes, total};
use crate::prune::Selection;
use crate::prune::learn::plan::Planned;
use crate::prune::learn::{Objective, Residency, Stage, whole_minibatches};

/// How windows go through a stage.
pub(super) struct Flow {
    /// Windows in whole minibatches.
    pub(super) windows: usize,
    pub(super) sizes: Sizes,
    pub(super) place: Place,
    pub(super) residency: Residency,
}

/// Plans the stages of one run.
pub(super) struct StagePlans<'a, 'g> {
    pub(super) kernels: &'a Kernels<'g>,
    pub(super) config: &'a Architecture,
    pub(super) stored: Stored<'a>,
    pub(super) selection: &'a Selection,
    pub(super) spec: &'a RunSpec,
    /// Calibration windows, and the tokens of one.
    pub(super) windows: usize,
    pub(super) window: usize,
}

impl StagePlans<'_, '_> {
    /// Batches and places of a stage.
    pub(super) fn flow(&self, stage: &Stage) -> Result<Flow, RunError> {
        let (gpu, config, walk) = (self.kernels.gpu(), self.config, &self.spec.walk);
        let windows = whole_minibatches(self.windows, stage.batch)?;
        let carried = walk.carried(gpu, config, windows, self.window, None);
        let budget = walk.budget();
        let residency = self.spec.learn.blocks.unwrap_or(Residency::Resident);
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
            if self.spec.learn.blocks.is_none() && stage.objective == Objective::Model {
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
    fn plan(&self, stage: &Stage) -> Result<StagePlan, RunError> {
        self.with(stage, &self.flow(stage)?)
    }

    fn with(&self, stage: &Stage, flow: &Flow) -> Result<StagePlan, RunError> {
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
    pub(super) fn all(&self, stages: &[Stage]) -> Result<Vec<StagePlan>, RunError> {
        stages.iter().map(|stage| self.plan(stage)).collect()
    }
}
