//! Writing safetensors files.

use serde_json::{Map, Value, json};

use crate::fsio::{self, Destination, FsError};

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
    to: &(impl Destination + ?Sized),
    metadata: Map<String, Value>,
    tensors: &[OutTensor<'_>],
) -> Result<(), FsError> {
    let parts = tensors.iter().map(|t| (t.name, t.dtype.to_string(), t.shape.as_slice(), t.data.len()));
    let header = header_bytes(metadata, parts);
    fsio::write_atomic(to, |file| {
        file.put(&header)?;
        tensors.iter().try_for_each(|t| file.put(t.data))
    })
}

/// What stands before the data: length and header. Takes name, type, shape and bytes of each tensor, in the order of their data.
pub(crate) fn header_bytes<'a>(
    metadata: Map<String, Value>,
    tensors: impl Iterator<Item = (&'a str, String, &'a [usize], usize)>,
) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), Value::Object(metadata));
    }
    let mut end = 0;
    for (name, dtype, shape, bytes) in tensors {
        let begin = end;
        end += bytes;
        header.insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
    }
    let mut text = Value::Object(header).to_string();
    let padded = text.len().next_multiple_of(8);
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    let mut out = (padded as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}
