//! What `tests/cuts.rs` walks through without a device, through real kernels: a model of 64 features under limits and budgets that are shrunk in
//! proportion, so that it is cut where one of 16384 features is. The binding limit of 20 KiB holds 16 rows of the Gram matrix of
//! 256 features, so it lies in 16 chunks, and so do, in 2 to 6, the weights, their f32 copies under training, their logits and moments, the
//! feed-forward layer and the output matrix; a budget that is 4096 times smaller makes panels, strips and copies of 8 to 64 rows.
//!
//! What may differ: rows do not depend on each other, so cuts along rows change no bit. Cuts along a sum do: the Gram matrix's blocks of
//! tokens, products with a square matrix in chunks, the two inputs of down, gradients by inputs over panels. A sum of K terms added up in any
//! order is within `(K - 1) eps sum |a b|` of the exact one, eps = 2^-24 (Higham, Accuracy and Stability, 4.2), so two orders are within
//! twice that: with the largest K here, 256 inputs, and the sums of absolute values that random signs make, about sqrt(K) times the sum
//! itself, `2 * 255 * 16 * eps = 5e-4`. Errors of layers and losses, sums of squares of such sums, are held to twice that, 1e-3 (measured: 3e-7).
//! Descent has one thing more: under a cut matrix the smallest gain that counts is taken from a row's error at every chunk instead of every
//! fourth sweep; masks may differ where gains are about that small, 1e-6 of the error, and few do.

mod cli_tools;
mod host_fixture;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cli_tools::{json, json_file, preset, run, succeeds, village, village_text};
use host_fixture::Scratch;
use safetensors::SafeTensors;
use serde_json::Value;

/// Twice the distance of two orders of summation, of a square.
const BOUND: f64 = 1e-3;
/// Groups of 2:4 whose mask may differ, of all: near ties.
const TIES: f64 = 2e-3;

const SHRUNK: [&str; 2] = ["--shrink", "4096"];
const BOUND_SMALL: [&str; 4] = ["--max-binding-bytes", "20480", "--shrink", "4096"];

/// The first blocks of the embedded model.
fn blocks(scratch: &Scratch, count: usize) -> PathBuf {
    let folder = scratch.join("model");
    fs::create_dir_all(&folder).expect("a folder");
    let bytes = fs::read(village().join("model.safetensors")).expect("weights");
    let all = SafeTensors::deserialize(&bytes).expect("safetensors");
    let kept = all.tensors().into_iter().filter(|(name, _)| {
        let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        block.is_none_or(|block: usize| block < count)
    });
    safetensors::serialize_to_file(kept, None, &folder.join("model.safetensors")).expect("written");
    let mut config = json_file(&village().join("config.json"));
    config["num_hidden_layers"] = count.into();
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    fs::copy(village().join("tokenizer.json"), folder.join("tokenizer.json")).expect("copied");
    folder
}

/// What a run leaves: masks and weights by tensor, and the numbers of its metrics.
struct Left {
    masks: BTreeMap<String, Vec<u8>>,
    weights: BTreeMap<String, Vec<u8>>,
    metrics: Vec<Value>,
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all = SafeTensors::deserialize(&bytes).expect("safetensors");
    all.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

fn prune(scratch: &Scratch, model: &Path, name: &str, arguments: &[&[&str]]) -> Left {
    let out = scratch.join(name);
    let mut all = args!["prune", model, "--calib", village_text("calib"), "--out", out.clone()].to_vec();
    let windows = ["--segments", "sequential", "--windows", "4", "--window", "32", "--batch", "2"];
    let plain = ["--preset", preset(), "--no-report", "--quiet", "--json"];
    let more = arguments.iter().copied().flatten().copied();
    all.extend(windows.into_iter().chain(plain).chain(more).map(OsString::from));
    succeeds(&all);
    let text = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let left = Left {
        masks: tensors(&out.join("mask.safetensors")),
        weights: tensors(&out.join("model/model.safetensors")),
        metrics: text.lines().map(json).collect(),
    };
    fs::remove_dir_all(out).expect("removed");
    left
}

/// What two runs differ in: bits of masks, as a share of all; the largest relative difference of errors and losses.
fn differences(a: &Left, b: &Left) -> (f64, f64) {
    let (mut bits, mut all) = (0, 0);
    for (name, mask) in &a.masks {
        bits += mask.iter().zip(&b.masks[name]).map(|(x, y)| (x ^ y).count_ones()).sum::<u32>();
        all += 8 * mask.len();
    }
    assert_eq!(a.metrics.len(), b.metrics.len(), "lines of metrics");
    let mut most = 0.0f64;
    for (x, y) in a.metrics.iter().zip(&b.metrics) {
        for key in ["error", "start", "repaired", "loss"] {
            if let (Some(x), Some(y)) = (x[key].as_f64(), y[key].as_f64()) {
                most = most.max((x - y).abs() / x.abs().max(f64::MIN_POSITIVE));
            }
        }
    }
    (f64::from(bits) / f64::from(all as u32), most)
}

/// Runs `method` uncut, with small budgets, and with a small binding limit, too. With small budgets alone every bit is the same where
/// nothing but rows is cut.
fn check(name: &str, rows_only: bool, method: &[&str]) {
    let scratch = Scratch::new();
    let model = blocks(&scratch, 2);
    let whole = prune(&scratch, &model, "whole", &[method]);
    assert!(!whole.masks.is_empty() && !whole.metrics.is_empty());
    if rows_only {
        let shrunk = prune(&scratch, &model, "shrunk", &[method, &SHRUNK]);
        assert!(whole.masks == shrunk.masks, "{name}: masks in panels");
        assert!(whole.weights == shrunk.weights, "{name}: weights in panels");
        assert_eq!(differences(&whole, &shrunk), (0.0, 0.0), "{name}: numbers in panels");
    }
    let bound = prune(&scratch, &model, "bound", &[method, &BOUND_SMALL]);
    let (ties, most) = differences(&whole, &bound);
    println!("{name}: masks differ in {ties:.1e} of their bits, numbers by {most:.1e}");
    assert!(ties <= TIES, "{name}: masks differ in {ties:e} of their bits");
    assert!(most <= allowed(ties), "{name}: numbers differ by {most:e}");
}

/// How far numbers may be apart: where a near tie has fallen the other way, what comes behind it in its row does, too.
fn allowed(ties: f64) -> f64 {
    if ties == 0.0 { BOUND } else { 5.0 * BOUND }
}

const DENSE: [&str; 2] = ["--inputs", "dense"];

#[test]
fn scores() {
    check("magnitude", true, &["--method", "magnitude"]);
    check("wanda", true, &[&["--method", "wanda", "--repair", "lstsq"], &DENSE[..]].concat());
    check("ria", true, &[&["--method", "ria"], &DENSE[..]].concat());
}

#[test]
fn second_order() {
    check("sparsegpt", true, &[&["--method", "sparsegpt", "--repair", "update"], &DENSE[..]].concat());
    check("descent", true, &[&["--method", "descent"], &DENSE[..]].concat());
}

#[test]
fn learned_by_blocks() {
    let steps = ["--start", "wanda", "--steps", "3"];
    let relaxed = ["--method", "relaxed", "--repair", "block", "--repair-steps", "2"];
    check("relaxed, block", false, &[&relaxed[..], &steps].concat());
    check("maskllm", false, &[&["--method", "maskllm"], &steps[..]].concat());
}

#[test]
fn learned_by_the_model() {
    let steps = ["--start", "wanda", "--steps", "3"];
    let model = ["--objective", "model", "--repair", "model", "--repair-steps", "2"];
    check("relaxed, model", false, &[&["--method", "relaxed"], &model[..], &steps].concat());
    check("proxsparse", false, &[&["--method", "proxsparse"], &steps[..]].concat());
    check("maskpro", false, &[&["--method", "maskpro"], &steps[..]].concat());
}

/// A down projection whose panel is no multiple of four rows, as those of 14336 and 18944 inputs are at 64 MiB: 1170.3 and 885.6 rows
/// there, 18.3 of 256 here.
#[test]
fn odd_panels() {
    let scratch = Scratch::new();
    let model = blocks(&scratch, 1);
    // 64 MiB / 3584 = 18 724 bytes = 18.3 rows of 256 f32, 73.1 of 64; a binding of 37 440 holds 36.6 rows.
    let odd = ["--shrink", "3584", "--max-binding-bytes", "37440", "--only", "down_proj"];
    let all = ["--only", "down_proj"];
    for method in [&["--method", "descent"][..], &["--method", "wanda", "--repair", "lstsq"]] {
        let whole = prune(&scratch, &model, "whole", &[method, &all]);
        let cut = prune(&scratch, &model, "cut", &[method, &odd]);
        let (ties, most) = differences(&whole, &cut);
        assert!(ties <= TIES && most <= allowed(ties), "{method:?}: {ties:e} of the bits, {most:e}");
    }
}

/// Published models by their config.json alone: what `--recipe best` would take, at every binding limit.
#[test]
fn plans_of_published_models() {
    let scratch = Scratch::new();
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published");
    let mut files: Vec<_> =
        fs::read_dir(published).expect("the folder").flatten().map(|f| f.path()).collect();
    files.sort();
    let limits: [u64; 4] = [128 << 20, 256 << 20, 1 << 30, (2 << 30) - 4];
    let mut planned = 0;
    for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "json")) {
        let family = json_file(path)["model_type"].clone();
        if !["llama", "mistral", "qwen2"].iter().any(|f| family == *f) {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let folder = scratch.join(&name);
        fs::create_dir_all(&folder).expect("a folder");
        fs::copy(path, folder.join("config.json")).expect("copied");
        // The widest inputs at every limit, the others in turn.
        let all = ["llama-3.1-405b", "qwen2.5-7b"].contains(&name.as_str());
        let chosen = limits.iter().enumerate().filter(|(i, _)| all || *i == planned % limits.len());
        for (_, limit) in chosen {
            let arguments = args![
                "prune",
                folder.clone(),
                "--dry-run",
                "--recipe",
                "best",
                "--quiet",
                "--json",
                "--preset",
                preset(),
                "--max-binding-bytes",
                limit.to_string()
            ];
            // The plan is there even where this machine has not the memory for it.
            let ran = run(arguments);
            let fits = ran.code == Some(0) || ran.err.contains("error: the plan takes");
            assert!(fits, "{name} at {limit}: {}", ran.err);
            let plan = json(&ran.out);
            assert!(plan["total"].as_u64().is_some_and(|n| n > 0), "{name} at {limit}: {plan}");
        }
        planned += 1;
    }
    assert!(planned >= 25, "{planned} models");
}
