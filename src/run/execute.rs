//! A run from its first byte to its last: the only place where a run's folder is written.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::finished::{Finished, Outcome};
use super::keeper::Kept;
use super::plan::RunPlan;
use super::result::Made;
use super::start::StartSpec;
use super::{RunError, bytes};
use crate::export;
use crate::folder::{FolderError, RunFolder, RunPaths, Unfinished};
use crate::fsio::{check_room, check_space};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::model::Overlay;
use crate::nn::total;
use crate::prune::{BlockStore, PruneError};

/// Where a run goes, locked.
enum Place {
    New(RunFolder),
    Resumed(Unfinished),
}

impl Place {
    fn paths(&self) -> &RunPaths {
        match self {
            Self::New(folder) => folder.paths(),
            Self::Resumed(unfinished) => unfinished.paths(),
        }
    }
}

impl RunPlan<'_> {
    /// Does all that the plan says.
    ///
    /// # Errors
    /// What cannot be written, does not fit into memory, or goes wrong on the way; what was finished until then is kept, and goes on with
    /// [`super::RunSpec::resume`].
    pub fn execute(mut self) -> Result<Finished, RunError> {
        let Some(out) = self.spec.out.clone().or(self.spec.resume.clone()) else {
            return Err(RunError::options("--out DIR is needed"));
        };
        let checkpoint = self.checkpoint()?;
        self.observer.guard();
        // Before any work, so that a folder that cannot be written costs nothing.
        export::hf::check_outside(checkpoint, &out)?;
        check_room(&out).map_err(FolderError::os(&out))?;
        if let Some(needed) = self.written_bytes()? {
            check_space(&out, needed).map_err(|full| {
                let remedy = "give another --out, or leave the masked model away with --no-model";
                RunError::Options(format!("{full}, {remedy}"))
            })?;
        }
        let started = Instant::now();
        // Locked first: a second process is refused before it reads a model.
        let place = match &self.spec.resume {
            Some(run) => Place::Resumed(Unfinished::open(run)?),
            None => Place::New(RunFolder::create(&out)?),
        };
        let gpu = self.spec.device.open(self.observer)?;
        let kernels = Kernels::new(&gpu, self.spec.device.preset(&gpu, self.observer)?);
        match self.order_of_run(&kernels, place.paths()) {
            Err(RunError::Prune(PruneError::Stopped)) => {
                self.observer
                    .note("interrupted before there was an order of the channels: nothing is written");
                return Ok(Finished::interrupted(&out));
            }
            order => {
                if let Some(order) = order? {
                    self.put_in_order(order, place.paths().root())?;
                }
            }
        }
        match place {
            Place::New(folder) if self.spec.policy() => self.learn(folder, &kernels, started),
            place => self.layered(place, &kernels, started),
        }
    }

    /// Prunes layer by layer, or makes a start mask in that way, and runs the stages behind it.
    fn layered(&self, place: Place, kernels: &Kernels<'_>, started: Instant) -> Result<Finished, RunError> {
        let (checkpoint, stages, gpu) = (self.checkpoint()?, &self.stages.behind, kernels.gpu());
        let given = self.given()?;
        let resources = self.resources(kernels)?;
        self.check(&resources)?;
        let plan = resources.largest().to_vec();
        let at_once = if stages.is_empty() { ", one block at a time" } else { "" };
        self.observer.note(&format!("plan: {} of GPU memory{at_once}", bytes(total(&plan))));
        let first = self.first_windows(resources.carried);
        let windows = first.as_ref().zip(resources.carried);
        let start_path = StartSpec::file(self.spec.start_name()).filter(|_| given.is_some());
        let conditions = self.conditions(kernels, windows, start_path)?;
        let (provenance, pattern) = (self.provenance(), self.spec.select.pattern);
        let prepared = self.prepare(kernels, stages, &conditions)?;
        // All that can be refused is refused before the first byte changes.
        let (mut folder, mut kept, earlier) = match place {
            Place::Resumed(unfinished) => {
                let kept = BlockStore::open(unfinished.paths(), &conditions, pattern, provenance)?;
                kept.masks(checkpoint)?;
                self.check_stages(unfinished.paths(), &prepared)?;
                let (folder, earlier) = unfinished.go_on()?;
                kept.remove_leftovers()?;
                (folder, kept, earlier)
            }
            Place::New(folder) => {
                self.keep_order(&folder)?;
                let kept = BlockStore::create(folder.paths(), conditions.clone(), pattern, provenance)?;
                (folder, kept, Vec::new())
            }
        };
        if folder.resumed() {
            self.observer.note(&format!("{} blocks are finished", kept.len()));
        }
        let walk = json!(self.options);
        let shown = if stages.is_empty() { walk } else { json!({ "walk": walk, "stages": stages }) };
        let info = self.info(kernels, &shown, &plan);
        self.observer.began(&info);
        folder.began(started);
        folder.phase("set-up");
        let mut tensors = Overlay::new(checkpoint);
        let (mut masks, mut reports) = (given.clone(), Vec::new());
        if let Some(options) = &self.options {
            let keep = Some(Kept { store: &mut kept, folder: &mut folder });
            let walked = self.walk(kernels, options, given.as_ref(), windows, keep)?;
            if walked.stopped {
                let done = format!("{} of {} blocks are finished", kept.len(), self.config().num_layers);
                return Ok(self.interrupted(&mut folder, &done, info));
            }
            folder.phase("walk over the blocks");
            kept.add_to(&mut tensors)?;
            (masks, reports) =
                (Some(MaskSet { pattern, masks: walked.brought.masks }), walked.brought.reports);
        }
        let Some(masks) = masks else {
            return Err(RunError::options("a start mask is needed: --start"));
        };
        let start = if stages.is_empty() { given } else { Some(masks.clone()) };
        let staged = self.run_stages(&mut folder, kernels, prepared, (masks, tensors), &earlier)?;
        if staged.stopped {
            return Ok(self.interrupted(&mut folder, "the state of training is kept", info));
        }
        let made = Made {
            masks: staged.masks.clone(),
            start,
            tensors: &staged.tensors,
            outcome: Outcome::Done,
            info,
            reports,
        };
        let keep_weights = made.tensors.replaces_any() && self.spec.no_model;
        let finished = self.finish(&mut folder, kernels, &mut Commands::new(gpu)?, made, started)?;
        staged.finish(keep_weights)?;
        kept.finish(keep_weights)?;
        Ok(finished)
    }

    fn interrupted(&self, folder: &mut RunFolder, done: &str, info: Map<String, Value>) -> Finished {
        folder.keep();
        self.report(folder.path(), Value::Object(info), false);
        let path = folder.path().display();
        self.observer.note(&format!("interrupted: {done}; the same command with --resume {path} goes on"));
        Finished::interrupted(folder.path())
    }
}
