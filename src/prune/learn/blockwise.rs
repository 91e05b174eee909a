//! The block objective: the blocks in order, each trained so that its output, fed by the pruned blocks before it, meets that of the
//! dense block fed by the dense blocks before it.
//!
//! Two residual streams of all windows go through the model side by side, the dense one a block ahead. The loss is the squared
//! error over the energy of the dense block's own update, so that 1 is what leaving the block out costs. A block without an update (one
//! that a model was expanded by, or that is switched off) has no such scale: it keeps what it starts from.

use std::collections::BTreeMap;
use std::time::Instant;

use super::objective::squared;
use super::options::TokenWeights;
use super::run::{MaskBuffers, StageRun};
use super::sink::GradientSpace;
use super::state::BlockState;
use super::steps::BlockLearning;
use super::tokens::Energies;
use super::walk::{Block, Blockwise, OnBlock, Space, Streams};
use super::{LearnLoop, MEASURED, copy_rows};
use crate::gpu::Commands;
use crate::kernel::{Activation, Masking, f32_bytes};
use crate::mask::{BitMask, MaskSet};
use crate::nn::{Access, Activations, BlockWeights, TrainSpace};
use crate::prune::{BlockResult, Learned, PruneError, Watch};

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
        watch: &mut dyn Watch,
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
        let weighted = self.run.stage.tokens != TokenWeights::Even;
        let room = |_| gpu.alloc("activations:weights of tokens", f32_bytes(1, 4 * t4));
        let batches = if weighted { streams.pruned.batches() } else { 0 };
        let tokens = (0..batches).map(room).collect::<Result<Vec<_>, _>>()?;
        for index in 0..self.run.config.num_layers {
            let mut projections = self.run.config.block_projections(index);
            let mut weights = BlockWeights::upload(gpu, self.run.dense, self.run.config, index)?;
            let energies = self.advance_dense(c, &space, &weights, &mut streams.dense)?;
            let by_token = energies.weights(self.run.stage.tokens);
            let energy = energies.total(by_token.as_deref());
            for (buffer, of_batch) in tokens.iter().zip(by_token.iter().flat_map(|all| all.chunks(4 * t4))) {
                c.write(buffer, 0, of_batch)?;
            }
            let tokens = weighted.then_some(&tokens[..]);
            if projections.any(|p| self.run.tensors.replaces(&p.name)) {
                drop(weights);
                weights = BlockWeights::upload(gpu, self.run.tensors, self.run.config, index)?;
            }
            let block = Block { index, weights: &weights, tokens, energy };
            let last = index + 1 == self.run.config.num_layers;
            if let Some(masks) = finished.get(index) {
                if !last {
                    self.advance(c, &space, &block, masks, &mut streams)?;
                }
                continue;
            }
            let on = OnBlock { run: self.run, space: &space, block, streams: &streams, parts };
            let (result, trained) = on.train(c, &gradients, watch)?;
            let masks = result.masks.clone();
            watch.block(result)?;
            if last {
                continue;
            }
            match trained {
                Some(trained) => {
                    drop(weights);
                    let block = Block { index, weights: &trained, tokens, energy };
                    self.advance(c, &space, &block, &masks, &mut streams)?;
                }
                None => self.advance(c, &space, &block, &masks, &mut streams)?,
            }
        }
        Ok(())
    }

    /// Replaces the dense stream by the block's output; returns the energies of the block's update and, where errors are weighted by it, of the
    /// stream.
    fn advance_dense(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        weights: &BlockWeights,
        dense: &mut Activations<'g>,
    ) -> Result<Energies, PruneError> {
        let (mut energies, kernels) = (Energies::default(), self.run.kernels);
        let streams = self.run.stage.tokens == TokenWeights::Stream;
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        dense.each(c, access, |c, batch| {
            let y = space.y.rows(0, self.run.config.hidden_size, batch.layout.t4())?;
            let pass =
                self.run.pass(&space.train, weights, batch.layout, weights.train_linears(|_| Masking::Dense));
            pass.forward(c, batch.x, y)?;
            let copy = space.copy.rows(0, y.count, y.t4)?;
            copy_rows(c, y, copy)?;
            let update = squared(kernels, c, &space.errors, [copy, batch.x], None, 0.0, batch.layout)?;
            energies.update.extend(update);
            if streams {
                // The copy is zero now.
                let stream = squared(kernels, c, &space.errors, [copy, y], None, 0.0, batch.layout)?;
                energies.stream.extend(stream);
            }
            copy_rows(c, y, batch.x)?;
            Ok::<(), PruneError>(())
        })?;
        Ok(energies)
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
        let buffers = mask_buffers(self.run, block.index, masks)?;
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        streams.pruned.each(c, access, |c, batch| {
            let y = space.y.rows(0, self.run.config.hidden_size, batch.layout.t4())?;
            let linears = block.weights.train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
            self.run.pass(&space.train, block.weights, batch.layout, linears).forward(c, batch.x, y)?;
            copy_rows(c, y, batch.x)
        })?;
        Ok(())
    }
}

impl<'g> OnBlock<'_, 'g> {
    /// Error of the block over the windows that are measured, under `masks`, as a share of the energy of its update.
    fn error(&self, c: &mut Commands<'g>, masks: &BTreeMap<String, BitMask>) -> Result<f64, PruneError> {
        let (block, pruned) = (&self.block, &self.streams.pruned);
        let buffers = mask_buffers(self.run, block.index, masks)?;
        let (mut sum, batches) = (0.0, pruned.batches());
        let measured = batches.min(MEASURED.div_ceil(pruned.sizes().layout.windows));
        let linears = block.weights.train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
        for i in 0..measured {
            sum += self.part(c, linears, i, 0.0)?;
        }
        Ok(sum / (block.energy * measured as f64 / batches as f64))
    }

    /// Trains one block; returns what it got, and its weights where they changed.
    fn train(
        &self,
        c: &mut Commands<'g>,
        gradients: &GradientSpace,
        watch: &mut dyn Watch,
    ) -> Result<(BlockResult, Option<BlockWeights>), PruneError> {
        let started = Instant::now();
        let (stage, index, block) = (self.run.stage, self.block.index, &self.block);
        let minibatches = self.streams.pruned.batches() / self.parts;
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
        let before = self.error(c, &own)?;
        let state = BlockState::new(self.run, index)?;
        let baseline = vec![None; minibatches];
        let mut learning = BlockLearning { on: self, c, state: &state, gradients, baseline, tracker: 0.0 };
        LearnLoop { block: Some(index), steps: stage.steps }.run(&mut learning, watch)?;
        self.finish(c, state, own, (before, started))
    }

    /// Mask and weights that training has come to, unless those of the start are better, whose error was `before`.
    fn finish(
        &self,
        c: &mut Commands<'g>,
        state: BlockState,
        start: BTreeMap<String, BitMask>,
        (before, started): (f64, Instant),
    ) -> Result<(BlockResult, Option<BlockWeights>), PruneError> {
        let (stage, index, block) = (self.run.stage, self.block.index, &self.block);
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
        let after = OnBlock { block: of_block, ..*self }.error(c, &masks)?;
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

/// The masks of a block on the device: those given, else those of the start.
fn mask_buffers(
    run: &StageRun<'_, '_>,
    index: usize,
    masks: &BTreeMap<String, BitMask>,
) -> Result<MaskBuffers, PruneError> {
    run.mask_buffers(index, |name| masks.get(name).or_else(|| run.start.get(name)))
}
