//! Checkpoints of a layer-by-layer run: every finished block is a pair of files and an entry of the manifest.
//!
//! A block's files are written and flushed first, then the manifest is replaced: what it lists is whole. It also holds all that a
//! mask depends on, so that a run only goes on under the conditions under which it was begun.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::oneshot::ProjectionReport;
use super::schedule::BlockResult;
use super::{Learned, PruneError};
use crate::fsio;
use crate::mask::{BitMask, MaskFile, MaskSet, Pattern, Provenance};
use crate::model::{Checkpoint, OutTensor, Overlay, write_safetensors};

const MANIFEST: &str = "manifest.json";
/// The folder of a run, or of one of its stages, with the files of its blocks.
pub const BLOCKS: &str = "blocks";
const FORMAT: &str = "maskwright-run";
const VERSION: u32 = 1;

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
    /// What the masks depend on, by name.
    conditions: Map<String, Value>,
    blocks: Vec<Entry>,
}

/// The finished blocks of a run, on the disk.
pub struct BlockStore {
    folder: PathBuf,
    manifest: Manifest,
    pattern: Pattern,
    provenance: Provenance,
}

impl BlockStore {
    /// The store of a new run in `folder`, which exists. Writes the manifest.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn create(
        folder: &Path,
        conditions: Map<String, Value>,
        pattern: Pattern,
        provenance: Provenance,
    ) -> Result<Self, PruneError> {
        fsio::create_folder(&folder.join(BLOCKS))?;
        let manifest = Manifest { format: FORMAT.into(), version: VERSION, conditions, blocks: Vec::new() };
        let store = Self { folder: folder.into(), manifest, pattern, provenance };
        store.write_manifest()?;
        Ok(store)
    }

    /// The store of an unfinished run, if its conditions are these.
    ///
    /// # Errors
    /// [`PruneError::NoRun`] where there is none, [`PruneError::Resume`] naming the first condition that differs or what is
    /// damaged.
    pub fn open(
        folder: &Path,
        conditions: &Map<String, Value>,
        pattern: Pattern,
        provenance: Provenance,
    ) -> Result<Self, PruneError> {
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|_| PruneError::NoRun { path: folder.into() })?;
        let refuse = |problem: String| PruneError::Resume { path: folder.into(), problem };
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| refuse(format!("its {MANIFEST} is damaged ({e})")))?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            return Err(refuse(format!("its {MANIFEST} is of another version of this program")));
        }
        if let Some(problem) = difference(&manifest.conditions, conditions) {
            return Err(refuse(problem));
        }
        if manifest.blocks.iter().enumerate().any(|(i, b)| b.block != i) {
            return Err(refuse(format!("its {MANIFEST} does not list the blocks in order")));
        }
        let store = Self { folder: folder.into(), manifest, pattern, provenance };
        store.remove_leftovers()?;
        Ok(store)
    }

    /// Temporary files of a run that was killed.
    fn remove_leftovers(&self) -> Result<(), PruneError> {
        for folder in [self.folder.clone(), self.folder.join(BLOCKS)] {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for path in entries.flatten().map(|e| e.path()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !(name.starts_with('.') && name.contains(".tmp-")) {
                    continue;
                }
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(|source| PruneError::RunFolder { path: path.clone(), source })?;
            }
        }
        Ok(())
    }

    fn write_manifest(&self) -> Result<(), PruneError> {
        let text = serde_json::to_string_pretty(&self.manifest)
            .map_err(|e| PruneError::Resume { path: self.folder.clone(), problem: e.to_string() })?;
        Ok(fsio::write_bytes(&self.folder.join(MANIFEST), format!("{text}\n").as_bytes())?)
    }

    fn mask_path(&self, block: usize) -> PathBuf {
        self.folder.join(BLOCKS).join(format!("{block:04}.mask.safetensors"))
    }

    fn weights_path(&self, block: usize) -> PathBuf {
        self.folder.join(BLOCKS).join(format!("{block:04}.weights.safetensors"))
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
        let path = self.mask_path(result.block);
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
            write_safetensors(&self.weights_path(result.block), Map::new(), &out)?;
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
    /// A damaged file; [`PruneError::Resume`] for other weights.
    pub fn masks(&self, checkpoint: &Checkpoint) -> Result<Vec<BTreeMap<String, BitMask>>, PruneError> {
        let mut out = Vec::new();
        for entry in &self.manifest.blocks {
            let file = MaskFile::read(&self.mask_path(entry.block))?;
            if let Some(name) = file.differing_sources(checkpoint)?.first() {
                let problem = format!("{name} of the model is not the one that it was begun with");
                return Err(PruneError::Resume { path: self.folder.clone(), problem });
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
            overlay.add(&self.weights_path(entry.block))?;
        }
        Ok(())
    }

    /// Removes the files of the blocks, unless they hold weights that are nowhere else, and the manifest.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn finish(self, keep_weights: bool) -> Result<(), PruneError> {
        let fail = |path: PathBuf| move |source| PruneError::RunFolder { path, source };
        let blocks = self.folder.join(BLOCKS);
        if keep_weights {
            for entry in &self.manifest.blocks {
                let path = self.mask_path(entry.block);
                fs::remove_file(&path).map_err(fail(path))?;
            }
        } else {
            fs::remove_dir_all(&blocks).map_err(fail(blocks))?;
        }
        let path = self.folder.join(MANIFEST);
        fs::remove_file(&path).map_err(fail(path))
    }
}

/// The first condition that differs, in words.
fn difference(was: &Map<String, Value>, now: &Map<String, Value>) -> Option<String> {
    for (key, value) in now {
        match was.get(key) {
            None => return Some(format!("it was begun without {key}, now it is {value}")),
            Some(old) if old != value => {
                return Some(format!("it was begun with {key} {old}, now it is {value}"));
            }
            Some(_) => {}
        }
    }
    was.keys().find(|k| !now.contains_key(*k)).map(|k| format!("it was begun with {k}, now there is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_is_named() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let a = map(json!({ "windows": 128, "method": "descent" }));
        assert_eq!(difference(&a, &a), None);
        let b = map(json!({ "windows": 64, "method": "descent" }));
        assert_eq!(difference(&a, &b).unwrap(), "it was begun with windows 128, now it is 64");
        let c = map(json!({ "windows": 128 }));
        assert_eq!(difference(&a, &c).unwrap(), "it was begun with method, now there is none");
        assert_eq!(difference(&c, &a).unwrap(), "it was begun without method, now it is \"descent\"");
    }
}
