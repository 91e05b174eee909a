//! The decoder, made of kernels: weights on the device, activations, forward pass and losses.

mod activations;
mod bank;
mod batch;
mod block;
mod embedding;
mod error;
mod forward;
mod generate;
mod head;
mod head_backward;
mod head_compare;
mod plan;
mod resident;
mod sizes;
mod train;
mod weights;
mod workspace;

pub use activations::{Access, Activations, BatchView, Keep, Place};
pub use bank::{DENSE, MaskBank, Masks};
pub use batch::{Batch, TokenLoss};
pub use block::{BlockMasks, BlockPass, BlockSpace};
pub use embedding::Embedding;
pub use error::NnError;
pub use forward::Decoder;
pub use generate::Generator;
pub use head::{HeadPass, HeadSpace, HeadWeights};
pub use head_backward::{HeadLoss, HeadLosses};
pub use head_compare::{DenseHead, HeadComparison};
pub use plan::{MemoryPlan, PlanItem, total};
pub use resident::DecoderWeights;
pub use sizes::Sizes;
pub use train::{GradientSink, TrainLinear, TrainLinears, TrainPass, TrainSpace, WeightGradient};
pub use weights::{BlockWeights, Linear, NormWeights, TensorSource, Tensors};
pub use workspace::Workspace;
