//! Mask files that are open: a large model needs one mask in memory and not all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype as StoredDtype;

use crate::model::{Checkpoint, MESSAGE, Projection, Shard, clip};

use super::file::{self, MaskFile, Provenance, SourceTensor};
use super::rank::{Packing, unpack};
use super::{BitMask, MaskError, MaskSet, Masks, Pattern, npz};

/// A mask file that is open: of this program's the header is read and checked, and each mask when it is asked for; of MaskLLM's npz,
/// which must be inflated to know its pattern, all masks are in memory.
#[derive(Debug)]
pub struct MaskReader {
    path: PathBuf,
    pattern: Pattern,
    /// How the masks came to be.
    pub provenance: Provenance,
    /// The dense tensors they were made for, by parameter name: the same keys as the masks, or none at all where the file does not
    /// say.
    pub sources: BTreeMap<String, SourceTensor>,
    /// The hash of the permutation that the model's channels are in, where the file says that it was permuted.
    pub permutation: Option<String>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The mapped file, and which of its entries is whose mask.
    Packed(Shard, BTreeMap<String, usize>),
    Whole(MaskSet),
}

impl MaskReader {
    /// Opens a mask file of either kind, told by its first bytes: this program's, or MaskLLM's npz, which is read for the
    /// model with these projections. Whether the masks of the former fit a model, [`Masks::check_model`] tells. `pattern` is the one
    /// that an npz file must have; without it, it is found in the masks.
    ///
    /// # Errors
    /// As [`MaskReader::packed`], and those of the other format.
    pub fn open(
        path: &Path,
        projections: &[Projection],
        pattern: Option<Pattern>,
    ) -> Result<Self, MaskError> {
        if !npz::is_npz(path)? {
            return Self::packed(path);
        }
        let set = npz::read(path, projections, pattern)?;
        Ok(Self {
            path: path.into(),
            pattern: set.pattern,
            provenance: Provenance::new("unknown, from a maskllm-npz file", 0),
            sources: BTreeMap::new(),
            permutation: None,
            content: Content::Whole(set),
        })
    }

    /// Opens a file of this program's and checks what is known before a mask is unpacked: known format, possible pattern and sizes,
    /// each tensor described exactly once.
    ///
    /// # Errors
    /// [`MaskError::File`] and [`MaskError::Model`].
    pub fn packed(path: &Path) -> Result<Self, MaskError> {
        let shard = Shard::open(path)?;
        let unusable = |problem: String| unusable(path, &problem);
        let metadata: BTreeMap<&str, &str> =
            shard.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let key = |name: &str| {
            let missing = || unusable(format!("its metadata has no `{name}`"));
            metadata.get(name).copied().ok_or_else(missing)
        };
        let expect = |name: &str, expected: &str| match key(name)? {
            found if found == expected => Ok(()),
            found => Err(unusable(format!("its `{name}` is {:?}, expected {expected:?}", clip(found, 80)))),
        };
        if !metadata.contains_key("pattern") || metadata.get("format") != Some(&file::FORMAT) {
            return Err(unusable(
                "it was not written as one (its metadata names another format); give the mask file of a run"
                    .into(),
            ));
        }
        let permutation = match metadata.get("format_version") {
            Some(&file::VERSION_PERMUTED) => Some(key("permutation")?.to_string()),
            _ => {
                expect("format_version", file::VERSION)?;
                None
            }
        };
        let pattern: Pattern = key("pattern")?.parse()?;
        expect("order", file::ORDER)?;
        expect("packing", &Packing::of(pattern).name())?;
        let seed = key("seed")?.parse().map_err(|_| unusable("its `seed` is no number".into()))?;
        let sources: BTreeMap<String, SourceTensor> = serde_json::from_str(key("tensors")?)
            .map_err(|e| unusable(format!("its `tensors` cannot be parsed: {e}")))?;
        let provenance =
            Provenance { method: key("method")?.into(), seed, written_by: key("written_by")?.into() };

        let mut entries = BTreeMap::new();
        for (i, entry) in shard.entries().iter().enumerate() {
            let wrong = |problem: String| unusable(format!("{}: {problem}", entry.name));
            let Some(name) = entry.name.strip_suffix(file::SUFFIX) else {
                return Err(wrong(format!("a tensor whose name does not end in {}", file::SUFFIX)));
            };
            if entry.dtype != StoredDtype::U8 || entry.shape.len() != 1 {
                return Err(wrong(format!(
                    "expected U8 and one dimension, found {} {:?}",
                    entry.dtype, entry.shape
                )));
            }
            let Some(source) = sources.get(name) else {
                return Err(wrong("not described in `tensors`".into()));
            };
            file::check_source(source).map_err(wrong)?;
            entries.insert(name.to_string(), i);
        }
        if let Some(name) = sources.keys().find(|name| !entries.contains_key(*name)) {
            let suffix = file::SUFFIX;
            return Err(unusable(format!("`tensors` describes {name}, but there is no {name}{suffix}")));
        }
        let content = Content::Packed(shard, entries);
        Ok(Self { path: path.into(), pattern, provenance, sources, permutation, content })
    }

    /// All masks, unpacked.
    ///
    /// # Errors
    /// [`MaskError::File`]: a mask of another size, a rank out of range.
    pub fn into_file(self) -> Result<MaskFile, MaskError> {
        let mut masks = BTreeMap::new();
        if let Content::Packed(_, entries) = &self.content {
            for name in entries.keys() {
                masks.extend(self.unpack(name)?.map(|mask| (name.clone(), mask)));
            }
        }
        let set = match self.content {
            Content::Packed(..) => MaskSet { pattern: self.pattern, masks },
            Content::Whole(set) => set,
        };
        Ok(MaskFile {
            set,
            provenance: self.provenance,
            sources: self.sources,
            permutation: self.permutation,
        })
    }

    /// The parameter names whose stored bytes in `checkpoint` are not those that the masks were made for.
    ///
    /// # Errors
    /// As [`MaskFile::differing_sources`].
    pub fn differing_sources(&self, checkpoint: &Checkpoint) -> Result<Vec<String>, MaskError> {
        file::differing(self, &self.sources, checkpoint)
    }

    /// A mask of a packed file.
    fn unpack(&self, tensor: &str) -> Result<Option<BitMask>, MaskError> {
        let Content::Packed(shard, entries) = &self.content else { return Ok(None) };
        let entry = entries.get(tensor).and_then(|i| shard.entries().get(*i));
        let Some((entry, source)) = entry.zip(self.sources.get(tensor)) else { return Ok(None) };
        let [rows, cols] = source.shape;
        unpack(rows, cols, self.pattern, shard.data(entry))
            .map(Some)
            .map_err(|problem| unusable(&self.path, &format!("{}: {problem}", entry.name)))
    }
}

impl MaskFile {
    /// Reads a mask file of either kind, told by its first bytes: this program's, or MaskLLM's npz, which is read for the
    /// model with these projections. Whether the masks of the former fit a model, [`Masks::check_model`] tells. `pattern` is the one
    /// that an npz file must have; without it, it is found in the masks.
    ///
    /// # Errors
    /// As [`MaskFile::read`], and those of the other format.
    pub fn open(
        path: &Path,
        projections: &[Projection],
        pattern: Option<Pattern>,
    ) -> Result<Self, MaskError> {
        MaskReader::open(path, projections, pattern)?.into_file()
    }

    /// Reads and checks a file: known format, possible pattern and sizes, every rank in range, so that every mask is
    /// strict; and each tensor described exactly once.
    ///
    /// # Errors
    /// [`MaskError::File`] and [`MaskError::Model`].
    pub fn read(path: &Path) -> Result<Self, MaskError> {
        MaskReader::packed(path)?.into_file()
    }
}

impl Masks for MaskReader {
    fn pattern(&self) -> Pattern {
        self.pattern
    }

    fn shapes(&self) -> BTreeMap<&str, [usize; 2]> {
        match &self.content {
            Content::Packed(..) => self.sources.iter().map(|(name, s)| (name.as_str(), s.shape)).collect(),
            Content::Whole(set) => set.shapes(),
        }
    }

    fn shape(&self, tensor: &str) -> Option<[usize; 2]> {
        match &self.content {
            Content::Packed(..) => self.sources.get(tensor).map(|source| source.shape),
            Content::Whole(set) => set.shape(tensor),
        }
    }

    fn mask(&self, tensor: &str) -> Result<Option<Cow<'_, BitMask>>, MaskError> {
        match &self.content {
            Content::Packed(..) => Ok(self.unpack(tensor)?.map(Cow::Owned)),
            Content::Whole(set) => set.mask(tensor),
        }
    }
}

fn unusable(path: &Path, problem: &str) -> MaskError {
    MaskError::File { path: path.into(), problem: clip(problem, MESSAGE) }
}
