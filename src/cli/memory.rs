//! What a command may plan with: memory of the device and of the host.

use serde_json::{Value, json};

use super::CliError;
use super::output::bytes;
use crate::gpu::Gpu;
use crate::mask::MaskSet;
use crate::model::{Architecture, Projection};
use crate::nn::{MemoryPlan, PlanItem, total};

const GIB: f64 = (1u64 << 30) as f64;

/// Bounds on memory.
#[derive(Clone, clap::Args)]
pub(super) struct MemoryArgs {
    /// Device memory that a run may plan with, in GiB; what does not fit is refused [default: no bound]
    #[arg(long, value_name = "GIB")]
    gpu_memory: Option<f64>,
    /// Host memory that a run may plan with, in GiB, without the mapped files of the model; what does not fit is refused [default: what is free]
    #[arg(long, value_name = "GIB")]
    host_memory: Option<f64>,
}

impl MemoryArgs {
    /// Refuses what is no amount.
    pub(super) fn check(&self) -> Result<(), CliError> {
        for (option, given) in [("--gpu-memory", self.gpu_memory), ("--host-memory", self.host_memory)] {
            if given.is_some_and(|gib| !(gib.is_finite() && gib > 0.0)) {
                return Err(CliError::Usage(format!("{option} must be a positive number of GiB")));
            }
        }
        Ok(())
    }

    /// Bytes of the device that may be used, where there is a bound.
    pub(super) fn gpu(&self) -> Option<u64> {
        self.gpu_memory.map(|gib| (gib * GIB) as u64)
    }

    /// Refuses what takes more memory than may be used: `what` is planned, and `remedies` are what to change for less device and host memory.
    pub(super) fn fits(
        &self,
        what: &str,
        (gpu, host): (&[PlanItem], &[PlanItem]),
        remedies: [&str; 2],
    ) -> Result<(), CliError> {
        let (gpu, host) = (total(gpu), total(host));
        if let Some(budget) = self.gpu().filter(|budget| gpu > *budget) {
            return Err(CliError::Usage(format!(
                "{what} takes {} of device memory, --gpu-memory allows {}: {}",
                bytes(gpu),
                bytes(budget),
                remedies[0]
            )));
        }
        match (self.host_memory.map(|gib| (gib * GIB) as u64), free_host_memory()) {
            (Some(budget), _) if host > budget => Err(CliError::Usage(format!(
                "{what} takes {} of host memory, --host-memory allows {}: {}",
                bytes(host),
                bytes(budget),
                remedies[1]
            ))),
            (None, Some(free)) if host > free => Err(CliError::Usage(format!(
                "{what} takes {} of host memory, {} are free: {}",
                bytes(host),
                bytes(free),
                remedies[1]
            ))),
            _ => Ok(()),
        }
    }

    /// [`MemoryArgs::fits`] of a plan that has nothing to choose.
    pub(super) fn allows(&self, plan: &MemoryPlan, remedies: [&str; 2]) -> Result<(), CliError> {
        self.check()?;
        self.fits("the plan", (&plan.gpu, &plan.host), remedies)
    }
}

/// Host memory that can be had without swapping, where the system says so.
fn free_host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A plan beside what was allocated, for a JSON result.
pub(super) fn planned(plan: &MemoryPlan, gpu: &Gpu) -> Value {
    json!({
        "plan": plan.gpu, "plan_total": total(&plan.gpu), "host": plan.host, "host_total": total(&plan.host),
        "peak": gpu.memory_peak(), "at_peak": gpu.memory_items(),
    })
}

/// The projections that a set masks.
pub(super) fn masked(config: &Architecture, set: Option<&MaskSet>) -> Vec<Projection> {
    let has = |p: &Projection| set.is_some_and(|set| set.get(&p.name).is_some());
    config.projections().into_iter().filter(has).collect()
}
