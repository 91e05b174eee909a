//! The documents are held against the program: every command in a block `sh` runs, links lead somewhere, error messages that are quoted
//! exist, so do options, tasks and files that are named.
//!
//! Blocks `sh no-run` (other machines, GPUs, the network) are shown as ignored, one by one. Commands run in one folder, in the order
//! of the documents, each distinct one once, with options that make them cheap (`documents/commands.rs`).

mod cli_tools;
mod documents;
mod host_fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use cli_tools::{command, preset, succeeds, village};
use documents::commands::{Workplace, examples, lines};
use documents::{Document, all, repository};
use host_fixture::Scratch;
use libtest_mimic::{Arguments, Failed, Trial};

/// Options of other programs that the documents name.
const FOREIGN: &[&str] = &[
    "--sparsity",
    "--onnx",
    "--bench",
    "--no-default-features",
    "--no-deps",
    "--open",
    "--summary",
    "--fp16",
    "--verbose",
    "--path",
    "--test",
    "--exact",
    "--nocapture",
    "--version",
    "--help",
];

fn main() {
    let arguments = Arguments::from_args();
    let told = arguments.nocapture;
    let mut trials = vec![
        trial("commands", move || commands(told)),
        trial("links", links),
        trial("error_messages", error_messages),
        trial("exit_codes", exit_codes),
        trial("names", names),
        trial("options", options),
        trial("measured_numbers", measured_numbers),
    ];
    let python = python();
    let missing = python.is_none();
    let reads = move || python.as_deref().map_or(Ok(()), python_reads_a_mask);
    trials.push(trial("python_reads_a_mask", reads).with_ignored_flag(missing));
    for document in all() {
        for block in document.blocks().iter().filter(|b| b.info.ends_with(" no-run")) {
            let first = block.lines.first().map_or("", String::as_str).trim();
            let name = format!("not run: {} {first}", document.at(block.line));
            trials.push(trial(&name, || Ok(())).with_ignored_flag(true));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: &str, run: impl FnOnce() -> Result<(), Vec<String>> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(|wrong| Failed::from(wrong.join("\n"))))
}

fn verdict(wrong: Vec<String>) -> Result<(), Vec<String>> {
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// The commands of the help, in the order in which their examples follow from each other.
fn subcommands() -> Vec<String> {
    let help = succeeds(&["--help"]).out;
    let listed = help.split_once("Commands:\n").expect("a list").1;
    let names = listed.lines().take_while(|l| !l.is_empty()).filter(|l| !l.starts_with("   "));
    let mut names: Vec<String> = names
        .filter_map(|l| l.split_whitespace().next())
        .filter(|n| *n != "help")
        .map(str::to_string)
        .collect();
    names.sort_by_key(|name| name != "prune");
    names
}

fn help_of(subcommand: &str) -> String {
    let args: Vec<&str> = [subcommand, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
    // Wide enough that no option's name is broken.
    let ran: cli_tools::Ran = command().args(args).env("COLUMNS", "200").output().expect("a start").into();
    ran.out
}

/// Every command in the documents and in the help texts runs to a good end; with `--nocapture` each is `told` with its time.
fn commands(told: bool) -> Result<(), Vec<String>> {
    let mut all_lines = Vec::new();
    let mut wrong = Vec::new();
    for document in all() {
        match lines(&document, other_command) {
            Ok(lines) => all_lines.extend(lines),
            Err(e) => wrong.push(e),
        }
        wrong.extend(hidden(&document));
    }
    all_lines.extend(examples("", &help_of("")));
    for name in subcommands() {
        all_lines.extend(examples(&name, &help_of(&name)));
    }
    preset();
    let workplace = Workplace::new();
    let mut seen = BTreeSet::new();
    for line in all_lines {
        if !seen.insert(line.words.line()) {
            continue;
        }
        let started = Instant::now();
        if let Err(e) = workplace.run(&line.words) {
            wrong.push(format!("{}: {}\n    {e}", line.at, line.words.line()));
        }
        if told {
            eprintln!("{:.2} s  {}  {}", started.elapsed().as_secs_f64(), line.at, line.words.line());
        }
    }
    assert!(seen.len() > 40, "commands are not found any more: {}", seen.len());
    verdict(wrong)
}

/// A line of a block `sh` that is not maskwright's: a task of `./x`, or cargo on something that is there.
fn other_command(words: &[String]) -> Result<(), String> {
    let all: Vec<&str> = words.iter().map(String::as_str).collect();
    match all[..] {
        ["./x", task, ..] if tasks().contains(task) => Ok(()),
        ["./x", task, ..] => Err(format!("./x has no task {task}")),
        ["cargo", "test", ref more @ ..] => {
            let tests = more
                .windows(2)
                .filter(|pair| pair[0] == "--test")
                .map(|pair| format!("tests/{}.rs", pair[1]));
            for file in tests {
                if !repository().join(&file).is_file() {
                    return Err(format!("there is no {file}"));
                }
            }
            Ok(())
        }
        ["cargo", "run", "--example", name, ..]
            if repository().join(format!("examples/{name}.rs")).is_file() =>
        {
            Ok(())
        }
        _ => Err(format!(
            "this is no line that is checked; put it into a block `sh no-run`: {}",
            words.join(" ")
        )),
    }
}

fn tasks() -> BTreeSet<String> {
    let script = fs::read_to_string(repository().join("x")).expect("the task runner");
    let usage = script
        .split_once("usage: ./x TASK")
        .and_then(|(_, rest)| rest.split_once("\nTEXT"))
        .expect("its usage")
        .0;
    let lines = usage.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    lines.filter_map(|l| l.split_whitespace().next()).map(str::to_string).collect()
}

/// Commands that no test would see: in indented blocks, or in blocks of another kind.
fn hidden(document: &Document) -> Vec<String> {
    let is_command = |line: &str| {
        let line = line.trim_start().trim_start_matches("$ ");
        ["maskwright ", "./x ", "cargo ", "python", "pip "].iter().any(|start| line.starts_with(start))
    };
    let indented = document.prose().into_iter().filter(|(_, l)| l.starts_with("    ") && is_command(l));
    let mut out: Vec<String> = indented
        .map(|(n, l)| format!("{}: put into a block `sh` or `sh no-run`: {l}", document.at(n)))
        .collect();
    for block in document.blocks() {
        let seen = ["sh", "toml"].contains(&block.info.as_str()) || block.info.ends_with(" no-run");
        if !seen && block.lines.iter().any(|line| is_command(line)) {
            out.push(format!("{}: a block `{}` with a command", document.at(block.line), block.info));
        }
        if block.info.is_empty() {
            out.push(format!("{}: a block without a kind: sh, sh no-run, text", document.at(block.line)));
        }
    }
    out
}

/// Relative links lead to files, and to headings in them.
fn links() -> Result<(), Vec<String>> {
    let documents = all();
    let anchors: BTreeMap<_, _> =
        documents.iter().map(|d| (d.path().canonicalize().expect("a file"), d.anchors())).collect();
    let (mut wrong, mut linked, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for document in &documents {
        for (number, target) in document.links() {
            count += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let own = document.path();
            let file = if path.is_empty() { own } else { own.parent().expect("a folder").join(path) };
            let Ok(file) = file.canonicalize() else {
                wrong.push(format!("{}: {target} leads nowhere", document.at(number)));
                continue;
            };
            let there =
                anchor.is_empty() || anchors.get(&file).is_some_and(|all| all.iter().any(|a| a == anchor));
            if !there {
                wrong.push(format!("{}: {target}: there is no such heading", document.at(number)));
            }
            if file != document.path() {
                linked.insert(file);
            }
        }
    }
    for document in &documents {
        let path = document.path().canonicalize().expect("a file");
        if document.name != "README.md" && !linked.contains(&path) {
            wrong.push(format!("no document links to {}", document.name));
        }
    }
    assert!(count > 50, "links are not found any more");
    verdict(wrong)
}

/// All of the source as one text for each file, strings that go over lines joined.
fn sources(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let mut joined = String::new();
            for line in text.lines() {
                match line.trim_start().strip_suffix('\\') {
                    Some(part) => joined.push_str(part),
                    None => joined.push_str(&format!("{}\n", line.trim_start())),
                }
            }
            into.push(joined.replace("\\\"", "\"").replace("{{", "{").replace("}}", "}"));
        }
    }
}

/// Whether the parts follow each other in one line of the text.
fn has_in_order(text: &str, parts: &[&str]) -> bool {
    text.lines().any(|line| {
        let mut rest = Some(line);
        for part in parts {
            rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, rest)| rest);
        }
        rest.is_some()
    })
}

/// What the troubleshooting page quotes is what the program says. A dash of three dots stands for what changes.
fn error_messages() -> Result<(), Vec<String>> {
    let mut files = Vec::new();
    sources(&repository().join("src"), &mut files);
    let documents = all();
    let page = documents.iter().find(|d| d.name == "docs/troubleshooting.md").expect("the page");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (number, line) in page.prose() {
        let Some(message) = line.strip_prefix("### `").and_then(|rest| rest.strip_suffix('`')) else {
            continue;
        };
        count += 1;
        let parts: Vec<&str> = message.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
        if !files.iter().any(|text| has_in_order(text, &parts)) {
            wrong.push(format!("{}: the program does not say this: {message}", page.at(number)));
        }
    }
    assert!(count >= 20, "messages are not found any more: {count}");
    verdict(wrong)
}

/// The table of exit codes is that of the help.
fn exit_codes() -> Result<(), Vec<String>> {
    let help = succeeds(&["--help"]).out;
    let told = help.split_once("Exit codes:\n").expect("exit codes").1;
    let told: Vec<&str> = told
        .lines()
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    let documents = all();
    let page = documents.iter().find(|d| d.name == "docs/troubleshooting.md").expect("the page");
    let section = page.text.split_once("## Exit codes").expect("a section").1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter_map(|l| l.strip_prefix("| ")?.split(" |").next());
    let rows: Vec<&str> = rows.filter(|cell| cell.parse::<u8>().is_ok()).collect();
    let codes: Vec<&str> = told.into_iter().filter(|word| word.parse::<u8>().is_ok()).collect();
    if rows == codes {
        Ok(())
    } else {
        Err(vec![format!("the help has {codes:?}, {} has {rows:?}", page.name)])
    }
}

/// Tasks of `./x`, test files and files of the repository that the documents name in passing are there.
fn names() -> Result<(), Vec<String>> {
    let mut wrong = Vec::new();
    let (tasks, mut files) = (tasks(), 0);
    for document in all() {
        for (number, code) in document.code() {
            let at = document.at(number);
            let words: Vec<String> = code.split_whitespace().map(str::to_string).collect();
            match words.first().map(String::as_str) {
                Some("./x") if words.len() > 1 && !tasks.contains(&words[1]) => {
                    wrong.push(format!("{at}: ./x has no task {}", words[1]));
                }
                Some("cargo") if words.get(1).is_some_and(|w| w == "test") => {
                    wrong.extend(other_command(&words).err())
                }
                Some(path) if words.len() == 1 => {
                    let of_ours = ["src/", "tests/", "docs/", "shaders/", "benches/", "models/", "fuzz/"];
                    let is_file = of_ours.iter().any(|folder| path.starts_with(folder));
                    // Patterns, names in capitals and what a run makes are no files.
                    let open = path.contains(['*', '{']) || path.chars().any(|c| c.is_ascii_uppercase());
                    if is_file
                        && !open
                        && !path.starts_with("fuzz/corpus")
                        && !path.starts_with("fuzz/artifacts")
                    {
                        files += 1;
                        let near = document.path().parent().expect("a folder").join(path);
                        if !repository().join(path).exists() && !near.exists() {
                            wrong.push(format!("{at}: there is no {path}"));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    assert!(files > 10, "files are not found any more");
    verdict(wrong)
}

/// Options that the documents name exist, where a command is named with them in that command.
fn options() -> Result<(), Vec<String>> {
    let mut helps: BTreeMap<String, String> =
        subcommands().into_iter().map(|s| (s.clone(), help_of(&s))).collect();
    helps.insert(String::new(), help_of(""));
    let has = |help: &str, option: &str| {
        help.match_indices(option)
            .any(|(at, _)| !help[at + option.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '-'))
    };
    let (mut wrong, mut count) = (Vec::new(), 0);
    for document in all().iter().filter(|d| d.name == "README.md" || d.name.starts_with("docs/")) {
        for (number, code) in document.code() {
            let words: Vec<&str> = code.split_whitespace().collect();
            let of = match words[..] {
                ["maskwright", sub, ..] | [sub, ..] => helps.get(sub),
                [] => None,
            };
            for word in words.iter().filter(|w| w.starts_with("--") && w.len() > 2) {
                let option = word.split(['=', ',', ':', '.']).next().unwrap_or(word).trim_end_matches(')');
                count += 1;
                let known = match of {
                    Some(help) => has(help, option) || has(&helps[""], option),
                    None => helps.values().any(|help| has(help, option)),
                };
                if !known && !FOREIGN.contains(&option) {
                    wrong.push(format!("{}: {option} is no option: `{code}`", document.at(number)));
                }
            }
        }
    }
    assert!(count > 50, "options are not found any more: {count}");
    verdict(wrong)
}

/// The page that compares the methods has no number that was not measured: each with a decimal point stands in experiments.md.
fn measured_numbers() -> Result<(), Vec<String>> {
    let documents = all();
    let text = |name: &str| documents.iter().find(|d| d.name == name).expect("a page");
    let numbers = |line: &str| {
        let words =
            line.split(|c: char| !(c.is_ascii_digit() || c == '.')).map(|w| w.trim_matches('.').to_string());
        // Papers have numbers of four digits, a point and five.
        words.filter(|w| w.contains('.') && w.len() < 10).collect::<Vec<_>>()
    };
    let measured: BTreeSet<String> = text("docs/experiments.md").text.lines().flat_map(numbers).collect();
    let page = text("docs/methods.md");
    let mut wrong = Vec::new();
    for (number, line) in page.prose() {
        let unknown = numbers(line).into_iter().filter(|n| !measured.contains(n));
        wrong.extend(unknown.map(|n| format!("{}: {n} is not in docs/experiments.md", page.at(number))));
    }
    verdict(wrong)
}

/// A Python that has what the snippet needs: `MASKWRIGHT_PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("MASKWRIGHT_PYTHON").unwrap_or_else(|_| "python3".into());
    let probe = Command::new(&python).args(["-c", "import numpy, safetensors"]).output();
    probe.is_ok_and(|ran| ran.status.success()).then_some(python)
}

/// The lines of Python in docs/mask-file.md give the masks that the written models have, packed in both ways.
fn python_reads_a_mask(python: &str) -> Result<(), Vec<String>> {
    let (folder, mut wrong) = (Scratch::new(), Vec::new());
    for pattern in ["2:4", "1:4", "3:4"] {
        let out = folder.join(pattern.replace(':', "-").as_str());
        succeeds(args![
            "prune",
            village(),
            "--method",
            "magnitude",
            "--pattern",
            pattern,
            "--out",
            out,
            "--preset",
            preset()
        ]);
        let script = repository().join("tests/interop/check_mask_snippet.py");
        let document = repository().join("docs/mask-file.md");
        let ran = Command::new(python)
            .args(args![script, document, out.join("mask.safetensors"), out.join("model")])
            .output();
        let ran: cli_tools::Ran = ran.expect("a start").into();
        if ran.code != Some(0) {
            wrong.push(format!("{pattern}: {}{}", ran.out, ran.err));
        }
    }
    verdict(wrong)
}
