//! The folder of a run, read for its report.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::ReportError;
use super::curves::Curves;
use super::grid::{Cell, cells};
use crate::folder::{Phase, RunPaths};
use crate::fsio::{FsError, StandIn, open_plain};

/// A run as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Name of its folder.
    pub name: String,
    /// `run.json` without its projections; what is known of an unfinished run.
    pub info: Value,
    /// Whether it came to its end.
    pub finished: bool,
    /// `config.toml`.
    pub config: Option<String>,
    /// The steps of learning.
    pub curves: Vec<Curves>,
    /// The projections.
    pub cells: Vec<Cell>,
    /// How blocks, or the model, came out of the stages that learn.
    pub learned: Vec<Value>,
    /// Time by parts.
    pub phases: Vec<Phase>,
    /// Whether [`Run::phases`] are sums of the metrics' seconds, which leave out what lies between them.
    pub summed: bool,
    /// `windows.json`.
    pub windows: Value,
    /// What the page cannot show, and why.
    pub missing: Vec<String>,
}

/// What a run under way knows that its folder does not have yet.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// As `run.json` will begin.
    pub info: Value,
    /// As `config.toml` will be.
    pub config: String,
    /// Whether the run is at its end: [`Given::info`] is all of `run.json`.
    pub finished: bool,
}

/// The lines of `metrics.jsonl` by what they tell.
#[derive(Default)]
struct Metrics {
    steps: Vec<Value>,
    projections: Vec<Value>,
    learned: Vec<Value>,
    unreadable: usize,
}

impl Run {
    /// Reads the folder of a run, finished or not; `given` stands for files that are not there yet.
    ///
    /// # Errors
    /// [`ReportError::NoRun`] for a folder that is none, [`ReportError::Damaged`] for a `run.json` that is no JSON object,
    /// [`ReportError::Files`] when the system refuses.
    pub fn read(folder: &Path, given: Option<&Given>) -> Result<Self, ReportError> {
        let paths = RunPaths::new(folder);
        let metrics = Metrics::read(&paths.metrics())?;
        let run_file = paths.run();
        let at_end = given.filter(|given| given.finished).map(|given| Ok(given.info.clone()));
        let run = at_end.or(read_json(&run_file)?);
        if metrics.is_none() && run.is_none() {
            return Err(ReportError::NoRun { path: folder.into() });
        }
        let mut missing = Vec::new();
        let finished = run.is_some();
        let mut info = match run {
            Some(Ok(Value::Object(info))) => info,
            Some(Ok(_)) => {
                return Err(ReportError::Damaged { path: run_file, problem: "it is no JSON object".into() });
            }
            Some(Err(problem)) => return Err(ReportError::Damaged { path: run_file, problem }),
            None => {
                missing.push(
                    "The run is not finished (there is no run.json): results and totals come at its end."
                        .into(),
                );
                match given {
                    Some(Given { info: Value::Object(info), .. }) => info.clone(),
                    _ => conditions(&paths),
                }
            }
        };
        if metrics.is_none() {
            missing.push("There is no metrics.jsonl: no curves.".into());
        }
        let metrics = metrics.unwrap_or_default();
        if metrics.unreadable > 0 {
            missing
                .push(format!("Lines of metrics.jsonl that are no JSON: {}, left out.", metrics.unreadable));
        }
        let config = match std::fs::read_to_string(paths.config()) {
            Ok(text) => Some(text),
            Err(_) => given.map(|g| g.config.clone()).filter(|text| !text.is_empty()),
        };
        if config.is_none() && finished {
            missing.push("There is no config.toml: the run is of an older version.".into());
        }
        let windows = match read_json(&paths.windows())? {
            Some(Ok(windows)) => windows,
            Some(Err(problem)) => {
                missing.push(format!("windows.json is damaged: {problem}."));
                Value::Null
            }
            None => Value::Null,
        };
        let reports = match info.remove("projections") {
            Some(Value::Array(reports)) => reports,
            _ => Vec::new(),
        };
        let moved = match info.remove("moved") {
            Some(Value::Array(moved)) => moved,
            _ => Vec::new(),
        };
        let cells = cells(reports.iter().chain(&metrics.projections), &moved);
        let info = Value::Object(info);
        let (phases, summed) = phases(&info, &metrics);
        missing.extend(gaps(&info, &windows, &cells).into_iter().filter(|_| finished));
        Ok(Self {
            name: name(folder),
            curves: Curves::of(&metrics.steps, |stage| stage_title(&info, stage)),
            finished,
            config,
            cells,
            learned: metrics.learned,
            phases,
            summed,
            windows,
            missing,
            info,
        })
    }

    /// A row of the closing table: of "dense", "start" or "result".
    pub(super) fn result(&self, model: &str) -> Option<&Value> {
        self.info["results"].as_array()?.iter().find(|row| row["model"] == model)
    }
}

/// What a finished run does not say, with what to do.
fn gaps(info: &Value, windows: &Value, cells: &[Cell]) -> Vec<String> {
    let mut out = Vec::new();
    let measured = info["results"].as_array().is_some_and(|rows| !rows.is_empty());
    match (measured, windows.is_null()) {
        (false, _) => {
            out.push("Nothing was measured: prune with --eval TEXT says what the mask costs.".to_string())
        }
        (true, true) => out.push("There is no windows.json: the run is of an older version.".into()),
        _ => {}
    }
    if !cells.iter().any(|cell| cell.error.is_some()) {
        out.push("No error of the projections is known: they are of the walk over the blocks, which this run did not make or did not keep.".into());
    }
    if !cells.iter().any(|cell| cell.changed.is_some()) {
        out.push("How far the mask moved is not known: the method has no start mask, or the run is of an older version.".into());
    }
    out
}

fn name(folder: &Path) -> String {
    let last = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    last.unwrap_or_else(|| folder.display().to_string())
}

/// What an unfinished run was begun with, from the manifest of its finished blocks.
fn conditions(paths: &RunPaths) -> Map<String, Value> {
    let manifest = read_json(&paths.manifest()).ok().flatten().and_then(Result::ok).unwrap_or_default();
    let conditions = &manifest["conditions"];
    // Those of older versions named the adapter, too.
    let wanted = ["version", "adapter", "preset", "method", "pattern", "windows", "window", "segments"];
    let all = [conditions, &conditions["walk"]].into_iter().filter_map(Value::as_object).flatten();
    let pairs = all.filter(|(key, _)| wanted.contains(&key.as_str()));
    pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// "stage 2: relaxed on the model objective", as far as the options say.
fn stage_title(info: &Value, stage: Option<u64>) -> String {
    let Some(stage) = stage else {
        return info["method"].as_str().unwrap_or("learning").to_string();
    };
    let options = &info["options"]["stages"][(stage as usize).saturating_sub(1)];
    match (options["trains"].as_str(), options["objective"].as_str()) {
        (Some(trains), Some(objective)) => format!("stage {stage}: {trains} on the {objective} objective"),
        _ => format!("stage {stage}"),
    }
}

/// The times of a run, or where it does not say them, sums over its metrics.
fn phases(info: &Value, metrics: &Metrics) -> (Vec<Phase>, bool) {
    let phase = |value: &Value| {
        Some(Phase { phase: value["phase"].as_str()?.into(), seconds: value["seconds"].as_f64()? })
    };
    let told: Vec<Phase> = info["phases"].as_array().into_iter().flatten().filter_map(phase).collect();
    if !told.is_empty() {
        return (told, false);
    }
    let mut sums: Vec<Phase> = Vec::new();
    let mut add = |name: String, line: &Value| {
        let seconds = line["seconds"].as_f64().unwrap_or(0.0);
        match sums.iter_mut().find(|p| p.phase == name) {
            Some(phase) => phase.seconds += seconds,
            None => sums.push(Phase { phase: name, seconds }),
        }
    };
    metrics.projections.iter().for_each(|line| add("projections".into(), line));
    for line in &metrics.learned {
        add(stage_title(info, line["stage"].as_u64()), line);
    }
    if metrics.learned.is_empty() {
        for line in &metrics.steps {
            add(stage_title(info, line["stage"].as_u64()), line);
        }
    }
    sums.retain(|phase| phase.seconds > 0.0);
    (sums, true)
}

/// A JSON file: none where there is no file, the problem where it is no JSON.
fn read_json(path: &Path) -> Result<Option<Result<Value, String>>, ReportError> {
    let read = open_plain(path).and_then(|mut file| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes)
    });
    match read {
        Ok(bytes) if StandIn::of(&bytes).is_some_and(|found| found != StandIn::Answer) => {
            let found = StandIn::of(&bytes).map_or("", StandIn::what);
            Ok(Some(Err(format!("it {found}"))))
        }
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|e| e.to_string()))),
        Err(e) if no_file(&e) => Ok(None),
        Err(e) => Err(FsError::os("read", path, e).into()),
    }
}

fn no_file(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl Metrics {
    /// None where there is no file.
    fn read(path: &Path) -> Result<Option<Self>, ReportError> {
        let fail = |e| FsError::os("read", path, e);
        let file = match open_plain(path) {
            Ok(file) => file,
            Err(e) if no_file(&e) => return Ok(None),
            Err(e) => return Err(fail(e).into()),
        };
        let mut out = Self::default();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(fail)?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice::<Value>(&line) {
                Ok(line) => out.sort_in(line),
                Err(_) => out.unreadable += 1,
            }
        }
        Ok(Some(out))
    }

    fn sort_in(&mut self, line: Value) {
        if line["step"].is_u64() {
            self.steps.push(line);
        } else if line["name"].is_string() {
            self.projections.push(line);
        } else if line["error"].is_number() {
            self.learned.push(line);
        }
    }
}
