//! `maskwright verify` on folders of the packed formats.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::Path;

use cli_tools::{json, json_file, run, succeeds};
use host_fixture::{Scratch, edit_tensor, mentions, packable, tensors, write_shards};
use maskwright::mask::{MaskFile, Pattern, Provenance};
use maskwright::model::Checkpoint;
use serde_json::json;

const Q0: &str = "model.layers.0.self_attn.q_proj";
const UP1: &str = "model.layers.1.mlp.up_proj.weight";

/// `dense`, `mask`, and `out` in a format.
fn exported(format: &str, pattern: &str) -> Scratch {
    let dir = Scratch::new();
    packable(dir.path(), pattern.parse().unwrap(), &[UP1]);
    export(&dir, format);
    dir
}

fn export(dir: &Scratch, format: &str) {
    let (dense, mask, out) = (dir.join("dense"), dir.join("mask"), dir.join("out"));
    succeeds(args!["export", dense, "--mask", mask, "--format", format, "--out", out, "--legacy-ct24"]);
}

/// The error must be one line with these parts, with the source beside it or not.
#[track_caller]
fn wrong(dir: &Scratch, against: bool, parts: &[&str]) {
    let mut all = args!["verify", dir.join("out")].to_vec();
    if against {
        all.extend(args!["--against", dir.join("dense")].to_vec());
    }
    let ran = run(&all);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    mentions(ran.err.lines().find(|l| l.starts_with("error: ")).unwrap(), parts);
    assert!(!ran.err.contains("panicked"));
}

#[test]
fn good_folders_pass() {
    for (format, pattern) in [
        ("torch24", "2:4"),
        ("torch24", "1:4"),
        ("torch24", "2:8"),
        ("ct24", "2:4"),
        ("ct24", "1:2"),
        ("ct24", "1:8"),
    ] {
        let dir = exported(format, pattern);
        let (out, dense, mask) = (dir.join("out"), dir.join("dense"), dir.join("mask"));
        for way in [
            args!["verify", out].to_vec(),
            args!["verify", out, "--against", dense].to_vec(),
            args!["verify", out, "--against", dense, "--mask", mask, "--pattern", pattern].to_vec(),
        ] {
            let ran = run(&way);
            assert_eq!(ran.code, Some(0), "{format} {pattern} {way:?}\n{}{}", ran.out, ran.err);
            mentions(
                &ran.out,
                &[&format!("right: 13 projections are strictly {pattern}, 1 dense, {format}")],
            );
        }
        let found = json(&succeeds(args!["verify", out, "--against", dense, "--json"]).out);
        assert_eq!((found["format"].as_str(), found["ok"].as_bool()), (Some(format), Some(true)));
        assert_eq!(found["projections"].as_array().unwrap().len(), 14);
        // In the order of the computation, as for a dense folder.
        assert_eq!(found["projections"][0]["name"].as_str().unwrap(), format!("{Q0}.weight"));
    }
}

/// The packed formats take no notice of the sign of a zero: neither may the check.
#[test]
fn a_kept_negative_zero_is_no_fault() {
    for format in ["torch24", "ct24"] {
        let dir = Scratch::new();
        let config = packable(dir.path(), Pattern::TWO_OF_FOUR, &[]);
        let mut changed = tensors(&config);
        for (name, tensor) in changed.iter_mut().filter(|(name, _)| name.contains("_proj")) {
            let size = if name.contains(".layers.") { 2 } else { 4 };
            tensor.data.chunks_exact_mut(size).step_by(3).for_each(|w| w.copy_from_slice(&[0, 0x80]));
            tensor.data.chunks_exact_mut(size).skip(1).step_by(5).for_each(|w| w.fill(0));
        }
        write_shards(&dir.join("dense"), &changed);
        let checkpoint = Checkpoint::open(&dir.join("dense"), &config).unwrap();
        let set = host_fixture::masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
        let file = MaskFile::new(set, Provenance::new("magnitude", 3), &checkpoint).unwrap();
        file.write(&dir.join("mask")).unwrap();
        export(&dir, format);
        succeeds(args![
            "verify",
            dir.join("out"),
            "--against",
            dir.join("dense"),
            "--mask",
            dir.join("mask")
        ]);
    }
}

#[test]
fn damaged_torch24_metadata_are_found_where_they_are() {
    let (weight, meta, values) = (format!("{Q0}.weight"), format!("{Q0}.meta"), format!("{Q0}.packed"));
    // Byte 0 holds the groups 0 and 1 of row 0; element 8, its bytes 16 and 17, the first groups of row 1.
    for (byte, at) in [(0, "group 0 of row 0"), (16, "group 0 of row 1"), (17, "group 2 of row 1")] {
        let dir = exported("torch24", "2:4");
        edit_tensor(&dir.join("out"), &meta, |data| data[byte] &= 0xf0);
        wrong(&dir, false, &[&weight, at, "metadata 0x0"]);
        wrong(&dir, true, &[&weight, at]);
    }
    // Other places that are allowed: only the source can tell.
    let dir = exported("torch24", "2:4");
    edit_tensor(&dir.join("out"), &meta, |data| {
        data[0] = data[0] & 0xf0 | if data[0] & 15 == 4 { 14 } else { 4 }
    });
    succeeds(args!["verify", dir.join("out")]);
    wrong(&dir, true, &[&weight, "group 0 of row 0"]);
    // A kept weight.
    let dir = exported("torch24", "2:4");
    edit_tensor(&dir.join("out"), &values, |data| data[(5 * 32 + 6) * 2] ^= 1);
    wrong(&dir, true, &[&weight, "group 3 of row 5", "bits are not those of the source"]);
    // 1:4 keeps one, the layout has room for two.
    let dir = exported("torch24", "1:4");
    edit_tensor(&dir.join("out"), &values, |data| data[..4].fill(0x3c));
    wrong(&dir, false, &[&weight, "group 0 of row 0", "keeps 2 weights", "1:4"]);
}

#[test]
fn damaged_ct24_metadata_are_found_where_they_are() {
    let (weight, bits) = (format!("{Q0}.weight"), format!("{Q0}.bitmask"));
    let dir = exported("ct24", "2:4");
    edit_tensor(&dir.join("out"), &bits, |data| data[8 + 3] |= 0xf0);
    for against in [false, true] {
        wrong(&dir, against, &[&weight, "group 7 of row 1", "4 weights in the bitmask"]);
    }
    let dir = exported("ct24", "2:4");
    edit_tensor(&dir.join("out"), &bits, |data| data[8] = !data[8]);
    succeeds(args!["verify", dir.join("out")]);
    wrong(&dir, true, &[&weight, "group 0 of row 1"]);
    let dir = exported("ct24", "2:4");
    edit_tensor(&dir.join("out"), &format!("{Q0}.compressed"), |data| data[33 * 2] ^= 1);
    wrong(&dir, true, &[&weight, "group 0 of row 1", "bits are not those of the source"]);
    let dir = exported("ct24", "2:4");
    edit_tensor(&dir.join("out"), &format!("{Q0}.shape"), |data| data[0] += 1);
    wrong(&dir, false, &[&weight, "stored shape is not 64 x 64"]);
}

#[test]
fn descriptions_and_files_are_held_against_the_weights() {
    let change = |dir: &Scratch, file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let path = dir.join("out").join(file);
        let mut value = json_file(&path);
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    let dir = exported("torch24", "2:4");
    change(&dir, "torch24.json", &|v| v["projections"][0]["packed"] = false.into());
    wrong(&dir, false, &["torch24.json", Q0, "said to be dense, but is packed"]);
    change(&dir, "torch24.json", &|v| v["shards"] = json!(["../mask"]));
    wrong(&dir, false, &["torch24.json", "`shards`"]);
    change(&dir, "torch24.json", &|v| v["shards"] = json!(["torch24-00001-of-00002.safetensors"]));
    wrong(&dir, false, &["torch24"]);
    change(&dir, "torch24.json", &|v| v["format_version"] = 2.into());
    wrong(&dir, false, &["torch24.json", "format_version"]);

    for format in ["torch24", "ct24"] {
        let dir = exported(format, "2:4");
        edit_tensor(&dir.join("out"), UP1, |data| data[9] ^= 1);
        wrong(&dir, true, &[UP1, "row 0", "differs from the source"]);
        let dir = exported(format, "2:4");
        edit_tensor(&dir.join("out"), "model.norm.weight", |data| data[9] ^= 1);
        wrong(&dir, true, &["model.norm.weight", "differs from the source"]);
        let dir = exported(format, "2:4");
        change(&dir, "config.json", &|v| v["rms_norm_eps"] = 1e-6.into());
        wrong(&dir, true, &["config.json", "differs from the source's"]);
        let dir = exported(format, "2:4");
        fs::write(dir.join("dense/vocab.json"), "{}").unwrap();
        wrong(&dir, true, &["vocab.json", "missing"]);
        fs::write(dir.join("out/vocab.json"), "{}").unwrap();
        fs::copy(some_shard(&dir.join("dense")), dir.join("out/consolidated.safetensors")).unwrap();
        wrong(&dir, true, &["consolidated.safetensors", "another weight file"]);
    }
    let dir = exported("ct24", "2:4");
    change(&dir, "config.json", &|v| {
        v["quantization_config"]["sparsity_config"]["ignore"] = json!(["lm_head"])
    });
    wrong(&dir, false, &["config.json", UP1, "said to be packed, but is dense"]);
}

fn some_shard(folder: &Path) -> std::path::PathBuf {
    folder.join("model-00001-of-00002.safetensors")
}
