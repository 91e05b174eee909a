//! What a stage takes: memory of device and host, item by item, and operations.

use std::collections::BTreeMap;

use super::endtoend::EndToEnd;
use super::sink::GradientSpace;
use super::state::BlockState;
use super::walk::Blockwise;
use super::{ModelLoss, Objective, Residency, Stage, TokenWeights, Trains};
use crate::gpu::{PARAMS_BYTES, READ_PIECE};
use crate::kernel::{Kernels, MaskBuffer, Weight, f32_bytes};
use crate::model::{Architecture, Dtype, ModelError};
use crate::nn::{Activations, BlockWeights, HeadWeights, Keep, Place, PlanItem, Sizes};
use crate::prune::cost::forward_flops;
use crate::prune::{PruneError, Selection};

/// What a plan depends on beside the stage.
pub struct Planned<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Architecture,
    /// Stored types by tensor name.
    pub dtype: &'a dyn Fn(&str) -> Result<Dtype, ModelError>,
    /// What is pruned.
    pub selection: &'a Selection,
    /// Sizes of a batch.
    pub sizes: &'a Sizes,
    /// Windows in all.
    pub windows: usize,
    /// Where residual streams of all windows are kept.
    pub place: Place,
    /// Where blocks wait while others train on the model's loss.
    pub residency: Residency,
}

impl Planned<'_, '_> {
    /// Device memory of a stage at its peak.
    ///
    /// # Errors
    /// Those of `dtype`, or a minibatch that does not divide.
    pub fn memory(&self, stage: &Stage) -> Result<Vec<PlanItem>, PruneError> {
        let (gpu, config, sizes) = (self.kernels.gpu(), self.config, self.sizes);
        let parts = stage.parts(sizes)?;
        let sums = parts > 1 || sizes.pieces().count() > 1;
        let mut items: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut put = |item, bytes| *items.entry(item).or_default() += bytes;
        let resident = stage.objective == Objective::Model && self.residency == Residency::Resident;
        // State and weights: of all blocks, or of the one that takes most.
        let mut most: (u64, Vec<(&'static str, u64)>) = (0, Vec::new());
        for index in 0..config.num_layers {
            let mut of_block = BlockState::bytes(stage, config, index, self.selection);
            *of_block.entry("weights").or_default() += BlockWeights::bytes(config, index, self.dtype)?;
            let all: u64 = of_block.values().sum();
            if resident {
                of_block.into_iter().for_each(|(item, bytes)| put(item, bytes));
            } else if all > most.0 {
                most = (all, of_block.into_iter().collect());
            }
        }
        most.1.into_iter().for_each(|(item, bytes)| put(item, bytes));
        let stream =
            |count: u64| count * Activations::bytes(sizes, self.windows, self.place, Keep::Residual).0;
        let copies = Activations::staging_bytes(sizes, self.windows, self.place, Keep::Residual);
        let kl = stage.loss == ModelLoss::Kl;
        match stage.objective {
            Objective::Model => {
                put("activations", EndToEnd::space_bytes(config, sizes, parts, kl));
                put("activations", if kl { stream(1) } else { 0 });
                put("weights", HeadWeights::bytes_as(config, self.dtype)?);
            }
            Objective::Block | Objective::Layer => {
                put("activations", Blockwise::space_bytes(config, sizes) + stream(2));
                if stage.tokens != TokenWeights::Even {
                    put("activations", f32_bytes(self.windows / sizes.layout.windows, 4 * sizes.layout.t4()));
                }
            }
        }
        put("gradients", GradientSpace::bytes(gpu, config, sums));
        let mut scratch = 0;
        let mut read = f32_bytes(1, 4 * sizes.layout.t4());
        for p in self.selection.projections() {
            let dtype = (self.dtype)(&p.name)?;
            let masked = self.kernels.scratch_bytes(Weight::device_bytes(p.rows, p.cols, dtype));
            scratch = scratch.max(masked).max(self.kernels.panel_bytes(p.rows, p.cols));
            read = read.max(f32_bytes(p.rows, p.cols));
        }
        if stage.objective == Objective::Model {
            scratch = scratch.max(self.kernels.panel_bytes(config.vocab_size, config.hidden_size));
        }
        put("scratch", scratch);
        put("staging", PARAMS_BYTES + read.min(READ_PIECE) + copies);
        Ok(items.into_iter().map(|(item, bytes)| PlanItem::new(item, bytes)).collect())
    }

    /// Host memory, without the mapped files of the model: residual streams, the state of blocks that wait, tokens, masks at the
    /// start and at the end.
    pub fn host(&self, stage: &Stage) -> Vec<PlanItem> {
        let config = self.config;
        let streams = match stage.objective {
            Objective::Model => u64::from(stage.loss == ModelLoss::Kl),
            Objective::Block | Objective::Layer => 2,
        };
        let (_, stream) = Activations::bytes(self.sizes, self.windows, self.place, Keep::Residual);
        let mut items: BTreeMap<&'static str, u64> = BTreeMap::new();
        items.insert("activations", streams * stream);
        items.insert("tokens", 4 * (self.windows * self.sizes.layout.length) as u64);
        let masks: u64 =
            self.selection.projections().iter().map(|p| MaskBuffer::device_bytes(p.rows, p.cols)).sum();
        items.insert("masks", 2 * masks);
        if stage.objective == Objective::Model && self.residency == Residency::Streamed {
            for index in 0..config.num_layers {
                for (item, bytes) in BlockState::bytes(stage, config, index, self.selection) {
                    *items.entry(item).or_default() += if item == "masks" { 0 } else { bytes };
                }
            }
        }
        items.retain(|_, bytes| *bytes > 0);
        items.into_iter().map(|(item, bytes)| PlanItem::new(item, bytes)).collect()
    }

    /// Operations of a stage, products and attention: a backward pass counts as two forward passes (each product has two, by its input
    /// and by its weights), and the errors and the passes that feed the blocks over all windows are counted in.
    pub fn flops(&self, stage: &Stage) -> f64 {
        let (config, window) = (self.config, self.sizes.layout.length);
        let blocks = |windows: usize| -> f64 {
            (0..config.num_layers).map(|block| forward_flops(config, block, windows, window)).sum()
        };
        let (step, all, steps) = (blocks(stage.batch), blocks(self.windows), f64::from(stage.steps));
        match stage.objective {
            Objective::Model => {
                // The logits twice and the gradient by the head's input; the dense model's logits twice (`nn/head_backward.rs`).
                let kl = stage.loss == ModelLoss::Kl;
                let products = if kl { 5.0 } else { 3.0 };
                let head = |windows: usize| {
                    products
                        * 2.0
                        * (config.vocab_size * config.hidden_size) as f64
                        * (windows * window) as f64
                };
                // Blocks run forwards twice; the error at the start and at the end; the dense model's output.
                steps * (4.0 * step + head(stage.batch))
                    + 2.0 * (all + head(self.windows))
                    + if kl { all } else { 0.0 }
            }
            Objective::Block | Objective::Layer => {
                let passes = if stage.trains == Trains::MaskPro { 1.0 } else { 3.0 };
                // Both streams advance; the error at the start and at the end.
                steps * passes * step + 4.0 * all
            }
        }
    }
}
