//! The methods, and what they share: which projections are pruned, the walk over the blocks, start masks, what is kept of a run.

mod checkpoint;
mod conditions;
mod cost;
mod error;
pub mod learn;
pub mod maskpro;
mod oneshot;
mod outcome;
pub mod permute;
pub mod plan;
mod schedule;
mod scores;
mod select;
mod session;
mod snapshot;
mod solver;
mod statistics;
mod stored;
pub mod variance;
mod watch;

pub use checkpoint::BlockStore;
pub use conditions::Conditions;
pub use error::PruneError;
pub use oneshot::{Input, Inputs, OneShot, OneShotOptions, Repair, StartMask};
pub use outcome::{BlockResult, Learned, ProjectionReport, StepReport};
pub use schedule::Schedule;
pub use scores::{InputNorms, Score, score_logits};
pub use select::{Selection, select};
pub use session::Session;
pub use snapshot::Snapshot;
pub use solver::{Solved, Solver};
pub use watch::Watch;
