//! The temporary files and folders of this process, so that whoever ends it can remove them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn lock() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a temporary file or folder by `make` and notes it.
pub(super) fn begin<T>(path: &Path, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut all = lock();
    let made = make()?;
    all.insert(path.into());
    Ok(made)
}

/// Lets `name` give a temporary its final name; it is noted no more where that succeeds.
pub(super) fn end<E>(path: &Path, name: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    let mut all = lock();
    name()?;
    all.remove(path);
    Ok(())
}

/// Removes a temporary that will have no final name.
pub(super) fn discard(path: &Path) {
    let mut all = lock();
    remove(path);
    all.remove(path);
}

fn remove(path: &Path) {
    if path.is_dir() {
        // A writer may put a file in between two looks.
        let _ = (0..10).any(|_| fs::remove_dir_all(path).is_ok());
    } else {
        let _ = fs::remove_file(path);
    }
}

/// Removes all temporary files and folders of this process, and lets no other thread begin or finish one: for a handler of signals that
/// ends the process next.
pub fn discard_unfinished() {
    let all = lock();
    all.iter().for_each(|path| remove(path));
    // Held until the process ends: a file that took its name now would be half of what was to be written.
    std::mem::forget(all);
}
