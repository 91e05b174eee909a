//! Is a masked model folder right? Every projection strictly N:M along in_features, nothing else touched. No GPU.
//!
//! Weights are read through the memory map, on all cores; nothing the size of a tensor is allocated.

mod backend;
mod error;
mod folder;
mod scan;
mod sidecar;

pub use backend::{Fitness, Sizes, fitness};
pub use error::VerifyError;
pub use scan::{Fault, Reference, Scan, scan};

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::mask::{MaskError, MaskSet, Pattern};
use crate::model::{Checkpoint, Config, Dtype, Shard, ShardEntry, in_parallel};

use sidecar::Sidecar;

/// What to verify a folder by.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// The pattern; without it the mask's, else the sidecar's.
    pub pattern: Option<Pattern>,
    /// The masks that the folder must have been made with.
    pub mask: Option<&'a MaskSet>,
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
}

/// Verifies the folder `dir`.
///
/// # Errors
/// [`VerifyError`] where no verdict is possible: a folder, source or mask that cannot be read, no pattern. What is wrong
/// with a readable folder is in [`Verdict::problems`].
pub fn verify(dir: &Path, options: &Options<'_>) -> Result<Verdict, VerifyError> {
    let config = Config::read(dir)?;
    let checkpoint = Checkpoint::open(dir, &config)?;
    let sidecar = Sidecar::read(dir)?;
    let pattern = pattern(dir, options, sidecar.as_ref())?;
    if let Some(mask) = options.mask {
        mask.check_model(&config)?;
    }
    let source = match options.against {
        Some(path) => {
            // Its own configuration, so that a folder and source that do not fit give a problem and no error.
            let config = Config::read(path)?;
            Some(Checkpoint::open(path, &config)?)
        }
        None => None,
    };
    let mut problems = Vec::new();
    let sources = match &source {
        Some(source) => {
            folder::compare(&checkpoint, source, &mut problems)?;
            entries(source)
        }
        None => BTreeMap::new(),
    };
    if source.is_none() && config.tie_word_embeddings && checkpoint.names().any(|n| n == "lm_head.weight") {
        problems.push(Problem {
            place: "lm_head.weight".into(),
            row: None,
            group: None,
            what: "is written although config.json ties it to the embedding; if the source has it too, give --against".into(),
        });
    }
    if let Some(sidecar) = &sidecar
        && sidecar.refitted
        && source.is_some()
        && !options.repaired
    {
        problems.push(Problem {
            place: crate::export::hf::REPORT.into(),
            row: None,
            group: None,
            what: "says that kept weights were re-fitted; add --repaired to allow that".into(),
        });
    }
    let job = Job { config: &config, pattern, options, sidecar: sidecar.as_ref(), sources: &sources };
    let order: BTreeMap<String, usize> =
        config.tensors().into_iter().enumerate().map(|(i, spec)| (spec.name, i)).collect();
    let mut all: Vec<Stored<'_>> = entries(&checkpoint).into_values().collect();
    all.sort_by_key(|s| order.get(&s.entry.name).copied().unwrap_or(usize::MAX));
    let shapes: BTreeMap<String, [usize; 2]> =
        config.projections().into_iter().map(|p| (p.name, [p.rows, p.cols])).collect();
    let mut projections = Vec::new();
    let mut bytes = Sizes::default();
    for (problem, line) in in_parallel(&all, |stored| job.tensor(stored, &shapes)) {
        problems.extend(problem);
        if let Some((line, dtype)) = line {
            bytes.add(pattern, line.dense, dtype, line.rows, line.cols);
            projections.push(line);
        }
    }
    let weight_bytes = checkpoint.files().iter().map(|s| s.len() as u64).sum();
    let (ok, compared) = (problems.is_empty(), source.is_some());
    let pattern = pattern.to_string();
    Ok(Verdict { pattern, ok, problems, projections, bytes, weight_bytes, compared })
}

fn pattern(dir: &Path, options: &Options<'_>, sidecar: Option<&Sidecar>) -> Result<Pattern, VerifyError> {
    match (options.pattern, options.mask) {
        (Some(pattern), Some(mask)) if pattern != mask.pattern => {
            Err(VerifyError::TwoPatterns { mask: mask.pattern, pattern })
        }
        (Some(pattern), _) => Ok(pattern),
        (None, Some(mask)) => Ok(mask.pattern),
        (None, None) => {
            sidecar.map(|s| s.pattern).ok_or_else(|| VerifyError::NoPattern { folder: dir.into() })
        }
    }
}

/// A tensor with the file it lies in.
#[derive(Clone, Copy)]
struct Stored<'a> {
    shard: &'a Shard,
    entry: &'a ShardEntry,
}

/// Every tensor of every file, by name and file.
fn entries(checkpoint: &Checkpoint) -> BTreeMap<(&str, &str), Stored<'_>> {
    let mut all = BTreeMap::new();
    for shard in checkpoint.files() {
        for entry in shard.entries() {
            all.insert((shard.file_name(), entry.name.as_str()), Stored { shard, entry });
        }
    }
    all
}

/// What all tensors are checked by.
struct Job<'a> {
    config: &'a Config,
    pattern: Pattern,
    options: &'a Options<'a>,
    sidecar: Option<&'a Sidecar>,
    sources: &'a BTreeMap<(&'a str, &'a str), Stored<'a>>,
}

type Found = (Option<Problem>, Option<(Line, Dtype)>);

impl Job<'_> {
    /// Checks one tensor; a line only for a projection.
    fn tensor(&self, stored: &Stored<'_>, shapes: &BTreeMap<String, [usize; 2]>) -> Found {
        let entry = stored.entry;
        let data = stored.shard.data(entry);
        // One that is missing, or of another type or shape, is already a problem of the folder.
        let source = self.sources.get(&(stored.shard.file_name(), entry.name.as_str()));
        let source = source.filter(|s| s.entry.dtype == entry.dtype && s.entry.shape == entry.shape);
        let source = source.map(|s| s.shard.data(s.entry));
        let dtype = Dtype::from_stored(entry.dtype);
        let shape = shapes.get(&entry.name).filter(|&shape| entry.shape == *shape);
        match (shape, dtype) {
            (Some(&[rows, cols]), Some(dtype)) => {
                let (problem, line) = self.projection(&entry.name, data, source, [rows, cols], dtype);
                (problem, Some((line, dtype)))
            }
            _ => (self.other(entry, data, source, dtype), None),
        }
    }

    fn projection(
        &self,
        name: &str,
        data: &[u8],
        source: Option<&[u8]>,
        [rows, cols]: [usize; 2],
        dtype: Dtype,
    ) -> (Option<Problem>, Line) {
        let pattern = self.pattern;
        let mask = self.options.mask.and_then(|set| set.get(name));
        let reference = Reference { pattern, source, mask, repaired: self.options.repaired };
        let found = scan(data, cols, dtype.size(), &reference);
        // Told to be dense by the mask or the sidecar, or found to be so.
        let told = match self.options.mask {
            Some(_) => mask.is_none(),
            None => self.sidecar.is_some_and(|s| s.dense.contains(name)),
        };
        let looks = found.kept.saturating_mul(100) >= (data.len() / dtype.size()) as u64 * 99;
        let dense = told || (self.options.allow_dense && mask.is_none() && looks);
        let at = |row, group, what| Some(Problem { place: name.into(), row, group, what });
        let mut violations = found.violations;
        let problem = if dense {
            violations = 0;
            match source {
                Some(source) if source != data && !self.options.repaired => {
                    violations = 1;
                    at(first_difference(data, source, cols * dtype.size()), None, UNTOUCHED.into())
                }
                None if is_pruned(&found) => {
                    violations = 1;
                    at(None, None, format!("must be dense, but has the pattern {pattern}"))
                }
                _ => None,
            }
        } else if let Err(MaskError::Indivisible { .. }) = pattern.groups(cols) {
            violations = violations.max(1);
            at(None, None, format!("its {cols} in_features are no multiple of {}", pattern.m()))
        } else {
            found.first.and_then(|(row, group, fault)| {
                let whole = if looks { "; the whole projection is dense" } else { "" };
                at(Some(row), Some(group), format!("{}{whole}", fault.words(pattern)))
            })
        };
        let line = Line {
            name: name.into(),
            dtype: dtype.to_string(),
            rows,
            cols,
            kept: found.kept,
            short_groups: found.short_groups,
            violations,
            dense,
            backends: fitness(pattern, dense, dtype, rows, cols),
        };
        (problem, line)
    }

    /// A tensor that is no projection.
    fn other(
        &self,
        entry: &ShardEntry,
        data: &[u8],
        source: Option<&[u8]>,
        dtype: Option<Dtype>,
    ) -> Option<Problem> {
        let at = |row, what| Some(Problem { place: entry.name.clone(), row, group: None, what });
        let cols = entry.shape.last().copied().unwrap_or(1);
        match (source, dtype) {
            (Some(source), _) if source != data => {
                let row = dtype.and_then(|dtype| first_difference(data, source, cols * dtype.size()));
                at(row, UNTOUCHED.into())
            }
            (None, Some(dtype)) if self.config.hidden_size >= self.pattern.m() => {
                let reference =
                    Reference { pattern: self.pattern, source: None, mask: None, repaired: false };
                let found = scan(data, cols, dtype.size(), &reference);
                let what = || format!("must stay dense, but has the pattern {}", self.pattern);
                is_pruned(&found).then(what).and_then(|what| at(None, what))
            }
            _ => None,
        }
    }
}

const UNTOUCHED: &str = "differs from the source, but is not pruned and must be bit-equal";

/// Whether most groups that hold anything keep at most N. Rows of zeros are common: embeddings of tokens never seen.
fn is_pruned(found: &Scan) -> bool {
    found.used_groups > 0 && found.loose_groups * 2 < found.used_groups
}

fn first_difference(a: &[u8], b: &[u8], row_bytes: usize) -> Option<usize> {
    let row = row_bytes.max(1);
    a.chunks(row).zip(b.chunks(row)).position(|(a, b)| a != b)
}
