//! The masked model in Hugging Face layout: dense with zeros.
//!
//! The source's shards are copied one by one under their own names, with their own headers (so: the same names, types,
//! order and layout), pruned weights set to +0.0 and every other byte unchanged; config.json and all other files are
//! copied as they are. No sparsity entry goes into config.json, since current vLLM refuses models that have one. What was
//! done is told by `sparsity_report.json` beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::fsio::{self, FsError, PendingFolder, shown};
use crate::mask::{BitMask, MaskError, Masks};
use crate::model::{
    Architecture, Checkpoint, Dtype, Overlay, ProjectionKind, Shard, ShardEntry, read_json_object,
};

use super::copy::{copy_others, inside, list_others};
use super::elements;
use super::{ExportError, MaskedModel};

/// The sidecar's name.
pub const REPORT: &str = "sparsity_report.json";
/// More than any report: 200 bytes a projection.
const LIMIT_REPORT: u64 = 64 << 20;

/// What was written.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes of the weight files.
    pub weight_bytes: u64,
    /// Weights of all projections, pruned or not.
    pub projection_weights: u64,
    /// Weights set to zero.
    pub pruned_weights: u64,
    /// Files of the source that were not copied, relative to it: other copies of the dense weights and hidden folders.
    pub left_out: Vec<PathBuf>,
    /// Projections that a packed format stores dense, with the reason; empty for the others.
    pub stored_dense: Vec<(String, String)>,
}

/// One projection in the report.
#[derive(Serialize)]
struct Line {
    name: String,
    rows: usize,
    cols: usize,
    pruned: u64,
    sparsity: f64,
    /// False for a projection without a mask.
    masked: bool,
    #[serde(skip)]
    kind: &'static str,
}

/// Writes the masked model to the new folder `out`, whose parents are created. Takes the memory of one weight row and, of masks in a
/// file, of one mask; of a fused or transposed tensor, that of the tensor. `out`
/// appears only once it is complete and on the disk; after an error there is nothing.
///
/// # Errors
/// [`ExportError`]: the mask is not strict or does not fit, `out` exists and is not empty or lies inside the source,
/// the system refuses a read or a write.
pub fn write(model: &MaskedModel<'_>, out: &Path) -> Result<Summary, ExportError> {
    model.masks.check_model(model.config)?;
    check_destination(model.tensors.base(), out)?;
    in_new_folder(out, |folder| fill(model, folder))
}

/// Lets `fill` write into a folder that becomes `out` once all of it is on the disk.
pub(super) fn in_new_folder(
    out: &Path,
    fill: impl FnOnce(&Path) -> Result<Summary, ExportError>,
) -> Result<Summary, ExportError> {
    let pending = PendingFolder::create(out)?;
    // A failed write must name the place the user asked for, not the temporary one.
    let result = fill(pending.path()).map_err(|e| rename_in_error(e, pending.path(), out))?;
    pending.commit()?;
    Ok(Summary { folder: out.into(), ..result })
}

/// The hash of the permutation that the model in a folder is in, where its report says so.
pub fn permutation_of(folder: &Path) -> Option<String> {
    let map = read_json_object(&folder.join(REPORT), LIMIT_REPORT, "check that it may be read").ok()?;
    map.get("permutation")?.as_str().map(String::from)
}

/// Whether `out` is neither the folder of `checkpoint` nor in it.
///
/// # Errors
/// [`ExportError::InsideSource`], or that the folder cannot be read.
pub fn check_outside(checkpoint: &Checkpoint, out: &Path) -> Result<(), ExportError> {
    let source = checkpoint.folder();
    if inside(source, out)? {
        return Err(ExportError::InsideSource { out: out.into(), source_folder: source.into() });
    }
    Ok(())
}

/// Whether a masked copy of `checkpoint` can lie at `out`, as [`write()`] checks; to be asked before long work.
///
/// # Errors
/// As [`check_copied`], and [`FsError::NoRoom`].
pub fn check_destination(checkpoint: &Checkpoint, out: &Path) -> Result<(), ExportError> {
    check_outside(checkpoint, out)?;
    Ok(fsio::check_space(out, written_bytes(checkpoint)?)?)
}

/// Bytes of a masked copy: its weights and what is copied as it is; the report beside them takes some hundred bytes a projection more.
///
/// # Errors
/// That something of the source cannot be read that the copy needs.
pub fn written_bytes(checkpoint: &Checkpoint) -> Result<u64, ExportError> {
    let others = list_others(checkpoint.folder(), &not_copied(checkpoint))?;
    Ok(weight_bytes(checkpoint).saturating_add(others.bytes))
}

/// Bytes of the weight files of a masked copy: those of the source.
fn weight_bytes(checkpoint: &Checkpoint) -> u64 {
    checkpoint.files().iter().map(|shard| shard.len() as u64).sum()
}

/// Whether what an export of `checkpoint` to `out` copies as it is can be read, and `out` lies elsewhere. Returns the bytes of it.
///
/// # Errors
/// [`ExportError::InsideSource`], or that something of the source cannot be read that the copy needs.
pub fn check_copied(checkpoint: &Checkpoint, out: &Path) -> Result<u64, ExportError> {
    check_outside(checkpoint, out)?;
    Ok(list_others(checkpoint.folder(), &not_copied(checkpoint))?.bytes)
}

/// How many weights that the masks prune are not zero in the tensors (-0.0 is not counted).
///
/// # Errors
/// [`ExportError::Model`] when a tensor is missing, [`ExportError::Mask`] when one has another shape.
pub fn nonzero_pruned(tensors: &Overlay<'_>, masks: &dyn Masks) -> Result<u64, ExportError> {
    let mut count = 0;
    for (name, found) in masks.shapes() {
        let view = tensors.tensor(name)?;
        if view.shape != found {
            let expected = [view.rows(), view.row_len()];
            return Err(MaskError::Shape { tensor: name.into(), expected, found }.into());
        }
        let Some(mask) = masks.mask(name)? else { continue };
        let (size, dtype) = (view.dtype.size(), elements::stored(view.dtype));
        let words = mask.words().chunks_exact(mask.words_per_row().max(1));
        for (words, row) in words.zip(view.data.chunks_exact((mask.cols() * size).max(1))) {
            for (weight, col) in row.chunks_exact(size).zip(0..) {
                let pruned = words.get(col / 32).is_some_and(|w| w >> (col % 32) & 1 == 0);
                count += u64::from(pruned && !elements::is_zero(weight, dtype));
            }
        }
    }
    Ok(count)
}

fn fill(model: &MaskedModel<'_>, folder: &Path) -> Result<Summary, ExportError> {
    let checkpoint = model.tensors.base();
    for shard in checkpoint.files() {
        write_shard(shard, model, &folder.join(shard.file_name()))?;
    }
    let copied = copy_others(checkpoint.folder(), folder, &not_copied(checkpoint))?;
    let summary = finish(model, folder, copied.left_out)?;
    Ok(Summary { weight_bytes: weight_bytes(checkpoint), ..summary })
}

/// Writes the report; the summary lacks the bytes of the weights.
pub(super) fn finish(
    model: &MaskedModel<'_>,
    folder: &Path,
    left_out: Vec<PathBuf>,
) -> Result<Summary, ExportError> {
    let lines = lines(model.config, model.masks);
    let projection_weights = lines.iter().map(|l| l.rows as u64 * l.cols as u64).sum();
    let pruned_weights = lines.iter().map(|l| l.pruned).sum();
    let report = report(model, &lines, &left_out);
    fsio::write_bytes(&folder.join(REPORT), report.as_bytes())?;
    Ok(Summary {
        folder: folder.into(),
        weight_bytes: 0,
        projection_weights,
        pruned_weights,
        left_out,
        stored_dense: Vec::new(),
    })
}

/// The files of a folder that the export writes anew or leaves away: the shards, an older report of a source that was
/// masked itself, and beside a single file an index, which describes other files.
pub(crate) fn not_copied(checkpoint: &Checkpoint) -> Vec<PathBuf> {
    let mut skip = vec![PathBuf::from(REPORT)];
    skip.extend(checkpoint.files().iter().map(|shard| PathBuf::from(shard.file_name())));
    if skip.contains(&PathBuf::from("model.safetensors")) {
        skip.push("model.safetensors.index.json".into());
    }
    skip
}

/// Copies one safetensors file with the pruned weights set to +0.0.
fn write_shard(shard: &Shard, model: &MaskedModel<'_>, path: &Path) -> Result<(), ExportError> {
    fsio::write_atomic(path, |file| {
        file.put(shard.header_bytes())?;
        // The entries cover the data without a gap and in order.
        for entry in shard.entries() {
            if let Some(bytes) = put_together(model, shard, entry)? {
                file.put(&bytes)?;
                continue;
            }
            let data = bytes_of(model.tensors, shard, entry);
            match (mask_of(model, entry)?, Dtype::from_stored(entry.dtype)) {
                (Some(mask), Some(dtype)) => {
                    for_masked_rows(data, &mask, dtype.size(), |row| file.put(row))?;
                }
                _ => file.put(data)?,
            }
        }
        Ok(())
    })
}

/// The bytes of an entry that holds projections as parts, or transposed, each under its mask; nothing for another one.
pub(super) fn put_together(
    model: &MaskedModel<'_>,
    shard: &Shard,
    entry: &ShardEntry,
) -> Result<Option<Vec<u8>>, ExportError> {
    let mut parts = model.tensors.base().parts_of(&entry.name).peekable();
    let (Some(dtype), true) = (Dtype::from_stored(entry.dtype), parts.peek().is_some()) else {
        return Ok(None);
    };
    let mut bytes = shard.data(entry).to_vec();
    for part in parts {
        let data = model.tensors.tensor(&part.name)?.data;
        let Some(mask) = model.masks.mask(&part.name)? else {
            part.scatter(data, &mut bytes, dtype.size());
            continue;
        };
        let mut masked = Vec::with_capacity(data.len());
        for_masked_rows(data, &mask, dtype.size(), |row| {
            masked.extend_from_slice(row);
            Ok(())
        })?;
        part.scatter(&masked, &mut bytes, dtype.size());
    }
    Ok(Some(bytes))
}

/// The mask of an entry that is a projection's weight. The same name in two shards: only the one of the right shape can be it.
pub(super) fn mask_of<'a>(
    model: &MaskedModel<'a>,
    entry: &ShardEntry,
) -> Result<Option<Cow<'a, BitMask>>, MaskError> {
    match model.masks.shape(&entry.name) {
        Some(shape) if entry.shape == shape => model.masks.mask(&entry.name),
        _ => Ok(None),
    }
}

/// The stored bytes of a shard's entry. A re-fitted weight has the shape and type of the one in the file.
pub(super) fn bytes_of<'a>(tensors: &'a Overlay<'_>, shard: &'a Shard, entry: &ShardEntry) -> &'a [u8] {
    match tensors.tensor(&entry.name) {
        Ok(view) if tensors.replaces(&entry.name) => view.data,
        _ => shard.data(entry),
    }
}

/// Hands on a weight `[rows, cols]` row by row; all bytes of a pruned weight become 0, which is +0.0 in every type.
pub(super) fn for_masked_rows(
    data: &[u8],
    mask: &BitMask,
    size: usize,
    mut take: impl FnMut(&[u8]) -> Result<(), FsError>,
) -> Result<(), FsError> {
    let words = mask.words().chunks_exact(mask.words_per_row().max(1));
    let mut row = vec![0; mask.cols() * size];
    for (words, bytes) in words.zip(data.chunks_exact(row.len().max(1))) {
        row.copy_from_slice(bytes);
        match size {
            2 => zero_pruned::<2>(&mut row, words),
            8 => zero_pruned::<8>(&mut row, words),
            _ => zero_pruned::<4>(&mut row, words),
        }
        take(&row)?;
    }
    Ok(())
}

/// Zeroes the pruned weights, of `S` bytes each, of a row. Without a branch on the mask's bits, which no processor predicts.
fn zero_pruned<const S: usize>(row: &mut [u8], words: &[u32]) {
    for (weights, word) in row.chunks_mut(32 * S).zip(words) {
        for (weight, i) in weights.chunks_exact_mut(S).zip(0..32) {
            let keep = ((word >> i & 1) as u8).wrapping_neg();
            weight.iter_mut().for_each(|byte| *byte &= keep);
        }
    }
}

fn lines(config: &Architecture, masks: &dyn Masks) -> Vec<Line> {
    let projections = config.projections().into_iter();
    let line = projections.map(|p| {
        let total = p.rows as u64 * p.cols as u64;
        let masked = masks.shape(&p.name).is_some();
        let pruned = if masked { masks.pattern().pruned(total) } else { 0 };
        let sparsity = pruned as f64 / total as f64;
        Line { name: p.name, rows: p.rows, cols: p.cols, pruned, sparsity, masked, kind: p.kind.short() }
    });
    line.collect()
}

fn report(model: &MaskedModel<'_>, lines: &[Line], left_out: &[PathBuf]) -> String {
    let MaskedModel { tensors, masks, provenance, .. } = model;
    let kept = match tensors.replaces_any() {
        true => "re-fitted after pruning",
        false => "bit-identical to the source",
    };
    let total: u64 = lines.iter().map(|l| l.rows as u64 * l.cols as u64).sum();
    let pruned: u64 = lines.iter().map(|l| l.pruned).sum();
    let mut kinds: BTreeMap<&str, usize> = ProjectionKind::ALL.map(|kind| (kind.short(), 0)).into();
    for line in lines.iter().filter(|l| l.masked) {
        *kinds.entry(line.kind).or_default() += 1;
    }
    let mut value = json!({
        "format_version": 1,
        "pattern": masks.pattern().to_string(),
        "meaning": format!("{} consecutive weights along in_features", masks.pattern().words()),
        "method": provenance.method,
        "seed": provenance.seed,
        "written_by": provenance.written_by,
        "kept_weights": kept,
        "projection_weights": total,
        "pruned_weights": pruned,
        "sparsity": pruned as f64 / total.max(1) as f64,
        "masked_projections_by_kind": kinds,
        "not_copied": left_out.iter().map(|path| shown(path)).collect::<Vec<_>>(),
        "projections": lines,
    });
    if let Some(permutation) = tensors.base().permutation() {
        value["permutation"] = permutation.into();
    }
    let mut text = format!("{value:#}");
    text.push('\n');
    text
}

/// Puts the destination in the place of the temporary folder in an error's path.
fn rename_in_error(error: ExportError, temporary: &Path, out: &Path) -> ExportError {
    match error {
        ExportError::Write(FsError::Os { action, path, source }) => {
            let path = path.strip_prefix(temporary).map(|rest| out.join(rest)).unwrap_or(path);
            ExportError::Write(FsError::Os { action, path, source })
        }
        other => other,
    }
}
