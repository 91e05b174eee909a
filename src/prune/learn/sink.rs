//! From the gradients of a block's projections to steps of the optimiser.
//!
//! Where a minibatch goes through the block at once, the gradient of some rows is made in a strip and used up at once: the gradient
//! of a whole projection never exists. Where it goes through in parts, the parts' gradients add up in a buffer of the size of the
//! weights, and the step is made behind the last part.

use std::ops::Range;

use super::options::{At, Stage};
use super::state::BlockState;
use crate::gpu::{Commands, Gpu};
use crate::kernel::{Activation, Kernels, cut, f32_bytes};
use crate::model::{Architecture, ProjectionKind};
use crate::nn::{BlockWeights, GradientSink, NnError, WeightGradient};
use crate::prune::PruneError;

/// Strips of a projection's gradient, with the rows that they are.
type Strips = Vec<(Range<usize>, Activation)>;

/// Rooms of the gradients.
pub(super) struct GradientSpace {
    strip: Activation,
    /// Strips of every projection, where gradients add up.
    sums: Option<[Strips; ProjectionKind::ALL.len()]>,
}

/// Strips of a projection.
fn strips(gpu: &Gpu, rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    cut::pieces(0..rows, cut::gradient_rows(gpu.limits(), rows, cols))
}

impl GradientSpace {
    /// Room for the projections of `config`; `sums` where a step takes more than one call of the sink for a projection.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(gpu: &Gpu, config: &Architecture, sums: bool) -> Result<Self, PruneError> {
        let new = |rows: usize, cols: usize| Activation::new(gpu, "gradients:strip", rows, cols / 4);
        let mut all = [const { Vec::new() }; ProjectionKind::ALL.len()];
        let (mut most, mut shape) = (0, (4, 4));
        for p in config.block_projections(0) {
            let rows = cut::gradient_rows(gpu.limits(), p.rows, p.cols);
            if rows * p.cols > most {
                (most, shape) = (rows * p.cols, (rows, p.cols));
            }
            if sums {
                let strip = |r: Range<usize>| Ok::<_, PruneError>((r.clone(), new(r.len(), p.cols)?));
                all[p.kind as usize] = strips(gpu, p.rows, p.cols).map(strip).collect::<Result<_, _>>()?;
            }
        }
        let shape = if sums { (4, 4) } else { shape };
        Ok(Self { strip: new(shape.0, shape.1)?, sums: sums.then_some(all) })
    }

    /// Bytes of [`GradientSpace::new`].
    pub fn bytes(gpu: &Gpu, config: &Architecture, sums: bool) -> u64 {
        let shapes: Vec<_> = config.block_projections(0).collect();
        if sums {
            return shapes.iter().map(|p| f32_bytes(p.rows, p.cols)).sum::<u64>() + f32_bytes(4, 4);
        }
        let strip = |cols, rows| f32_bytes(cut::gradient_rows(gpu.limits(), rows, cols), cols);
        shapes.iter().map(|p| strip(p.cols, p.rows)).max().unwrap_or(0)
    }
}

/// The sink of one step of one block.
pub(super) struct Stepper<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// What is trained.
    pub stage: &'a Stage,
    /// The step.
    pub at: At,
    /// The frozen weights.
    pub weights: &'a BlockWeights,
    /// What changes.
    pub state: &'a BlockState,
    /// Rooms.
    pub space: &'a GradientSpace,
    /// Whether this is the first part of the minibatch.
    pub first: bool,
}

impl<'g> Stepper<'_, 'g> {
    fn update(
        &self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        strip: &Activation,
        rows: Range<usize>,
        cols: usize,
    ) -> Result<(), NnError> {
        let gradient = strip.rows(0, rows.len(), cols / 4)?;
        let at = (self.stage, &self.at);
        self.state.update(self.kernels, c, at, self.weights, kind, (gradient, rows))
    }

    /// The step itself, behind the last part of the minibatch, where gradients were added up.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(&self, c: &mut Commands<'g>) -> Result<(), NnError> {
        let Some(sums) = &self.space.sums else {
            return Ok(());
        };
        for (kind, _, cols) in self.state.shapes() {
            for (rows, strip) in &sums[kind as usize] {
                self.update(c, kind, strip, rows.clone(), cols)?;
            }
        }
        Ok(())
    }
}

impl<'g> GradientSink<'g> for Stepper<'_, 'g> {
    fn wants(&self, kind: ProjectionKind) -> bool {
        self.state.trains(kind)
    }

    fn take(
        &mut self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        g: WeightGradient<'_>,
    ) -> Result<(), NnError> {
        let cols = self.weights.linear(kind)?.weight.cols();
        let outputs = g.first_output..g.first_output + g.d_y.count;
        let d_y = |rows: &Range<usize>| g.d_y.part(rows.start - outputs.start, rows.len());
        let Some(sums) = &self.space.sums else {
            for rows in strips(self.kernels.gpu(), outputs.end, cols) {
                let gradient = self.space.strip.rows(0, rows.len(), cols / 4)?;
                self.kernels.weight_gradient(c, d_y(&rows), g.xt, gradient, false)?;
                self.update(c, kind, &self.space.strip, rows, cols)?;
            }
            return Ok(());
        };
        for (rows, strip) in &sums[kind as usize] {
            let here = cut::overlap(rows, &outputs);
            if here.is_empty() {
                continue;
            }
            let all = strip.rows(here.start - rows.start, here.len(), cols / 4)?;
            let gradient = all.columns(g.first_input / 4, g.xt.t4);
            self.kernels.weight_gradient(c, d_y(&here), g.xt, gradient, !self.first)?;
        }
        Ok(())
    }
}
