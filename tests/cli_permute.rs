//! `prune --permute` by the built command: what it writes, and that the other commands follow.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cli_tools::{command, json, json_file, perplexity, preset, run, succeeds, village, village_text};
use host_fixture::Scratch;
use maskwright::mask::MaskFile;
use maskwright::model::{Architecture, Channels, Checkpoint, Permutation};

fn prune(out: &Path, more: &[&str]) -> Vec<std::ffi::OsString> {
    let mut all = args![
        "prune",
        village(),
        "--calib",
        village_text("calib"),
        "--windows",
        "8",
        "--window",
        "64",
        "--eval",
        village_text("heldout"),
        "--eval-window",
        "64",
        "--eval-windows",
        "16",
        "--preset",
        preset(),
        "--quiet",
        "--out",
        out,
    ]
    .to_vec();
    all.extend(more.iter().map(Into::into));
    all
}

fn refused(args: &[std::ffi::OsString], words: &[&str]) {
    let told = run(args);
    assert_ne!(told.code, Some(0), "{}", told.out);
    for word in words {
        assert!(told.err.contains(word), "no {word:?} in: {}", told.err);
    }
    assert_eq!(told.err.trim().lines().count(), 1, "{}", told.err);
}

fn eval(folder: &Path, more: &[std::ffi::OsString]) -> f64 {
    let mut all = args![
        "eval",
        folder,
        "--text",
        village_text("heldout"),
        "--window",
        "64",
        "--windows",
        "16",
        "--json",
        "--preset",
        preset()
    ]
    .to_vec();
    all.extend_from_slice(more);
    json(&succeeds(&all).out)["perplexity"].as_f64().expect("a perplexity")
}

/// From the dense model to a masked one in another order, and back: run, export, verify, eval, inspect, a run from its mask.
#[test]
fn a_permuted_run_and_what_follows_it() {
    let dir = Scratch::new();
    let (plain, out) = (dir.join("plain"), dir.join("permuted"));
    succeeds(&prune(&plain, &["--method", "wanda"]));
    succeeds(&prune(&out, &["--method", "wanda", "--permute", "ffn,heads,residual"]));
    let (file, mask, model) =
        (out.join("permutation.safetensors"), out.join("mask.safetensors"), out.join("model"));
    let permutation = Permutation::read(&file).expect("a permutation");
    assert_eq!(permutation.channels(), Channels::ALL);
    assert_eq!(permutation.problem(&Architecture::read(&village()).expect("a model")), None);
    let told = json_file(&out.join("run.json"));
    assert_eq!(told["permutation"]["hash"], permutation.hash().as_str());
    for gain in told["permutation"]["kept_score"].as_array().expect("gains") {
        assert!(gain["after"].as_f64() > gain["before"].as_f64(), "{gain}");
    }
    assert_eq!(MaskFile::read(&mask).expect("a mask").permutation, Some(permutation.hash()));
    let before = json_file(&plain.join("run.json"));
    let (dense, dense_before) = (perplexity(&told, "dense"), perplexity(&before, "dense"));
    assert!((dense / dense_before - 1.0).abs() < 1e-5, "{dense_before} became {dense}");
    println!("wanda {} -> {}", perplexity(&before, "result"), perplexity(&told, "result"));
    assert!(perplexity(&told, "result") < perplexity(&before, "result"));

    // The permutation is found beside the folder, or the mask.
    succeeds(args!["verify", model, "--against", village(), "--mask", mask]);
    succeeds(args!["verify", model, "--against", village()]);
    let exported = dir.join("exported");
    succeeds(args!["export", village(), "--mask", mask, "--out", exported]);
    let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).expect("weights");
    assert_eq!(bytes(&exported), bytes(&model));
    succeeds(args!["verify", exported, "--against", village(), "--mask", mask]);
    refused(args!["verify", exported, "--against", village()], &["exported", "--permutation"]);
    succeeds(args!["verify", exported, "--against", village(), "--permutation", file]);
    let applied = dir.join("applied");
    succeeds(args!["apply-mask", village(), "--mask", mask, "--out", applied]);
    assert_eq!(bytes(&applied), bytes(&model));
    // One that is in the order already.
    let again = dir.join("again");
    succeeds(args!["apply-mask", model, "--mask", mask, "--out", again]);
    assert_eq!(bytes(&again), bytes(&model));

    // One that was saved anew, and has no report.
    let tuned = dir.join("tuned");
    fs::create_dir(&tuned).expect("a folder");
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(village().join(name), tuned.join(name)).expect("a copy");
    }
    let dense = Permuted::village(&permutation, dir.path());
    fs::write(tuned.join("model.safetensors"), dense.0).expect("weights");
    let told = succeeds(args!["apply-mask", tuned, "--mask", mask, "--out", dir.join("tuned-24")]);
    assert!(told.err.contains("in the order of"), "{}", told.err);
    assert_eq!(bytes(&dir.join("tuned-24")), bytes(&model));

    let of_model = eval(&model, &[]);
    for (folder, more) in [
        (village(), args!["--mask", mask].to_vec()),
        (village(), args!["--mask", mask, "--permutation", file].to_vec()),
        (model.clone(), args!["--mask", mask].to_vec()),
    ] {
        let found = eval(&folder, &more);
        assert!((found / of_model - 1.0).abs() < 1e-6, "{found} {of_model}");
    }
    let inspected = json(&succeeds(args!["inspect", mask, plain, "--json"]).out);
    assert_eq!(inspected["permutation"], permutation.hash().as_str());
    assert_eq!(inspected["other_order"], true);
    assert!(succeeds(args!["inspect", out]).out.contains("permutation.safetensors"));

    // A run from its mask is in its order.
    let given = dir.join("given");
    succeeds(&prune(&given, &["--method", "given", "--start", mask.to_str().expect("a name")]));
    assert_eq!(Permutation::read(&given.join("permutation.safetensors")).expect("one"), permutation);
    assert_eq!(bytes(&given.join("model")), bytes(&model));
    let start = mask.to_str().expect("a name");
    refused(
        &prune(&dir.join("no"), &["--method", "given", "--start", start, "--permute", "ffn"]),
        &["leave --permute out"],
    );
    refused_runs(&dir, &mask, &model);
}

/// The file of the dense model in another order.
struct Permuted(Vec<u8>);

impl Permuted {
    fn village(permutation: &Permutation, near: &Path) -> Self {
        let config = Architecture::read(&village()).expect("a model");
        let dense = Checkpoint::open(&village(), &config).expect("weights");
        let permuted = dense.permuted(&config, permutation, near).expect("permuted weights");
        let shard = &permuted.files()[0];
        let data = shard.entries().iter().flat_map(|entry| shard.data(entry).to_vec());
        Self(shard.header_bytes().iter().copied().chain(data).collect())
    }
}

/// Permutations that are missing, damaged, or of another run.
fn refused_runs(dir: &Scratch, mask: &Path, model: &Path) {
    let alone = dir.join("alone.safetensors");
    fs::copy(mask, &alone).expect("a copy");
    let to = dir.join("none");
    refused(
        args!["export", village(), "--mask", alone, "--out", to],
        &["alone.safetensors", "permutation.safetensors", "--permutation"],
    );
    refused(
        args!["eval", village(), "--mask", alone, "--text", village_text("heldout"), "--quiet"],
        &["--permutation"],
    );
    let other = dir.join("other");
    succeeds(&prune(&other, &["--method", "magnitude", "--permute", "ffn", "--seed", "3", "--no-model"]));
    let file = other.join("permutation.safetensors");
    let wrong = args!["export", village(), "--mask", mask, "--permutation", file, "--out", to];
    refused(wrong, &["another permutation"]);
    refused(args!["verify", model, "--against", village(), "--permutation", file], &["another permutation"]);
    refused(
        args!["export", model, "--mask", other.join("mask.safetensors"), "--out", to],
        &["another permutation"],
    );
    // Damaged.
    let (damaged, mut bytes) = (dir.join("permutation.safetensors"), fs::read(&file).expect("bytes"));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&damaged, bytes).expect("written");
    refused(args!["export", village(), "--mask", alone, "--out", to], &["permutation.safetensors", "`hash`"]);
    assert!(!to.exists());
}

/// A run that is killed goes on in the order in which it was begun, and in no other.
#[test]
fn a_killed_run_goes_on_in_its_order() {
    let dir = Scratch::new();
    let method = ["--method", "descent", "--permute", "ffn,heads"];
    let (alone, killed) = (dir.join("alone"), dir.join("killed"));
    succeeds(&prune(&alone, &method));
    let mut child = command()
        .args(prune(&killed, &method))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let started = Instant::now();
    while !killed.join("manifest.json").is_file() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("a kill");
    child.wait().expect("an end");
    let resumed = |more: &[&str]| {
        let mut all = prune(&killed, more);
        all.iter_mut().filter(|word| *word == "--out").for_each(|word| *word = "--resume".into());
        all
    };
    refused(&resumed(&["--method", "descent"]), &["cannot resume", "permutation"]);
    refused(&resumed(&["--method", "descent", "--permute", "ffn"]), &["--permute ffn,heads"]);
    succeeds(&resumed(&method));
    let files = |run: &Path| -> Vec<Vec<u8>> {
        let names: [PathBuf; 3] =
            ["mask.safetensors", "permutation.safetensors", "model/model.safetensors"].map(Into::into);
        names.map(|name| fs::read(run.join(name)).expect("a file")).to_vec()
    };
    assert_eq!(files(&killed), files(&alone));
}
