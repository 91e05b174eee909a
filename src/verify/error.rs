//! Why a folder could not be verified at all. What is wrong *in* it is a [`super::Problem`].

use std::path::PathBuf;

use crate::export::ExportError;
use crate::mask::MaskError;
use crate::model::ModelError;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Nothing says which pattern to look for.
    #[error("{folder} has no sparsity_report.json that names its pattern; give --pattern N:M or --mask FILE")]
    NoPattern {
        /// The model folder.
        folder: PathBuf,
    },
    /// The sidecar cannot be used.
    #[error("{path}: {problem}; write the folder again, or remove the file and give --pattern N:M")]
    Report {
        /// sparsity_report.json.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The mask file and the pattern that was asked for disagree.
    #[error("the mask is {mask}, but --pattern is {pattern}; leave --pattern away")]
    TwoPatterns {
        /// The mask file's.
        mask: crate::mask::Pattern,
        /// The argument's.
        pattern: crate::mask::Pattern,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; check that it may be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder without anything to inspect.
    #[error(
        "{folder} has neither a config.json nor a mask.safetensors; give a mask file, a model folder or the folder of a run"
    )]
    NothingInside {
        /// The folder.
        folder: PathBuf,
    },
    /// An npz file, which does not say what shapes its masks have.
    #[error("{path} does not say the shapes of its masks; give --model MODEL, whose config.json is enough")]
    NoShapes {
        /// The file.
        path: PathBuf,
    },
    /// Two masks of one projection that cannot be compared.
    #[error(
        "{tensor} is {first:?} in the first and {second:?} in the second; they belong to different models"
    )]
    Shapes {
        /// The projection.
        tensor: String,
        /// Rows and columns.
        first: [usize; 2],
        /// Of the other.
        second: [usize; 2],
    },
    /// A packed weight that cannot be unpacked.
    #[error("{tensor}: {source}; export it again")]
    Layout {
        /// The parameter.
        tensor: String,
        /// What is wrong.
        source: crate::export::LayoutError,
    },
    /// The model, or the source it is held against.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Walking the folder.
    #[error(transparent)]
    Export(#[from] ExportError),
}
