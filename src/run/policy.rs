//! MaskPro on the model's loss: the start mask, then steps of the policy gradient.

use std::time::Instant;

use serde_json::json;

use super::finished::{Finished, Outcome};
use super::layers::Start;
use super::observer::{Observer, Task, plain};
use super::plan::RunPlan;
use super::result::Made;
use super::{RunError, bytes};
use crate::calib::Windows;
use crate::folder::RunFolder;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::model::Overlay;
use crate::nn::{Decoder, DecoderWeights, Embedding, total};
use crate::prune::learn::LearnLoop;
use crate::prune::maskpro::{Learner, Options};
use crate::prune::{BlockResult, PruneError, StepReport, Watch};

/// Mean residual, in nats per token, from which a run is said to diverge: runs that learned stayed far below 0.2, those
/// that passed it did not come back (docs/maskpro.md).
const RUNAWAY: f64 = 0.5;

impl RunPlan<'_> {
    /// MaskPro's options.
    pub(crate) fn policy(&self) -> Options {
        self.spec.learn.policy(self.spec.select.pattern, self.spec.windows.seed)
    }

    /// Makes the start mask and learns from it.
    pub(super) fn learn(
        &self,
        mut folder: RunFolder,
        kernels: &Kernels<'_>,
        started: Instant,
    ) -> Result<Finished, RunError> {
        self.keep_order(&folder)?;
        let (config, checkpoint) = (self.config(), self.checkpoint()?);
        let Some(windows) = &self.calib else {
            return Err(RunError::options("--method maskpro needs --calib TEXT"));
        };
        let gpu = kernels.gpu();
        let resources = self.resources(kernels)?;
        self.check(&resources)?;
        let plan = resources.largest().to_vec();
        self.observer.note(&format!("plan: {} of GPU memory", bytes(total(&plan))));
        let info = self.info(kernels, &json!(self.policy()), &plan);
        self.observer.began(&info);
        folder.phase("set-up");
        self.observer.guard();
        let mut commands = Commands::new(gpu)?;
        let Some(start) = self.start(kernels, &resources)? else {
            self.observer.note("interrupted before there was a start mask: nothing is written");
            return Ok(Finished::interrupted(folder.path()));
        };
        folder.phase("start mask");
        let weights = DecoderWeights::upload(gpu, checkpoint, config, |_| ())?;
        let embedding = Embedding::new(checkpoint, config)?;
        let decoder = Decoder { kernels, config, weights: &weights, embedding };
        let (masks, outcome) = self.steps(&mut folder, &decoder, &mut commands, &start, windows)?;
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
        self.finish(&mut folder, kernels, &mut commands, made, started)
    }

    fn steps<'g>(
        &self,
        folder: &mut RunFolder,
        decoder: &Decoder<'g, '_>,
        commands: &mut Commands<'g>,
        start: &Start,
        windows: &Windows,
    ) -> Result<(MaskSet, Outcome), RunError> {
        let (options, model) = (self.policy(), self.model()?);
        let steps = options.steps;
        let gpu = decoder.kernels.gpu();
        self.observer.note("building pipelines");
        let building = Instant::now();
        let minibatches = windows.count() / options.batch.max(1);
        let mut bar = self.observer.task("start losses", minibatches as u64);
        let mut learner = Learner::new(
            decoder,
            commands,
            (&self.selection, &start.masks),
            windows,
            options.clone(),
            |p, mask| start.logits(model, &options, p, mask),
            |n, _| {
                if n == 0 {
                    let seconds = building.elapsed().as_secs_f64();
                    let built = gpu.pipelines_built();
                    self.observer.note(&format!("{built} pipelines built in {seconds:.1} s"));
                }
                bar.at(n as u64, &plain);
            },
        )?;
        drop(bar);
        let bar = self.observer.task("steps", u64::from(steps));
        let mut watch =
            PolicyWatch { observer: self.observer, folder, bar, changed: 0, mean: 0.0, warned: false };
        let outcome = match (LearnLoop { block: None, steps }).run(&mut learner, &mut watch) {
            Err(PruneError::Stopped) => Outcome::Interrupted,
            done => done.map(|()| Outcome::Done)?,
        };
        drop(watch);
        if matches!(outcome, Outcome::Interrupted) {
            self.observer.note("interrupted: writing the mask learned so far");
        }
        Ok((learner.masks()?, outcome))
    }
}

/// Tells of the steps.
struct PolicyWatch<'a> {
    observer: &'a dyn Observer,
    folder: &'a mut RunFolder,
    bar: Box<dyn Task>,
    /// Groups that differ from the start mask, as last counted.
    changed: u64,
    /// Mean residual of late.
    mean: f64,
    /// Whether it was said that the run seems to diverge.
    warned: bool,
}

impl Watch for PolicyWatch<'_> {
    fn stop(&self) -> bool {
        self.observer.stop()
    }

    fn step(&mut self, report: &StepReport) -> Result<(), PruneError> {
        let number = report.step + 1;
        let (residual, tracker) = (report.residual.unwrap_or(0.0), report.tracker.unwrap_or(0.0));
        self.mean += (residual - self.mean) / f64::from(number.min(50));
        let mean = self.mean;
        if mean > RUNAWAY && !self.warned {
            self.warned = true;
            self.observer.warn(&format!(
                "step {number}: drawn masks lose {mean:.2} nats more than the start mask, and the run seems to diverge; stop it with \
                 Ctrl-C and use a lower --rate or --alpha, or higher --logits"
            ));
        }
        // Counted from 1, as always in the metrics of this method.
        let mut line = json!({
            "step": number, "loss": report.loss, "residual": residual, "tracker": tracker,
            "advantage": report.advantage, "seconds": report.seconds,
        });
        if let Some(changed) = report.groups_changed {
            self.changed = changed;
            line["groups_changed"] = changed.into();
        }
        self.observer.metric(&line);
        self.folder.metric(&line)?;
        let changed = self.changed;
        self.bar.at(u64::from(number), &|| {
            format!("loss {:.4} residual {mean:+.4} tracker {tracker:+.4} changed {changed}", report.loss)
        });
        Ok(())
    }

    fn block(&mut self, _: BlockResult) -> Result<(), PruneError> {
        Ok(())
    }
}
