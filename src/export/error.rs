//! The one error type of the export layer.

use std::path::PathBuf;

use crate::fsio::FsError;
use crate::mask::MaskError;
use crate::model::ModelError;

/// Why a model was not written. Nothing is left at the destination.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The destination lies inside the source folder, or is it.
    #[error("{out} lies inside the model folder {source_folder}; write it somewhere else")]
    InsideSource {
        /// The destination.
        out: PathBuf,
        /// The dense model's folder.
        source_folder: PathBuf,
    },
    /// A file or folder of the source cannot be read.
    #[error(
        "cannot read {path}: {source}; whoever loads the model looks for it, so put it right or take it away"
    )]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// More nested folders than a model has.
    #[error("{path} is nested too deeply to be part of a model folder; give the model's own folder")]
    TooDeep {
        /// The folder.
        path: PathBuf,
    },
    /// The mask or the model cannot be written in the format asked for.
    #[error("this model cannot be written as {format}: {problem}")]
    Format {
        /// The format.
        format: &'static str,
        /// Why, and what to do.
        problem: String,
    },
    /// A packed folder that contradicts itself.
    #[error("{path} does not describe this {format} folder: {problem}; export it again")]
    Described {
        /// The file that describes it.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// What contradicts what.
        problem: String,
    },
    /// The mask does not fit the model, or is not strict.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The weights are at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The system refused a write: disk full, no permission, an existing folder.
    #[error(transparent)]
    Write(#[from] FsError),
}

/// Why a weight cannot be packed, or a packed one cannot be unpacked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A type, a shape or a number of bytes that the layout does not have.
    #[error("{0}")]
    Unfit(String),
    /// A group that the layout cannot hold, or metadata that mean nothing.
    #[error("group {group} of row {row} {what}")]
    Group {
        /// The row.
        row: usize,
        /// The group within the row.
        group: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl From<String> for LayoutError {
    fn from(problem: String) -> Self {
        Self::Unfit(problem)
    }
}
