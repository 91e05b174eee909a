//! Checkpoints of a layer-by-layer run: every finished block is a pair of files and an entry of the manifest.
//!
//! A block's files are written and flushed first, then the manifest is replaced: what it lists is whole. It also holds all that a
//! mask depends on, so that a run only goes on under the conditions under which it was begun.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::conditions::Conditions;
use super::{BlockResult, Learned, ProjectionReport, PruneError};
use crate::folder::{FolderError, RunPaths};
use crate::fsio;
use crate::mask::{BitMask, MaskFile, MaskSet, Pattern, Provenance};
use crate::model::{Checkpoint, OutTensor, Overlay, write_safetensors};

const FORMAT: &str = "maskwright-run";
const VERSION: u32 = 2;

/// A finished block in the manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    block: usize,
    /// Whether kept weights changed, so that there is a file of them.
    repaired: bool,
    projections: Vec<ProjectionReport>,
    /// What training made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learned: Option<Learned>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    /// What the masks depend on.
    conditions: Conditions,
    blocks: Vec<Entry>,
}

/// The finished blocks of a run, on the disk.
pub struct BlockStore {
    paths: RunPaths,
    manifest: Manifest,
    pattern: Pattern,
    provenance: Provenance,
}

impl BlockStore {
    /// The store of a new run, or stage of one, whose folder exists. Writes the manifest.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn create(
        paths: &RunPaths,
        conditions: Conditions,
        pattern: Pattern,
        provenance: Provenance,
    ) -> Result<Self, PruneError> {
        fsio::create_folder(&paths.blocks())?;
        let manifest = Manifest { format: FORMAT.into(), version: VERSION, conditions, blocks: Vec::new() };
        let store = Self { paths: paths.clone(), manifest, pattern, provenance };
        store.write_manifest()?;
        Ok(store)
    }

    /// The store of an unfinished run or stage, if its conditions are these. Changes nothing.
    ///
    /// # Errors
    /// [`FolderError::NoRun`] where there is none, [`FolderError::Resume`] naming the first condition that differs or what is
    /// damaged.
    pub fn open(
        paths: &RunPaths,
        conditions: &Conditions,
        pattern: Pattern,
        provenance: Provenance,
    ) -> Result<Self, PruneError> {
        let path = || paths.root().to_path_buf();
        let text = fs::read_to_string(paths.manifest()).map_err(|_| FolderError::NoRun { path: path() })?;
        let refuse = |problem: String| FolderError::Resume { path: path(), problem };
        // Of another version other fields may be there.
        let of_version = |value: &serde_json::Value| value["format"] == FORMAT && value["version"] == VERSION;
        let value =
            serde_json::from_str(&text).map_err(|e| refuse(format!("its manifest.json is damaged ({e})")))?;
        if !of_version(&value) {
            return Err(refuse("its manifest.json is of another version of this program".into()).into());
        }
        let manifest: Manifest = serde_json::from_value(value)
            .map_err(|e| refuse(format!("its manifest.json is damaged ({e})")))?;
        if let Some(problem) = conditions.difference_from(&manifest.conditions) {
            return Err(refuse(problem).into());
        }
        if manifest.blocks.iter().enumerate().any(|(i, b)| b.block != i) {
            return Err(refuse("its manifest.json does not list the blocks in order".into()).into());
        }
        Ok(Self { paths: paths.clone(), manifest, pattern, provenance })
    }

    /// Removes temporary files of a run that was killed.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn remove_leftovers(&self) -> Result<(), PruneError> {
        for folder in [self.paths.root().to_path_buf(), self.paths.blocks()] {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for path in entries.flatten().map(|e| e.path()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !(name.starts_with('.') && name.contains(".tmp-")) {
                    continue;
                }
                let removed =
                    if path.is_dir() { fsio::remove_dir_all(&path) } else { fsio::remove_file(&path) };
                removed.map_err(FolderError::os(path))?;
            }
        }
        Ok(())
    }

    fn write_manifest(&self) -> Result<(), PruneError> {
        let text = serde_json::to_string_pretty(&self.manifest)
            .map_err(|e| FolderError::os(self.paths.manifest())(e.into()))?;
        Ok(fsio::write_bytes(&self.paths.manifest(), format!("{text}\n").as_bytes())?)
    }

    /// Number of finished blocks.
    pub fn len(&self) -> usize {
        self.manifest.blocks.len()
    }

    /// Whether no block is finished.
    pub fn is_empty(&self) -> bool {
        self.manifest.blocks.is_empty()
    }

    /// How the projections of the finished blocks came out.
    pub fn reports(&self) -> impl Iterator<Item = &ProjectionReport> {
        self.manifest.blocks.iter().flat_map(|b| &b.projections)
    }

    /// What training made of the finished blocks.
    pub fn learned(&self) -> impl Iterator<Item = &Learned> {
        self.manifest.blocks.iter().filter_map(|b| b.learned.as_ref())
    }

    /// Keeps a finished block, which must be the next one.
    ///
    /// # Errors
    /// What the system refuses; the block is then not listed.
    pub fn add(&mut self, checkpoint: &Checkpoint, result: &BlockResult) -> Result<(), PruneError> {
        let set = MaskSet { pattern: self.pattern, masks: result.masks.clone() };
        let path = self.paths.block_mask(result.block);
        MaskFile::new(set, self.provenance.clone(), checkpoint)?.write(&path)?;
        if !result.weights.is_empty() {
            let mut tensors = Vec::new();
            for (name, data) in &result.weights {
                let view = checkpoint.tensor(name)?;
                let dtype = view.dtype.to_string();
                tensors.push((name, dtype, view.shape.to_vec(), data));
            }
            let out: Vec<OutTensor<'_>> = tensors
                .iter()
                .map(|(name, dtype, shape, data)| OutTensor { name, dtype, shape: shape.clone(), data })
                .collect();
            write_safetensors(&self.paths.block_weights(result.block), Map::new(), &out)?;
        }
        self.manifest.blocks.push(Entry {
            block: result.block,
            repaired: !result.weights.is_empty(),
            projections: result.reports.clone(),
            learned: result.learned.clone(),
        });
        self.write_manifest()
    }

    /// Reads the masks of all finished blocks, each of which must have been made for the tensors of `checkpoint`.
    ///
    /// # Errors
    /// A damaged file; [`FolderError::Resume`] for other weights.
    pub fn masks(&self, checkpoint: &Checkpoint) -> Result<Vec<BTreeMap<String, BitMask>>, PruneError> {
        let mut out = Vec::new();
        for entry in &self.manifest.blocks {
            let file = MaskFile::read(&self.paths.block_mask(entry.block))?;
            if let Some(name) = file.differing_sources(checkpoint)?.first() {
                let problem = format!("{name} of the model is not the one that it was begun with");
                return Err(FolderError::Resume { path: self.paths.root().into(), problem }.into());
            }
            out.push(file.set.masks);
        }
        Ok(out)
    }

    /// The model's weights with those that finished blocks changed.
    ///
    /// # Errors
    /// A damaged file.
    pub fn overlay<'a>(&self, checkpoint: &'a Checkpoint) -> Result<Overlay<'a>, PruneError> {
        let mut overlay = Overlay::new(checkpoint);
        self.add_to(&mut overlay)?;
        Ok(overlay)
    }

    /// Lets the weights that finished blocks changed replace those of `overlay`.
    ///
    /// # Errors
    /// A damaged file.
    pub fn add_to(&self, overlay: &mut Overlay<'_>) -> Result<(), PruneError> {
        for entry in self.manifest.blocks.iter().filter(|b| b.repaired) {
            overlay.add(&self.paths.block_weights(entry.block))?;
        }
        Ok(())
    }

    /// Removes the files of the blocks, unless they hold weights that are nowhere else, and the manifest.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn finish(self, keep_weights: bool) -> Result<(), PruneError> {
        if keep_weights {
            for entry in &self.manifest.blocks {
                let path = self.paths.block_mask(entry.block);
                fsio::remove_file(&path).map_err(FolderError::os(path))?;
            }
            // Empty where no block is kept in it.
            let _ = fsio::remove_dir(&self.paths.blocks());
        } else {
            fsio::remove_dir_all(&self.paths.blocks()).map_err(FolderError::os(self.paths.blocks()))?;
        }
        Ok(fsio::remove_file(&self.paths.manifest()).map_err(FolderError::os(self.paths.manifest()))?)
    }
}
