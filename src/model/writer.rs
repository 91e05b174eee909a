//! Writing safetensors files.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::fsio::{self, FsError};

/// A tensor to be written.
pub struct OutTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type as in a safetensors header.
    pub dtype: &'a str,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Its bytes, little-endian.
    pub data: &'a [u8],
}

/// Writes a file at once and whole. Written here because the library puts metadata into random order, and equal content is to
/// give equal files: the length of the header as a little-endian u64, the header, padded with spaces to 8 bytes, the data.
///
/// # Errors
/// What the system refuses; an older file of that name is then untouched.
pub fn write_safetensors(
    path: &Path,
    metadata: Map<String, Value>,
    tensors: &[OutTensor<'_>],
) -> Result<(), FsError> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), Value::Object(metadata));
    }
    let mut end = 0;
    for t in tensors {
        let begin = end;
        end += t.data.len();
        let entry = json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [begin, end] });
        header.insert(t.name.into(), entry);
    }
    let mut text = Value::Object(header).to_string();
    let padded = text.len().next_multiple_of(8);
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    fsio::write_atomic(path, |file| {
        file.put(&(padded as u64).to_le_bytes())?;
        file.put(text.as_bytes())?;
        tensors.iter().try_for_each(|t| file.put(t.data))
    })
}
