//! Steps on the block objective, each on one minibatch: by backpropagation, and by policy gradient.

use std::ops::Range;

use super::learn_loop::{Learning, State};
use super::minibatch_order;
use super::objective::{BlockOutput, SquaredError};
use super::options::Trains;
use super::sink::{GradientSpace, Stepper};
use super::state::BlockState;
use super::walk::OnBlock;
use crate::gpu::Commands;
use crate::kernel::Masking;
use crate::nn::TrainLinears;
use crate::prune::{PruneError, Snapshot, StepReport};

impl<'g> OnBlock<'_, 'g> {
    /// The batches of the streams that minibatch `number` is made of.
    fn batches(&self, number: usize) -> Range<usize> {
        number * self.parts..(number + 1) * self.parts
    }

    /// Energy of the block's update in a minibatch, taken as its share of the windows.
    fn energy(&self) -> f64 {
        self.block.energy * self.parts as f64 / self.streams.pruned.batches() as f64
    }

    /// Loss of minibatch `number` under `linears`.
    pub(super) fn loss(
        &self,
        c: &mut Commands<'g>,
        linears: TrainLinears<'_>,
        number: usize,
    ) -> Result<f64, PruneError> {
        let mut sum = 0.0;
        for i in self.batches(number) {
            sum += self.part(c, linears, i, 0.0)?;
        }
        Ok(sum / self.energy())
    }

    /// Runs batch `i` forwards; `share` times the objective's derivative by the output is in `space.y` then. Returns the objective's value.
    pub(super) fn part(
        &self,
        c: &mut Commands<'g>,
        linears: TrainLinears<'_>,
        i: usize,
        share: f32,
    ) -> Result<f64, PruneError> {
        let Self { run, space, block, streams, .. } = *self;
        let batch = streams.pruned.batch(c, i)?;
        let y = space.y.rows(0, run.config.hidden_size, batch.layout.t4())?;
        run.pass(&space.train, block.weights, batch.layout, linears).forward(c, batch.x, y)?;
        let target = streams.dense.batch(c, i)?;
        let output = BlockOutput { block: block.index, batch: i, y, target: target.x, layout: batch.layout };
        let squared = SquaredError { errors: &space.errors, tokens: block.tokens };
        run.objective.unwrap_or(&squared).measure(run.kernels, c, output, share)
    }

    /// Step `step` by backpropagation, on minibatch `number`; returns the loss before it.
    pub(super) fn descend(
        &self,
        c: &mut Commands<'g>,
        gradients: &GradientSpace,
        state: &BlockState,
        (step, number): (u32, usize),
    ) -> Result<f64, PruneError> {
        let Self { run, space, block, streams, .. } = *self;
        let (stage, energy) = (run.stage, self.energy());
        let at = stage.at(step);
        let linears = state.linears(stage, &at, block.weights);
        let (kernels, weights) = (run.kernels, block.weights);
        let mut stepper = Stepper { kernels, stage, at, weights, state, space: gradients, first: true };
        let mut sum = 0.0;
        for i in self.batches(number) {
            sum += self.part(c, linears, i, (1.0 / energy) as f32)?;
            let batch = streams.pruned.batch(c, i)?;
            let d = space.y.rows(0, run.config.hidden_size, batch.layout.t4())?;
            let pass = run.pass(&space.train, block.weights, batch.layout, linears);
            pass.backward(c, batch.x, d, false, &mut stepper)?;
            stepper.first = false;
        }
        stepper.finish(c)?;
        c.submit()?;
        Ok(sum / energy)
    }

    /// Step `step` by policy gradient, on minibatch `number`, forward only: MaskPro with the block's error in place of the model's loss.
    /// `start` is the start mask's loss on the same minibatch; the tracker is the moving average of the residuals.
    pub(super) fn draw(
        &self,
        c: &mut Commands<'g>,
        state: &BlockState,
        (step, number): (u32, usize),
        start: f64,
        tracker: &mut f64,
    ) -> Result<f64, PruneError> {
        let (kernels, stage) = (self.run.kernels, self.run.stage);
        let at = stage.at(step);
        state.sample(kernels, c, stage, step)?;
        let linears = state.linears(stage, &at, self.block.weights);
        let loss = self.loss(c, linears, number)?;
        let residual = loss - start;
        *tracker = stage.alpha * *tracker + (1.0 - stage.alpha) * residual;
        let step_size = -f64::from(at.adam.rate) * (residual - *tracker);
        state.reinforce(kernels, c, stage, step_size as f32)?;
        Ok(loss)
    }
}

/// A block under training.
pub(super) struct BlockLearning<'x, 'a, 'g> {
    pub(super) on: &'x OnBlock<'a, 'g>,
    pub(super) c: &'x mut Commands<'g>,
    pub(super) state: &'x BlockState,
    pub(super) gradients: &'x GradientSpace,
    /// Of each minibatch, the loss of the start mask, where it was asked for.
    pub(super) baseline: Vec<Option<f64>>,
    /// Moving average of the residuals.
    pub(super) tracker: f64,
}

impl BlockLearning<'_, '_, '_> {
    /// Loss of the start mask on minibatch `number`.
    fn baseline(&mut self, number: usize) -> Result<f64, PruneError> {
        if let Some(loss) = self.baseline[number] {
            return Ok(loss);
        }
        let (run, block) = (self.on.run, &self.on.block);
        let buffers = run.mask_buffers(block.index, |name| run.start.get(name))?;
        let linears = block.weights.train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
        Ok(*self.baseline[number].insert(self.on.loss(self.c, linears, number)?))
    }
}

impl Learning for BlockLearning<'_, '_, '_> {
    fn step(&mut self, step: u32) -> Result<StepReport, PruneError> {
        let stage = self.on.run.stage;
        let number = minibatch_order(stage.seed, self.on.block.index, step, self.baseline.len());
        let temperature = stage.temperature_at(step);
        if stage.trains != Trains::MaskPro {
            let loss = self.on.descend(self.c, self.gradients, self.state, (step, number))?;
            return Ok(StepReport { loss, temperature, ..Default::default() });
        }
        let start = self.baseline(number)?;
        let loss = self.on.draw(self.c, self.state, (step, number), start, &mut self.tracker)?;
        let (residual, tracker) = (Some(loss - start), Some(self.tracker));
        Ok(StepReport { loss, residual, tracker, temperature, ..Default::default() })
    }

    fn state(&mut self) -> Result<Option<State>, PruneError> {
        Ok(Some(State { tracker: self.tracker, tensors: self.state.snapshot(self.c)? }))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), PruneError> {
        self.tracker = snapshot.tracker;
        self.state.restore(self.c, &snapshot.tensors)
    }
}
