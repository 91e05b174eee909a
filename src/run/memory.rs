//! What a command may plan with: memory of the device and of the host.

use serde::Serialize;

use super::RunError;
use crate::nn::{MemoryPlan, PlanItem, total};

const GIB: f64 = (1u64 << 30) as f64;

/// Bounds on memory.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySpec {
    /// Device memory that a run may plan with, in GiB; what does not fit is refused [default: no bound]
    #[arg(long, value_name = "GIB")]
    pub gpu_memory: Option<f64>,
    /// Host memory that a run may plan with, in GiB, without the mapped files of the model; what does not fit is refused [default: what is free]
    #[arg(long, value_name = "GIB")]
    pub host_memory: Option<f64>,
}

impl MemorySpec {
    /// Refuses what is no amount.
    pub(crate) fn check(&self) -> Result<(), RunError> {
        for (option, given) in [("--gpu-memory", self.gpu_memory), ("--host-memory", self.host_memory)] {
            if given.is_some_and(|gib| !(gib.is_finite() && gib > 0.0)) {
                return Err(RunError::options(format!("{option} must be a positive number of GiB")));
            }
        }
        Ok(())
    }

    /// Bytes of the device that may be used, where there is a bound.
    pub(crate) fn gpu(&self) -> Option<u64> {
        self.gpu_memory.map(|gib| (gib * GIB) as u64)
    }

    /// Refuses what takes more memory than may be used: `what` is planned, and `remedies` are what to change for less device and host memory.
    pub(crate) fn fits(
        &self,
        what: &str,
        (gpu, host): (&[PlanItem], &[PlanItem]),
        remedies: [&str; 2],
    ) -> Result<(), RunError> {
        let (gpu, host) = (total(gpu), total(host));
        if let Some(budget) = self.gpu().filter(|budget| gpu > *budget) {
            return Err(RunError::options(format!(
                "{what} takes {} of device memory, --gpu-memory allows {}: {}",
                bytes(gpu),
                bytes(budget),
                remedies[0]
            )));
        }
        match (self.host_memory.map(|gib| (gib * GIB) as u64), free_host_memory()) {
            (Some(budget), _) if host > budget => Err(RunError::options(format!(
                "{what} takes {} of host memory, --host-memory allows {}: {}",
                bytes(host),
                bytes(budget),
                remedies[1]
            ))),
            (None, Some(free)) if host > free => Err(RunError::options(format!(
                "{what} takes {} of host memory, {} are free: {}",
                bytes(host),
                bytes(free),
                remedies[1]
            ))),
            _ => Ok(()),
        }
    }

    /// [`MemorySpec::fits`] of a plan that has nothing to choose.
    pub(crate) fn allows(&self, plan: &MemoryPlan, remedies: [&str; 2]) -> Result<(), RunError> {
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

/// "1.23 MiB (1289748 bytes)".
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.2} {} ({n} bytes)", units[unit]) }
}
