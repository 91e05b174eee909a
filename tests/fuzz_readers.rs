//! Mutated files: each gives an error or a right answer, without a panic, within the memory of the files plus a constant, in bounded
//! time. The same cases at every run. docs/fuzzing.md says how to repeat one and how to add a target.

mod fuzzing;
mod host_fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fuzzing::models::{CASES, SHARDED, SINGLE, dense, mask_file};
use fuzzing::oracle::{self, Tensor, Weights};
use fuzzing::{Case, Corpus, End, fuzz, refused, unmeasured};
use host_fixture::Scratch;
use maskwright::export::{MaskedModel, hf};
use maskwright::fsio::StandIn;
use maskwright::mask::{MaskFile, Pattern};
use maskwright::model::{Architecture, Checkpoint, ModelError, Overlay, Shard, Tokenizer};
use maskwright::verify::{Options, verify};
use serde_json::{Value, json};

// ---- The model -----------------------------------------------------------------------------------------------------

/// Everything that a command does with a model folder before it computes.
fn open(dir: &Path) -> Result<(Architecture, Checkpoint), ModelError> {
    let config = Architecture::read(dir)?;
    let checkpoint = Checkpoint::open(dir, &config)?;
    checkpoint.check_finite(&config)?;
    let tokenizer = Tokenizer::open(dir, &config)?;
    let ids = tokenizer.encode("w3 w5, w7 unknown w11.")?;
    assert!(ids.iter().all(|&id| (id as usize) < config.vocab_size), "an id without an embedding");
    Ok((config, checkpoint))
}

fn read_model(case: &Case<'_>) -> Result<End, String> {
    let (config, checkpoint) = match open(case.folder) {
        Ok(opened) => opened,
        Err(e) => return refused(&e),
    };
    unmeasured(|| {
        let files = oracle::weights(case.folder)?;
        for shard in checkpoint.files() {
            let tensors = &files[shard.file_name()];
            let names = shard.entries().iter().map(|e| e.name.clone());
            if !names.eq(tensors.iter().map(|(name, _)| name.clone())) {
                return Err(format!("{} has other tensors", shard.file_name()));
            }
        }
        let all: Vec<&(String, Tensor)> = files.values().flatten().collect();
        for name in checkpoint.names() {
            // One of an unknown type cannot be had.
            let Ok(view) = checkpoint.tensor(name) else { continue };
            let shape: Vec<u64> = view.shape.iter().map(|&n| n as u64).collect();
            let dtype = view.dtype.to_string();
            let same = |t: &Tensor| t.data == view.data && t.shape == shape && t.dtype == dtype;
            if !all.iter().any(|(n, tensor)| n == name && same(tensor)) {
                return Err(format!("{name} was read wrongly"));
            }
        }
        for spec in config.tensors() {
            let view = checkpoint.tensor(&spec.name).map_err(|e| format!("accepted, but {e}"))?;
            let bad = |t: &Tensor| t.data == view.data && t.any_not_finite();
            if view.shape != spec.shape || all.iter().any(|(n, tensor)| *n == spec.name && bad(tensor)) {
                return Err(format!("{} should have been refused", spec.name));
            }
        }
        Ok(End::Accepted)
    })
}

#[test]
fn model_folder() {
    let dir = Scratch::in_memory();
    dense(dir.path(), json!({}), false);
    let corpus = Corpus::of(dir.path(), &["config.json", SINGLE[0], SINGLE[0], "tokenizer.json"]);
    fuzz("model_folder", &corpus, CASES, read_model);
}

#[test]
fn sharded_model_folder() {
    let dir = Scratch::in_memory();
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32 });
    dense(dir.path(), json!({ "rope_scaling": scaling, "attention_bias": true }), true);
    let files: Vec<&str> = SHARDED.into_iter().chain(["config.json"]).collect();
    fuzz("sharded_model_folder", &Corpus::of(dir.path(), &files), CASES, read_model);
}

/// What lies in the place of a weight file: a pointer of Git LFS, a web page, a server's refusal. Each is named as that or refused as no
/// safetensors file, and what is no pointer any more is not called one.
#[test]
fn stand_ins() {
    let dir = Scratch::in_memory();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 269060552\n",
        "4f".repeat(32)
    );
    fs::write(dir.join("pointer"), pointer).unwrap();
    fs::write(
        dir.join("page.html"),
        "<!DOCTYPE html>\n<html class=\"\"><head><title>Sign in</title></head></html>\n",
    )
    .unwrap();
    fs::write(dir.join("answer.json"), "{\"error\": \"Access to model is restricted\", \"errors\": []}")
        .unwrap();
    let corpus = Corpus::of(dir.path(), &["pointer", "page.html", "answer.json"]);
    fuzz("stand_ins", &corpus, CASES, |case| {
        let bytes = fs::read(case.file).map_err(|e| e.to_string())?;
        let found = StandIn::of(&bytes);
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let small = text.trim_start_matches('\u{feff}').trim_start();
        match found {
            Some(StandIn::LfsPointer) if !small.starts_with("version https://git-lfs") => {
                Err("no pointer".into())
            }
            Some(StandIn::Html) if !small.starts_with('<') => Err("no page".into()),
            None if bytes == corpus.original(case.file) => Err("not known for what it is".into()),
            _ => match Shard::open(case.file) {
                Err(ModelError::StandIn { found: said, .. }) if Some(said) == found => Ok(End::Accepted),
                Err(ModelError::StandIn { found: said, .. }) => Err(format!("{said:?}, not {found:?}")),
                Err(e) => refused(&e),
                Ok(_) => Err("a safetensors file".into()),
            },
        }
    });
}

/// A tokenizer with all that byte-level ones have.
#[test]
fn byte_level_tokenizer() {
    let dir = Scratch::in_memory();
    let village = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/village");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(village.join(file), dir.join(file)).unwrap();
    }
    let config = Architecture::read(dir.path()).unwrap();
    let corpus = Corpus::of(dir.path(), &["tokenizer.json"]);
    fuzz("byte_level_tokenizer", &corpus, 500, |case| {
        let read = Tokenizer::open(case.folder, &config)
            .and_then(|t| t.encode("Once upon a time, é\u{0}\u{10ffff} 12."));
        match read {
            Ok(ids) if ids.iter().any(|&id| id as usize >= config.vocab_size) => {
                Err("an id without an embedding".into())
            }
            Ok(_) => Ok(End::Accepted),
            Err(e) => refused(&e),
        }
    });
}

// ---- The mask ------------------------------------------------------------------------------------------------------

#[test]
fn mask_files() {
    let dir = Scratch::in_memory();
    let config = dense(dir.path(), json!({ "intermediate_size": 32 }), false);
    let patterns = ["2:4", "1:4", "1:2", "4:8", "3:16"];
    let names = patterns.map(|p| format!("{}.safetensors", p.replace(':', "of")));
    for (pattern, name) in patterns.iter().zip(&names) {
        mask_file(dir.path(), &config, pattern, &dir.join(name));
    }
    let files: Vec<&str> = names.iter().map(String::as_str).collect();
    let again = dir.join("again");
    fuzz("mask_files", &Corpus::of(dir.path(), &files), CASES, |case| {
        let file = match MaskFile::read(case.file) {
            Ok(file) => file,
            Err(e) => return refused(&e),
        };
        unmeasured(|| {
            file.set.check().map_err(|e| format!("accepted, but {e}"))?;
            let (expected, [n, m]) = oracle::masks(case.file)?;
            if file.set.pattern.to_string() != format!("{n}:{m}")
                || !expected.keys().eq(file.set.masks.keys())
            {
                return Err("another pattern or other names".into());
            }
            for (name, mask) in &file.set.masks {
                let [rows, cols] = expected[name].shape;
                let kept = (0..rows * cols).map(|i| mask.get(i / cols, i % cols));
                if [rows, cols] != [mask.rows(), mask.cols()] || !kept.eq(expected[name].kept.iter().copied())
                {
                    return Err(format!("{name} was read wrongly"));
                }
            }
            file.write(&again).map_err(|e| format!("cannot be written again: {e}"))?;
            match MaskFile::read(&again) {
                Ok(back) if back == file => Ok(End::Accepted),
                other => Err(format!("comes back as {:?}", other.map(|f| f.provenance))),
            }
        })
    });
}

// ---- verify --------------------------------------------------------------------------------------------------------

/// The masked copy of a model, its parts in place for [`judge`].
struct Masked {
    folder: PathBuf,
    dense: PathBuf,
    mask: MaskFile,
    /// What the weight files must hold.
    expected: Weights,
}

fn masked_model(dir: &Scratch, sharded: bool) -> Masked {
    let (dense_folder, folder, mask) = (dir.join("dense"), dir.join("masked"), dir.join("mask.safetensors"));
    let config = dense(&dense_folder, json!({}), sharded);
    mask_file(&dense_folder, &config, "2:4", &mask);
    let checkpoint = Checkpoint::open(&dense_folder, &config).unwrap();
    let file = MaskFile::read(&mask).unwrap();
    let model = MaskedModel {
        tensors: &Overlay::new(&checkpoint),
        config: &config,
        masks: &file.set,
        provenance: &file.provenance,
    };
    hf::write(&model, &folder).unwrap();
    let expected =
        oracle::expected(&oracle::weights(&dense_folder).unwrap(), &oracle::masks(&mask).unwrap().0);
    assert_eq!(oracle::weights(&folder).unwrap(), expected);
    Masked { folder, dense: dense_folder, mask: file, expected }
}

/// Verifies the folder in one of six ways and holds the verdict against a slow check.
fn judge(masked: &Masked, corpus: &Corpus, case: &Case<'_>) -> Result<End, String> {
    let way = case.number % 6;
    let options = Options {
        permutation: None,
        pattern: (way == 1).then_some(Pattern::TWO_OF_FOUR),
        mask: (way >= 4 || way == 2).then_some(&masked.mask.set),
        against: (way >= 3).then_some(masked.dense.as_path()),
        repaired: way == 5,
        allow_dense: way == 1,
    };
    let verdict = match verify(&masked.folder, &options) {
        Ok(verdict) => verdict,
        Err(e) => return refused(&e),
    };
    unmeasured(|| {
        let found = oracle::weights(&masked.folder)?;
        let original = corpus.original(case.file) == fs::read(case.file).unwrap();
        if verdict.ok != verdict.problems.is_empty() {
            return Err("ok and problems disagree".into());
        }
        if !verdict.ok {
            let right = found == masked.expected && case.file.extension().is_some_and(|e| e == "safetensors");
            return match right || original {
                true => Err(format!("nothing is wrong, but: {}", verdict.problems[0])),
                false => Ok(End::Refused),
            };
        }
        let pattern: Pattern = verdict.pattern.parse().map_err(|_| "a verdict without a pattern")?;
        let numbers = [pattern.n(), pattern.m()];
        let config = Architecture::read(&masked.folder).map_err(|e| e.to_string())?;
        let shapes: BTreeMap<String, [u64; 2]> =
            config.projections().into_iter().map(|p| (p.name, [p.rows as u64, p.cols as u64])).collect();
        let told_dense = dense_by_report(&masked.folder);
        for (name, tensor) in
            found.values().flatten().filter(|(n, t)| shapes.get(n).is_some_and(|s| t.shape == s))
        {
            let may_be_dense = options.mask.is_none() && told_dense.contains(name);
            let looks_dense =
                tensor.bits().iter().filter(|&&b| b != 0).count() * 100 >= tensor.bits().len() * 99;
            if may_be_dense || (options.allow_dense && looks_dense) {
                continue;
            }
            if let Some(where_) = oracle::loose_group(tensor, numbers) {
                return Err(format!("right, but {name}: {where_}"));
            }
        }
        if options.mask.is_some()
            && options.against.is_some()
            && !options.repaired
            && found != masked.expected
        {
            return Err("right, but not what the mask makes of the source".into());
        }
        if options.against.is_some() {
            for (file, tensors) in &masked.expected {
                for ((name, tensor), (other, now)) in tensors.iter().zip(&found[file]) {
                    let whole = name == other && (shapes.contains_key(name) || tensor == now);
                    if !whole {
                        return Err(format!("right, but {other} of {file} is not the source's {name}"));
                    }
                }
            }
            if !original
                && !case.file.ends_with(hf::REPORT)
                && case.file.extension().is_some_and(|e| e == "json")
            {
                return Err("right, but a file differs from the source's".into());
            }
        }
        Ok(End::Accepted)
    })
}

/// What the folder's report leaves dense.
fn dense_by_report(folder: &Path) -> Vec<String> {
    let Ok(text) = fs::read(folder.join(hf::REPORT)) else { return Vec::new() };
    let report: Value = serde_json::from_slice(&text).unwrap_or_default();
    let lines = report["projections"].as_array().cloned().unwrap_or_default();
    let dense = lines.iter().filter(|line| line["masked"] == false);
    dense.filter_map(|line| line["name"].as_str().map(str::to_string)).collect()
}

#[test]
fn verified_folder() {
    let dir = Scratch::in_memory();
    let masked = masked_model(&dir, false);
    let files = [SINGLE[0], SINGLE[0], hf::REPORT, "config.json", "tokenizer.json"];
    let corpus = Corpus::of(&masked.folder, &files);
    fuzz("verified_folder", &corpus, CASES, |case| judge(&masked, &corpus, case));
}

#[test]
fn verified_shards() {
    let dir = Scratch::in_memory();
    let masked = masked_model(&dir, true);
    let corpus = Corpus::of(&masked.folder, &SHARDED);
    fuzz("verified_shards", &corpus, CASES / 2, |case| judge(&masked, &corpus, case));
}
