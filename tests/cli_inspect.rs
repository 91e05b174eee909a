//! `maskwright inspect`: mask files, model folders and run folders, alone and compared.

mod cli_tools;
mod host_fixture;

use std::fs;

use cli_tools::{fails, json, succeeds};
use host_fixture::{Scratch, edit_tensor, masks, mentions, packable};
use maskwright::mask::{MaskFile, Pattern, Provenance, npz};
use maskwright::model::Checkpoint;
use serde_json::Value;

const UP1: &str = "model.layers.1.mlp.up_proj.weight";
const Q0: &str = "model.layers.0.self_attn.q_proj.weight";

/// `dense`, `mask` and the folders `hf`, `torch24` and `ct24`; the projection UP1 is left dense.
fn setup(pattern: &str) -> Scratch {
    let dir = Scratch::new();
    packable(dir.path(), pattern.parse().unwrap(), &[UP1]);
    for format in ["hf", "torch24", "ct24"] {
        let out = dir.join(format);
        let (dense, mask) = (dir.join("dense"), dir.join("mask"));
        succeeds(args!["export", dense, "--mask", mask, "--format", format, "--out", out, "--legacy-ct24"]);
    }
    dir
}

fn row<'a>(found: &'a Value, name: &str) -> &'a Value {
    found["projections"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap()
}

#[test]
fn every_kind_is_told_with_its_pattern() {
    for pattern in ["2:4", "1:4", "2:8", "1:2"] {
        let dir = setup(pattern);
        let mask = json(&succeeds(args!["inspect", dir.join("mask"), "--json"]).out);
        assert_eq!((mask["kind"].as_str(), mask["method"].as_str()), (Some("mask"), Some("magnitude")));
        assert_eq!(mask["pattern"], pattern);
        assert_eq!(mask["projections"].as_array().unwrap().len(), 13);
        for format in ["hf", "torch24", "ct24"] {
            let found = json(&succeeds(args!["inspect", dir.join(format), "--json"]).out);
            let kind = if format == "hf" { "dense" } else { format };
            assert_eq!((found["kind"].as_str(), found["pattern"].as_str()), (Some(kind), Some(pattern)));
            let rows = found["projections"].as_array().unwrap();
            assert_eq!(rows.len(), 14);
            assert_eq!((rows[0]["name"].as_str(), rows[0]["pattern"].as_str()), (Some(Q0), Some(pattern)));
            assert_eq!(row(&found, UP1)["pattern"], Value::Null);
            assert_eq!(row(&found, Q0)["kept"], row(&mask, Q0)["kept"]);
        }
    }
    let dir = setup("2:4");
    let ran = succeeds(args!["inspect", dir.join("hf")]);
    mentions(
        &ran.out,
        &["projection", "pattern", "64 x 64", "2:4", "50.00", "none", "14 projections", "% of"],
    );
    let ran = succeeds(args!["inspect", dir.join("dense")]);
    mentions(&ran.out, &["no usual pattern", "0.00 % of"]);
}

#[test]
fn two_masks_are_compared() {
    let dir = setup("2:4");
    let compare =
        |a: &str, b: &str| json(&succeeds(args!["inspect", dir.join(a), dir.join(b), "--json"]).out);
    // A mask and what was made with it.
    for format in ["hf", "torch24", "ct24"] {
        let found = compare("mask", format);
        let sum = &found["agreement"];
        assert_eq!(sum["groups"], sum["identical_groups"]);
        assert_eq!(sum["kept"], sum["shared"]);
        assert_eq!(found["only_in_one"], serde_json::json!([UP1]));
    }
    // One group of one weight differs.
    edit_tensor(&dir.join("hf"), Q0, |data| {
        let group = &mut data[8..16];
        let kept = (0..4).find(|i| group[2 * i..2 * i + 2] != [0, 0]).unwrap();
        let pruned = (0..4).find(|i| group[2 * i..2 * i + 2] == [0, 0]).unwrap();
        group[2 * kept..2 * kept + 2].fill(0);
        group[2 * pruned..2 * pruned + 2].copy_from_slice(&[0, 0x3c]);
    });
    let found = compare("mask", "hf");
    let q = &row(&found, Q0)["agreement"];
    assert_eq!((q["groups"].as_u64(), q["identical_groups"].as_u64()), (Some(1024), Some(1023)));
    assert_eq!((q["kept"].as_u64(), q["shared"].as_u64()), (Some(2048), Some(2047)));
    let ran = succeeds(args!["inspect", dir.join("mask"), dir.join("hf")]);
    mentions(&ran.out, &["same groups %", "99.90", "99.95", "1 projections are in only one of the two", UP1]);
    // Against the dense model: all that is kept is there.
    let found = compare("mask", "dense");
    assert_eq!(found["agreement"]["identical_groups"], 0);
    assert_eq!(found["agreement"]["kept"], found["agreement"]["shared"]);
}

#[test]
fn run_folders_and_npz_files_are_read() {
    let dir = setup("2:4");
    let run = dir.join("run");
    fs::create_dir(&run).unwrap();
    fails(args!["inspect", run], &["run", "neither a config.json nor a mask.safetensors"]);
    fs::rename(dir.join("hf"), run.join("model")).unwrap();
    assert_eq!(json(&succeeds(args!["inspect", run, "--json"]).out)["kind"], "dense");
    fs::copy(dir.join("mask"), run.join("mask.safetensors")).unwrap();
    assert_eq!(json(&succeeds(args!["inspect", run, "--json"]).out)["kind"], "mask");

    let (npz, dense) = (dir.join("mask.npz"), dir.join("dense"));
    let export =
        args!["export", dense, "--mask", dir.join("mask"), "--format", "maskllm-npz", "--out", npz].to_vec();
    succeeds(&export);
    fails(args!["inspect", npz], &["mask.npz", "--model"]);
    let found = json(&succeeds(args!["inspect", npz, "--model", dense, "--json"]).out);
    assert_eq!((found["pattern"].as_str(), found["kind"].as_str()), (Some("2:4"), Some("mask")));
    // The other of the two says the shapes.
    for pair in [args!["inspect", npz, run, "--json"], args!["inspect", dir.join("ct24"), npz, "--json"]] {
        let sum = &json(&succeeds(pair).out)["agreement"];
        assert_eq!(sum["groups"], sum["identical_groups"]);
    }
}

#[test]
fn what_cannot_be_inspected_is_named() {
    let dir = setup("2:4");
    fails(args!["inspect", dir.join("absent")], &["absent", "cannot read"]);
    fails(args!["inspect", dir.join("dense/model-00001-of-00002.safetensors")], &["not a usable mask file"]);
    fs::write(dir.join("text"), "hello, this is no mask").unwrap();
    fails(args!["inspect", dir.join("text")], &["text", "not a whole safetensors file"]);
    edit_tensor(&dir.join("torch24"), "model.layers.0.self_attn.q_proj.meta", |data| data[0] = 0);
    fails(args!["inspect", dir.join("torch24")], &[Q0, "group 0 of row 0", "metadata 0x0"]);
    // Other shapes.
    let other = Scratch::new();
    let config = host_fixture::model(other.path());
    let checkpoint = Checkpoint::open(other.path(), &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    npz::write(&set, &config.projections(), &other.join("mask.npz")).unwrap();
    let file = MaskFile::new(set, Provenance::new("magnitude", 0), &checkpoint).unwrap();
    file.write(&other.join("mask")).unwrap();
    fails(
        args!["inspect", dir.join("mask"), other.join("mask")],
        &["[64, 96]", "[16, 24]", "different models"],
    );
    fails(args!["inspect", other.join("mask.npz"), "--model", dir.join("dense")], &["mask.npz", "bytes"]);
}
