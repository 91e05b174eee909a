//! The run folder: resolved options, metrics, mask, masked model.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::PruneError;
use crate::eval::{OVERFLOW, Perplexity};
use crate::fsio;

/// One line of the closing table.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EvalRow {
    /// "dense", "start" or "result".
    pub model: &'static str,
    /// Perplexity on the evaluation text.
    pub perplexity: f64,
    /// Mean loss, nats per token.
    pub nll: f64,
    /// Windows measured.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Mean of `sum p_dense * (log p_dense - log p)`, nats per predicted token; the dense model has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_to_dense: Option<f64>,
    /// Share of the predicted tokens with the dense model's most likely token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Why the perplexity is null in JSON: it is beyond the largest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

impl EvalRow {
    /// The row of a model, with divergence and agreement where it is not the dense one.
    pub fn new(model: &'static str, measured: &Perplexity, to_dense: Option<(f64, f64)>) -> Self {
        Self {
            model,
            perplexity: measured.perplexity,
            nll: measured.nll,
            windows: measured.windows,
            window: measured.window,
            kl_to_dense: to_dense.map(|(kl, _)| kl),
            top1_agreement: to_dense.map(|(_, top1)| top1),
            note: (!measured.perplexity.is_finite()).then_some(OVERFLOW),
        }
    }
}

/// A part of a run and how long it took.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Phase {
    /// What it was.
    pub phase: String,
    /// Seconds.
    pub seconds: f64,
}

/// A run's folder. `run.json` is written last, so that a folder without it is an unfinished run. An error before the first
/// result leaves nothing, so that the same command can be given again.
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    /// Made here, not found empty.
    made: bool,
    resumed: bool,
    phases: Vec<Phase>,
    /// When the present phase began.
    since: Instant,
}

impl RunFolder {
    /// Makes the folder, and `metrics.jsonl` in it.
    ///
    /// # Errors
    /// [`PruneError::RunExists`] for a non-empty one, [`PruneError::RunFolder`] when the system refuses.
    pub fn create(path: &Path) -> Result<Self, PruneError> {
        let fail = |source| PruneError::RunFolder { path: path.into(), source };
        let made = !path.is_dir();
        let name = path.join("metrics.jsonl");
        if !made {
            let entries = fs::read_dir(path).map_err(fail)?.count();
            // All that a run leaves which was killed before its first step.
            let killed_early = entries == 1 && fs::metadata(&name).is_ok_and(|m| m.is_file() && m.len() == 0);
            if entries > 0 && !killed_early {
                return Err(PruneError::RunExists { path: path.into() });
            }
        }
        fs::create_dir_all(path).map_err(fail)?;
        let file = OpenOptions::new().create(true).append(true).open(&name);
        let file = file.map_err(|source| PruneError::RunFolder { path: name, source })?;
        Ok(Self::of(path, file, made, false))
    }

    /// Opens the folder of an unfinished run. Its metrics start anew: they are told again, the lines of steps from those that
    /// are returned here.
    ///
    /// # Errors
    /// [`PruneError::NoRun`] for a folder that is not there or whose run is finished, [`PruneError::RunFolder`].
    pub fn reopen(path: &Path) -> Result<(Self, Vec<Value>), PruneError> {
        if !path.is_dir() || path.join("run.json").exists() {
            return Err(PruneError::NoRun { path: path.into() });
        }
        let name = path.join("metrics.jsonl");
        // The last line of a killed run may be cut off.
        let text = fs::read(&name).unwrap_or_default();
        let earlier = text.split(|&b| b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&name);
        let file = file.map_err(|source| PruneError::RunFolder { path: name, source })?;
        let model = path.join("model");
        if model.exists() {
            // Whole, but of a run that did not come to its end: it is written again.
            fs::remove_dir_all(&model)
                .map_err(|source| PruneError::RunFolder { path: model.clone(), source })?;
        }
        Ok((Self::of(path, file, false, true), earlier))
    }

    fn of(path: &Path, metrics: File, made: bool, resumed: bool) -> Self {
        Self { path: path.into(), metrics, made, resumed, phases: Vec::new(), since: Instant::now() }
    }

    /// Whether an earlier run left it.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Counts the first phase from a moment before the folder was opened.
    pub fn began(&mut self, at: Instant) {
        self.since = at;
    }

    /// Ends a phase: all that was done since the one before, or since the folder was opened.
    pub fn phase(&mut self, phase: impl Into<String>) {
        let now = Instant::now();
        let seconds = now.duration_since(self.since).as_secs_f64();
        self.phases.push(Phase { phase: phase.into(), seconds });
        self.since = now;
    }

    /// The phases so far, in their order.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the mask goes.
    pub fn mask(&self) -> PathBuf {
        self.path.join("mask.safetensors")
    }

    /// Where the masked model goes.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Appends one line to the metrics, at once: a step takes long, and somebody may be watching.
    ///
    /// # Errors
    /// [`PruneError::RunFolder`] when the disk is full.
    pub fn metric(&mut self, line: &serde_json::Value) -> Result<(), PruneError> {
        let path = self.path.join("metrics.jsonl");
        let text = format!("{line}\n");
        self.metrics.write_all(text.as_bytes()).map_err(|source| PruneError::RunFolder { path, source })
    }

    /// Writes `windows.json`, what the evaluation says of every window.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn windows(&self, windows: &Value) -> Result<(), PruneError> {
        let text = format!("{windows}\n");
        Ok(fsio::write_bytes(&self.path.join("windows.json"), text.as_bytes())?)
    }

    /// Flushes the metrics and writes `config.toml`, the options, and `run.json`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(self, options: &str, run: &serde_json::Value) -> Result<(), PruneError> {
        let path = self.path.join("metrics.jsonl");
        self.metrics.sync_all().map_err(|source| PruneError::RunFolder { path, source })?;
        fsio::write_bytes(&self.path.join("config.toml"), options.as_bytes())?;
        let text = format!("{run:#}\n");
        Ok(fsio::write_bytes(&self.path.join("run.json"), text.as_bytes())?)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let entries = fs::read_dir(&self.path).map_or(0, Iterator::count);
        let unused = self.metrics.metadata().is_ok_and(|m| m.len() == 0);
        if entries == 1 && unused {
            let _ = fs::remove_file(self.path.join("metrics.jsonl"));
            if self.made {
                let _ = fs::remove_dir(&self.path);
            }
        }
    }
}
