//! A checkpoint with some of its tensors replaced by those of other files: kept weights that were re-fitted.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Checkpoint, Dtype, ModelError, Shard, TensorView};

/// A checkpoint, and safetensors files whose tensors take the place of those of the same name.
pub struct Overlay<'a> {
    base: &'a Checkpoint,
    shards: Vec<Shard>,
    places: BTreeMap<String, (usize, usize)>,
}

impl<'a> Overlay<'a> {
    /// The checkpoint as it is.
    pub fn new(base: &'a Checkpoint) -> Self {
        Self { base, shards: Vec::new(), places: BTreeMap::new() }
    }

    /// The checkpoint behind it.
    pub fn base(&self) -> &'a Checkpoint {
        self.base
    }

    /// Maps a file and lets its tensors replace those of the checkpoint.
    ///
    /// # Errors
    /// A damaged file; a tensor that the checkpoint lacks or has in another shape or type.
    pub fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let shard = Shard::open(path)?;
        for (i, entry) in shard.entries().iter().enumerate() {
            let replaced = self.base.tensor(&entry.name)?;
            if entry.shape != replaced.shape || Dtype::from_stored(entry.dtype) != Some(replaced.dtype) {
                return Err(ModelError::Damaged {
                    path: path.into(),
                    problem: format!(
                        "{} has type {} and shape {:?}, the model has {} and {:?}",
                        entry.name, entry.dtype, entry.shape, replaced.dtype, replaced.shape
                    ),
                });
            }
            self.places.insert(entry.name.clone(), (self.shards.len(), i));
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Lets the files that `other` maps replace tensors here too.
    ///
    /// # Errors
    /// As [`Overlay::add`].
    pub fn extend(&mut self, other: &Overlay<'_>) -> Result<(), ModelError> {
        other.shards.iter().try_for_each(|shard| self.add(shard.path()))
    }

    /// Whether a tensor is replaced.
    pub fn replaces(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Whether any tensor is.
    pub fn replaces_any(&self) -> bool {
        !self.places.is_empty()
    }

    /// The tensor of that name, replaced or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn tensor<'s>(&'s self, name: &str) -> Result<TensorView<'s>, ModelError> {
        let Some(&(shard, entry)) = self.places.get(name) else {
            return self.base.tensor(name);
        };
        let found = self.shards.get(shard).and_then(|s| Some((s, s.entries().get(entry)?)));
        let (shard, entry) = found.ok_or_else(|| ModelError::UnknownTensor { name: name.into() })?;
        let dtype =
            Dtype::from_stored(entry.dtype).ok_or_else(|| ModelError::UnknownTensor { name: name.into() })?;
        Ok(TensorView { name: &entry.name, dtype, shape: &entry.shape, data: shard.data(entry) })
    }
}
