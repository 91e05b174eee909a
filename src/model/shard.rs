//! One mapped safetensors file with its checked header.

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};

use super::{MESSAGE, ModelError, clip};
use crate::fsio::{Scratch, StandIn, open_plain};

/// The largest header that is parsed, in bytes. Real ones take about 100 bytes a tensor.
const MAX_HEADER: u64 = 100_000_000;
/// More bytes than the name of any tensor, and more dimensions than any tensor has.
pub(super) const MAX_NAME: usize = 1024;
const MAX_DIMENSIONS: usize = 32;

/// A tensor of a safetensors file. The offsets lie inside the file and fit shape and type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardEntry {
    /// The tensor's name.
    pub name: String,
    /// The type it is stored in.
    pub dtype: safetensors::Dtype,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Its first byte, counted from the start of the tensor data.
    pub begin: usize,
    /// The byte behind its last.
    pub end: usize,
}

/// A mapped safetensors file. The file must not be changed while it is mapped.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    /// Where other data than the file's own are mapped; behind the map, which ends first.
    _scratch: Option<Scratch>,
    data_start: usize,
    entries: Vec<ShardEntry>,
    metadata: Vec<(String, String)>,
}

impl Shard {
    /// Maps a file and checks that header, types, shapes and file length agree. No tensor data is read.
    ///
    /// # Errors
    /// [`ModelError::Read`] and [`ModelError::Damaged`].
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let remedy = "check that the file exists and may be read";
        let fail = |source| ModelError::Read { path: path.into(), source, remedy };
        let damaged =
            |problem: String| ModelError::Damaged { path: path.into(), problem: clip(&problem, MESSAGE) };
        // Not waited for where it is a pipe.
        let file = open_plain(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.len() < 8 {
            return Err(damaged(format!("it has only {} bytes", meta.len())));
        }
        // SAFETY: the mapping is read-only and private to this process's view. A file that another process shortens
        // while it is mapped would fault; that is documented as not allowed, as for every reader that maps weights.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        // No header of a safetensors file begins as one of these: its length would have seven digits or more.
        if let Some(found) = map.get(..map.len().min(4096)).and_then(StandIn::of) {
            return Err(ModelError::StandIn { path: path.into(), found });
        }
        check_prefix(&map).map_err(damaged)?;
        let (header, parsed) = SafeTensors::read_metadata(&map).map_err(|e| damaged(explain(&e)))?;
        let data_start = header + 8;
        // Checked again with no arithmetic that could wrap.
        if map.len().checked_sub(data_start) != Some(parsed.data_len()) {
            let have = map.len().saturating_sub(data_start);
            return Err(damaged(format!(
                "the header describes {} bytes of tensors, but {have} follow it",
                parsed.data_len()
            )));
        }
        let mut entries = Vec::new();
        for name in parsed.offset_keys() {
            if let Some(info) = parsed.info(&name) {
                if name.len() > MAX_NAME || info.shape.len() > MAX_DIMENSIONS {
                    let (length, dimensions) = (name.len(), info.shape.len());
                    return Err(damaged(format!(
                        "a tensor has a name of {length} bytes and {dimensions} dimensions"
                    )));
                }
                let (begin, end) = info.data_offsets;
                entries.push(ShardEntry { dtype: info.dtype, shape: info.shape.clone(), begin, end, name });
            }
        }
        let mut metadata: Vec<_> = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        metadata.sort();
        Ok(Self { path: path.into(), map, _scratch: None, data_start, entries, metadata })
    }

    /// This file with other data, which a scratch file has behind a header of the same length.
    pub(super) fn with_data(&self, scratch: Scratch) -> Result<Self, ModelError> {
        // SAFETY: nobody else has the scratch file, and nothing writes it any more.
        let map = unsafe { Mmap::map(scratch.file()) };
        let map = map.ok().filter(|map| map.len() == self.map.len());
        let map = map.ok_or_else(|| ModelError::Damaged {
            path: self.path.clone(),
            problem: "its copy in another order has another length".into(),
        })?;
        Ok(Self {
            path: self.path.clone(),
            map,
            _scratch: Some(scratch),
            data_start: self.data_start,
            entries: self.entries.clone(),
            metadata: self.metadata.clone(),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's last name.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|n| n.to_str()).unwrap_or("")
    }

    /// The tensors in the order of their data, which follow each other without a gap.
    pub fn entries(&self) -> &[ShardEntry] {
        &self.entries
    }

    /// `__metadata__`, sorted by key.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// The bytes before the tensor data: the length and the header itself.
    pub fn header_bytes(&self) -> &[u8] {
        self.map.get(..self.data_start).unwrap_or(&[])
    }

    /// The bytes of all tensors, one behind the other.
    pub(super) fn tensor_bytes(&self) -> &[u8] {
        self.map.get(self.data_start..).unwrap_or(&[])
    }

    /// The bytes of one of the file's entries.
    pub fn data(&self, entry: &ShardEntry) -> &[u8] {
        let at = |offset: usize| self.data_start.checked_add(offset);
        match (at(entry.begin), at(entry.end)) {
            (Some(begin), Some(end)) => self.map.get(begin..end).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// The file's length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never true: an empty file does not open.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// What can be told from the first bytes, before anything is parsed or allocated.
fn check_prefix(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("it has only {} bytes", bytes.len()));
    };
    let header = u64::from_le_bytes(*length);
    if header > MAX_HEADER {
        return Err(format!("its first 8 bytes give a header of {header} bytes, which cannot be"));
    }
    if header > rest.len() as u64 {
        return Err(format!(
            "its header should have {header} bytes, but only {} follow; it is cut off",
            rest.len()
        ));
    }
    if rest.first() != Some(&b'{') {
        return Err("its header does not start with `{`".into());
    }
    Ok(())
}

/// The crate's errors in words.
fn explain(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            "its length is not what the header says; it is cut off or has bytes appended".into()
        }
        SafeTensorError::InvalidHeader(e) => format!("its header is not UTF-8: {e}"),
        SafeTensorError::InvalidHeaderDeserialization(e) => format!("its header cannot be parsed: {e}"),
        SafeTensorError::TensorInvalidInfo => "a tensor's byte range does not fit its shape and type".into(),
        SafeTensorError::InvalidOffset(name) => {
            format!("the byte range of {name} overlaps another or leaves a gap")
        }
        SafeTensorError::ValidationOverflow => "a tensor's size overflows".into(),
        other => format!("its header is wrong: {other}"),
    }
}
