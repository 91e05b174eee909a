//! Ctrl-C and what ends a process from outside.

use std::sync::atomic::{AtomicBool, Ordering};

use super::CliError;
use crate::fsio;

/// What the handler of signals knows.
struct Signals {
    /// Set by the first signal.
    stop: AtomicBool,
    /// Whether somebody looks at `stop`, since there is something to keep.
    watched: AtomicBool,
}

static SIGNALS: Signals = Signals { stop: AtomicBool::new(false), watched: AtomicBool::new(false) };

/// Lets Ctrl-C (and SIGTERM, SIGHUP) remove what is half written and end the process with exit code 130: at once, or from [`guard`] on
/// the second one, without waiting for what the first has begun.
///
/// # Errors
/// What the system refuses.
pub(super) fn watch() -> Result<(), CliError> {
    ctrlc::set_handler(|| {
        let Signals { stop, watched } = &SIGNALS;
        let first = !stop.swap(true, Ordering::SeqCst);
        if first && watched.load(Ordering::SeqCst) {
            return;
        }
        fsio::discard_unfinished();
        eprintln!("interrupted");
        std::process::exit(130);
    })?;
    Ok(())
}

/// There is something to keep from now on, by a command that asks [`stopped`]: the first signal no longer ends the process.
pub(super) fn guard() {
    SIGNALS.watched.store(true, Ordering::SeqCst);
}

/// Whether a signal came.
pub(super) fn stopped() -> bool {
    SIGNALS.stop.load(Ordering::SeqCst)
}
