//! What every command has: the device's options, and a terminal that is told how it goes.

use std::path::{Path, PathBuf};

use super::output::{Progress, show_progress};
use super::{CliError, signals};
use crate::gpu::Gpu;
use crate::hub::Need;
use crate::kernel::Preset;
use crate::run::{DeviceSpec, Model, Observer, Task, model_folder};

/// Options of every command, and what is told on standard error.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) device: DeviceSpec,
    /// Nothing but results and errors.
    pub(super) quiet: bool,
}

impl Context {
    /// Opens the device and says which.
    pub(super) fn open(&self) -> Result<Gpu, CliError> {
        Ok(self.device.open(self)?)
    }

    /// The preset for `gpu`.
    pub(super) fn preset(&self, gpu: &Gpu) -> Result<Preset, CliError> {
        Ok(self.device.preset(gpu, self)?)
    }

    /// A line on standard error unless `--quiet`.
    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if !self.quiet {
            eprintln!("{}", text());
        }
    }

    fn revision(&self) -> Option<&str> {
        self.device.revision.as_deref()
    }

    /// The folder of a model, or of its name on the hub.
    pub(super) fn model_folder(&self, path: &Path, need: Need) -> Result<PathBuf, CliError> {
        Ok(model_folder(path, self.revision(), need, self)?)
    }

    /// A mask file, or a model as [`Context::model_folder`] has it.
    pub(super) fn model_or_file(&self, path: &Path, need: Need) -> Result<PathBuf, CliError> {
        if path.is_file() { Ok(path.into()) } else { self.model_folder(path, need) }
    }

    /// A model, opened and checked.
    pub(super) fn model(&self, path: &Path) -> Result<Model, CliError> {
        Ok(Model::open(path, self.revision(), self)?)
    }

    /// A model whose weights are all numbers.
    pub(super) fn checked_model(&self, path: &Path) -> Result<Model, CliError> {
        Ok(Model::open_checked(path, self.revision(), self)?)
    }

    /// A bar on a terminal; elsewhere lines.
    pub(super) fn progress(&self, what: &str, total: u64) -> Progress {
        show_progress(what, total, self.quiet)
    }
}

impl Observer for Context {
    fn stop(&self) -> bool {
        signals::stopped()
    }

    fn guard(&self) {
        signals::guard();
    }

    fn note(&self, text: &str) {
        Context::note(self, || text.into());
    }

    fn task(&self, what: &str, total: u64) -> Box<dyn Task> {
        Box::new(self.progress(what, total))
    }
}
