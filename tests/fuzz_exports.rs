//! Exports of mutated models and masks, and the packed layouts alone: as tests/fuzz_readers.rs, and what is written is read again.

mod fuzzing;
mod host_fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fuzzing::models::{CASES, SHARDED, dense, mask_file, same_weights, unpacked};
use fuzzing::mutate::Rng;
use fuzzing::oracle::{self, Weights};
use fuzzing::{Corpus, End, fuzz, refused, unmeasured};
use host_fixture::{Scratch, tensors, write_safetensors};
use maskwright::export::{ExportError, MaskedModel, ct24, hf, torch24};
use maskwright::mask::MaskFile;
use maskwright::model::{Architecture, Checkpoint, Overlay};
use safetensors::Dtype as Stored;
use serde_json::Value;

/// Small sizes, of which three quarters fit torch24.
const SIZES: &str = r#"{"hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 1}"#;

/// Reads model and mask and writes one of the formats, as the command does.
fn export(dir: &Path, out: &Path, number: u64) -> Result<(), ExportError> {
    let dense = dir.join("dense");
    let config = Architecture::read(&dense)?;
    let checkpoint = Checkpoint::open(&dense, &config)?;
    let file = MaskFile::read(&dir.join("mask.safetensors"))?;
    file.differing_sources(&checkpoint)?;
    file.set.check_model(&config)?;
    let mut tensors = Overlay::new(&checkpoint);
    if number & 4 == 4 {
        tensors.add(&dir.join("refitted.safetensors"))?;
    }
    hf::nonzero_pruned(&tensors, &file.set)?;
    let write = match number % 4 {
        0 => hf::write,
        1 => torch24::write,
        2 => ct24::write,
        _ => {
            let file = MaskFile::new(file.set, file.provenance, &checkpoint)?;
            return Ok(file.write(out)?);
        }
    };
    let (masks, provenance) = (&file.set, &file.provenance);
    write(&MaskedModel { tensors: &tensors, config: &config, masks, provenance }, out)?;
    Ok(())
}

/// Tensor to file, by the index of a folder.
fn index(folder: &Path) -> BTreeMap<String, String> {
    let text = fs::read(folder.join(SHARDED[0])).unwrap_or_default();
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    serde_json::from_value(value["weight_map"].clone()).unwrap_or_default()
}

/// The masked weights that the exported folder must hold: those of the files that the index names.
fn right_weights(dir: &Path, refitted: bool) -> Result<Weights, String> {
    let mut dense = oracle::weights(&dir.join("dense"))?;
    let index = index(&dir.join("dense"));
    dense.retain(|file, _| index.values().any(|named| named == file));
    if refitted {
        let new: BTreeMap<_, _> =
            oracle::safetensors(&dir.join("refitted.safetensors"))?.0.into_iter().collect();
        for (name, tensor) in dense.values_mut().flatten() {
            *tensor = new.get(name).unwrap_or(tensor).clone();
        }
    }
    Ok(oracle::expected(&dense, &oracle::masks(&dir.join("mask.safetensors"))?.0))
}

fn check_export(dir: &Path, out: &Path, number: u64) -> Result<(), String> {
    if number % 4 == 3 {
        let written = oracle::masks(out)?;
        return match written == oracle::masks(&dir.join("mask.safetensors"))? {
            true => Ok(()),
            false => Err("another mask was written".into()),
        };
    }
    let expected = right_weights(dir, number & 4 == 4)?;
    if number.is_multiple_of(4) {
        return match oracle::weights(out)? == expected {
            true => Ok(()),
            false => Err("other weights were written".into()),
        };
    }
    if number % 4 == 2 && expected.len() > 1 {
        let written = index(out);
        // What the index promises and no file holds is not read, as in transformers.
        let holds = |name: &str, file: &str| {
            expected.get(file).is_some_and(|f| f.iter().any(|(held, _)| held == name))
        };
        for (name, file) in index(&dir.join("dense")).into_iter().filter(|(name, file)| holds(name, file)) {
            let packed = format!("{}.compressed", name.strip_suffix(".weight").unwrap_or(&name));
            if written.get(&name).or(written.get(&packed)) != Some(&file) {
                return Err(format!("{name} is not in {file} any more"));
            }
        }
    }
    let found = unpacked(out, &expected)?;
    let all: BTreeMap<_, _> = expected.into_values().flatten().collect();
    let same = found.keys().eq(all.keys()) && all.iter().all(|(name, t)| same_weights(t, &found[name]));
    if same { Ok(()) } else { Err("the packed weights are others".into()) }
}

#[test]
fn exports() {
    let dir = Scratch::in_memory();
    let (dense_folder, out) = (dir.join("dense"), dir.join("out"));
    let config = dense(&dense_folder, serde_json::from_str(SIZES).unwrap(), true);
    mask_file(&dense_folder, &config, "2:4", &dir.join("mask.safetensors"));
    let mut some = tensors(&config);
    some.retain(|name, _| name.ends_with("q_proj.weight"));
    some.values_mut().for_each(|t| t.data.fill(0x3c));
    write_safetensors(&dir.join("refitted.safetensors"), &some);
    let shards = SHARDED.map(|file| format!("dense/{file}"));
    let mut files: Vec<&str> = shards.iter().map(String::as_str).collect();
    files.extend(["dense/config.json", "mask.safetensors", "mask.safetensors", "refitted.safetensors"]);
    let corpus = Corpus::of(dir.path(), &files);
    // Every export is flushed to the disk, which is slow where no folder in memory is known.
    let cases = if Scratch::has_memory() { CASES } else { CASES / 10 };
    fuzz("exports", &corpus, cases, |case| {
        let result = export(dir.path(), &out, case.number);
        unmeasured(|| {
            let end = match result {
                Err(e) if out.exists() => Err(format!("an error, and the output is there: {e}")),
                Err(e) => refused(&e),
                Ok(()) => check_export(dir.path(), &out, case.number).map(|()| End::Accepted),
            };
            let _ = if out.is_dir() { fs::remove_dir_all(&out) } else { fs::remove_file(&out).or(Ok(())) };
            end
        })
    });
}

/// The packed layouts alone, over many shapes: what decodes encodes again and decodes to the same.
#[test]
fn packed_layouts() {
    let dir = Scratch::in_memory();
    fs::write(dir.join("values"), [0x11; 4096]).unwrap();
    fs::write(dir.join("places"), [0xe4; 512]).unwrap();
    let corpus = Corpus::of(dir.path(), &["values", "places"]);
    fuzz("packed_layouts", &corpus, CASES, |case| {
        let mut rng = Rng::new(1, case.number);
        let dtype =
            *rng.pick(&[Stored::F16, Stored::BF16, Stored::F32, Stored::I8, Stored::F8_E4M3, Stored::U8]);
        let size = dtype.bitsize() / 8;
        let rows = *rng.pick(&[32, 32, 32, 64, 64, 16, 1, 0, 31, usize::MAX, 1 << 62]);
        let cols = *rng.pick(&[64, 64, 64, 128, 128, 32, 4, 0, 63, usize::MAX, 1 << 33]);
        let torch = case.number.is_multiple_of(2);
        let (mut values, mut places) =
            (fs::read(dir.join("values")).unwrap(), fs::read(dir.join("places")).unwrap());
        if !torch {
            places.iter_mut().filter(|b| **b == 0xe4).for_each(|b| *b = 0x35);
        }
        // As many bytes as it takes, more often than not.
        if let Some(n) = usize::checked_mul(rows, cols).filter(|&n| n < 1 << 16 && rng.below(8) > 0) {
            let per_row = if torch { cols / 8 } else { cols.div_ceil(8) };
            values.resize(n / 2 * size, 0x22);
            places.resize(rows * per_row, if torch { 0x44 } else { 0x33 });
        }
        let decoded = match torch {
            true => torch24::unpack(dtype, rows, cols, &values, &places),
            false => ct24::decode(dtype, rows, cols, &values, &places),
        };
        let dense = match decoded {
            Ok(dense) => dense,
            Err(e) => return refused(&e),
        };
        let again = match torch {
            true => torch24::pack(dtype, rows, cols, &dense)
                .and_then(|c| torch24::unpack(dtype, rows, cols, &c.packed, &c.meta)),
            false => ct24::encode(dtype, rows, cols, &dense)
                .and_then(|c| ct24::decode(dtype, rows, cols, &c.compressed, &c.bitmask)),
        };
        match again {
            Ok(again) if same_elements(&again, &dense, size, dtype == Stored::I8) => Ok(End::Accepted),
            Ok(_) => Err(format!("{dtype} {rows} x {cols} comes back otherwise")),
            Err(e) => Err(format!("{dtype} {rows} x {cols} does not come back: {e}")),
        }
    });
}

/// Equal but for the sign of zero.
fn same_elements(a: &[u8], b: &[u8], size: usize, integer: bool) -> bool {
    let zero = |x: &[u8]| {
        let (last, rest) = x.split_last().unwrap_or((&0, &[]));
        rest.iter().all(|&b| b == 0) && (*last == 0 || (*last == 0x80 && !integer))
    };
    let pairs = a.chunks_exact(size).zip(b.chunks_exact(size));
    a.len() == b.len() && pairs.into_iter().all(|(a, b)| a == b || (zero(a) && zero(b)))
}
