//! The lock of a run folder: a file that the writing process holds, with its number and its host in it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{FolderError, RunPaths};
use crate::fsio;

/// A lock that is held. The system lets it go when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    file: File,
}

impl RunLock {
    /// Locks the folder of a run, which must be there. Where the file system knows no locks, a warning says so.
    ///
    /// # Errors
    /// [`FolderError::Locked`] where another process holds it, [`FolderError::Os`].
    pub fn take(paths: &RunPaths) -> Result<Self, FolderError> {
        let path = paths.lock();
        loop {
            let mut file = fsio::open_lock(&path).map_err(FolderError::os(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let by = fs::read_to_string(&path).unwrap_or_default();
                    let by = if by.trim().is_empty() { "another process" } else { by.trim() };
                    return Err(FolderError::Locked { path: paths.root().into(), by: by.into() });
                }
                Err(TryLockError::Error(e)) => log::warn!(
                    "{} cannot be locked ({e}): take care that no other process writes this run",
                    path.display()
                ),
            }
            // The one who held it may have taken the file away, and another may have made it anew.
            if !is_at(&file, &path).map_err(FolderError::os(&path))? {
                continue;
            }
            let owner = format!(
                "process {} on {}\n",
                std::process::id(),
                gethostname::gethostname().to_string_lossy()
            );
            let told = fsio::sign_lock(&mut file, &owner);
            let held = Self { path, file };
            told.map_err(FolderError::os(&held.path))?;
            return Ok(held);
        }
    }

    /// Takes the file away before the lock is let go.
    pub(super) fn forget_file(&self) {
        let _ = fsio::remove_file(&self.path);
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        self.forget_file();
        let _ = self.file.unlock();
    }
}

/// Whether an open file is the one that a path names.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match same_file::Handle::from_path(path) {
        Ok(there) => Ok(same_file::Handle::from_file(file.try_clone()?)? == there),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
