//! Reading back a folder of a packed format: every weight as its dense bytes, one at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::model::{
    Architecture, Checkpoint, Dtype, ModelError, Projection, is_plain_name, read_json_object,
};

use super::ct24::{self, Ct24};
use super::packed::{self, Codec, Weight};
use super::torch24::{self, Torch24};
use super::{ExportError, LayoutError};

/// More than any description: 300 bytes a projection.
const LIMIT_DESCRIPTION: u64 = 64 << 20;

/// How the projections of a folder are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PackedFormat {
    /// [`super::torch24`].
    Torch24,
    /// [`super::ct24`].
    Ct24,
}

impl PackedFormat {
    /// The name that `export` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torch24 => Torch24::NAME,
            Self::Ct24 => Ct24::NAME,
        }
    }

    /// The files that it writes besides the weights and those of every format.
    pub fn writes(self) -> &'static [&'static str] {
        match self {
            Self::Torch24 => &[torch24::INDEX, torch24::LOADER],
            Self::Ct24 => &["model.safetensors.index.json"],
        }
    }

    /// The file that describes the weights.
    pub fn description(self) -> &'static str {
        match self {
            Self::Torch24 => torch24::INDEX,
            Self::Ct24 => "config.json",
        }
    }
}

/// A mapped folder that `torch24` or `ct24` wrote. Every tensor of the configuration is there, packed or not, with the shapes and
/// types that it must have. The files must not be changed while this lives.
pub struct PackedFolder {
    format: PackedFormat,
    config: Architecture,
    files: Checkpoint,
    /// The packed projections, by parameter name.
    packed: BTreeMap<String, Weight>,
    /// Names of the tensors that they are made of.
    parts: BTreeSet<String>,
}

impl PackedFolder {
    /// Maps a folder of a packed format; none where the folder is of no such format.
    ///
    /// # Errors
    /// Damaged or missing files, a description that does not fit the weights, a tensor that is missing or has another shape or
    /// type. No metadata are read here; [`PackedFolder::weight`] does.
    pub fn open(dir: &Path) -> Result<Option<Self>, ExportError> {
        if dir.join(torch24::INDEX).is_file() {
            let told = Told::torch24(dir)?;
            let config = Architecture::read(dir)?;
            let shards: Vec<&str> = told.shards.iter().map(String::as_str).collect();
            let files = Checkpoint::of_files(dir, &shards)?;
            return Self::check(&Torch24, PackedFormat::Torch24, config, files, &told).map(Some);
        }
        if !dir.join("config.json").is_file() {
            return Ok(None);
        }
        let Ok((config, Some(entry))) = Architecture::read_packed(dir) else { return Ok(None) };
        let Some(told) = Told::ct24(&entry, &config) else { return Ok(None) };
        let files = Checkpoint::open_files(dir)?;
        Self::check(&Ct24, PackedFormat::Ct24, config, files, &told).map(Some)
    }

    fn check<C: Codec>(
        codec: &C,
        format: PackedFormat,
        config: Architecture,
        mut files: Checkpoint,
        told: &Told,
    ) -> Result<Self, ExportError> {
        let path = files.folder().join(format.description());
        let wrong = |problem: String| ExportError::Described { path: path.clone(), format: C::NAME, problem };
        let projections: BTreeMap<String, Projection> =
            config.projections().into_iter().map(|p| (p.name.clone(), p)).collect();
        let (mut packed, mut parts) = (BTreeMap::new(), BTreeSet::new());
        for spec in config.tensors() {
            let values = format!("{}.{}", packed::prefix(&spec.name), C::VALUES);
            let found = projections.get(&spec.name).zip(files.entry(&values));
            let is_packed = found.is_some();
            if projections.contains_key(&spec.name) && told.packed.contains(&spec.name) != is_packed {
                let (says, is) = if is_packed { ("dense", "packed") } else { ("packed", "dense") };
                return Err(wrong(format!("{} is said to be {says}, but is {is}", spec.name)));
            }
            let Some((p, (shard, entry))) = found else {
                files.check(&spec)?;
                continue;
            };
            if files.entry(&spec.name).is_some() {
                return Err(wrong(format!("{} is stored dense and packed", spec.name)));
            }
            let dtype = Dtype::from_stored(entry.dtype).ok_or_else(|| ModelError::Dtype {
                path: shard.path().into(),
                tensor: values.clone(),
                found: entry.dtype.to_string(),
            })?;
            let weight = Weight { dtype, rows: p.rows, cols: p.cols };
            for part in codec.parts(weight) {
                let name = format!("{}.{}", packed::prefix(&p.name), part.name);
                let Some((shard, entry)) = files.entry(&name) else {
                    let folder = files.folder().into();
                    return Err(ModelError::MissingTensor { folder, tensor: name }.into());
                };
                let path = shard.path().into();
                if entry.shape != part.shape {
                    let (expected, found) = (part.shape, entry.shape.clone());
                    return Err(ModelError::Shape { path, tensor: name, expected, found }.into());
                }
                if entry.dtype != part.dtype {
                    return Err(
                        ModelError::Dtype { path, tensor: name, found: entry.dtype.to_string() }.into()
                    );
                }
                parts.insert(name);
            }
            packed.insert(spec.name, weight);
        }
        files.name_parts(&config);
        Ok(Self { format, config, files, packed, parts })
    }

    /// How it is packed.
    pub fn format(&self) -> PackedFormat {
        self.format
    }

    /// What config.json says of the model.
    pub fn config(&self) -> &Architecture {
        &self.config
    }

    /// The mapped files.
    pub fn files(&self) -> &Checkpoint {
        &self.files
    }

    /// The type of a projection that is packed.
    pub fn packed(&self, name: &str) -> Option<Dtype> {
        self.packed.get(name).map(|weight| weight.dtype)
    }

    /// Whether a tensor is a part of a packed projection.
    pub fn is_part(&self, name: &str) -> bool {
        self.parts.contains(name)
    }

    /// The type and the dense bytes of a weight; a packed one is unpacked, which takes the memory of it.
    ///
    /// # Errors
    /// [`LayoutError`] for metadata that mean nothing, and a tensor that is not there.
    pub fn weight(&self, name: &str) -> Result<(Dtype, Cow<'_, [u8]>), LayoutError> {
        let Some(&weight) = self.packed.get(name) else {
            let view = self.files.tensor(name).map_err(|e| LayoutError::Unfit(e.to_string()))?;
            return Ok((view.dtype, Cow::Borrowed(view.data)));
        };
        let data = match self.format {
            PackedFormat::Torch24 => self.unpack(&Torch24, name, weight),
            PackedFormat::Ct24 => self.unpack(&Ct24, name, weight),
        };
        Ok((weight.dtype, Cow::Owned(data?)))
    }

    fn unpack<C: Codec>(&self, codec: &C, name: &str, weight: Weight) -> Result<Vec<u8>, LayoutError> {
        let mut data = Vec::new();
        for part in codec.parts(weight) {
            let name = format!("{}.{}", packed::prefix(name), part.name);
            let (shard, entry) =
                self.files.entry(&name).ok_or_else(|| LayoutError::Unfit(format!("there is no {name}")))?;
            data.push(shard.data(entry));
        }
        codec.decode(weight, &data)
    }
}

/// What a description says.
struct Told {
    shards: Vec<String>,
    /// The projections that are packed.
    packed: BTreeSet<String>,
}

impl Told {
    fn torch24(dir: &Path) -> Result<Self, ExportError> {
        let path = dir.join(torch24::INDEX);
        let map = read_json_object(&path, LIMIT_DESCRIPTION, "check that it may be read")?;
        let wrong = |problem: &str| ExportError::Described {
            path: path.clone(),
            format: Torch24::NAME,
            problem: problem.into(),
        };
        let version = map.get("format_version").and_then(Value::as_u64);
        if map.get("format").and_then(Value::as_str) != Some(torch24::FORMAT)
            || version != Some(torch24::VERSION.into())
        {
            return Err(wrong("its `format` or `format_version` is another one"));
        }
        let list = |key: &str| map.get(key).and_then(Value::as_array);
        let shards = list("shards").ok_or_else(|| wrong("it has no list `shards`"))?;
        let plain = |name: &Value| name.as_str().filter(|n| is_plain_name(n)).map(String::from);
        let shards: Option<Vec<String>> = shards.iter().map(plain).collect();
        let shards =
            shards.ok_or_else(|| wrong("an entry of `shards` is no plain name of a .safetensors file"))?;
        let mut packed = BTreeSet::new();
        for line in list("projections").ok_or_else(|| wrong("it has no list `projections`"))? {
            match (line.get("name").and_then(Value::as_str), line.get("packed").and_then(Value::as_bool)) {
                (Some(name), Some(true)) => packed.insert(name.to_string()),
                (Some(_), Some(false)) => false,
                _ => return Err(wrong("an entry of `projections` has no `name` or `packed`")),
            };
        }
        Ok(Self { shards, packed })
    }

    /// None where the entry of config.json is of another format.
    fn ct24(entry: &Value, config: &Architecture) -> Option<Self> {
        let told = entry.get("sparsity_config")?;
        if told.get("format")?.as_str()? != ct24::FORMAT {
            return None;
        }
        let empty = Vec::new();
        let ignored = told.get("ignore").and_then(Value::as_array).unwrap_or(&empty);
        let ignored: BTreeSet<&str> = ignored.iter().filter_map(Value::as_str).collect();
        let packed =
            config.projections().into_iter().filter(|p| !ignored.contains(packed::prefix(&p.stored)));
        let packed = packed.map(|p| p.name).collect();
        Some(Self { shards: Vec::new(), packed })
    }
}
