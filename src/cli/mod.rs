//! The command line: one file per subcommand, thin.
//!
//! Exit codes: 0 done; 1 an error, said on standard error, or of `verify` a folder that is not right; 2 a command line that cannot be
//! understood; 130 interrupted by Ctrl-C after what there was so far was kept. `help.rs` tells them to users.

mod choices;
mod compare;
mod context;
mod devices;
mod error;
mod eval;
mod export;
mod generate;
mod help;
mod inspect;
#[cfg(test)]
mod numbers;
#[cfg(test)]
mod options_doc;
mod output;
mod plan;
mod prune;
mod report;
mod shell;
mod signals;
mod variance;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use context::Context;
use error::CliError;

use crate::run::{self, DeviceSpec, LAST, Outcome};

/// Learns strict N:M sparsity masks (keep N of M weights) for decoder language models on any GPU.
#[derive(Parser)]
#[command(name = "maskwright", version, max_term_width = 110)]
#[command(after_help = help::MASKWRIGHT)]
struct Cli {
    #[command(flatten)]
    device: DeviceSpec,
    /// No progress, no notes, no warnings: only results and errors
    #[arg(long, global = true, help_heading = "Device and output", display_order = LAST)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the GPU adapters, their limits, and which one is used and why
    Devices(devices::Args),
    /// Measure the perplexity of a model, dense or under a mask
    Eval(eval::Args),
    /// Let a model write: continue a prompt, dense and under a mask, or write texts of its own to calibrate on
    Generate(generate::Args),
    /// Choose or learn a mask and write it, with the masked model
    Prune(Box<prune::Args>),
    /// Run several methods under one budget and put them into one table
    Compare(Box<compare::Args>),
    /// Write the masked model or the mask in a format for deployment
    Export(export::ExportArgs),
    /// Set the pruned weights of a mask to zero again, in any checkpoint of the same shapes
    ApplyMask(export::ApplyArgs),
    /// Measure mean and variance of MaskPro's gradient estimators
    Variance(Box<variance::Args>),
    /// Check a masked model folder: strictly N:M, and nothing else touched
    Verify(verify::Args),
    /// Write a page about one run or several: results, curves, errors, time, memory
    Report(report::Args),
    /// Show pattern and sparsity of a mask or a masked model, and how far two agree
    Inspect(inspect::Args),
    /// Print a script that lets a shell complete commands and options
    Completions(shell::CompletionsArgs),
    /// Print or write manual pages
    Man(shell::ManArgs),
}

/// The whole command line.
fn full_command() -> clap::Command {
    complete(Cli::command())
}

/// Builds a command line; options of the device are hidden from the help and the manual pages of commands that use none.
fn complete(mut command: clap::Command) -> clap::Command {
    command.build();
    command.mut_subcommands(|sub| {
        let useful: &[&str] = match sub.get_name() {
            "export" | "apply-mask" | "verify" | "inspect" => &["quiet", "revision"],
            "report" => &["quiet"],
            "devices" => &["device", "quiet"],
            "completions" | "man" => &[],
            "prune" => {
                // In place: what is built keeps its order.
                return sub.mut_args(|arg| match arg.get_id().as_str() {
                    "out" => arg.required_unless_present_any(["dry_run", "resume"]),
                    _ => arg,
                });
            }
            _ => return sub,
        };
        sub.mut_args(|arg| {
            let useless = arg.is_global_set() && !useful.contains(&arg.get_id().as_str());
            if useless { arg.hide(true) } else { arg }
        })
    })
}

impl Cli {
    /// Parses the arguments, with those of a file of options in it; clap's own errors, help and version end the process.
    fn of(args: Vec<std::ffi::OsString>) -> Result<Self, CliError> {
        const WITH_FILE: &str = "prune";
        let command = full_command();
        let args = run::expand(&command, WITH_FILE, args)?;
        Ok(Self::from_arg_matches(&command.get_matches_from(args)).unwrap_or_else(|e| e.exit()))
    }
}

/// Parses the arguments, runs the command, prints its error.
pub fn main() -> ExitCode {
    let cli = match Cli::of(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    let level = if cli.quiet { "error" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format_target(false)
        .init();
    // Without it a signal ends the process as it does any other.
    if let Err(e) = signals::watch() {
        log::warn!("{e}");
    }
    match execute(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command line, the program's name first, within this process and without a handler of signals; the error is what would be printed. A
/// command line that cannot be understood ends the process. For tests.
#[doc(hidden)]
pub fn run(args: Vec<std::ffi::OsString>) -> Result<(), String> {
    Cli::of(args).and_then(execute).map(|_| ()).map_err(|e| e.to_string())
}

/// Runs the command.
fn execute(cli: Cli) -> Result<Outcome, CliError> {
    let context = &Context { device: cli.device, quiet: cli.quiet };
    match cli.command {
        Command::Devices(args) => devices::run(context, &args),
        Command::Eval(args) => eval::run(context, &args),
        Command::Generate(args) => generate::run(context, &args),
        Command::Prune(args) => prune::run(context, *args),
        Command::Compare(args) => compare::run(context, &args),
        Command::Export(args) => export::export(context, &args),
        Command::ApplyMask(args) => export::apply(context, &args),
        Command::Variance(args) => variance::run(context, *args),
        Command::Verify(args) => verify::run(context, &args),
        Command::Report(args) => report::run(&args),
        Command::Inspect(args) => inspect::run(context, &args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::full_command;

    /// Every command has examples that are not wrapped, and every option says what it is and what holds without it.
    #[test]
    fn help_is_whole() {
        let command = full_command();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let name = sub.get_name();
            let below = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = below.split_once("Examples:\n").map_or("", |(_, examples)| examples);
            let start = format!("  maskwright {name}");
            let count = examples.lines().filter(|line| line.starts_with(&start)).count();
            assert!(count >= 2, "{name}: {count} examples");
            let long = below.lines().find(|line| line.starts_with("  ") && line.chars().count() > 98);
            assert_eq!(long, None, "{name}: would be wrapped");
            for arg in sub.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let (id, help) = (arg.get_id(), arg.get_help().map(ToString::to_string).unwrap_or_default());
                assert!(!help.is_empty(), "{name}: {id} has no help");
                let without = arg.is_positional()
                    || arg.is_required_set()
                    || !arg.get_default_values().is_empty()
                    || ["[default: ", "needed"].iter().any(|said| help.contains(said));
                assert!(without || !arg.get_action().takes_values(), "{name}: {id} does not say its default");
            }
        }
    }
}
