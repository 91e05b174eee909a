//! A folder that appears whole or not at all.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::place::{Place, probe};
use super::{FsError, sync_folder, sys, unfinished};

/// What the root of some file systems holds from the beginning.
const OF_THE_SYSTEM: &str = "lost+found";
/// What readers look for first; it takes its name last.
const LAST: &str = "config.json";

/// Makes `path`, or what it links to, a folder, with its parents. No error when it is one already.
///
/// # Errors
/// What the system refuses.
pub fn create_folder(path: &Path) -> Result<(), FsError> {
    if path.is_dir() {
        return Ok(());
    }
    let place = Place::of(path)?;
    sys::create_dir_all(&place.path).map_err(|e| FsError::os("create folder", path, e))
}

/// Something in a folder; none in an empty one, or where there is nothing.
fn first_entry(folder: &Path, given: &Path) -> Result<Option<Option<String>>, FsError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) if folder.symlink_metadata().is_ok_and(|m| !m.is_dir()) => {
            return Err(FsError::NotAFolder { path: given.into() });
        }
        Err(e) => return Err(FsError::os("write folder", given, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| FsError::os("write folder", given, e))?;
        let of_the_system = entry.file_name() == OF_THE_SYSTEM && entry.path().is_dir();
        if !of_the_system {
            return Ok(Some(Some(entry.file_name().to_string_lossy().into_owned())));
        }
    }
    Ok(Some(None))
}

/// Whether a new folder can be written at `path`: nothing is there or an empty folder, and there is room, as [`check_room`] finds. To be
/// asked before long work; nothing is left by it.
///
/// # Errors
/// As [`PendingFolder::create`].
pub fn check_folder(path: &Path) -> Result<(), FsError> {
    match first_entry(&Place::of(path)?.path, path)? {
        Some(Some(entry)) => Err(FsError::NotEmpty { path: path.into(), entry }),
        _ => check_room(path).map_err(|e| FsError::os("write folder", path, e)),
    }
}

/// Whether a block can be written into the folder `path`, or where it would be made with its parents. Nothing is left by it.
///
/// # Errors
/// What the system refuses.
pub fn check_room(path: &Path) -> io::Result<()> {
    let place = Place::of(path).map_err(io::Error::other)?;
    probe(&Place { parent: nearest(&place)?, ..place })
}

/// Whether `needed` bytes can be written at `path`, as far as its file system says what is free: one that does not is taken to have room.
///
/// # Errors
/// [`FsError::NoRoom`], and links that lead in a circle.
pub fn check_space(path: &Path, needed: u64) -> Result<(), FsError> {
    let found = nearest(&Place::of(path)?).and_then(fs4::statvfs);
    match found {
        // Some file systems of networks tell a size of nothing at all.
        Ok(disk) if disk.total_space() > 0 && disk.available_space() < needed => {
            Err(FsError::NoRoom { path: path.into(), needed, free: disk.available_space() })
        }
        _ => Ok(()),
    }
}

/// The place itself, or the nearest folder above it that is there.
fn nearest(place: &Place) -> io::Result<PathBuf> {
    let whole = std::path::absolute(&place.path)?;
    let there = whole.ancestors().find(|p| p.symlink_metadata().is_ok());
    Ok(there.map_or_else(|| place.parent.clone(), Path::to_path_buf))
}

/// A folder in the making: it takes its name at [`PendingFolder::commit`] and is removed when dropped before.
///
/// An empty folder that is there already, be it the root of a mounted disk or behind a link, stays, and its content takes its names at the
/// commit, one entry after the other, `config.json` last.
pub struct PendingFolder {
    /// As it was given, for messages.
    given: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    temporary: PathBuf,
    /// Whether the target is there already.
    within: bool,
    done: bool,
}

impl PendingFolder {
    /// Makes the temporary folder, beside `target`, whose parents are created when missing, or in it.
    ///
    /// # Errors
    /// When `target` is a file or a non-empty folder, or when the system refuses.
    pub fn create(target: &Path) -> Result<Self, FsError> {
        let place = Place::of(target)?;
        let within = match first_entry(&place.path, target)? {
            Some(Some(entry)) => return Err(FsError::NotEmpty { path: target.into(), entry }),
            found => found.is_some(),
        };
        if !within {
            create_folder(&place.parent)?;
        }
        let folder = if within { &place.path } else { &place.parent };
        let made = place.temporary(folder, sys::create_dir);
        let (temporary, ()) = made.map_err(|e| FsError::os("write folder", target, e))?;
        let given = target.into();
        Ok(Self { given, target: place.path, parent: place.parent, temporary, within, done: false })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Flushes the folder, renames it to its final name, or its entries to theirs, and flushes what holds it.
    ///
    /// # Errors
    /// What the system refuses, and [`FsError::NotEmpty`] where something came to be there meanwhile; nothing is then left.
    pub fn commit(mut self) -> Result<(), FsError> {
        sync_folder(&self.temporary, &self.given);
        unfinished::end(&self.temporary, || if self.within { self.move_entries() } else { self.rename() })?;
        self.done = true;
        sync_folder(if self.within { &self.target } else { &self.parent }, &self.given);
        Ok(())
    }

    fn rename(&self) -> Result<(), FsError> {
        // Replaces an empty folder that came to be there, on most systems; one with something in it, on none.
        sys::rename(&self.temporary, &self.target).map_err(|e| match first_entry(&self.target, &self.given) {
            Ok(Some(Some(entry))) => FsError::NotEmpty { path: self.given.clone(), entry },
            _ => FsError::os("write folder", &self.given, e),
        })
    }

    /// Gives the entries their names; takes them back where one cannot have its.
    fn move_entries(&self) -> Result<(), FsError> {
        let fail = |e| FsError::os("write folder", &self.given, e);
        let entries = fs::read_dir(&self.temporary).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut names: Vec<_> = entries.map_err(fail)?.into_iter().map(|entry| entry.file_name()).collect();
        names.sort_by_key(|name| (name == OsStr::new(LAST), name.clone()));
        for (i, name) in names.iter().enumerate() {
            let to = self.target.join(name);
            let moved = match to.symlink_metadata() {
                Ok(_) => {
                    let entry = name.to_string_lossy().into_owned();
                    Err(FsError::NotEmpty { path: self.given.clone(), entry })
                }
                Err(_) => sys::rename(&self.temporary.join(name), &to).map_err(fail),
            };
            if moved.is_err() {
                for name in names.iter().take(i) {
                    let _ = fs::rename(self.target.join(name), self.temporary.join(name));
                }
                return moved;
            }
        }
        // Empty now; hidden, and of no harm where it stays.
        if let Err(e) = sys::remove_dir(&self.temporary) {
            log::warn!(
                "{} is written, but {} is left in it: {e}",
                self.given.display(),
                self.temporary.display()
            );
        }
        Ok(())
    }
}

impl Drop for PendingFolder {
    fn drop(&mut self) {
        if !self.done {
            unfinished::discard(&self.temporary);
        }
    }
}
