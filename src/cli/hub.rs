//! Models that are named as on the Hugging Face hub.

use std::path::{Path, PathBuf};

use super::CliError;
use super::context::DeviceArgs;
use super::output::{Progress, bytes};
use crate::hub::{Need, RepoName, Settings, Watch, is_cache_folder, snapshot, snapshot_of_folder};

/// Bytes of a file whose download is shown as a bar.
const LARGE: u64 = 8 << 20;

impl DeviceArgs {
    /// The folder of a model: the path itself where it is one; the snapshot in a folder of the hub's cache; or that of a name on the hub,
    /// downloaded where the cache lacks it. All else is given back, and reading it says what is wrong.
    pub(super) fn model_folder(&self, path: &Path, need: Need) -> Result<PathBuf, CliError> {
        let revision = self.revision.as_deref();
        if path.is_dir() {
            if !is_cache_folder(path) {
                if revision.is_some() {
                    log::warn!(
                        "--revision does nothing here: {} is a folder, not a name on the hub",
                        path.display()
                    );
                }
                return Ok(path.into());
            }
            let found = snapshot_of_folder(path, revision)?;
            self.note(|| format!("model: commit {} in {}", found.commit, path.display()));
            return Ok(found.folder);
        }
        let Some((name, own)) = RepoName::of_path(path) else { return Ok(path.into()) };
        let settings = Settings::of_environment()?;
        let mut watch = Bars { device: self, bar: None };
        let found = snapshot(&settings, &name, own.or(revision), need, &mut watch)?;
        watch.end();
        self.note(|| format!("model: {name}, commit {}, in {}", found.commit, found.folder.display()));
        Ok(found.folder)
    }

    /// A mask file, or a model as [`DeviceArgs::model_folder`] has it.
    pub(super) fn model_or_file(&self, path: &Path, need: Need) -> Result<PathBuf, CliError> {
        if path.is_file() { Ok(path.into()) } else { self.model_folder(path, need) }
    }
}

/// Shows downloads.
struct Bars<'a> {
    device: &'a DeviceArgs,
    bar: Option<Progress>,
}

impl Bars<'_> {
    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.end();
        }
    }
}

impl Watch for Bars<'_> {
    fn note(&mut self, text: String) {
        self.end();
        self.device.note(|| text);
    }

    fn file(&mut self, name: &str, size: u64) {
        self.end();
        if size >= LARGE {
            self.device.note(|| format!("{name}: {}", bytes(size)));
            self.bar = Some(Progress::new("MiB", size >> 20, self.device.quiet));
        }
    }

    fn at(&mut self, done: u64) {
        if let Some(bar) = &mut self.bar {
            bar.at(done >> 20, String::new);
        }
    }
}
