//! `maskwright prune`.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::context::{DeviceArgs, Model, stop_flag};
use super::job::Job;
use super::method_args::start_file;
use super::output::bytes;
use super::plan::{Plans, dry_run_of_shape, largest, show_plan};
use super::prune_args::Args;
use super::report::Reporting;
use super::result::Made;
use super::walk::{WalkWindows, conditions};
use super::{CliError, Outcome};
use crate::export;
use crate::folder::{FolderError, RunFolder, Unfinished};
use crate::fsio::check_room;
use crate::gpu::Commands;
use crate::hub::Need;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::model::Overlay;
use crate::nn::total;
use crate::prune::{BlockStore, OneShot, OneShotOptions};

pub(super) fn run(device: &DeviceArgs, mut args: Args) -> Result<Outcome, CliError> {
    args.resolve();
    let args = &args;
    let (layer, stages) = args.stages()?;
    let options = args.walk_options(layer.clone(), &stages)?;
    if args.resume.is_some() && args.policy() {
        let message = "--resume does not go on with maskpro on the model's loss; a mask learned so far continues with \
             --start FILE";
        return Err(CliError::Usage(message.into()));
    }
    let needed =
        args.policy() || !stages.is_empty() || options.as_ref().is_some_and(OneShotOptions::needs_inputs);
    args.warn_of_unused(layer.as_ref(), &stages, options.as_ref(), needed || args.calib.is_some());
    // A plan needs no text, only the number of windows and their length, which are options.
    let no_text = needed && !args.policy() && args.calib.is_none();
    if args.dry_run {
        // Weights are not downloaded for a plan, but where it cannot be made without.
        let need = if args.policy() { Need::Whole } else { Need::Shape };
        let folder = device.model_folder(&args.model, need)?;
        if no_text || !Model::has_weights(&folder) {
            return dry_run_of_shape(device, args, &folder, options.as_ref(), &stages);
        }
    }
    let model = Model::open_checked(device, &args.model)?;
    let selection = args.select(&model.config, device)?;
    let choice = args.choice(&model.config);
    let calib = match &args.calib {
        Some(text) => Some(choice.read(&model, text, &args.windows.texts.options())?),
        None if needed => {
            let message = format!("--method {} needs --calib TEXT", args.method.name());
            return Err(CliError::Usage(message));
        }
        None => None,
    };
    let eval = match &args.eval {
        Some(text) => {
            let options = args.windows.texts.options();
            Some(model.windows(text, &options, ("--eval-window", args.eval_window), args.eval_windows)?)
        }
        None => None,
    };
    let job = Job { device, args, model: &model, selection: &selection, choice, calib, eval, stages };
    if args.dry_run {
        return job.dry_run(options);
    }
    let Some(out) = args.out.as_ref().or(args.resume.as_ref()) else {
        return Err(CliError::Usage("--out DIR is needed".into()));
    };
    // From here on there is something to keep.
    stop_flag()?;
    // Before any work, so that a folder that cannot be written costs nothing.
    if !args.no_model {
        export::hf::check_destination(&model.checkpoint, out)?;
    }
    export::hf::check_outside(&model.checkpoint, out)?;
    check_room(out).map_err(FolderError::os(out))?;
    let report = args.report.serve(device, out, &args.resolved)?;
    if args.policy() {
        job.learn(RunFolder::create(out)?, &report)
    } else {
        job.layered(out, options.as_ref(), &report)
    }
}

/// Where a run goes, locked.
enum Place {
    New(RunFolder),
    Resumed(Unfinished),
}

impl Job<'_> {
    fn dry_run(&self, options: Option<OneShotOptions>) -> Result<Outcome, CliError> {
        let gpu = self.device.open()?;
        let kernels = Kernels::new(&gpu, self.device.preset(&gpu)?);
        let (walk, carried) = match &options {
            Some(options) => {
                let (plan, carried) = self.walk_plan(&kernels, options)?;
                (Some(plan), carried)
            }
            None => (None, None),
        };
        let learning = match self.args.policy() {
            true => vec![self.learning_plan(&kernels)?],
            false => self.plans(&kernels).all(&self.stages)?,
        };
        let measuring = self.measuring_plan(&kernels)?;
        let plans = Plans { walk: walk.as_ref(), stages: &learning, measuring: measuring.as_ref() };
        show_plan(self.device, self.args, &kernels, self.selection, plans)?;
        self.args.walk.check_all(walk.as_ref(), carried, &learning)?;
        self.check_measuring(&kernels)?;
        Ok(Outcome::Done)
    }

    /// Prunes layer by layer, or makes a start mask in that way, and runs the stages behind it.
    fn layered(
        &self,
        out: &Path,
        options: Option<&OneShotOptions>,
        report: &Reporting,
    ) -> Result<Outcome, CliError> {
        let started = Instant::now();
        // Locked first: a second process is refused before it reads a model.
        let place = match &self.args.resume {
            Some(run) => Place::Resumed(Unfinished::open(run)?),
            None => Place::New(RunFolder::create(out)?),
        };
        let gpu = self.device.open()?;
        let kernels = Kernels::new(&gpu, self.device.preset(&gpu)?);
        let pattern = self.args.select.pattern;
        let given = match (options.map(|o| o.method), self.args.start.file()) {
            (Some(OneShot::Descent | OneShot::Given) | None, Some(path)) => {
                Some(start_file(self.model, self.selection, pattern, path)?)
            }
            _ => None,
        };
        let planned = options.map(|options| self.walk_plan(&kernels, options)).transpose()?;
        let (walk_plan, carried) = planned.unzip();
        let carried = carried.flatten();
        let learning = self.plans(&kernels).all(&self.stages)?;
        self.args.walk.check_all(walk_plan.as_ref(), carried, &learning)?;
        self.check_measuring(&kernels)?;
        let plan = largest(walk_plan.as_ref(), &learning).to_vec();
        let at_once = if self.stages.is_empty() { ", one block at a time" } else { "" };
        self.device.note(|| format!("plan: {} of GPU memory{at_once}", bytes(total(&plan))));
        let walked = self.calib.clone().zip(carried).map(|(windows, c)| windows.first(c.windows));
        let windows: WalkWindows<'_> = walked.as_ref().zip(carried);
        let start_path = self.args.start.file().filter(|_| given.is_some());
        let choice = self.calib.as_ref().map(|_| self.choice);
        let (model, selection) = (self.model, self.selection);
        let conditions = conditions(model, selection, options, &kernels, choice, windows, start_path)?;
        let provenance = self.provenance();
        let prepared = self.prepare(&kernels, &self.stages, &conditions)?;
        // All that can be refused is refused before the first byte changes.
        let (mut folder, mut kept, earlier) = match place {
            Place::Resumed(unfinished) => {
                let kept = BlockStore::open(unfinished.paths(), &conditions, pattern, provenance)?;
                kept.masks(&self.model.checkpoint)?;
                self.check_stages(unfinished.paths(), &prepared)?;
                let (folder, earlier) = unfinished.go_on()?;
                kept.remove_leftovers()?;
                (folder, kept, earlier)
            }
            Place::New(folder) => {
                let kept = BlockStore::create(folder.paths(), conditions.clone(), pattern, provenance)?;
                (folder, kept, Vec::new())
            }
        };
        if folder.resumed() {
            self.device.note(|| format!("{} blocks are finished", kept.len()));
        }
        let walk = json!(options);
        let shown =
            if self.stages.is_empty() { walk } else { json!({ "walk": walk, "stages": self.stages }) };
        let info = self.info(&kernels, &shown, &plan);
        report.tell(&info);
        folder.began(started);
        folder.phase("set-up");
        let stop = stop_flag()?;
        let mut tensors = Overlay::new(&self.model.checkpoint);
        let (mut masks, mut reports) = (given.clone(), Vec::new());
        if let Some(options) = options {
            let walk = self.walk(options, given.as_ref());
            let keep = Some((&mut kept, &mut folder));
            // A stream of its own: what it keeps for read-back goes with it.
            let mut commands = Commands::new(&gpu)?;
            let walked = walk.run(&kernels, &mut commands, windows, keep, &stop)?;
            if walked.stopped {
                let done = format!("{} of {} blocks are finished", kept.len(), self.blocks());
                return Ok(self.interrupted(&mut folder, &done, report, &info));
            }
            folder.phase("walk over the blocks");
            kept.add_to(&mut tensors)?;
            (masks, reports) = (Some(MaskSet { pattern, masks: walked.masks }), walked.reports);
        }
        let Some(masks) = masks else {
            return Err(CliError::Usage("a start mask is needed: --start".into()));
        };
        let start = if self.stages.is_empty() { given } else { Some(masks.clone()) };
        let staged = self.run_stages(&mut folder, &kernels, prepared, (masks, tensors), &earlier, &stop)?;
        if staged.stopped {
            return Ok(self.interrupted(&mut folder, "the state of training is kept", report, &info));
        }
        let made = Made {
            masks: staged.masks.clone(),
            start,
            tensors: &staged.tensors,
            outcome: Outcome::Done,
            info,
            reports,
        };
        let keep_weights = made.tensors.replaces_any() && self.args.no_model;
        let outcome = self.finish(&mut folder, &kernels, &mut Commands::new(&gpu)?, made, started, report)?;
        staged.finish(keep_weights)?;
        kept.finish(keep_weights)?;
        Ok(outcome)
    }
}
