//! Files that are needed for as long as a process works, and never get a name that stays.

use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};
use std::path::{Path, PathBuf};

use super::FsError;
use super::place::Place;
use super::sys::Written;
use super::unfinished;

/// A scratch file that is being written.
pub struct ScratchWriter {
    /// The folder, for messages.
    folder: PathBuf,
    writer: BufWriter<Written>,
    name: Name,
}

/// A scratch file, written. It vanishes with this, and on Unix with the process, however that ends.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    _name: Name,
}

impl ScratchWriter {
    /// Makes a scratch file: on Unix in `near`, where it has no name from then on; elsewhere, where an open file keeps its name, in the
    /// system's folder for temporary files.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn create(near: &Path) -> Result<Self, FsError> {
        let folder = if cfg!(unix) { near.to_path_buf() } else { std::env::temp_dir() };
        let place = Place::of(&folder.join("scratch"))?;
        let made = place.temporary(&place.parent, Written::create_scratch);
        let (path, file) = made.map_err(|e| FsError::os("write a scratch file in", &folder, e))?;
        let name = if cfg!(unix) {
            unfinished::discard(&path);
            Name(None)
        } else {
            Name(Some(path))
        };
        Ok(Self { folder, writer: BufWriter::with_capacity(1 << 20, file), name })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.writer.write_all(bytes).map_err(|e| FsError::os("write a scratch file in", &self.folder, e))
    }

    /// Ends writing. Nothing is flushed to the disk: nobody reads it after a power cut.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn finish(self) -> Result<Scratch, FsError> {
        let Self { folder, writer, name } = self;
        let file = writer
            .into_inner()
            .map_err(|e| FsError::os("write a scratch file in", &folder, IntoInnerError::into_error(e)))?;
        Ok(Scratch { file: file.into_file(), _name: name })
    }
}

impl Scratch {
    /// The open file, for reading.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// The name of a scratch file, where it has one: removed when it is dropped.
#[derive(Debug)]
struct Name(Option<PathBuf>);

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            unfinished::discard(path);
        }
    }
}
