//! Downloads what a run needs of a model into the cache, and goes on where an earlier download broke off.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{CONFIG, Cache, INDEX, SINGLE, Snapshot, TOKENIZER, shards};
use super::name::is_commit;
use super::remote::{Listing, Meta, NoPart, Remote, TRIES, pause};
use super::{HubError, Need, RepoName, Watch};
use crate::fsio::{self, Appended, FsError, create_folder, write_bytes};
use crate::model::{MESSAGE, clip, foreign_weights};

/// What is taken beside the weights, where it is there.
const SMALL: [&str; 8] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// One download.
pub(super) struct Fetch<'a> {
    pub(super) remote: &'a Remote,
    pub(super) cache: &'a Cache,
    pub(super) name: &'a RepoName,
    pub(super) revision: &'a str,
    pub(super) need: Need,
}

impl Fetch<'_> {
    /// Downloads what is not there yet. The revision is noted in the cache at the end, so that half a model is never taken for a whole one.
    pub(super) fn run(&self, watch: &mut dyn Watch) -> Result<Snapshot, HubError> {
        let listing = self.remote.listing(self.name, self.revision)?;
        let has = |file: &str| listing.files.iter().any(|name| name == file);
        if !has(CONFIG) {
            let (name, revision) = (self.name.to_string(), self.revision.into());
            return Err(HubError::NoFile { name, revision, file: CONFIG.into() });
        }
        let weights = self.need == Need::Whole;
        if weights && !has(SINGLE) && !has(INDEX) {
            return Err(self.no_weights(&listing));
        }
        let snapshot = self.cache.snapshot(&listing.commit);
        create_folder(&snapshot.folder)?;
        watch.note(format!(
            "downloading {} ({}, commit {}) into {}",
            self.name,
            self.revision,
            listing.commit.get(..8).unwrap_or_default(),
            self.cache.root.display()
        ));
        for file in SMALL.iter().copied().filter(|file| has(file)) {
            self.file(&snapshot, file, watch)?;
        }
        if !has(TOKENIZER) {
            let missing = snapshot.no_exist(TOKENIZER);
            create_folder(missing.parent().unwrap_or(Path::new("")))?;
            write_bytes(&missing, b"")?;
            // What is there instead tells how to make one.
            if has("tokenizer.model") {
                self.file(&snapshot, "tokenizer.model", watch)?;
            }
        }
        if weights && has(SINGLE) {
            self.file(&snapshot, SINGLE, watch)?;
        } else if weights {
            self.file(&snapshot, INDEX, watch)?;
            for shard in shards(&snapshot.folder.join(INDEX))? {
                self.file(&snapshot, &shard, watch)?;
            }
        }
        if !is_commit(self.revision) {
            let reference = self.cache.root.join("refs").join(self.revision);
            create_folder(reference.parent().unwrap_or(Path::new("")))?;
            write_bytes(&reference, listing.commit.as_bytes())?;
        }
        Ok(snapshot)
    }

    fn no_weights(&self, listing: &Listing) -> HubError {
        let name = self.name.to_string();
        let (found, remedy) = foreign_weights(&listing.files, &name);
        HubError::NoSafetensors { name, found: found.map_or(String::new(), |f| format!(", but {f}")), remedy }
    }

    /// Makes sure that a file is in the snapshot.
    fn file(&self, snapshot: &Snapshot, file: &str, watch: &mut dyn Watch) -> Result<(), HubError> {
        let pointer = snapshot.folder.join(file);
        if pointer.is_file() {
            return Ok(());
        }
        let meta = self.remote.meta(self.name, &snapshot.commit, file)?;
        let blobs = self.cache.root.join("blobs");
        create_folder(&blobs)?;
        let blob = blobs.join(&meta.etag);
        let _lock = self.lock(&meta, file, watch)?;
        if !blob.is_file() {
            watch.file(file, meta.bytes);
            self.blob(file, &meta, &blob, watch)?;
        }
        link(&blob, &pointer)
    }

    /// Lets one process at a time download a file; Python's hub takes the same lock.
    fn lock(&self, meta: &Meta, file: &str, watch: &mut dyn Watch) -> Result<File, HubError> {
        create_folder(&self.cache.locks)?;
        let path = self.cache.locks.join(format!("{}.lock", meta.etag));
        let fail = |e| HubError::os("lock", &path, e);
        let lock = fsio::open_lock(&path).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                watch.note(format!("waiting for another download of {file}"));
                lock.lock().map_err(fail)?;
            }
            // Some network file systems know no locks.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(lock)
    }

    /// Downloads a file into its place, beginning with what an earlier download left.
    fn blob(&self, file: &str, meta: &Meta, blob: &Path, watch: &mut dyn Watch) -> Result<(), HubError> {
        let path = PathBuf::from(format!("{}.incomplete", blob.display()));
        let fail = |e| HubError::os("write", &path, e);
        let mut out = Appended::open(&path).map_err(fail)?;
        let mut done = out.bytes().map_err(fail)?;
        if done > meta.bytes {
            out.cut(0).map_err(fail)?;
            done = 0;
        }
        watch.at(done);
        let mut failures = 0;
        while done < meta.bytes {
            let before = done;
            let problem = match self.piece(file, meta, &path, &mut out, &mut done, watch) {
                Ok(()) => "the connection was closed".to_string(),
                Err(NoPart::Passing(problem)) => problem,
                Err(NoPart::Lasting(error)) => return Err(error),
            };
            failures = if done > before { 0 } else { failures + 1 };
            if failures >= TRIES {
                let (file, problem) = (file.into(), clip(&problem, MESSAGE));
                return Err(HubError::BrokeOff { file, done, bytes: meta.bytes, problem });
            }
            if done < meta.bytes {
                log::info!("{file}: {problem} at {done} of {} bytes", meta.bytes);
                pause(failures.max(1));
            }
        }
        out.sync().map_err(fail)?;
        drop(out);
        if meta.etag.len() == 64 {
            let found = sha256(&path).map_err(fail)?;
            if found != meta.etag {
                fsio::remove_file(&path).map_err(fail)?;
                let problem = format!("its SHA-256 is {found}, the hub says {}", meta.etag);
                return Err(HubError::Damaged { file: file.into(), problem });
            }
        }
        fsio::rename(&path, blob).map_err(fail)
    }

    /// Appends what one connection gives, from byte `done` on.
    fn piece(
        &self,
        file: &str,
        meta: &Meta,
        path: &Path,
        out: &mut Appended,
        done: &mut u64,
        watch: &mut dyn Watch,
    ) -> Result<(), NoPart> {
        let fail = |e| NoPart::Lasting(HubError::os("write", path, e));
        let part = self.remote.part(self.name, file, meta, *done)?;
        if part.start != *done {
            // Without parts, or after one that did not fit, it begins anew.
            out.cut(part.start).map_err(fail)?;
            *done = part.start;
        }
        let mut content = part.content.take(meta.bytes - *done);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(NoPart::Passing(e.to_string())),
            };
            out.put(buffer.get(..read).unwrap_or_default()).map_err(fail)?;
            *done += read as u64;
            watch.at(*done);
        }
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Puts a blob into a snapshot: a relative link, or on a system that allows none, a copy.
fn link(blob: &Path, pointer: &Path) -> Result<(), HubError> {
    let fail = |e| HubError::Write(FsError::os("write", pointer, e));
    if pointer.symlink_metadata().is_ok() {
        // A link whose blob was removed.
        fsio::remove_file(pointer).map_err(fail)?;
    }
    let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
    match fsio::link_to(&target, pointer) {
        Err(_) if !cfg!(unix) => std::fs::copy(blob, pointer).map(|_| ()).map_err(fail),
        linked => linked.map_err(fail),
    }
}
