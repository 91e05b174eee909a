//! What a run of `prune` came to, read from its folder.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::eval::OVERFLOW;
use crate::folder::RunPaths;
use crate::mask::MaskFile;
use crate::model::read_limited;
use crate::run::Model;
use crate::verify::{Options, verify};

/// More than a run.json takes.
const LIMIT_BYTES: u64 = 1 << 28;

/// A line of the comparison.
#[derive(serde::Serialize)]
pub(super) struct Row {
    /// Method or recipe.
    pub(super) method: String,
    /// Its folder.
    #[serde(serialize_with = "crate::fsio::as_text")]
    run: PathBuf,
    #[serde(flatten)]
    pub(super) found: Option<Found>,
    /// Why there is no result, or what is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// What was measured.
#[derive(serde::Serialize)]
pub(super) struct Found {
    pub(super) perplexity: f64,
    pub(super) nll: f64,
    /// Over the dense model's.
    pub(super) perplexity_ratio: f64,
    pub(super) kl_to_dense: f64,
    pub(super) top1_agreement: f64,
    /// Of each objective.
    pub(super) steps: Vec<u64>,
    /// Until the mask was there.
    pub(super) method_seconds: f64,
    /// Evaluation and writing included.
    pub(super) seconds: f64,
    /// Device memory at its peak, without the evaluation.
    pub(super) peak_bytes: u64,
    /// Exactly N of every M weights are kept, and nothing else of the written model differs from the source.
    pub(super) strict: bool,
    /// Ended by Ctrl-C.
    pub(super) interrupted: bool,
    /// Why a perplexity is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
    #[serde(skip)]
    pub(super) dense: Dense,
}

/// The dense model on the same text.
#[derive(Clone, Copy, serde::Serialize)]
pub(super) struct Dense {
    pub(super) perplexity: f64,
    pub(super) nll: f64,
    /// Windows measured, and the tokens of one.
    pub(super) windows: u64,
    pub(super) window: u64,
}

impl Row {
    /// A line for the run in `folder`.
    pub(super) fn new(method: String, folder: &Path, found: Result<(Found, Option<String>), String>) -> Self {
        let (found, error) = match found {
            Ok((found, error)) => (Some(found), error),
            Err(error) => (None, Some(error)),
        };
        Self { method, run: folder.into(), found, error }
    }
}

/// Reads a finished run of a `model`, and what is wrong with its mask.
pub(super) fn read(model: &Model, folder: &Path) -> Result<(Found, Option<String>), String> {
    let path = RunPaths::new(folder).run();
    let text = read_limited(&path, LIMIT_BYTES, "give the folder of a run").map_err(|e| e.to_string())?;
    let run: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let row = |name: &str| run["results"].as_array()?.iter().find(|r| r["model"] == name);
    let missing = |what: &str| format!("{} has no {what}", path.display());
    let number = |row: &Value, key: &str| row[key].as_f64().ok_or_else(|| missing(key));
    // Null where it is beyond the largest number.
    let perplexity = |row: &Value| match row["nll"].as_f64() {
        Some(nll) if row["perplexity"].is_null() => Ok(nll.exp()),
        _ => number(row, "perplexity"),
    };
    let (dense, result) = row("dense").zip(row("result")).ok_or_else(|| missing("results"))?;
    let dense = Dense {
        perplexity: perplexity(dense)?,
        nll: number(dense, "nll")?,
        windows: dense["windows"].as_u64().unwrap_or_default(),
        window: dense["window"].as_u64().unwrap_or_default(),
    };
    let nll = number(result, "nll")?;
    // Of one objective, of each of several, or none of a method that does not learn.
    let stages = run["options"]["stages"].as_array().map_or(&[][..], Vec::as_slice);
    let steps = std::iter::once(&run["options"]).chain(stages).filter_map(|o| o["steps"].as_u64()).collect();
    let wrong = problem(model, folder, run["kept_weights_changed"] == true);
    let measured = perplexity(result)?;
    let found = Found {
        perplexity: measured,
        nll,
        perplexity_ratio: (nll - dense.nll).exp(),
        kl_to_dense: number(result, "kl_to_dense")?,
        top1_agreement: number(result, "top1_agreement")?,
        steps,
        method_seconds: number(&run, "method_seconds")?,
        seconds: number(&run, "seconds")?,
        peak_bytes: run["memory"]["peak"].as_u64().ok_or_else(|| missing("memory"))?,
        strict: wrong.is_none(),
        interrupted: run["interrupted"] == true,
        note: measured.is_infinite().then_some(OVERFLOW),
        dense,
    };
    Ok((found, wrong))
}

/// What is wrong with the mask of a run, or with the model that was written under it.
fn problem(model: &Model, folder: &Path, refitted: bool) -> Option<String> {
    let file = match MaskFile::read(&RunPaths::new(folder).mask()) {
        Ok(file) => file,
        Err(e) => return Some(e.to_string()),
    };
    if let Err(e) = file.set.check().and_then(|()| file.set.check_model(&model.config)) {
        return Some(e.to_string());
    }
    let masked = RunPaths::new(folder).model();
    if !masked.is_dir() {
        return None;
    }
    let options = Options {
        mask: Some(&file.set),
        against: Some(&model.folder),
        repaired: refitted,
        ..Options::default()
    };
    match verify(&masked, &options) {
        Ok(verdict) => verdict.problems.first().map(ToString::to_string),
        Err(e) => Some(e.to_string()),
    }
}
