//! Errors as the command line shows them.

use crate::run::RunError;
use crate::verify::VerifyError;

/// Any error of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Of a run, or of a layer below it.
    #[error(transparent)]
    Run(RunError),
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

/// What ends a run ends a command.
impl<E> From<E> for CliError
where
    RunError: From<E>,
{
    fn from(error: E) -> Self {
        Self::Run(error.into())
    }
}

fn more_problems(more: usize) -> String {
    match more {
        0 => String::new(),
        _ => format!(" (and {more} more tensors or files)"),
    }
}
