//! Errors as the command line shows them.

use crate::calib::CalibError;
use crate::export::ExportError;
use crate::folder::FolderError;
use crate::fsio::FsError;
use crate::gpu::GpuError;
use crate::hub::HubError;
use crate::mask::MaskError;
use crate::model::ModelError;
use crate::nn::NnError;
use crate::prune::PruneError;
use crate::report::ReportError;
use crate::run::RunError;
use crate::verify::VerifyError;

/// Any error of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Nn(#[from] NnError),
    #[error(transparent)]
    Mask(#[from] MaskError),
    #[error(transparent)]
    Calib(#[from] CalibError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Prune(#[from] PruneError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("{first}{}", more_problems(*.more))]
    Verdict { first: String, more: usize },
    #[error("{failed} of {all} methods have no good result, the first is {first}: {reason}")]
    Compared { failed: usize, all: usize, first: String, reason: String },
    #[error("{0}")]
    Usage(String),
    #[error("cannot handle Ctrl-C: {0}; start again")]
    Signal(#[from] ctrlc::Error),
}

fn more_problems(more: usize) -> String {
    match more {
        0 => String::new(),
        _ => format!(" (and {more} more tensors or files)"),
    }
}
