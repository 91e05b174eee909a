//! A run from what is asked for to what is left of it.
//!
//! [`RunSpec`] is all that a user can ask for: the options of `maskwright prune`, what `config.toml` holds, and what a program sets.
//! [`RunPlan`] is that resolved against a model, and with [`RunPlan::resources`] against a device: projections, stages, memory, time.
//! [`RunPlan::execute`] is the only place where things happen. An [`Observer`] is told how it goes, and may end it.
//!
//! ```no_run
//! use maskwright::run::{Recipe, RunPlan, RunSpec, Unwatched};
//!
//! # fn main() -> Result<(), maskwright::run::RunError> {
//! let mut spec = RunSpec::new("models/village");
//! spec.calib = Some("models/village/calib.txt".into());
//! spec.eval = Some("models/village/heldout.txt".into());
//! spec.recipe = Some(Recipe::Best);
//! spec.out = Some("runs/best".into());
//! let finished = RunPlan::new(spec, &Unwatched)?.execute()?;
//! for row in &finished.results {
//!     println!("{}: perplexity {}", row.model, row.perplexity);
//! }
//! # Ok(())
//! # }
//! ```

mod calib;
mod described;
mod device;
mod error;
mod execute;
mod finished;
mod keeper;
mod layers;
mod learn;
mod memory;
mod method;
mod model;
mod observer;
mod order;
mod order_kept;
mod permuted;
mod pilot;
mod plan;
mod policy;
mod readers;
mod result;
mod source;
mod spec;
mod stage_flow;
mod stage_plan;
mod stages;
mod start;
mod toml;
mod walk;
mod worst;

pub use calib::{CalibSpec, Choosing, TextSpec};
pub use device::DeviceSpec;
pub use error::RunError;
pub use finished::{EvalRow, Finished, Outcome, Profile};
pub use learn::{LearnSpec, MaskLlmSpec, MaskProSpec, SoftSpec, Span};
pub use memory::MemorySpec;
pub use method::{Method, Recipe};
pub use model::Model;
pub use observer::{Observer, Task, Unwatched};
pub use permuted::{PermutationSpec, Permute};
pub use plan::{Resources, RunPlan};
pub use source::model_folder;
pub use spec::{RunSpec, SelectSpec};
pub use stage_plan::StagePlan;
pub use start::StartSpec;
pub use walk::{Keeping, RepairSpec, Repairing, WalkSpec};

pub(crate) use calib::{CalibChoice, at_least_one, tokens_of_window};
pub(crate) use device::LAST;
pub(crate) use memory::bytes;
pub(crate) use permuted::{beside, find, named_by, room_near};
#[cfg(test)]
pub(crate) use readers::readers;
pub(crate) use toml::expand;
#[cfg(test)]
pub(crate) use toml::key;
