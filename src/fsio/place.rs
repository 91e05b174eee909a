//! Where something is to be written: links followed, and what is there already.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::sys::Written;
use super::{FsError, unfinished};

/// More links in a row than any system follows.
const MAX_LINKS: usize = 40;
/// More temporary names of one process that dead processes may have left.
const MAX_NAMES: usize = 1000;
/// What is written to find a full disk: a block.
const PROBE: [u8; 4096] = [0; 4096];

/// A destination whose links are followed.
pub(super) struct Place {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The folder it is in.
    pub(super) parent: PathBuf,
    /// Its last name.
    pub(super) name: OsString,
}

impl Place {
    /// Follows the links of `path`; what they lead to need not exist.
    pub(super) fn of(path: &Path) -> Result<Self, FsError> {
        let path = followed(path)?;
        let name = path.file_name().ok_or_else(|| FsError::NoName { path: path.clone() })?.to_os_string();
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Ok(Self { path, parent, name })
    }

    /// The plain file that is there.
    pub(super) fn plain(&self, given: &Path) -> Result<Option<Metadata>, FsError> {
        // By the name that was given: what some links of the system lead to has no name.
        let found = fs::metadata(given).or_else(|_| fs::metadata(&self.path));
        match found {
            Ok(found) if found.is_file() => Ok(Some(found)),
            Ok(found) => Err(FsError::NotPlain { path: given.into(), kind: kind(&found) }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(FsError::os("write", given, e)),
        }
    }

    /// Makes a temporary in `folder` by `make`, under a name that neither another writer of this process uses nor a dead process left.
    pub(super) fn temporary<T>(
        &self,
        folder: &Path,
        mut make: impl FnMut(&Path) -> io::Result<T>,
    ) -> io::Result<(PathBuf, T)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // Cut so that the whole name stays under the usual limit of 255 bytes.
        let short: String = self.name.to_string_lossy().chars().take(40).collect();
        let mut refused = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..MAX_NAMES {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".{short}.tmp-{}-{count}", std::process::id()));
            match unfinished::begin(&path, || make(&path)) {
                Ok(made) => return Ok((path, made)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => refused = e,
                Err(e) => return Err(e),
            }
        }
        Err(refused)
    }
}

/// Where a path leads.
fn followed(path: &Path) -> Result<PathBuf, FsError> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        // No link, or nothing at all.
        let Ok(next) = fs::read_link(&at) else { return Ok(at) };
        at = at.parent().map_or_else(|| next.clone(), |parent| parent.join(&next));
    }
    Err(FsError::os("follow the links of", path, io::Error::other("they lead in a circle")))
}

/// What something is that is no plain file.
pub(super) fn kind(found: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if found.is_dir() { "a folder" } else { "no plain file" }
}

/// Writes a block beside `place` and removes it again.
pub(super) fn probe(place: &Place) -> io::Result<()> {
    let (path, mut file) = place.temporary(&place.parent, Written::create_new)?;
    let written = file.write_all(&PROBE);
    drop(file);
    unfinished::discard(&path);
    written
}
