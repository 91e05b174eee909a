//! The weights of a model: one safetensors file or several with an index, checked against the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::parallel::in_parallel;
use super::shard::MAX_NAME;
use super::{
    Architecture, Dtype, MESSAGE, ModelError, Shard, ShardEntry, TensorPart, TensorSpec, TensorView, clip,
    foreign_weights, read_json_object,
};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// More than any real index: 100 bytes a tensor.
pub(super) const LIMIT_INDEX: u64 = 256 << 20;

/// Mapped weights in which every tensor of the configuration exists with the right shape and a supported type.
/// The files must not be changed while this lives.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to (shard, entry). Holds also what the configuration does not call for.
    places: BTreeMap<String, (usize, usize)>,
    /// Parts of stored tensors, by the names under which they are asked for.
    parts: BTreeMap<String, Gathered>,
    /// The hash of the permutation that its channels are in.
    permutation: Option<String>,
}

/// A part of a stored tensor.
#[derive(Debug)]
struct Gathered {
    part: TensorPart,
    /// Its bytes, once they were asked for, where they do not lie together.
    bytes: OnceLock<Vec<u8>>,
}

impl Gathered {
    /// By its name, not yet put together.
    fn named(part: TensorPart) -> (String, Self) {
        (part.name.clone(), Self { part, bytes: OnceLock::new() })
    }
}

impl Checkpoint {
    /// Maps `dir/model.safetensors`, or the shards that `dir/model.safetensors.index.json` names where there is no
    /// single file (the order in which transformers looks).
    ///
    /// # Errors
    /// [`ModelError`] for damaged or missing files, an index that does not fit, and tensors that are missing or have
    /// another shape or type than the configuration and this program expect. NaN is not looked for here; see
    /// [`Checkpoint::check_finite`].
    pub fn open(dir: &Path, config: &Architecture) -> Result<Self, ModelError> {
        let mut checkpoint = Self::open_files(dir)?;
        checkpoint.share_output(config);
        config.tensors().iter().try_for_each(|spec| checkpoint.check(spec))?;
        checkpoint.name_parts(config);
        Ok(checkpoint)
    }

    /// Makes the parts of stored tensors known under their names; the stored tensors must have been checked.
    pub(crate) fn name_parts(&mut self, config: &Architecture) {
        self.parts = config.parts().into_iter().map(Gathered::named).collect();
    }

    /// This checkpoint with other data: files of the same names and headers, in the order of the permutation of this hash.
    pub(super) fn with_files(&self, shards: Vec<Shard>, permutation: String) -> Self {
        let parts = self.parts.values().map(|gathered| Gathered::named(gathered.part.clone())).collect();
        let (folder, places) = (self.folder.clone(), self.places.clone());
        Self { folder, shards, places, parts, permutation: Some(permutation) }
    }

    /// The hash of the permutation that the channels are in, of a model that was permuted; see [`super::Permutation::hash`].
    pub fn permutation(&self) -> Option<&str> {
        self.permutation.as_deref()
    }

    /// Notes that the files themselves hold the model in the order of the permutation of this hash.
    pub fn is_in_order_of(&mut self, permutation: String) {
        self.permutation = Some(permutation);
    }

    /// As [`Checkpoint::open`], not held against a configuration.
    pub(crate) fn open_files(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join(SINGLE);
        let index = dir.join(INDEX);
        if single.exists() {
            Self::of_files(dir, &[SINGLE])
        } else if index.exists() {
            Self::open_sharded(dir, &index)
        } else {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            let (found, remedy) = foreign_weights(&names, &dir.to_string_lossy());
            let found = found.map_or(String::new(), |file| format!(", but {file}"));
            Err(ModelError::NoWeights { folder: dir.into(), found, remedy })
        }
    }

    /// Lets the output matrix be the embedding, too, where the two are tied and only the former is stored, as transformers does.
    fn share_output(&mut self, config: &Architecture) {
        let embedding = config.embedding_name();
        if config.tie_word_embeddings
            && !self.places.contains_key(&embedding)
            && let Some(&place) = self.places.get(&config.own_output_name())
        {
            self.places.insert(embedding, place);
        }
    }

    /// Whether the configuration ties the output matrix to the embedding, but both are stored, with different values. transformers 5 then
    /// does not tie them (5.23.0, and so since 5.0: "both are present in the checkpoints with different values, so we will NOT tie them").
    pub fn unties(&self, config: &Architecture) -> bool {
        if !config.tie_word_embeddings {
            return false;
        }
        let (Ok(embedding), Ok(output)) =
            (self.tensor(&config.embedding_name()), self.tensor(&config.own_output_name()))
        else {
            return false;
        };
        if embedding.dtype == output.dtype {
            return embedding.shape == output.shape && embedding.data != output.data;
        }
        embedding.shape == output.shape && {
            let (mut a, mut b) = (vec![0.0; embedding.row_len()], vec![0.0; output.row_len()]);
            let same = |r| embedding.row_f32(r, &mut a) && output.row_f32(r, &mut b) && a == b;
            !(0..embedding.rows()).all(same)
        }
    }

    /// Maps these files of a folder. Tensors with the same name must be the same.
    pub(crate) fn of_files(dir: &Path, names: &[&str]) -> Result<Self, ModelError> {
        let shards = names.iter().map(|name| Shard::open(&dir.join(name))).collect::<Result<Vec<_>, _>>()?;
        check_same(&shards)?;
        let mut places = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for (i, entry) in shard.entries().iter().enumerate() {
                places.entry(entry.name.clone()).or_insert((number, i));
            }
        }
        Ok(Self { folder: dir.into(), shards, places, parts: BTreeMap::new(), permutation: None })
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self, ModelError> {
        let map = read_json_object(index, LIMIT_INDEX, "check that it may be read")?;
        let bad =
            |problem: String| ModelError::Index { path: index.into(), problem: clip(&problem, MESSAGE) };
        let Some(Value::Object(weights)) = map.get("weight_map") else {
            return Err(bad("it has no object `weight_map`".into()));
        };
        let mut files = BTreeSet::new();
        for (tensor, file) in weights {
            if tensor.len() > MAX_NAME {
                return Err(bad(format!("it names a tensor with {} bytes", tensor.len())));
            }
            match file.as_str() {
                Some(file) if is_plain_name(file) => files.insert(file),
                _ => {
                    return Err(bad(format!(
                        "{tensor} is said to be in {file}, which is not the plain name of a .safetensors file"
                    )));
                }
            };
        }
        if files.is_empty() {
            return Err(bad("its `weight_map` is empty".into()));
        }
        let mut shards = Vec::new();
        // What counts is that a tensor is in one of the files; the index decides between several of its name.
        let (mut places, mut by_file) = (BTreeMap::new(), BTreeMap::new());
        for (number, &file) in files.iter().enumerate() {
            let path = dir.join(file);
            if !path.exists() {
                return Err(ModelError::MissingShard { index: index.into(), shard: file.into() });
            }
            let shard = Shard::open(&path)?;
            let entries = shard.entries().iter().enumerate().map(|(i, e)| (e.name.clone(), (number, i)));
            let entries = entries.collect::<BTreeMap<_, _>>();
            for (name, &place) in &entries {
                places.entry(name.clone()).or_insert(place);
            }
            by_file.insert(file, entries);
            shards.push(shard);
        }
        check_same(&shards)?;
        for (tensor, file) in weights {
            let file = file.as_str().unwrap_or("");
            if let Some(&place) = by_file.get(file).and_then(|entries| entries.get(tensor)) {
                places.insert(tensor.clone(), place);
            }
        }
        Ok(Self { folder: dir.into(), shards, places, parts: BTreeMap::new(), permutation: None })
    }

    /// A tensor that the configuration calls for: existence, shape, type.
    pub(crate) fn check(&self, spec: &TensorSpec) -> Result<(), ModelError> {
        let tensor = spec.name.clone();
        let Some((shard, entry)) = self.entry(&spec.name) else {
            return Err(ModelError::MissingTensor { folder: self.folder.clone(), tensor });
        };
        let path = shard.path().into();
        if entry.shape != spec.shape {
            let (expected, found) = (spec.shape.clone(), entry.shape.clone());
            return Err(ModelError::Shape { path, tensor, expected, found });
        }
        if Dtype::from_stored(entry.dtype).is_none() {
            return Err(ModelError::Dtype { path, tensor, found: entry.dtype.to_string() });
        }
        Ok(())
    }

    /// Where a tensor lies, of whatever type.
    pub(crate) fn entry(&self, name: &str) -> Option<(&Shard, &ShardEntry)> {
        let &(shard, entry) = self.places.get(name)?;
        let shard = self.shards.get(shard)?;
        Some((shard, shard.entries().get(entry)?))
    }

    /// A tensor by its name; a part of a stored one by the part's name. Parts that do not lie together in the file are put
    /// together in memory when they are first asked for, and stay there.
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`], and [`ModelError::Dtype`] for a tensor outside the configuration whose type is
    /// not supported.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let unknown = || ModelError::UnknownTensor { name: name.into() };
        let gathered = self.parts.get(name);
        let stored = gathered.map_or(name, |g| &g.part.stored);
        let (shard, entry) = self.entry(stored).ok_or_else(unknown)?;
        let dtype = Dtype::from_stored(entry.dtype).ok_or_else(|| ModelError::Dtype {
            path: shard.path().into(),
            tensor: name.into(),
            found: entry.dtype.to_string(),
        })?;
        let data = shard.data(entry);
        match gathered {
            None => Ok(TensorView { name: &entry.name, dtype, shape: &entry.shape, data }),
            Some(Gathered { part, bytes }) => {
                let data = match part.range(dtype.size()) {
                    Some(range) => data.get(range).ok_or_else(unknown)?,
                    None => bytes.get_or_init(|| part.gather(data, dtype.size())),
                };
                Ok(TensorView { name: &part.name, dtype, shape: &part.shape, data })
            }
        }
    }

    /// The projections that lie in a stored tensor as parts of it, or transposed; none where it is one itself.
    pub fn parts_of<'s>(&'s self, stored: &'s str) -> impl Iterator<Item = &'s TensorPart> {
        self.parts
            .values()
            .map(|g| &g.part)
            .filter(move |part| part.stored == stored && part.shape.len() == 2)
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The mapped files, ordered by name.
    pub fn files(&self) -> &[Shard] {
        &self.shards
    }

    /// The number, within [`Checkpoint::files`], of the file that a tensor is taken from; the same name may lie in others, too.
    pub fn file_of(&self, name: &str) -> Option<usize> {
        self.places.get(name).map(|&(shard, _)| shard)
    }

    /// The names of all tensors in the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Checks every tensor of the configuration for NaN and infinity. Reads all of the weights once.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] for the first one in the order of the computation.
    pub fn check_finite(&self, config: &Architecture) -> Result<(), ModelError> {
        let names: Vec<String> = config.tensors().into_iter().map(|spec| spec.name).collect();
        for result in self.parallel(&names, |tensor| tensor.check_finite())? {
            result?;
        }
        Ok(())
    }

    /// SHA-256 of the stored bytes of each named tensor, as 64 lowercase hexadecimal digits, in the order of `names`.
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`].
    pub fn sha256(&self, names: &[String]) -> Result<Vec<String>, ModelError> {
        self.parallel(names, |tensor| sha256_hex(tensor.data))
    }

    /// SHA-256 of the stored bytes of every tensor of the files, also of those that the configuration does not call for.
    pub fn stored_hashes(&self) -> BTreeMap<String, String> {
        let stored: Vec<(&String, &[u8])> = self
            .places
            .keys()
            .filter_map(|name| self.entry(name).map(|(shard, entry)| (name, shard.data(entry))))
            .collect();
        let hashes = in_parallel(&stored, |(_, data)| sha256_hex(data));
        stored.iter().map(|(name, _)| (*name).clone()).zip(hashes).collect()
    }

    /// Runs `work` on each named tensor and returns the results in the order of `names`.
    fn parallel<R: Send>(
        &self,
        names: &[String],
        work: impl Fn(&TensorView<'_>) -> R + Sync,
    ) -> Result<Vec<R>, ModelError> {
        let tensors = names.iter().map(|name| self.tensor(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(in_parallel(&tensors, work))
    }
}

/// A tensor that lies in several files must be the same in all: which one a loader takes is its own choice.
fn check_same(shards: &[Shard]) -> Result<(), ModelError> {
    let mut seen: BTreeMap<&str, (&Shard, &ShardEntry)> = BTreeMap::new();
    for (shard, entry) in shards.iter().flat_map(|shard| shard.entries().iter().map(move |e| (shard, e))) {
        let &mut (first, other) = seen.entry(&entry.name).or_insert((shard, entry));
        if std::ptr::eq(other, entry) {
            continue;
        }
        let same = (entry.dtype, &entry.shape) == (other.dtype, &other.shape);
        if !same || first.data(other) != shard.data(entry) {
            return Err(ModelError::TwoValues {
                tensor: entry.name.clone(),
                first: first.path().into(),
                second: shard.path().into(),
            });
        }
    }
    Ok(())
}

/// A name that stays inside the folder on every system, since the export writes under the same name.
pub(crate) fn is_plain_name(file: &str) -> bool {
    let plain = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
    file.len() <= 255 && file.ends_with(".safetensors") && !file.starts_with('.') && file.chars().all(plain)
}

/// SHA-256 as 64 lowercase hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Bytes as lowercase hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
