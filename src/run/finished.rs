//! What a run came to.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::eval::{OVERFLOW, Perplexity};
use crate::gpu::{Gpu, ProfileRow, Submits};
use crate::prune::ProjectionReport;

/// Whether something ran to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It did.
    Done,
    /// It was asked to stop; what was finished is kept.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Whether it ran to its end.
    pub outcome: Outcome,
    /// Its folder.
    pub folder: PathBuf,
    /// What stands in its `run.json`; none where it was interrupted before there was a result.
    pub run: Option<Value>,
    /// The models that were measured.
    pub results: Vec<EvalRow>,
    /// How the projections came out, of a walk.
    pub reports: Vec<ProjectionReport>,
    /// Groups that differ from the start mask, where there was one.
    pub groups_changed: Option<u64>,
    /// Groups in all.
    pub groups: u64,
    /// Whether kept weights were changed.
    pub weights_changed: bool,
    /// The times of kernels, where they were asked for.
    pub profile: Option<Profile>,
}

impl Finished {
    pub(super) fn interrupted(folder: &Path) -> Self {
        Self {
            outcome: Outcome::Interrupted,
            folder: folder.into(),
            run: None,
            results: Vec::new(),
            reports: Vec::new(),
            groups_changed: None,
            groups: 0,
            weights_changed: false,
            profile: None,
        }
    }
}

/// The times of kernels.
#[derive(Clone, Debug)]
pub struct Profile {
    /// One row a kernel.
    pub rows: Vec<ProfileRow>,
    /// What was given to the device at once.
    pub submits: Submits,
}

impl Profile {
    /// Of all that ran on a device so far.
    pub fn of(gpu: &Gpu) -> Self {
        Self { rows: gpu.profile(), submits: gpu.submits() }
    }
}

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
    pub(super) fn new(model: &'static str, measured: &Perplexity, to_dense: Option<(f64, f64)>) -> Self {
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
