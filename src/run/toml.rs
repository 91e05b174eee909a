//! A run's options as TOML: what `prune` writes beside its result, and what `--config` reads.
//!
//! A key is the long name of an option, and `model` the folder; a flag is true or false; an option that may be given several times is a
//! list. What stands on the command line goes before what stands in the file.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;
use serde_json::Map;
use toml::{Table, Value};

use super::{DeviceSpec, RunError, RunSpec};
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
const NAME: &str = "prune";

/// All options of a run, each as its field describes it.
pub(crate) fn described() -> Command {
    DeviceSpec::augment_args(RunSpec::augment_args(Command::new(NAME)))
}

/// The key of an option: its long name, or its place.
pub(crate) fn key(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), str::to_string)
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// The fields that have a value.
fn fields(of: &impl Serialize) -> Map<String, serde_json::Value> {
    let serde_json::Value::Object(mut all) = serde_json::json!(of) else { return Map::new() };
    all.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
    all
}

/// As TOML, which has no larger integers than those of 64 bits with a sign; numbers of single precision with as few digits as name them.
fn value_of(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Bool(on) => Value::Boolean(on),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(float)) if number.is_f64() => {
                let single = float as f32;
                let short = (f64::from(single) == float).then(|| single.to_string().parse().ok()).flatten();
                Value::Float(short.unwrap_or(float))
            }
            _ => Value::String(number.to_string()),
        },
        Json::Array(list) => Value::Array(list.into_iter().map(value_of).collect()),
        Json::String(text) => Value::String(text),
        other => Value::String(other.to_string()),
    }
}

impl RunSpec {
    /// As `config.toml` holds it, the method always named; [`RunSpec::from_toml`] gives the same run again.
    pub fn to_toml(&self) -> String {
        let mut all = fields(self);
        if self.recipe.is_none() {
            all.insert("method".into(), self.method().name().into());
        }
        let usual = fields(&DeviceSpec::default());
        all.extend(fields(&self.device).into_iter().filter(|(key, value)| usual.get(key) != Some(value)));
        let written = all.into_iter().filter(|(key, _)| !NOT_WRITTEN.contains(&key.as_str()));
        let command = described();
        let appended = |wanted: &str| {
            command.get_arguments().any(|a| key(a) == wanted && matches!(a.get_action(), ArgAction::Append))
        };
        let table: Table = written
            .map(|(key, value)| match value_of(value) {
                // One value of an option that takes several with commas.
                Value::Array(mut one) if one.len() == 1 && !appended(&key) => (key, one.remove(0)),
                value => (key, value),
            })
            .collect();
        let mut nameless = String::new();
        for (key, path) in
            [("model", Some(&self.model)), ("calib", self.calib.as_ref()), ("eval", self.eval.as_ref())]
        {
            if path.is_some_and(|path| path.to_str().is_none()) {
                nameless.push_str(&format!(
                    "# {key}: its name is no UTF-8, which this file must be; give it on the command line.\n"
                ));
            }
        }
        format!(
            "# The options of this run; `maskwright prune --config FILE --out DIR` repeats it.\n{nameless}{table}"
        )
    }

    /// What [`RunSpec::to_toml`] gives, or a part of it: all else is as in [`RunSpec::new`].
    ///
    /// # Errors
    /// A text that is no TOML, a key that is no option, a value that is none of that option.
    pub fn from_toml(text: &str) -> Result<Self, RunError> {
        let (file, command) = (Path::new("the options"), described());
        let mut all = vec![OsString::from(NAME)];
        for (key, value) in table(file, text)? {
            let arg = option(&command, file, &key)?;
            all.extend(words(file, arg, &key, value)?);
        }
        Self::parse(all).map_err(|e| {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default();
            RunError::Options(first.strip_prefix("error: ").unwrap_or(first).into())
        })
    }

    /// The run that options mean, behind a first word.
    pub(crate) fn parse(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let matches = described().try_get_matches_from(words)?;
        let device = DeviceSpec::from_arg_matches(&matches)?;
        Ok(Self { device, ..Self::from_arg_matches(&matches)? })
    }

    /// The keys of what has another value than by default.
    pub fn given(&self) -> BTreeSet<String> {
        let usual = fields(&Self::new(&self.model));
        fields(self)
            .into_iter()
            .filter(|(key, value)| usual.get(key) != Some(value))
            .map(|(key, _)| key)
            .collect()
    }
}

/// The option that a file's key names.
fn option<'c>(command: &'c Command, path: &Path, wanted: &str) -> Result<&'c Arg, RunError> {
    let is = |arg: &&Arg| key(arg) == wanted && !NOT_WRITTEN.contains(&wanted);
    let unknown = || bad(path, format!("`{wanted}` is no option of {NAME} that a file may have"));
    command.get_arguments().find(is).ok_or_else(unknown)
}

/// Replaces `--config FILE` of the subcommand `name` by what the file says, as far as the command line does not say it.
///
/// # Errors
/// A file that cannot be read, is no TOML, or has a key that is no option.
pub(crate) fn expand(command: &Command, name: &str, args: Vec<OsString>) -> Result<Vec<OsString>, RunError> {
    let given = command.clone().ignore_errors(true).try_get_matches_from(&args);
    let Some((chosen, given)) = given.as_ref().ok().and_then(ArgMatches::subcommand) else {
        return Ok(args);
    };
    let path = given.try_get_one::<PathBuf>("config").ok().flatten().filter(|_| chosen == name);
    let (Some(path), Some(sub)) = (path, command.find_subcommand(name)) else { return Ok(args) };
    let mut out = args;
    for (key_given, value) in read(path)? {
        let arg = option(sub, path, &key_given)?;
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

fn bad(path: &Path, problem: String) -> RunError {
    RunError::Options(format!("{}: {problem}", path.display()))
}

fn read(path: &Path) -> Result<Table, RunError> {
    let bytes = read_named(path, LIMIT_BYTES, "give the config.toml of a run")?;
    table(path, &String::from_utf8_lossy(&bytes))
}

fn table(path: &Path, text: &str) -> Result<Table, RunError> {
    text.parse::<Table>().map_err(|e| bad(path, format!("it is no TOML: {}", e.message())))
}

/// An option of a file as words of a command line.
fn words(path: &Path, arg: &Arg, key: &str, value: Value) -> Result<Vec<OsString>, RunError> {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Words by which an option has another value than by default.
    pub(crate) fn another(arg: &Arg) -> Vec<String> {
        let key = key(arg);
        let long = |value: &str| vec![format!("--{key}={value}")];
        if !takes_value(arg) {
            return vec![format!("--{key}")];
        }
        if let Some(value) = arg
            .get_possible_values()
            .iter()
            .map(|v| v.get_name().to_string())
            .rfind(|v| !arg.get_default_values().iter().any(|d| d.to_str() == Some(v.as_str())))
        {
            return long(&value);
        }
        match key.as_str() {
            "model" => vec!["another".into()],
            "pattern" => long("4:8"),
            "temperature" | "kappa" => long("0.7:0.1"),
            "only" => [long("mlp"), long("layers.3.")].concat(),
            "steps" | "repair-steps" => long("7,9"),
            "rate" | "logits" | "noise" | "repair-rate" => long("0.3,0.1"),
            "seed" => long("18446744073709551615"),
            "weight-rate" => vec!["--joint".into(), "--weight-rate=0.002".into()],
            _ => {
                let numbers = ["5", "0.25"].map(&long);
                let words = ["4:8", "some word", "rows16"].map(&long);
                let fits = |words: &Vec<String>| described().try_get_matches_from(all(words)).is_ok();
                numbers.into_iter().chain(words).find(fits).unwrap_or_else(|| panic!("no value for {key}"))
            }
        }
    }

    fn all(words: &[String]) -> Vec<OsString> {
        let own = !words.iter().any(|word| !word.starts_with("--"));
        let model = own.then(|| "models/village".to_string());
        [NAME.to_string()].into_iter().chain(words.iter().cloned()).chain(model).map(OsString::from).collect()
    }

    #[test]
    fn every_option_comes_back_from_its_file() {
        let mut tried = 0;
        for arg in described().get_arguments() {
            let key = key(arg);
            if NOT_WRITTEN.contains(&key.as_str()) {
                continue;
            }
            let words = another(arg);
            let spec = RunSpec::parse(all(&words)).unwrap_or_else(|e| panic!("{words:?}: {e}"));
            assert_ne!(spec, RunSpec::new("models/village"), "{words:?} changes nothing");
            let text = spec.to_toml();
            let again = RunSpec::from_toml(&text).unwrap_or_else(|e| panic!("{e}:\n{text}"));
            // The file also says what chooses the mask where nobody did.
            let method = spec.recipe.is_none().then(|| spec.method());
            assert_eq!(again, RunSpec { method, ..spec }, "{words:?}:\n{text}");
            assert_eq!(again.to_toml(), text);
            tried += 1;
        }
        assert!(tried > 50, "{tried} options");
    }

    #[test]
    fn numbers_keep_their_digits() {
        let spec =
            RunSpec::parse(all(&["--rate=0.1".into(), "--damp=0.01".into(), "--tolerance=0.000001".into()]));
        let text = spec.expect("a run").to_toml();
        for line in ["rate = 0.1", "damp = 0.01", "tolerance = 1e-6"] {
            let found = text.lines().any(|l| l == line || l == line.replace("1e-6", "0.000001"));
            assert!(found, "{line} in\n{text}");
        }
    }

    #[test]
    fn what_is_no_option_is_named() {
        let said = |text: &str| RunSpec::from_toml(text).expect_err(text).to_string();
        assert!(said("model = \"a\"\nstep = 3").contains("`step` is no option"));
        assert!(said("model = \"a\"\nsteps = \"many\"").contains("many"));
        assert!(said("steps = ").contains("TOML"));
    }
}
