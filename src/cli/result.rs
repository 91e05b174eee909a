//! What a run of `prune` leaves: its files, the perplexities, what is printed.

use std::time::Instant;

use serde_json::{Value, json};

use super::output::{Progress, profile, table};
use super::prune::Job;
use super::{CliError, Outcome};
use crate::calib::Windows;
use crate::eval::Streamed;
use crate::export::{MaskedModel, hf};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::{MaskFile, MaskSet};
use crate::model::Overlay;
use crate::nn::{Embedding, PlanItem, total};
use crate::prune::{EvalRow, ProjectionReport, RunFolder};

/// What a method has brought, for the files of the run.
pub(super) struct Made<'a> {
    pub(super) masks: MaskSet,
    pub(super) start: Option<MaskSet>,
    /// The model's weights, with those that were re-fitted.
    pub(super) tensors: &'a Overlay<'a>,
    pub(super) outcome: Outcome,
    pub(super) plan: Vec<PlanItem>,
    pub(super) options: Value,
    pub(super) reports: Vec<ProjectionReport>,
}

impl Job<'_> {
    /// Writes the files of the run, measures, prints.
    pub(super) fn finish<'g>(
        &self,
        folder: RunFolder,
        kernels: &Kernels<'g>,
        commands: &mut Commands<'g>,
        made: Made<'_>,
        started: Instant,
    ) -> Result<Outcome, CliError> {
        let gpu = kernels.gpu();
        let (checkpoint, config) = (&self.model.checkpoint, &self.model.config);
        let (peak, at_peak) = (gpu.memory_peak(), gpu.memory_items());
        let method_seconds = started.elapsed().as_secs_f64();
        made.masks.check()?;
        let provenance = self.provenance();
        MaskFile::new(made.masks.clone(), provenance.clone(), checkpoint)?.write(&folder.mask())?;
        if !self.args.no_model {
            let (tensors, masks) = (made.tensors, &made.masks);
            let masked = MaskedModel { tensors, config, masks, provenance: &provenance };
            hf::write(&masked, &folder.model())?;
        }
        let rows = self.measure(kernels, commands, &made)?;
        let changed = made.start.as_ref().map(|s| groups_changed(s, &made.masks));
        let run = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "adapter": gpu.describe(),
            "preset": kernels.preset().name,
            "model": self.args.model,
            "config": self.args.config,
            "calib": self.args.calib,
            "method": self.args.method.name(),
            "options": made.options,
            "start": self.args.start.name(),
            "seed": self.args.windows.seed,
            "windows": self.calib.as_ref().map(Windows::count),
            "window": self.calib.as_ref().map(Windows::window),
            "segments": self.calib.as_ref().map(|_| self.choice.name()),
            "only": self.args.select.only,
            "left_dense": self.selection.skipped,
            "interrupted": matches!(made.outcome, Outcome::Interrupted),
            "kept_weights_changed": made.tensors.replaces_any(),
            "groups_changed": changed,
            "projections": made.reports,
            "results": rows,
            "memory": {
                "plan": made.plan, "plan_total": total(&made.plan), "peak": peak, "at_peak": at_peak
            },
            "method_seconds": method_seconds,
            "seconds": started.elapsed().as_secs_f64(),
        });
        let path = folder.path().to_path_buf();
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
    ) -> Result<Vec<EvalRow>, CliError> {
        let Some((windows, tokens)) = &self.eval else {
            return Ok(Vec::new());
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
        let mut rows = Vec::new();
        for (model, streamed, set) in models {
            let mut bar = self.blocks_bar(model);
            let progress = |n| bar.at(n as u64, String::new);
            let found = streamed.compare(commands, windows, *tokens, Some(set), &streams, progress)?;
            bar.end();
            if rows.is_empty() {
                rows.push(EvalRow::new("dense", &found.dense, None));
            }
            rows.push(EvalRow::new(model, &found.model, Some((found.kl, found.top1))));
        }
        Ok(rows)
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

fn groups_changed(a: &MaskSet, b: &MaskSet) -> u64 {
    let pairs = a.masks.iter().filter_map(|(name, mask)| Some((mask, b.masks.get(name)?)));
    pairs.map(|(x, y)| x.groups_changed(y, a.pattern)).sum()
}
