//! Every option that takes a number, at numbers that nobody means: a result or an error, never a panic.

use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use super::{Cli, execute, full_command};

const NUMBERS: [&str; 11] =
    ["0", "1", "-1", "1e20", "1e-320", "4294967295", "18446744073709551615", "nan", "inf", "-inf", "1048577"];
/// Where a run takes its time.
const FEW: [&str; 4] = ["0", "1", "4294967295", "18446744073709551615"];

/// What an option needs beside it.
const BESIDE: [(&str, &[&str]); 2] = [("weight-rate", &["--joint"]), ("count", &["--out", "texts.jsonl"])];

/// A command that ends early, at a file that is not there, and one that goes on from there.
struct Tried {
    early: Vec<OsString>,
    deep: Deep,
}

enum Deep {
    None,
    /// With one option at a time.
    Each(Vec<OsString>),
    /// With all options together that the early one takes, at their largest and at their smallest values.
    Together(Vec<OsString>),
}

/// What is tried, and what came of it.
struct Trial {
    command: clap::Command,
    panics: Vec<String>,
    ran: usize,
}

fn words(words: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    std::iter::once("maskwright".into()).chain(words.iter().map(|w| w.as_ref().to_owned())).collect()
}

fn with(base: &[OsString], option: &str, value: &str) -> Vec<OsString> {
    let beside = BESIDE.iter().find(|(name, _)| *name == option).map_or(&[][..], |(_, words)| words);
    let given = [format!("--{option}={value}").into()];
    base.iter().cloned().chain(given).chain(beside.iter().map(OsString::from)).collect()
}

impl Trial {
    fn parsed(&self, words: &[OsString]) -> Result<Cli, clap::Error> {
        Cli::from_arg_matches(&self.command.clone().try_get_matches_from(words)?)
    }

    /// Whether the value is understood, whatever else the command line lacks.
    fn understood(&self, base: &[OsString], option: &str, value: &str) -> bool {
        let kind = self.parsed(&with(base, option, value)).err().map(|e| e.kind());
        !matches!(kind, Some(ErrorKind::ValueValidation | ErrorKind::InvalidValue))
    }

    /// Runs a command line to its end; whether that was the missing file.
    fn run(&mut self, words: &[OsString]) -> bool {
        let Ok(cli) = self.parsed(words) else { return false };
        self.ran += 1;
        match catch_unwind(AssertUnwindSafe(|| execute(cli).map(|_| ()))) {
            Ok(ended) => ended.is_err_and(|e| e.to_string().contains("missing.txt")),
            Err(_) => {
                self.panics.push(format!("{words:?}"));
                false
            }
        }
    }

    /// The options of a command that take a number.
    fn options(&self, base: &[OsString]) -> Vec<String> {
        let sub = self.command.find_subcommand(&*base[1].to_string_lossy()).expect("a command");
        let all = sub.get_arguments().filter(|arg| arg.get_action().takes_values());
        let numeric =
            |name: &&str| self.understood(base, name, "1") && !self.understood(base, name, "a word");
        all.filter_map(|arg| arg.get_long()).filter(numeric).map(String::from).collect()
    }

    /// Tries all; the number of options.
    fn all(&mut self, tried: &Tried) -> usize {
        let options = self.options(&tried.early);
        for option in &options {
            for value in NUMBERS {
                self.run(&with(&tried.early, option, value));
                if let Deep::Each(base) = &tried.deep
                    && FEW.contains(&value)
                {
                    self.run(&with(base, option, value));
                }
            }
        }
        if let Deep::Together(deep) = &tried.deep {
            for values in
                [["18446744073709551615", "4294967295", "1e20", "1048577"], ["0", "1e-320", "1", "-1"]]
            {
                let (mut early, mut deep) = (tried.early.clone(), deep.clone());
                for option in &options {
                    let taken = values.into_iter().find(|value| self.run(&with(&early, option, value)));
                    if let Some(value) = taken {
                        (early, deep) = (with(&early, option, value), with(&deep, option, value));
                    }
                }
                assert!(early.len() > tried.early.len() + 9, "{early:?}");
                self.run(&deep);
            }
        }
        options.len()
    }
}

#[test]
fn no_number_makes_a_command_panic() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/village");
    let folder = std::env::temp_dir().join(format!("maskwright-numbers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (text, out, missing) = (folder.join("text.txt"), folder.join("out"), folder.join("missing.txt"));
    std::fs::write(&text, "Once upon a time there was a miller who had a cart. ".repeat(40)).unwrap();
    let here: &[&dyn AsRef<OsStr>] = &[&"--preset", &"rows16"];
    let prune = |method: &[&dyn AsRef<OsStr>], plan: &[&dyn AsRef<OsStr>]| {
        let (early, plan) =
            ([&"--out" as &dyn AsRef<OsStr>, &out, &"--calib", &missing], [plan, here].concat());
        let command: &[&dyn AsRef<OsStr>] = &[&"prune", &model];
        Tried {
            early: words(&[command, method, &early].concat()),
            deep: Deep::Together(words(&[command, method, &plan].concat())),
        }
    };
    let early = |command: &[&dyn AsRef<OsStr>]| Tried { early: words(command), deep: Deep::None };
    let eval = |text: &Path| words(&[&"eval", &model, &"--preset", &"rows16", &"--text", &text]);
    let commands = [
        prune(&[&"--recipe", &"best"], &[&"--dry-run"]),
        prune(&[&"--method", &"maskpro"], &[&"--dry-run", &"--calib", &text]),
        Tried { early: eval(&missing), deep: Deep::Each(eval(&text)) },
        early(&[&"variance", &model, &"--calib", &text, &"--window", &"8", &"--start", &missing]),
        early(&[&"compare", &model, &"--out", &out, &"--calib", &missing, &"--eval", &missing]),
        early(&[&"generate", &model, &"--prompt", &"Once", &"--mask", &missing]),
        early(&[&"devices"]),
    ];
    let mut trial = Trial { command: full_command(), panics: Vec::new(), ran: 0 };
    let options: usize = commands.iter().map(|tried| trial.all(tried)).sum();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(options > 60 && trial.ran > 300, "{options} options, {} runs", trial.ran);
    assert!(trial.panics.is_empty(), "{} panics:\n{}", trial.panics.len(), trial.panics.join("\n"));
}
