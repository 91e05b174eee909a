//! One-shot methods: masks from the weights and the Gram matrix of each projection's input, without any training.

use serde::{Deserialize, Serialize};

use super::learn::Stage;
use crate::mask::Pattern;
use crate::model::{Architecture, ProjectionKind};

/// What chooses a projection's mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OneShot {
    /// The largest weights.
    Magnitude,
    /// The largest weights times the norm of their input (Sun et al. 2023, arXiv 2306.11695).
    Wanda,
    /// Weights relative to their row and column, times the root of the norm (Zhang et al., ICLR 2024), without permutation.
    Ria,
    /// Group by group with the error of the pruned weights passed on (Frantar and Alistarh 2023, arXiv 2301.00774).
    SparseGpt,
    /// Exact group descent in the Gram metric from a start mask.
    Descent,
    /// A mask file, as it is.
    Given,
}

/// What descent starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMask {
    /// The magnitude mask.
    Magnitude,
    /// The Wanda mask.
    Wanda,
    /// The RIA mask.
    Ria,
    /// A mask file.
    File,
}

/// What happens to the kept weights once the mask is fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Repair {
    /// They stay bit-identical to the source
    None,
    /// Those that sparsegpt's error propagation ends with (sparsegpt only)
    Update,
    /// Least squares on each projection's output, row by row
    Lstsq,
}

/// What the inputs of a projection have seen when its statistics are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// All masks before it, as in SparseGPT
    Pruned,
    /// The dense model
    Dense,
}

/// Options of a one-shot run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct OneShotOptions {
    /// Keep N of M.
    pub pattern: Pattern,
    /// What chooses the mask.
    pub method: OneShot,
    /// What descent starts from.
    pub start: StartMask,
    /// What happens to the kept weights.
    pub repair: Repair,
    /// What the inputs have seen.
    pub inputs: Inputs,
    /// Damping of SparseGPT's matrix, as a share of the mean of its diagonal.
    pub damp: f64,
    /// The same of the least squares.
    pub repair_damp: f64,
    /// Smallest gain of a change that descent makes, as a share of the row's error.
    pub tolerance: f32,
    /// Sweeps of descent over the groups of a row, at most.
    pub max_sweeps: u32,
    /// Whether re-fitted weights that their stored type cannot hold become its largest number; else they end the run. No condition of a
    /// run that is resumed: it changes nothing but what would have ended it.
    #[serde(skip)]
    pub clamp: bool,
    /// Learning on the layer objective, from the mask that the method has chosen.
    pub learn: Option<Stage>,
}

impl OneShotOptions {
    /// Options of `method` with the defaults of the command line.
    pub fn new(pattern: Pattern, method: OneShot) -> Self {
        Self {
            pattern,
            method,
            start: StartMask::Wanda,
            repair: Repair::None,
            inputs: Inputs::Pruned,
            damp: 0.01,
            repair_damp: 3e-2,
            tolerance: 1e-6,
            max_sweeps: 50,
            clamp: false,
            learn: None,
        }
    }

    /// Whether descent is part of it: as the method, or behind what is learned.
    pub fn descends(&self) -> bool {
        self.method == OneShot::Descent || self.learn.as_ref().is_some_and(|stage| stage.polish)
    }

    /// Whether the mask depends on the inputs at all.
    pub fn needs_inputs(&self) -> bool {
        let free = matches!(self.method, OneShot::Magnitude | OneShot::Given);
        !free || self.repair != Repair::None || self.learn.is_some()
    }
}

/// The four distinct inputs of a block's projections, in the order in which they are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Of q, k and v.
    Attention,
    /// Of o.
    AttentionOutput,
    /// Of gate and up.
    FeedForward,
    /// Of down.
    Down,
}

impl Input {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Attention, Self::AttentionOutput, Self::FeedForward, Self::Down];

    /// The input of a projection.
    pub fn of(kind: ProjectionKind) -> Self {
        use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
        match kind {
            Q | K | V => Self::Attention,
            O => Self::AttentionOutput,
            Gate | Up => Self::FeedForward,
            Down => Self::Down,
        }
    }

    /// Its features.
    pub fn width(self, config: &Architecture) -> usize {
        match self {
            Self::Attention | Self::FeedForward => config.hidden_size,
            Self::AttentionOutput => config.query_rows(),
            Self::Down => config.intermediate_size,
        }
    }
}
