//! A model folder, and the texts and masks that go with it.

use std::path::{Path, PathBuf};

use super::{Observer, RunError, model_folder};
use crate::calib::{Segments, TextOptions, Windows, read_windows_of, tokens_of};
use crate::export::hf;
use crate::hub::Need;
use crate::mask::{MaskReader, MaskSet, Masks, Pattern};
use crate::model::{self, Architecture, Checkpoint, Tokenizer};

/// A model folder, opened and checked.
pub struct Model {
    /// What config.json says.
    pub config: Architecture,
    /// The weights.
    pub checkpoint: Checkpoint,
    /// Where it was read.
    pub folder: PathBuf,
}

impl Model {
    /// `path` is a folder, or the name of a model on the hub, of which `revision` is taken.
    ///
    /// # Errors
    /// What [`model_folder`] or [`model::open`] reports.
    pub fn open(path: &Path, revision: Option<&str>, observer: &dyn Observer) -> Result<Self, RunError> {
        let folder = model_folder(path, revision, Need::Whole, observer)?;
        let (config, checkpoint) = model::open(&folder)?;
        let mut model = Self { config, checkpoint, folder };
        if let Some(hash) = hf::permutation_of(&model.folder) {
            model.checkpoint.is_in_order_of(hash);
        }
        Ok(model)
    }

    /// Whether a folder has weights at all, besides its config.json.
    pub(crate) fn has_weights(folder: &Path) -> bool {
        let is_weights = |p: PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "bin");
        std::fs::read_dir(folder).is_ok_and(|all| all.flatten().any(|e| is_weights(e.path())))
    }

    /// Also scans all weights for NaN and infinity.
    ///
    /// # Errors
    /// As [`Model::open`]; a weight that is not finite.
    pub fn open_checked(
        path: &Path,
        revision: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let model = Self::open(path, revision, observer)?;
        model.checkpoint.check_finite(&model.config)?;
        Ok(model)
    }

    /// The first `most` windows of a text, or all, whose length was given as `option`; and how many tokens those are, or the text with its tail has.
    pub(crate) fn windows(
        &self,
        text: &Path,
        options: &TextOptions,
        (option, window): (&str, usize),
        most: Option<usize>,
        observer: &dyn Observer,
    ) -> Result<(Windows, usize), RunError> {
        let tokenizer = Tokenizer::open(&self.folder, &self.config)?;
        let most = most.unwrap_or(usize::MAX);
        let wanted = most.saturating_mul(window);
        let tokens = tokens_of(&tokenizer, text, options, wanted)?;
        let count = tokens.len().min(wanted);
        self.warn_of_long(option, window, observer);
        let windows = Windows::new(tokens, window)?.first(most);
        if most < usize::MAX {
            warn_of_few(text, &windows, most, observer);
        }
        Ok((windows, count))
    }

    /// `count` windows of `window` tokens for calibration.
    pub(crate) fn calibration(
        &self,
        text: &Path,
        options: &TextOptions,
        segments: Segments,
        count: usize,
        window: usize,
        observer: &dyn Observer,
    ) -> Result<Windows, RunError> {
        let tokenizer = Tokenizer::open(&self.folder, &self.config)?;
        self.warn_of_long("--window", window, observer);
        let windows = read_windows_of(&tokenizer, text, options, segments, count, window)?;
        warn_of_few(text, &windows, count, observer);
        Ok(windows)
    }

    /// Says when a text is longer than the model was made for.
    pub(crate) fn warn_of_long(&self, option: &str, window: usize, observer: &dyn Observer) {
        if window > self.config.max_position_embeddings {
            observer.warn(&format!(
                "{option}: windows of {window} tokens are longer than the {} the model was made for",
                self.config.max_position_embeddings
            ));
        }
    }

    /// Opens a mask file and checks it against the model. `pattern` is the one that masks must have that do not name theirs.
    pub(crate) fn mask_file(&self, path: &Path, pattern: Option<Pattern>) -> Result<MaskReader, RunError> {
        let file = MaskReader::open(path, &self.config.projections(), pattern)?;
        file.check_model(&self.config)?;
        Ok(file)
    }

    /// The masks of [`Model::mask_file`]; says when they were made for other weights.
    pub(crate) fn mask(
        &self,
        path: &Path,
        pattern: Option<Pattern>,
        observer: &dyn Observer,
    ) -> Result<MaskSet, RunError> {
        let file = self.mask_file(path, pattern)?;
        self.warn_of_sources(&file, path, observer)?;
        Ok(file.into_file()?.set)
    }

    /// Says when a mask was made for other weights than these.
    pub(crate) fn warn_of_sources(
        &self,
        file: &MaskReader,
        path: &Path,
        observer: &dyn Observer,
    ) -> Result<(), RunError> {
        let differing = file.differing_sources(&self.checkpoint)?;
        if let Some(first) = differing.first() {
            observer.warn(&format!(
                "{} was made for other weights: {} of {} tensors differ, the first is {first}",
                path.display(),
                differing.len(),
                file.sources.len()
            ));
        }
        Ok(())
    }
}

/// Says when a text gave fewer windows than were asked for.
fn warn_of_few(text: &Path, windows: &Windows, asked: usize, observer: &dyn Observer) {
    if windows.count() < asked {
        observer.warn(&format!(
            "{} gives {} windows of {} tokens, not the {asked} asked for: the text is too short; use a longer one, or shorter windows",
            text.display(),
            windows.count(),
            windows.window()
        ));
    }
}
