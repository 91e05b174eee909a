//! Which windows of the calibration text are used.

use std::path::Path;

use clap::builder::RangedU64ValueParser;

use super::CliError;
use super::context::Model;
use crate::calib::{Segments, TextOptions, Windows};

/// How windows are taken from the calibration text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum SegmentsArg {
    /// Drawn at random with --seed, those that SparseGPT's and Wanda's tools draw
    Random,
    /// One behind the other, from the start of the text
    Sequential,
}

/// A number of windows: none would be no run, and with more than these the bytes of a plan could not be counted.
pub(super) fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 22)
}

/// Tokens of a window; longer ones than this could not be counted either. What is too short for a window says so itself.
pub(super) fn tokens_of_window() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(..=1 << 20)
}

/// Where the text is in a file of documents.
#[derive(Clone, clap::Args)]
pub(super) struct TextArgs {
    /// Key of JSON documents that holds the text, or messages [default: text, content or messages, the first that is there]
    #[arg(long, value_name = "KEY")]
    field: Option<String>,
    /// Column of parquet files that holds the text, or messages [default: text, content or messages, else the only column of texts]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
}

impl TextArgs {
    pub(super) fn options(&self) -> TextOptions {
        TextOptions { field: self.field.clone(), column: self.column.clone() }
    }

    /// As words of a command line.
    pub(super) fn words(&self) -> impl Iterator<Item = (&'static str, String)> {
        let given = [("field", self.field.clone()), ("column", self.column.clone())];
        given.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}

/// Calibration options of `prune` and `variance`. What is not given depends on the method.
#[derive(clap::Args)]
#[command(next_help_heading = "Calibration")]
pub(super) struct CalibArgs {
    /// Number of calibration windows [default: 128, of maskpro 512, of the other learning methods 256, of the layer objective alone 128]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(super) windows: Option<usize>,
    /// Tokens of a calibration window [default: 2048 or as many as the model was made for, of maskpro 128]
    #[arg(long, value_name = "TOKENS", value_parser = tokens_of_window())]
    pub(super) window: Option<usize>,
    /// Which windows of the calibration text are taken [default: random, of maskpro sequential]
    #[arg(long, value_enum)]
    segments: Option<SegmentsArg>,
    /// Seed of all that is drawn: random windows, their order in training, masks, noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    #[command(flatten)]
    pub(super) texts: TextArgs,
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
    pub(super) fn read(
        &self,
        model: &Model,
        text: &Path,
        options: &TextOptions,
    ) -> Result<Windows, CliError> {
        model.calibration(text, options, self.segments, self.windows, self.window)
    }

    /// "random" or "sequential".
    pub(super) fn name(&self) -> &'static str {
        match self.segments {
            Segments::Sequential => "sequential",
            Segments::Random { .. } => "random",
        }
    }
}
