//! What a run leaves: its files, and what is measured of it.

use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::RunError;
use super::finished::{EvalRow, Finished, Outcome, Profile};
use super::observer::{Task, plain};
use super::plan::RunPlan;
use super::worst::windows_json;
use crate::calib::Windows;
use crate::eval::Streamed;
use crate::export::{MaskedModel, hf};
use crate::folder::{RunFolder, RunPaths};
use crate::fsio::{FsError, shown};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::{BitMask, MaskFile, MaskSet};
use crate::model::{Overlay, Tokenizer};
use crate::nn::{Embedding, PlanItem, total};
use crate::prune::ProjectionReport;
use crate::report::{Given, Page, ReportError, Run};

/// What a method has brought, for the files of the run.
pub(super) struct Made<'a> {
    pub(super) masks: MaskSet,
    pub(super) start: Option<MaskSet>,
    /// The model's weights, with those that were re-fitted.
    pub(super) tensors: &'a Overlay<'a>,
    pub(super) outcome: Outcome,
    /// [`RunPlan::info`].
    pub(super) info: Map<String, Value>,
    pub(super) reports: Vec<ProjectionReport>,
}

/// What the evaluation text says.
#[derive(Default)]
struct Measured {
    rows: Vec<EvalRow>,
    /// Of `windows.json`.
    windows: Option<Value>,
}

impl RunPlan<'_> {
    /// What is known of a run when it begins: the first part of `run.json`.
    pub(super) fn info(
        &self,
        kernels: &Kernels<'_>,
        options: &Value,
        plan: &[PlanItem],
    ) -> Map<String, Value> {
        let spec = &self.spec;
        let folder = self.model().ok().map(|model| &model.folder);
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "adapter": kernels.gpu().describe(),
            "preset": kernels.preset().name,
            "model": shown(&spec.model),
            // Of a name on the hub: where it was read, which has its commit in it.
            "model_folder": folder.filter(|folder| **folder != spec.model).map(|folder| shown(folder)),
            "config": spec.config.as_deref().map(shown),
            "calib": spec.calib.as_deref().map(shown),
            "method": spec.method().name(),
            "pattern": spec.select.pattern,
            "options": options,
            "start": spec.start_name(),
            "seed": spec.windows.seed,
            "windows": self.calib.as_ref().map(Windows::count),
            "windows_asked": self.calib.as_ref().map(|_| self.choice.windows),
            "window": self.calib.as_ref().map(Windows::window),
            "segments": self.calib.as_ref().map(|_| self.choice.name()),
            "permutation": self.order.as_ref().map(|order| &order.told),
            "only": spec.select.only,
            "left_dense": self.selection.skipped,
            "memory": {"plan": plan, "plan_total": total(plan)},
        });
        match info {
            Value::Object(info) => info,
            _ => Map::new(),
        }
    }

    /// Writes the files of the run, measures, prints.
    pub(super) fn finish<'g>(
        &self,
        folder: &mut RunFolder,
        kernels: &Kernels<'g>,
        commands: &mut Commands<'g>,
        made: Made<'_>,
        started: Instant,
    ) -> Result<Finished, RunError> {
        let gpu = kernels.gpu();
        let (checkpoint, config) = (self.checkpoint()?, self.config());
        let (peak, at_peak) = (gpu.memory_peak(), gpu.memory_items());
        let method_seconds = started.elapsed().as_secs_f64();
        made.masks.check()?;
        let provenance = self.provenance();
        MaskFile::new(made.masks.clone(), provenance.clone(), checkpoint)?.write(&folder.paths().mask())?;
        if !self.spec.no_model {
            let (tensors, masks) = (made.tensors, &made.masks);
            let masked = MaskedModel { tensors, config, masks, provenance: &provenance };
            hf::write(&masked, &folder.paths().model())?;
        }
        folder.phase("writing");
        let Measured { rows, windows } = self.measure(kernels, commands, &made)?;
        if let Some(windows) = &windows {
            folder.windows(windows)?;
            folder.phase("measuring");
        }
        let profile = self.spec.device.profile.then(|| Profile::of(gpu));
        let changed = made.start.as_ref().map(|s| groups_changed(s, &made.masks));
        let mut run = made.info.clone();
        for (key, value) in [
            ("interrupted", json!(matches!(made.outcome, Outcome::Interrupted))),
            ("resumed", json!(folder.resumed())),
            ("kept_weights_changed", json!(made.tensors.replaces_any())),
            ("groups_changed", json!(changed)),
            ("moved", json!(moved(&made))),
            ("projections", json!(made.reports)),
            ("eval", self.spec.eval.as_ref().map(|text| text.display().to_string()).into()),
            ("eval_windows_asked", json!(self.spec.eval_windows)),
            ("results", json!(rows)),
            ("phases", json!(folder.phases())),
            ("kernels", profile.as_ref().map(|p| json!(p.rows)).into()),
            ("method_seconds", method_seconds.into()),
            ("seconds", json!(started.elapsed().as_secs_f64())),
        ] {
            run.insert(key.into(), value);
        }
        if let Some(memory) = run.get_mut("memory") {
            memory["peak"] = peak.into();
            memory["at_peak"] = json!(at_peak);
        }
        let run = Value::Object(run);
        let path = folder.path().to_path_buf();
        self.report(&path, run.clone(), true);
        folder.finish(&self.spec.to_toml(), &run)?;
        Ok(Finished {
            outcome: made.outcome,
            folder: path,
            run: Some(run),
            results: rows,
            reports: made.reports,
            groups_changed: changed,
            groups: self.selection.weights() / self.spec.select.pattern.m() as u64,
            weights_changed: made.tensors.replaces_any(),
            profile,
        })
    }

    /// Dense, start and result on the evaluation text, one block at a time.
    fn measure<'g>(
        &self,
        kernels: &Kernels<'g>,
        commands: &mut Commands<'g>,
        made: &Made<'_>,
    ) -> Result<Measured, RunError> {
        let (Some((windows, tokens)), Some(text)) = (&self.eval, &self.spec.eval) else {
            return Ok(Measured::default());
        };
        let (config, checkpoint) = (self.config(), self.checkpoint()?);
        let embedding = Embedding::new(checkpoint, config)?;
        let dense = Streamed { kernels, config, tensors: checkpoint, embedding: &embedding };
        let result = Streamed { tensors: made.tensors, ..dense };
        let mut bar = self.blocks_bar("dense");
        let streams = dense.streams(commands, windows, &result, |n| bar.at(n as u64, &plain))?;
        drop(bar);
        let mut models: Vec<_> =
            made.start.as_ref().map(|start| ("start", dense, start)).into_iter().collect();
        models.push(("result", result, &made.masks));
        let (mut rows, mut last) = (Vec::new(), None);
        for (model, streamed, set) in models {
            let mut bar = self.blocks_bar(model);
            let progress = |n| bar.at(n as u64, &plain);
            let found = streamed.compare(commands, windows, *tokens, Some(set), &streams, progress)?;
            drop(bar);
            if rows.is_empty() {
                rows.push(EvalRow::new("dense", &found.dense, None));
            }
            rows.push(EvalRow::new(model, &found.model, Some((found.kl, found.top1))));
            last = Some(found);
        }
        let tokenizer = Tokenizer::open(&self.model()?.folder, config)?;
        let windows = last.map(|found| windows_json(text, windows, &found, &tokenizer)).transpose()?;
        Ok(Measured { rows, windows })
    }

    fn blocks_bar(&self, model: &str) -> Box<dyn Task> {
        self.observer.task(model, self.config().num_layers as u64)
    }

    /// Writes the report of the run in `folder` before its `run.json`, as whose content, or the first part of it when the run is not
    /// `finished`, stands `info`. A report that cannot be written is no reason to lose the run.
    pub(super) fn report(&self, folder: &Path, info: Value, finished: bool) {
        if self.spec.no_report {
            return;
        }
        let given = Given { info, config: self.spec.to_toml(), finished };
        let path = RunPaths::new(folder).report();
        // A name like "." says nothing.
        let folder = folder.canonicalize().map_err(|e| FsError::os("read", folder, e));
        let page = folder.map_err(ReportError::from).and_then(|folder| Run::read(&folder, Some(&given)));
        if let Err(e) = page.and_then(|run| Page::new(vec![run]).write(&path)) {
            self.observer.warn(&format!("the run is kept, but its report could not be written: {e}"));
        }
    }
}

/// How many groups of a projection differ from its start mask.
#[derive(serde::Serialize)]
struct Moved<'a> {
    name: &'a str,
    groups: u64,
    changed: u64,
}

/// How far each mask moved from the start mask, or where there is none, from that which the report of its projection names.
fn moved<'m>(made: &'m Made<'_>) -> Vec<Moved<'m>> {
    let of = |(name, mask): (&'m String, &'m BitMask)| {
        let changed = match &made.start {
            Some(start) => mask.groups_changed(start.masks.get(name)?, made.masks.pattern),
            None => made.reports.iter().find(|r| r.name == *name)?.groups_changed?,
        };
        let groups = (mask.rows() * mask.cols() / made.masks.pattern.m()) as u64;
        Some(Moved { name, groups, changed })
    };
    made.masks.masks.iter().filter_map(of).collect()
}

fn groups_changed(a: &MaskSet, b: &MaskSet) -> u64 {
    let pairs = a.masks.iter().filter_map(|(name, mask)| Some((mask, b.masks.get(name)?)));
    pairs.map(|(x, y)| x.groups_changed(y, a.pattern)).sum()
}
