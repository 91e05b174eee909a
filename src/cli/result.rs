//! What a run of `prune` leaves: its files, the perplexities, what is printed.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::job::Job;
use super::output::{Progress, profile, table};
use super::report::Reporting;
use super::worst::windows_json;
use super::{CliError, Outcome};
use crate::calib::Windows;
use crate::eval::{OVERFLOW, Perplexity, Streamed};
use crate::export::{MaskedModel, hf};
use crate::folder::RunFolder;
use crate::fsio::shown;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::{BitMask, MaskFile, MaskSet};
use crate::model::{Overlay, Tokenizer};
use crate::nn::{Embedding, PlanItem, total};
use crate::prune::ProjectionReport;

/// What a method has brought, for the files of the run.
pub(super) struct Made<'a> {
    pub(super) masks: MaskSet,
    pub(super) start: Option<MaskSet>,
    /// The model's weights, with those that were re-fitted.
    pub(super) tensors: &'a Overlay<'a>,
    pub(super) outcome: Outcome,
    /// [`Job::info`].
    pub(super) info: Map<String, Value>,
    pub(super) reports: Vec<ProjectionReport>,
}

/// One line of the closing table.
#[derive(Clone, Debug, serde::Serialize)]
struct EvalRow {
    /// "dense", "start" or "result".
    model: &'static str,
    /// Perplexity on the evaluation text.
    perplexity: f64,
    /// Mean loss, nats per token.
    nll: f64,
    /// Windows measured.
    windows: usize,
    /// Tokens of a window.
    window: usize,
    /// Mean of `sum p_dense * (log p_dense - log p)`, nats per predicted token; the dense model has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    kl_to_dense: Option<f64>,
    /// Share of the predicted tokens with the dense model's most likely token.
    #[serde(skip_serializing_if = "Option::is_none")]
    top1_agreement: Option<f64>,
    /// Why the perplexity is null in JSON: it is beyond the largest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

impl EvalRow {
    /// The row of a model, with divergence and agreement where it is not the dense one.
    fn new(model: &'static str, measured: &Perplexity, to_dense: Option<(f64, f64)>) -> Self {
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

/// What the evaluation text says.
#[derive(Default)]
struct Measured {
    rows: Vec<EvalRow>,
    /// Of `windows.json`.
    windows: Option<Value>,
}

impl Job<'_> {
    /// What is known of a run when it begins: the first part of `run.json`.
    pub(super) fn info(
        &self,
        kernels: &Kernels<'_>,
        options: &Value,
        plan: &[PlanItem],
    ) -> Map<String, Value> {
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "adapter": kernels.gpu().describe(),
            "preset": kernels.preset().name,
            "model": shown(&self.args.model),
            // Of a name on the hub: where it was read, which has its commit in it.
            "model_folder": (self.model.folder != self.args.model).then(|| shown(&self.model.folder)),
            "config": self.args.config.as_deref().map(shown),
            "calib": self.args.calib.as_deref().map(shown),
            "method": self.args.method.name(),
            "pattern": self.args.select.pattern,
            "options": options,
            "start": self.args.start.name(),
            "seed": self.args.windows.seed,
            "windows": self.calib.as_ref().map(Windows::count),
            "windows_asked": self.calib.as_ref().map(|_| self.choice.windows),
            "window": self.calib.as_ref().map(Windows::window),
            "segments": self.calib.as_ref().map(|_| self.choice.name()),
            "only": self.args.select.only,
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
        report: &Reporting,
    ) -> Result<Outcome, CliError> {
        let gpu = kernels.gpu();
        let (checkpoint, config) = (&self.model.checkpoint, &self.model.config);
        let (peak, at_peak) = (gpu.memory_peak(), gpu.memory_items());
        let method_seconds = started.elapsed().as_secs_f64();
        made.masks.check()?;
        let provenance = self.provenance();
        MaskFile::new(made.masks.clone(), provenance.clone(), checkpoint)?.write(&folder.paths().mask())?;
        if !self.args.no_model {
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
        let changed = made.start.as_ref().map(|s| groups_changed(s, &made.masks));
        let mut run = made.info.clone();
        for (key, value) in [
            ("interrupted", json!(matches!(made.outcome, Outcome::Interrupted))),
            ("resumed", json!(folder.resumed())),
            ("kept_weights_changed", json!(made.tensors.replaces_any())),
            ("groups_changed", json!(changed)),
            ("moved", json!(moved(&made))),
            ("projections", json!(made.reports)),
            ("eval", self.eval_text().map(|text| text.display().to_string()).into()),
            ("eval_windows_asked", json!(self.args.eval_windows)),
            ("results", json!(rows)),
            ("phases", json!(folder.phases())),
            ("kernels", self.device.profile.then(|| json!(gpu.profile())).into()),
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
        report.write(&path, run.clone(), true);
        folder.finish(&self.args.resolved, &run)?;
        if self.args.silent {
            // Whoever asked for this run reads its folder.
        } else if self.args.json {
            println!("{run}");
        } else {
            self.print(&rows, changed, &made);
            println!("written: {}", path.display());
        }
        if self.device.profile {
            eprintln!("{}", profile(gpu));
        }
        Ok(made.outcome)
    }

    /// Dense, start and result on the evaluation text, one block at a time.
    fn measure<'g>(
        &self,
        kernels: &Kernels<'g>,
        commands: &mut Commands<'g>,
        made: &Made<'_>,
    ) -> Result<Measured, CliError> {
        let (Some((windows, tokens)), Some(text)) = (&self.eval, self.eval_text()) else {
            return Ok(Measured::default());
        };
        let (config, checkpoint) = (&self.model.config, &self.model.checkpoint);
        let embedding = Embedding::new(checkpoint, config)?;
        let dense = Streamed { kernels, config, tensors: checkpoint, embedding: &embedding };
        let result = Streamed { tensors: made.tensors, ..dense };
        let mut bar = self.blocks_bar("dense");
        let streams = dense.streams(commands, windows, &result, |n| bar.at(n as u64, String::new))?;
        bar.end();
        let mut models: Vec<_> =
            made.start.as_ref().map(|start| ("start", dense, start)).into_iter().collect();
        models.push(("result", result, &made.masks));
        let (mut rows, mut last) = (Vec::new(), None);
        for (model, streamed, set) in models {
            let mut bar = self.blocks_bar(model);
            let progress = |n| bar.at(n as u64, String::new);
            let found = streamed.compare(commands, windows, *tokens, Some(set), &streams, progress)?;
            bar.end();
            if rows.is_empty() {
                rows.push(EvalRow::new("dense", &found.dense, None));
            }
            rows.push(EvalRow::new(model, &found.model, Some((found.kl, found.top1))));
            last = Some(found);
        }
        let tokenizer = Tokenizer::open(&self.model.folder, config)?;
        let windows = last.map(|found| windows_json(text, windows, &found, &tokenizer)).transpose()?;
        Ok(Measured { rows, windows })
    }

    fn blocks_bar(&self, model: &'static str) -> Progress {
        Progress::new(model, self.blocks() as u64, self.device.quiet)
    }

    fn print(&self, rows: &[EvalRow], changed: Option<u64>, made: &Made<'_>) {
        if !rows.is_empty() {
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|r| {
                    let to_dense = r.kl_to_dense.map_or(String::new(), |kl| format!("{kl:.5}"));
                    let top1 = r.top1_agreement.map_or(String::new(), |a| format!("{:.1} %", 100.0 * a));
                    let (perplexity, nll) = (format!("{:.4}", r.perplexity), format!("{:.5}", r.nll));
                    vec![r.model.to_string(), perplexity, nll, to_dense, top1]
                })
                .collect();
            let head = ["model", "perplexity", "nats/token", "KL to dense", "top-1 as dense"];
            println!("{}", table(&head, &cells));
            println!("{} windows of {} tokens", rows[0].windows, rows[0].window);
        }
        let mean = |of: fn(&ProjectionReport) -> Option<f64>| {
            let values: Vec<f64> = made.reports.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        if let Some(error) = mean(|r| r.error) {
            let start = mean(|r| r.start).map_or(String::new(), |s| format!("{s:.5} under the start mask, "));
            let repaired =
                mean(|r| r.repaired).map_or(String::new(), |r| format!(", {r:.5} after the repair"));
            println!("output error of the projections, mean: {start}{error:.5} under the mask{repaired}");
        }
        if let Some(changed) = changed {
            let groups = self.selection.weights() / self.args.select.pattern.m() as u64;
            println!("{changed} of {groups} groups differ from the start mask");
        }
        if made.tensors.replaces_any() {
            println!(
                "kept weights were changed (--repair, --joint): the written model is not bit-identical where it is kept"
            );
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
