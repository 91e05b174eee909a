//! The layout of the cache: `models--ORG--NAME/` with `refs/REVISION` (a commit), `snapshots/COMMIT/FILE` (links) and `blobs/ETAG`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::name::is_commit;
use super::{HubError, MAIN, Need, RepoName};
use crate::model::{is_plain_name, read_json_object, read_limited};

/// A commit and a line end, and room for what is wrong.
const LIMIT_REF: u64 = 1000;
/// More than any real index.
const LIMIT_INDEX: u64 = 256 << 20;

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A model's folder in the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Where its files are.
    pub folder: PathBuf,
    /// Which commit they are of.
    pub commit: String,
    /// The cache folder of the model.
    root: PathBuf,
}

impl Snapshot {
    fn of(root: &Path, commit: &str) -> Self {
        Self { folder: root.join("snapshots").join(commit), commit: commit.into(), root: root.into() }
    }

    fn has(&self, file: &str) -> bool {
        self.folder.join(file).is_file()
    }

    /// Whether all that is needed is there, as far as can be told without asking.
    pub(super) fn holds(&self, need: Need) -> bool {
        let tokenizer = self.has(TOKENIZER) || self.no_exist(TOKENIZER).is_file();
        let weights = || {
            self.has(SINGLE)
                || shards(&self.folder.join(INDEX)).is_ok_and(|all| all.iter().all(|s| self.has(s)))
        };
        self.has(CONFIG) && (need == Need::Shape || (tokenizer && weights()))
    }

    /// The file that says that the commit has no such file.
    pub(super) fn no_exist(&self, file: &str) -> PathBuf {
        self.root.join(".no_exist").join(&self.commit).join(file)
    }
}

/// The files that an index names, sorted, each once.
///
/// # Errors
/// An index that cannot be read or names what is no plain file.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    let map = read_json_object(index, LIMIT_INDEX, "download the model again")?;
    let named = map.get("weight_map").and_then(Value::as_object);
    let mut all: Vec<String> =
        named.into_iter().flat_map(|m| m.values()).filter_map(|v| v.as_str().map(str::to_string)).collect();
    all.sort();
    all.dedup();
    match all.iter().find(|name| !is_plain_name(name)) {
        None if !all.is_empty() => Ok(all),
        found => {
            let problem = match found {
                Some(name) => format!(
                    "it names {:?}, which is no plain .safetensors file",
                    crate::model::clip(name, 80)
                ),
                None => "it names no file".into(),
            };
            Err(crate::model::ModelError::Index { path: index.into(), problem }.into())
        }
    }
}

/// The cache of one model.
pub(super) struct Cache {
    /// `models--ORG--NAME`.
    pub(super) root: PathBuf,
    /// Where locks lie, as Python places them.
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "for downloads"))]
    pub(super) locks: PathBuf,
}

impl Cache {
    pub(super) fn new(cache: PathBuf, name: &RepoName) -> Self {
        let folder = name.folder();
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(&folder) }
    }

    /// The snapshot of a revision, if there is one.
    pub(super) fn find(&self, revision: &str) -> Result<Option<Snapshot>, HubError> {
        find(&self.root, revision)
    }

    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "for downloads"))]
    pub(super) fn snapshot(&self, commit: &str) -> Snapshot {
        Snapshot::of(&self.root, commit)
    }
}

fn find(root: &Path, revision: &str) -> Result<Option<Snapshot>, HubError> {
    let known = root.join("refs").join(revision);
    let commit = if known.is_file() {
        let bytes = read_limited(&known, LIMIT_REF, "check that it may be read")?;
        let text = String::from_utf8_lossy(&bytes).trim().to_string();
        if !is_commit(&text) {
            return Err(HubError::Ref { path: known });
        }
        text
    } else if let Some(commit) = by_prefix(root, revision) {
        commit
    } else {
        return Ok(None);
    };
    let found = Snapshot::of(root, &commit);
    Ok(found.folder.is_dir().then_some(found))
}

/// The one snapshot whose commit begins as `revision`, which must be eight hexadecimal digits or more.
fn by_prefix(root: &Path, revision: &str) -> Option<String> {
    if revision.len() < 8 || !revision.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut all = commits(root).into_iter().filter(|commit| commit.starts_with(revision));
    all.next().filter(|_| all.next().is_none())
}

/// The commits of which there are snapshots, sorted.
fn commits(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("snapshots")).into_iter().flatten().flatten();
    let mut all: Vec<String> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| is_commit(name))
        .collect();
    all.sort();
    all
}

/// Whether a path is the folder that the cache has for a model.
pub fn is_cache_folder(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let named = name.starts_with("models--") || path.join("refs").is_dir();
    named && path.join("snapshots").is_dir() && !path.join(CONFIG).exists()
}

/// The snapshot in such a folder: of the revision, by default of `main`, or the only one there is.
///
/// # Errors
/// [`HubError::NoSnapshot`], and a reference that cannot be read.
pub fn snapshot_of_folder(folder: &Path, revision: Option<&str>) -> Result<Snapshot, HubError> {
    if let Some(revision) = revision {
        super::name::check_revision(revision)?;
    }
    if let Some(found) = find(folder, revision.unwrap_or(MAIN))? {
        return Ok(found);
    }
    let there = commits(folder);
    match (revision, &there[..]) {
        (None, [only]) => Ok(Snapshot::of(folder, only)),
        _ => Err(HubError::NoSnapshot {
            folder: folder.into(),
            revision: revision.unwrap_or(MAIN).into(),
            there: if there.is_empty() { "none".into() } else { there.join(", ") },
        }),
    }
}
