//! The format `sparse-24-bitmask` of compressed-tensors 0.9.0 to 0.14.0.1. A legacy format: newer versions load such a model
//! without an exception and with random weights.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use safetensors::Dtype as Stored;
use serde_json::{Map, Value, json};

use crate::fsio;
use crate::mask::Pattern;

use super::elements;
use super::hf::Summary;
use super::packed::{self, Codec, Coded, Part, Weight};
use super::{ExportError, LayoutError, MaskedModel};

/// The name in config.json.
pub(super) const FORMAT: &str = "sparse-24-bitmask";
/// Which versions read the format and which load it wrong.
pub const WARNING: &str = "ct24 is a legacy format, read only by compressed-tensors 0.9.0 to 0.14.0.1 (with transformers up to \
    5.10.0, and vLLM 0.7.2 to 0.18.1 on Hopper and newer); transformers 5.11.0 and newer with compressed-tensors 0.15.0 and \
    newer load it WITHOUT AN ERROR AND WITH RANDOM WEIGHTS, and vLLM 0.19.0 and newer refuse it; never keep it as the only copy";

/// A compressed weight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compressed {
    /// Two weights of every group of four, `[rows, cols / 2]`, little-endian.
    pub compressed: Vec<u8>,
    /// `[rows, ceil(cols / 8)]`, bit `c % 8` of byte `c / 8` = kept.
    pub bitmask: Vec<u8>,
}

/// Compresses a weight `[rows, cols]`, given as its bytes. A group with fewer than two non-zeros is filled up from its highest
/// columns; -0.0 counts as zero.
///
/// # Errors
/// A type or shape that the format does not have, and a group with more than two non-zeros.
pub fn encode(dtype: Stored, rows: usize, cols: usize, dense: &[u8]) -> Result<Compressed, LayoutError> {
    let size = check(dtype, rows, cols)?;
    elements::expect_len(dense, rows, cols, size)?;
    let per_row = cols.div_ceil(8);
    let mut compressed = Vec::with_capacity(dense.len() / 2);
    let mut bitmask = vec![0u8; rows * per_row];
    let lines = dense.chunks_exact(cols * size).zip(bitmask.chunks_exact_mut(per_row));
    for (r, (row, bits)) in lines.enumerate() {
        for (g, weights) in row.chunks_exact(4 * size).enumerate() {
            let mut flags = 0u8;
            for (i, weight) in weights.chunks_exact(size).enumerate() {
                flags |= u8::from(!elements::is_zero(weight, dtype)) << i;
            }
            if flags.count_ones() > 2 {
                let what = "has more than two weights that are not zero".into();
                return Err(LayoutError::Group { row: r, group: g, what });
            }
            for i in (0..4).rev() {
                if flags.count_ones() < 2 {
                    flags |= 1 << i;
                }
            }
            for (i, weight) in weights.chunks_exact(size).enumerate() {
                if flags >> i & 1 == 1 {
                    compressed.extend_from_slice(weight);
                }
            }
            if let Some(byte) = bits.get_mut(g / 2) {
                *byte |= flags << (g % 2 * 4);
            }
        }
    }
    Ok(Compressed { compressed, bitmask })
}

/// The dense weight of a compressed one.
///
/// # Errors
/// A type or shape that the format does not have, a wrong number of bytes, a group that does not keep two.
pub fn decode(
    dtype: Stored,
    rows: usize,
    cols: usize,
    compressed: &[u8],
    bitmask: &[u8],
) -> Result<Vec<u8>, LayoutError> {
    let size = check(dtype, rows, cols)?;
    elements::expect_len(compressed, rows, cols / 2, size)?;
    elements::expect_len(bitmask, rows, cols.div_ceil(8), 1)?;
    let mut dense = vec![0u8; rows * cols * size];
    let mut values = compressed.chunks_exact(size);
    let lines = dense.chunks_exact_mut(cols * size).zip(bitmask.chunks_exact(cols.div_ceil(8)));
    for (r, (row, bits)) in lines.enumerate() {
        for (g, weights) in row.chunks_exact_mut(4 * size).enumerate() {
            let flags = bits.get(g / 2).map_or(0, |b| b >> (g % 2 * 4) & 15);
            if flags.count_ones() != 2 {
                let what = format!("keeps {} weights in the bitmask, not 2", flags.count_ones());
                return Err(LayoutError::Group { row: r, group: g, what });
            }
            for (i, weight) in weights.chunks_exact_mut(size).enumerate() {
                if flags >> i & 1 == 1 {
                    weight.copy_from_slice(values.next().unwrap_or(&[]));
                }
            }
        }
        // Half a byte is left behind the last group where columns are no multiple of 8.
        if !cols.is_multiple_of(8) && bits.last().is_some_and(|b| b >> 4 != 0) {
            return Err(LayoutError::Unfit(format!(
                "row {r} of the bitmask has a bit set behind its last column"
            )));
        }
    }
    Ok(dense)
}

/// The bytes of an element, when compressed-tensors compresses such weights.
pub(super) fn element_bytes(dtype: Stored) -> Result<usize, String> {
    match dtype {
        Stored::F16 | Stored::BF16 => Ok(2),
        Stored::F32 => Ok(4),
        Stored::I8 | Stored::F8_E4M3 => Ok(1),
        other => Err(format!("the format has no weights of type {other}")),
    }
}

/// The bytes of an element, when the format has such weights.
fn check(dtype: Stored, rows: usize, cols: usize) -> Result<usize, String> {
    let size = element_bytes(dtype)?;
    if rows == 0 || cols == 0 || !cols.is_multiple_of(4) {
        return Err(format!("{rows} x {cols} does not fit: columns must be a multiple of 4"));
    }
    Ok(size)
}

/// Writes the model to the new folder `out`, with the format's entry in config.json.
///
/// # Errors
/// As [`super::hf::write`]; and [`ExportError::Format`] when no projection can be packed.
pub fn write(model: &MaskedModel<'_>, out: &Path) -> Result<Summary, ExportError> {
    packed::write(&Ct24, model, out)
}

pub(super) struct Ct24;

impl Codec for Ct24 {
    const NAME: &'static str = "ct24";
    const VALUES: &'static str = "compressed";

    fn fits(&self, _: Pattern, Weight { dtype, rows, cols }: Weight) -> Result<(), String> {
        // Rows of the bitmask are whole bytes in every version.
        if !cols.is_multiple_of(8) {
            return Err(format!("its {cols} columns are no multiple of 8"));
        }
        check(elements::stored(dtype), rows, cols).map(|_| ())
    }

    fn parts(&self, Weight { dtype, rows, cols }: Weight) -> Vec<Part> {
        vec![
            Part::new(Self::VALUES, elements::stored(dtype), [rows, cols / 2]),
            Part::new("bitmask", Stored::U8, [rows, cols.div_ceil(8)]),
            Part::new("shape", Stored::I64, [2, 1]),
        ]
    }

    fn encode(&self, weight: Weight, masked: &[u8], part: &str) -> Result<Vec<u8>, LayoutError> {
        if part == "shape" {
            return Ok(shape(weight));
        }
        let done = encode(elements::stored(weight.dtype), weight.rows, weight.cols, masked)?;
        Ok(if part == "bitmask" { done.bitmask } else { done.compressed })
    }

    fn decode(&self, weight: Weight, parts: &[&[u8]]) -> Result<Vec<u8>, LayoutError> {
        let [values, bitmask, told] = *parts else {
            return Err(LayoutError::Unfit("it has three parts".into()));
        };
        if told != shape(weight) {
            let Weight { rows, cols, .. } = weight;
            return Err(LayoutError::Unfit(format!("its stored shape is not {rows} x {cols}")));
        }
        decode(elements::stored(weight.dtype), weight.rows, weight.cols, values, bitmask)
    }

    fn shard_name(&self, _: usize, _: usize, source: &str) -> String {
        source.into()
    }

    fn finish(&self, folder: &Path, done: &Coded<'_>) -> Result<(), ExportError> {
        let path = folder.join("config.json");
        let text = fs::read(&path).map_err(|source| ExportError::Read { path: path.clone(), source })?;
        let unusable = |problem: String| ExportError::Format { format: Self::NAME, problem };
        let mut config: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|e| unusable(format!("config.json cannot be parsed: {e}")))?;
        if config.contains_key("quantization_config") {
            return Err(unusable("config.json has a `quantization_config` already".into()));
        }
        config.insert("quantization_config".into(), entry(done));
        let text = format!("{:#}", Value::Object(config));
        fsio::write_bytes(&path, text.as_bytes())?;
        if done.shards.len() > 1 {
            let index =
                json!({ "metadata": { "total_size": done.total_size }, "weight_map": done.weight_map });
            fsio::write_bytes(
                &folder.join("model.safetensors.index.json"),
                format!("{index:#}\n").as_bytes(),
            )?;
        }
        Ok(())
    }
}

/// The bytes of the part that holds rows and columns.
fn shape(weight: Weight) -> Vec<u8> {
    [weight.rows, weight.cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect()
}

/// The entry of config.json, as the library 0.14.0.1 writes it. What stays dense is named in `ignore`.
fn entry(done: &Coded<'_>) -> Value {
    let mut ignore = vec!["lm_head".to_string()];
    let dense = done.projections.iter().filter(|p| p.dense_because.is_some());
    let modules: BTreeSet<&str> = dense.map(|p| packed::prefix(&p.stored)).collect();
    ignore.extend(modules.into_iter().map(String::from));
    json!({
        "quant_method": "compressed-tensors",
        "sparsity_config": {
            "format": FORMAT,
            "global_sparsity": done.pruned as f64 / done.parameters.max(1) as f64,
            "ignore": ignore,
            "registry_requires_subclass": false,
            "sparsity_structure": "2:4",
            "targets": ["Linear"],
        },
        "transform_config": {},
        "version": "0.14.0.1",
    })
}
