//! The layer objective: masks learned projection by projection in the metric of the input's Gram matrix.
//!
//! Rows do not depend on each other, so a panel of them makes all its steps before the next begins.
//!
//! Relaxed: with D = W * soft(logits) - W and H = X X^T the squared output error is tr(D H D^T), its gradient by the effective
//! weights 2 D H. What is minimised is the error in units of the mean row's energy, rows * tr(D H D^T) / tr(W H W^T): Adam does not see
//! the factor, but its epsilon stays small beside gradients whatever the number of rows.
//!
//! MaskPro: the error of a mask that is drawn has an expectation in closed form, and so has its gradient (`shaders/expected_step.wgsl`;
//! docs/maskpro.md derives it). Steps are plain. What is minimised is each row's error in units of a group's mean share of it
//! under the start mask, so that one rate fits rows of any size and number of groups.

use std::ops::Range;

use super::logits::Logits;
use super::options::{Stage, Trains};
use crate::gpu::{Buffer, Commands};
use crate::kernel::{
    Activation, Drawn, ExpectedStep, Kernels, Part, SampleAt, Square, Weight, cut, f32_bytes,
};
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
    /// Error of every row under the start mask.
    pub errors: &'a [f32],
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

/// Parts of the columns that move one after the other in a step of MaskPro: all at once answer one another's moves where the
/// inputs have a strong direction in common, and overshoot (docs/maskpro.md). More parts cost dispatches, no products.
const PARTS: usize = 8;

/// Columns of such a part: whole groups.
fn part(n: usize) -> usize {
    n.div_ceil(PARTS).next_multiple_of(cut::GROUP).min(n)
}

/// Bytes of scratch that a panel of `[panel, n]` takes beside its products.
pub(in crate::prune) fn scratch_bytes(stage: &Stage, panel: usize, n: usize) -> u64 {
    match stage.trains {
        Trains::MaskPro => f32_bytes(1, panel).next_multiple_of(16) + f32_bytes(panel, part(n)),
        _ => 0,
    }
}

impl Layer<'_, '_> {
    /// The mask that the logits come to from `start`.
    ///
    /// # Errors
    /// What the device reports; logits that are not numbers.
    pub fn learn(&self, c: &mut Commands<'_>, start: &BitMask) -> Result<BitMask, PruneError> {
        let Some(logits) = Logits::new(self.kernels.gpu(), self.stage, self.name, self.number, start)? else {
            return Ok(start.clone());
        };
        // Without output there is nothing to learn from.
        let scale = (-2.0 * self.weight.rows() as f64 / self.energy) as f32;
        if self.energy <= 0.0 || scale.is_infinite() {
            return Ok(start.clone());
        }
        match self.stage.trains {
            Trains::MaskPro => self.expect(c, &logits)?,
            _ => self.relax(c, &logits, scale)?,
        }
        logits.mask(c, self.stage)
    }

    /// Adam on the error of soft masks.
    fn relax(&self, c: &mut Commands<'_>, logits: &Logits, scale: f32) -> Result<(), PruneError> {
        let (k, stage, weight) = (self.kernels, self.stage, self.weight);
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
                logits.update(k, c, (stage, &at), weight, gradient, rows.clone())?;
            }
        }
        Ok(())
    }

    /// Plain steps on the expected error of drawn masks, columns after columns: each part sees what those before it have come to.
    fn expect(&self, c: &mut Commands<'_>, logits: &Logits) -> Result<(), PruneError> {
        let (k, stage, weight, h) = (self.kernels, self.stage, self.weight, self.h);
        let largest = self.panels.iter().map(Range::len).max().unwrap_or(0);
        let (n, part) = (h.n(), part(h.n()));
        let scales = k.gpu().alloc("scratch:row scales", f32_bytes(1, largest))?;
        let moved = Activation::new(k.gpu(), "scratch:moved", largest, part / 4)?;
        for rows in self.panels.clone() {
            c.write(&scales, 0, &self.scales(&rows))?;
            let pruned = self.change.rows(0, rows.len(), n / 4)?;
            let products = self.products.rows(0, rows.len(), n / 4)?;
            let law = self.law(logits.buffer(), 0);
            k.expected_pruned(c, weight, &law, (rows.clone(), 0..n), pruned, None)?;
            k.times_square(c, pruned, h, products)?;
            for number in 0..stage.steps {
                for columns in cut::pieces(0..n, part) {
                    let step = ExpectedStep {
                        weight,
                        h,
                        law: self.law(logits.buffer(), number),
                        rows: rows.clone(),
                        columns: columns.clone(),
                        pruned: self.change,
                        products: self.products,
                        scales: &scales,
                        rate: stage.at(number).adam.rate,
                    };
                    k.expected_step(c, &step)?;
                    let law = self.law(logits.buffer(), number + 1);
                    let moved = moved.rows(0, rows.len(), columns.len() / 4)?;
                    k.expected_pruned(c, weight, &law, (rows.clone(), columns.clone()), pruned, Some(moved))?;
                    k.add_times_square(c, moved, h, columns, products)?;
                }
            }
        }
        Ok(())
    }

    fn law<'b>(&self, logits: &'b Buffer, step: u32) -> Drawn<'b> {
        let at = SampleAt { seed: self.stage.seed, step, projection: self.number };
        Drawn { pattern: self.stage.pattern, logits, draws: self.stage.draws, at }
    }

    /// Groups of a row over its error under the start mask; 0, which leaves a row as it is, where there is no error to lower.
    fn scales(&self, rows: &Range<usize>) -> Vec<f32> {
        let groups = (self.weight.cols() / self.stage.pattern.m()) as f32;
        let scale = |&error: &f32| Some(groups / error).filter(|s| error > 0.0 && s.is_finite());
        self.errors[rows.clone()].iter().map(|error| scale(error).unwrap_or(0.0)).collect()
    }
}
