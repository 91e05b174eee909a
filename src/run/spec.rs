//! All that a user can ask of a run.

use std::path::PathBuf;

use clap::ArgAction::Set;
use serde::Serialize;

use super::calib::{CalibChoice, CalibSpec, at_least_one, tokens_of_window};
use super::described::path;
use super::learn::LearnSpec;
use super::method::{Method, Recipe};
use super::permuted::Permute;
use super::start::StartSpec;
use super::walk::{RepairSpec, WalkSpec};
use super::{DeviceSpec, RunError};
use crate::mask::Pattern;
use crate::model::Architecture;
use crate::prune::learn::{Objective, Stage};
use crate::prune::{OneShot, OneShotOptions, Repair, Selection, StartMask, select};

/// Which projections are pruned, and how.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "What is pruned")]
pub struct SelectSpec {
    /// Pattern: keep N of M consecutive weights along the input features (M 2, 4, 8 or 16)
    #[arg(long, value_name = "N:M", default_value = "2:4")]
    pub pattern: Pattern,
    /// Prune only projections whose name contains this, such as mlp or layers.3.; may be given several times [default: all]
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Leave projections dense whose input features do not divide by M, instead of stopping
    #[arg(long)]
    pub skip_indivisible: bool,
}

impl SelectSpec {
    /// The projections of a model.
    ///
    /// # Errors
    /// As [`select`].
    pub fn of(&self, config: &Architecture) -> Result<Selection, RunError> {
        Ok(select(config, self.pattern, &self.only, self.skip_indivisible)?)
    }
}

/// A run as it is asked for: what `config.toml` of a run folder holds, and the options of `maskwright prune` but for what is only shown.
///
/// Every field is described once, by its comment here: that is the option's help, its line in docs/options.md and its key in the file.
/// What is `None` or empty takes the default that the comment tells, which may depend on the method; [`RunSpec::new`] has all of them.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct RunSpec {
    /// Model folder in Hugging Face layout, or its name on the hub, ORG/NAME (for --dry-run its config.json is enough)
    #[serde(serialize_with = "path")]
    pub model: PathBuf,
    /// Calibration text: a text file; .jsonl, .json or .parquet of documents with a `text`, `content` or `messages`; a folder of these; .gz and .zst work, too
    /// [default: none, enough for magnitude and --dry-run]
    #[arg(long, value_name = "FILE")]
    #[serde(serialize_with = "path")]
    pub calib: Option<PathBuf>,
    /// What chooses the mask [default: relaxed]
    #[arg(long, value_enum)]
    pub method: Option<Method>,
    /// A whole run in one word, in place of --method and --objective [default: none]
    #[arg(long, value_enum, conflicts_with_all = ["method", "objective"])]
    pub recipe: Option<Recipe>,
    /// Folder of the run; must be new or empty; needed but with --dry-run and --resume
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub out: Option<PathBuf>,
    /// Folder of an unfinished run: goes on where it stopped, in place of --out [default: a new run]
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// TOML file of options, such as the config.toml that every run leaves; those given here go before it [default: none]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Do not write the masked model, only the mask
    #[arg(long)]
    pub no_model: bool,
    /// Do not write report.html
    #[arg(long)]
    #[serde(skip)]
    pub no_report: bool,
    /// Held-out text on which dense, start and result are measured at the end [default: nothing is measured]
    #[arg(long, value_name = "FILE")]
    #[serde(serialize_with = "path")]
    pub eval: Option<PathBuf>,
    /// Tokens of an evaluation window
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = tokens_of_window())]
    pub eval_window: usize,
    /// Only the first N windows of the evaluation text [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub eval_windows: Option<usize>,
    // Their headings hold for what comes behind them.
    /// Which projections, and how.
    #[command(flatten)]
    #[serde(flatten)]
    pub select: SelectSpec,
    /// Channels that are put into an order first under which masks lose less, several with commas; the written model is an ordinary one
    /// that computes the same (docs/permutation.md)
    #[arg(long, value_enum, value_delimiter = ',', action = Set, num_args = 1, default_value = "none")]
    pub permute: Vec<Permute>,
    /// Which windows of the calibration text.
    #[command(flatten)]
    #[serde(flatten)]
    pub windows: CalibSpec,
    /// The start mask.
    #[command(flatten)]
    #[serde(flatten)]
    pub start: StartSpec,
    /// The walk over the blocks.
    #[command(flatten)]
    #[serde(flatten)]
    pub walk: WalkSpec,
    /// What learns.
    #[command(flatten)]
    #[serde(flatten)]
    pub learn: LearnSpec,
    /// What happens to the weights.
    #[command(flatten)]
    #[serde(flatten)]
    pub repair: RepairSpec,
    /// The device, whose options every command has.
    #[arg(skip)]
    #[serde(skip)]
    pub device: DeviceSpec,
}

/// What learns behind the one-shot walk, and within it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stages {
    /// On the layer objective, within the walk.
    pub(super) layer: Option<Stage>,
    /// Behind the walk, in their order.
    pub(super) behind: Vec<Stage>,
}

impl Stages {
    pub(super) fn all(&self) -> impl Iterator<Item = &Stage> {
        self.layer.iter().chain(&self.behind)
    }
}

impl RunSpec {
    /// The defaults, for a model.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), ..super::described::defaults() }
    }

    /// What chooses the mask.
    pub fn method(&self) -> Method {
        self.recipe.map(Recipe::method).or(self.method).unwrap_or(Method::Relaxed)
    }

    /// What is started from: a method's name, or the path of a mask file.
    pub fn start_name(&self) -> &str {
        self.start.name(self.method())
    }

    /// How calibration windows are taken from a text for a model of this reach.
    pub(super) fn choice(&self, config: &Architecture) -> CalibChoice {
        let reach = config.max_position_embeddings;
        match self.method() {
            Method::Relaxed | Method::Maskpro if self.learn.only_layer() => self.windows.one_shot(reach),
            Method::Maskpro => self.windows.maskpro(),
            Method::Relaxed | Method::Maskllm | Method::Proxsparse => self.windows.learned(reach),
            _ => self.windows.one_shot(reach),
        }
    }

    /// Options of the walk: of the one-shot method, or of the one that makes a learning method's start mask and goes on from it on the
    /// layer objective where `stages` say so; none for a start mask from a file that is not gone on from.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub(super) fn walk_options(&self, stages: &Stages) -> Result<Option<OneShotOptions>, RunError> {
        let (name, learn) = (self.start_name(), &stages.layer);
        let from = StartSpec::method(name);
        let made = match (self.method().one_shot(), from) {
            (Some(OneShot::Descent), _) => (OneShot::Descent, StartSpec::of_descent(name)?),
            (Some(OneShot::Given), None) => (OneShot::Given, StartMask::File),
            (Some(OneShot::Given), Some(_)) => {
                return Err(RunError::options("--method given needs a mask file: --start FILE"));
            }
            (Some(method), _) => (method, StartMask::Wanda),
            (None, Some(method)) => (method, StartMask::Wanda),
            (None, None) if learn.is_some() => (OneShot::Given, StartMask::File),
            (None, None) => return Ok(None),
        };
        let options = self.walk.options(self.select.pattern, made, &self.repair)?;
        if self.method().one_shot().is_some() {
            return Ok(Some(options));
        }
        let last = !stages.behind.iter().any(|stage| stage.trains.masks());
        match options.repair {
            Repair::None => {}
            Repair::Lstsq if learn.is_some() && last => {}
            _ => {
                return Err(RunError::options(
                    "a start mask keeps the weights: learning methods take --repair block or model, --objective layer also lstsq",
                ));
            }
        }
        Ok(Some(OneShotOptions { learn: learn.clone(), ..options }))
    }

    /// Whether MaskPro learns on the model's loss.
    pub(super) fn policy(&self) -> bool {
        self.method() == Method::Maskpro && self.learn.trains(self.method()).is_none()
    }

    /// What is learned in the walk, and the stages behind it.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub(super) fn stages(&self) -> Result<Stages, RunError> {
        let repairs = self.repair.trained();
        self.learn.check(self.policy(), self.start_name())?;
        if self.policy() && !repairs.is_empty() {
            return Err(RunError::options(
                "maskpro on the model's loss takes no --repair block or model; repair the weights under its mask with \
                 --method given --start RUN/mask.safetensors --repair ...",
            ));
        }
        if self.policy() && self.resume.is_some() {
            return Err(RunError::options(
                "--resume does not go on with maskpro on the model's loss; a mask learned so far continues with --start FILE",
            ));
        }
        let mut behind = {
            let (pattern, seed) = (self.select.pattern, self.windows.seed);
            self.learn.stages((self.method(), self.recipe), pattern, &self.repair, seed)?
        };
        behind.iter_mut().for_each(|stage| stage.clamp = self.repair.clamp_weights);
        let in_walk = behind.first().is_some_and(|stage| stage.objective == Objective::Layer);
        let layer = in_walk.then(|| behind.remove(0));
        Ok(Stages { layer, behind })
    }
}
