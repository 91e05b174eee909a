//! The options of `maskwright prune`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::calib_args::{CalibArgs, CalibChoice, at_least_one, tokens_of_window};
use super::context::DeviceArgs;
use super::method::Method;
use super::method_args::{MaskProArgs, SelectArgs, StartArgs};
use super::report::ReportArgs;
use super::train_args::{Recipe, TrainArgs};
use super::unused::Readers;
use super::walk::WalkArgs;
use super::{CliError, help};
use crate::kernel::Kernels;
use crate::model::Architecture;
use crate::prune::learn::{Objective, Stage};
use crate::prune::plan::Carried;
use crate::prune::{OneShot, OneShotOptions, Selection, StartMask, select};

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
    pub(super) out: Option<PathBuf>,
    /// Folder of an unfinished run: goes on where it stopped, in place of --out [default: a new run]
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    pub(super) resume: Option<PathBuf>,
    /// Do not write the masked model, only the mask
    #[arg(long)]
    pub(super) no_model: bool,
    /// Held-out text on which dense, start and result are measured at the end [default: nothing is measured]
    #[arg(long, value_name = "FILE")]
    pub(super) eval: Option<PathBuf>,
    /// Tokens of an evaluation window
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = tokens_of_window())]
    pub(super) eval_window: usize,
    /// Only the first N windows of the evaluation text [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(super) eval_windows: Option<usize>,
    /// Print what memory and about what time the run would take, and stop
    #[arg(long)]
    pub(super) dry_run: bool,
    /// TOML file of options, such as the config.toml that every run leaves; those given here go before it [default: none]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) report: ReportArgs,
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
    pub(super) fn warn_of_unused(
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
        self.start.carried(&self.walk, gpu, config, options, (self.start.windows(count), window), spare)
    }

    pub(super) fn select(&self, config: &Architecture, device: &DeviceArgs) -> Result<Selection, CliError> {
        let selection = select(config, self.select.pattern, &self.select.only, self.select.skip_indivisible)?;
        for name in &selection.skipped {
            device.note(|| format!("left dense: {name}"));
        }
        Ok(selection)
    }
}
