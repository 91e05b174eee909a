//! What the descriptions of options give beside a command line: defaults, and paths as text.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use serde::{Serialize, Serializer};

/// The defaults, as the fields describe them.
pub(super) fn defaults<T: Args>() -> T {
    let command = T::augment_args(Command::new(""));
    let model = command.get_positionals().next().map(|_| "model");
    let matches = command.get_matches_from([""].into_iter().chain(model));
    // Descriptions that have defaults for all that is needed; a test parses them.
    T::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
}

/// A path that may be missing.
pub(super) trait Paths {
    fn get(&self) -> Option<&Path>;
}

impl Paths for PathBuf {
    fn get(&self) -> Option<&Path> {
        Some(self)
    }
}

impl Paths for Option<PathBuf> {
    fn get(&self) -> Option<&Path> {
        self.as_deref()
    }
}

/// A path as text; one that is no UTF-8, which the file must be, as if it were not there.
pub(super) fn path<P: Paths, S: Serializer>(path: &P, to: S) -> Result<S::Ok, S::Error> {
    path.get().and_then(Path::to_str).serialize(to)
}
