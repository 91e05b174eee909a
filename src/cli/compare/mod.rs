//! `maskwright compare`: methods under one budget, each as a run of `prune`, in one table.

mod budget;
mod row;
mod table;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use self::row::Row;
use self::table::Comparison;
use super::calib_args::{CalibArgs, CalibChoice, at_least_one, tokens_of_window};
use super::context::{DeviceArgs, Model, stop_flag};
use super::method::Method;
use super::method_args::SelectArgs;
use super::report;
use super::train_args::Recipe;
use super::{Cli, CliError, Command, Outcome, prune, prune_args};
use crate::calib::Windows;
use crate::folder::{FolderError, RunFolder, RunLock, RunPaths};
use crate::fsio::{FsError, check_room, create_folder};
use crate::prune::PruneError;

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
            Self::Recipe(recipe) => format!("{recipe:?}").to_lowercase(),
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
    select: SelectArgs,
    #[command(flatten)]
    windows: CalibArgs,
}

/// One `compare`, with everything opened and checked.
struct Job<'a> {
    device: &'a DeviceArgs,
    args: &'a Args,
    model: Model,
    choice: CalibChoice,
    calib: Windows,
    stop: Arc<AtomicBool>,
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Result<Outcome, CliError> {
    let started = Instant::now();
    if !(args.budget.is_finite() && args.budget > 0.0) {
        return Err(CliError::Usage("--budget must be a positive number of seconds".into()));
    }
    let model = Model::open_checked(device, &args.model)?;
    let choice = args.windows.learned(model.config.max_position_embeddings);
    let options = args.windows.texts.options();
    let calib = choice.read(&model, &args.calib, &options)?;
    model.windows(&args.eval, &options, ("--eval-window", args.eval_window), args.eval_windows)?;
    RunFolder::check_new(&args.out).map_err(|e| match e {
        // A comparison is not resumed.
        FolderError::Exists { path, entry } => CliError::Fs(FsError::NotEmpty { path, entry }),
        other => other.into(),
    })?;
    check_room(&args.out).map_err(FolderError::os(&args.out))?;
    let job = Job { device, args, model, choice, calib, stop: stop_flag()? };
    let mut contenders: Vec<Contender> = Vec::new();
    for &contender in &args.methods {
        // Options that `prune` does not know end the command before any work.
        job.words(contender, &[])?;
        if !contenders.contains(&contender) {
            contenders.push(contender);
        }
    }
    let gpu = device.open()?;
    let mut comparison = Comparison::new(&job, gpu.describe(), device.preset(&gpu)?.name);
    drop(gpu);
    create_folder(&args.out)?;
    let _lock = RunLock::take(&RunPaths::new(&args.out))?;
    let mut outcome = Outcome::Done;
    for (i, &contender) in contenders.iter().enumerate() {
        let name = contender.name();
        device.note(|| format!("== {} of {}: {name}", i + 1, contenders.len()));
        let row = job.row(contender);
        if let Some(error) = &row.error {
            device.note(|| format!("{name}: {error}"));
        }
        comparison.add(row, started);
        comparison.write(&args.out)?;
        if job.stop.load(Ordering::SeqCst) {
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

/// `--name=value`.
fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut word = OsString::from(format!("--{name}="));
    word.push(value);
    word
}

impl Job<'_> {
    /// Where the run of a method goes.
    fn folder(&self, contender: Contender) -> PathBuf {
        self.args.out.join(contender.name())
    }

    /// The run of `contender`, as the options of `prune`; `steps` of each of its objectives, if given.
    fn words(&self, contender: Contender, steps: &[u32]) -> Result<prune_args::Args, CliError> {
        let (args, choice) = (self.args, self.choice);
        let mut words: Vec<OsString> = vec!["maskwright".into(), "prune".into()];
        words.extend(self.device.words());
        words.push(option(
            match contender {
                Contender::Method(_) => "method",
                Contender::Recipe(_) => "recipe",
            },
            contender.name(),
        ));
        words.push(option("calib", &args.calib));
        words.push(option("eval", &args.eval));
        words.push(option("out", self.folder(contender)));
        let mut put = |name: &str, value: String| words.push(option(name, value));
        put("eval-window", args.eval_window.to_string());
        args.eval_windows.into_iter().for_each(|n| put("eval-windows", n.to_string()));
        put("pattern", args.select.pattern.to_string());
        args.select.only.iter().for_each(|part| put("only", part.clone()));
        put("windows", choice.windows.to_string());
        put("window", choice.window.to_string());
        put("segments", choice.name().to_string());
        put("seed", args.windows.seed.to_string());
        args.windows.texts.words().for_each(|(name, value)| put(name, value));
        if !steps.is_empty() {
            put("steps", steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        }
        let flags = [("skip-indivisible", args.select.skip_indivisible), ("no-model", args.no_model)];
        words.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!("--{name}").into()));
        words.extend(args.more.iter().cloned());
        words.extend(["--".into(), args.model.clone().into_os_string()]);
        match Cli::of(words)?.command {
            Command::Prune(mut prune) => {
                prune.silent = true;
                Ok(*prune)
            }
            // The first word is `prune`.
            _ => Err(CliError::Usage("behind `--` stand options of prune".into())),
        }
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
            Ok(Outcome::Interrupted) | Err(CliError::Prune(PruneError::Stopped)) => {
                Err("interrupted before it had a result".into())
            }
            Err(e) => Err(e.to_string()),
        };
        Row::new(name, &folder, found)
    }

    fn attempt(&self, contender: Contender) -> Result<Outcome, CliError> {
        let steps = match self.args.steps {
            Some(Steps::Default) => Vec::new(),
            Some(Steps::Number(n)) => vec![n],
            None => self.steps_within(self.words(contender, &[])?, self.args.budget)?,
        };
        prune::run(self.device, self.words(contender, &steps)?)
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
