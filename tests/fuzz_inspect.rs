//! Mutated npz masks, `inspect`, and `verify` of packed folders: as tests/fuzz_readers.rs.

mod fuzzing;
mod host_fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fuzzing::models::{CASES, dense, mask_file, same_weights, unpacked};
use fuzzing::oracle::{self, Tensor, Weights};
use fuzzing::{Case, Corpus, End, fuzz, npz, refused, unmeasured};
use host_fixture::Scratch;
use maskwright::export::{MaskedModel, ct24, hf, torch24};
use maskwright::mask::{MaskFile, npz as npz_file};
use maskwright::model::{Architecture, Checkpoint, Overlay};
use maskwright::verify::{Inspection, Options, inspect, verify};
use serde_json::json;

/// A dense model, its mask in both forms, and its masked copy in every format.
struct Room {
    dense: PathBuf,
    config: Architecture,
    mask: MaskFile,
    /// What the weight files of the masked copy hold.
    expected: Weights,
}

fn room(dir: &Scratch) -> Room {
    let folder = dir.join("dense");
    let sizes = json!({ "hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 1 });
    let config = dense(&folder, sizes, false);
    mask_file(&folder, &config, "2:4", &dir.join("mask.safetensors"));
    mask_file(&folder, &config, "2:4", &dir.join("clean.safetensors"));
    let mask = MaskFile::read(&dir.join("mask.safetensors")).unwrap();
    npz_file::write(&mask.set, &config.projections(), &dir.join("mask.npz")).unwrap();
    let checkpoint = Checkpoint::open(&folder, &config).unwrap();
    let (tensors, masks, provenance) = (&Overlay::new(&checkpoint), &mask.set, &mask.provenance);
    let model = MaskedModel { tensors, config: &config, masks, provenance };
    hf::write(&model, &dir.join("hf")).unwrap();
    torch24::write(&model, &dir.join("torch24")).unwrap();
    ct24::write(&model, &dir.join("ct24")).unwrap();
    let masks = oracle::masks(&dir.join("mask.safetensors")).unwrap().0;
    let expected = oracle::expected(&oracle::weights(&folder).unwrap(), &masks);
    Room { dense: folder, config, mask, expected }
}

#[test]
fn npz_masks() {
    let dir = Scratch::in_memory();
    let room = room(&dir);
    let projections = room.config.projections();
    fuzz("npz_masks", &Corpus::of(dir.path(), &["mask.npz"]), CASES, |case| {
        let pattern = (case.number % 2 == 1).then_some(room.mask.set.pattern);
        let file = match MaskFile::open(case.file, &projections, pattern) {
            Ok(file) => file,
            Err(e) => return refused(&e),
        };
        unmeasured(|| {
            file.set.check().map_err(|e| format!("accepted, but {e}"))?;
            let found = npz::masks(&fs::read(case.file).unwrap())?;
            for p in &projections {
                let kept = found.get(&p.name).ok_or(format!("{} is missing", p.name))?;
                let same = match file.set.get(&p.name) {
                    Some(mask) => (0..p.rows * p.cols).all(|i| mask.get(i / p.cols, i % p.cols) == kept[i]),
                    None => kept.iter().all(|&kept| kept),
                };
                if !same {
                    return Err(format!("{} was read wrongly", p.name));
                }
            }
            Ok(End::Accepted)
        })
    });
}

/// Kept weights of each projection, by a slow count.
fn slow_count(path: &Path, found: &Inspection, room: &Room) -> Result<BTreeMap<String, u64>, String> {
    let ones = |kept: &[bool]| kept.iter().filter(|&&kept| kept).count() as u64;
    match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => {
            Ok(npz::masks(&fs::read(path).unwrap())?.iter().map(|(n, k)| (n.clone(), ones(k))).collect())
        }
        Some(_) => Ok(oracle::masks(path)?.0.iter().map(|(n, m)| (n.clone(), ones(&m.kept))).collect()),
        None => {
            let names: Vec<&String> = found.projections.iter().map(|row| &row.name).collect();
            let mut all = unpacked(path, &room.expected)?;
            all.retain(|name, _| names.contains(&name));
            let count = |t: &Tensor| t.bits().iter().filter(|&&b| b != 0).count() as u64;
            Ok(all.iter().map(|(name, tensor)| (name.clone(), count(tensor))).collect())
        }
    }
}

#[test]
fn inspected() {
    let dir = Scratch::in_memory();
    let room = room(&dir);
    let files = [
        "mask.safetensors",
        "mask.npz",
        "hf/model.safetensors",
        "hf/config.json",
        "torch24/torch24-00001-of-00001.safetensors",
        "torch24/torch24.json",
        "ct24/model.safetensors",
        "ct24/config.json",
    ];
    let corpus = Corpus::of(dir.path(), &files);
    let clean = dir.join("clean.safetensors");
    fuzz("inspected", &corpus, CASES, |case| {
        let above = case.file.parent().unwrap_or(case.folder);
        let path = if above == case.folder { case.file } else { above };
        let other = (case.number % 2 == 1).then_some(clean.as_path());
        let model = path.extension().is_some_and(|e| e == "npz").then_some(room.dense.as_path());
        let found = match inspect(path, other, model) {
            Ok(found) => found,
            Err(e) => return refused(&e),
        };
        unmeasured(|| {
            // Projections that a mask leaves dense are not listed.
            let counted = slow_count(path, &found, &room)?;
            for row in &found.projections {
                let kept = counted.get(&row.name).ok_or(format!("{} is not there", row.name))?;
                if row.kept != *kept || row.kept > row.rows as u64 * row.cols as u64 {
                    return Err(format!("{}: {} kept, not {kept}", row.name, row.kept));
                }
                let agreement = row.agreement.unwrap_or_default();
                if agreement.identical_groups > agreement.groups || agreement.shared > row.kept {
                    return Err(format!("{}: more agrees than there is", row.name));
                }
            }
            match found.kept == found.projections.iter().map(|row| row.kept).sum::<u64>() {
                true => Ok(End::Accepted),
                false => Err("the sum is wrong".into()),
            }
        })
    });
}

/// Verifies a packed folder beside its source and mask, or alone.
fn judge(room: &Room, folder: &Path, case: &Case<'_>) -> Result<End, String> {
    let whole = case.number % 2 == 1;
    let options = Options {
        mask: whole.then_some(&room.mask.set),
        against: whole.then_some(room.dense.as_path()),
        ..Options::default()
    };
    let verdict = match verify(folder, &options) {
        Ok(verdict) => verdict,
        Err(e) => return refused(&e),
    };
    unmeasured(|| {
        if !verdict.ok {
            return Ok(End::Refused);
        }
        let found = unpacked(folder, &room.expected)?;
        let expected: BTreeMap<&String, &Tensor> =
            room.expected.values().flatten().map(|(n, t)| (n, t)).collect();
        for p in room.config.projections() {
            let Some(tensor) = found.get(&p.name) else { return Err(format!("{} is missing", p.name)) };
            let same = expected.get(&p.name).is_some_and(|t| same_weights(t, tensor));
            if let Some(place) = oracle::loose_group(tensor, [2, 4]) {
                return Err(format!("right, but {}: {place}", p.name));
            }
            if whole && !same {
                return Err(format!("right, but {} is another", p.name));
            }
        }
        Ok(End::Accepted)
    })
}

#[test]
fn verified_torch24() {
    let dir = Scratch::in_memory();
    let room = room(&dir);
    let folder = dir.join("torch24");
    let shard = "torch24-00001-of-00001.safetensors";
    let corpus = Corpus::of(&folder, &[shard, shard, "torch24.json", "config.json", hf::REPORT]);
    fuzz("verified_torch24", &corpus, CASES, |case| judge(&room, &folder, case));
}

#[test]
fn verified_ct24() {
    let dir = Scratch::in_memory();
    let room = room(&dir);
    let folder = dir.join("ct24");
    let corpus = Corpus::of(&folder, &["model.safetensors", "model.safetensors", "config.json", hf::REPORT]);
    fuzz("verified_ct24", &corpus, CASES, |case| judge(&room, &folder, case));
}
