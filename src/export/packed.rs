//! Writing a model whose masked projections are packed: what the packed formats share.
//!
//! One output shard per shard of the source. Within a shard tensors are ordered as the reference serialiser orders them (by
//! type, then by name), so that all lie aligned. Headers follow from shapes alone; the data is coded tensor by tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype as Stored;
use serde_json::{Map, Value, json};

use crate::fsio::{self, check_space};
use crate::mask::Pattern;
use crate::model::{Dtype, Shard, ShardEntry, TensorView, header_bytes};

use super::copy::copy_others;
use super::elements::{self, qualifies};
use super::hf::{self, Summary};
use super::{ExportError, LayoutError, MaskedModel};

/// What a weight's layout depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Weight {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// A tensor that stands for a part of a packed weight.
pub(super) struct Part {
    /// What its name ends in, after the weight's prefix and a dot.
    pub(super) name: &'static str,
    pub(super) dtype: Stored,
    pub(super) shape: Vec<usize>,
}

impl Part {
    pub(super) fn new(name: &'static str, dtype: Stored, shape: [usize; 2]) -> Self {
        Self { name, dtype, shape: shape.into() }
    }
}

/// What is particular to a format.
pub(super) trait Codec {
    /// The format's name.
    const NAME: &'static str;
    /// The name of the part that holds the kept weights, in their own type.
    const VALUES: &'static str;

    /// Why a weight cannot be packed.
    fn fits(&self, pattern: Pattern, weight: Weight) -> Result<(), String>;

    /// The tensors that take the place of a weight.
    fn parts(&self, weight: Weight) -> Vec<Part>;

    /// The bytes of one of them; `masked` are those of the weight with its zeros.
    fn encode(&self, weight: Weight, masked: &[u8], part: &str) -> Result<Vec<u8>, LayoutError>;

    /// The bytes of the weight with its zeros, from those of its parts.
    fn decode(&self, weight: Weight, parts: &[&[u8]]) -> Result<Vec<u8>, LayoutError>;

    /// The name of an output shard.
    fn shard_name(&self, number: usize, of: usize, source: &str) -> String;

    /// Writes what describes the shards.
    fn finish(&self, folder: &Path, done: &Coded<'_>) -> Result<(), ExportError>;
}

/// What became of a projection.
pub(super) struct CodedProjection {
    /// The parameter name.
    pub(super) name: String,
    /// The tensor that it lies in.
    pub(super) stored: String,
    /// Rows and columns.
    pub(super) shape: Vec<usize>,
    /// The type it is stored in.
    pub(super) dtype: Dtype,
    /// Why it is stored dense; none when it is packed.
    pub(super) dense_because: Option<String>,
}

/// What was written, for the description.
pub(super) struct Coded<'a> {
    pub(super) pattern: Pattern,
    pub(super) projections: &'a [CodedProjection],
    /// File names in order.
    pub(super) shards: Vec<String>,
    /// Tensor to file.
    pub(super) weight_map: BTreeMap<String, String>,
    /// Bytes of all tensors.
    pub(super) total_size: u64,
    /// Parameters of the dense model, and how many are pruned.
    pub(super) parameters: u64,
    pub(super) pruned: u64,
}

/// One tensor of an output shard.
struct Planned<'a> {
    name: String,
    dtype: Stored,
    shape: Vec<usize>,
    entry: &'a ShardEntry,
    /// The part of a packed weight; none for a tensor that is copied, or masked when it is a projection.
    part: Option<&'static str>,
}

impl Planned<'_> {
    fn bytes(&self) -> usize {
        match self.part {
            // Sizes come from tensors that lie in a mapped file.
            Some(_) => self.shape.iter().product::<usize>() * (self.dtype.bitsize() / 8),
            // Elements may be smaller than a byte.
            None => self.entry.end - self.entry.begin,
        }
    }
}

fn weight(view: &TensorView<'_>) -> Weight {
    Weight { dtype: view.dtype, rows: view.rows(), cols: view.row_len() }
}

/// The parameter name without `.weight`.
pub(super) fn prefix(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Writes the packed model to the new folder `out`.
pub(super) fn write<C: Codec>(
    codec: &C,
    model: &MaskedModel<'_>,
    out: &Path,
) -> Result<Summary, ExportError> {
    let MaskedModel { tensors, config, masks, .. } = *model;
    masks.check_model(config)?;
    let unfit = |problem: String| ExportError::Format { format: C::NAME, problem };
    if !qualifies(masks.pattern()) {
        return Err(unfit(format!(
            "2:4 hardware needs at most 2 kept of every 4, which {} does not promise; masks of 2:4, 1:4, 1:2, 2:8 and 1:8 do",
            masks.pattern()
        )));
    }
    let others = hf::check_copied(tensors.base(), out)?;
    let mut projections = Vec::new();
    for p in config.projections() {
        let view = tensors.tensor(&p.name)?;
        let dense_because = match masks.shape(&p.name) {
            Some(_) if p.place.transposed => {
                Some(format!("{} is stored [inputs, outputs], which no packed layout has", p.stored))
            }
            Some(_) if p.place.part.is_some() => {
                Some(format!("it is a part of the fused {}, which stays whole", p.stored))
            }
            Some(_) => codec.fits(masks.pattern(), weight(&view)).err(),
            None => Some("it has no mask".into()),
        };
        projections.push(CodedProjection {
            name: p.name,
            stored: p.stored,
            shape: view.shape.into(),
            dtype: view.dtype,
            dense_because,
        });
    }
    if projections.iter().all(|p| p.dense_because.is_some()) {
        let first =
            projections.first().and_then(|p| Some(format!("{}: {}", p.name, p.dense_because.as_ref()?)));
        return Err(unfit(format!("no projection can be packed; {}", first.unwrap_or_default())));
    }
    let job = Job { codec, model, projections: &projections };
    check_space(out, job.weight_bytes().saturating_add(others))?;
    hf::in_new_folder(out, |folder| job.fill(folder))
}

struct Job<'a, C> {
    codec: &'a C,
    model: &'a MaskedModel<'a>,
    projections: &'a [CodedProjection],
}

impl<C: Codec> Job<'_, C> {
    /// Bytes of all tensors as they will be written, without the headers of their files.
    fn weight_bytes(&self) -> u64 {
        let shards = self.model.tensors.base().files().iter();
        shards.flat_map(|shard| self.plan(shard)).map(|planned| planned.bytes() as u64).sum()
    }

    fn fill(&self, folder: &Path) -> Result<Summary, ExportError> {
        let checkpoint = self.model.tensors.base();
        let count = checkpoint.files().len();
        let mut skip = vec![PathBuf::from(hf::REPORT), "model.safetensors.index.json".into()];
        let shapes = self.model.masks.shapes();
        let weights = shapes.values().map(|[rows, cols]| *rows as u64 * *cols as u64);
        let mut done = Coded {
            pattern: self.model.masks.pattern(),
            projections: self.projections,
            shards: Vec::new(),
            weight_map: BTreeMap::new(),
            total_size: 0,
            parameters: 0,
            pruned: self.model.masks.pattern().pruned(weights.sum()),
        };
        let mut weight_bytes = 0;
        for (i, shard) in checkpoint.files().iter().enumerate() {
            let name = self.codec.shard_name(i, count, shard.file_name());
            let plan = self.plan(shard);
            weight_bytes += self.write_shard(shard, &plan, &folder.join(&name))?;
            for planned in plan {
                done.total_size += planned.bytes() as u64;
                // Where a second shard has a tensor of that name, the source's index says which one counts.
                if checkpoint.file_of(&planned.entry.name).is_none_or(|file| file == i) {
                    done.weight_map.insert(planned.name, name.clone());
                }
            }
            let parameters = shard.entries().iter().map(|e| e.shape.iter().product::<usize>() as u64);
            done.parameters += parameters.sum::<u64>();
            skip.push(shard.file_name().into());
            done.shards.push(name);
        }
        let copied = copy_others(checkpoint.folder(), folder, &skip)?;
        self.codec.finish(folder, &done)?;
        let mut summary = hf::finish(self.model, folder, copied.left_out)?;
        summary.weight_bytes = weight_bytes;
        let dense = self.projections.iter().filter_map(|p| Some((p.name.clone(), p.dense_because.clone()?)));
        summary.stored_dense = dense.collect();
        Ok(summary)
    }

    /// Whether an entry is a projection's weight under a mask.
    fn masked(&self, entry: &ShardEntry) -> bool {
        self.model.masks.shape(&entry.name).is_some_and(|shape| entry.shape == shape)
    }

    fn plan<'s>(&self, shard: &'s Shard) -> Vec<Planned<'s>> {
        let mut plan = Vec::new();
        for entry in shard.entries() {
            let packs = |p: &&CodedProjection| p.name == entry.name && p.dense_because.is_none();
            let view =
                self.projections.iter().find(packs).and_then(|p| self.model.tensors.tensor(&p.name).ok());
            match view.filter(|_| self.masked(entry)) {
                Some(view) => plan.extend(self.codec.parts(weight(&view)).into_iter().map(|part| Planned {
                    name: format!("{}.{}", prefix(&entry.name), part.name),
                    dtype: part.dtype,
                    shape: part.shape,
                    entry,
                    part: Some(part.name),
                })),
                None => plan.push(Planned {
                    name: entry.name.clone(),
                    dtype: entry.dtype,
                    shape: entry.shape.clone(),
                    entry,
                    part: None,
                }),
            }
        }
        plan.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        plan
    }

    /// Writes one shard; returns its bytes.
    fn write_shard(&self, shard: &Shard, plan: &[Planned<'_>], path: &Path) -> Result<u64, ExportError> {
        let mut metadata = Map::new();
        metadata.insert("format".into(), json!("pt"));
        for (key, value) in shard.metadata() {
            metadata.insert(key.clone(), Value::String(value.clone()));
        }
        let tensors =
            plan.iter().map(|t| (t.name.as_str(), t.dtype.to_string(), t.shape.as_slice(), t.bytes()));
        let header = header_bytes(metadata, tensors);
        let mut bytes = header.len() as u64;
        fsio::write_atomic(path, |file| {
            file.put(&header)?;
            for planned in plan {
                bytes += planned.bytes() as u64;
                let entry = planned.entry;
                if let Some(together) = hf::put_together(self.model, shard, entry)? {
                    file.put(&together)?;
                    continue;
                }
                let data = hf::bytes_of(self.model.tensors, shard, entry);
                let Some((mask, dtype)) =
                    hf::mask_of(self.model, entry)?.zip(Dtype::from_stored(entry.dtype))
                else {
                    file.put(data)?;
                    continue;
                };
                let Some(part) = planned.part else {
                    hf::for_masked_rows(data, &mask, dtype.size(), |row| file.put(row))?;
                    continue;
                };
                let mut masked = Vec::with_capacity(data.len());
                hf::for_masked_rows(data, &mask, dtype.size(), |row| {
                    masked.extend_from_slice(row);
                    Ok(())
                })?;
                let weight = Weight { dtype, rows: mask.rows(), cols: mask.cols() };
                let coded = self.codec.encode(weight, &masked, part).and_then(|coded| {
                    elements::expect_len(&coded, 1, planned.bytes(), 1)?;
                    Ok(coded)
                });
                let problem = |problem: LayoutError| ExportError::Format {
                    format: C::NAME,
                    problem: format!("{}: {problem}", entry.name),
                };
                file.put(&coded.map_err(problem)?)?;
            }
            Ok::<(), ExportError>(())
        })?;
        Ok(bytes)
    }
}
