//! `maskwright prune`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::calib_args::{CalibArgs, CalibChoice, at_least_one, tokens_of_window};
use super::context::{DeviceArgs, Model, stop_flag};
use super::method_args::{MaskProArgs, SelectArgs, StartArgs, start_file};
use super::output::bytes;
use super::plan::{dry_run_of_shape, largest, show_plan};
use super::report::{ReportArgs, Reporting};
use super::result::Made;
use super::train_args::{Recipe, TrainArgs};
use super::unused::Readers;
use super::walk::{Walk, WalkArgs, WalkWindows, conditions};
use super::{CliError, Outcome, help};
use crate::calib::Windows;
use crate::export;
use crate::folder::{FolderError, RunFolder, Unfinished};
use crate::fsio::check_room;
use crate::gpu::Commands;
use crate::hub::Need;
use crate::kernel::Kernels;
use crate::mask::{MaskSet, Provenance};
use crate::model::{Architecture, Overlay};
use crate::nn::total;
use crate::prune::learn::{Objective, Stage};
use crate::prune::plan::{Carried, WalkPlan};
use crate::prune::{BlockStore, OneShot, OneShotOptions, Selection, StartMask, select};

/// What chooses the mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Method {
    /// Keep the largest weights
    Magnitude,
    /// Keep the largest weight times input norm (Wanda)
    Wanda,
    /// Keep the largest relative weight times root of the input norm (RIA, without channel permutation)
    Ria,
    /// Prune group by group and pass the error on (SparseGPT); keeps the original weights unless --repair update
    Sparsegpt,
    /// Improve a start mask by exact group descent on each projection's output error
    Descent,
    /// Take the mask file of --start as it is, to repair the weights under it
    Given,
    /// Learn by policy gradient, forward only (MaskPro)
    Maskpro,
    /// Learn by backpropagation through a relaxed top N of one logit per weight
    Relaxed,
    /// Learn by backpropagation through a Gumbel softmax over the patterns of each group (MaskLLM)
    Maskllm,
    /// Train the weights under the 2:4 regulariser and take the largest of each group (ProxSparse); 2:4 only
    Proxsparse,
}

impl Method {
    /// The one-shot method, if it is one.
    fn one_shot(self) -> Option<OneShot> {
        Some(match self {
            Self::Magnitude => OneShot::Magnitude,
            Self::Wanda => OneShot::Wanda,
            Self::Ria => OneShot::Ria,
            Self::Sparsegpt => OneShot::SparseGpt,
            Self::Descent => OneShot::Descent,
            Self::Given => OneShot::Given,
            Self::Maskpro | Self::Relaxed | Self::Maskllm | Self::Proxsparse => return None,
        })
    }

    /// As on the command line.
    pub(super) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

#[derive(clap::Args)]
#[command(after_help = help::PRUNE)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout, or its name on the hub, ORG/NAME (for --dry-run its config.json is enough)
    pub(super) model: PathBuf,
    /// Calibration text: a text file; .jsonl, .json or .parquet of documents with a `text`, `content` or `messages`; a folder of these; .gz and .zst work, too
    /// [default: none, enough for magnitude and --dry-run]
    #[arg(long, value_name = "FILE")]
    pub(super) calib: Option<PathBuf>,
    /// What chooses the mask
    #[arg(long, value_enum, default_value_t = Method::Relaxed)]
    pub(super) method: Method,
    /// Folder of the run; must be new or empty; needed but with --dry-run and --resume
    #[arg(long, value_name = "DIR", required_unless_present_any = ["dry_run", "resume"])]
    out: Option<PathBuf>,
    /// Folder of an unfinished run: goes on where it stopped, in place of --out [default: a new run]
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// Do not write the masked model, only the mask
    #[arg(long)]
    pub(super) no_model: bool,
    /// Held-out text on which dense, start and result are measured at the end [default: nothing is measured]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Tokens of an evaluation window
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = tokens_of_window())]
    eval_window: usize,
    /// Only the first N windows of the evaluation text [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(super) eval_windows: Option<usize>,
    /// Print what memory and about what time the run would take, and stop
    #[arg(long)]
    dry_run: bool,
    /// TOML file of options, such as the config.toml that every run leaves; those given here go before it [default: none]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    report: ReportArgs,
    // Their headings hold for what comes behind them.
    #[command(flatten)]
    pub(super) select: SelectArgs,
    #[command(flatten)]
    pub(super) windows: CalibArgs,
    #[command(flatten)]
    pub(super) start: StartArgs,
    #[command(flatten)]
    pub(super) walk: WalkArgs,
    #[command(flatten)]
    pub(super) learn: MaskProArgs,
    #[command(flatten)]
    pub(super) train: TrainArgs,
    /// The options as a file of options.
    #[arg(skip)]
    pub(super) resolved: String,
    /// The options that were given, with another value than their default.
    #[arg(skip)]
    pub(super) given: BTreeSet<String>,
    /// Nothing goes to standard output.
    #[arg(skip)]
    pub(super) silent: bool,
}

impl Args {
    /// Puts the method in the place of the recipe, and the start that goes with it.
    pub(super) fn resolve(&mut self) {
        match self.train.recipe {
            Some(Recipe::Fast) => self.method = Method::Descent,
            Some(Recipe::Best) => self.method = Method::Relaxed,
            None => {}
        }
        self.start.resolve(self.method);
    }

    /// How calibration windows are taken.
    pub(super) fn choice(&self, config: &Architecture) -> CalibChoice {
        match self.method {
            Method::Relaxed | Method::Maskpro if self.train.only_layer() => {
                self.windows.one_shot(config.max_position_embeddings)
            }
            Method::Maskpro => self.windows.maskpro(),
            Method::Relaxed | Method::Maskllm | Method::Proxsparse => {
                self.windows.learned(config.max_position_embeddings)
            }
            _ => self.windows.one_shot(config.max_position_embeddings),
        }
    }

    /// Options of the walk: of the one-shot method, or of the one that makes a learning method's start mask and goes on from it with
    /// the stage `layer`, behind which `stages` follow.
    pub(super) fn walk_options(
        &self,
        layer: Option<Stage>,
        stages: &[Stage],
    ) -> Result<Option<OneShotOptions>, CliError> {
        let pattern = self.select.pattern;
        match self.method.one_shot() {
            Some(method) => {
                let start = match method {
                    OneShot::Descent => self.start.of_descent()?,
                    OneShot::Given if self.start.file().is_none() => {
                        return Err(CliError::Usage("--method given needs a mask file: --start FILE".into()));
                    }
                    OneShot::Given => StartMask::File,
                    _ => StartMask::Wanda,
                };
                Ok(Some(self.walk.options(pattern, method, start)?))
            }
            None => {
                let last = !stages.iter().any(|stage| stage.trains.masks());
                self.start.walk_options(&self.walk, pattern, layer, last)
            }
        }
    }

    /// Whether MaskPro learns on the model's loss.
    pub(super) fn policy(&self) -> bool {
        self.method == Method::Maskpro && self.train.trains(self.method).is_none()
    }

    /// What is learned in the walk, and the stages behind it.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub(super) fn stages(&self) -> Result<(Option<Stage>, Vec<Stage>), CliError> {
        let repairs = self.walk.trained_repairs();
        self.learn.check(self.policy(), &self.start)?;
        if self.policy() && !repairs.is_empty() {
            let message = "maskpro on the model's loss takes no --repair block or model; repair the weights under its mask with \
                 --method given --start RUN/mask.safetensors --repair ...";
            return Err(CliError::Usage(message.into()));
        }
        let (pattern, seed) = (self.select.pattern, self.windows.seed);
        let mut stages = self.train.stages(self.method, &self.learn, &repairs, pattern, seed)?;
        stages.iter_mut().for_each(|stage| stage.clamp = self.walk.clamp_weights);
        let in_walk = stages.first().is_some_and(|stage| stage.objective == Objective::Layer);
        let layer = in_walk.then(|| stages.remove(0));
        Ok((layer, stages))
    }

    /// Says which options nothing in the run reads.
    fn warn_of_unused(
        &self,
        layer: Option<&Stage>,
        stages: &[Stage],
        walk: Option<&OneShotOptions>,
        calib: bool,
    ) {
        let stages: Vec<&Stage> = layer.into_iter().chain(stages).collect();
        let (method, policy, eval) = (self.method, self.policy(), self.eval.is_some());
        let readers = Readers { method, stages: &stages, walk, policy, calib, eval };
        for (option, what) in readers.unused(&self.given).iter().filter(|_| !self.silent) {
            log::warn!("--{option} does nothing in this run: it is for {what}");
        }
    }

    /// How the walk carries the first of `count` calibration windows of `window` tokens.
    pub(super) fn carried(
        &self,
        kernels: &Kernels<'_>,
        config: &Architecture,
        options: &OneShotOptions,
        count: usize,
        window: usize,
    ) -> Option<Carried> {
        let gpu = kernels.gpu();
        if self.method.one_shot().is_some() {
            return Some(self.walk.carried(gpu, config, count, window, None));
        }
        let spare = (!self.train.only_layer()).then(|| self.learn.batch());
        self.start.carried(&self.walk, gpu, config, options, self.start.windows(count), window, spare)
    }

    pub(super) fn select(&self, config: &Architecture, device: &DeviceArgs) -> Result<Selection, CliError> {
        let selection = select(config, self.select.pattern, &self.select.only, self.select.skip_indivisible)?;
        for name in &selection.skipped {
            device.note(|| format!("left dense: {name}"));
        }
        Ok(selection)
    }
}

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

/// One `prune`, with everything that needs no device opened and checked.
pub(super) struct Job<'a> {
    pub(super) device: &'a DeviceArgs,
    pub(super) args: &'a Args,
    pub(super) model: &'a Model,
    pub(super) selection: &'a Selection,
    pub(super) choice: CalibChoice,
    pub(super) calib: Option<Windows>,
    pub(super) eval: Option<(Windows, usize)>,
    pub(super) stages: Vec<Stage>,
}

impl Job<'_> {
    fn walk<'w>(&'w self, options: &'w OneShotOptions, starts: Option<&'w MaskSet>) -> Walk<'w> {
        Walk { device: self.device, model: self.model, selection: self.selection, options, starts }
    }

    /// The plan of the walk of this job.
    pub(super) fn walk_plan(
        &self,
        kernels: &Kernels<'_>,
        options: &OneShotOptions,
    ) -> Result<(WalkPlan, Option<Carried>), CliError> {
        let carried = self.calib.as_ref().and_then(|windows| {
            let (count, window) = (windows.count(), windows.window());
            self.args.carried(kernels, &self.model.config, options, count, window)
        });
        Ok((self.walk(options, None).plan(kernels, carried)?, carried))
    }

    /// The text that is measured on.
    pub(super) fn eval_text(&self) -> Option<&Path> {
        self.args.eval.as_deref()
    }

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
        show_plan(self.device, self.args, &kernels, self.selection, walk.as_ref(), &learning)?;
        self.args.walk.check_all(walk.as_ref(), carried, &learning).map(|()| Outcome::Done)
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
        let staged = self.run_stages(&mut folder, &kernels, prepared, masks, tensors, &earlier, &stop)?;
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

    fn interrupted(
        &self,
        folder: &mut RunFolder,
        done: &str,
        report: &Reporting,
        info: &Map<String, Value>,
    ) -> Outcome {
        folder.keep();
        report.write(folder.path(), Value::Object(info.clone()), false);
        let path = folder.path().display();
        self.device.note(|| format!("interrupted: {done}; the same command with --resume {path} goes on"));
        Outcome::Interrupted
    }

    pub(super) fn blocks(&self) -> usize {
        self.model.config.num_layers
    }

    pub(super) fn provenance(&self) -> Provenance {
        Provenance::new(self.args.method.name(), self.args.windows.seed)
    }
}
