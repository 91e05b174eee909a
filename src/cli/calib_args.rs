//! Which windows of the calibration text are used.

use std::path::Path;

use super::CliError;
use super::context::Model;
use crate::calib::{Segments, Windows};

/// How windows are taken from the calibration text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum SegmentsArg {
    /// Drawn at random with --seed, those that SparseGPT's and Wanda's tools draw
    Random,
    /// One behind the other, from the start of the text
    Sequential,
}

/// Calibration options of `prune` and `variance`. What is not given depends on the method.
#[derive(clap::Args)]
#[command(next_help_heading = "Calibration")]
pub(super) struct CalibArgs {
    /// Number of calibration windows [default: 128, of maskpro 512, of the other learning methods 256]
    #[arg(long, value_name = "N")]
    pub(super) windows: Option<usize>,
    /// Tokens of a calibration window [default: 2048 or as many as the model was made for, of maskpro 128]
    #[arg(long, value_name = "TOKENS")]
    pub(super) window: Option<usize>,
    /// Which windows of the calibration text are taken [default: random, of maskpro sequential]
    #[arg(long, value_enum)]
    segments: Option<SegmentsArg>,
    /// Seed of all that is drawn: random windows, their order in training, masks, noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
}

/// Number, length and choice of windows.
#[derive(Clone, Copy, Debug)]
pub(super) struct CalibChoice {
    pub(super) windows: usize,
    pub(super) window: usize,
    pub(super) segments: Segments,
}

impl CalibArgs {
    /// The choice for a one-shot method: as in the literature.
    pub(super) fn one_shot(&self, model_reach: usize) -> CalibChoice {
        self.with(128, model_reach.min(2048), SegmentsArg::Random)
    }

    /// The choice for MaskPro: that of its released code.
    pub(super) fn maskpro(&self) -> CalibChoice {
        self.with(512, 128, SegmentsArg::Sequential)
    }

    /// The choice for masks learned by backpropagation.
    pub(super) fn learned(&self, model_reach: usize) -> CalibChoice {
        self.with(256, model_reach.min(2048), SegmentsArg::Random)
    }

    fn with(&self, windows: usize, window: usize, segments: SegmentsArg) -> CalibChoice {
        CalibChoice {
            windows: self.windows.unwrap_or(windows),
            window: self.window.unwrap_or(window),
            segments: match self.segments.unwrap_or(segments) {
                SegmentsArg::Random => Segments::Random { seed: self.seed },
                SegmentsArg::Sequential => Segments::Sequential,
            },
        }
    }
}

impl CalibChoice {
    /// Reads the windows.
    pub(super) fn read(&self, model: &Model, text: &Path) -> Result<Windows, CliError> {
        model.calibration(text, self.segments, self.windows, self.window)
    }

    /// "random" or "sequential".
    pub(super) fn name(&self) -> &'static str {
        match self.segments {
            Segments::Sequential => "sequential",
            Segments::Random { .. } => "random",
        }
    }
}
