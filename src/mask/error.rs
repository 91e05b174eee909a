//! The one error type of the mask layer.

use std::path::PathBuf;

use crate::fsio::FsError;
use crate::model::ModelError;

use super::Pattern;

/// What can be wrong with a pattern, a mask or a mask file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// A pattern that does not exist here.
    #[error(
        "the pattern {found} is not supported: N:M keeps N of M, with M one of 2, 4, 8, 16 and N from 1 to M - 1"
    )]
    Pattern {
        /// What was given.
        found: String,
    },
    /// Columns do not divide into groups.
    #[error("{cols} input features do not divide into groups of {} (pattern {pattern})", pattern.m())]
    Indivisible {
        /// Input features.
        cols: usize,
        /// The pattern.
        pattern: Pattern,
    },
    /// Sizes that no mask can have.
    #[error(
        "a mask of {rows} x {cols} is not possible: both must be at least 1, and the bits must fit the memory"
    )]
    Size {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
    /// The words of a mask have the wrong number.
    #[error("a mask of {rows} x {cols} has {expected} words, but {found} were given")]
    Words {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Words that it must have.
        expected: usize,
        /// Words given.
        found: usize,
    },
    /// Logits of a mask have the wrong number.
    #[error("the logits of a mask of {rows} x {cols} must be {expected}, but {found} were given")]
    Logits {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Logits that there must be.
        expected: usize,
        /// Logits given.
        found: usize,
    },
    /// A bit behind the last column is set.
    #[error("row {row} of the mask has a bit set behind its last column")]
    TailBit {
        /// The row.
        row: usize,
    },
    /// A group does not hold exactly N ones.
    #[error("group {group} of row {row} keeps {kept} weights, but the pattern is {pattern}")]
    NotStrict {
        /// The row.
        row: usize,
        /// The group within the row.
        group: usize,
        /// Ones in it.
        kept: usize,
        /// The pattern.
        pattern: Pattern,
    },
    /// A score is NaN.
    #[error(
        "the score of weight ({row}, {col}) is NaN; the weights, the calibration or the learning rate are at fault"
    )]
    NotANumber {
        /// The row.
        row: usize,
        /// The column.
        col: usize,
    },
    /// An error in one projection's mask.
    #[error("{tensor}: {source}")]
    In {
        /// The projection's tensor name.
        tensor: String,
        /// The error.
        source: Box<MaskError>,
    },
    /// A mask for a tensor that the model does not prune.
    #[error("the mask names {tensor}, which is no projection of this model; it belongs to another model")]
    NoProjection {
        /// The tensor name.
        tensor: String,
    },
    /// A mask of another shape than the projection.
    #[error(
        "the mask of {tensor} is {found:?}, but the projection is {expected:?}; it belongs to another model"
    )]
    Shape {
        /// The tensor name.
        tensor: String,
        /// The projection's rows and columns.
        expected: [usize; 2],
        /// The mask's.
        found: [usize; 2],
    },
    /// A mask file that cannot be used.
    #[error("{path} is not a usable mask file: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        problem: String,
    },
    /// A file of the model or the mask's container is at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The mask could not be written.
    #[error(transparent)]
    Write(#[from] FsError),
}

impl MaskError {
    /// Adds the name of the projection.
    pub fn within(self, tensor: &str) -> Self {
        Self::In { tensor: tensor.into(), source: Box::new(self) }
    }
}
