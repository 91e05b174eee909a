//! Writing files and folders so that a reader sees either the old state or the whole new one.
//!
//! Everything is written under a temporary name in the destination's own folder (so that the rename stays within one file
//! system), flushed to the disk, then renamed; last the folder itself is flushed, without which a power cut can lose
//! the new name. A failure removes the temporary and names the path and what the system said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A write that did not happen. Nothing is left at the destination by it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}{}", hint(.source))]
    Os {
        /// What was tried: a verb phrase.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The destination has no file name or ends in `..`.
    #[error("{path} is not a name that can be written to; give a path that ends in a file or folder name")]
    NoName {
        /// The path given.
        path: PathBuf,
    },
    /// The destination folder exists and is not empty.
    #[error("{path} exists and is not empty; give a new folder, or remove it first")]
    NotEmpty {
        /// The path given.
        path: PathBuf,
    },
}

impl FsError {
    /// Wraps an error of the system with the thing tried.
    pub fn os(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Os { action, path: path.into(), source }
    }
}

/// What to do about the common refusals.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; choose a place you may write to",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or choose another disk"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; this file system is read-only, choose another place",
        io::ErrorKind::NotFound => "; check the spelling of the path",
        io::ErrorKind::NotADirectory => "; a part of the path is a file",
        _ => "",
    }
}

/// Splits a destination into its parent folder (`.` when it has none) and its last name.
fn split(path: &Path) -> Result<(PathBuf, String), FsError> {
    let name = path.file_name().ok_or_else(|| FsError::NoName { path: path.into() })?;
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_string_lossy().into_owned()))
}

/// A name beside `path` that no other writer of this or another process uses.
fn temporary(parent: &Path, name: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // Cut so that the whole name stays under the usual limit of 255 bytes.
    let short: String = name.chars().take(40).collect();
    parent.join(format!(".{short}.tmp-{}-{count}", std::process::id()))
}

/// Makes a folder's entries durable. Windows has no such call, and needs none for renames.
fn sync_folder(path: &Path) -> Result<(), FsError> {
    if cfg!(unix) {
        File::open(path).and_then(|f| f.sync_all()).map_err(|e| FsError::os("flush folder", path, e))?;
    }
    Ok(())
}

/// Makes `path` a folder, with its parents. No error when it is one already.
pub fn create_folder(path: &Path) -> Result<(), FsError> {
    fs::create_dir_all(path).map_err(|e| FsError::os("create folder", path, e))
}

/// Writes a file by `fill`, replacing an older one at once and whole. The parent folder must exist.
///
/// # Errors
/// [`FsError`] as any `E`, or what `fill` returned; the older file is then untouched.
pub fn write_atomic<E: From<FsError>>(
    path: &Path,
    fill: impl FnOnce(&mut AtomicFile) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = AtomicFile::create(path)?;
    fill(&mut file)?;
    file.commit()?;
    Ok(())
}

/// Writes `bytes` as the whole content of `path`, as [`write_atomic`] does.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    write_atomic(path, |file| file.put(bytes))
}

/// A file in the making: it takes its name at [`AtomicFile::commit`] and vanishes when dropped before.
pub struct AtomicFile {
    target: PathBuf,
    parent: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Opens the temporary file beside `path`.
    pub fn create(path: &Path) -> Result<Self, FsError> {
        let (parent, name) = split(path)?;
        if path.is_dir() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(FsError::os("write", path, source));
        }
        let temporary = temporary(&parent, &name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| FsError::os("write", path, e))?;
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { target: path.into(), parent, temporary, writer })
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        match &mut self.writer {
            Some(w) => w.write_all(bytes).map_err(|e| FsError::os("write", &self.target, e)),
            None => Ok(()),
        }
    }

    /// Flushes, renames to the final name, flushes the folder.
    pub fn commit(mut self) -> Result<(), FsError> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let result = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.target));
        match result {
            Ok(()) => sync_folder(&self.parent),
            Err(e) => {
                let _ = fs::remove_file(&self.temporary);
                Err(FsError::os("write", &self.target, e))
            }
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
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A folder in the making: it takes its name at [`PendingFolder::commit`] and is removed when dropped before.
pub struct PendingFolder {
    target: PathBuf,
    parent: PathBuf,
    temporary: PathBuf,
    done: bool,
}

impl PendingFolder {
    /// Makes the temporary folder beside `target`, whose parents are created when missing.
    ///
    /// # Errors
    /// When `target` is a file or a non-empty folder, or when the system refuses.
    pub fn create(target: &Path) -> Result<Self, FsError> {
        let (parent, name) = split(target)?;
        match fs::read_dir(target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(FsError::NotEmpty { path: target.into() });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(FsError::os("write folder", target, e)),
        }
        create_folder(&parent)?;
        let temporary = temporary(&parent, &name);
        fs::create_dir(&temporary).map_err(|e| FsError::os("write folder", target, e))?;
        Ok(Self { target: target.into(), parent, temporary, done: false })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Flushes the folder, renames it to its final name, flushes the parent.
    pub fn commit(mut self) -> Result<(), FsError> {
        sync_folder(&self.temporary)?;
        // An empty folder of that name (checked at the start) makes way; one that was filled meanwhile does not.
        match fs::remove_dir(&self.target) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                return Err(FsError::NotEmpty { path: self.target.clone() });
            }
            Err(e) => return Err(FsError::os("replace folder", &self.target, e)),
        }
        fs::rename(&self.temporary, &self.target)
            .map_err(|e| FsError::os("write folder", &self.target, e))?;
        self.done = true;
        sync_folder(&self.parent)
    }
}

impl Drop for PendingFolder {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("maskwright-fsio-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = scratch("file");
        let path = dir.join("a.json");
        write_bytes(&path, b"old").unwrap();
        write_bytes(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let failed: Result<(), FsError> = write_atomic(&path, |f| {
            f.put(b"half")?;
            Err(FsError::NoName { path: "x".into() })
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&dir), ["a.json"]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_appears_at_the_commit() {
        let dir = scratch("folder");
        let target = dir.join("deep/out");
        let pending = PendingFolder::create(&target).unwrap();
        fs::write(pending.path().join("x"), "1").unwrap();
        assert!(!target.exists());
        pending.commit().unwrap();
        assert_eq!(names(&target), ["x"]);
        assert!(matches!(PendingFolder::create(&target), Err(FsError::NotEmpty { .. })));
        drop(PendingFolder::create(&dir.join("deep/other")).unwrap());
        assert_eq!(names(&dir.join("deep")), ["out"]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn refusals_name_the_path_and_the_reason() {
        let dir = scratch("refuse");
        let file = dir.join("file");
        fs::write(&file, "x").unwrap();
        let text = write_bytes(&file.join("below"), b"x").unwrap_err().to_string();
        assert!(text.contains("file/below") && text.contains("a part of the path is a file"), "{text}");
        assert!(PendingFolder::create(&file).is_err());
        assert!(PendingFolder::create(&file.join("below")).is_err());
        assert!(write_bytes(Path::new("/"), b"x").is_err());
        assert!(write_bytes(&dir, b"x").is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
