//! What most commands open first: the device, the kernels, a model folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::CliError;
use crate::calib::{Segments, TextOptions, Windows, read_windows_of, tokens_of};
use crate::fsio;
use crate::gpu::{DeviceKind, Gpu, GpuOptions};
use crate::hub::Need;
use crate::kernel::{Preset, choose_preset};
use crate::mask::{MaskReader, MaskSet, Masks, Pattern};
use crate::model::{self, Architecture, Checkpoint, Tokenizer};

/// Behind the options of a command.
const LAST: usize = 1000;

/// Options of every command; those but `quiet` for commands that use a device.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Device and output")]
pub(super) struct DeviceArgs {
    /// Adapter: its number in `maskwright devices`, or a part of its name that only it has [default: the one marked there]
    #[arg(long, global = true, value_name = "N|NAME", display_order = LAST)]
    pub(super) device: Option<String>,
    /// How kernels are cut into tiles: tile64, rows8, rows16, rows32, lanes16 or lanes32 [default: the fastest, measured once]
    #[arg(long, global = true, value_name = "NAME", display_order = LAST)]
    pub(super) preset: Option<String>,
    /// Measure the time of every kernel, and print a table of it at the end
    #[arg(long, global = true, display_order = LAST)]
    pub(super) profile: bool,
    /// Milliseconds that the device is given work for at once; fewer where the screen stutters or a watchdog resets it
    #[arg(long, global = true, value_name = "MS", default_value_t = 100, display_order = LAST)]
    pub(super) max_submit_ms: u32,
    /// Keep the bounds checks of the shader compiler (slower; for hunting a fault)
    #[arg(long, global = true, display_order = LAST)]
    pub(super) checked: bool,
    /// Bind at most this many bytes at once, as an adapter with small limits would
    #[arg(long, global = true, value_name = "BYTES", hide = true)]
    pub(super) max_binding_bytes: Option<u64>,
    /// Hold this many times fewer bytes of panels, strips and logits at once, so that small models are cut as large ones are
    #[arg(long, global = true, value_name = "TIMES", default_value_t = 1, hide = true)]
    pub(super) shrink: u32,
    /// Branch, tag or commit of models that are named as on the Hugging Face hub, ORG/NAME; ORG/NAME@REV goes before it [default: main]
    #[arg(long, global = true, value_name = "REV", display_order = LAST)]
    pub(super) revision: Option<String>,
    /// No progress, no notes, no warnings: only results and errors
    #[arg(long, global = true, display_order = LAST)]
    pub(super) quiet: bool,
}

impl DeviceArgs {
    /// Opens the device and says which.
    pub(super) fn open(&self) -> Result<Gpu, CliError> {
        let gpu = Gpu::open(GpuOptions {
            device: self.device.clone(),
            max_binding_bytes: self.max_binding_bytes,
            max_workgroup_bytes: None,
            shrink: self.shrink,
            profile: self.profile,
            checked: self.checked,
            max_submit_ms: self.max_submit_ms,
        })?;
        self.note(|| format!("adapter: {} - {}", gpu.describe(), gpu.reason()));
        if gpu.kind() == DeviceKind::Cpu {
            self.note(|| {
                "note: this is a software driver on the CPU; a GPU is tens to thousands of times faster"
                    .into()
            });
        }
        Ok(gpu)
    }

    /// As words of a command line.
    pub(super) fn words(&self) -> Vec<OsString> {
        let values = [
            ("device", self.device.clone()),
            ("preset", self.preset.clone()),
            ("revision", self.revision.clone()),
            ("max-submit-ms", Some(self.max_submit_ms.to_string())),
            ("max-binding-bytes", self.max_binding_bytes.map(|bytes| bytes.to_string())),
            ("shrink", (self.shrink > 1).then(|| self.shrink.to_string())),
        ];
        let flags = [("profile", self.profile), ("checked", self.checked), ("quiet", self.quiet)];
        let values = values.into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value?)));
        let flags = flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| format!("--{name}"));
        values.chain(flags).map(OsString::from).collect()
    }

    /// The preset for `gpu`.
    pub(super) fn preset(&self, gpu: &Gpu) -> Result<Preset, CliError> {
        let preset = choose_preset(gpu, self.preset.as_deref())?;
        self.note(|| format!("preset: {}", preset.name));
        Ok(preset)
    }

    /// A line on standard error unless `--quiet`.
    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if !self.quiet {
            eprintln!("{}", text());
        }
    }
}

/// A model folder, opened and checked.
pub(super) struct Model {
    pub(super) config: Architecture,
    pub(super) checkpoint: Checkpoint,
    pub(super) folder: PathBuf,
}

impl Model {
    /// `path` is a folder, or the name of a model on the hub.
    pub(super) fn open(device: &DeviceArgs, path: &Path) -> Result<Self, CliError> {
        let folder = device.model_folder(path, Need::Whole)?;
        let (config, checkpoint) = model::open(&folder)?;
        Ok(Self { config, checkpoint, folder })
    }

    /// Whether a folder has weights at all, besides its config.json.
    pub(super) fn has_weights(folder: &Path) -> bool {
        let is_weights = |p: PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "bin");
        std::fs::read_dir(folder).is_ok_and(|all| all.flatten().any(|e| is_weights(e.path())))
    }

    /// Also scans all weights for NaN and infinity.
    pub(super) fn open_checked(device: &DeviceArgs, path: &Path) -> Result<Self, CliError> {
        let model = Self::open(device, path)?;
        model.checkpoint.check_finite(&model.config)?;
        Ok(model)
    }

    /// The first `most` windows of a text, or all, whose length was given as `option`; and how many tokens those are, or the text with its tail has.
    pub(super) fn windows(
        &self,
        text: &Path,
        options: &TextOptions,
        (option, window): (&str, usize),
        most: Option<usize>,
    ) -> Result<(Windows, usize), CliError> {
        let tokenizer = Tokenizer::open(&self.folder, &self.config)?;
        let most = most.unwrap_or(usize::MAX);
        let wanted = most.saturating_mul(window);
        let tokens = tokens_of(&tokenizer, text, options, wanted)?;
        let count = tokens.len().min(wanted);
        self.warn_of_long(option, window);
        let windows = Windows::new(tokens, window)?.first(most);
        if most < usize::MAX {
            warn_of_few(text, &windows, most);
        }
        Ok((windows, count))
    }

    /// `count` windows of `window` tokens for calibration.
    pub(super) fn calibration(
        &self,
        text: &Path,
        options: &TextOptions,
        segments: Segments,
        count: usize,
        window: usize,
    ) -> Result<Windows, CliError> {
        let tokenizer = Tokenizer::open(&self.folder, &self.config)?;
        self.warn_of_long("--window", window);
        let windows = read_windows_of(&tokenizer, text, options, segments, count, window)?;
        warn_of_few(text, &windows, count);
        Ok(windows)
    }

    /// Says when a text is longer than the model was made for.
    pub(super) fn warn_of_long(&self, option: &str, window: usize) {
        if window > self.config.max_position_embeddings {
            log::warn!(
                "{option}: windows of {window} tokens are longer than the {} the model was made for",
                self.config.max_position_embeddings
            );
        }
    }

    /// Opens a mask file and checks it against the model. `pattern` is the one that masks must have that do not name theirs.
    pub(super) fn mask_file(&self, path: &Path, pattern: Option<Pattern>) -> Result<MaskReader, CliError> {
        let file = MaskReader::open(path, &self.config.projections(), pattern)?;
        file.check_model(&self.config)?;
        Ok(file)
    }

    /// The masks of [`Model::mask_file`]; says when they were made for other weights.
    pub(super) fn mask(&self, path: &Path, pattern: Option<Pattern>) -> Result<MaskSet, CliError> {
        let file = self.mask_file(path, pattern)?;
        self.warn_of_sources(&file, path)?;
        Ok(file.into_file()?.set)
    }

    /// Says when a mask was made for other weights than these.
    pub(super) fn warn_of_sources(&self, file: &MaskReader, path: &Path) -> Result<(), CliError> {
        let differing = file.differing_sources(&self.checkpoint)?;
        if let Some(first) = differing.first() {
            log::warn!(
                "{} was made for other weights: {} of {} tensors differ, the first is {first}",
                path.display(),
                differing.len(),
                file.sources.len()
            );
        }
        Ok(())
    }
}

/// Says when a text gave fewer windows than were asked for.
fn warn_of_few(text: &Path, windows: &Windows, asked: usize) {
    if windows.count() < asked {
        log::warn!(
            "{} gives {} windows of {} tokens, not the {asked} asked for: the text is too short; use a longer one, or shorter windows",
            text.display(),
            windows.count(),
            windows.window()
        );
    }
}

/// What the handler of signals knows.
struct Signals {
    /// Set by the first signal.
    stop: Arc<AtomicBool>,
    /// Whether somebody looks at `stop`, since there is something to keep.
    watched: AtomicBool,
}

fn signals() -> &'static Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    SIGNALS.get_or_init(|| Signals { stop: Arc::default(), watched: AtomicBool::new(false) })
}

/// Lets Ctrl-C (and SIGTERM, SIGHUP) remove what is half written and end the process with exit code 130: at once, or from [`stop_flag`] on
/// the second one, without waiting for what the first has begun.
///
/// # Errors
/// What the system refuses.
pub(super) fn watch_signals() -> Result<(), CliError> {
    ctrlc::set_handler(|| {
        let Signals { stop, watched } = signals();
        let first = !stop.swap(true, Ordering::SeqCst);
        if first && watched.load(Ordering::SeqCst) {
            return;
        }
        fsio::discard_unfinished();
        eprintln!("interrupted");
        std::process::exit(130);
    })?;
    Ok(())
}

/// The process's flag that the first Ctrl-C sets, for a command that has something to keep from now on and looks at the flag.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let Signals { stop, watched } = signals();
    watched.store(true, Ordering::SeqCst);
    Ok(stop.clone())
}
