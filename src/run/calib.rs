//! Which windows of the calibration text are used.

use std::path::Path;

use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::{Model, Observer, RunError};
use crate::calib::{Segments, TextOptions, Windows};

/// How windows are taken from the calibration text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Choosing {
    /// Drawn at random with --seed, those that SparseGPT's and Wanda's tools draw
    Random,
    /// One behind the other, from the start of the text
    Sequential,
}

/// A number of windows: none would be no run, and with more than these the bytes of a plan could not be counted.
pub(crate) fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 22)
}

/// Tokens of a window; longer ones than this could not be counted either. What is too short for a window says so itself.
pub(crate) fn tokens_of_window() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(..=1 << 20)
}

/// Where the text is in a file of documents.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct TextSpec {
    /// Key of JSON documents that holds the text, or messages [default: text, content or messages, the first that is there]
    #[arg(long, value_name = "KEY")]
    pub field: Option<String>,
    /// Column of parquet files that holds the text, or messages [default: text, content or messages, else the only column of texts]
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
}

impl TextSpec {
    pub(crate) fn options(&self) -> TextOptions {
        TextOptions { field: self.field.clone(), column: self.column.clone() }
    }
}

/// Calibration options of `prune` and `variance`. What is not given depends on the method.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Calibration")]
pub struct CalibSpec {
    /// Number of calibration windows [default: 128, of maskpro 512, of the other learning methods 256, of the layer objective alone 128]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub windows: Option<usize>,
    /// Tokens of a calibration window [default: 2048 or as many as the model was made for, of maskpro 128]
    #[arg(long, value_name = "TOKENS", value_parser = tokens_of_window())]
    pub window: Option<usize>,
    /// Which windows of the calibration text are taken [default: random, of maskpro sequential]
    #[arg(long, value_enum)]
    pub segments: Option<Choosing>,
    /// Seed of all that is drawn: random windows, their order in training, masks, noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where the text is in a file of documents.
    #[command(flatten)]
    #[serde(flatten)]
    pub texts: TextSpec,
}

/// Number, length and choice of windows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CalibChoice {
    pub(crate) windows: usize,
    pub(crate) window: usize,
    pub(crate) segments: Segments,
}

impl CalibSpec {
    /// The choice for a one-shot method: as in the literature.
    pub(crate) fn one_shot(&self, model_reach: usize) -> CalibChoice {
        self.with(128, model_reach.min(2048), Choosing::Random)
    }

    /// The choice for MaskPro: that of its released code.
    pub(crate) fn maskpro(&self) -> CalibChoice {
        self.with(512, 128, Choosing::Sequential)
    }

    /// The choice for masks learned by backpropagation.
    pub(crate) fn learned(&self, model_reach: usize) -> CalibChoice {
        self.with(256, model_reach.min(2048), Choosing::Random)
    }

    /// Takes over a choice in the place of defaults.
    pub(crate) fn take(&mut self, choice: &CalibChoice) {
        self.windows = Some(choice.windows);
        self.window = Some(choice.window);
        self.segments = Some(match choice.segments {
            Segments::Random { .. } => Choosing::Random,
            Segments::Sequential => Choosing::Sequential,
        });
    }

    fn with(&self, windows: usize, window: usize, segments: Choosing) -> CalibChoice {
        CalibChoice {
            windows: self.windows.unwrap_or(windows),
            window: self.window.unwrap_or(window),
            segments: match self.segments.unwrap_or(segments) {
                Choosing::Random => Segments::Random { seed: self.seed },
                Choosing::Sequential => Segments::Sequential,
            },
        }
    }
}

impl CalibChoice {
    /// Reads the windows.
    pub(crate) fn read(
        &self,
        model: &Model,
        text: &Path,
        options: &TextOptions,
        observer: &dyn Observer,
    ) -> Result<Windows, RunError> {
        model.calibration(text, options, self.segments, self.windows, self.window, observer)
    }

    /// "random" or "sequential".
    pub(crate) fn name(&self) -> &'static str {
        match self.segments {
            Segments::Sequential => "sequential",
            Segments::Random { .. } => "random",
        }
    }
}
