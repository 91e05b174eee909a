//! What is in a mask file or a masked folder: pattern, sparsity, and how far it agrees with another.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::export::hf::permutation_of;
use crate::mask::{BitMask, Census, MaskError, MaskReader, Masks, Pattern, npz};
use crate::model::Architecture;

use super::VerifyError;
use super::opened::Opened;
use super::scan::kept_mask;

/// The mask in a run's folder.
const RUN_MASK: &str = "mask.safetensors";
/// The masked model in a run's folder.
const RUN_MODEL: &str = "model";

/// What was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Inspection {
    /// The file or folder that was read: of a run's folder its mask, or else its model.
    #[serde(serialize_with = "crate::fsio::as_text")]
    pub path: PathBuf,
    /// `mask`, `dense`, `torch24` or `ct24`.
    pub kind: &'static str,
    /// The mask file's pattern; of a folder the strictest usual one that all of its sparse projections obey.
    pub pattern: Option<Pattern>,
    /// What chose the mask, where a mask file says so.
    pub method: Option<String>,
    /// The hash of the permutation that the channels are in, where the file or folder says so.
    pub permutation: Option<String>,
    /// Whether the other one is in another order of channels, so that agreement between them means nothing.
    pub other_order: bool,
    /// Weights of the projections listed.
    pub weights: u64,
    /// Those that are kept; in a folder those that are not +0.0.
    pub kept: u64,
    /// The projections: of a mask file those with a mask.
    pub projections: Vec<Row>,
    /// Beside the other file or folder.
    pub agreement: Option<Agreement>,
    /// Projections that only one of the two has.
    pub only_in_one: Vec<String>,
}

/// One projection.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The parameter name.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Weights kept.
    pub kept: u64,
    /// The mask file's pattern; in a folder the strictest usual one that every group obeys, none where it obeys none.
    pub pattern: Option<Pattern>,
    /// Beside the other's projection of that name.
    pub agreement: Option<Agreement>,
}

/// How far two masks agree.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct Agreement {
    /// Groups compared: of the pattern's size, of 4 where there is no pattern.
    pub groups: u64,
    /// Groups that keep the same weights.
    pub identical_groups: u64,
    /// Weights that the first keeps.
    pub kept: u64,
    /// Those that the second keeps, too.
    pub shared: u64,
}

impl Agreement {
    /// Identical groups, as a fraction.
    pub fn groups_fraction(&self) -> f64 {
        self.identical_groups as f64 / self.groups.max(1) as f64
    }

    /// Of the weights that the first keeps, the fraction that the second keeps.
    pub fn shared_fraction(&self) -> f64 {
        self.shared as f64 / self.kept.max(1) as f64
    }

    fn add(&mut self, other: &Self) {
        self.groups += other.groups;
        self.identical_groups += other.identical_groups;
        self.kept += other.kept;
        self.shared += other.shared;
    }
}

/// Inspects a mask file, a model folder in any of the formats of `export`, or the folder of a run; `other` likewise, to be compared
/// with it. An npz file does not say its shapes: they come from the folder `model`, else from the other of the two. One projection is in
/// memory at a time, of an npz file all masks.
///
/// # Errors
/// What cannot be read; two that have projections of one name and different shapes.
pub fn inspect(path: &Path, other: Option<&Path>, model: Option<&Path>) -> Result<Inspection, VerifyError> {
    let config = [model, Some(path), other].into_iter().flatten().find_map(config_of);
    let subject = Subject::open(path, config.as_ref())?;
    let other = other.map(|path| Subject::open(path, config.as_ref())).transpose()?;
    let names = subject.names();
    let mut only_in_one: Vec<String> = Vec::new();
    if let Some(other) = &other {
        let theirs = other.names();
        let lonely = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|name| !b.contains(name)).cloned().collect()
        };
        only_in_one = lonely(&names, &theirs);
        only_in_one.extend(lonely(&theirs, &names));
    }
    let mut census = Census::default();
    let mut rows = Vec::new();
    for name in names {
        let mask = subject.mask(&name)?;
        let own = Census::of(&mask);
        let pattern = subject.pattern().or_else(|| own.obeyed());
        if pattern.is_some() {
            census.join(&own);
        }
        let agreement = match &other {
            Some(other) if !only_in_one.contains(&name) => {
                Some(compare(&name, &mask, &*other.mask(&name)?, pattern.or(other.pattern()))?)
            }
            _ => None,
        };
        let (rows_, cols, kept) = (mask.rows(), mask.cols(), mask.count_ones());
        rows.push(Row { name, rows: rows_, cols, kept, pattern, agreement });
    }
    let total = |agreements: Vec<Agreement>| {
        agreements.into_iter().fold(Agreement::default(), |mut sum, a| {
            sum.add(&a);
            sum
        })
    };
    Ok(Inspection {
        kind: subject.kind(),
        pattern: subject.pattern().or_else(|| census.obeyed()),
        method: subject.method(),
        other_order: other.as_ref().is_some_and(|other| other.permutation() != subject.permutation()),
        permutation: subject.permutation(),
        weights: rows.iter().map(|r| r.rows as u64 * r.cols as u64).sum(),
        kept: rows.iter().map(|r| r.kept).sum(),
        agreement: other.is_some().then(|| total(rows.iter().filter_map(|r| r.agreement).collect())),
        only_in_one,
        projections: rows,
        path: subject.path,
    })
}

/// Two masks of one projection, by groups of the pattern's size.
fn compare(name: &str, a: &BitMask, b: &BitMask, pattern: Option<Pattern>) -> Result<Agreement, VerifyError> {
    let (first, second) = ([a.rows(), a.cols()], [b.rows(), b.cols()]);
    if first != second {
        return Err(VerifyError::Shapes { tensor: name.into(), first, second });
    }
    let pattern = pattern.unwrap_or_default();
    let groups = a.rows() as u64 * (a.cols() / pattern.m()) as u64;
    let shared = a.words().iter().zip(b.words()).map(|(a, b)| u64::from((a & b).count_ones())).sum();
    let identical_groups = groups - a.groups_changed(b, pattern).min(groups);
    Ok(Agreement { groups, identical_groups, kept: a.count_ones(), shared })
}

/// The configuration of a folder, where it has one that can be read.
fn config_of(path: &Path) -> Option<Architecture> {
    [path.to_path_buf(), path.join(RUN_MODEL)]
        .iter()
        .find_map(|dir| Some(Architecture::read_packed(dir).ok()?.0))
}

/// A file or folder, opened.
struct Subject {
    path: PathBuf,
    content: Content,
}

enum Content {
    Mask(Box<MaskReader>),
    Model(Box<Opened>),
}

impl Subject {
    fn open(path: &Path, config: Option<&Architecture>) -> Result<Self, VerifyError> {
        if path.is_dir() {
            let mask = path.join(RUN_MASK);
            return match [path.to_path_buf(), path.join(RUN_MODEL)]
                .map(|p| (p.join("config.json").is_file(), p))
            {
                [(true, dir), _] => {
                    Ok(Self { content: Content::Model(Box::new(Opened::open(&dir)?)), path: dir })
                }
                _ if mask.is_file() => Self::open(&mask, config),
                [_, (true, dir)] => {
                    Ok(Self { content: Content::Model(Box::new(Opened::open(&dir)?)), path: dir })
                }
                _ => Err(VerifyError::NothingInside { folder: path.into() }),
            };
        }
        let mask = match config {
            Some(config) => MaskReader::open(path, &config.projections(), None)?,
            None if npz::is_npz(path)? => return Err(VerifyError::NoShapes { path: path.into() }),
            None => MaskReader::packed(path)?,
        };
        Ok(Self { path: path.into(), content: Content::Mask(Box::new(mask)) })
    }

    fn kind(&self) -> &'static str {
        match &self.content {
            Content::Mask(_) => "mask",
            Content::Model(opened) => opened.format(),
        }
    }

    fn pattern(&self) -> Option<Pattern> {
        match &self.content {
            Content::Mask(file) => Some(file.pattern()),
            Content::Model(_) => None,
        }
    }

    fn method(&self) -> Option<String> {
        match &self.content {
            Content::Mask(file) => Some(file.provenance.method.clone()),
            Content::Model(_) => None,
        }
    }

    fn permutation(&self) -> Option<String> {
        match &self.content {
            Content::Mask(file) => file.permutation.clone(),
            Content::Model(_) => permutation_of(&self.path),
        }
    }

    /// The projections, block by block.
    fn names(&self) -> Vec<String> {
        match &self.content {
            Content::Mask(file) => {
                // As in a model: by the block's number first.
                let number = |name: &str| name.split('.').find_map(|part| part.parse::<usize>().ok());
                let by_block: BTreeMap<_, _> =
                    file.shapes().into_keys().map(|name| ((number(name), name), name.to_string())).collect();
                by_block.into_values().collect()
            }
            Content::Model(opened) => opened.config().projections().into_iter().map(|p| p.name).collect(),
        }
    }

    fn mask(&self, name: &str) -> Result<Cow<'_, BitMask>, VerifyError> {
        match &self.content {
            Content::Mask(file) => {
                let missing = || MaskError::NoProjection { tensor: name.into() };
                Ok(file.mask(name)?.ok_or_else(missing)?)
            }
            Content::Model(opened) => {
                let shape = opened.config().projections().into_iter().find(|p| p.name == name);
                let [rows, cols] = shape.map(|p| [p.rows, p.cols]).unwrap_or_default();
                let (dtype, data) = opened.weight(name)?;
                let mask = kept_mask(&data, rows, cols, dtype.size()).map_err(|e| e.within(name))?;
                Ok(Cow::Owned(mask))
            }
        }
    }
}
