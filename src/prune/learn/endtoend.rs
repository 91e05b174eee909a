//! The model objective: all blocks trained on the loss of the whole model.
//!
//! A step goes through the blocks forwards, keeping each block's input, then backwards, running each block again before its
//! backward pass. Blocks are all resident, or stream through the device one at a time: then weights come from the model's files
//! and logits, trained weights and moments from host memory.

use std::collections::BTreeMap;
use std::time::Instant;

use super::learn_loop::{LearnLoop, Learning, State};
use super::options::{At, ModelLoss, Residency};
use super::run::StageRun;
use super::sink::{GradientSpace, Stepper};
use super::state::BlockState;
use super::{Fitted, MEASURED, minibatch_order};
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::{Activation, Layout, Masking, Rows, f32_bytes};
use crate::mask::{BitMask, MaskSet};
use crate::model::{Architecture, Projection};
use crate::nn::{
    Activations, Batch, BlockWeights, Embedding, HeadLoss, HeadPass, HeadSpace, HeadWeights, Sizes, Tensors,
    TrainSpace,
};
use crate::prune::{BlockResult, Learned, PruneError, Snapshot, StepReport, Watch};

/// Training on the loss of the whole model.
pub(super) struct EndToEnd<'a, 'g> {
    pub(super) run: &'a StageRun<'a, 'g>,
    /// The dense model's embedding.
    pub(super) embedding: &'a Embedding<'a>,
}

/// What training sees: the windows, and where the loss is [`ModelLoss::Kl`] what the dense model's last block puts out for them.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a, 'g> {
    pub(super) windows: &'a Windows,
    pub(super) dense: Option<&'a Activations<'g>>,
}

/// The blocks, wherever they are.
struct Blocks<'b> {
    resident: Vec<Option<(BlockWeights, BlockState)>>,
    waiting: Vec<BTreeMap<String, Vec<u8>>>,
    tensors: Tensors<'b>,
}

/// The model under training.
struct ModelLearning<'x, 'a, 'b, 'g> {
    learner: &'x EndToEnd<'a, 'g>,
    c: &'x mut Commands<'g>,
    space: &'x Space,
    blocks: &'x mut Blocks<'b>,
    seen: Seen<'x, 'g>,
    minibatches: usize,
}

impl Learning for ModelLearning<'_, '_, '_, '_> {
    fn step(&mut self, step: u32) -> Result<StepReport, PruneError> {
        let stage = self.learner.run.stage;
        let minibatch = minibatch_order(stage.seed, 0, step, self.minibatches);
        let loss =
            self.learner.step(self.c, self.space, self.blocks, self.seen, stage.at(step), minibatch)?;
        Ok(StepReport { loss, temperature: stage.temperature_at(step), ..Default::default() })
    }

    fn state(&mut self) -> Result<Option<State>, PruneError> {
        Ok(Some(State { tracker: 0.0, tensors: self.learner.snapshot(self.c, self.blocks)? }))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), PruneError> {
        self.learner.restore(self.c, self.blocks, snapshot)
    }
}

/// Buffers of a step.
struct Space {
    train: TrainSpace,
    head: HeadSpace,
    head_weights: HeadWeights,
    /// Inputs of each block, and what the last one puts out, for every part of a minibatch.
    inputs: Vec<Vec<Activation>>,
    /// Gradient of the residual stream, for every part.
    d: Vec<Activation>,
    /// The output of a block that is run again.
    again: Activation,
    gradients: GradientSpace,
    sizes: Sizes,
}

impl EndToEnd<'_, '_> {
    /// Bytes of the buffers of a step of `parts` parts.
    pub(super) fn space_bytes(config: &Architecture, sizes: &Sizes, parts: usize, kl: bool) -> u64 {
        let stream = f32_bytes(config.hidden_size, 4 * sizes.layout.t4());
        let kept = (config.num_layers + 2) * parts + 1;
        TrainSpace::bytes(config, sizes) + HeadSpace::training_bytes(config, sizes, kl) + kept as u64 * stream
    }
}

impl<'g> EndToEnd<'_, 'g> {
    /// Trains.
    ///
    /// # Errors
    /// What the device or the watcher report; [`PruneError::Stopped`] when the watcher asks to stop;
    /// [`PruneError::Diverged`] for a loss that is not finite.
    pub(super) fn train_all(
        &self,
        c: &mut Commands<'g>,
        seen: Seen<'_, 'g>,
        sizes: Sizes,
        watch: &mut dyn Watch,
    ) -> Result<(), PruneError> {
        let started = Instant::now();
        let stage = self.run.stage;
        let parts = stage.parts(&sizes)?;
        let minibatches = seen.windows.count() / stage.batch;
        let space = self.space(sizes, parts)?;
        let before = self.loss(c, &space, seen, self.run.tensors, self.run.start)?;
        let mut blocks = self.blocks(c, watch)?;
        let mut learning =
            ModelLearning { learner: self, c, space: &space, blocks: &mut blocks, seen, minibatches };
        LearnLoop { block: None, steps: stage.steps }.run(&mut learning, watch)?;
        self.finish(c, &space, blocks, seen, (before, started), watch)
    }

    fn space(&self, sizes: Sizes, parts: usize) -> Result<Space, PruneError> {
        let (gpu, config) = (self.run.kernels.gpu(), self.run.config);
        let t4 = sizes.layout.t4();
        let stream = |name: &str| Activation::new(gpu, name, config.hidden_size, t4);
        let streams = |name: &str| (0..parts).map(|_| stream(name)).collect::<Result<Vec<_>, _>>();
        let kl = self.run.stage.loss == ModelLoss::Kl;
        let sums = parts > 1 || sizes.pieces().count() > 1;
        Ok(Space {
            train: TrainSpace::new(gpu, config, &sizes)?,
            head: HeadSpace::training(gpu, config, &sizes, kl)?,
            head_weights: HeadWeights::upload(gpu, self.run.dense, config)?,
            inputs: (0..=config.num_layers)
                .map(|_| streams("activations:inputs of blocks"))
                .collect::<Result<_, _>>()?,
            d: streams("activations:gradient of the residual")?,
            again: stream("activations:output")?,
            gradients: GradientSpace::new(gpu, config, sums)?,
            sizes,
        })
    }

    /// Weights and state of all blocks at the first step.
    fn blocks<'b>(&'b self, c: &mut Commands<'g>, watch: &mut dyn Watch) -> Result<Blocks<'b>, PruneError> {
        let mut out = Blocks { resident: Vec::new(), waiting: Vec::new(), tensors: self.run.tensors };
        for index in 0..self.run.config.num_layers {
            if watch.stop() {
                return Err(PruneError::Stopped);
            }
            let weights =
                BlockWeights::upload(self.run.kernels.gpu(), self.run.tensors, self.run.config, index)?;
            let state = BlockState::new(self.run, index)?;
            out.waiting.push(BTreeMap::new());
            out.resident.push(None);
            self.give(c, &mut out, index, weights, state)?;
        }
        Ok(out)
    }

    fn take(
        &self,
        c: &mut Commands<'g>,
        blocks: &mut Blocks<'_>,
        index: usize,
    ) -> Result<(BlockWeights, BlockState), PruneError> {
        if let Some(found) = blocks.resident[index].take() {
            return Ok(found);
        }
        let weights = BlockWeights::upload(self.run.kernels.gpu(), blocks.tensors, self.run.config, index)?;
        let state = BlockState::new(self.run, index)?;
        state.restore(c, &blocks.waiting[index])?;
        Ok((weights, state))
    }

    fn give(
        &self,
        c: &mut Commands<'g>,
        blocks: &mut Blocks<'_>,
        index: usize,
        weights: BlockWeights,
        state: BlockState,
    ) -> Result<(), PruneError> {
        match self.run.residency {
            Residency::Resident => blocks.resident[index] = Some((weights, state)),
            Residency::Streamed => blocks.waiting[index] = state.snapshot(c)?,
        }
        Ok(())
    }

    fn snapshot(
        &self,
        c: &mut Commands<'g>,
        blocks: &mut Blocks<'_>,
    ) -> Result<BTreeMap<String, Vec<u8>>, PruneError> {
        let mut out = BTreeMap::new();
        for (block, waiting) in blocks.resident.iter().zip(&blocks.waiting) {
            match block {
                Some((_, state)) => out.extend(state.snapshot(c)?),
                None => out.extend(waiting.clone()),
            }
        }
        Ok(out)
    }

    fn restore(
        &self,
        c: &mut Commands<'g>,
        blocks: &mut Blocks<'_>,
        snapshot: &Snapshot,
    ) -> Result<(), PruneError> {
        for (block, waiting) in blocks.resident.iter().zip(&mut blocks.waiting) {
            if let Some((_, state)) = block {
                state.restore(c, &snapshot.tensors)?;
                continue;
            }
            for (name, data) in waiting {
                match snapshot.tensors.get(name) {
                    Some(kept) if kept.len() == data.len() => data.clone_from(kept),
                    _ => return Err(PruneError::Snapshot { tensor: name.clone() }),
                }
            }
        }
        Ok(())
    }

    /// The parts of a minibatch.
    fn parts(&self, space: &Space, windows: &Windows, minibatch: usize) -> Vec<Batch> {
        let layout = space.sizes.layout;
        let tokens = layout.windows * layout.length;
        let all = self.run.stage.batch * layout.length;
        let ids = &windows.tokens()[minibatch * all..(minibatch + 1) * all];
        ids.chunks_exact(tokens).map(|ids| Batch { ids: ids.to_vec(), layout }).collect()
    }

    fn rows<'a>(&self, of: &'a Activation, layout: Layout) -> Result<Rows<'a>, PruneError> {
        Ok(of.rows(0, self.run.config.hidden_size, layout.t4())?)
    }

    fn embed(&self, c: &mut Commands<'g>, space: &Space, batches: &[Batch]) -> Result<(), PruneError> {
        for (part, batch) in batches.iter().enumerate() {
            let x = self.embedding.gather(&batch.ids, batch.layout)?;
            c.write(space.inputs[0][part].buffer(), 0, &x)?;
        }
        Ok(())
    }

    /// Loss of a part, its gradient by the residual stream in `space.d`.
    fn head(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        batch: &Batch,
        part: (usize, usize),
        dense: Option<&Activations<'g>>,
        scale: f32,
    ) -> Result<f64, PruneError> {
        let (number, in_all) = part;
        let x = self.rows(&space.inputs[self.run.config.num_layers][number], batch.layout)?;
        let d = self.rows(&space.d[number], batch.layout)?;
        let head = HeadPass {
            kernels: self.run.kernels,
            config: self.run.config,
            weights: &space.head_weights,
            ws: &space.head,
        };
        let again = self.rows(&space.again, batch.layout)?;
        let loss = match dense {
            Some(dense) => HeadLoss::Kl { dense: dense.batch(c, in_all)?.x },
            None => HeadLoss::CrossEntropy,
        };
        let losses = head.gradient(c, batch, x, again, d, (loss, scale))?;
        Ok(losses.mean())
    }

    /// A step on a minibatch; its loss before it.
    fn step(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        blocks: &mut Blocks<'_>,
        seen: Seen<'_, 'g>,
        at: At,
        minibatch: usize,
    ) -> Result<f64, PruneError> {
        let (layers, stage) = (self.run.config.num_layers, self.run.stage);
        let batches = self.parts(space, seen.windows, minibatch);
        self.embed(c, space, &batches)?;
        for index in 0..layers {
            let (weights, state) = self.take(c, blocks, index)?;
            let linears = state.linears(stage, &at, &weights);
            for (part, batch) in batches.iter().enumerate() {
                let x = self.rows(&space.inputs[index][part], batch.layout)?;
                let y = self.rows(&space.inputs[index + 1][part], batch.layout)?;
                self.run.pass(&space.train, &weights, batch.layout, linears).forward(c, x, y)?;
            }
            // Nothing changed: what waits in host memory is still right.
            if self.run.residency == Residency::Resident {
                self.give(c, blocks, index, weights, state)?;
            }
        }
        let mut loss = 0.0;
        let predicted = batches.iter().map(|b| b.layout.windows * (b.layout.length - 1)).sum::<usize>();
        for (part, batch) in batches.iter().enumerate() {
            let number = minibatch * batches.len() + part;
            let scale = 1.0 / predicted as f32;
            loss += self.head(c, space, batch, (part, number), seen.dense, scale)? / batches.len() as f64;
        }
        for index in (0..layers).rev() {
            let (weights, state) = self.take(c, blocks, index)?;
            let linears = state.linears(stage, &at, &weights);
            let mut stepper = Stepper {
                kernels: self.run.kernels,
                stage,
                at,
                weights: &weights,
                state: &state,
                space: &space.gradients,
                first: true,
            };
            for (part, batch) in batches.iter().enumerate() {
                let pass = self.run.pass(&space.train, &weights, batch.layout, linears);
                let x = self.rows(&space.inputs[index][part], batch.layout)?;
                // The last block's only part is still there.
                if index + 1 < layers || batches.len() > 1 {
                    pass.forward(c, x, self.rows(&space.again, batch.layout)?)?;
                }
                let d = self.rows(&space.d[part], batch.layout)?;
                pass.backward(c, x, d, index > 0, &mut stepper)?;
                stepper.first = false;
            }
            stepper.finish(c)?;
            self.give(c, blocks, index, weights, state)?;
        }
        c.submit()?;
        Ok(loss)
    }

    /// Mean loss over the windows that are measured, with the weights of `tensors` under `masks`.
    fn loss(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        seen: Seen<'_, 'g>,
        tensors: Tensors<'_>,
        masks: &MaskSet,
    ) -> Result<f64, PruneError> {
        let gpu = self.run.kernels.gpu();
        let minibatches =
            (seen.windows.count() / self.run.stage.batch).min(MEASURED.div_ceil(self.run.stage.batch));
        let load = |index: usize| -> Result<_, PruneError> {
            let weights = BlockWeights::upload(gpu, tensors, self.run.config, index)?;
            let buffers = self.run.mask_buffers(index, |name| masks.get(name))?;
            Ok((weights, buffers))
        };
        let resident = self.run.residency == Residency::Resident;
        let all =
            (0..self.run.config.num_layers).filter(|_| resident).map(load).collect::<Result<Vec<_>, _>>()?;
        let mut sum = 0.0;
        for minibatch in 0..minibatches {
            let batches = self.parts(space, seen.windows, minibatch);
            self.embed(c, space, &batches)?;
            for index in 0..self.run.config.num_layers {
                let loaded = if resident { None } else { Some(load(index)?) };
                let Some((weights, buffers)) = loaded.as_ref().or(all.get(index)) else {
                    continue;
                };
                let linears = weights.train_linears(|kind| Masking::from(buffers[kind as usize].as_ref()));
                for (part, batch) in batches.iter().enumerate() {
                    let x = self.rows(&space.inputs[index][part], batch.layout)?;
                    let y = self.rows(&space.inputs[index + 1][part], batch.layout)?;
                    self.run.pass(&space.train, weights, batch.layout, linears).forward(c, x, y)?;
                }
            }
            for (part, batch) in batches.iter().enumerate() {
                let number = minibatch * batches.len() + part;
                sum += self.head(c, space, batch, (part, number), seen.dense, 0.0)? / batches.len() as f64;
            }
        }
        Ok(sum / minibatches as f64)
    }

    /// Masks and weights that training has come to, unless those of the start are better, whose loss was `before`.
    fn finish(
        &self,
        c: &mut Commands<'g>,
        space: &Space,
        mut blocks: Blocks<'_>,
        seen: Seen<'_, 'g>,
        (before, started): (f64, Instant),
        watch: &mut dyn Watch,
    ) -> Result<(), PruneError> {
        let stage = self.run.stage;
        let mut set = self.run.start.clone();
        let mut fitted = BTreeMap::new();
        for index in 0..self.run.config.num_layers {
            let (_, state) = self.take(c, &mut blocks, index)?;
            set.masks.extend(state.masks(c, stage)?);
            fitted.extend(state.weights(c, stage, self.run.dense, &set)?);
        }
        let tensors = Fitted { base: self.run.tensors, weights: &fitted };
        let after = self.loss(c, space, seen, &tensors, &set)?;
        let kept = after.is_finite() && after <= before;
        let changed = |masks: &BTreeMap<String, BitMask>| -> u64 {
            let pairs = masks.iter().filter_map(|(name, mask)| Some((mask, self.run.start.get(name)?)));
            pairs.map(|(mask, start)| mask.groups_changed(start, stage.pattern)).sum()
        };
        let learned = Learned {
            block: None,
            start: before,
            error: after,
            kept,
            skipped: false,
            groups_changed: changed(&set.masks),
            seconds: started.elapsed().as_secs_f64(),
        };
        for index in 0..self.run.config.num_layers {
            let mut result = BlockResult { block: index, ..Default::default() };
            result.learned = (index == 0).then(|| learned.clone());
            for Projection { name, .. } in self.run.config.block_projections(index) {
                let masks = if kept { &set } else { self.run.start };
                if let Some(mask) = masks.get(&name) {
                    result.masks.insert(name.clone(), mask.clone());
                }
                if let Some(weights) = fitted.get(&name).filter(|_| kept) {
                    result.weights.insert(name, weights.clone());
                }
            }
            watch.block(result)?;
        }
        Ok(())
    }
}
