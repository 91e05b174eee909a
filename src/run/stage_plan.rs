//! What a stage of a run will take: memory, operations.

use serde_json::{Value, json};

use crate::model::{Checkpoint, Dtype, ModelError};
use crate::nn::{PlanItem, total};
use crate::prune::learn::Stage;

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

/// What a stage takes.
pub struct StagePlan {
    /// "relaxed on the block objective".
    pub name: String,
    /// Device memory at its peak.
    pub gpu: Vec<PlanItem>,
    /// Host memory, without the mapped files of the model.
    pub host: Vec<PlanItem>,
    /// Operations, where they are known.
    pub flops: Option<f64>,
}

impl StagePlan {
    /// Seconds at a rate of operations.
    pub fn seconds(&self, rate: f64) -> Option<f64> {
        self.flops.map(|flops| flops / rate)
    }

    /// As the plan of a stage stands in what `--dry-run --json` prints.
    pub fn json(&self, rate: Option<f64>) -> Value {
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
