//! Options that `prune` and `variance` share: projections, start mask, MaskPro.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ArgAction::Set;

use super::CliError;
use super::context::{DeviceArgs, Model};
use super::method::Method;
use super::walk::{Walk, WalkArgs};
use crate::calib::Windows;
use crate::gpu::{Commands, Gpu};
use crate::kernel::Kernels;
use crate::mask::soft::logits_of;
use crate::mask::{BitMask, MaskSet, Pattern};
use crate::model::{Architecture, Projection};
use crate::prune::learn::Stage;
use crate::prune::maskpro::{Estimator, Options};
use crate::prune::plan::{Carried, WalkPlan};
use crate::prune::{
    InputNorms, OneShot, OneShotOptions, PruneError, Repair, Score, Selection, StartMask, score_logits,
};

/// Which projections are pruned, and how.
#[derive(clap::Args)]
#[command(next_help_heading = "What is pruned")]
pub(super) struct SelectArgs {
    /// Pattern: keep N of M consecutive weights along the input features (M 2, 4, 8 or 16)
    #[arg(long, value_name = "N:M", default_value = "2:4")]
    pub(super) pattern: Pattern,
    /// Prune only projections whose name contains this, such as mlp or layers.3.; may be given several times [default: all]
    #[arg(long, value_name = "TEXT")]
    pub(super) only: Vec<String>,
    /// Leave projections dense whose input features do not divide by M, instead of stopping
    #[arg(long)]
    pub(super) skip_indivisible: bool,
}

/// Where a mask starts.
#[derive(clap::Args)]
#[command(next_help_heading = "Start mask")]
pub(super) struct StartArgs {
    /// Start mask of descent and of learning methods: magnitude, wanda, ria, of learning methods also sparsegpt or descent, or a
    /// mask file [default: wanda; of relaxed, maskllm and proxsparse descent]
    #[arg(long, value_name = "METHOD|FILE")]
    start: Option<String>,
    /// Calibration windows that a learning method's start mask is made from, and the layer objective [default: all of --windows]
    #[arg(long, value_name = "N")]
    start_windows: Option<usize>,
}

fn first<T: Copy>(given: &[T], default: T) -> T {
    given.first().copied().unwrap_or(default)
}

/// Options of MaskPro, whose defaults are those of the released code; steps, rate, logits and batch also of the other learning methods.
#[derive(clap::Args)]
#[command(next_help_heading = "Learning")]
pub(super) struct MaskProArgs {
    /// maskpro: advantage that multiplies the score
    #[arg(long, value_enum, default_value_t = Estimator::Tracked)]
    estimator: Estimator,
    /// Steps of learning, in each block or on the model; a number for each objective, or one for all [default: 100, of maskllm 2000,
    /// of proxsparse 400, of maskpro 10000, or 2000 in a block, 100 in a layer]
    #[arg(long, value_name = "N", value_delimiter = ',', action = Set, num_args = 1)]
    pub(super) steps: Vec<u32>,
    /// Learning rate, likewise; constant in maskpro, else it falls along a cosine [default: 0.1 in a block, 0.05 on the model,
    /// of maskllm 0.001, of proxsparse 0.0001, of maskpro 50, in a layer 0.5]
    #[arg(long, value_name = "RATE", value_delimiter = ',', action = Set, num_args = 1)]
    pub(super) rate: Vec<f32>,
    /// Logits start at this times the start mask, likewise [default: 1, of maskpro 10, in a layer 1]
    #[arg(long, value_name = "SCALE", value_delimiter = ',', action = Set, num_args = 1)]
    pub(super) logits: Vec<f32>,
    /// maskpro: start logits from the scores of a magnitude or wanda start, this times ln(score / boundary) of each group, within
    /// half of --logits; close calls are then tried more often than clear ones [default: logits from the mask alone]
    #[arg(long, value_name = "T")]
    sharpness: Option<f32>,
    /// Windows of a minibatch, that is, of a step [default: 8, of maskpro 32]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// maskpro on the layer objective, M = 16: draws of each group in a step [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) draws: Option<u32>,
    /// maskpro: smoothing of the residual's moving average, from 0 to below 1 [default: 0.99]
    #[arg(long, value_name = "SHARE")]
    pub(super) alpha: Option<f64>,
}

impl MaskProArgs {
    pub(super) fn options(&self, pattern: Pattern, seed: u64) -> Options {
        Options {
            pattern,
            estimator: self.estimator,
            steps: first(&self.steps, 10_000),
            rate: first(&self.rate, 50.0),
            scale: first(&self.logits, 10.0),
            sharpness: self.sharpness,
            batch: self.batch(),
            alpha: self.alpha.unwrap_or(0.99),
            seed,
        }
    }

    /// Windows of MaskPro's minibatch.
    pub(super) fn batch(&self) -> usize {
        self.batch.unwrap_or(32)
    }

    /// Windows of a minibatch, if given.
    pub(super) fn batch_given(&self) -> Option<usize> {
        self.batch
    }

    /// Checks the numbers, and that `--sharpness` has scores to read: it is for the policy gradient on the model's loss
    /// (`policy`) from a start that is scored.
    pub(super) fn check(&self, policy: bool, start: &StartArgs) -> Result<(), CliError> {
        let bad = |what: &str| Err(CliError::Usage(what.to_string()));
        let most = [self.steps.len(), self.rate.len(), self.logits.len()].into_iter().max();
        if policy && most > Some(1) {
            return bad(
                "maskpro on the model's loss is one stage: --steps, --rate and --logits take one value",
            );
        }
        if self.steps.contains(&0) || self.batch == Some(0) {
            return bad("--steps and --batch must be at least 1");
        }
        let positive = |v: &f32| v.is_finite() && *v > 0.0;
        if !(self.rate.iter().all(|v| v.is_finite()) && self.logits.iter().all(positive)) {
            return bad("--rate must be a number and --logits a positive one");
        }
        if !(0.0..1.0).contains(&self.alpha.unwrap_or(0.99)) {
            return bad("--alpha must be at least 0 and below 1");
        }
        if self.sharpness.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
            return bad("--sharpness must be a positive number");
        }
        let scored = matches!(start.method(), Some(OneShot::Magnitude | OneShot::Wanda));
        if self.sharpness.is_some() && !(policy && scored) {
            return bad(
                "--sharpness is for --method maskpro on the model's loss, from --start magnitude or wanda",
            );
        }
        if self.logits.iter().any(|v| *v > 100.0) {
            return bad("--logits must be at most 100: beyond it no other mask is ever drawn");
        }
        Ok(())
    }
}

impl StartArgs {
    /// What is started from by `method`.
    pub(super) fn resolve(&mut self, method: Method) {
        let default = match method {
            Method::Relaxed | Method::Maskllm | Method::Proxsparse => "descent",
            _ => "wanda",
        };
        self.start.get_or_insert_with(|| default.into());
    }

    /// As given.
    pub(super) fn name(&self) -> &str {
        self.start.as_deref().unwrap_or("wanda")
    }

    /// The method that the start mask is made by, or none for a file.
    fn method(&self) -> Option<OneShot> {
        Some(match self.name() {
            "magnitude" => OneShot::Magnitude,
            "wanda" => OneShot::Wanda,
            "ria" => OneShot::Ria,
            "sparsegpt" => OneShot::SparseGpt,
            "descent" => OneShot::Descent,
            _ => return None,
        })
    }

    /// The file, where one is given.
    pub(super) fn file(&self) -> Option<&Path> {
        self.method().is_none().then(|| self.name().as_ref())
    }

    /// What descent starts from.
    pub(super) fn of_descent(&self) -> Result<StartMask, CliError> {
        Ok(match self.method() {
            Some(OneShot::Magnitude) => StartMask::Magnitude,
            Some(OneShot::Wanda) => StartMask::Wanda,
            Some(OneShot::Ria) => StartMask::Ria,
            None | Some(OneShot::Given) => StartMask::File,
            Some(OneShot::SparseGpt | OneShot::Descent) => {
                return Err(CliError::Usage(format!(
                    "descent starts from magnitude, wanda, ria or a mask file; for {} make its mask file first",
                    self.name()
                )));
            }
        })
    }

    /// Windows that a learning method's start mask is made from, of `windows`.
    pub(super) fn windows(&self, windows: usize) -> usize {
        self.start_windows.unwrap_or(usize::MAX).min(windows)
    }

    /// Options of the walk that makes a learning method's start mask, and goes on from it on the layer objective where `learn` says so
    /// (`last`: nothing else is learned behind it); none for a file that is not gone on from.
    pub(super) fn walk_options(
        &self,
        walk: &WalkArgs,
        pattern: Pattern,
        learn: Option<Stage>,
        last: bool,
    ) -> Result<Option<OneShotOptions>, CliError> {
        let (method, from) = match self.method() {
            Some(method) => (method, StartMask::Wanda),
            None if learn.is_some() => (OneShot::Given, StartMask::File),
            None => return Ok(None),
        };
        let options = walk.options(pattern, method, from)?;
        match options.repair {
            Repair::None => {}
            Repair::Lstsq if learn.is_some() && last => {}
            _ => {
                let message = "a start mask keeps the weights: learning methods take --repair block or model, --objective layer also \
                     lstsq";
                return Err(CliError::Usage(message.into()));
            }
        }
        Ok(Some(OneShotOptions { learn, ..options }))
    }

    /// The start mask of a learning method, and what it was made of; none when stopped.
    pub(super) fn masks<'g>(
        &self,
        learner: &Learning<'_>,
        kernels: &Kernels<'g>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Option<Start>, CliError> {
        let Learning { device, model, walk, selection, pattern, windows, batch } = *learner;
        let Some(options) = self.walk_options(walk, pattern, None, false)? else {
            let masks = start_file(model, selection, pattern, self.name().as_ref())?;
            return Ok(Some(Start { masks, from: StartFrom::Mask, plan: None }));
        };
        let windows = windows.clone().first(self.windows(windows.count()));
        let (count, window) = (windows.count(), windows.window());
        let size = (count, window);
        let carried = self.carried(walk, kernels.gpu(), &model.config, &options, size, Some(batch));
        // A stream of its own: what it keeps for read-back goes with it.
        let mut commands = Commands::new(kernels.gpu())?;
        let job = Walk { device, model, selection, options: &options, starts: None };
        let plan = job.plan(kernels, carried)?;
        walk.check_all(Some(&plan), carried, &[])?;
        let walked = job.run(kernels, &mut commands, carried.map(|c| (&windows, c)), None, stop)?;
        if walked.stopped {
            return Ok(None);
        }
        let masks = MaskSet { pattern, masks: walked.masks };
        let from = match options.method {
            OneShot::Magnitude => StartFrom::Magnitude,
            OneShot::Wanda => StartFrom::Wanda(walked.norms),
            _ => StartFrom::Mask,
        };
        Ok(Some(Start { masks, from, plan: Some(plan) }))
    }

    /// How the windows are carried, with little device memory where other learning (`spare` windows at a time) takes its own; a mask
    /// that does not depend on them needs none.
    pub(super) fn carried(
        &self,
        walk: &WalkArgs,
        gpu: &Gpu,
        config: &Architecture,
        options: &OneShotOptions,
        (windows, window): (usize, usize),
        spare: Option<usize>,
    ) -> Option<Carried> {
        let carry = || walk.carried(gpu, config, windows, window, spare);
        options.needs_inputs().then(carry)
    }
}

/// What a learning method has for its start mask.
pub(super) struct Learning<'a> {
    pub(super) device: &'a DeviceArgs,
    pub(super) model: &'a Model,
    pub(super) walk: &'a WalkArgs,
    pub(super) selection: &'a Selection,
    pub(super) pattern: Pattern,
    pub(super) windows: &'a Windows,
    /// Windows that it takes at a time.
    pub(super) batch: usize,
}

/// A start mask and what it was made of.
pub(super) struct Start {
    pub(super) masks: MaskSet,
    from: StartFrom,
    /// What the walk that made it was planned with.
    pub(super) plan: Option<WalkPlan>,
}

enum StartFrom {
    Magnitude,
    Wanda(InputNorms),
    /// Only the mask is known.
    Mask,
}

impl Start {
    /// Start logits of a projection under `options`.
    pub(super) fn logits(
        &self,
        model: &Model,
        options: &Options,
        p: &Projection,
        mask: &BitMask,
    ) -> Result<Vec<f32>, PruneError> {
        let Some(sharpness) = options.sharpness else {
            return Ok(logits_of(mask, options.scale));
        };
        let score = match &self.from {
            StartFrom::Magnitude => Score::Magnitude,
            StartFrom::Wanda(norms) => Score::Wanda(norms),
            // `check` lets no sharpness through where there are no scores; the mask is then all there is to start from.
            StartFrom::Mask => return Ok(logits_of(mask, options.scale)),
        };
        score_logits(&model.checkpoint, p, options.pattern, score, sharpness, options.scale)
    }
}

/// A start mask from a file: the same pattern, and a mask for every selected projection.
pub(super) fn start_file(
    model: &Model,
    selection: &Selection,
    pattern: Pattern,
    path: &Path,
) -> Result<MaskSet, CliError> {
    let mut set = model.mask(path, Some(pattern))?;
    let fail = |problem| CliError::Prune(PruneError::Start { path: path.into(), problem });
    if set.pattern != pattern {
        return Err(fail(format!("keeps {}, but --pattern is {pattern}", set.pattern)));
    }
    let names: Vec<&String> = selection.pruned.iter().map(|(_, p)| &p.name).collect();
    if let Some(missing) = names.iter().find(|n| !set.masks.contains_key(**n)) {
        return Err(fail(format!("has no mask for {missing}; select fewer projections with --only")));
    }
    set.masks.retain(|name, _| names.contains(&name));
    Ok(set)
}
