//! How many steps of a learning method fit into a time: a few of each of its stages are timed on a few windows, under a mask that keeps
//! the first weights of every group, since a step's time depends on neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::Job;
use crate::calib::Windows;
use crate::cli::CliError;
use crate::cli::context::DeviceArgs;
use crate::cli::{job, prune_args};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::soft::logits_of;
use crate::mask::{BitMask, MaskSet, Pattern};
use crate::model::Overlay;
use crate::nn::{Decoder, DecoderWeights, Embedding};
use crate::prune::learn::{LearnWatch, Objective, Stage, StepReport, shuffled};
use crate::prune::maskpro::Learner;
use crate::prune::{BlockResult, PruneError, Selection, select};

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

impl Job<'_> {
    /// Steps for each objective of a method so that they take about `budget` seconds; none for a method that does not learn.
    pub(super) fn steps_within(&self, mut args: prune_args::Args, budget: f64) -> Result<Vec<u32>, CliError> {
        args.resolve();
        let (layer, stages) = args.stages()?;
        if layer.is_some() {
            let message = "the steps of the layer objective are not chosen by time; give --steps";
            return Err(CliError::Usage(message.into()));
        }
        let config = &self.model.config;
        let selection = select(config, args.select.pattern, &args.select.only, args.select.skip_indivisible)?;
        // The run that follows says where it runs.
        let device = DeviceArgs { quiet: true, ..self.device.clone() };
        let job = job::Job {
            device: &device,
            args: &args,
            model: &self.model,
            selection: &selection,
            choice: self.choice,
            calib: Some(self.calib.clone()),
            eval: None,
            stages,
        };
        let learning: Vec<&Stage> = job.stages.iter().filter(|s| s.trains.masks()).collect();
        if learning.is_empty() && !job.args.policy() {
            return Ok(Vec::new());
        }
        let gpu = device.open()?;
        let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
        let pilot = Pilot { job: &job, kernels: &kernels, calib: &self.calib, budget, stop: &self.stop };
        let start = first_of_every_group(&selection, args.select.pattern)?;
        let timed = match job.args.policy() {
            true => vec![pilot.policy(&start)?],
            false => learning.iter().map(|s| pilot.stage(s, &start)).collect::<Result<Vec<_>, _>>()?,
        };
        let steps = fit(&timed, budget);
        self.device.note(|| {
            let told = |(t, n): (&Timed, &u32)| format!("{n} of {:.3} s", t.seconds);
            format!("steps: {}", timed.iter().zip(&steps).map(told).collect::<Vec<_>>().join(", then "))
        });
        Ok(steps)
    }
}

/// Masks that cost nothing to make.
fn first_of_every_group(selection: &Selection, pattern: Pattern) -> Result<MaskSet, CliError> {
    let mut set = MaskSet::new(pattern);
    for (_, p) in &selection.pruned {
        let mask = BitMask::top_n(p.rows, p.cols, pattern, |_, scores| scores.fill(0.0))?;
        set.masks.insert(p.name.clone(), mask);
    }
    Ok(set)
}

/// Times the stages of a run.
struct Pilot<'a, 'g> {
    job: &'a job::Job<'a>,
    kernels: &'a Kernels<'g>,
    calib: &'a Windows,
    budget: f64,
    stop: &'a Arc<AtomicBool>,
}

impl Pilot<'_, '_> {
    fn watch(&self) -> Stopwatch {
        let least = (TIMED_SHARE * self.budget).min(1.0);
        Stopwatch { seconds: Vec::new(), least, stop: self.stop.clone() }
    }

    fn stage(&self, stage: &Stage, start: &MaskSet) -> Result<Timed, CliError> {
        let (job, kernels) = (self.job, self.kernels);
        let windows = shuffled(&self.calib.clone().first(2 * stage.batch), stage.seed, stage.batch)?;
        let flow = job.plans(kernels).flow(stage)?;
        let dense = Overlay::new(&job.model.checkpoint);
        let long = Stage { steps: ENOUGH, ..stage.clone() };
        let run = job.stage_run(kernels, &long, flow, start, &dense);
        let mut watch = self.watch();
        match run.run(&mut Commands::new(kernels.gpu())?, &windows, &[], &mut watch) {
            Err(PruneError::Stopped) if !self.stop.load(Ordering::SeqCst) => {}
            other => other?,
        }
        let units = if stage.objective == Objective::Block { job.blocks() } else { 1 };
        Ok(Timed { seconds: watch.mean() * units as f64, steps: stage.steps })
    }

    fn policy(&self, start: &MaskSet) -> Result<Timed, CliError> {
        let (args, model, gpu) = (self.job.args, self.job.model, self.kernels.gpu());
        let options = args.learn.options(args.select.pattern, args.windows.seed);
        let windows = self.calib.clone().first(options.batch);
        let weights = DecoderWeights::upload(gpu, &model.checkpoint, &model.config, |_| ())?;
        let embedding = Embedding::new(&model.checkpoint, &model.config)?;
        let decoder = Decoder { kernels: self.kernels, config: &model.config, weights: &weights, embedding };
        let mut commands = Commands::new(gpu)?;
        let (scale, steps) = (options.scale, options.steps);
        let mut learner = Learner::new(
            &decoder,
            &mut commands,
            (self.job.selection, start),
            &windows,
            options,
            |_, mask| Ok(logits_of(mask, scale)),
            |_, _| (),
        )?;
        let mut watch = self.watch();
        while !watch.stop() {
            let at = Instant::now();
            learner.step()?;
            watch.seconds.push(at.elapsed().as_secs_f64());
        }
        if self.stop.load(Ordering::SeqCst) {
            return Err(PruneError::Stopped.into());
        }
        Ok(Timed { seconds: watch.mean(), steps })
    }
}

/// Stops a stage when enough of its steps are timed.
struct Stopwatch {
    seconds: Vec<f64>,
    /// For how long steps are timed.
    least: f64,
    stop: Arc<AtomicBool>,
}

impl Stopwatch {
    /// The steps behind the first.
    fn timed(&self) -> &[f64] {
        self.seconds.get(1..).unwrap_or_default()
    }

    fn mean(&self) -> f64 {
        self.timed().iter().sum::<f64>() / self.timed().len().max(1) as f64
    }
}

impl LearnWatch for Stopwatch {
    fn stop(&self) -> bool {
        let timed = self.timed();
        let enough = timed.len() >= TIMED && timed.iter().sum::<f64>() >= self.least;
        enough || self.stop.load(Ordering::SeqCst)
    }

    fn step(&mut self, report: &StepReport) -> Result<(), PruneError> {
        self.seconds.push(report.seconds);
        Ok(())
    }

    fn block(&mut self, _: &BlockResult) -> Result<(), PruneError> {
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
