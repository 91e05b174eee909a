//! The options of a run as TOML: what `prune` writes beside its result, and what `--config` reads.
//!
//! A key is the long name of an option, and `model` the folder; a flag is true or false; an option that may be given several times is a
//! list. What stands on the command line goes before what stands in the file.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Id};
use toml::{Table, Value};

use super::CliError;
use crate::model::read_named;

/// More than any options take.
const LIMIT_BYTES: u64 = 1 << 20;
/// What says where a run goes and what is shown of it, not what it does.
const NOT_WRITTEN: [&str; 11] = [
    "config",
    "out",
    "resume",
    "quiet",
    "json",
    "dry-run",
    "profile",
    "no-report",
    "serve",
    "help",
    "version",
];

/// The key of an option: its long name, or its place.
pub(super) fn key(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), str::to_string)
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// A word of the command line as the simplest TOML value that reads back as the same word.
fn value_of(word: &str) -> Value {
    let integer = word.parse::<i64>().ok().filter(|i| i.to_string() == word).map(Value::Integer);
    let float =
        || word.parse::<f64>().ok().filter(|f| f.is_finite() && f.to_string() == word).map(Value::Float);
    integer.or_else(float).unwrap_or_else(|| Value::String(word.into()))
}

/// The options that `matches` of `command` have resolved to: given ones, and defaults but for options of all commands.
pub(super) fn resolved(command: &Command, matches: &ArgMatches) -> String {
    let (mut table, mut nameless) = (Table::new(), String::new());
    // Defaults that a given option takes the place of: the method beside a recipe.
    let given = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let replaced: Vec<&Id> = command
        .get_arguments()
        .filter(given)
        .flat_map(|arg| command.get_arg_conflicts_with(arg))
        .map(Arg::get_id)
        .collect();
    for arg in command.get_arguments() {
        let (id, key) = (arg.get_id().as_str(), key(arg));
        let source = matches.value_source(id);
        let written = match source {
            Some(ValueSource::CommandLine | ValueSource::EnvVariable) => true,
            Some(_) => !arg.is_global_set() && !replaced.contains(&arg.get_id()),
            None => false,
        };
        if !written || NOT_WRITTEN.contains(&key.as_str()) {
            continue;
        }
        let value = if takes_value(arg) {
            let words: Option<Vec<&str>> =
                matches.get_raw(id).into_iter().flatten().map(OsStr::to_str).collect();
            let Some(words) = words else {
                nameless.push_str(&format!(
                    "# {key}: its name is no UTF-8, which this file must be; give it on the command line.\n"
                ));
                continue;
            };
            let mut values: Vec<Value> = words.into_iter().map(value_of).collect();
            match (arg.get_action(), values.len()) {
                (ArgAction::Append, _) | (_, 2..) => Value::Array(values),
                (_, 1) => values.remove(0),
                _ => continue,
            }
        } else {
            Value::Boolean(matches.get_flag(id))
        };
        table.insert(key, value);
    }
    format!(
        "# The options of this run; `maskwright prune --config FILE --out DIR` repeats it.\n{nameless}{table}"
    )
}

/// The keys of the options that were given, here or in a file, with another value than they have by default.
pub(super) fn given(command: &Command, matches: &ArgMatches) -> BTreeSet<String> {
    let is_given = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        let told = matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
        told && !matches
            .get_raw(id)
            .is_some_and(|words| words.eq(arg.get_default_values().iter().map(|value| value.as_os_str())))
    };
    command.get_arguments().filter(is_given).map(key).collect()
}

/// Replaces `--config FILE` of the subcommand `name` by what the file says, as far as the command line does not say it.
///
/// # Errors
/// A file that cannot be read, is no TOML, or has a key that is no option.
pub(super) fn expand(command: &Command, name: &str, args: Vec<OsString>) -> Result<Vec<OsString>, CliError> {
    let given = command.clone().ignore_errors(true).try_get_matches_from(&args);
    let Some((chosen, given)) = given.as_ref().ok().and_then(ArgMatches::subcommand) else {
        return Ok(args);
    };
    let path = given.try_get_one::<PathBuf>("config").ok().flatten().filter(|_| chosen == name);
    let (Some(path), Some(sub)) = (path, command.find_subcommand(name)) else { return Ok(args) };
    let mut out = args;
    for (key_given, value) in read(path)? {
        let found = sub
            .get_arguments()
            .find(|arg| key(arg) == key_given && !NOT_WRITTEN.contains(&key_given.as_str()));
        let Some(arg) = found else {
            return Err(bad(path, format!("`{key_given}` is no option of {name} that a file may have")));
        };
        // Also in another word: a recipe given here takes the place of the file's method, and the other way round.
        let conflicts =
            |a: &Arg, b: &Arg| sub.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
        let is_here = |arg: &Arg| {
            let id = arg.get_id().as_str();
            given.try_contains_id(id).unwrap_or(false)
                && given.value_source(id) == Some(ValueSource::CommandLine)
        };
        let replaced = |other: &&Arg| is_here(other) && (conflicts(other, arg) || conflicts(arg, other));
        if !is_here(arg) && !sub.get_arguments().any(|other| replaced(&other)) {
            out.extend(words(path, arg, &key_given, value)?);
        }
    }
    Ok(out)
}

fn bad(path: &Path, problem: String) -> CliError {
    CliError::Usage(format!("{}: {problem}", path.display()))
}

fn read(path: &Path) -> Result<Table, CliError> {
    let bytes = read_named(path, LIMIT_BYTES, "give the config.toml of a run")?;
    let text = String::from_utf8_lossy(&bytes);
    text.parse::<Table>().map_err(|e| bad(path, format!("it is no TOML: {}", e.message())))
}

/// An option of a file as words of a command line.
fn words(path: &Path, arg: &Arg, key: &str, value: Value) -> Result<Vec<OsString>, CliError> {
    let wrong = |wanted: &str| bad(path, format!("`{key}` must be {wanted}"));
    if !takes_value(arg) {
        return match value {
            Value::Boolean(true) => Ok(vec![format!("--{key}").into()]),
            Value::Boolean(false) => Ok(Vec::new()),
            _ => Err(wrong("true or false")),
        };
    }
    let values = match value {
        Value::Array(values) => values,
        one => vec![one],
    };
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        _ => Err(wrong("a text, a number, or a list of them")),
    };
    let mut texts = values.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if let (ArgAction::Set, Some(delimiter), 2..) = (arg.get_action(), arg.get_value_delimiter(), texts.len())
    {
        texts = vec![texts.join(&delimiter.to_string())];
    }
    let word =
        |text: String| if arg.is_positional() { text.into() } else { format!("--{key}={text}").into() };
    Ok(texts.into_iter().map(word).collect())
}
