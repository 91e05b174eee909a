//! Layer-by-layer pruning: the blocks in order, one of them on the device at a time.
//!
//! A block is walked in four steps, one for each distinct input of its projections: q k v, o, gate and up, down. A step brings the
//! activations of all windows to that input and adds up its Gram matrix on the way; then the projections that read it are
//! pruned; the next step computes with their masks (`--inputs pruned`) or without (`dense`). Nothing is computed twice but the
//! norm before attention: a step goes on from what the step before has kept.

use std::collections::BTreeMap;

use super::oneshot::{Input, Inputs, OneShotOptions};
use super::solver::Solver;
use super::stored::stored;
use super::{BlockResult, PruneError, Selection, Watch};
use crate::gpu::Commands;
use crate::kernel::{Kernels, MaskBuffer, Square};
use crate::mask::{BitMask, MaskSet};
use crate::model::{Architecture, Overlay, Projection, ProjectionKind, TensorView};
use crate::nn::{Access, Activations, BatchView, BlockPass, BlockSpace, BlockWeights, NnError};

/// A walk over the blocks.
pub struct Schedule<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Architecture,
    /// The model's weights, with those of finished blocks that were re-fitted.
    pub tensors: &'a Overlay<'a>,
    /// What is pruned.
    pub selection: &'a Selection,
    /// How.
    pub options: &'a OneShotOptions,
    /// Masks that are started from, where they come from a file.
    pub starts: Option<&'a MaskSet>,
}

/// A block under way.
struct Current {
    index: usize,
    weights: BlockWeights,
    masks: [Option<MaskBuffer>; ProjectionKind::ALL.len()],
    /// Windows that went through a step, or projections done, of all in the block.
    done: usize,
    total: usize,
}

impl<'g> Schedule<'_, 'g> {
    /// Prunes the blocks from `finished.len()` on; the first ones only pass their inputs on, under the masks in `finished`.
    /// Without activations only a method that needs no inputs works.
    ///
    /// # Errors
    /// What the device or the watcher report; [`PruneError::Stopped`] when the watcher asks to stop.
    pub fn run(
        &self,
        c: &mut Commands<'g>,
        mut activations: Option<Activations<'g>>,
        finished: &[BTreeMap<String, BitMask>],
        watch: &mut dyn Watch,
    ) -> Result<(), PruneError> {
        let gpu = self.kernels.gpu();
        let space = match &activations {
            Some(a) => Some(BlockSpace::new(gpu, self.config, a.sizes())?),
            None => None,
        };
        for index in 0..self.config.num_layers {
            // Without activations a finished block has nothing to pass on.
            if activations.is_none() && index < finished.len() {
                continue;
            }
            let mut current = self.start(index, index < finished.len(), activations.as_ref())?;
            let mut result = BlockResult { block: index, ..Default::default() };
            if let Some(masks) = finished.get(index) {
                self.take_masks(&mut current, masks)?;
            }
            let solve = finished.get(index).is_none();
            for (at, input) in Input::ALL.into_iter().enumerate() {
                let pruned = self.projections(index, input, solve);
                let h = match (&mut activations, &space) {
                    (Some(a), Some(space)) => {
                        self.advance(c, a, space, &mut current, Some((input, !pruned.is_empty())), watch)?
                    }
                    _ => None,
                };
                if !pruned.is_empty() {
                    result.squared_norms[at] =
                        self.prune(c, &mut current, &pruned, h.as_ref(), &mut result, watch)?;
                }
            }
            // Nobody reads what the last block puts out.
            if let (Some(a), Some(space)) = (&mut activations, &space)
                && index + 1 < self.config.num_layers
            {
                self.advance(c, a, space, &mut current, None, watch)?;
            }
            if solve {
                watch.block(result)?;
            }
        }
        Ok(())
    }

    /// Brings a block to the device. Where inputs are not to see what pruning did, a finished one is the dense model's.
    fn start(
        &self,
        index: usize,
        finished: bool,
        activations: Option<&Activations<'_>>,
    ) -> Result<Current, PruneError> {
        let gpu = self.kernels.gpu();
        let weights = if finished && self.options.inputs == Inputs::Dense {
            BlockWeights::upload(gpu, self.tensors.base(), self.config, index)?
        } else {
            BlockWeights::upload(gpu, self.tensors, self.config, index)?
        };
        let batches = activations.map_or(0, Activations::batches);
        let total = (Input::ALL.len() + 1) * batches + self.config.kinds_count();
        Ok(Current { index, weights, masks: Default::default(), done: 0, total })
    }

    /// The masks of a finished block, unless its weights have them in them or its inputs are not to see them.
    fn take_masks(&self, current: &mut Current, masks: &BTreeMap<String, BitMask>) -> Result<(), PruneError> {
        for Projection { name, kind, .. } in self.config.block_projections(current.index) {
            if let Some(mask) = masks.get(&name)
                && self.options.inputs == Inputs::Pruned
                && !self.tensors.replaces(&name)
            {
                let label = format!("masks:{name}");
                current.masks[kind as usize] = Some(MaskBuffer::upload(self.kernels.gpu(), &label, mask)?);
            }
        }
        Ok(())
    }

    /// The projections of an input that are pruned, with their numbers in the model.
    fn projections(&self, block: usize, input: Input, solve: bool) -> Vec<(usize, &Projection)> {
        let of_input = self
            .selection
            .pruned
            .iter()
            .map(|(number, p)| (*number, p))
            .filter(|(_, p)| p.block == block && Input::of(p.kind) == input);
        if solve { of_input.collect() } else { Vec::new() }
    }

    /// Brings all windows to `input` of a block (`None`: to its end); returns the input's Gram matrix where it is wanted.
    fn advance(
        &self,
        c: &mut Commands<'g>,
        activations: &mut Activations<'g>,
        space: &BlockSpace,
        current: &mut Current,
        input: Option<(Input, bool)>,
        watch: &mut dyn Watch,
    ) -> Result<Option<Square>, PruneError> {
        let (input, wanted) = (input.map(|(input, _)| input), input.is_some_and(|(_, wanted)| wanted));
        let (gpu, config) = (self.kernels.gpu(), self.config);
        let sizes = activations.sizes().clone();
        let gram = match input.filter(|_| wanted) {
            Some(input) => {
                let n = input.width(config);
                let scratch = self.kernels.gram_scratch(n, 4 * sizes.layout.t4())?;
                Some((Square::new(gpu, "statistics:gram", n)?, scratch))
            }
            None => None,
        };
        if input == Some(Input::Attention) && gram.is_none() {
            // It changes nothing, and nobody asks for it.
            current.done += activations.batches();
            return Ok(None);
        }
        let Current { index, weights, masks, done, total } = current;
        let masks = std::array::from_fn(|i| masks[i].as_ref());
        activations.each(c, access(input, sizes.parallel()), |c, batch: &BatchView<'_>| {
            if watch.stop() {
                return Err(PruneError::Stopped);
            }
            let layout = batch.layout;
            let pass = BlockPass { kernels: self.kernels, config, ws: space, layout, block: weights, masks };
            let mut rows = Vec::new();
            match input {
                Some(Input::Attention) => rows.push(pass.attention_input(c, batch.x)?),
                Some(Input::AttentionOutput) => {
                    let normed = pass.attention_input(c, batch.x)?;
                    let attended = batch.kept(config.query_rows())?;
                    pass.attend(c, normed, attended)?;
                    rows.push(attended);
                }
                Some(Input::FeedForward) => {
                    let (attended, branch) = (batch.kept(config.query_rows())?, batch.branch(&sizes)?);
                    pass.attention_output(c, attended, batch.x, branch)?;
                    if gram.is_some() {
                        rows.push(pass.feed_forward_input(c, batch.x)?);
                    }
                }
                Some(Input::Down) => {
                    let normed = pass.feed_forward_input(c, batch.x)?;
                    for (first, piece) in batch.pieces(&sizes)? {
                        pass.inner(c, normed, first, piece)?;
                        rows.push(piece);
                    }
                }
                None => {
                    for (first, piece) in batch.pieces(&sizes)? {
                        pass.down(c, piece, first, batch.x)?;
                    }
                    pass.join(c, batch.branch(&sizes)?, batch.x)?;
                }
            }
            if let Some((h, scratch)) = &gram {
                self.kernels.gram(c, &rows, layout, scratch, h).map_err(NnError::from)?;
            }
            *done += 1;
            watch.part(*index, *done, *total);
            Ok::<(), PruneError>(())
        })?;
        let Some((h, _)) = gram else {
            return Ok(None);
        };
        self.kernels.mirror(c, &h)?;
        Ok(Some(h))
    }

    /// Prunes the projections of one input; returns the squared norms of its features.
    fn prune(
        &self,
        c: &mut Commands<'g>,
        current: &mut Current,
        pruned: &[(usize, &Projection)],
        h: Option<&Square>,
        result: &mut BlockResult,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<f32>>, PruneError> {
        let rows = pruned.iter().map(|(_, p)| p.rows).max().unwrap_or(0);
        let cols = pruned.first().map_or(0, |(_, p)| p.cols);
        let solver = Solver::new(self.kernels, c, self.options, h, rows, cols)?;
        for (number, p) in pruned {
            if watch.stop() {
                return Err(PruneError::Stopped);
            }
            let linear = current.weights.linears[p.kind as usize].as_mut();
            let linear = linear.ok_or(NnError::NoProjection { kind: p.kind })?;
            let start = self.starts.and_then(|s| s.get(&p.name));
            let solved = solver.solve(c, &p.name, *number, &linear.weight, start)?;
            current.done += 1;
            watch.part(current.index, current.done, current.total);
            watch.projection(&solved.report);
            let pass_on = self.options.inputs == Inputs::Pruned;
            if let Some(weights) = &solved.weights {
                // As they are stored, which may be wider than on the device.
                let dtype = self.tensors.tensor(&p.name)?.dtype;
                let shape = [p.rows, p.cols];
                let bytes = stored(&p.name, dtype, shape, weights, self.options.clamp)?;
                if pass_on {
                    let view = TensorView { name: &p.name, dtype, shape: &shape, data: &bytes };
                    linear.weight.overwrite(c, &view)?;
                }
                result.weights.insert(p.name.clone(), bytes);
            } else if pass_on {
                current.masks[p.kind as usize] = Some(solved.mask);
            }
            result.masks.insert(p.name.clone(), solved.bits);
            result.reports.push(solved.report);
        }
        solver.squared_norms(c)
    }
}

/// What a step does with the tensors of a batch. Where both parts of a block read its input, what the attention adds is kept until the
/// block's end.
fn access(input: Option<Input>, parallel: bool) -> Access {
    let none = Access::default();
    match input {
        Some(Input::Attention) => Access { load_x: true, ..none },
        Some(Input::AttentionOutput) => Access { load_x: true, save_kept: true, ..none },
        Some(Input::FeedForward) => {
            Access { load_x: true, save_x: !parallel, load_kept: true, save_kept: parallel }
        }
        Some(Input::Down) => Access { load_x: true, load_kept: parallel, save_kept: true, ..none },
        None => Access { load_x: true, save_x: true, load_kept: true, ..none },
    }
}
