//! Writing files and folders so that a reader sees either the old state or the whole new one, and telling what a file is that is not
//! what its name says.
//!
//! Everything is written under a temporary name in the destination's own folder (so that the rename stays within one file
//! system), flushed to the disk, then renamed; last the folder itself is flushed, without which a power cut can lose
//! the new name. A failure removes the temporary and names the path and what the system said; so does
//! [`discard_unfinished`], for a process that is told to end.

mod error;
mod file;
mod folder;
mod output;
mod place;
mod scratch;
mod stand_in;
mod sys;
mod unfinished;

pub use error::FsError;
pub use file::{AtomicFile, Destination, write_atomic, write_bytes};
pub use folder::{PendingFolder, check_folder, check_room, check_space, create_folder};
pub use output::OutputFile;
pub use scratch::{Scratch, ScratchWriter};
pub use stand_in::{StandIn, open_plain};
pub use sys::{Appended, create_dir_all, link_to, remove_dir, remove_dir_all, remove_file, rename};
#[doc(hidden)]
pub use sys::{fail_at, fault_is_due};
pub use unfinished::discard_unfinished;

use std::fs::File;
use std::io;
use std::path::Path;

use serde::Serializer;

/// Opens the file that a process holds locked, or makes it; what is in it stays.
///
/// # Errors
/// What the system refuses.
pub fn open_lock(path: &Path) -> io::Result<File> {
    sys::open_or_create(path)
}

/// Writes into a lock who holds it.
///
/// # Errors
/// What the system refuses.
pub fn sign_lock(file: &mut File, owner: &str) -> io::Result<()> {
    sys::rewrite(file, owner.as_bytes())
}

/// A path as text, for JSON and other files of text: what is no Unicode in it is replaced.
pub fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// [`shown`] as `serialize_with` of serde, whose own text of a path is an error for a name that is no Unicode.
///
/// # Errors
/// Those of the serializer.
pub fn as_text<P: AsRef<Path>, S: Serializer>(path: &P, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown(path.as_ref()))
}

/// Makes a folder's entries durable, of which `given` is one that has its name already: what cannot be flushed is said, and is no error.
/// Windows has no such call, and needs none for renames.
fn sync_folder(folder: &Path, given: &Path) {
    if !cfg!(unix) {
        return;
    }
    match sys::sync_dir(folder) {
        Ok(()) => {}
        // A folder that may be written to but not read, and file systems that do not know the call.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) => {}
        Err(e) => log::warn!(
            "{} is written, but the system does not confirm that it would outlast a power cut: flushing its folder {}: {e}",
            given.display(),
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

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

    /// A process that died left temporaries under the names that this one, of the same number, would take: in a container all have number 1.
    #[test]
    fn names_that_dead_processes_left_are_passed_over() {
        let dir = scratch("left");
        let number = |name: &str| name.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).unwrap();
        let begun = AtomicFile::create(&dir.join("a")).unwrap();
        let first = number(&names(&dir)[0]);
        drop(begun);
        for count in first..first + 200 {
            for name in ["a", "b"] {
                fs::write(dir.join(format!(".{name}.tmp-{}-{count}", std::process::id())), "half").unwrap();
            }
        }
        write_bytes(&dir.join("a"), b"whole").unwrap();
        PendingFolder::create(&dir.join("b")).unwrap().commit().unwrap();
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"whole");
        assert!(dir.join("b").is_dir());
        assert_eq!(names(&dir).len(), 402);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_scratch_file_leaves_nothing() {
        use std::io::{Read, Seek};
        let dir = scratch("scratch");
        let mut writer = ScratchWriter::create(&dir).unwrap();
        writer.put(b"for a while").unwrap();
        let written = writer.finish().unwrap();
        let (mut file, mut text) = (written.file(), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "for a while");
        drop(written);
        assert!(names(&dir).is_empty());
        assert!(ScratchWriter::create(&dir.join("not there")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn room_is_looked_for_without_a_trace() {
        let dir = scratch("room");
        check_room(&dir.join("not/there/yet")).unwrap();
        check_folder(&dir.join("new")).unwrap();
        check_folder(&dir).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        assert!(matches!(check_folder(&dir), Err(FsError::NotEmpty { entry, .. }) if entry == "file"));
        assert!(check_folder(&dir.join("file")).is_err());
        assert!(check_room(&dir.join("file/below")).is_err());
        check_space(&dir.join("not/there/yet"), 1).unwrap();
        let error = check_space(&dir.join("not/there/yet"), u64::MAX).unwrap_err();
        assert!(matches!(error, FsError::NoRoom { needed: u64::MAX, .. }), "{error}");
        assert_eq!(names(&dir), ["file"]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_lies_in_the_place_of_a_file_is_told() {
        for (bytes, found) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], Some(StandIn::LfsPointer)),
            (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v2\n", Some(StandIn::LfsPointer)),
            (b"  <!doctype HTML><html>", Some(StandIn::Html)),
            (b"<HTML lang=en>", Some(StandIn::Html)),
            (b"{\"error\": \"no\"}", Some(StandIn::Answer)),
            (b"{\"errors\": [], \"message\": \"no\"}", Some(StandIn::Answer)),
            (b"Repository not found", Some(StandIn::Answer)),
            (b"{\"model_type\": \"llama\"}", None),
            (b"{\"error\": 1, \"text\": \"a text\"}", None),
            (b"<html5lib>", None),
            (b"version 2", None),
            (b"\x40\0\0\0\0\0\0\0{}", None),
            (b"", None),
        ] {
            assert_eq!(StandIn::of(bytes), found, "{}", String::from_utf8_lossy(bytes));
        }
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
