//! What a walk over the blocks works on.

use super::run::StageRun;
use crate::gpu::Buffer;
use crate::kernel::{Activation, f32_bytes};
use crate::model::Architecture;
use crate::nn::{Activations, BlockWeights, Sizes, TrainSpace};

/// A walk over the blocks that trains each.
pub(super) struct Blockwise<'a, 'g> {
    pub(super) run: &'a StageRun<'a, 'g>,
}

/// The residual streams of all windows.
pub(super) struct Streams<'g> {
    /// Of the model under training.
    pub(super) pruned: Activations<'g>,
    /// Of the dense model.
    pub(super) dense: Activations<'g>,
}

/// Buffers of a walk.
pub(super) struct Space {
    pub(super) train: TrainSpace,
    /// The block's output, then its gradient.
    pub(super) y: Activation,
    /// A copy of it where it is still needed.
    pub(super) copy: Activation,
    pub(super) errors: Buffer,
}

/// A block on its way.
#[derive(Clone, Copy)]
pub(super) struct Block<'b> {
    pub(super) index: usize,
    pub(super) weights: &'b BlockWeights,
    /// What the error of each token counts for, a buffer a batch; none: all alike.
    pub(super) tokens: Option<&'b [Buffer]>,
    /// Energy of the dense block's update under these weights, over all windows.
    pub(super) energy: f64,
}

impl Block<'_> {
    /// Whether the dense block's update is zero in each of `minibatches`, or so small that the gradient of an error as a share of it
    /// overflows.
    pub(super) fn adds_nothing(&self, minibatches: usize) -> bool {
        let share = self.energy / minibatches.max(1) as f64;
        share >= 0.0 && !((2.0 / share) as f32).is_finite()
    }
}

/// A block on its way, with what it works on.
#[derive(Clone, Copy)]
pub(super) struct OnBlock<'a, 'g> {
    pub(super) run: &'a StageRun<'a, 'g>,
    pub(super) space: &'a Space,
    pub(super) block: Block<'a>,
    pub(super) streams: &'a Streams<'g>,
    /// Batches of a minibatch.
    pub(super) parts: usize,
}

impl Blockwise<'_, '_> {
    /// Bytes on the device beside weights, state and streams: buffers of a block, and the gradients.
    pub(super) fn space_bytes(config: &Architecture, sizes: &Sizes) -> u64 {
        let t = 4 * sizes.layout.t4();
        TrainSpace::bytes(config, sizes) + f32_bytes(2 * config.hidden_size + 1, t)
    }
}
