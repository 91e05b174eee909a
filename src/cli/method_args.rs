//! Options that `prune` and `variance` share: projections, start mask, MaskPro.

use std::path::Path;

use super::CliError;
use super::context::{DeviceArgs, Model};
use super::output::Progress;
use crate::calib::Windows;
use crate::eval::workspace;
use crate::gpu::Commands;
use crate::mask::{BitMask, MaskSet, Pattern};
use crate::model::Projection;
use crate::nn::Decoder;
use crate::prune::maskpro::{Estimator, Options, initial_logits};
use crate::prune::{InputNorms, PruneError, Score, Selection, score_logits, score_masks};

/// Which projections are pruned, and how.
#[derive(clap::Args)]
pub(super) struct SelectArgs {
    /// Pattern: keep N of M consecutive weights along the input features (M 2, 4, 8 or 16)
    #[arg(long, value_name = "N:M", default_value = "2:4")]
    pub(super) pattern: Pattern,
    /// Prune only projections whose name contains this (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub(super) only: Vec<String>,
    /// Leave projections dense whose input features do not divide by M, instead of stopping
    #[arg(long)]
    pub(super) skip_indivisible: bool,
}

/// Where a learned mask starts.
#[derive(clap::Args)]
pub(super) struct StartArgs {
    /// Start mask of a learning method: magnitude, wanda, or a mask file
    #[arg(long, value_name = "METHOD|FILE", default_value = "wanda")]
    start: String,
    /// Calibration windows whose inputs Wanda's norms are taken from (default: all of --windows)
    #[arg(long, value_name = "N")]
    pub(super) norm_windows: Option<usize>,
}

/// Options of MaskPro; the defaults are those of the released code.
#[derive(clap::Args)]
pub(super) struct MaskProArgs {
    /// Calibration windows used, from the start of the text
    #[arg(long, default_value_t = 512)]
    pub(super) windows: usize,
    /// Tokens of a calibration window
    #[arg(long, default_value_t = 128)]
    pub(super) window: usize,
    /// MaskPro: advantage that multiplies the score
    #[arg(long, value_enum, default_value_t = Estimator::Tracked)]
    estimator: Estimator,
    /// MaskPro: steps
    #[arg(long, default_value_t = 10_000)]
    steps: u32,
    /// MaskPro: learning rate (constant)
    #[arg(long, default_value_t = 50.0)]
    rate: f32,
    /// MaskPro: logits start at this times the start mask
    #[arg(long, value_name = "SCALE", default_value_t = 10.0)]
    logits: f32,
    /// MaskPro: start logits from the scores of a magnitude or wanda start, this times ln(score / boundary) of each group, within
    /// half of --logits; close calls are then tried more often than clear ones
    #[arg(long, value_name = "T")]
    sharpness: Option<f32>,
    /// MaskPro: windows of a minibatch
    #[arg(long, default_value_t = 32)]
    pub(super) batch: usize,
    /// MaskPro: smoothing of the residual's moving average
    #[arg(long, default_value_t = 0.99)]
    alpha: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
}

impl MaskProArgs {
    pub(super) fn options(&self, pattern: Pattern) -> Options {
        Options {
            pattern,
            estimator: self.estimator,
            steps: self.steps,
            rate: self.rate,
            scale: self.logits,
            sharpness: self.sharpness,
            batch: self.batch,
            alpha: self.alpha,
            seed: self.seed,
        }
    }

    pub(super) fn check(&self) -> Result<(), CliError> {
        let bad = |what: &str| Err(CliError::Usage(what.to_string()));
        if !(self.rate.is_finite() && self.logits.is_finite() && self.logits > 0.0) {
            return bad("--rate must be a number and --logits a positive one");
        }
        if !(0.0..1.0).contains(&self.alpha) {
            return bad("--alpha must be at least 0 and below 1");
        }
        if self.sharpness.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
            return bad("--sharpness must be a positive number");
        }
        if self.logits > 100.0 {
            return bad("--logits must be at most 100: beyond it no other mask is ever drawn");
        }
        Ok(())
    }
}

impl StartArgs {
    /// As given.
    pub(super) fn name(&self) -> &str {
        &self.start
    }

    /// The start mask, and what it was made of. At most `most` windows go through the model at a time.
    #[allow(clippy::too_many_arguments)] // what a start mask is made of
    pub(super) fn masks<'g>(
        &self,
        device: &DeviceArgs,
        model: &Model,
        decoder: &Decoder<'g, '_>,
        commands: &mut Commands<'g>,
        selection: &Selection,
        pattern: Pattern,
        windows: &Windows,
        most: usize,
    ) -> Result<Start, CliError> {
        match self.start.as_str() {
            "magnitude" => {
                let masks = score_masks(&model.checkpoint, selection, pattern, Score::Magnitude)?;
                Ok(Start { masks, from: StartFrom::Magnitude })
            }
            "wanda" => {
                let norms = norms(device, decoder, commands, windows, self.norm_windows, most)?;
                let masks = score_masks(&model.checkpoint, selection, pattern, Score::Wanda(&norms))?;
                Ok(Start { masks, from: StartFrom::Wanda(norms) })
            }
            file => {
                let masks = start_file(model, selection, pattern, file.as_ref())?;
                Ok(Start { masks, from: StartFrom::File })
            }
        }
    }
}

/// A start mask and what it was made of.
pub(super) struct Start {
    pub(super) masks: MaskSet,
    from: StartFrom,
}

enum StartFrom {
    Magnitude,
    Wanda(InputNorms),
    File,
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
            return Ok(initial_logits(mask, options.scale));
        };
        let score = match &self.from {
            StartFrom::Magnitude => Score::Magnitude,
            StartFrom::Wanda(norms) => Score::Wanda(norms),
            // A file has no scores: its mask is all there is to start from.
            StartFrom::File => return Ok(initial_logits(mask, options.scale)),
        };
        score_logits(&model.checkpoint, p, options.pattern, score, sharpness, options.scale)
    }
}

/// A start mask from a file: the same pattern, and a mask for every selected projection.
fn start_file(
    model: &Model,
    selection: &Selection,
    pattern: Pattern,
    path: &Path,
) -> Result<MaskSet, CliError> {
    let mut set = model.mask(path)?;
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

/// Wanda's input norms over the first `only` windows (all when not given), at most `most` at a time.
pub(super) fn norms<'g>(
    device: &DeviceArgs,
    decoder: &Decoder<'g, '_>,
    commands: &mut Commands<'g>,
    windows: &Windows,
    only: Option<usize>,
    most: usize,
) -> Result<InputNorms, CliError> {
    let windows = windows.clone().first(only.unwrap_or(usize::MAX));
    let ws = workspace(decoder, &windows, most)?;
    let mut progress = Progress::new("input norms", windows.count() as u64, device.quiet);
    let norms = InputNorms::collect(decoder, commands, &ws, &windows, |n| progress.at(n as u64, String::new));
    progress.end();
    Ok(norms?)
}
