//! The models whose files are mutated.

use std::collections::BTreeMap;
use std::path::Path;

use maskwright::export::{ct24, torch24};
use maskwright::mask::{MaskFile, Provenance};
use maskwright::model::{Architecture, Checkpoint};
use safetensors::Dtype as Stored;
use serde_json::Value;

use super::oracle::{self, Tensor, Weights};
use crate::host_fixture::{
    self, config_with, masks, tensors, write_config, write_safetensors, write_shards, write_tokenizer,
};

/// Cases of every target that reads whole files.
pub const CASES: u64 = 10_000;

/// A dense model in one file or two, with tensors that the configuration does not call for.
pub fn dense(dir: &Path, changes: Value, sharded: bool) -> Architecture {
    write_config(dir, &config_with(changes));
    let config = Architecture::read(dir).unwrap();
    let mut all = tensors(&config);
    let extra =
        |dtype, shape: &[usize], data: Vec<u8>| host_fixture::Tensor { dtype, shape: shape.into(), data };
    all.insert("extra".into(), extra(Stored::F32, &[2, 3], (0..24).collect()));
    all.insert("extra.empty".into(), extra(Stored::F16, &[0, 4], Vec::new()));
    all.insert("extra.1.bytes".into(), extra(Stored::U8, &[8], (0..8).collect()));
    match sharded {
        true => write_shards(dir, &all),
        false => write_safetensors(&dir.join("model.safetensors"), &all),
    }
    write_tokenizer(dir, 12, 1);
    config
}

pub fn mask_file(dir: &Path, config: &Architecture, pattern: &str, path: &Path) {
    let checkpoint = Checkpoint::open(dir, config).unwrap();
    let set = masks(&checkpoint, config, pattern.parse().unwrap());
    MaskFile::new(set, Provenance::new("magnitude", 3), &checkpoint).unwrap().write(path).unwrap();
}

pub const SINGLE: [&str; 1] = ["model.safetensors"];
pub const SHARDED: [&str; 3] =
    ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The weights of an exported folder, packed ones unpacked.
pub fn unpacked(folder: &Path, dense: &Weights) -> Result<BTreeMap<String, Tensor>, String> {
    let shapes: BTreeMap<&String, &Tensor> = dense.values().flatten().map(|(n, t)| (n, t)).collect();
    let mut all = BTreeMap::new();
    for tensors in oracle::weights(folder)?.into_values() {
        let by_name: BTreeMap<&str, &Tensor> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for (name, tensor) in &tensors {
            let Some((prefix, part)) = name.rsplit_once('.') else {
                all.insert(name.clone(), tensor.clone());
                continue;
            };
            let weight = format!("{prefix}.weight");
            let other = match part {
                "packed" => by_name.get(format!("{prefix}.meta").as_str()),
                "compressed" => by_name.get(format!("{prefix}.bitmask").as_str()),
                "meta" | "bitmask" | "shape" if shapes.contains_key(&weight) => continue,
                _ => None,
            };
            let (Some(other), Some(source)) = (other, shapes.get(&weight)) else {
                all.insert(name.clone(), tensor.clone());
                continue;
            };
            let dtype: Stored =
                serde_json::from_value(tensor.dtype.clone().into()).map_err(|e| e.to_string())?;
            let [rows, cols] = [source.shape[0] as usize, source.shape[1] as usize];
            let data = match part {
                "packed" => torch24::unpack(dtype, rows, cols, &tensor.data, &other.data)
                    .map_err(|e| e.to_string())?,
                _ => ct24::decode(dtype, rows, cols, &tensor.data, &other.data).map_err(|e| e.to_string())?,
            };
            all.insert(weight, Tensor { dtype: tensor.dtype.clone(), shape: source.shape.clone(), data });
        }
    }
    Ok(all)
}

/// -0.0 is 0.0 to the packed formats.
pub fn same_weights(a: &Tensor, b: &Tensor) -> bool {
    let sign = 1 << (8 * a.size() - 1);
    let plain = |t: &Tensor| t.bits().into_iter().map(|b| if b == sign { 0 } else { b }).collect::<Vec<_>>();
    a == b || (a.dtype == b.dtype && a.shape == b.shape && plain(a) == plain(b))
}
