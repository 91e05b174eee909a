//! config.json of a model folder.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::checkpoint::{INDEX, LIMIT_INDEX, SINGLE};
use super::families::{self, Keys};
use super::{Architecture, ModelError, Shard, read_json_object};

/// More than any real config.json.
const LIMIT_BYTES: u64 = 16 << 20;

impl Architecture {
    /// Reads and checks `dir/config.json`. Where the folder has weights, too, the tensors' names are taken from them: the same
    /// model may be stored with and without a prefix.
    ///
    /// # Errors
    /// [`ModelError`] naming the key, what it must be and what it is.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let remedy = "give a model folder in Hugging Face layout (config.json, safetensors, tokenizer.json)";
        let map = read_json_object(&path, LIMIT_BYTES, remedy)?;
        Self::parse(dir, &map, &path)
    }

    /// As [`Architecture::read`] for a folder whose `quantization_config` tells how its weights are packed: that entry is set
    /// aside and returned.
    ///
    /// # Errors
    /// As [`Architecture::read`].
    pub fn read_packed(dir: &Path) -> Result<(Self, Option<Value>), ModelError> {
        let path = dir.join("config.json");
        let mut map = read_json_object(&path, LIMIT_BYTES, "give a folder that `export` wrote")?;
        let apart = map.shift_remove("quantization_config");
        Ok((Self::parse(dir, &map, &path)?, apart))
    }

    fn parse(dir: &Path, map: &Map<String, Value>, path: &Path) -> Result<Self, ModelError> {
        let mut out = families::read(Keys::new(map, path))?;
        out.take_names(&stored_names(dir));
        Ok(out)
    }

    /// Takes the names under which `stored` has the embedding, and the output matrix where that is another tensor; else those under
    /// which it has the embedding at least.
    fn take_names(&mut self, stored: &BTreeSet<String>) {
        let has = |prefix: &str, name: &str| stored.contains(&format!("{prefix}{name}"));
        let begins = |(prefix, _): &&(&str, &str)| has(prefix, self.names.embedding);
        let whole = |(_, output): &&(&str, &str)| self.tie_word_embeddings || has(output, ".weight");
        let mut found = self.names.prefixes.iter().filter(begins);
        let first = found.clone().next();
        if let Some((prefix, output)) = found.find(whole).or(first) {
            self.names.prefix = (*prefix).into();
            self.names.output = (*output).into();
        }
    }
}

/// The names of the tensors in a folder's weight files; none where they cannot be read, which opening them will tell.
fn stored_names(dir: &Path) -> BTreeSet<String> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    if single.is_file() {
        return Shard::open(&single).map_or_else(
            |_| BTreeSet::new(),
            |shard| shard.entries().iter().map(|e| e.name.clone()).collect(),
        );
    }
    if !index.is_file() {
        return BTreeSet::new();
    }
    match read_json_object(&index, LIMIT_INDEX, "check that it may be read") {
        Ok(map) => match map.get("weight_map") {
            Some(Value::Object(weights)) => weights.keys().cloned().collect(),
            _ => BTreeSet::new(),
        },
        Err(_) => BTreeSet::new(),
    }
}
