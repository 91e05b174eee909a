//! The library in short: a model on a device, from a text to a mask to a folder.

use std::ops::ControlFlow;
use std::path::Path;

use super::learn::{BlockObjective, Objective, Residency, Stage, StageRun, shuffled};
use super::permute::{PermuteOptions, Permuting, input_norms, permute};
use super::plan::{Carried, choose_place};
use super::{
    BlockResult, OneShotOptions, ProjectionReport, PruneError, Repair, Schedule, StepReport, Watch, select,
};
use crate::calib::{Segments, Windows, read_windows};
use crate::eval::{Comparison, Streamed};
use crate::export::{MaskedModel, hf};
use crate::gpu::{Commands, Gpu, GpuOptions};
use crate::kernel::{Kernels, Preset, choose_preset};
use crate::mask::{MaskFile, MaskSet, Provenance};
use crate::model::{self, Architecture, Checkpoint, Overlay, Tokenizer};
use crate::nn::{Activations, Embedding, Keep, Place};

/// A model folder in Hugging Face layout, opened and checked, and the device that it is pruned on.
///
/// It chooses and learns masks; weights stay as they are. What it is made of is public too, for more: [`Schedule`] and [`StageRun`] with
/// what watches them, [`crate::nn`] for single passes.
pub struct Session {
    config: Architecture,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    preset: Preset,
    gpu: Gpu,
}

impl Session {
    /// Opens a model folder and a device. The weights are mapped, and looked through for NaN and infinity once.
    ///
    /// # Errors
    /// A folder that cannot be read or holds no model that is supported; no device.
    pub fn open(folder: &Path, device: GpuOptions) -> Result<Self, PruneError> {
        let (config, checkpoint) = model::open(folder)?;
        checkpoint.check_finite(&config)?;
        let tokenizer = Tokenizer::open(folder, &config)?;
        let gpu = Gpu::open(device)?;
        let preset = choose_preset(&gpu, None)?;
        Ok(Self { config, checkpoint, tokenizer, preset, gpu })
    }

    /// What config.json says.
    pub fn config(&self) -> &Architecture {
        &self.config
    }

    /// The weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its kernels.
    pub fn kernels(&self) -> Kernels<'_> {
        Kernels::new(&self.gpu, self.preset.clone())
    }

    /// `count` windows of `length` tokens of a text, as [`read_windows`] takes them.
    ///
    /// # Errors
    /// A text that cannot be read or is too short.
    pub fn sample(
        &self,
        text: &Path,
        segments: Segments,
        count: usize,
        length: usize,
    ) -> Result<Windows, PruneError> {
        Ok(read_windows(&self.tokenizer, text, segments, count, length)?)
    }

    /// Puts the channels into an order under which masks lose less, before masks are made for it: what follows works on the permuted model,
    /// which computes the same. The copy is kept in a scratch file in the folder `near`. What is returned has the permutation, which is to
    /// be written beside the mask.
    ///
    /// # Errors
    /// What the device reports or the system refuses.
    pub fn permute(
        &mut self,
        options: &PermuteOptions,
        windows: &Windows,
        near: &Path,
    ) -> Result<Permuting, PruneError> {
        let selection = select(&self.config, options.pattern, &[], true)?;
        let (model, carried) = ((&self.config, &self.checkpoint), self.carried(windows));
        let (kernels, go_on) = (self.kernels(), || false);
        let windows = (windows, carried);
        let norms = input_norms(&kernels, model, &selection, windows, options.pattern, &go_on, |_| ())?;
        let found = permute(model, &selection, Some(&norms), options, &go_on)?;
        self.checkpoint = self.checkpoint.permuted(&self.config, &found.permutation, near)?;
        Ok(found)
    }

    /// Masks of all projections by a one-shot method, block by block; `progress` is told of every projection.
    ///
    /// # Errors
    /// What the device reports; rows that do not divide into groups; [`PruneError::KeepsWeights`] for a repair.
    pub fn choose(
        &self,
        options: &OneShotOptions,
        windows: &Windows,
        progress: impl FnMut(&ProjectionReport),
    ) -> Result<MaskSet, PruneError> {
        if options.repair != Repair::None {
            return Err(PruneError::KeepsWeights { what: "a repair" });
        }
        let (kernels, config) = (self.kernels(), &self.config);
        let selection = select(config, options.pattern, &[], false)?;
        let embedding = Embedding::new(&self.checkpoint, config)?;
        let activations = if options.needs_inputs() {
            let carried = self.carried(windows);
            let (tokens, sizes) = (windows.tokens(), carried.sizes(&self.gpu, config));
            let place = carried.place;
            Some(Activations::embed(&self.gpu, &embedding, tokens, sizes, place, Keep::Inputs)?)
        } else {
            None
        };
        let tensors = &Overlay::new(&self.checkpoint);
        let schedule =
            Schedule { kernels: &kernels, config, tensors, selection: &selection, options, starts: None };
        let mut chosen = Chosen { masks: MaskSet::new(options.pattern), progress };
        schedule.run(&mut Commands::new(&self.gpu)?, activations, &[], &mut chosen)?;
        Ok(chosen.masks)
    }

    /// Masks learned by backpropagation from those of `start`, on the block or the model objective. `progress` is told of every step and
    /// says whether to go on.
    ///
    /// # Errors
    /// What the device reports; fewer windows than a minibatch; a loss that is not finite; [`PruneError::Stopped`] where `progress` said
    /// so; [`PruneError::KeepsWeights`] for a stage that trains weights.
    pub fn learn(
        &self,
        stage: &Stage,
        start: &MaskSet,
        windows: &Windows,
        progress: impl FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<MaskSet, PruneError> {
        self.learn_by(stage, None, start, windows, progress)
    }

    /// The same toward an objective of one's own of the blocks' outputs, on the block objective.
    ///
    /// # Errors
    /// As [`Self::learn`], those of `objective`, and [`PruneError::OwnObjective`] for a stage that is not on the block objective.
    pub fn learn_toward(
        &self,
        stage: &Stage,
        objective: &dyn BlockObjective,
        start: &MaskSet,
        windows: &Windows,
        progress: impl FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<MaskSet, PruneError> {
        if stage.objective != Objective::Block {
            return Err(PruneError::OwnObjective);
        }
        self.learn_by(stage, Some(objective), start, windows, progress)
    }

    fn learn_by(
        &self,
        stage: &Stage,
        objective: Option<&dyn BlockObjective>,
        start: &MaskSet,
        windows: &Windows,
        progress: impl FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<MaskSet, PruneError> {
        if stage.trains.weights() {
            return Err(PruneError::KeepsWeights { what: "a stage that trains weights" });
        }
        if stage.objective == Objective::Layer {
            return Err(PruneError::LayerObjective);
        }
        let (kernels, config) = (self.kernels(), &self.config);
        let mut selection = select(config, stage.pattern, &[], true)?;
        selection.pruned.retain(|(_, p)| start.masks.contains_key(&p.name));
        let windows = shuffled(windows, stage.seed, stage.batch)?;
        let carried = self.carried(&windows);
        let sizes = carried.sizes_for(&self.gpu, config, stage).next();
        let sizes = sizes.unwrap_or_else(|| carried.sizes(&self.gpu, config));
        let run = StageRun {
            kernels: &kernels,
            config,
            dense: &self.checkpoint,
            tensors: &Overlay::new(&self.checkpoint),
            selection: &selection,
            stage,
            objective,
            start,
            sizes,
            place: carried.place,
            residency: Residency::Resident,
        };
        let mut learned = Learning { masks: start.clone(), progress, stop: false };
        run.run(&mut Commands::new(&self.gpu)?, &windows, &[], &mut learned)?;
        Ok(learned.masks)
    }

    /// The model under `masks` beside itself without, on the same windows: perplexities, divergence, agreement.
    ///
    /// # Errors
    /// What the device reports; a loss that is not finite.
    pub fn evaluate(&self, masks: &MaskSet, windows: &Windows) -> Result<Comparison, PruneError> {
        let kernels = self.kernels();
        let embedding = Embedding::new(&self.checkpoint, &self.config)?;
        let dense = Streamed {
            kernels: &kernels,
            config: &self.config,
            tensors: &self.checkpoint,
            embedding: &embedding,
        };
        let mut commands = Commands::new(&self.gpu)?;
        let streams = dense.streams(&mut commands, windows, &dense, |_| ())?;
        let tokens = windows.tokens().len();
        Ok(dense.compare(&mut commands, windows, tokens, Some(masks), &streams, |_| ())?)
    }

    /// Writes the masks as a mask file, with hashes of the weights they were made for.
    ///
    /// # Errors
    /// Masks that are not strict or do not fit the model; what the system refuses.
    pub fn write_mask(
        &self,
        masks: &MaskSet,
        provenance: &Provenance,
        path: &Path,
    ) -> Result<(), PruneError> {
        Ok(MaskFile::new(masks.clone(), provenance.clone(), &self.checkpoint)?.write(path)?)
    }

    /// Writes the masked model in Hugging Face layout into the new folder `out`: pruned weights are zero, all else is the source's to the
    /// bit. For other formats there is [`crate::export`].
    ///
    /// # Errors
    /// Masks that are not strict or do not fit the model; a folder that is not empty; what the system refuses.
    pub fn export(
        &self,
        masks: &MaskSet,
        provenance: &Provenance,
        out: &Path,
    ) -> Result<hf::Summary, PruneError> {
        let tensors = &Overlay::new(&self.checkpoint);
        Ok(hf::write(&MaskedModel { tensors, config: &self.config, masks, provenance }, out)?)
    }

    /// How windows are carried through the blocks: as many together as go well, on the device where there is room.
    fn carried(&self, windows: &Windows) -> Carried {
        let (count, window) = (windows.count(), windows.window());
        let carried = Carried { windows: count, window, together: usize::MAX, place: Place::Host };
        Carried { place: choose_place(&self.gpu, &self.config, carried, None), ..carried }
    }
}

/// Keeps the masks of a walk.
struct Chosen<P> {
    masks: MaskSet,
    progress: P,
}

impl<P: FnMut(&ProjectionReport)> Watch for Chosen<P> {
    fn projection(&mut self, report: &ProjectionReport) {
        (self.progress)(report);
    }

    fn block(&mut self, result: BlockResult) -> Result<(), PruneError> {
        self.masks.masks.extend(result.masks);
        Ok(())
    }
}

/// Keeps the masks of a stage.
struct Learning<P> {
    masks: MaskSet,
    progress: P,
    stop: bool,
}

impl<P: FnMut(&StepReport) -> ControlFlow<()>> Watch for Learning<P> {
    fn stop(&self) -> bool {
        self.stop
    }

    fn step(&mut self, report: &StepReport) -> Result<(), PruneError> {
        self.stop |= (self.progress)(report).is_break();
        Ok(())
    }

    fn block(&mut self, result: BlockResult) -> Result<(), PruneError> {
        self.masks.masks.extend(result.masks);
        Ok(())
    }
}
