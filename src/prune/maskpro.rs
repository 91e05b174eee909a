//! MaskPro (Sun et al., arXiv 2506.12876): one logit per weight, masks drawn by N draws without replacement from the softmax
//! of each group, and a policy gradient on the loss of the whole model. Only forward passes.
//!
//! Step t draws a mask m_t, measures the mean loss f(m_t) on minibatch b and moves every logit by
//!     -rate * advantage * d log P(m_t) / d logit
//! where the advantage is, by estimator:
//!     loss       f(m_t)
//!     residual   f(m_t) - f(m_0)                 f(m_0): the start mask's loss on the same minibatch, measured once
//!     tracked    residual - delta                delta <- alpha delta + (1 - alpha) residual, updated before use
//! The order of the tracker's update, the constant rate, the fixed minibatches in fixed order and the logits
//! `scale * start mask` are those of the released code.

use std::collections::BTreeMap;
use std::time::Instant;

use super::learn::Learning;
use super::{PruneError, Selection, StepReport};
use crate::calib::Windows;
use crate::gpu::{Buffer, Commands, Limits, PARAMS_BYTES, READ_PIECE};
use crate::kernel::{Layout, MaskBuffer, SampleAt, VOCAB_STATE, f32_bytes};
use crate::mask::soft::top_of;
use crate::mask::{BitMask, MaskSet, Pattern};
use crate::model::{Architecture, Checkpoint, Projection};
use crate::nn::{Batch, Decoder, DecoderWeights, MaskBank, PlanItem, Sizes, Workspace};

/// Which advantage the policy gradient uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Estimator {
    /// The loss itself (vanilla policy gradient).
    Loss,
    /// The loss minus the start mask's loss on the same minibatch.
    Residual,
    /// The residual minus its moving average.
    Tracked,
}

/// Options of a MaskPro run. The defaults are those of the released code.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Options {
    /// Keep N of M.
    pub pattern: Pattern,
    /// Which advantage.
    pub estimator: Estimator,
    /// Steps.
    pub steps: u32,
    /// Learning rate.
    pub rate: f32,
    /// Logits start at `scale` times the start mask (or within `+-scale / 2` around its score's boundary).
    pub scale: f32,
    /// Start logits from the score behind the start mask: `sharpness * ln(score / boundary)`; `None` = from the mask alone, as in
    /// the released code.
    pub sharpness: Option<f32>,
    /// Windows of a minibatch.
    pub batch: usize,
    /// Smoothing of the tracker.
    pub alpha: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// What one step did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Step {
    /// Number of the step, from 1.
    pub step: u32,
    /// Mean loss under the drawn mask, nats per token.
    pub loss: f64,
    /// The same minus the start mask's loss on the minibatch.
    pub residual: f64,
    /// The tracker after its update.
    pub tracker: f64,
    /// What multiplied the score.
    pub advantage: f64,
}

/// Memory of a run, item by item.
///
/// # Errors
/// A tensor that the checkpoint lacks.
pub fn plan(
    checkpoint: &Checkpoint,
    config: &Architecture,
    selection: &Selection,
    sizes: &Sizes,
    scratch: u64,
) -> Result<Vec<PlanItem>, PruneError> {
    let logits = |p: &Projection| f32_bytes(p.rows, p.cols).next_multiple_of(16);
    let pruned = selection.projections();
    let largest = pruned.iter().map(logits).max().unwrap_or(0);
    let read = largest.max(f32_bytes(VOCAB_STATE, 4 * sizes.layout.t4())).min(READ_PIECE);
    Ok(vec![
        DecoderWeights::plan(checkpoint, config)?,
        PlanItem::new("logits", pruned.iter().map(logits).sum()),
        MaskBank::plan(&pruned),
        sizes.plan(config),
        PlanItem::new("scratch", scratch),
        PlanItem::new("staging", PARAMS_BYTES + read),
    ])
}

/// Host memory of a run on `tokens` tokens, item by item: the windows and their minibatches, the start mask and the result, the logits of
/// one projection on their way.
pub fn host_plan(selection: &Selection, tokens: usize) -> Vec<PlanItem> {
    let pruned = selection.projections();
    let masks: u64 = pruned.iter().map(|p| MaskBuffer::device_bytes(p.rows, p.cols)).sum();
    let logits = pruned.iter().map(|p| f32_bytes(p.rows, p.cols)).max().unwrap_or(0);
    vec![
        PlanItem::new("tokens", 8 * tokens as u64),
        PlanItem::new("masks", 2 * masks),
        PlanItem::new("logits", 2 * logits),
    ]
}

/// A run in progress: logits and masks on the device.
pub struct Learner<'r, 'g, 'm> {
    decoder: &'r Decoder<'g, 'm>,
    commands: &'r mut Commands<'g>,
    workspace: Workspace,
    selection: &'r Selection,
    options: Options,
    start: &'r MaskSet,
    /// Logits of each selected projection.
    logits: Vec<Buffer>,
    bank: MaskBank,
    batches: Vec<Batch>,
    start_losses: Vec<f64>,
    tracker: f64,
    step: u32,
    /// When groups were counted last.
    counted: Instant,
}

/// Counting groups takes a read-back of all bits: every so many steps, where the last time was longer ago than a second.
const COUNTED_EVERY: u32 = 50;

impl Learning for Learner<'_, '_, '_> {
    fn step(&mut self, _: u32) -> Result<StepReport, PruneError> {
        let Step { step, loss, residual, tracker, advantage } = Learner::step(self)?;
        let due = step % COUNTED_EVERY == 0 && self.counted.elapsed().as_secs_f64() > 1.0;
        let groups_changed =
            if due || step == self.options.steps { Some(self.groups_changed()?) } else { None };
        if groups_changed.is_some() {
            self.counted = Instant::now();
        }
        let (residual, tracker, advantage) = (Some(residual), Some(tracker), Some(advantage));
        Ok(StepReport { loss, residual, tracker, advantage, groups_changed, ..Default::default() })
    }
}

impl<'r, 'g, 'm> Learner<'r, 'g, 'm> {
    /// Sets the logits to `initial` (given a projection and its start mask; [`crate::mask::soft::logits_of`] is the released code's), builds the pipelines and measures the start mask on every minibatch.
    /// `progress` is called with (minibatches measured, of all), first with 0 when the pipelines are built.
    ///
    /// # Errors
    /// Too few windows for a batch; no room on the device.
    pub fn new(
        decoder: &'r Decoder<'g, 'm>,
        commands: &'r mut Commands<'g>,
        (selection, start): (&'r Selection, &'r MaskSet),
        windows: &Windows,
        options: Options,
        initial: impl Fn(&Projection, &BitMask) -> Result<Vec<f32>, PruneError>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, PruneError> {
        let batches = minibatches(windows, options.batch)?;
        let gpu = decoder.kernels.gpu();
        let sizes = sizes(decoder.config, windows.window(), options.batch, gpu.limits());
        let workspace = Workspace::new(gpu, decoder.config, sizes)?;
        let mut logits = Vec::with_capacity(selection.pruned.len());
        for (_, p) in &selection.pruned {
            let Some(mask) = start.masks.get(&p.name) else {
                return Err(PruneError::NothingToPrune {
                    reason: format!("the start mask lacks {}", p.name),
                });
            };
            let values = initial(p, mask)?;
            logits.push(gpu.alloc_init(&format!("logits:{}", p.name), &values)?);
        }
        let bank = MaskBank::upload(gpu, decoder.config, start)?;
        let mut learner = Self {
            decoder,
            commands,
            workspace,
            selection,
            options,
            start,
            logits,
            bank,
            batches,
            start_losses: Vec::new(),
            tracker: 0.0,
            step: 0,
            counted: Instant::now(),
        };
        decoder.kernels.prepare_masks(learner.options.pattern)?;
        decoder.warm_up(learner.commands, &learner.workspace, &learner.bank.refs())?;
        progress(0, learner.batches.len());
        for b in 0..learner.batches.len() {
            let loss = learner.loss(b)?;
            learner.start_losses.push(loss);
            progress(b + 1, learner.batches.len());
        }
        Ok(learner)
    }

    /// Mean loss of minibatch `b` under the masks in the bank, in pieces that fit the workspace.
    fn loss(&mut self, b: usize) -> Result<f64, PruneError> {
        let batch = &self.batches[b];
        let (length, per_pass) = (batch.layout.length, self.workspace.sizes.layout.windows);
        let masks = self.bank.refs();
        let mut sum = 0.0;
        for ids in batch.ids.chunks(per_pass * length) {
            let layout = Layout { windows: ids.len() / length, length };
            let piece = Batch { ids: ids.to_vec(), layout };
            let losses = self.decoder.losses(self.commands, &self.workspace, &piece, &masks)?;
            sum += losses.mean() * layout.windows as f64;
        }
        Ok(sum / batch.layout.windows as f64)
    }

    /// Draws the masks of step `step` into the bank.
    fn sample(&mut self, step: u32) -> Result<(), PruneError> {
        let (pattern, seed) = (self.options.pattern, self.options.seed);
        for ((index, _), logits) in self.selection.pruned.iter().zip(&self.logits) {
            if let Some(mask) = self.bank.get(*index) {
                let at = SampleAt { seed, step, projection: *index as u32 };
                self.decoder.kernels.mask_sample(self.commands, pattern, logits, mask, at)?;
            }
        }
        Ok(())
    }

    /// Draws, measures, and returns the report of the step, without moving the logits.
    pub(super) fn measure(&mut self) -> Result<Step, PruneError> {
        self.step += 1;
        let b = (self.step - 1) as usize % self.batches.len();
        self.sample(self.step)?;
        let loss = self.loss(b)?;
        let residual = loss - self.start_losses[b];
        self.tracker = self.options.alpha * self.tracker + (1.0 - self.options.alpha) * residual;
        let advantage = match self.options.estimator {
            Estimator::Loss => loss,
            Estimator::Residual => residual,
            Estimator::Tracked => residual - self.tracker,
        };
        Ok(Step { step: self.step, loss, residual, tracker: self.tracker, advantage })
    }

    /// One step.
    ///
    /// # Errors
    /// What the device reports; a loss that is not finite.
    pub fn step(&mut self) -> Result<Step, PruneError> {
        let report = self.measure()?;
        let step_size = -f64::from(self.options.rate) * report.advantage;
        for ((index, _), logits) in self.selection.pruned.iter().zip(&self.logits) {
            if let Some(mask) = self.bank.get(*index) {
                let pattern = self.options.pattern;
                self.decoder.kernels.mask_update(self.commands, pattern, logits, mask, step_size as f32)?;
            }
        }
        Ok(report)
    }

    /// Groups whose most probable mask differs from the start mask. Uses the mask buffers of the next step.
    ///
    /// # Errors
    /// What the device reports.
    pub fn groups_changed(&mut self) -> Result<u64, PruneError> {
        let pattern = self.options.pattern;
        let mut changed = 0;
        for ((index, p), logits) in self.selection.pruned.iter().zip(&self.logits) {
            let (Some(mask), Some(start)) = (self.bank.get(*index), self.start.masks.get(&p.name)) else {
                continue;
            };
            self.decoder.kernels.mask_top(self.commands, pattern, logits, mask)?;
            let words = self.commands.read(mask.buffer(), 0, p.rows * mask.words_per_row())?;
            changed += BitMask::from_words(p.rows, p.cols, words)?.groups_changed(start, pattern);
        }
        Ok(changed)
    }

    /// The most probable mask: top N of the downloaded logits on the host, ties to the lower index.
    ///
    /// # Errors
    /// What the device reports; a logit that is not a number.
    pub fn masks(&mut self) -> Result<MaskSet, PruneError> {
        let pattern = self.options.pattern;
        let mut masks = BTreeMap::new();
        for ((_, p), logits) in self.selection.pruned.iter().zip(&self.logits) {
            let values: Vec<f32> = self.commands.read(logits, 0, p.rows * p.cols)?;
            let mask = top_of(p.rows, p.cols, pattern, &values)?;
            mask.check(pattern)?;
            masks.insert(p.name.clone(), mask);
        }
        Ok(MaskSet { pattern, masks })
    }

    /// What `variance` works with: decoder, stream, logits, mask buffers, projections.
    pub(super) fn parts(
        &mut self,
    ) -> (&'r Decoder<'g, 'm>, &mut Commands<'g>, &[Buffer], &MaskBank, &'r Selection) {
        (self.decoder, self.commands, &self.logits, &self.bank, self.selection)
    }
}

/// Sizes of the workspace: as many windows of a batch at a time as fit one binding.
pub fn sizes(config: &Architecture, window: usize, batch: usize, limits: impl Into<Limits>) -> Sizes {
    let limits = limits.into();
    let windows = Sizes::windows_that_fit(config, window, batch, limits);
    Sizes::new(config, Layout { windows, length: window }, limits)
}

/// Fixed minibatches of `batch` windows in the order of the text; the rest is dropped.
fn minibatches(windows: &Windows, batch: usize) -> Result<Vec<Batch>, PruneError> {
    if batch == 0 || windows.count() < batch {
        return Err(PruneError::TooFewWindows { windows: windows.count(), batch });
    }
    let layout = Layout { windows: batch, length: windows.window() };
    let tokens = batch * windows.window();
    Ok(windows.tokens().chunks_exact(tokens).map(|ids| Batch { ids: ids.to_vec(), layout }).collect())
}
