//! Errors of a run.

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

/// Why a run cannot be, or did not come to an end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A file.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The run folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A model by its name.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The decoder.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A text.
    #[error(transparent)]
    Calib(#[from] CalibError),
    /// What is written.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The method.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// The page about the run.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Options that are no numbers that can be used, or that contradict each other.
    #[error("{0}")]
    Options(String),
}

impl RunError {
    /// Options that cannot be.
    pub(crate) fn options(message: impl Into<String>) -> Self {
        Self::Options(message.into())
    }
}
