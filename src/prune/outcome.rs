//! How projections and blocks came out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::mask::BitMask;

/// How a projection came out. Errors are squared output errors on the calibration inputs as shares of the output's energy,
/// tr(D H D^T) / tr(W H W^T) with D the change of the weights W and H the Gram matrix of the inputs.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ProjectionReport {
    /// Tensor name.
    pub name: String,
    /// Error under the start mask.
    pub start: Option<f64>,
    /// Error under the mask.
    pub error: Option<f64>,
    /// Error after the kept weights were re-fitted.
    pub repaired: Option<f64>,
    /// Groups that differ from the start mask: descent's, or that which learning began with.
    pub groups_changed: Option<u64>,
    /// Passes of descent over the rows, four sweeps each.
    pub passes: Option<u32>,
    /// Iterations of the least squares, the most of any panel.
    pub iterations: Option<u32>,
    /// Damping that SparseGPT's matrix took, where more than asked for was needed.
    pub damp_raised: Option<f64>,
    /// Seconds.
    pub seconds: f64,
}

/// One step, for whoever watches.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepReport {
    /// The block under training; none for the whole model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// Number of the step, from 0.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// The minibatch's loss before the step: squared error as a share of the block's update, or nats per token.
    pub loss: f64,
    /// Policy gradient: the loss less that of the start mask on the same minibatch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual: Option<f64>,
    /// Policy gradient: the residuals' moving average, this step's in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracker: Option<f64>,
    /// Policy gradient on the model's loss: what multiplied the score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f64>,
    /// Temperature of the soft masks, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Groups that differ from the start mask by now; counted once in a while, and only on the way of MaskPro on the model's loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups_changed: Option<u64>,
    /// Seconds it took.
    pub seconds: f64,
}

/// How a block, or the model, came out of a stage. Errors are means over 128 calibration windows under strict masks, in the units of
/// [`StepReport::loss`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Learned {
    /// The block; none for the whole model.
    pub block: Option<usize>,
    /// Error with the masks and weights that it started from.
    pub start: f64,
    /// Error with those that it came to.
    pub error: f64,
    /// Whether the latter are taken: not where they are worse.
    pub kept: bool,
    /// Whether nothing was learned since the dense block adds nothing to the residual stream: there is no update to measure an error by,
    /// and both errors are 0 then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Groups whose mask changed.
    pub groups_changed: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What a block got.
#[derive(Clone, Debug, Default)]
pub struct BlockResult {
    /// Its number.
    pub block: usize,
    /// Masks by tensor name.
    pub masks: BTreeMap<String, BitMask>,
    /// Re-fitted weights by tensor name, as stored.
    pub weights: BTreeMap<String, Vec<u8>>,
    /// How its projections came out.
    pub reports: Vec<ProjectionReport>,
    /// Squared norms of the features of each [`super::Input`], where they were needed.
    pub squared_norms: [Option<Vec<f32>>; 4],
    /// What training made of it; of the whole model in block 0.
    pub learned: Option<Learned>,
}
