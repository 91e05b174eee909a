//! How many steps of a learning method fit into a time: a few of each of its stages are timed on a few windows, under a mask that keeps
//! the first weights of every group, since a step's time depends on neither.

use super::plan::RunPlan;
use super::{Observer, RunError};
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::soft::logits_of;
use crate::mask::{BitMask, MaskSet, Pattern};
use crate::model::Overlay;
use crate::nn::{Decoder, DecoderWeights, Embedding};
use crate::prune::learn::{LearnLoop, Objective, Stage, shuffled};
use crate::prune::maskpro::Learner;
use crate::prune::{BlockResult, PruneError, Selection, StepReport, Watch};

/// Steps that are timed at least, behind the first, which builds pipelines.
const TIMED: usize = 3;
/// For how long, at least: a share of the budget, up to a second.
const TIMED_SHARE: f64 = 0.02;
/// More than are timed.
const ENOUGH: u32 = 1_000_000;

/// A stage of a method, timed.
#[derive(Clone, Copy, Debug)]
struct Timed {
    /// Seconds of one of its steps, of all blocks where each has its own.
    seconds: f64,
    /// Its steps by default.
    steps: u32,
}

/// Steps for each of the stages, in the proportions of their defaults, that take `budget` seconds together; at least one each.
fn fit(stages: &[Timed], budget: f64) -> Vec<u32> {
    let whole: f64 = stages.iter().map(|s| s.seconds * f64::from(s.steps)).sum();
    let share = budget / whole.max(1e-9);
    stages.iter().map(|s| (f64::from(s.steps) * share).round().clamp(1.0, f64::from(ENOUGH)) as u32).collect()
}

impl RunPlan<'_> {
    /// Steps for each objective of the method so that they take about `budget` seconds; none for a method that does not learn.
    ///
    /// # Errors
    /// The layer objective, whose steps are not timed; what the device reports; [`PruneError::Stopped`].
    pub fn steps_within(&self, budget: f64) -> Result<Vec<u32>, RunError> {
        if self.stages.layer.is_some() {
            return Err(RunError::options(
                "the steps of the layer objective are not chosen by time; give --steps",
            ));
        }
        let learning: Vec<&Stage> = self.stages.behind.iter().filter(|s| s.trains.masks()).collect();
        if learning.is_empty() && !self.spec.policy() {
            return Ok(Vec::new());
        }
        // The run that follows says where it runs.
        let gpu = self.spec.device.open(&super::Unwatched)?;
        let kernels = Kernels::new(&gpu, self.spec.device.preset(&gpu, &super::Unwatched)?);
        let pilot = Pilot { run: self, kernels: &kernels, calib: self.calibration()?, budget };
        let start = first_of_every_group(&self.selection, self.spec.select.pattern)?;
        let timed = match self.spec.policy() {
            true => vec![pilot.policy(&start)?],
            false => learning.iter().map(|s| pilot.stage(s, &start)).collect::<Result<Vec<_>, _>>()?,
        };
        let steps = fit(&timed, budget);
        let told = |(t, n): (&Timed, &u32)| format!("{n} of {:.3} s", t.seconds);
        let told: Vec<String> = timed.iter().zip(&steps).map(told).collect();
        self.observer.note(&format!("steps: {}", told.join(", then ")));
        Ok(steps)
    }
}

/// Masks that cost nothing to make.
fn first_of_every_group(selection: &Selection, pattern: Pattern) -> Result<MaskSet, RunError> {
    let mut set = MaskSet::new(pattern);
    for (_, p) in &selection.pruned {
        let mask = BitMask::top_n(p.rows, p.cols, pattern, |_, scores| scores.fill(0.0))?;
        set.masks.insert(p.name.clone(), mask);
    }
    Ok(set)
}

/// Times the stages of a run.
struct Pilot<'a, 'g> {
    run: &'a RunPlan<'a>,
    kernels: &'a Kernels<'g>,
    calib: &'a Windows,
    budget: f64,
}

impl Pilot<'_, '_> {
    fn watch(&self) -> Stopwatch<'_> {
        let least = (TIMED_SHARE * self.budget).min(1.0);
        Stopwatch { seconds: Vec::new(), least, observer: self.run.observer }
    }

    fn stage(&self, stage: &Stage, start: &MaskSet) -> Result<Timed, RunError> {
        let (run, kernels) = (self.run, self.kernels);
        let windows = shuffled(&self.calib.clone().first(2 * stage.batch), stage.seed, stage.batch)?;
        let flow = run.stage_plans(kernels).flow(stage)?;
        let dense = Overlay::new(run.checkpoint()?);
        let long = Stage { steps: ENOUGH, ..stage.clone() };
        let long = run.stage_run(kernels, &long, flow, start, &dense);
        let mut watch = self.watch();
        match long.run(&mut Commands::new(kernels.gpu())?, &windows, &[], &mut watch) {
            Err(PruneError::Stopped) if !run.observer.stop() => {}
            other => other?,
        }
        let units = if stage.objective == Objective::Block { run.config().num_layers } else { 1 };
        Ok(Timed { seconds: watch.mean() * units as f64, steps: stage.steps })
    }

    fn policy(&self, start: &MaskSet) -> Result<Timed, RunError> {
        let (model, gpu, options) = (self.run.model()?, self.kernels.gpu(), self.run.policy());
        let windows = self.calib.clone().first(options.batch);
        let weights = DecoderWeights::upload(gpu, &model.checkpoint, &model.config, |_| ())?;
        let embedding = Embedding::new(&model.checkpoint, &model.config)?;
        let decoder = Decoder { kernels: self.kernels, config: &model.config, weights: &weights, embedding };
        let mut commands = Commands::new(gpu)?;
        let (scale, steps) = (options.scale, options.steps);
        let mut learner = Learner::new(
            &decoder,
            &mut commands,
            (&self.run.selection, start),
            &windows,
            options,
            |_, mask| Ok(logits_of(mask, scale)),
            |_, _| (),
        )?;
        let mut watch = self.watch();
        match (LearnLoop { block: None, steps: ENOUGH }).run(&mut learner, &mut watch) {
            Err(PruneError::Stopped) if !self.run.observer.stop() => {}
            other => other?,
        }
        Ok(Timed { seconds: watch.mean(), steps })
    }
}

/// Stops a stage when enough of its steps are timed.
struct Stopwatch<'a> {
    seconds: Vec<f64>,
    /// For how long steps are timed.
    least: f64,
    observer: &'a dyn Observer,
}

impl Stopwatch<'_> {
    /// The steps behind the first.
    fn timed(&self) -> &[f64] {
        self.seconds.get(1..).unwrap_or_default()
    }

    fn mean(&self) -> f64 {
        self.timed().iter().sum::<f64>() / self.timed().len().max(1) as f64
    }
}

impl Watch for Stopwatch<'_> {
    fn stop(&self) -> bool {
        let timed = self.timed();
        let enough = timed.len() >= TIMED && timed.iter().sum::<f64>() >= self.least;
        enough || self.observer.stop()
    }

    fn step(&mut self, report: &StepReport) -> Result<(), PruneError> {
        self.seconds.push(report.seconds);
        Ok(())
    }

    fn block(&mut self, _: BlockResult) -> Result<(), PruneError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_share_a_budget_as_their_defaults_do() {
        let (block, model) = (Timed { seconds: 0.5, steps: 100 }, Timed { seconds: 0.1, steps: 200 });
        // 50 s and 20 s by default.
        assert_eq!(fit(&[block, model], 35.0), [50, 100]);
        assert_eq!(fit(&[block, model], 140.0), [200, 400]);
        assert_eq!(fit(&[block], 0.001), [1]);
        assert_eq!(fit(&[Timed { seconds: 0.0, steps: 100 }], 1e12), [ENOUGH]);
    }
}
