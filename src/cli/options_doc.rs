//! `docs/options.md`, made of the same descriptions as the help and the manual pages.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, Command};

use crate::run::{key, readers};

const HEAD: &str = "# Options

Made of the command line's own descriptions (`MASKWRIGHT_BLESS=1 cargo test options_are_documented` writes this file). In the TOML
file of `prune --config` an option has its long name as key. What stands on the command line goes before what stands in the file. An
option of `prune` that nothing in a run reads is named in a warning; the last column says who reads it.
";

/// What an option says of itself, and its default.
fn told(arg: &Arg) -> (String, String) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let given: Vec<String> =
        arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    let (text, default) = match help.split_once("[default: ") {
        Some((text, default)) => (text.trim().to_string(), default.trim_end_matches(']').to_string()),
        None if arg.get_action().takes_values() => (help, given.join(", ")),
        None => (help, "off".into()),
    };
    let choices: Vec<String> = match arg.get_action().takes_values() {
        true => arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect(),
        false => Vec::new(),
    };
    let text = if choices.is_empty() { text } else { format!("{text}: {}", choices.join(", ")) };
    (text, default)
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn row(arg: &Arg, readers: Option<&BTreeMap<String, &'static str>>) -> String {
    let (text, default) = told(arg);
    let value = match (arg.get_action().takes_values(), arg.get_value_names()) {
        (true, Some(names)) => {
            format!(" {}", names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
        _ => String::new(),
    };
    let name = match arg.get_long() {
        Some(long) => format!("`--{long}{value}`"),
        None => format!("`{}`", value.trim()),
    };
    let mut line = format!("| {} | {} | {} |", name.replace('|', "\\|"), cell(&text), cell(&default));
    if let Some(readers) = readers {
        line.push_str(&format!(" {} |", readers.get(&key(arg)).copied().unwrap_or("every run")));
    }
    line
}

fn table(title: &str, args: &[&Arg], readers: Option<&BTreeMap<String, &'static str>>) -> String {
    let (more, line) = if readers.is_some() { (" read by |", "---|") } else { ("", "") };
    let rows: Vec<String> = args.iter().map(|arg| row(arg, readers)).collect();
    format!("{title}| option | what it is | default |{more}\n|---|---|---|{line}\n{}\n", rows.join("\n"))
}

fn page(command: &Command) -> String {
    let mut out = HEAD.to_string();
    let shown = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let prune_readers = readers();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        out.push_str(&format!("\n## {}\n\n{about}.\n", sub.get_name()));
        let readers = (sub.get_name() == "prune").then_some(&prune_readers);
        let own: Vec<&Arg> = sub.get_arguments().filter(shown).filter(|arg| !arg.is_global_set()).collect();
        let mut headings: Vec<Option<&str>> = own.iter().map(|arg| arg.get_help_heading()).collect();
        headings.dedup();
        let mut seen = Vec::new();
        for heading in headings {
            if seen.contains(&heading) {
                continue;
            }
            seen.push(heading);
            let args: Vec<&Arg> =
                own.iter().copied().filter(|arg| arg.get_help_heading() == heading).collect();
            let title = heading.map_or("\n".into(), |heading| format!("\n### {heading}\n\n"));
            out.push_str(&table(&title, &args, readers));
        }
    }
    let common: Vec<&Arg> = command.get_arguments().filter(shown).filter(|arg| arg.is_global_set()).collect();
    out.push_str("\n## Every command\n\nAs far as its help names them.\n");
    out.push_str(&table("\n", &common, None));
    out
}

#[test]
fn options_are_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md");
    let page = page(&super::full_command());
    if std::env::var_os("MASKWRIGHT_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs can be written");
    }
    let written = std::fs::read_to_string(&path).expect("docs/options.md");
    assert!(written == page, "docs/options.md is of other options: run the command in its head");
}
