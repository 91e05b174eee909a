//! MaskPro on the model's loss: the start mask, then steps of the policy gradient.

use std::time::Instant;

use serde_json::json;

use super::finished::{Finished, Outcome};
use super::layers::Start;
use super::observer::plain;
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
use crate::prune::maskpro::{Learner, Options};

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
        let mut bar = self.observer.task("steps", u64::from(steps));
        let mut changed = 0;
        let mut counted = Instant::now();
        let mut mean = 0.0;
        let mut warned = false;
        let mut outcome = Outcome::Done;
        for i in 1..=steps {
            if self.observer.stop() {
                outcome = Outcome::Interrupted;
                break;
            }
            let at = Instant::now();
            let step = learner.step()?;
            mean += (step.residual - mean) / f64::from(i.min(50));
            if mean > RUNAWAY && !warned {
                warned = true;
                self.observer.warn(&format!(
                    "step {i}: drawn masks lose {mean:.2} nats more than the start mask, and the run seems to diverge; \
                     stop it with Ctrl-C and use a lower --rate or --alpha, or higher --logits"
                ));
            }
            let mut line = json!(step);
            line["seconds"] = at.elapsed().as_secs_f64().into();
            // Counting takes a read-back of all bits, so it happens once in a while.
            if i == steps || i % 50 == 0 && counted.elapsed().as_secs_f64() > 1.0 {
                changed = learner.groups_changed()?;
                counted = Instant::now();
                line["groups_changed"] = changed.into();
            }
            self.observer.metric(&line);
            folder.metric(&line)?;
            bar.at(u64::from(i), &|| {
                format!(
                    "loss {:.4} residual {:+.4} tracker {:+.4} changed {changed}",
                    step.loss, mean, step.tracker
                )
            });
        }
        drop(bar);
        if matches!(outcome, Outcome::Interrupted) {
            self.observer.note("interrupted: writing the mask learned so far");
        }
        Ok((learner.masks()?, outcome))
    }
}
