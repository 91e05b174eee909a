//! The walk over the blocks: a one-shot method, or what makes a learning method's start mask.

use std::path::Path;

use serde_json::json;

use super::RunError;
use super::keeper::{Brought, Keeper, Kept};
use super::model::Model;
use super::plan::{Resources, RunPlan};
use super::start::StartSpec;
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::soft::logits_of;
use crate::mask::{BitMask, MaskSet};
use crate::model::{Overlay, Projection};
use crate::nn::{Activations, Embedding, Keep};
use crate::prune::maskpro::Options;
use crate::prune::plan::Carried;
use crate::prune::{
    Conditions, InputNorms, OneShot, OneShotOptions, PruneError, Schedule, Score, score_logits,
};

/// Windows of a walk and how they are carried.
pub(super) type WalkWindows<'a> = Option<(&'a Windows, Carried)>;

/// A start mask and what it was made of.
pub(crate) struct Start {
    pub(crate) masks: MaskSet,
    from: StartFrom,
}

enum StartFrom {
    Magnitude,
    Wanda(InputNorms),
    /// Only the mask is known.
    Mask,
}

impl Start {
    /// Start logits of a projection under `options` of MaskPro.
    pub(crate) fn logits(
        &self,
        model: &Model,
        options: &Options,
        p: &Projection,
        mask: &BitMask,
    ) -> Result<Vec<f32>, PruneError> {
        let Some(sharpness) = options.sharpness else {
            return Ok(logits_of(mask, options.scale));
        };
        let score = match &self.from {
            StartFrom::Magnitude => Score::Magnitude,
            StartFrom::Wanda(norms) => Score::Wanda(norms),
            // No sharpness comes here where there are no scores; the mask is then all there is to start from.
            StartFrom::Mask => return Ok(logits_of(mask, options.scale)),
        };
        score_logits(&model.checkpoint, p, options.pattern, score, sharpness, options.scale)
    }
}

/// How a walk ended.
pub(super) struct Walked {
    pub(super) brought: Brought,
    pub(super) stopped: bool,
}

impl RunPlan<'_> {
    /// Walks the blocks from the first that is not kept. Each finished block is kept, its masks and reports are in the result. Masks that are
    /// started from are in `starts`, where they come from a file.
    pub(super) fn walk<'g>(
        &self,
        kernels: &Kernels<'g>,
        options: &OneShotOptions,
        starts: Option<&MaskSet>,
        windows: WalkWindows<'_>,
        mut kept: Option<Kept<'_>>,
    ) -> Result<Walked, RunError> {
        let (config, checkpoint, gpu) = (self.config(), self.checkpoint()?, kernels.gpu());
        let (mut finished, mut overlay) = (Vec::new(), Overlay::new(checkpoint));
        let mut brought = Brought::default();
        if let Some(Kept { store, folder }) = &mut kept {
            finished = store.masks(checkpoint)?;
            overlay = store.overlay(checkpoint)?;
            for report in store.reports() {
                folder.metric(&json!(report))?;
                brought.reports.push(report.clone());
            }
            for masks in &finished {
                brought.masks.extend(masks.clone());
            }
        }
        let activations = match windows {
            Some((windows, carried)) => {
                let (sizes, place) = (carried.sizes(gpu, config), carried.place);
                let embedding = Embedding::new(checkpoint, config)?;
                let tokens = windows.tokens();
                Some(Activations::embed(gpu, &embedding, tokens, sizes, place, Keep::Inputs)?)
            }
            None => None,
        };
        let schedule =
            Schedule { kernels, config, tensors: &overlay, selection: &self.selection, options, starts };
        let layers = config.num_layers;
        let bar = self.observer.task("blocks", layers as u64);
        let mut keeper = Keeper::new(self.observer, checkpoint, bar, layers, kept, None);
        keeper.brought = brought;
        // A stream of its own: what it keeps for read-back goes with it.
        let stopped = match schedule.run(&mut Commands::new(gpu)?, activations, &finished, &mut keeper) {
            Err(PruneError::Stopped) => true,
            other => other.map(|()| false)?,
        };
        Ok(Walked { brought: keeper.brought, stopped })
    }

    /// The start mask of MaskPro on the model's loss, and what it was made of; none when stopped.
    ///
    /// # Errors
    /// What the device or the files report.
    pub(crate) fn start(
        &self,
        kernels: &Kernels<'_>,
        resources: &Resources,
    ) -> Result<Option<Start>, RunError> {
        let pattern = self.spec.select.pattern;
        let Some(options) = &self.options else {
            let masks = self.start_file(self.spec.start_name().as_ref())?;
            return Ok(Some(Start { masks, from: StartFrom::Mask }));
        };
        let windows = self.first_windows(resources.carried);
        let walked = self.walk(kernels, options, None, windows.as_ref().zip(resources.carried), None)?;
        if walked.stopped {
            return Ok(None);
        }
        let masks = MaskSet { pattern, masks: walked.brought.masks };
        let from = match options.method {
            OneShot::Magnitude => StartFrom::Magnitude,
            OneShot::Wanda => StartFrom::Wanda(walked.brought.norms),
            _ => StartFrom::Mask,
        };
        Ok(Some(Start { masks, from }))
    }

    /// The windows that the walk takes.
    pub(super) fn first_windows(&self, carried: Option<Carried>) -> Option<Windows> {
        self.calib.clone().zip(carried).map(|(windows, carried)| windows.first(carried.windows))
    }

    /// The masks of the start's file, where one is given and walked from.
    pub(super) fn given(&self) -> Result<Option<MaskSet>, RunError> {
        let method = self.options.as_ref().map(|o| o.method);
        match (method, StartSpec::file(self.spec.start_name())) {
            (Some(OneShot::Descent | OneShot::Given) | None, Some(path)) => Ok(Some(self.start_file(path)?)),
            _ => Ok(None),
        }
    }

    /// A start mask from a file: the same pattern, and a mask for every selected projection.
    fn start_file(&self, path: &Path) -> Result<MaskSet, RunError> {
        let pattern = self.spec.select.pattern;
        let mut set = self.model()?.mask(path, Some(pattern), self.observer)?;
        let fail = |problem| RunError::Prune(PruneError::Start { path: path.into(), problem });
        if set.pattern != pattern {
            return Err(fail(format!("keeps {}, but --pattern is {pattern}", set.pattern)));
        }
        let names: Vec<&String> = self.selection.pruned.iter().map(|(_, p)| &p.name).collect();
        if let Some(missing) = names.iter().find(|n| !set.masks.contains_key(**n)) {
            return Err(fail(format!("has no mask for {missing}; select fewer projections with --only")));
        }
        set.masks.retain(|name, _| names.contains(&name));
        Ok(set)
    }

    /// All that masks depend on, as the manifest of a run keeps it.
    pub(super) fn conditions(
        &self,
        kernels: &Kernels<'_>,
        windows: WalkWindows<'_>,
        start_file: Option<&Path>,
    ) -> Result<Conditions, RunError> {
        let model = self.model()?;
        let preset = kernels.preset().name;
        let mut out = Conditions::new(&model.folder, &model.checkpoint, &self.selection, preset)?;
        self.options.iter().for_each(|options| out.walk(options));
        self.calib.iter().for_each(|_| out.segments(self.choice.name()));
        start_file.into_iter().for_each(|path| out.start_mask(path));
        if let Some((windows, carried)) = windows {
            out.windows(windows, &carried.sizes(kernels.gpu(), &model.config));
        }
        Ok(out)
    }
}
