//! Errors of reports.

use std::io;
use std::path::PathBuf;

use crate::fsio::FsError;

/// A report that cannot be made or shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] FsError),
    /// A folder without the files of a run.
    #[error(
        "{path} is no folder of a run: it has neither run.json nor metrics.jsonl; give a folder that prune wrote (its --out)"
    )]
    NoRun {
        /// The path given.
        path: PathBuf,
    },
    /// `run.json` cannot be understood.
    #[error(
        "{path} is damaged: {problem}; remove the file to see what its run left besides, or repeat the run"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The live report cannot be shown at an address.
    #[error(
        "cannot show the report at {address}: {source}; give another address, such as --serve=127.0.0.1:0 for any free port"
    )]
    Address {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}
