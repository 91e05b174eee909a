//! The tokens that end a text.

use std::path::Path;

use serde_json::Value;

use super::{Architecture, ModelError, read_json_object};

/// More than any real generation_config.json.
const LIMIT_BYTES: u64 = 1 << 20;

/// A token id or a list of them, as configurations have them. Anything else counts as none: the tokenizer itself adds opening
/// tokens, and a text without an end is as long as was asked for.
pub(super) fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

impl Architecture {
    /// The tokens that end what the model of the folder `dir` writes: those of generation_config.json, where there is one that names
    /// some, else those of config.json (as in transformers).
    ///
    /// # Errors
    /// A generation_config.json that cannot be read or is no JSON object.
    pub fn end_tokens(&self, dir: &Path) -> Result<Vec<u32>, ModelError> {
        let path = dir.join("generation_config.json");
        if path.exists() {
            let keys = read_json_object(&path, LIMIT_BYTES, "check that it may be read")?;
            let named = token_ids(keys.get("eos_token_id"));
            if !named.is_empty() {
                return Ok(named);
            }
        }
        Ok(self.eos_token_ids.clone())
    }
}
