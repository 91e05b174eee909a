//! The folder of a run: the names in it, its lock, its history.
//!
//! One process writes a run at a time, and holds an advisory lock while it does; readers need none. What a resumed run does not go on
//! with is moved aside, not removed.

mod lock;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::fsio::{self, Appended, FsError};

pub use lock::RunLock;

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// It is there already, with this in it.
    #[error(
        "{path} already exists and is not empty (it holds {entry}); choose another --out, remove it, or go on with an unfinished run in it by --resume"
    )]
    Exists {
        /// The folder.
        path: PathBuf,
        /// A name in it.
        entry: String,
    },
    /// It holds no unfinished run.
    #[error("there is no unfinished layer-by-layer run in {path}: nothing to resume; begin one with --out")]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// Another process writes it.
    #[error("{path} is being written by {by}; wait until it has ended, or choose another folder")]
    Locked {
        /// The folder.
        path: PathBuf,
        /// "process 4711 on host".
        by: String,
    },
    /// An unfinished run that cannot go on like this.
    #[error(
        "cannot resume {path}: {problem}; give the command as it was given at the beginning, or begin anew with another --out"
    )]
    Resume {
        /// The folder.
        path: PathBuf,
        /// The difference.
        problem: String,
    },
    /// It cannot be made or written.
    #[error("cannot write the run folder {path}: {source}; choose a folder that can be written with --out")]
    Os {
        /// The folder or file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file of it that is written at once.
    #[error(transparent)]
    Files(#[from] FsError),
}

impl FolderError {
    /// For `map_err`: the system refused something about `path`.
    pub fn os(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Os { path, source }
    }
}

/// The names in the folder of a run, and in that of one of its stages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunPaths {
    root: PathBuf,
}

impl RunPaths {
    /// Of the run in `root`, which need not be there.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn name(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The options, as TOML.
    pub fn config(&self) -> PathBuf {
        self.name("config.toml")
    }

    /// One JSON object a line: what was measured on the way.
    pub fn metrics(&self) -> PathBuf {
        self.name("metrics.jsonl")
    }

    /// What the evaluation says of every window.
    pub fn windows(&self) -> PathBuf {
        self.name("windows.json")
    }

    /// What the run came to; written last, so that a folder without it is an unfinished run.
    pub fn run(&self) -> PathBuf {
        self.name("run.json")
    }

    /// The mask.
    pub fn mask(&self) -> PathBuf {
        self.name("mask.safetensors")
    }

    /// The order of the channels, of a run that permutes them.
    pub fn permutation(&self) -> PathBuf {
        self.name("permutation.safetensors")
    }

    /// The masked model.
    pub fn model(&self) -> PathBuf {
        self.name("model")
    }

    /// The page about the run.
    pub fn report(&self) -> PathBuf {
        self.name("report.html")
    }

    /// What an unfinished run depends on, and its finished blocks.
    pub fn manifest(&self) -> PathBuf {
        self.name("manifest.json")
    }

    /// The folder of the finished blocks.
    pub fn blocks(&self) -> PathBuf {
        self.name("blocks")
    }

    /// The mask of a finished block.
    pub fn block_mask(&self, block: usize) -> PathBuf {
        self.blocks().join(format!("{block:04}.mask.safetensors"))
    }

    /// The weights that a finished block changed.
    pub fn block_weights(&self, block: usize) -> PathBuf {
        self.blocks().join(format!("{block:04}.weights.safetensors"))
    }

    /// What stage `number`, from 1, keeps.
    pub fn stage(&self, number: usize) -> Self {
        Self::new(self.name(&format!("stage{number}")))
    }

    /// The state of training in the middle of a stage.
    pub fn training(&self) -> PathBuf {
        self.name("training.safetensors")
    }

    /// The file that the writing process holds locked.
    pub fn lock(&self) -> PathBuf {
        self.name("lock")
    }

    /// What resumed runs did not go on with, a folder for each of them.
    pub fn earlier(&self) -> PathBuf {
        self.name("earlier")
    }
}

/// A part of a run and how long it took.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Phase {
    /// What it was.
    pub phase: String,
    /// Seconds.
    pub seconds: f64,
}

/// The folder of a run, as the process that writes it holds it. An error before the first result leaves nothing, so that the same
/// command can be given again.
pub struct RunFolder {
    paths: RunPaths,
    metrics: Appended,
    /// Folders made here, the innermost first.
    made: Vec<PathBuf>,
    resumed: bool,
    /// Stays even without a result.
    kept: bool,
    phases: Vec<Phase>,
    /// When the present phase began.
    since: Instant,
    /// Released last.
    lock: RunLock,
}

/// A name in a folder that keeps a new run out of it: none where there is nothing but what a run leaves that was killed before its first
/// step, and what every disk has at its root.
fn used_by(paths: &RunPaths) -> io::Result<Option<String>> {
    for entry in fs::read_dir(paths.root())? {
        let path = entry?.path();
        let nothing = path == paths.lock()
            || path == paths.permutation()
            || path.file_name().is_some_and(|name| name == "lost+found")
            || path == paths.metrics() && fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == 0);
        if !nothing {
            return Ok(Some(path.file_name().unwrap_or_default().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Makes a folder and its parents; returns those that were not there, the innermost first.
fn make_folders(path: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let missing = |p: &&Path| !p.as_os_str().is_empty() && fs::symlink_metadata(p).is_err();
    let made: Vec<PathBuf> = path.ancestors().take_while(missing).map(Path::to_path_buf).collect();
    fsio::create_dir_all(path).map_err(FolderError::os(path))?;
    Ok(made)
}

/// Removes those of the folders that are empty.
fn remove_folders(made: &[PathBuf]) {
    for folder in made {
        let _ = fsio::remove_dir(folder);
    }
}

impl RunFolder {
    /// Whether a new run can have this folder; changes nothing.
    ///
    /// # Errors
    /// [`FolderError::Exists`] for one that is not empty, [`FolderError::Os`] when the system refuses.
    pub fn check_new(path: &Path) -> Result<(), FolderError> {
        match used_by(&RunPaths::new(path)) {
            Ok(None) => Ok(()),
            Ok(Some(entry)) => Err(FolderError::Exists { path: path.into(), entry }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(FolderError::os(path)(e)),
        }
    }

    /// Makes the folder of a new run, locks it, and makes its metrics.
    ///
    /// # Errors
    /// [`FolderError::Exists`] for one that is not empty, [`FolderError::Locked`] where another process is at work in it,
    /// [`FolderError::Os`] when the system refuses.
    pub fn create(path: &Path) -> Result<Self, FolderError> {
        let paths = RunPaths::new(path);
        loop {
            let made = make_folders(path)?;
            match Self::begin(&paths) {
                Ok((lock, file)) => return Ok(Self::of(paths, file, made, lock, false)),
                // Another process has just given it up and taken it away.
                Err(FolderError::Os { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && !path.exists() => {}
                Err(e) => {
                    remove_folders(&made);
                    return Err(e);
                }
            }
        }
    }

    /// The lock and the metrics of a new run in a folder that is there.
    fn begin(paths: &RunPaths) -> Result<(RunLock, Appended), FolderError> {
        let lock = RunLock::take(paths)?;
        Self::check_new(paths.root())?;
        let metrics = paths.metrics();
        let file = Appended::open(&metrics).map_err(FolderError::os(metrics))?;
        Ok((lock, file))
    }

    fn of(paths: RunPaths, metrics: Appended, made: Vec<PathBuf>, lock: RunLock, resumed: bool) -> Self {
        let (kept, phases, since) = (resumed, Vec::new(), Instant::now());
        Self { paths, metrics, made, resumed, kept, phases, since, lock }
    }

    /// Whether an earlier run left it.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Lets the folder stay without a result: the run can be resumed.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Counts the first phase from a moment before the folder was opened.
    pub fn began(&mut self, at: Instant) {
        self.since = at;
    }

    /// Ends a phase: all that was done since the one before, or since the folder was opened.
    pub fn phase(&mut self, phase: impl Into<String>) {
        let now = Instant::now();
        let seconds = now.duration_since(self.since).as_secs_f64();
        self.phases.push(Phase { phase: phase.into(), seconds });
        self.since = now;
    }

    /// The phases so far, in their order.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// The names in it.
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.paths.root()
    }

    /// Appends one line to the metrics, at once: a step takes long, and somebody may be watching.
    ///
    /// # Errors
    /// [`FolderError::Os`] when the disk is full.
    pub fn metric(&mut self, line: &Value) -> Result<(), FolderError> {
        let text = format!("{line}\n");
        self.metrics.put(text.as_bytes()).map_err(FolderError::os(self.paths.metrics()))
    }

    /// Writes `windows.json`, what the evaluation says of every window.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn windows(&self, windows: &Value) -> Result<(), FolderError> {
        Ok(fsio::write_bytes(&self.paths.windows(), format!("{windows}\n").as_bytes())?)
    }

    /// Flushes the metrics and writes `config.toml`, the options, and `run.json`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(&mut self, options: &str, run: &Value) -> Result<(), FolderError> {
        self.metrics.sync().map_err(FolderError::os(self.paths.metrics()))?;
        fsio::write_bytes(&self.paths.config(), options.as_bytes())?;
        Ok(fsio::write_bytes(&self.paths.run(), format!("{run:#}\n").as_bytes())?)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let first_result = !self.metrics.bytes().is_ok_and(|n| n == 0);
        if self.kept || first_result || self.paths.run().exists() {
            return;
        }
        // What there may be before the first result; a folder with more in it stays.
        for stage in [self.paths.clone(), self.paths.stage(1)] {
            if fsio::remove_dir(&stage.blocks()).is_ok() || !stage.blocks().exists() {
                let _ = fsio::remove_file(&stage.manifest());
            }
        }
        let _ = fsio::remove_dir(self.paths.stage(1).root());
        let _ = fsio::remove_file(&self.paths.permutation());
        let _ = fsio::remove_file(&self.paths.metrics());
        self.lock.forget_file();
        remove_folders(&self.made);
    }
}

/// An unfinished run, locked; nothing in it has been changed yet.
pub struct Unfinished {
    paths: RunPaths,
    lock: RunLock,
}

impl Unfinished {
    /// Locks the folder of an unfinished run.
    ///
    /// # Errors
    /// [`FolderError::NoRun`] for a folder that is none, or whose run is finished; [`FolderError::Locked`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let paths = RunPaths::new(path);
        let unfinished = || paths.manifest().is_file() && !paths.run().exists();
        let none = || FolderError::NoRun { path: path.into() };
        if !unfinished() {
            return Err(none());
        }
        let lock = RunLock::take(&paths)?;
        // It may have come to its end before the lock was had.
        if unfinished() { Ok(Self { paths, lock }) } else { Err(none()) }
    }

    /// The names in it.
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }

    /// Begins to write, once all is checked. The metrics start anew, since they are told again, and a model in it is whole, but of a
    /// run that did not come to its end: both are moved aside. Returns the lines of steps so far.
    ///
    /// # Errors
    /// [`FolderError::Os`].
    pub fn go_on(self) -> Result<(RunFolder, Vec<Value>), FolderError> {
        let Self { paths, lock } = self;
        let mut histories: Vec<PathBuf> = numbered(&paths.earlier());
        let number = histories.len() + 1;
        let aside = RunPaths::new(paths.earlier().join(number.to_string()));
        for (from, to) in [(paths.model(), aside.model()), (paths.metrics(), aside.metrics())] {
            if fs::symlink_metadata(&from).is_ok() {
                fsio::create_dir_all(aside.root()).map_err(FolderError::os(aside.root()))?;
                fsio::rename(&from, &to).map_err(FolderError::os(from))?;
            }
        }
        histories.push(aside.root().to_path_buf());
        let earlier = steps(&histories);
        let metrics = paths.metrics();
        let file = Appended::open(&metrics).map_err(FolderError::os(metrics))?;
        Ok((RunFolder::of(paths, file, Vec::new(), lock, true), earlier))
    }
}

/// The folders `1`, `2` and so on below `path`.
fn numbered(path: &Path) -> Vec<PathBuf> {
    (1..).map(|n: usize| path.join(n.to_string())).take_while(|p| p.is_dir()).collect()
}

/// The lines of steps in the metrics of these folders, each step once: as it was told last.
fn steps(folders: &[PathBuf]) -> Vec<Value> {
    let mut found = BTreeMap::new();
    for folder in folders {
        // The last line of a killed run may be cut off.
        let text = fs::read(RunPaths::new(folder).metrics()).unwrap_or_default();
        let lines = text.split(|&b| b == b'\n').filter_map(|l| serde_json::from_slice::<Value>(l).ok());
        for line in lines {
            let number = |key: &str| line[key].as_u64();
            if let Some(step) = number("step") {
                found.insert((number("stage"), number("block"), step), line);
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests;
