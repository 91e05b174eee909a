//! The mask file: a safetensors file with one U8 tensor `<parameter name>.nm_index` per projection, holding the packed
//! ranks of its groups (`rank.rs`), and the following strings in `__metadata__`:
//!
//! | key | value |
//! |---|---|
//! | `format` | `maskwright-mask` |
//! | `format_version` | `1`; `2` where the mask belongs to a permuted model |
//! | `pattern` | `2:4` |
//! | `meaning` | `keep 2 of 4 consecutive weights along in_features` |
//! | `order` | how ranks are numbered |
//! | `packing` | how ranks are packed |
//! | `method` | what chose the mask |
//! | `seed` | the seed, decimal |
//! | `written_by` | `maskwright` and its version |
//! | `permutation` | the hash of the permutation that the model's channels are in, of a permuted model ([`crate::model::Permutation`]) |
//! | `tensors` | JSON: parameter name to `{"shape":[rows,cols],"source_dtype":"F16","source_sha256":"..."}`, the hash being of the dense tensor's stored bytes |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fsio::Destination;
use crate::model::{Checkpoint, OutTensor, clip, write_safetensors};

use super::rank::{Packing, pack};
use super::{MaskError, MaskSet, Masks};

pub(super) const FORMAT: &str = "maskwright-mask";
pub(super) const VERSION: &str = "1";
/// Of a mask for a permuted model, which earlier versions would lay on the model as it was.
pub(super) const VERSION_PERMUTED: &str = "2";
pub(super) const ORDER: &str =
    "lexicographic in the kept positions; groups of the flattened tensor, row-major";
pub(super) const SUFFIX: &str = ".nm_index";
/// More rows or columns than any projection has.
const MAX_SIDE: usize = 1 << 24;

/// How a mask came to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provenance {
    /// What chose the mask: `magnitude`, `wanda`, `maskpro`.
    pub method: String,
    /// The seed of the run.
    pub seed: u64,
    /// The program and its version.
    pub written_by: String,
}

impl Provenance {
    /// Of a mask that this program makes now.
    pub fn new(method: impl Into<String>, seed: u64) -> Self {
        let written_by = concat!("maskwright ", env!("CARGO_PKG_VERSION")).into();
        Self { method: method.into(), seed, written_by }
    }
}

/// The dense tensor that a mask was made for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceTensor {
    /// Output and input features.
    pub shape: [usize; 2],
    /// The type it is stored in, as in a safetensors header.
    pub source_dtype: String,
    /// SHA-256 of the stored bytes, hexadecimal.
    pub source_sha256: String,
}

/// The content of a mask file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskFile {
    /// The masks; all strict.
    pub set: MaskSet,
    /// How they came to be.
    pub provenance: Provenance,
    /// The dense tensors they were made for, by parameter name: the same keys as the masks, or none at all where the file does not
    /// say.
    pub sources: BTreeMap<String, SourceTensor>,
    /// The hash of the permutation that the model's channels are in, of a permuted model.
    pub permutation: Option<String>,
}

impl MaskFile {
    /// Puts together the file of a set of masks made for `checkpoint`. Hashes each masked tensor once.
    ///
    /// # Errors
    /// [`MaskError::Model`] when the checkpoint lacks a tensor, [`MaskError::Shape`] when it has another shape.
    pub fn new(set: MaskSet, provenance: Provenance, checkpoint: &Checkpoint) -> Result<Self, MaskError> {
        check_shapes(&set, checkpoint)?;
        let names: Vec<String> = set.masks.keys().cloned().collect();
        let hashes = checkpoint.sha256(&names)?;
        let mut sources = BTreeMap::new();
        for ((name, mask), source_sha256) in set.masks.iter().zip(hashes) {
            let source_dtype = checkpoint.tensor(name)?.dtype.to_string();
            let shape = [mask.rows(), mask.cols()];
            sources.insert(name.clone(), SourceTensor { shape, source_dtype, source_sha256 });
        }
        Ok(Self { set, provenance, sources, permutation: checkpoint.permutation().map(String::from) })
    }

    /// Writes the file at once and whole. Every mask is checked first.
    ///
    /// # Errors
    /// [`MaskError::In`] for a mask that is not strict, [`MaskError::Write`].
    pub fn write(&self, to: &(impl Destination + ?Sized)) -> Result<(), MaskError> {
        let pattern = self.set.pattern;
        let unusable = |problem: String| MaskError::File { path: to.path().into(), problem };
        let mut packed = Vec::new();
        for (name, mask) in &self.set.masks {
            let bytes = pack(mask, pattern).map_err(|e| e.within(name))?;
            packed.push((format!("{name}{SUFFIX}"), bytes));
        }
        let tensors = serde_json::to_string(&self.sources).map_err(|e| unusable(e.to_string()))?;
        let mut metadata = Map::new();
        for (key, value) in [
            ("format", FORMAT.into()),
            ("format_version", if self.permutation.is_some() { VERSION_PERMUTED } else { VERSION }.into()),
            ("pattern", pattern.to_string()),
            ("meaning", format!("{} consecutive weights along in_features", pattern.words())),
            ("order", ORDER.into()),
            ("packing", Packing::of(pattern).name()),
            ("method", self.provenance.method.clone()),
            ("seed", self.provenance.seed.to_string()),
            ("written_by", self.provenance.written_by.clone()),
            ("tensors", tensors),
        ] {
            metadata.insert(key.into(), Value::String(value));
        }
        if let Some(permutation) = &self.permutation {
            metadata.insert("permutation".into(), Value::String(permutation.clone()));
        }
        let out: Vec<OutTensor<'_>> = packed
            .iter()
            .map(|(name, data)| OutTensor { name, dtype: "U8", shape: vec![data.len()], data })
            .collect();
        Ok(write_safetensors(to, metadata, &out)?)
    }

    /// Compares with a model: every mask must belong to a tensor of the same shape. Returns the parameter names whose
    /// stored bytes differ from the ones that the mask was made for (empty: it is the very same model, or the file does not say). What to do about
    /// those is the caller's choice: a fine-tuned copy is a fair use, another model of the same shape is not.
    ///
    /// # Errors
    /// [`MaskError::Shape`], [`MaskError::Model`].
    pub fn differing_sources(&self, checkpoint: &Checkpoint) -> Result<Vec<String>, MaskError> {
        differing(&self.set, &self.sources, checkpoint)
    }
}

/// See [`MaskFile::differing_sources`].
pub(super) fn differing(
    masks: &dyn Masks,
    sources: &BTreeMap<String, SourceTensor>,
    checkpoint: &Checkpoint,
) -> Result<Vec<String>, MaskError> {
    check_shapes(masks, checkpoint)?;
    let names: Vec<String> = sources.keys().cloned().collect();
    let hashes = checkpoint.sha256(&names)?;
    let pairs = sources.iter().zip(hashes);
    Ok(pairs.filter(|((_, s), hash)| s.source_sha256 != *hash).map(|((name, _), _)| name.clone()).collect())
}

/// Every mask has a tensor of its shape.
fn check_shapes(masks: &dyn Masks, checkpoint: &Checkpoint) -> Result<(), MaskError> {
    for (name, found) in masks.shapes() {
        let tensor = checkpoint.tensor(name).map_err(|_| MaskError::NoProjection { tensor: name.into() })?;
        if tensor.shape != found {
            let expected = [tensor.rows(), tensor.row_len()];
            return Err(MaskError::Shape { tensor: name.into(), expected, found });
        }
    }
    Ok(())
}

/// The description of a tensor, as far as it can be checked alone.
pub(super) fn check_source(source: &SourceTensor) -> Result<(), String> {
    let [rows, cols] = source.shape;
    if ![rows, cols].iter().all(|side| (1..=MAX_SIDE).contains(side)) {
        return Err(format!("the shape {rows} x {cols} cannot be"));
    }
    let hash = &source.source_sha256;
    if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("its `source_sha256` is {:?}, expected 64 hexadecimal digits", clip(hash, 80)));
    }
    Ok(())
}
