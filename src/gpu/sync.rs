//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even after another thread panicked: the data behind our locks is valid at every point.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
