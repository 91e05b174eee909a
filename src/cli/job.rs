//! One `prune`: what it works on, and its plans.

use std::path::Path;

use serde_json::{Map, Value};

use super::calib_args::CalibChoice;
use super::context::{DeviceArgs, Model};
use super::prune_args::Args;
use super::report::Reporting;
use super::walk::Walk;
use super::{CliError, Outcome};
use crate::calib::Windows;
use crate::eval::Streamed;
use crate::folder::RunFolder;
use crate::kernel::Kernels;
use crate::mask::{MaskSet, Provenance};
use crate::nn::{Embedding, MemoryPlan};
use crate::prune::learn::Stage;
use crate::prune::plan::{Carried, WalkPlan};
use crate::prune::{OneShotOptions, Selection};

/// One `prune`, with everything that needs no device opened and checked.
pub(super) struct Job<'a> {
    pub(super) device: &'a DeviceArgs,
    pub(super) args: &'a Args,
    pub(super) model: &'a Model,
    pub(super) selection: &'a Selection,
    pub(super) choice: CalibChoice,
    pub(super) calib: Option<Windows>,
    pub(super) eval: Option<(Windows, usize)>,
    pub(super) stages: Vec<Stage>,
}

impl Job<'_> {
    pub(super) fn walk<'w>(&'w self, options: &'w OneShotOptions, starts: Option<&'w MaskSet>) -> Walk<'w> {
        Walk { device: self.device, model: self.model, selection: self.selection, options, starts }
    }

    /// The plan of the walk of this job.
    pub(super) fn walk_plan(
        &self,
        kernels: &Kernels<'_>,
        options: &OneShotOptions,
    ) -> Result<(WalkPlan, Option<Carried>), CliError> {
        let carried = self.calib.as_ref().and_then(|windows| {
            let (count, window) = (windows.count(), windows.window());
            self.args.carried(kernels, &self.model.config, options, count, window)
        });
        Ok((self.walk(options, None).plan(kernels, carried)?, carried))
    }

    /// The text that is measured on.
    pub(super) fn eval_text(&self) -> Option<&Path> {
        self.args.eval.as_deref()
    }

    /// The plan of measuring on the evaluation text, where there is one.
    pub(super) fn measuring_plan(&self, kernels: &Kernels<'_>) -> Result<Option<MemoryPlan>, CliError> {
        let Some((windows, _)) = &self.eval else { return Ok(None) };
        let (config, tensors) = (&self.model.config, &self.model.checkpoint);
        let embedding = Embedding::new(tensors, config)?;
        let model = Streamed { kernels, config, tensors, embedding: &embedding };
        let size = (windows.count(), windows.window());
        Ok(Some(model.plan(&model, &self.selection.projections(), size)?))
    }

    /// Refuses an evaluation that takes more memory than may be used.
    pub(super) fn check_measuring(&self, kernels: &Kernels<'_>) -> Result<(), CliError> {
        match self.measuring_plan(kernels)? {
            Some(plan) => self.args.walk.check_measuring(&plan),
            None => Ok(()),
        }
    }

    pub(super) fn interrupted(
        &self,
        folder: &mut RunFolder,
        done: &str,
        report: &Reporting,
        info: &Map<String, Value>,
    ) -> Outcome {
        folder.keep();
        report.write(folder.path(), Value::Object(info.clone()), false);
        let path = folder.path().display();
        self.device.note(|| format!("interrupted: {done}; the same command with --resume {path} goes on"));
        Outcome::Interrupted
    }

    pub(super) fn blocks(&self) -> usize {
        self.model.config.num_layers
    }

    pub(super) fn provenance(&self) -> Provenance {
        Provenance::new(self.args.method.name(), self.args.windows.seed)
    }
}
