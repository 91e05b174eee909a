//! What evaluation and generation take: memory of device and host, item by item, before anything is allocated.

use super::Streamed;
use crate::gpu::{PARAMS_BYTES, READ_PIECE};
use crate::kernel::{Kernels, Layout, VOCAB_STATE, Weight, f32_bytes};
use crate::model::{Architecture, Checkpoint, Projection};
use crate::nn::{
    Activations, BlockSpace, BlockWeights, DecoderWeights, Generator, HeadSpace, HeadWeights, Keep, MaskBank,
    MemoryPlan, NnError, Place, PlanItem, Sizes, total,
};

/// Bytes of the buffers for what is read back at once, `bytes` at most, and for parameters.
fn staging(bytes: u64) -> PlanItem {
    PlanItem::new("staging", PARAMS_BYTES + bytes.min(READ_PIECE))
}

/// Bytes that the losses of a batch take on their way to the host.
fn state_bytes(sizes: &Sizes) -> u64 {
    f32_bytes(VOCAB_STATE, 4 * sizes.layout.t4())
}

/// A model with all its blocks on the device, with masks of the projections `masked`.
fn decoder(
    kernels: &Kernels<'_>,
    checkpoint: &Checkpoint,
    config: &Architecture,
    masked: &[Projection],
) -> Result<Vec<PlanItem>, NnError> {
    let largest = if masked.is_empty() { 0 } else { DecoderWeights::largest_projection(checkpoint, config)? };
    Ok(vec![
        DecoderWeights::plan(checkpoint, config)?,
        MaskBank::plan(masked),
        PlanItem::new("scratch", kernels.scratch_bytes(largest)),
    ])
}

/// What measuring `tokens` tokens takes in batches of `sizes`, of which there may be several, with all blocks on the device.
///
/// # Errors
/// A tensor that the checkpoint lacks.
pub fn resident(
    kernels: &Kernels<'_>,
    checkpoint: &Checkpoint,
    config: &Architecture,
    masked: &[Projection],
    sizes: &[Sizes],
    tokens: usize,
) -> Result<MemoryPlan, NnError> {
    let mut gpu = decoder(kernels, checkpoint, config, masked)?;
    let largest = sizes.iter().max_by_key(|sizes| sizes.plan(config).bytes);
    gpu.extend(largest.map(|sizes| sizes.plan(config)));
    gpu.push(staging(sizes.iter().map(state_bytes).max().unwrap_or(0)));
    // Ids, and losses in f64.
    let host = vec![PlanItem::new("tokens", 12 * tokens as u64)];
    Ok(MemoryPlan { gpu, host })
}

/// What writing `sequences` texts of `prompt` tokens and up to `tokens` more at once takes.
///
/// # Errors
/// A tensor that the checkpoint lacks.
pub fn generation(
    kernels: &Kernels<'_>,
    checkpoint: &Checkpoint,
    config: &Architecture,
    masked: &[Projection],
    (sequences, prompt, tokens): (usize, usize, usize),
) -> Result<MemoryPlan, NnError> {
    let limits = kernels.limits();
    let sizes = |windows, length| Sizes::new(config, Layout { windows, length }, limits);
    // The workspace of a step is there while the prompt passes.
    let (step, whole) = (sizes(1, sequences), sizes(sequences, prompt));
    let mut gpu = decoder(kernels, checkpoint, config, masked)?;
    gpu.push(Generator::plan(config, sequences, prompt + tokens.saturating_sub(1)));
    gpu.push(PlanItem::new("activations", step.plan(config).bytes + whole.plan(config).bytes));
    let chunk = f32_bytes(step.vocab_rows, 4 * step.layout.t4());
    gpu.push(staging(chunk));
    let logits = f32_bytes(sequences, config.vocab_size) + chunk;
    Ok(MemoryPlan { gpu, host: vec![PlanItem::new("logits", logits)] })
}

impl Streamed<'_, '_> {
    /// What [`Streamed::streams`] of `dense` and [`Streamed::compare`] of this model with them take on `windows` windows of `window` tokens, with masks of the
    /// projections `masked`.
    ///
    /// # Errors
    /// A tensor that one of the models lacks.
    pub fn plan(
        &self,
        dense: &Self,
        masked: &[Projection],
        (windows, window): (usize, usize),
    ) -> Result<MemoryPlan, NnError> {
        let own = self.sizes_of(windows, window, usize::MAX);
        let first = dense.sizes_of(windows, window, own.layout.windows);
        let second = self.sizes_of(windows, window, first.layout.windows);
        let tokens = windows * window;
        let mut plan = dense.blocks_plan(&[], &first, windows)?;
        // The streams of the dense model stay while the other is run; then ids and losses of both.
        let mut blocks = self.blocks_plan(masked, &second, windows)?;
        let streams = f32_bytes(dense.config.hidden_size, windows * 4 * second.layout.window4());
        blocks.host.push(PlanItem::new("dense streams", streams));
        blocks.host.push(PlanItem::new("tokens", 4 * tokens as u64 + 40 * tokens as u64));
        let mut head = self.carried(&second, windows);
        let heads = match self.same_head(dense)? {
            true => vec![self],
            false => vec![self, dense],
        };
        let mut weights = 0;
        for model in heads {
            let dtype = |name: &str| Ok(model.tensors.tensor(name)?.dtype);
            weights += HeadWeights::bytes_as(model.config, &dtype)?;
        }
        let hidden = dense.config.hidden_size;
        let space = HeadSpace::comparing_bytes(hidden, &second) + f32_bytes(hidden, 4 * second.layout.t4());
        head.extend([PlanItem::new("weights", weights), PlanItem::new("activations", space)]);
        head.push(staging(state_bytes(&second)));
        plan = plan.or(blocks);
        if total(&head) > total(&plan.gpu) {
            plan.gpu = head;
        }
        Ok(plan)
    }

    /// What lies on the device as long as the windows are carried.
    fn carried(&self, sizes: &Sizes, windows: usize) -> Vec<PlanItem> {
        let batches = Activations::bytes(sizes, windows, Place::Host, Keep::Inputs).0;
        vec![PlanItem::new("activations", batches + BlockSpace::bytes(self.config, sizes))]
    }

    /// What the walk over the blocks takes.
    fn blocks_plan(
        &self,
        masked: &[Projection],
        sizes: &Sizes,
        windows: usize,
    ) -> Result<MemoryPlan, NnError> {
        let dtype = |name: &str| Ok(self.tensors.tensor(name)?.dtype);
        let mut worst = (0, 0, 0);
        for block in 0..self.config.num_layers {
            let weights = BlockWeights::bytes(self.config, block, dtype)?;
            let own: Vec<Projection> = masked.iter().filter(|p| p.block == block).cloned().collect();
            let mut largest = 0;
            for p in &own {
                largest = largest.max(Weight::device_bytes(p.rows, p.cols, dtype(&p.name)?));
            }
            let found = (weights, MaskBank::plan(&own).bytes, self.kernels.scratch_bytes(largest));
            if found.0 + found.1 + found.2 > worst.0 + worst.1 + worst.2 {
                worst = found;
            }
        }
        let mut gpu = self.carried(sizes, windows);
        // Only residual streams come back.
        let copies = Activations::staging_bytes(sizes, windows, Place::Host, Keep::Residual);
        gpu.extend([
            PlanItem::new("weights", worst.0),
            PlanItem::new("masks", worst.1),
            PlanItem::new("scratch", worst.2),
            PlanItem::new("staging", PARAMS_BYTES + copies),
        ]);
        let host = Activations::bytes(sizes, windows, Place::Host, Keep::Residual).1;
        Ok(MemoryPlan { gpu, host: vec![PlanItem::new("activations", host)] })
    }
}
