//! `maskwright compare`: methods under one budget, each as a run of `prune`, in one table.

mod row;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use self::row::Row;
use self::table::Comparison;
use super::context::Context;
use super::{CliError, Outcome, report, signals};
use crate::calib::Windows;
use crate::export::hf;
use crate::folder::{FolderError, RunFolder, RunLock, RunPaths};
use crate::fsio::{FsError, check_room, check_space, create_folder};
use crate::prune::PruneError;
use crate::run::{
    CalibChoice, CalibSpec, Method, Model, Recipe, RunError, RunPlan, RunSpec, SelectSpec, at_least_one,
    tokens_of_window,
};

/// What may be compared.
const NAMES: [&str; 11] = [
    "magnitude",
    "wanda",
    "ria",
    "sparsegpt",
    "descent",
    "maskpro",
    "relaxed",
    "maskllm",
    "proxsparse",
    "fast",
    "best",
];
/// What is compared by default: all but `fast`, which is `descent`.
const ALL: &str = "magnitude,wanda,ria,sparsegpt,descent,maskpro,relaxed,maskllm,proxsparse,best";

/// A method, or a recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Contender {
    Method(Method),
    Recipe(Recipe),
}

impl Contender {
    /// One of [`NAMES`].
    fn named(name: &str) -> Result<Self, String> {
        let recipe = || Recipe::from_str(name, false).map(Self::Recipe);
        Method::from_str(name, false).map(Self::Method).or_else(|_| recipe())
    }

    /// As on the command line; also the name of its folder.
    fn name(self) -> String {
        match self {
            Self::Method(method) => method.name(),
            Self::Recipe(recipe) => recipe.name(),
        }
    }
}

/// Steps of the learning methods, in place of a budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Steps {
    /// Those that each method has by default
    Default,
    Number(u32),
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            _ => text
                .parse()
                .ok()
                .filter(|n| *n > 0)
                .map(Self::Number)
                .ok_or_else(|| "a number of steps is needed, or the word `default`".into()),
        }
    }
}

#[derive(clap::Args)]
#[command(
    after_help = "Every method gets the same calibration windows, evaluation windows and pattern, otherwise its own defaults, and is run as \
`maskwright prune` would run it, into a folder of its name below --out. The steps of a method that learns are chosen by timing a few of \
them, in the proportions of its defaults, so that they take --budget seconds; its start mask comes on top, and counts in the table's \
seconds.

Writes into --out beside the runs: compare.json and compare.md, after every method, and at the end report.html, a page about all runs. A method that fails has its reason in the table, and \
the exit code is then 1. Ctrl-C ends the method at work, keeps what is finished, and exits with code 130.

Examples:
  maskwright compare models/village --calib models/village/calib.txt \\
      --eval models/village/heldout.txt --out runs/all
  maskwright compare models/village --calib models/village/calib.txt \\
      --eval models/village/heldout.txt \\
      --methods wanda,descent,best --budget 20 --window 128 --out runs/three -- --batch 4"
)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout, or its name on the hub, ORG/NAME
    model: PathBuf,
    /// Calibration text: a text file; .jsonl, .json or .parquet of documents with a `text`, `content` or `messages`; a folder of these; .gz and .zst work, too
    #[arg(long, value_name = "FILE")]
    calib: PathBuf,
    /// Text on which all are measured
    #[arg(long, value_name = "FILE")]
    eval: PathBuf,
    /// Tokens of an evaluation window
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = tokens_of_window())]
    eval_window: usize,
    /// Only the first N windows of the evaluation text [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    eval_windows: Option<usize>,
    /// Methods and recipes, with commas, in their order [default: all]
    #[arg(
        long,
        value_name = "METHOD",
        value_delimiter = ',',
        default_value = ALL,
        hide_default_value = true,
        value_parser = PossibleValuesParser::new(NAMES).try_map(|name| Contender::named(&name))
    )]
    methods: Vec<Contender>,
    /// Seconds that the steps of each learning method take
    #[arg(long, value_name = "SECONDS", default_value_t = 45.0)]
    budget: f64,
    /// Steps of each objective of the learning methods instead, or `default` for those that each has by default [default: as --budget
    /// allows]
    #[arg(long, value_name = "N|default", conflicts_with = "budget")]
    steps: Option<Steps>,
    /// Folder of the comparison, with a run folder for each method; must be new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Do not write the masked models
    #[arg(long)]
    no_model: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Options of `prune` for every method, behind `--`
    #[arg(last = true, value_name = "OPTION")]
    more: Vec<OsString>,
    // Their headings hold for what comes behind them.
    #[command(flatten)]
    select: SelectSpec,
    #[command(flatten)]
    windows: CalibSpec,
}

/// What every run has, and `prune` would have as options behind `--`, if `--` is there.
const OWN: [&str; 9] =
    ["method", "recipe", "calib", "eval", "eval-window", "eval-windows", "out", "resume", "steps"];

/// One `compare`, with everything opened and checked.
struct Job<'a> {
    context: &'a Context,
    args: &'a Args,
    model: Model,
    choice: CalibChoice,
    calib: Windows,
    /// What the runs have in common.
    common: RunSpec,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Outcome, CliError> {
    let started = Instant::now();
    if !(args.budget.is_finite() && args.budget > 0.0) {
        return Err(CliError::Usage("--budget must be a positive number of seconds".into()));
    }
    // Options that `prune` does not know end the command before any work.
    let common = common(context, args)?;
    let model = context.checked_model(&args.model)?;
    let texts = args.windows.texts.options();
    let choice = args.windows.learned(model.config.max_position_embeddings);
    let calib = choice.read(&model, &args.calib, &texts, context)?;
    model.windows(&args.eval, &texts, ("--eval-window", args.eval_window), args.eval_windows, context)?;
    RunFolder::check_new(&args.out).map_err(|e| match e {
        // A comparison is not resumed.
        FolderError::Exists { path, entry } => RunError::from(FsError::NotEmpty { path, entry }),
        other => other.into(),
    })?;
    check_room(&args.out).map_err(FolderError::os(&args.out))?;
    if !common.no_model {
        let models = hf::written_bytes(&model.checkpoint)?.saturating_mul(args.methods.len() as u64);
        check_space(&args.out, models)?;
    }
    let mut common = common;
    // The same windows for all, whatever a method would take by itself.
    common.windows.take(&choice);
    let job = Job { context, args, model, choice, calib, common };
    signals::guard();
    let mut contenders: Vec<Contender> = Vec::new();
    for &contender in &args.methods {
        if !contenders.contains(&contender) {
            contenders.push(contender);
        }
    }
    let gpu = context.open()?;
    let mut comparison = Comparison::new(&job, gpu.describe(), context.preset(&gpu)?.name);
    drop(gpu);
    create_folder(&args.out)?;
    let _lock = RunLock::take(&RunPaths::new(&args.out))?;
    let mut outcome = Outcome::Done;
    for (i, &contender) in contenders.iter().enumerate() {
        let name = contender.name();
        context.note(|| format!("== {} of {}: {name}", i + 1, contenders.len()));
        let row = job.row(contender);
        if let Some(error) = &row.error {
            context.note(|| format!("{name}: {error}"));
        }
        comparison.add(row, started);
        comparison.write(&args.out)?;
        if signals::stopped() {
            outcome = Outcome::Interrupted;
            break;
        }
    }
    let runs: Vec<PathBuf> = contenders.iter().map(|&contender| job.folder(contender)).collect();
    report::beside(&runs, &args.out);
    if args.json {
        println!("{}", serde_json::json!(comparison));
    } else {
        println!("{}", comparison.text());
        println!("written: {}", args.out.display());
    }
    match (outcome, comparison.failed().next()) {
        (Outcome::Done, Some((first, reason))) => Err(CliError::Compared {
            failed: comparison.failed().count(),
            all: contenders.len(),
            first: first.into(),
            reason: reason.into(),
        }),
        (outcome, _) => Ok(outcome),
    }
}

/// What the runs have in common: the options behind `--`, which may not be those that `compare` itself decides.
fn common(context: &Context, args: &Args) -> Result<RunSpec, CliError> {
    let model = [OsString::from("--"), args.model.clone().into_os_string()];
    let words = std::iter::once(OsString::from("prune")).chain(args.more.iter().cloned()).chain(model);
    let more = RunSpec::parse(words.collect()).unwrap_or_else(|e| e.exit());
    let given = more.given();
    let is_given = |own: &str| match own {
        "out" => more.out.is_some(),
        "resume" => more.resume.is_some(),
        _ => given.contains(own),
    };
    if let Some(own) = OWN.iter().find(|own| is_given(own)) {
        return Err(CliError::Usage(format!(
            "--{own} is decided by compare itself: leave it out behind `--`"
        )));
    }
    let usual = RunSpec::new(&args.model);
    if more.select != usual.select || more.windows != usual.windows || more.device != usual.device {
        return Err(CliError::Usage(
            "options of what is pruned, of calibration and of the device stand before `--`: all methods share them".into(),
        ));
    }
    Ok(RunSpec {
        calib: Some(args.calib.clone()),
        eval: Some(args.eval.clone()),
        eval_window: args.eval_window,
        eval_windows: args.eval_windows,
        no_model: args.no_model || more.no_model,
        select: args.select.clone(),
        windows: args.windows.clone(),
        device: context.device.clone(),
        ..more
    })
}

impl Job<'_> {
    /// Where the run of a method goes.
    fn folder(&self, contender: Contender) -> PathBuf {
        self.args.out.join(contender.name())
    }

    /// The run of `contender`; `steps` of each of its objectives, if given.
    fn spec(&self, contender: Contender, steps: Vec<u32>) -> RunSpec {
        let mut spec = self.common.clone();
        match contender {
            Contender::Method(method) => spec.method = Some(method),
            Contender::Recipe(recipe) => spec.recipe = Some(recipe),
        }
        spec.out = Some(self.folder(contender));
        spec.learn.steps = steps;
        spec
    }

    /// Runs a method and reads what it came to.
    fn row(&self, contender: Contender) -> Row {
        let (name, folder) = (contender.name(), self.folder(contender));
        let found = match self.attempt(contender) {
            Ok(Outcome::Done) => row::read(&self.model, &folder),
            // MaskPro writes the mask learned so far.
            Ok(Outcome::Interrupted) if RunPaths::new(&folder).run().exists() => {
                row::read(&self.model, &folder)
            }
            Ok(Outcome::Interrupted) | Err(RunError::Prune(PruneError::Stopped)) => {
                Err("interrupted before it had a result".into())
            }
            Err(e) => Err(e.to_string()),
        };
        Row::new(name, &folder, found)
    }

    fn attempt(&self, contender: Contender) -> Result<Outcome, RunError> {
        let given = match self.args.steps {
            Some(Steps::Number(n)) => vec![n],
            Some(Steps::Default) | None => Vec::new(),
        };
        let mut plan = RunPlan::new(self.spec(contender, given), self.context)?;
        if self.args.steps.is_none() {
            let steps = plan.steps_within(self.args.budget)?;
            plan.set_steps(steps)?;
        }
        Ok(plan.execute()?.outcome)
    }
}

/// The last part of a path.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_contender() {
        for name in NAMES {
            assert_eq!(Contender::named(name).map(Contender::name), Ok(name.to_string()));
        }
        assert!(ALL.split(',').all(|name| NAMES.contains(&name)));
        // A mask that is given is no method.
        let methods = Method::value_variants().iter().filter(|m| **m != Method::Given);
        assert!(methods.clone().all(|m| NAMES.contains(&m.name().as_str())));
    }

    #[test]
    fn steps_are_a_number_or_the_default() {
        assert_eq!("default".parse(), Ok(Steps::Default));
        assert_eq!("7".parse(), Ok(Steps::Number(7)));
        for bad in ["", "0", "-1", "1,2", "many"] {
            assert!(bad.parse::<Steps>().is_err(), "{bad}");
        }
    }
}
