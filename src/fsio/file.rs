//! A file that appears whole or not at all.

use std::fs;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::place::Place;
use super::sys::{self, Written};
use super::{FsError, sync_folder, unfinished};

/// Where a file is written: a path, where an older file is replaced, or an [`super::OutputFile`], which says whether it is.
pub trait Destination {
    /// Its path, for messages.
    fn path(&self) -> &Path;

    /// Begins to write.
    ///
    /// # Errors
    /// What the system refuses.
    fn begin(&self) -> Result<AtomicFile, FsError>;
}

impl Destination for Path {
    fn path(&self) -> &Path {
        self
    }

    fn begin(&self) -> Result<AtomicFile, FsError> {
        AtomicFile::create(self)
    }
}

impl Destination for PathBuf {
    fn path(&self) -> &Path {
        self
    }

    fn begin(&self) -> Result<AtomicFile, FsError> {
        AtomicFile::create(self)
    }
}

/// Writes a file by `fill`, at once and whole. The parent folder must exist. A link is followed and stays; the mode of a file that is
/// replaced stays.
///
/// # Errors
/// [`FsError`] as any `E`, or what `fill` returned; an older file is then untouched.
pub fn write_atomic<E: From<FsError>>(
    to: &(impl Destination + ?Sized),
    fill: impl FnOnce(&mut AtomicFile) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = to.begin()?;
    fill(&mut file)?;
    file.commit()?;
    Ok(())
}

/// Writes `bytes` as the whole content of `path`, as [`write_atomic`] does.
///
/// # Errors
/// What the system refuses; an older file is then untouched.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    write_atomic(path, |file| file.put(bytes))
}

/// A file in the making: it takes its name at [`AtomicFile::commit`] and vanishes when dropped before.
pub struct AtomicFile {
    /// As it was given, for messages.
    given: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<Written>>,
    replaces: bool,
}

impl AtomicFile {
    /// Opens the temporary file beside `path`, or beside what `path` links to.
    ///
    /// # Errors
    /// [`FsError::NotPlain`] for a folder, a device, a pipe or a socket; what the system refuses.
    pub fn create(path: &Path) -> Result<Self, FsError> {
        let place = Place::of(path)?;
        let older = place.plain(path)?;
        let made = place.temporary(&place.parent, Written::create_new);
        let (temporary, file) = made.map_err(|e| FsError::os("write", path, e))?;
        let kept = older.map_or(Ok(()), |older| file.be_as(&older));
        let made = Self {
            given: path.into(),
            target: place.path,
            parent: place.parent,
            temporary,
            writer: Some(BufWriter::with_capacity(1 << 20, file)),
            replaces: true,
        };
        kept.map_err(|e| FsError::os("keep the mode of", path, e))?;
        Ok(made)
    }

    /// Whether a file that is there at the commit is replaced.
    pub(super) fn replaces(&mut self, replaces: bool) {
        self.replaces = replaces;
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        match &mut self.writer {
            Some(w) => w.write_all(bytes).map_err(|e| FsError::os("write", &self.given, e)),
            None => Ok(()),
        }
    }

    /// Flushes, renames to the final name, flushes the folder.
    ///
    /// # Errors
    /// What the system refuses; nothing is then left.
    pub fn commit(mut self) -> Result<(), FsError> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let flushed = writer.into_inner().map_err(io::IntoInnerError::into_error).and_then(|f| f.sync());
        let fail = |e| FsError::os("write", &self.given, e);
        let named = flushed.map_err(fail).and_then(|()| unfinished::end(&self.temporary, || self.name()));
        match named {
            Ok(()) => sync_folder(&self.parent, &self.given),
            Err(_) => unfinished::discard(&self.temporary),
        }
        named
    }

    /// Gives the temporary file its name.
    fn name(&self) -> Result<(), FsError> {
        let fail = |e| FsError::os("write", &self.given, e);
        if self.replaces {
            return sys::rename(&self.temporary, &self.target).map_err(fail);
        }
        match sys::hard_link(&self.temporary, &self.target) {
            Ok(()) => {
                // It has its name; a second one would be of no harm.
                let _ = fs::remove_file(&self.temporary);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(FsError::Exists { path: self.given.clone() })
            }
            // Some file systems know no second names.
            Err(_) if self.target.symlink_metadata().is_err() => {
                sys::rename(&self.temporary, &self.target).map_err(fail)
            }
            Err(_) => Err(FsError::Exists { path: self.given.clone() }),
        }
    }
}

/// For writers that go back to fill in lengths.
impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.as_mut().map_or(Ok(0), |w| w.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.as_mut().map_or(Ok(0), |w| w.seek(to))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // Still holding the writer means that commit never ran.
        if let Some(writer) = self.writer.take() {
            // Not `drop`: that would flush the buffer into a file that is about to be removed.
            drop(writer.into_parts());
            unfinished::discard(&self.temporary);
        }
    }
}
