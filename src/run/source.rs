//! Models that are named as on the Hugging Face hub.

use std::path::{Path, PathBuf};

use super::observer::{Observer, Task, plain};
use super::{RunError, bytes};
use crate::hub::{Need, RepoName, Settings, Watch, is_cache_folder, snapshot, snapshot_of_folder};

/// Bytes of a file whose download is shown as a bar.
const LARGE: u64 = 8 << 20;

/// The folder of a model: the path itself where it is one; the snapshot in a folder of the hub's cache; or that of a name on the hub,
/// downloaded where the cache lacks it. All else is given back, and reading it says what is wrong.
///
/// # Errors
/// What the hub or its cache says.
pub fn model_folder(
    path: &Path,
    revision: Option<&str>,
    need: Need,
    observer: &dyn Observer,
) -> Result<PathBuf, RunError> {
    if path.is_dir() {
        if !is_cache_folder(path) {
            if revision.is_some() {
                observer.warn(&format!(
                    "--revision does nothing here: {} is a folder, not a name on the hub",
                    path.display()
                ));
            }
            return Ok(path.into());
        }
        let found = snapshot_of_folder(path, revision)?;
        observer.note(&format!("model: commit {} in {}", found.commit, path.display()));
        return Ok(found.folder);
    }
    let Some((name, own)) = RepoName::of_path(path) else { return Ok(path.into()) };
    let settings = Settings::of_environment()?;
    let mut watch = Bars { observer, bar: None };
    let found = snapshot(&settings, &name, own.or(revision), need, &mut watch)?;
    drop(watch);
    observer.note(&format!("model: {name}, commit {}, in {}", found.commit, found.folder.display()));
    Ok(found.folder)
}

/// Shows downloads.
struct Bars<'a> {
    observer: &'a dyn Observer,
    bar: Option<Box<dyn Task>>,
}

impl Watch for Bars<'_> {
    fn note(&mut self, text: String) {
        self.bar = None;
        self.observer.note(&text);
    }

    fn file(&mut self, name: &str, size: u64) {
        self.bar = None;
        if size >= LARGE {
            self.observer.note(&format!("{name}: {}", bytes(size)));
            self.bar = Some(self.observer.task("MiB", size >> 20));
        }
    }

    fn at(&mut self, done: u64) {
        if let Some(bar) = &mut self.bar {
            bar.at(done >> 20, &plain);
        }
    }
}
