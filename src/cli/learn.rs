//! `maskwright prune --method maskpro`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::context::stop_flag;
use super::job::Job;
use super::method_args::{Learning, Start};
use super::output::{Progress, bytes};
use super::plan::largest;
use super::report::Reporting;
use super::result::Made;
use super::stage_plan::StagePlan;
use super::{CliError, Outcome};
use crate::calib::Windows;
use crate::folder::RunFolder;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::model::Overlay;
use crate::nn::{Decoder, DecoderWeights, Embedding, total};
use crate::prune::maskpro::{self, Learner};

/// Mean residual, in nats per token, from which a run is said to diverge: runs that learned stayed far below 0.2, those
/// that passed it did not come back (docs/maskpro.md).
const RUNAWAY: f64 = 0.5;

impl Job<'_> {
    /// The plan of the learning itself.
    pub(super) fn learning_plan(&self, kernels: &Kernels<'_>) -> Result<StagePlan, CliError> {
        let (config, checkpoint) = (&self.model.config, &self.model.checkpoint);
        let window = self.calib.as_ref().map_or(0, Windows::window);
        let sizes = maskpro::sizes(config, window, self.args.learn.batch(), kernels.limits());
        let scratch = kernels.scratch_bytes(DecoderWeights::largest_projection(checkpoint, config)?);
        let gpu = maskpro::plan(checkpoint, config, self.selection, &sizes, scratch)?;
        let host = maskpro::host_plan(self.selection, self.calib.as_ref().map_or(0, |w| w.tokens().len()));
        Ok(StagePlan { name: "maskpro on the model's loss".into(), gpu, host, flops: None })
    }

    /// Makes the start mask and learns from it.
    pub(super) fn learn(&self, mut folder: RunFolder, report: &Reporting) -> Result<Outcome, CliError> {
        let started = Instant::now();
        let (config, checkpoint) = (&self.model.config, &self.model.checkpoint);
        let Some(windows) = &self.calib else {
            return Err(CliError::Usage("--method maskpro needs --calib TEXT".into()));
        };
        let gpu = self.device.open()?;
        let kernels = Kernels::new(&gpu, self.device.preset(&gpu)?);
        let options = self.args.walk_options(None, &[])?;
        let planned = options.map(|options| self.walk_plan(&kernels, &options)).transpose()?;
        let (walk, carried) = planned.unzip();
        let carried = carried.flatten();
        let learning = [self.learning_plan(&kernels)?];
        self.args.walk.check_all(walk.as_ref(), carried, &learning)?;
        self.check_measuring(&kernels)?;
        let plan = largest(walk.as_ref(), &learning).to_vec();
        self.device.note(|| format!("plan: {} of GPU memory", bytes(total(&plan))));
        let options = json!(self.args.learn.options(self.args.select.pattern, self.args.windows.seed));
        let info = self.info(&kernels, &options, &plan);
        report.tell(&info);
        folder.phase("set-up");
        let stop = stop_flag()?;
        let mut commands = Commands::new(&gpu)?;
        let pattern = self.args.select.pattern;
        let (device, model, selection) = (self.device, self.model, self.selection);
        let (walk, batch) = (&self.args.walk, self.args.learn.batch());
        let learning = Learning { device, model, walk, selection, pattern, windows, batch };
        let start = self.args.start.masks(&learning, &kernels, &stop)?;
        let Some(start) = start else {
            self.device.note(|| "interrupted before there was a start mask: nothing is written".into());
            return Ok(Outcome::Interrupted);
        };
        folder.phase("start mask");
        let weights = DecoderWeights::upload(&gpu, checkpoint, config, |_| ())?;
        let embedding = Embedding::new(checkpoint, config)?;
        let decoder = Decoder { kernels: &kernels, config, weights: &weights, embedding };
        let (masks, outcome) = self.steps(&mut folder, &decoder, &mut commands, &start, windows, &stop)?;
        // The evaluation takes one block at a time and has no use for all of them.
        drop(weights);
        folder.phase("learning");
        let made = Made {
            masks,
            start: Some(start.masks),
            tensors: &Overlay::new(checkpoint),
            outcome,
            info,
            reports: Vec::new(),
        };
        self.finish(&mut folder, &kernels, &mut commands, made, started, report)
    }

    fn steps<'g>(
        &self,
        folder: &mut RunFolder,
        decoder: &Decoder<'g, '_>,
        commands: &mut Commands<'g>,
        start: &Start,
        windows: &Windows,
        stop: &Arc<AtomicBool>,
    ) -> Result<(MaskSet, Outcome), CliError> {
        let options = self.args.learn.options(self.args.select.pattern, self.args.windows.seed);
        let steps = options.steps;
        let gpu = decoder.kernels.gpu();
        self.device.note(|| "building pipelines".into());
        let building = Instant::now();
        let minibatches = windows.count() / options.batch.max(1);
        let mut bar = Progress::new("start losses", minibatches as u64, self.device.quiet);
        let mut learner = Learner::new(
            decoder,
            commands,
            (self.selection, &start.masks),
            windows,
            options.clone(),
            |p, mask| start.logits(self.model, &options, p, mask),
            |n, _| {
                if n == 0 {
                    let seconds = building.elapsed().as_secs_f64();
                    self.device
                        .note(|| format!("{} pipelines built in {seconds:.1} s", gpu.pipelines_built()));
                }
                bar.at(n as u64, String::new);
            },
        )?;
        bar.end();
        let mut bar = Progress::new("steps", u64::from(steps), self.device.quiet);
        let mut changed = 0;
        let mut counted = Instant::now();
        let mut mean = 0.0;
        let mut warned = false;
        let mut outcome = Outcome::Done;
        for i in 1..=steps {
            if stop.load(Ordering::SeqCst) {
                outcome = Outcome::Interrupted;
                break;
            }
            let at = Instant::now();
            let step = learner.step()?;
            mean += (step.residual - mean) / f64::from(i.min(50));
            if mean > RUNAWAY && !warned {
                warned = true;
                log::warn!(
                    "step {i}: drawn masks lose {mean:.2} nats more than the start mask, and the run seems to diverge; \
                     stop it with Ctrl-C and use a lower --rate or --alpha, or higher --logits"
                );
            }
            let mut line = json!(step);
            line["seconds"] = at.elapsed().as_secs_f64().into();
            // Counting takes a read-back of all bits, so it happens once in a while.
            if i == steps || i % 50 == 0 && counted.elapsed().as_secs_f64() > 1.0 {
                changed = learner.groups_changed()?;
                counted = Instant::now();
                line["groups_changed"] = changed.into();
            }
            folder.metric(&line)?;
            bar.at(u64::from(i), || {
                format!(
                    "loss {:.4} residual {:+.4} tracker {:+.4} changed {changed}",
                    step.loss, mean, step.tracker
                )
            });
        }
        bar.end();
        if matches!(outcome, Outcome::Interrupted) {
            self.device.note(|| "interrupted: writing the mask learned so far".into());
        }
        Ok((learner.masks()?, outcome))
    }
}
