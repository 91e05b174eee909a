//! One tensor of a folder: is it what it must be?

use std::collections::BTreeMap;

use crate::export::LayoutError;
use crate::mask::{MaskError, Pattern};
use crate::model::{Architecture, Dtype, Shard, ShardEntry};

use super::scan::{Reference, Scan, scan};
use super::sidecar::Sidecar;
use super::{Line, Options, Problem, fitness};

/// A tensor with the file it lies in.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) shard: &'a Shard,
    pub(super) entry: &'a ShardEntry,
}

/// The stored bytes of a projection, or what it was unpacked to.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: [usize; 2],
    pub(super) data: &'a [u8],
    /// Unpacked: zeros may have lost their sign.
    pub(super) unpacked: bool,
}

/// What all tensors are checked by.
pub(super) struct Job<'a> {
    pub(super) config: &'a Architecture,
    pub(super) pattern: Pattern,
    pub(super) options: &'a Options<'a>,
    pub(super) sidecar: Option<&'a Sidecar>,
    /// The projections of the configuration.
    pub(super) shapes: BTreeMap<String, [usize; 2]>,
}

/// What is wrong with a tensor; a line for a projection.
pub(super) type Found = (Option<Problem>, Option<(Line, Dtype)>);

impl Job<'_> {
    /// Checks one tensor, beside the source's of that name; a line only for a projection.
    pub(super) fn tensor(&self, stored: &Stored<'_>, source: Option<Stored<'_>>) -> Found {
        let entry = stored.entry;
        let data = stored.shard.data(entry);
        // One that is missing, or of another type or shape, is already a problem of the folder.
        let source = source.filter(|s| s.entry.dtype == entry.dtype && s.entry.shape == entry.shape);
        let source = source.map(|s| s.shard.data(s.entry));
        let dtype = Dtype::from_stored(entry.dtype);
        let shape = self.shapes.get(&entry.name).filter(|&shape| entry.shape == *shape);
        match (shape, dtype) {
            (Some(&shape), Some(dtype)) => {
                let weights = Weights { name: &entry.name, dtype, shape, data, unpacked: false };
                self.projection(&weights, source)
            }
            _ => (self.other(entry, data, source, dtype), None),
        }
    }

    /// A projection that could not be unpacked, or whose mask cannot be read.
    pub(super) fn broken(&self, name: &str, shape: [usize; 2], dtype: Dtype, error: LayoutError) -> Found {
        let (row, group, what) = match error {
            LayoutError::Group { row, group, what } => (Some(row), Some(group), what),
            other => (None, None, other.to_string()),
        };
        let [rows, cols] = shape;
        let line = Line {
            name: name.into(),
            dtype: dtype.to_string(),
            rows,
            cols,
            kept: 0,
            short_groups: 0,
            violations: 1,
            dense: false,
            backends: fitness(self.pattern, false, dtype, rows, cols),
        };
        (Some(Problem { place: name.into(), row, group, what }), Some((line, dtype)))
    }

    /// Checks a projection of which the source has these bytes.
    pub(super) fn projection(&self, weights: &Weights<'_>, source: Option<&[u8]>) -> Found {
        let Weights { name, dtype, shape: [rows, cols], data, unpacked } = *weights;
        let pattern = self.pattern;
        let mask = match self.options.mask.map(|masks| masks.mask(name)).transpose() {
            Ok(mask) => mask.flatten(),
            Err(e) => return self.broken(name, [rows, cols], dtype, LayoutError::Unfit(e.to_string())),
        };
        let mask = mask.as_deref();
        let reference = Reference { pattern, source, mask, repaired: self.options.repaired, unpacked };
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
        (problem, Some((line, dtype)))
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
                let row =
                    dtype.and_then(|dtype| first_difference(data, source, cols.saturating_mul(dtype.size())));
                at(row, UNTOUCHED.into())
            }
            (None, Some(dtype)) if self.config.hidden_size >= self.pattern.m() => {
                let reference = Reference {
                    pattern: self.pattern,
                    source: None,
                    mask: None,
                    repaired: false,
                    unpacked: false,
                };
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
