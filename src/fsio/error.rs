//! The one error type of this layer.

use std::io;
use std::path::PathBuf;

/// A write that did not happen. Nothing is left at the destination by it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}{}", hint(.source))]
    Os {
        /// What was tried: a verb phrase.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The destination has no file name or ends in `..`.
    #[error("{path} is not a name that can be written to; give a path that ends in a file or folder name")]
    NoName {
        /// The path given.
        path: PathBuf,
    },
    /// The destination folder exists and is not empty.
    #[error("{path} exists and is not empty (it holds {entry}); give a new folder, or remove it first")]
    NotEmpty {
        /// The path given.
        path: PathBuf,
        /// Something in it.
        entry: String,
    },
    /// The destination of a folder is something else.
    #[error("cannot write folder {path}: it is there already and is no folder; give a new folder")]
    NotAFolder {
        /// The path given.
        path: PathBuf,
    },
    /// The destination of a file is a folder, a device, a pipe or a socket.
    #[error(
        "cannot write {path}: it is {kind}, and what is written is a plain file; give the name of a file"
    )]
    NotPlain {
        /// The path given.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The destination of a file exists.
    #[error("{path} exists; give another name, or --force to replace it")]
    Exists {
        /// The path given.
        path: PathBuf,
    },
    /// The disk has less room than what is to be written takes.
    #[error(
        "cannot write {path}: it takes {} MB, and its disk has {} MB free; free some space or choose another disk",
        needed.div_ceil(1_000_000), free / 1_000_000
    )]
    NoRoom {
        /// The path given.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that this user may still write.
        free: u64,
    },
    /// The destination is a file that the command reads, or lies in a folder that it reads.
    #[error("{path} belongs to {input}, which this command reads; write it somewhere else")]
    Input {
        /// The path given.
        path: PathBuf,
        /// The file or folder that is read.
        input: PathBuf,
    },
}

impl FsError {
    /// Wraps an error of the system with the thing tried.
    pub fn os(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Os { action, path: path.into(), source }
    }
}

/// What to do about the common refusals.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; choose a place you may write to",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or choose another disk"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; this file system is read-only, choose another place",
        io::ErrorKind::NotFound => "; check the spelling of the path",
        io::ErrorKind::NotADirectory => "; a part of the path is a file",
        _ => "",
    }
}
