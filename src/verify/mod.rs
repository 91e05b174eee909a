//! Is a masked model folder right? Every projection strictly N:M along in_features, nothing else touched. No GPU.
//!
//! Weights are read through the memory map, on all cores; nothing the size of a tensor is allocated, but one tensor at a time for
//! those that are packed.

mod backend;
mod error;
mod folder;
mod inspect;
mod opened;
mod scan;
mod sidecar;
mod tensor;

pub use backend::{Fitness, Sizes, fitness};
pub use error::VerifyError;
pub use inspect::{Agreement, Inspection, Row, inspect};
pub use scan::{Fault, Reference, Scan, scan};

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::export::hf::{REPORT, permutation_of};
use crate::mask::{Masks, Pattern};
use crate::model::{Architecture, Checkpoint, Permutation};

use opened::Opened;
use sidecar::Sidecar;
use tensor::Job;

/// What to verify a folder by.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// The pattern; without it the mask's, else the sidecar's.
    pub pattern: Option<Pattern>,
    /// The masks that the folder must have been made with.
    pub mask: Option<&'a dyn Masks>,
    /// The permutation of the folder's channels, by which the dense model is permuted before it is compared.
    pub permutation: Option<&'a Permutation>,
    /// The dense model's folder.
    pub against: Option<&'a Path>,
    /// Kept weights may differ from the dense model's.
    pub repaired: bool,
    /// Projections may be dense although nothing says that they were left so.
    pub allow_dense: bool,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// The tensor or file.
    pub place: String,
    /// The row, where it is about one.
    pub row: Option<usize>,
    /// The group of that row.
    pub group: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.row, self.group) {
            (Some(row), Some(group)) => {
                write!(f, "{}: group {group} of row {row} {}", self.place, self.what)
            }
            (Some(row), None) => write!(f, "{}: row {row} {}", self.place, self.what),
            _ => write!(f, "{}: {}", self.place, self.what),
        }
    }
}

/// One projection of the folder.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Line {
    /// The tensor.
    pub name: String,
    /// How it is stored.
    pub dtype: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Weights that are not +0.0.
    pub kept: u64,
    /// Groups with fewer than N of them.
    pub short_groups: u64,
    /// Groups that are wrong.
    pub violations: u64,
    /// Whether it was left dense.
    pub dense: bool,
    /// Why a backend does not take it, `None` where it does.
    pub backends: Fitness,
}

/// The verdict.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Verdict {
    /// How the weights are stored: `dense`, `torch24` or `ct24`.
    pub format: &'static str,
    /// The pattern that was looked for.
    pub pattern: String,
    /// Whether nothing is wrong.
    pub ok: bool,
    /// What is wrong, the first of each tensor or file, in the order of the computation.
    pub problems: Vec<Problem>,
    /// All projections.
    pub projections: Vec<Line>,
    /// Bytes of the projections in each representation.
    pub bytes: Sizes,
    /// Bytes of the weight files.
    pub weight_bytes: u64,
    /// Whether the tensors and files were held against a source.
    pub compared: bool,
    /// Beside a source: what is here and not there, or there and not here.
    pub entries: Entries,
}

/// The entries of a folder beside those of its source, relative to them.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Entries {
    /// Files that the source does not have and no export writes: each is also a problem.
    pub added: Vec<String>,
    /// Files that the source does not have, as exports write them.
    pub of_the_export: Vec<String>,
    /// Files of the source that are missing here; each is also a problem.
    pub removed: Vec<String>,
    /// Files that are other than the source's; each is also a problem.
    pub changed: Vec<String>,
    /// Files and folders of the source that exports leave out: other copies of the weights, hidden folders, what cannot be read.
    pub left_out: Vec<String>,
    /// Hidden folders here, and what cannot be read: not looked into.
    pub not_compared: Vec<String>,
}

/// Verifies the folder `dir`.
///
/// # Errors
/// [`VerifyError`] where no verdict is possible: a folder, source or mask that cannot be read, no pattern. What is wrong
/// with a readable folder is in [`Verdict::problems`].
pub fn verify(dir: &Path, options: &Options<'_>) -> Result<Verdict, VerifyError> {
    let opened = Opened::open(dir)?;
    let (config, files) = (opened.config(), opened.files());
    let sidecar = Sidecar::read(dir)?;
    let pattern = pattern(dir, options, sidecar.as_ref())?;
    if let Some(mask) = options.mask {
        mask.check_model(config)?;
    }
    let source = match options.against {
        Some(path) => {
            // Its own configuration, so that a folder and source that do not fit give a problem and no error.
            let config = Architecture::read(path)?;
            let source = Checkpoint::open(path, &config)?;
            Some(match options.permutation {
                Some(permutation) => source.permuted(&config, permutation, &std::env::temp_dir())?,
                None => source,
            })
        }
        None => None,
    };
    let (mut problems, mut entries) = (Vec::new(), Entries::default());
    if let Some(source) = &source {
        entries = match &opened {
            Opened::Dense(_, files) => folder::compare(files, source, &mut problems)?,
            Opened::Packed(packed) => folder::compare_packed(packed, source, &mut problems)?,
        };
    }
    let permuted = permutation_of(dir).is_some();
    let mut add = |place: &str, what: &str| {
        problems.push(Problem { place: place.into(), row: None, group: None, what: what.into() });
    };
    if source.is_none() && config.tie_word_embeddings && files.names().any(|n| n == "lm_head.weight") {
        let what = "is written although config.json ties it to the embedding; if the source has it too, give --against";
        add("lm_head.weight", what);
    }
    if permuted && source.is_some() && options.permutation.is_none() {
        add(REPORT, "says that the channels of the source are in another order; give its permutation");
    }
    if sidecar.as_ref().is_some_and(|s| s.refitted) && source.is_some() && !options.repaired {
        add(REPORT, "says that kept weights were re-fitted; add --repaired to allow that");
    }
    let shapes = config.projections().into_iter().map(|p| (p.name, [p.rows, p.cols])).collect();
    let job = Job { config, pattern, options, sidecar: sidecar.as_ref(), shapes };
    let mut order: BTreeMap<String, usize> =
        config.tensors().into_iter().enumerate().map(|(i, spec)| (spec.name, i)).collect();
    for part in config.parts() {
        let place = order.get(&part.stored).copied().unwrap_or(usize::MAX);
        order.insert(part.name, place);
    }
    let mut found = opened.check(&job, source.as_ref());
    found.sort_by_key(|(name, _)| order.get(name).copied().unwrap_or(usize::MAX));
    let mut projections = Vec::new();
    let mut bytes = Sizes::default();
    for (_, (problem, line)) in found {
        problems.extend(problem);
        if let Some((line, dtype)) = line {
            bytes.add(pattern, line.dense, dtype, line.rows, line.cols);
            projections.push(line);
        }
    }
    let weight_bytes = files.files().iter().map(|s| s.len() as u64).sum();
    let (ok, compared) = (problems.is_empty(), source.is_some());
    let (pattern, format) = (pattern.to_string(), opened.format());
    Ok(Verdict { format, pattern, ok, problems, projections, bytes, weight_bytes, compared, entries })
}

/// The configuration of a folder of any of the formats that [`verify`] reads; its weights are there as it says.
///
/// # Errors
/// A folder that cannot be read.
pub fn config(dir: &Path) -> Result<Architecture, VerifyError> {
    Opened::open(dir).map(|opened| opened.config().clone())
}

fn pattern(dir: &Path, options: &Options<'_>, sidecar: Option<&Sidecar>) -> Result<Pattern, VerifyError> {
    match (options.pattern, options.mask) {
        (Some(pattern), Some(mask)) if pattern != mask.pattern() => {
            Err(VerifyError::TwoPatterns { mask: mask.pattern(), pattern })
        }
        (Some(pattern), _) => Ok(pattern),
        (None, Some(mask)) => Ok(mask.pattern()),
        (None, None) => {
            sidecar.map(|s| s.pattern).ok_or_else(|| VerifyError::NoPattern { folder: dir.into() })
        }
    }
}
