//! Slow and plain readers of the formats, which share no code with the library, to hold what it accepts against.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

/// Tensors by name, in the order of their data.
pub type Tensors = Vec<(String, Tensor)>;
/// The tensors of each weight file.
pub type Weights = BTreeMap<String, Tensors>;

/// A tensor as a safetensors file has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<u64>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Bytes of an element of the types that weights have.
    pub fn size(&self) -> usize {
        match self.dtype.as_str() {
            "F64" => 8,
            "F32" => 4,
            _ => 2,
        }
    }

    /// The elements, each as its bits.
    pub fn bits(&self) -> Vec<u64> {
        let number = |b: &[u8]| b.iter().rev().fold(0u64, |all, &byte| all << 8 | u64::from(byte));
        self.data.chunks_exact(self.size()).map(number).collect()
    }

    /// Whether an element is NaN or infinite, of F64 also as an f32.
    pub fn any_not_finite(&self) -> bool {
        if self.dtype == "F64" {
            return self.bits().iter().any(|&b| !(f64::from_bits(b) as f32).is_finite());
        }
        let exponent = match self.dtype.as_str() {
            "F32" => 0x7f80_0000,
            "F16" => 0x7c00,
            _ => 0x7f80,
        };
        self.bits().iter().any(|b| b & exponent == exponent)
    }
}

/// The tensors of a file in the order of their data, and its metadata.
pub fn safetensors(path: &Path) -> Result<(Tensors, Map<String, Value>), String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b) as usize).ok_or("no length")?;
    let rest = &bytes[8..];
    let header: Map<String, Value> =
        serde_json::from_slice(rest.get(..length).ok_or("no header")?).map_err(|e| e.to_string())?;
    let data = &rest[length..];
    let mut metadata = Map::new();
    let mut all = Vec::new();
    for (name, info) in header {
        if name == "__metadata__" {
            metadata = info.as_object().cloned().unwrap_or_default();
            continue;
        }
        let offset = |i: usize| info["data_offsets"][i].as_u64().map(|n| n as usize).ok_or("no offset");
        let (begin, end) = (offset(0)?, offset(1)?);
        let shape = info["shape"].as_array().ok_or("no shape")?.iter().filter_map(Value::as_u64).collect();
        let data = data.get(begin..end).ok_or("an offset behind the end")?.to_vec();
        let dtype = info["dtype"].as_str().ok_or("no dtype")?.to_string();
        all.push((begin, end, name, Tensor { dtype, shape, data }));
    }
    all.sort_by_key(|(begin, end, ..)| (*begin, *end));
    let mut next = 0;
    for (begin, end, name, _) in &all {
        if *begin != next {
            return Err(format!("{name} does not begin where the one before ends"));
        }
        next = *end;
    }
    if next != data.len() {
        return Err(format!("{next} bytes are described of {}", data.len()));
    }
    Ok((all.into_iter().map(|(_, _, name, tensor)| (name, tensor)).collect(), metadata))
}

/// The weight files of a folder by name.
pub fn weights(folder: &Path) -> Result<Weights, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.insert(name, safetensors(&path)?.0);
        }
    }
    Ok(all)
}

/// A mask as one truth value a weight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mask {
    pub shape: [usize; 2],
    pub kept: Vec<bool>,
}

/// The masks of a mask file, and N and M.
pub fn masks(path: &Path) -> Result<(BTreeMap<String, Mask>, [usize; 2]), String> {
    let (tensors, metadata) = safetensors(path)?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).ok_or(format!("no {key}"));
    let (n, m) = text("pattern")?.split_once(':').ok_or("no pattern")?;
    let [n, m] = [n, m].map(|t| t.parse::<usize>().unwrap_or(0));
    let described: Map<String, Value> = serde_json::from_str(text("tensors")?).map_err(|e| e.to_string())?;
    let groups = choices(m, n);
    let mut all = BTreeMap::new();
    for (name, tensor) in tensors {
        let name = name.strip_suffix(".nm_index").ok_or("a name")?.to_string();
        let side = |i: usize| described[&name]["shape"][i].as_u64().map(|n| n as usize).ok_or("no shape");
        let shape = [side(0)?, side(1)?];
        let kept = ranks(&tensor.data, groups.len(), shape[0] * shape[1] / m)
            .into_iter()
            .map(|rank| groups.get(rank).cloned().ok_or(format!("rank {rank}")))
            .collect::<Result<Vec<_>, _>>()?
            .concat();
        all.insert(name, Mask { shape, kept });
    }
    Ok((all, [n, m]))
}

/// All ways to keep `n` of `m`, in the lexicographic order of the kept places.
fn choices(m: usize, n: usize) -> Vec<Vec<bool>> {
    if m < n {
        return Vec::new();
    }
    if m == 0 {
        return vec![Vec::new()];
    }
    let behind = |first: bool, rest: Vec<Vec<bool>>| {
        rest.into_iter().map(move |more| [vec![first], more].concat()).collect::<Vec<_>>()
    };
    let mut all = if n > 0 { behind(true, choices(m - 1, n - 1)) } else { Vec::new() };
    all.extend(behind(false, choices(m - 1, n)));
    all
}

/// The packed numbers: three to a byte for six choices, else in bits.
fn ranks(bytes: &[u8], choices: usize, count: usize) -> Vec<usize> {
    if choices == 6 {
        let digits = bytes.iter().flat_map(|&b| [b % 6, b / 6 % 6, b / 36]).map(usize::from);
        return digits.take(count).collect();
    }
    let width = (0..).find(|w| 1usize << w >= choices).unwrap_or(0);
    let bit = |i: usize| usize::from(bytes.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1));
    (0..count).map(|r| (0..width).map(|i| bit(r * width + i) << i).sum()).collect()
}

/// The first group of a weight that keeps more than N of M weights whose bits are not all zero.
pub fn loose_group(tensor: &Tensor, [n, m]: [usize; 2]) -> Option<String> {
    let cols = tensor.shape.last().copied().unwrap_or(1).max(1) as usize;
    for (row, bits) in tensor.bits().chunks(cols).enumerate() {
        for (group, bits) in bits.chunks(m).enumerate() {
            let kept = bits.iter().filter(|&&b| b != 0).count();
            if kept > n {
                return Some(format!("group {group} of row {row} keeps {kept}"));
            }
        }
    }
    None
}

/// The weight with zeros where the mask prunes.
pub fn masked(tensor: &Tensor, mask: &Mask) -> Tensor {
    let mut out = tensor.clone();
    for (weight, &kept) in out.data.chunks_exact_mut(tensor.size()).zip(&mask.kept) {
        if !kept {
            weight.fill(0);
        }
    }
    out
}

/// What a masked copy of the weights must hold: for each file, its tensors in order.
pub fn expected(dense: &Weights, masks: &BTreeMap<String, Mask>) -> Weights {
    let mut all = dense.clone();
    for (name, tensor) in all.values_mut().flatten() {
        if let Some(mask) = masks.get(name).filter(|m| tensor.shape == m.shape.map(|n| n as u64)) {
            *tensor = masked(tensor, mask);
        }
    }
    all
}
