//! The decoder, made of kernels: weights on the device, activations, forward pass and losses.

mod bank;
mod embedding;
mod error;
mod forward;
mod plan;
mod weights;
mod workspace;

pub use bank::{DENSE, MaskBank};
pub use embedding::Embedding;
pub use error::NnError;
pub use forward::{Batch, Decoder, Masks, Observe, Observed, TokenLoss};
pub use plan::{PlanItem, total};
pub use weights::{BlockWeights, DecoderWeights, Linear};
pub use workspace::{Sizes, Workspace};
