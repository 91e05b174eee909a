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

    /// A new file that is also read.
    pub(super) fn create_scratch(path: &Path) -> io::Result<Self> {
        attempt(|| OpenOptions::new().read(true).write(true).create_new(true).open(path)).map(Self)
    }

    /// The file itself, when it is written.
    pub(super) fn into_file(self) -> File {
        self.0
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

/// A file to whose end lines are put while it is written, each at once.
#[derive(Debug)]
pub struct Appended(File);

impl Appended {
    /// Opens or makes it.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open(path: &Path) -> io::Result<Self> {
        attempt(|| OpenOptions::new().create(true).append(true).open(path)).map(Self)
    }

    /// Puts `bytes` behind what is there.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        attempt(|| self.0.write_all(bytes))
    }

    /// Makes what is there durable.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn sync(&self) -> io::Result<()> {
        attempt(|| self.0.sync_all())
    }

    /// Leaves the first `bytes` of it.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn cut(&mut self, bytes: u64) -> io::Result<()> {
        attempt(|| self.0.set_len(bytes))
    }

    /// Its bytes.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Seek for Written {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// A file that is opened as it is, or made, and locked by whoever holds it.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
    attempt(|| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path))
}

/// Makes `bytes` the whole content of an open file, in its place.
pub(super) fn rewrite(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    attempt(|| file.set_len(0))?;
    attempt(|| file.write_all(bytes))
}

/// Renames a file or folder.
///
/// # Errors
/// What the system refuses.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    attempt(|| fs::rename(from, to))
}

pub(super) fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    attempt(|| fs::hard_link(from, to))
}

/// Makes the link `path`, which leads to the file `target`.
///
/// # Errors
/// What the system refuses: Windows often, and where there are no links always.
pub fn link_to(target: &Path, path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return attempt(|| std::os::unix::fs::symlink(target, path));
    #[cfg(windows)]
    return attempt(|| std::os::windows::fs::symlink_file(target, path));
    #[cfg(not(any(unix, windows)))]
    return Err(io::Error::new(io::ErrorKind::Unsupported, format!("no link to {}", target.display())));
}

pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    attempt(|| fs::create_dir(path))
}

/// Makes a folder and its parents.
///
/// # Errors
/// What the system refuses.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    attempt(|| fs::create_dir_all(path))
}

/// Removes a folder that is empty.
///
/// # Errors
/// What the system refuses.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    attempt(|| fs::remove_dir(path))
}

/// Removes a folder with all that is in it.
///
/// # Errors
/// What the system refuses.
pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    attempt(|| fs::remove_dir_all(path))
}

/// Removes a file.
///
/// # Errors
/// What the system refuses.
pub fn remove_file(path: &Path) -> io::Result<()> {
    attempt(|| fs::remove_file(path))
}

/// Makes a folder's entries durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    attempt(|| File::open(path)?.sync_all())
}
