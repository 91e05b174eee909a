//! The system calls that change files, in one place, so that a test can let each of them fail in turn.

use std::cell::Cell;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

thread_local! {
    /// Calls of this thread until one fails; 0: none will.
    static UNTIL_FAULT: Cell<u64> = const { Cell::new(0) };
}

/// Lets the `number`-th call of this thread from now on (from 1) that changes a file fail, once; 0 lets none fail. For tests.
#[doc(hidden)]
pub fn fail_at(number: u64) {
    UNTIL_FAULT.set(number);
}

/// Whether the fault that [`fail_at`] asked for has not come yet.
#[doc(hidden)]
pub fn fault_is_due() -> bool {
    UNTIL_FAULT.get() > 0
}

fn attempt<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let left = UNTIL_FAULT.get();
    UNTIL_FAULT.set(left.saturating_sub(1));
    if left == 1 {
        return Err(io::Error::other("a fault for a test"));
    }
    call()
}

/// A file that this layer writes.
pub(super) struct Written(File);

impl Written {
    /// A new file, with the mode that the umask gives.
    pub(super) fn create_new(path: &Path) -> io::Result<Self> {
        attempt(|| OpenOptions::new().write(true).create_new(true).open(path)).map(Self)
    }

    /// Gives it the mode of the file that it will replace, and the owner where that may be.
    pub(super) fn be_as(&self, older: &Metadata) -> io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, fchown};
            // Only root may, whose files nobody else could use then.
            let _ = fchown(&self.0, Some(older.uid()), Some(older.gid()));
        }
        attempt(|| self.0.set_permissions(older.permissions()))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        attempt(|| self.0.sync_all())
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        attempt(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for Written {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    attempt(|| fs::rename(from, to))
}

pub(super) fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    attempt(|| fs::hard_link(from, to))
}

pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    attempt(|| fs::create_dir(path))
}

pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    attempt(|| fs::create_dir_all(path))
}

pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    attempt(|| fs::remove_dir(path))
}

/// Makes a folder's entries durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    attempt(|| File::open(path)?.sync_all())
}
