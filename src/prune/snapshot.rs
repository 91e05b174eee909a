//! Training in the middle, on the disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, json};

use super::PruneError;
use crate::folder::FolderError;
use crate::model::{OutTensor, Shard, write_safetensors};

/// All that a step depends on and that changes from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The block under training, 0 for the whole model.
    pub block: usize,
    /// The step that comes next.
    pub step: u32,
    /// MaskPro's tracker.
    pub tracker: f64,
    /// Contents of the buffers by name.
    pub tensors: BTreeMap<String, Vec<u8>>,
}

impl Snapshot {
    /// Writes it at once and whole.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write(&self, path: &Path) -> Result<(), PruneError> {
        let mut metadata = Map::new();
        for (key, value) in [("block", json!(self.block)), ("step", json!(self.step))] {
            metadata.insert(key.into(), value.to_string().into());
        }
        // Bits, since it must come back as it was.
        metadata.insert("tracker".into(), self.tracker.to_bits().to_string().into());
        let tensors: Vec<OutTensor<'_>> = self
            .tensors
            .iter()
            .map(|(name, data)| OutTensor { name, dtype: "U8", shape: vec![data.len()], data })
            .collect();
        Ok(write_safetensors(path, metadata, &tensors)?)
    }

    /// Reads it back; none where there is no such file.
    ///
    /// # Errors
    /// A damaged file.
    pub fn read(path: &Path) -> Result<Option<Self>, PruneError> {
        if !path.exists() {
            return Ok(None);
        }
        let shard = Shard::open(path)?;
        let damaged = || FolderError::Resume {
            path: path.into(),
            problem: "the state of training in it is damaged".into(),
        };
        let value = |key: &str| shard.metadata().iter().find(|(k, _)| k == key).map(|(_, v)| v);
        let number = |key: &str| -> Option<u64> { value(key)?.parse().ok() };
        let (block, step, tracker) = match (number("block"), number("step"), number("tracker")) {
            (Some(block), Some(step), Some(tracker)) => (block, step, tracker),
            _ => return Err(damaged().into()),
        };
        let tensors = shard.entries().iter().map(|e| (e.name.clone(), shard.data(e).to_vec())).collect();
        Ok(Some(Self {
            block: block as usize,
            step: u32::try_from(step).map_err(|_| damaged())?,
            tracker: f64::from_bits(tracker),
            tensors,
        }))
    }
}
