//! The methods, and what they share: which projections are pruned, start masks, run folders.

mod error;
pub mod maskpro;
mod run;
mod scores;
mod select;
pub mod variance;

pub use error::PruneError;
pub use run::{EvalRow, RunFolder};
pub use scores::{InputNorms, Score, score_logits, score_masks};
pub use select::{Selection, select};
