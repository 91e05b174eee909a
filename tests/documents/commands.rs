//! Runs the commands of the documents, in a folder laid out as they say, at little cost.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Document;
use super::words::{self, Words};
use crate::cli_tools::{Ran, command, village, village_text};
use crate::host_fixture::Scratch;

/// What the placeholders of reference pages stand for; a guide names `models/village` itself. `RUN` and other folders are those
/// that commands before have written.
const PLACEHOLDERS: [&str; 5] = ["MODEL", "TEXT", "HELD_OUT", "TUNED", "QUESTIONS.jsonl"];

/// Options that make a command cheap: of which command, the option, the most that it may be, and whether it is added where it is not
/// given. Nothing else of a command is changed.
const CHEAP: &[(&str, &str, &str, bool)] = &[
    ("prune", "--windows", "4", true),
    ("prune", "--window", "32", true),
    ("prune", "--batch", "4", true),
    ("prune", "--steps", "2", true),
    ("prune", "--repair-steps", "2", true),
    ("prune", "--eval-window", "32", true),
    ("prune", "--eval-windows", "4", true),
    ("compare", "--methods", "magnitude,wanda", true),
    ("compare", "--budget", "0.2", true),
    ("compare", "--windows", "8", true),
    ("compare", "--window", "32", true),
    ("compare", "--eval-window", "32", true),
    ("compare", "--eval-windows", "4", true),
    ("eval", "--windows", "4", true),
    ("eval", "--window", "32", true),
    ("generate", "--tokens", "8", true),
    ("generate", "--count", "3", false),
    ("variance", "--windows", "8", true),
    ("variance", "--window", "32", true),
    ("variance", "--batch", "4", true),
    ("variance", "--samples", "4", true),
    ("variance", "--warm-up", "2", true),
];
/// Options beside which nothing is added.
const ALONE: [&str; 1] = ["--choices"];

/// A command of a document.
pub struct Line {
    /// Where it stands.
    pub at: String,
    pub words: Words,
}

/// The commands of a document's `sh` blocks; other lines are held against what there is by `check`, which says what is wrong.
pub fn lines(
    document: &Document,
    check: impl Fn(&[String]) -> Result<(), String>,
) -> Result<Vec<Line>, String> {
    let mut out = Vec::new();
    for block in document.blocks().iter().filter(|b| b.info == "sh") {
        for (offset, line) in words::joined(&block.lines) {
            let at = document.at(block.line + 1 + offset);
            let words = words::split(&line).map_err(|e| format!("{at}: {e}"))?;
            match words.command.first().map(String::as_str) {
                None => {}
                Some("maskwright") => out.push(Line { at, words }),
                Some(_) => check(&words.command).map_err(|e| format!("{at}: {e}"))?,
            }
        }
    }
    Ok(out)
}

/// The examples at the end of a help text.
pub fn examples(of: &str, help: &str) -> Vec<Line> {
    let below = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{of} has no examples")).1;
    let lines: Vec<String> = below.lines().take_while(|l| l.starts_with("  ")).map(str::to_string).collect();
    // Where the output goes is the shell's business.
    let own = |line: &str| {
        line.split(" > ").next().and_then(|l| l.split(" | ").next()).unwrap_or_default().to_string()
    };
    let at = |words| Line { at: format!("maskwright {of} --help"), words };
    words::joined(&lines)
        .into_iter()
        .map(|(_, line)| at(words::split(&own(&line)).expect("an example")))
        .collect()
}

/// The folder in which the commands run.
pub struct Workplace(Scratch);

impl Workplace {
    pub fn new() -> Self {
        let folder = Scratch::new();
        for name in ["models/village", "MODEL", "TUNED"] {
            fs::create_dir_all(folder.join(name)).expect("a folder");
            for file in fs::read_dir(village()).expect("the embedded model") {
                let file = file.expect("a file");
                fs::copy(file.path(), folder.join(name).join(file.file_name())).expect("a copy");
            }
        }
        let questions = super::repository().join("tests/fixtures/choices.jsonl");
        for (from, to) in [
            (village_text("calib"), "TEXT"),
            (village_text("heldout"), "HELD_OUT"),
            (questions, "QUESTIONS.jsonl"),
        ] {
            fs::copy(from, folder.join(to)).expect("a copy");
        }
        assert!(PLACEHOLDERS.iter().all(|name| folder.join(name).exists()));
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a command to its end; with `--resume` after having begun and killed it.
    pub fn run(&self, words: &Words) -> Result<(), String> {
        let mut args = cheap(&words.command[1..]);
        // Any port, since others may run tests here.
        args.iter_mut().filter(|word| *word == "--serve").for_each(|word| word.push_str("=127.0.0.1:0"));
        if let Some(out) = value(&args, "--out") {
            self.remove(out);
        }
        if let Some(run) = value(&args, "--resume") {
            self.begin(words, &args, run)?;
        }
        let ran: Ran = self.command(words, &args).output().expect("the command starts").into();
        match ran.code {
            Some(0) if ran.out.is_empty() => Err("it prints nothing".into()),
            Some(0) => Ok(()),
            code => Err(format!("exit code {code:?} of {}\n{}", args.join(" "), ran.err)),
        }
    }

    fn command(&self, words: &Words, args: &[String]) -> Command {
        let mut command = command();
        command.args(args).current_dir(self.path()).envs(words.variables.iter().cloned());
        command
    }

    /// What a command is to write must not be there.
    fn remove(&self, out: &str) {
        let path = self.path().join(out);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }

    /// An unfinished run for `--resume`: the same command with `--out`, killed once it has something to go on from.
    fn begin(&self, words: &Words, args: &[String], run: &str) -> Result<(), String> {
        let first: Vec<String> =
            args.iter().map(|word| if word == "--resume" { "--out".into() } else { word.clone() }).collect();
        let folder = self.path().join(run);
        for _ in 0..5 {
            self.remove(run);
            let mut child = self
                .command(words, &first)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("a start");
            let begun = Instant::now();
            while !folder.join("manifest.json").is_file()
                && begun.elapsed() < Duration::from_secs(60)
                && child.try_wait().expect("a state").is_none()
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = child.kill();
            child.wait().expect("an end");
            if folder.join("manifest.json").is_file() && !folder.join("run.json").exists() {
                return Ok(());
            }
        }
        Err(format!("{} left no unfinished run", first.join(" ")))
    }
}

/// The value of an option.
fn value<'a>(args: &'a [String], option: &str) -> Option<&'a str> {
    let at = args.iter().position(|word| word == option)?;
    args.get(at + 1).map(String::as_str)
}

/// The command with [`CHEAP`] options.
fn cheap(args: &[String]) -> Vec<String> {
    let mut out = args.to_vec();
    let alone = args.iter().any(|word| ALONE.contains(&word.as_str()));
    let ours = CHEAP.iter().filter(|(name, ..)| args.first().is_some_and(|first| first == name));
    for &(_, option, most, add) in ours {
        // What stands behind `--` is for another command.
        let end = out.iter().position(|word| word == "--").unwrap_or(out.len());
        match out[..end].iter().position(|word| word == option).and_then(|at| out.get_mut(at + 1)) {
            Some(value) => {
                *value = value.split(',').map(|given| lower(given, most)).collect::<Vec<_>>().join(",")
            }
            None if add && !alone => drop(out.splice(end..end, [option.to_string(), most.to_string()])),
            None => {}
        }
    }
    out
}

/// The lower of two numbers; what is no number stays as it is given.
fn lower(given: &str, most: &str) -> String {
    match (given.parse::<f64>(), most.parse::<f64>()) {
        (Ok(number), Ok(limit)) if number > limit => most.to_string(),
        _ => given.to_string(),
    }
}
