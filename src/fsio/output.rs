//! The file that a command writes: what must not be replaced.

use std::fs;
use std::path::{Path, PathBuf};

use super::place::{Place, probe};
use super::{AtomicFile, Destination, FsError};

/// The destination of a command that writes one file. Before the work begins it is held against what the command reads and what is there
/// already, and a block is written beside it and removed again, which finds a full disk, a read-only one, and a folder without the right.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    force: bool,
}

impl OutputFile {
    /// Checks a destination. `inputs` are the files and folders that the command reads; a file that exists may be replaced with `force`,
    /// but never one of them or in them.
    ///
    /// # Errors
    /// [`FsError::Input`], [`FsError::NotPlain`], [`FsError::Exists`], and what the system refuses.
    pub fn check(path: &Path, inputs: &[&Path], force: bool) -> Result<Self, FsError> {
        let place = Place::of(path)?;
        let there = place.plain(path)?;
        let parent = place.parent.canonicalize().map_err(|e| FsError::os("write", path, e))?;
        let whole = parent.join(&place.name);
        if let Some(input) = inputs.iter().find(|input| belongs(&whole, input)) {
            return Err(FsError::Input { path: path.into(), input: input.into() });
        }
        if there.is_some() && !force {
            return Err(FsError::Exists { path: path.into() });
        }
        probe(&place).map_err(|e| FsError::os("write", path, e))?;
        Ok(Self { path: path.into(), force })
    }

    /// Writes `bytes` as the whole content.
    ///
    /// # Errors
    /// What the system refuses; a file that was there is then untouched.
    pub fn write_bytes(&self, bytes: &[u8]) -> Result<(), FsError> {
        let mut file = self.begin()?;
        file.put(bytes)?;
        file.commit()
    }
}

/// Without `force` a file that came to be there since the check is not replaced either.
impl Destination for OutputFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn begin(&self) -> Result<AtomicFile, FsError> {
        let mut file = AtomicFile::create(&self.path)?;
        file.replaces(self.force);
        Ok(file)
    }
}

/// Whether the path `target`, whose links are followed, is `input`, lies in it, or is what an entry of it leads to: the files of a model in
/// the hub's cache are links.
fn belongs(target: &Path, input: &Path) -> bool {
    let Ok(input) = input.canonicalize() else { return false };
    if target.starts_with(&input) {
        return true;
    }
    let entries = fs::read_dir(&input).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.path().canonicalize().ok()).any(|entry| entry == target)
}
