//! What the block objective minimises: by default the squared error of a block's output.

use crate::gpu::{Buffer, Commands};
use crate::kernel::{Kernels, Layout, Rows};
use crate::prune::PruneError;

/// What a block puts out for one batch under the mask in training, and what it should be.
#[derive(Clone, Copy)]
pub struct BlockOutput<'a> {
    /// Number of the block, from 0.
    pub block: usize,
    /// Number of the batch, in the order in which windows are kept.
    pub batch: usize,
    /// The block's output `[hidden, t]`, fed by the pruned blocks before it.
    pub y: Rows<'a>,
    /// The dense block's output `[hidden, t]`, fed by the dense blocks before it.
    pub target: Rows<'a>,
    /// The windows in `t`; tokens that pad one count for nothing.
    pub layout: Layout,
}

/// An objective of the blocks' outputs. [`super::StageRun::objective`] takes one in place of the squared error.
///
/// Values are added over the batches of a minibatch and told as a share of the energy of the dense block's update, by which gradients are
/// divided, too.
pub trait BlockObjective {
    /// The value for one batch, a sum over its tokens. In the place of `output.y` it puts `share` times the derivative of the value by
    /// `y`, which must be zero for tokens that pad a window ([`Layout::is_padding`]). Where `share` is 0, only the value is asked for.
    ///
    /// # Errors
    /// What the device reports.
    fn measure<'g>(
        &self,
        kernels: &Kernels<'g>,
        c: &mut Commands<'g>,
        output: BlockOutput<'_>,
        share: f32,
    ) -> Result<f64, PruneError>;
}

/// The squared error, token by token.
pub(super) struct SquaredError<'a> {
    /// Room for the errors of a batch's tokens.
    pub(super) errors: &'a Buffer,
    /// What the error of each token counts for, a buffer a batch; none: all alike.
    pub(super) tokens: Option<&'a [Buffer]>,
}

impl BlockObjective for SquaredError<'_> {
    fn measure<'g>(
        &self,
        kernels: &Kernels<'g>,
        c: &mut Commands<'g>,
        output: BlockOutput<'_>,
        share: f32,
    ) -> Result<f64, PruneError> {
        let BlockOutput { batch, y, target, layout, .. } = output;
        let weights = self.tokens.and_then(|all| all.get(batch));
        let errors = squared(kernels, c, self.errors, [y, target], weights, 2.0 * share, layout)?;
        Ok(errors.iter().map(|&e| f64::from(e)).sum())
    }
}

/// Squared error between the two rows of `pair`, token by token, by way of the buffer `errors`; the first become `scale` times their
/// difference. `weights` of the tokens multiply both.
pub(super) fn squared<'g>(
    kernels: &Kernels<'g>,
    c: &mut Commands<'g>,
    errors: &Buffer,
    pair: [Rows<'_>; 2],
    weights: Option<&Buffer>,
    scale: f32,
    layout: Layout,
) -> Result<Vec<f32>, PruneError> {
    kernels.squared_error(c, pair, weights, scale, errors, layout)?;
    Ok(c.read(errors, 0, 4 * layout.t4())?)
}
