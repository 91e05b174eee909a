//! One step on one minibatch of the block objective: by backpropagation, and by policy gradient.

use super::blockwise::{Block, Blockwise, Space, Streams};
use super::options::Stage;
use super::sink::{GradientSpace, Stepper};
use super::state::BlockState;
use crate::gpu::Commands;
use crate::kernel::{Layout, Rows};
use crate::nn::TrainLinears;
use crate::prune::PruneError;

/// Which windows a step works on: batches `number * parts..` of the streams, `parts` of them.
#[derive(Clone, Copy)]
pub(super) struct Minibatch {
    pub(super) number: usize,
    pub(super) parts: usize,
}

impl Minibatch {
    fn batches(self) -> std::ops::Range<usize> {
        self.number * self.parts..(self.number + 1) * self.parts
    }
}

impl<'g> Blockwise<'_, 'g> {
    /// Energy of the block's update in a minibatch, taken as its share of the windows.
    fn energy(&self, block: &Block<'_>, streams: &Streams<'g>, parts: usize) -> f64 {
        block.energy * parts as f64 / streams.pruned.batches() as f64
    }

    /// Loss of a minibatch under `linears`.
    pub(super) fn loss(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        block: &Block<'_>,
        streams: &Streams<'g>,
        linears: TrainLinears<'_>,
        minibatch: Minibatch,
    ) -> Result<f64, PruneError> {
        let mut sum = 0.0;
        for i in minibatch.batches() {
            sum += self.part(c, space, block, streams, linears, i, 0.0)?;
        }
        Ok(sum / self.energy(block, streams, minibatch.parts))
    }

    /// Runs batch `i` forwards; `scale` times the error's derivative by the output is in `space.y` then. Returns the squared error.
    #[allow(clippy::too_many_arguments)] // the state of the walk
    pub(super) fn part(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        block: &Block<'_>,
        streams: &Streams<'g>,
        linears: TrainLinears<'_>,
        i: usize,
        scale: f32,
    ) -> Result<f64, PruneError> {
        let batch = streams.pruned.batch(c, i)?;
        let y = space.y.rows(0, self.run.config.hidden_size, batch.layout.t4())?;
        self.run.pass(&space.train, block.weights, batch.layout, linears).forward(c, batch.x, y)?;
        let target = streams.dense.batch(c, i)?;
        self.squared(c, space, y, target.x, scale, batch.layout)
    }

    /// Squared error between `y` and `target`; `y` becomes `scale` times their difference.
    pub(super) fn squared(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        y: Rows<'_>,
        target: Rows<'_>,
        scale: f32,
        layout: Layout,
    ) -> Result<f64, PruneError> {
        self.run.kernels.squared_error(c, y, target, None, scale, &space.errors, layout)?;
        let errors: Vec<f32> = c.read(&space.errors, 0, 4 * layout.t4())?;
        Ok(errors.iter().map(|&e| f64::from(e)).sum())
    }

    /// A step by backpropagation; returns the loss before it.
    #[allow(clippy::too_many_arguments)] // the state of the walk
    pub(super) fn descend(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        gradients: &GradientSpace,
        block: &Block<'_>,
        streams: &Streams<'g>,
        state: &BlockState,
        step: u32,
        minibatch: Minibatch,
    ) -> Result<f64, PruneError> {
        let stage: &Stage = self.run.stage;
        let at = stage.at(step);
        let energy = self.energy(block, streams, minibatch.parts);
        let linears = state.linears(stage, &at, block.weights);
        let mut stepper = Stepper {
            kernels: self.run.kernels,
            stage,
            at,
            weights: block.weights,
            state,
            space: gradients,
            first: true,
        };
        let mut sum = 0.0;
        for i in minibatch.batches() {
            sum += self.part(c, space, block, streams, linears, i, (2.0 / energy) as f32)?;
            let batch = streams.pruned.batch(c, i)?;
            let d = space.y.rows(0, self.run.config.hidden_size, batch.layout.t4())?;
            let pass = self.run.pass(&space.train, block.weights, batch.layout, linears);
            pass.backward(c, batch.x, d, false, &mut stepper)?;
            stepper.first = false;
        }
        stepper.finish(c)?;
        c.submit()?;
        Ok(sum / energy)
    }

    /// A step by policy gradient, forward only: MaskPro with the block's error in place of the model's loss. `start` is the start
    /// mask's loss on the same minibatch; the tracker is the moving average of the residuals.
    #[allow(clippy::too_many_arguments)] // the state of the walk
    pub(super) fn draw(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        block: &Block<'_>,
        streams: &Streams<'g>,
        state: &BlockState,
        step: u32,
        minibatch: Minibatch,
        start: f64,
        tracker: &mut f64,
    ) -> Result<f64, PruneError> {
        let at = self.run.stage.at(step);
        state.sample(self.run.kernels, c, self.run.stage, step)?;
        let linears = state.linears(self.run.stage, &at, block.weights);
        let loss = self.loss(c, space, block, streams, linears, minibatch)?;
        let residual = loss - start;
        *tracker = self.run.stage.alpha * *tracker + (1.0 - self.run.stage.alpha) * residual;
        let advantage = residual - *tracker;
        let step_size = -f64::from(at.adam.rate) * advantage;
        state.reinforce(self.run.kernels, c, self.run.stage, step_size as f32)?;
        Ok(loss)
    }
}
