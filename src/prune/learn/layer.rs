//! The layer objective: masks learned projection by projection in the metric of the input's Gram matrix.
//!
//! With D = W * soft(logits) - W and H = X X^T the squared output error is tr(D H D^T), its gradient by the effective weights 2 D H.
//! Rows do not depend on each other, so a panel of them makes all its steps before the next begins. What is minimised is the
//! error in units of the mean row's energy, rows * tr(D H D^T) / tr(W H W^T): Adam does not see the factor, but its epsilon
//! stays small beside gradients whatever the number of rows.

use std::ops::Range;

use super::logits::Logits;
use super::options::Stage;
use crate::gpu::Commands;
use crate::kernel::{Activation, Kernels, Part, Square, Weight};
use crate::mask::BitMask;
use crate::prune::PruneError;

/// One projection to learn.
pub(in crate::prune) struct Layer<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// With which schedules.
    pub stage: &'a Stage,
    /// Tensor name.
    pub name: &'a str,
    /// Number among the model's projections: its noise is its own.
    pub number: u32,
    /// W, `[rows, n]`.
    pub weight: &'a Weight,
    /// Gram matrix of its input.
    pub h: &'a Square,
    /// tr(W H W^T).
    pub energy: f64,
    /// Its rows, panel by panel.
    pub panels: Vec<Range<usize>>,
    /// Room for D of a panel, `[panel, n]`.
    pub change: &'a Activation,
    /// Room for D H of a panel, `[panel, n]`.
    pub products: &'a Activation,
}

/// Bytes of logits and of moments that a projection takes beside its panels.
pub(in crate::prune) fn bytes(stage: &Stage, rows: usize, cols: usize) -> (u64, u64) {
    Logits::bytes(stage, rows, cols)
}

impl Layer<'_, '_> {
    /// The mask that the logits come to from `start`.
    ///
    /// # Errors
    /// What the device reports; logits that are not numbers.
    pub fn learn(&self, c: &mut Commands<'_>, start: &BitMask) -> Result<BitMask, PruneError> {
        let (k, stage, weight) = (self.kernels, self.stage, self.weight);
        let Some(logits) = Logits::new(k.gpu(), stage, self.name, self.number, start)? else {
            return Ok(start.clone());
        };
        // Without output there is nothing to learn from.
        let scale = (-2.0 * weight.rows() as f64 / self.energy) as f32;
        if self.energy <= 0.0 || scale.is_infinite() {
            return Ok(start.clone());
        }
        for rows in self.panels.clone() {
            let change = self.change.rows(0, rows.len(), weight.k4())?;
            let gradient = self.products.rows(0, rows.len(), weight.k4())?;
            for step in 0..stage.steps {
                let at = stage.at(step);
                let Some(masking) = logits.masking(stage, &at) else {
                    break;
                };
                k.effective(c, weight, masking, rows.clone(), change, false)?;
                k.spread(c, weight, Part::Minus(scale), rows.clone(), change)?;
                k.times_square(c, change, self.h, gradient)?;
                logits.update(k, c, stage, &at, weight, gradient, rows.clone())?;
            }
        }
        logits.mask(c, stage)
    }
}
