//! Runs the built command, and finds what the tests run it on.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// The arguments of a command line whose words may be paths.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$(std::ffi::OsString::from(&$arg)),*][..] };
}

/// The embedded model.
pub fn village() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/village")
}

/// A text of the embedded model: "calib" or "heldout".
pub fn village_text(name: &str) -> PathBuf {
    village().join(format!("{name}.txt"))
}

/// A model that lies next to the repository; for tests that are ignored where it does not.
pub fn shared_model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models").join(name)
}

/// The first three blocks of the embedded model: enough to go from block to block, in half of the time. One folder for all tests of all
/// binaries, which appears whole.
pub fn short_village() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let whole = std::fs::read(village().join("model.safetensors")).expect("the embedded model");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("village3-{}", fingerprint(&whole)));
        if folder.is_dir() {
            return folder;
        }
        let made = folder.with_extension(format!("made-{}", std::process::id()));
        copied_village(&made);
        std::fs::write(made.join("model.safetensors"), without_blocks(&whole, &[3, 4])).expect("weights");
        let mut config = json_file(&made.join("config.json"));
        config["num_hidden_layers"] = 3.into();
        std::fs::write(made.join("config.json"), config.to_string()).expect("a config");
        // Another process may have been faster.
        if std::fs::rename(&made, &folder).is_err() {
            assert!(folder.is_dir(), "no {}", folder.display());
            std::fs::remove_dir_all(&made).expect("gone");
        }
        folder
    };
    FOLDER.get_or_init(make).clone()
}

/// A name for these bytes.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// A safetensors file without the tensors of these blocks.
fn without_blocks(file: &[u8], blocks: &[usize]) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("a length")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let (mut kept, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, entry) in header.as_object().expect("tensors") {
        if blocks.iter().any(|block| name.contains(&format!("layers.{block}."))) {
            continue;
        }
        let mut entry = entry.clone();
        if let Some(offsets) = entry.get("data_offsets").cloned() {
            let [from, to] = [0, 1].map(|i| offsets[i].as_u64().expect("an offset") as usize);
            let at = data.len();
            data.extend_from_slice(&file[8 + length..][from..to]);
            entry["data_offsets"] = serde_json::json!([at, data.len()]);
        }
        kept.insert(name.clone(), entry);
    }
    let mut header = Value::Object(kept).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// A copy of the embedded model in `folder`.
pub fn copied_village(folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(village().join(name), folder.join(name)).expect("a copy");
    }
    folder.into()
}

/// A copy whose tokenizer also closes a text, as one trained with add_eos_token does.
pub fn closing_village(folder: &Path) -> PathBuf {
    copied_village(folder);
    let mut tokenizer = json_file(&village().join("tokenizer.json"));
    let template = &mut tokenizer["post_processor"];
    let end = serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    template["single"].as_array_mut().expect("a template").push(end);
    template["special_tokens"]["</s>"] = serde_json::json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    folder.into()
}

/// The command, with a cache for the measured preset that all tests have in common.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maskwright"));
    command.env("MASKWRIGHT_CACHE", env!("CARGO_TARGET_TMPDIR")).env_remove("RUST_LOG");
    command
}

/// The preset that the command chooses here. Named in every later run of a test binary: two first runs at once could
/// choose differently, and results are the same to the last bit only under one preset.
pub fn preset() -> &'static str {
    static PRESET: OnceLock<String> = OnceLock::new();
    PRESET.get_or_init(|| {
        let (model, text) = (village(), village_text("heldout"));
        let ran =
            succeeds(args!["eval", model, "--text", text, "--window", "32", "--windows", "1", "--json"]);
        json(&ran.out)["preset"].as_str().expect("a name").to_owned()
    })
}

/// What the command printed and how it ended.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    command().args(args).output().expect("the command starts").into()
}

/// Runs to a good end.
#[track_caller]
pub fn succeeds<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    let ran = run(args);
    assert_eq!(ran.code, Some(0), "standard error:\n{}", ran.err);
    ran
}

/// Runs `command` into an error: that exit code, nothing on standard output, no panic, and one error line that holds
/// `parts`. Returns that line.
#[track_caller]
pub fn fails_in(mut command: Command, code: i32, parts: &[&str]) -> String {
    let ran: Ran = command.output().expect("the command starts").into();
    assert_eq!(ran.code, Some(code), "{:?}: standard error:\n{}", command.get_args(), ran.err);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    assert_eq!(ran.out, "", "an error prints no result");
    let errors: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one error line:\n{}", ran.err);
    for part in parts {
        assert!(errors[0].contains(part), "should mention {part:?}:\n{}", errors[0]);
    }
    if code == 1 && command.get_program() == env!("CARGO_BIN_EXE_maskwright") {
        names_its_options(&command, errors[0]);
    }
    errors[0].to_owned()
}

/// An error that tells what to do tells it in options that the command has; what stands in backticks is another command.
#[track_caller]
fn names_its_options(command: &Command, error: &str) {
    let outside: String = error.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let words = outside.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let options: Vec<&str> =
        words.filter(|word| word.strip_prefix("--").is_some_and(|name| name.len() > 1)).collect();
    if options.is_empty() {
        return;
    }
    let name = command.get_args().next().unwrap_or_default();
    let help = self::command().arg(name).arg("--help").output().expect("the command starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for option in options {
        let has = |line: &str| line.split([' ', ',', '=', '[']).any(|word| word == option);
        assert!(help.lines().any(has), "{name:?} has no {option}, of which its error speaks:\n{error}");
    }
}

/// [`fails_in`] with the plain command and exit code 1, where the error is also the last line.
#[track_caller]
pub fn fails<S: AsRef<OsStr>>(args: &[S], parts: &[&str]) -> String {
    let mut command = command();
    command.args(args);
    fails_in(command, 1, parts)
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

pub fn json_file(path: &Path) -> Value {
    json(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<_> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The perplexity of a row of a run's closing table.
#[track_caller]
pub fn perplexity(run: &Value, model: &str) -> f64 {
    let rows = run["results"].as_array().expect("rows");
    let row = rows.iter().find(|r| r["model"] == model).unwrap_or_else(|| panic!("no row {model}: {run}"));
    row["perplexity"].as_f64().expect("a number")
}
