//! The block objective: the blocks in order, each trained so that its output, fed by the pruned blocks before it, meets that of the
//! dense block fed by the dense blocks before it.
//!
//! Two residual streams of all windows go through the model side by side, the dense one a block ahead. The loss is the squared
//! error over the energy of the dense block's own update, so that 1 is what leaving the block out costs. A block without an update (one
//! that a model was expanded by, or that is switched off) has no such scale: it keeps what it starts from.

use std::collections::BTreeMap;
use std::time::Instant;

use super::options::Trains;
use super::run::{MaskBuffers, StageRun};
use super::sink::GradientSpace;
use super::state::BlockState;
use super::steps::Minibatch;
use super::{LearnWatch, MEASURED, Snapshot, StepReport, copy_rows, minibatch_order};
use crate::gpu::{Buffer, Commands};
use crate::kernel::{Activation, Masking, f32_bytes};
use crate::mask::{BitMask, MaskSet};
use crate::model::Architecture;
use crate::nn::{Access, Activations, BlockWeights, Sizes, TrainSpace};
use crate::prune::{BlockResult, Learned, PruneError};

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
    copy: Activation,
    pub(super) errors: Buffer,
}

/// A block on its way.
#[derive(Clone, Copy)]
pub(super) struct Block<'b> {
    pub(super) index: usize,
    pub(super) weights: &'b BlockWeights,
    /// Energy of the dense block's update, over all windows.
    pub(super) energy: f64,
}

impl Block<'_> {
    /// Whether the dense block's update is zero in each of `minibatches`, or so small that the gradient of an error as a share of it
    /// overflows.
    fn adds_nothing(&self, minibatches: usize) -> bool {
        let share = self.energy / minibatches.max(1) as f64;
        share >= 0.0 && !((2.0 / share) as f32).is_finite()
    }
}

impl BlockResult {
    /// Of a block that has nothing to learn from, and keeps the masks `start`.
    fn skipped(block: usize, start: BTreeMap<String, BitMask>, seconds: f64) -> Self {
        let learned = Learned {
            block: Some(block),
            start: 0.0,
            error: 0.0,
            kept: false,
            skipped: true,
            groups_changed: 0,
            seconds,
        };
        Self { block, masks: start, learned: Some(learned), ..Default::default() }
    }
}

impl Blockwise<'_, '_> {
    /// Bytes on the device beside weights, state and streams: buffers of a block, and the gradients.
    pub(super) fn space_bytes(config: &Architecture, sizes: &Sizes) -> u64 {
        let t = 4 * sizes.layout.t4();
        TrainSpace::bytes(config, sizes) + f32_bytes(2 * config.hidden_size + 1, t)
    }
}

impl<'g> Blockwise<'_, 'g> {
    /// Trains the blocks from `finished.len()` on; the first ones only pass their inputs on.
    ///
    /// # Errors
    /// What the device or the watcher report; [`PruneError::Stopped`] when the watcher asks to stop;
    /// [`PruneError::Diverged`] for a loss that is not finite.
    pub(super) fn train_all(
        &self,
        c: &mut Commands<'g>,
        mut streams: Streams<'g>,
        finished: &[BTreeMap<String, BitMask>],
        watch: &mut dyn LearnWatch,
    ) -> Result<(), PruneError> {
        let gpu = self.run.kernels.gpu();
        let sizes = streams.pruned.sizes().clone();
        let (hidden, t4) = (self.run.config.hidden_size, sizes.layout.t4());
        let space = Space {
            train: TrainSpace::new(gpu, self.run.config, &sizes)?,
            y: Activation::new(gpu, "activations:output", hidden, t4)?,
            copy: Activation::new(gpu, "activations:output", hidden, t4)?,
            errors: gpu.alloc("activations:errors", f32_bytes(1, 4 * t4))?,
        };
        let parts = self.run.stage.parts(&sizes)?;
        let sums = parts > 1 || sizes.pieces().count() > 1;
        let gradients = GradientSpace::new(gpu, self.run.config, sums)?;
        for index in 0..self.run.config.num_layers {
            let mut projections = self.run.config.block_projections(index);
            let mut weights = BlockWeights::upload(gpu, self.run.dense, self.run.config, index)?;
            let energy = self.advance_dense(c, &space, &weights, &mut streams.dense)?;
            if projections.any(|p| self.run.tensors.replaces(&p.name)) {
                drop(weights);
                weights = BlockWeights::upload(gpu, self.run.tensors, self.run.config, index)?;
            }
            let block = Block { index, weights: &weights, energy };
            let last = index + 1 == self.run.config.num_layers;
            if let Some(masks) = finished.get(index) {
                if !last {
                    self.advance(c, &space, &block, masks, &mut streams)?;
                }
                continue;
            }
            let (result, trained) = self.train(c, &space, &gradients, &block, &streams, parts, watch)?;
            watch.block(&result)?;
            if last {
                continue;
            }
            match trained {
                Some(trained) => {
                    drop(weights);
                    let block = Block { index, weights: &trained, energy };
                    self.advance(c, &space, &block, &result.masks, &mut streams)?;
                }
                None => self.advance(c, &space, &block, &result.masks, &mut streams)?,
            }
        }
        Ok(())
    }

    /// Replaces the dense stream by the block's output; returns the energy of the block's update.
    fn advance_dense(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        weights: &BlockWeights,
        dense: &mut Activations<'g>,
    ) -> Result<f64, PruneError> {
        let mut energy = 0.0;
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        dense.each(c, access, |c, batch| {
            let y = space.y.rows(0, self.run.config.hidden_size, batch.layout.t4())?;
            let pass =
                self.run.pass(&space.train, weights, batch.layout, weights.train_linears(|_| Masking::Dense));
            pass.forward(c, batch.x, y)?;
            let copy = space.copy.rows(0, y.count, y.t4)?;
            copy_rows(c, y, copy)?;
            energy += self.squared(c, space, copy, batch.x, 0.0, batch.layout)?;
            copy_rows(c, y, batch.x)?;
            Ok::<(), PruneError>(())
        })?;
        Ok(energy)
    }

    /// Replaces the pruned stream by the output of a block that is done.
    fn advance(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        block: &Block<'_>,
        masks: &BTreeMap<String, BitMask>,
        streams: &mut Streams<'g>,
    ) -> Result<(), PruneError> {
        let buffers = self.mask_buffers(block.index, masks)?;
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        streams.pruned.each(c, access, |c, batch| {
            let y = space.y.rows(0, self.run.config.hidden_size, batch.layout.t4())?;
            let linears = block.weights.train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
            self.run.pass(&space.train, block.weights, batch.layout, linears).forward(c, batch.x, y)?;
            copy_rows(c, y, batch.x)
        })?;
        Ok(())
    }

    fn mask_buffers(
        &self,
        index: usize,
        masks: &BTreeMap<String, BitMask>,
    ) -> Result<MaskBuffers, PruneError> {
        self.run.mask_buffers(index, |name| masks.get(name).or_else(|| self.run.start.get(name)))
    }

    /// Error of the block over the windows that are measured, under `masks`, as a share of the energy of its update.
    fn error(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        block: &Block<'_>,
        masks: &BTreeMap<String, BitMask>,
        streams: &Streams<'g>,
    ) -> Result<f64, PruneError> {
        let buffers = self.mask_buffers(block.index, masks)?;
        let (mut sum, batches) = (0.0, streams.pruned.batches());
        let measured = batches.min(MEASURED.div_ceil(streams.pruned.sizes().layout.windows));
        let linears = block.weights.train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
        for i in 0..measured {
            sum += self.part(c, space, block, streams, linears, i, 0.0)?;
        }
        Ok(sum / (block.energy * measured as f64 / batches as f64))
    }

    /// Trains one block; returns what it got, and its weights where they changed.
    #[allow(clippy::too_many_arguments)] // the state of the walk
    fn train(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        gradients: &GradientSpace,
        block: &Block<'_>,
        streams: &Streams<'g>,
        parts: usize,
        watch: &mut dyn LearnWatch,
    ) -> Result<(BlockResult, Option<BlockWeights>), PruneError> {
        let started = Instant::now();
        let (stage, index) = (self.run.stage, block.index);
        let minibatches = streams.pruned.batches() / parts;
        let own: BTreeMap<String, BitMask> = self
            .run
            .config
            .block_projections(index)
            .filter_map(|p| Some((p.name.clone(), self.run.start.get(&p.name)?.clone())))
            .collect();
        if block.adds_nothing(minibatches) {
            log::warn!(
                "block {index} adds nothing to the residual stream, so there is no update to meet: it keeps the mask and the weights that \
                 it starts from"
            );
            return Ok((BlockResult::skipped(index, own, started.elapsed().as_secs_f64()), None));
        }
        let before = self.error(c, space, block, &own, streams)?;
        let state = BlockState::new(self.run, index)?;
        let mut first = 0;
        let mut tracker = 0.0;
        if let Some(resumed) = watch.resume(index)? {
            state.restore(c, &resumed.tensors)?;
            (first, tracker) = (resumed.step, resumed.tracker);
        }
        let mut baseline = vec![None; minibatches];
        for step in first..stage.steps {
            if watch.stop() || watch.due() {
                let snapshot = Snapshot { block: index, step, tracker, tensors: state.snapshot(c)? };
                watch.keep(&snapshot)?;
                if watch.stop() {
                    return Err(PruneError::Stopped);
                }
            }
            let at = Instant::now();
            let number = minibatch_order(stage.seed, index, step, minibatches);
            let minibatch = Minibatch { number, parts };
            let mut residual = None;
            let loss = match stage.trains {
                Trains::MaskPro => {
                    let start = match baseline[number] {
                        Some(loss) => loss,
                        None => {
                            let buffers = self.mask_buffers(index, &own)?;
                            let linears = block
                                .weights
                                .train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
                            *baseline[number].insert(self.loss(c, space, block, streams, linears, minibatch)?)
                        }
                    };
                    let loss =
                        self.draw(c, space, block, streams, &state, step, minibatch, start, &mut tracker)?;
                    residual = Some(loss - start);
                    loss
                }
                _ => self.descend(c, space, gradients, block, streams, &state, step, minibatch)?,
            };
            if !loss.is_finite() {
                return Err(PruneError::Diverged { place: format!("block {index}"), step, loss });
            }
            let report = StepReport::new(stage, Some(index), step, loss, at);
            watch.step(&StepReport { residual, tracker: residual.map(|_| tracker), ..report })?;
        }
        self.finish(c, space, block, streams, state, own, before, started)
    }

    /// Mask and weights that training has come to, unless those of the start are better.
    #[allow(clippy::too_many_arguments)] // the state of the walk
    fn finish(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        block: &Block<'_>,
        streams: &Streams<'g>,
        state: BlockState,
        start: BTreeMap<String, BitMask>,
        before: f64,
        started: Instant,
    ) -> Result<(BlockResult, Option<BlockWeights>), PruneError> {
        let (stage, index) = (self.run.stage, block.index);
        let mut masks = start.clone();
        masks.extend(state.masks(c, stage)?);
        let set = MaskSet { pattern: stage.pattern, masks: masks.clone() };
        let weights = state.weights(c, stage, self.run.dense, &set)?;
        // Room for the trained weights as they are stored.
        drop(state);
        let trained = if weights.is_empty() {
            None
        } else {
            let tensors = super::Fitted { base: self.run.tensors, weights: &weights };
            Some(BlockWeights::upload(self.run.kernels.gpu(), &tensors, self.run.config, index)?)
        };
        let of_block = Block { weights: trained.as_ref().unwrap_or(block.weights), ..*block };
        let after = self.error(c, space, &of_block, &masks, streams)?;
        let changed = masks
            .iter()
            .filter_map(|(name, mask)| Some(mask.groups_changed(start.get(name)?, stage.pattern)))
            .sum();
        let kept = after.is_finite() && after <= before;
        let learned = Learned {
            block: Some(index),
            start: before,
            error: after,
            kept,
            skipped: false,
            groups_changed: changed,
            seconds: started.elapsed().as_secs_f64(),
        };
        let mut result = BlockResult { block: index, learned: Some(learned), ..Default::default() };
        if kept {
            (result.masks, result.weights) = (masks, weights);
            Ok((result, trained))
        } else {
            result.masks = start;
            Ok((result, None))
        }
    }
}
