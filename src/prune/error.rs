//! Errors of the pruning methods.

use std::path::PathBuf;

use crate::calib::CalibError;
use crate::export::ExportError;
use crate::folder::FolderError;
use crate::fsio::FsError;
use crate::gpu::GpuError;
use crate::mask::MaskError;
use crate::model::{Dtype, ModelError};
use crate::nn::NnError;

/// An error of a pruning run.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The decoder.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// The model folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A mask or mask file.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The calibration text.
    #[error(transparent)]
    Calib(#[from] CalibError),
    /// The masked model.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The run folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Files of the run folder.
    #[error(transparent)]
    Files(#[from] FsError),
    /// A loss that is not finite during training.
    #[error("training {place}: the loss is {loss} at step {step}; use a lower --rate")]
    Diverged {
        /// What was trained.
        place: String,
        /// The step.
        step: u32,
        /// The loss.
        loss: f64,
    },
    /// Re-fitted weights that their stored type cannot hold.
    #[error(
        "{count} re-fitted weights of {tensor} do not fit in {dtype}, the first is {value} at [{}, {}], beyond {most}: clamp them with \
         --clamp-weights (--resume goes on with what is finished), or prune the model stored in BF16 or F32",
        position[0], position[1]
    )]
    Unstorable {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// The first such weight.
        value: f32,
        /// Its row and column.
        position: [usize; 2],
        /// How many there are.
        count: usize,
        /// The largest number of the type.
        most: f32,
    },
    /// A minibatch that does not go through the model in equal parts.
    #[error("--batch {batch} is not a multiple of the {together} windows that go through a block together")]
    Batch {
        /// Windows of a minibatch.
        batch: usize,
        /// Windows that fit.
        together: usize,
    },
    /// A snapshot of other tensors.
    #[error(
        "the kept state of training lacks {tensor} or has it in another size; begin the run anew with --out"
    )]
    Snapshot {
        /// The buffer that it lacks.
        tensor: String,
    },
    /// A projection whose rows do not divide into groups.
    #[error(
        "{projection} has {cols} input features, which do not divide into groups of {m}; choose another pattern, or leave \
         such projections dense with --skip-indivisible"
    )]
    Indivisible {
        /// Its tensor name.
        projection: String,
        /// Its input features.
        cols: usize,
        /// Group size.
        m: usize,
    },
    /// Nothing is left to prune.
    #[error("no projection is left to prune: {reason}")]
    NothingToPrune {
        /// Why.
        reason: String,
    },
    /// A start mask that cannot be used.
    #[error("the start mask {path} {problem}")]
    Start {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// Weights would change where only masks are made.
    #[error(
        "a session makes masks and leaves the weights as they are: {what} needs `prune`, or the types of maskwright::prune"
    )]
    KeepsWeights {
        /// What would change them.
        what: &'static str,
    },
    /// The layer objective where the walk is over.
    #[error(
        "the layer objective belongs to the walk that chooses the start mask: give it as OneShotOptions::learn"
    )]
    LayerObjective,
    /// An objective of one's own where there is no block's output.
    #[error(
        "an objective of one's own is for stages on the block objective: set Stage::objective to Objective::Block"
    )]
    OwnObjective,
    /// Asked to stop.
    #[error("interrupted")]
    Stopped,
    /// Too few windows for one batch.
    #[error(
        "the calibration text gives {windows} windows, a batch takes {batch}; use a longer text or a smaller --batch"
    )]
    TooFewWindows {
        /// Windows there are.
        windows: usize,
        /// Windows of a batch.
        batch: usize,
    },
}
