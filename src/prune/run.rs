//! The run folder: resolved options, metrics, mask, masked model.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::PruneError;
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
}

/// A run's folder. `run.json` is written last, so that a folder without it is an unfinished run.
pub struct RunFolder {
    path: PathBuf,
    metrics: BufWriter<File>,
}

impl RunFolder {
    /// Makes the folder, and `metrics.jsonl` in it.
    ///
    /// # Errors
    /// [`PruneError::RunExists`] for a non-empty one, [`PruneError::RunFolder`] when the system refuses.
    pub fn create(path: &Path) -> Result<Self, PruneError> {
        let fail = |source| PruneError::RunFolder { path: path.into(), source };
        if path.is_dir() {
            let mut entries = std::fs::read_dir(path).map_err(fail)?;
            if entries.next().is_some() {
                return Err(PruneError::RunExists { path: path.into() });
            }
        }
        std::fs::create_dir_all(path).map_err(fail)?;
        let name = path.join("metrics.jsonl");
        let file = OpenOptions::new().create_new(true).append(true).open(&name);
        let file = file.map_err(|source| PruneError::RunFolder { path: name, source })?;
        Ok(Self { path: path.into(), metrics: BufWriter::new(file) })
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

    /// Appends one line to the metrics.
    ///
    /// # Errors
    /// [`PruneError::RunFolder`] when the disk is full.
    pub fn metric(&mut self, line: &serde_json::Value) -> Result<(), PruneError> {
        let path = self.path.join("metrics.jsonl");
        writeln!(self.metrics, "{line}").map_err(|source| PruneError::RunFolder { path, source })
    }

    /// Flushes the metrics and writes `run.json`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self, run: &serde_json::Value) -> Result<(), PruneError> {
        let flushed = self.metrics.flush().and_then(|()| self.metrics.get_ref().sync_all());
        let path = self.path.join("metrics.jsonl");
        flushed.map_err(|source| PruneError::RunFolder { path, source })?;
        let text = format!("{run:#}\n");
        Ok(fsio::write_bytes(&self.path.join("run.json"), text.as_bytes())?)
    }
}
