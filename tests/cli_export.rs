//! `export` and `apply-mask` on small models.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cli_tools::{command, copied_village, fails, preset, succeeds, village, village_text};
use host_fixture::{Scratch, masks, mentions, packable, tensors, write_shards};
use maskwright::export::{ct24, torch24};
use maskwright::mask::{MaskFile, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// `dense` and its 2:4 mask, the file `mask`.
fn setup(dir: &Path) -> Architecture {
    packable(dir, Pattern::TWO_OF_FOUR, &[])
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Hands on every packed weight: prefix, type, rows, columns, the two parts.
fn packed(
    folder: &Path,
    parts: [&str; 2],
    mut take: impl FnMut(&str, Dtype, [usize; 2], &[u8], &[u8]),
) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for name in file.names() {
            let Some(prefix) = name.strip_suffix(&format!(".{}", parts[0])) else { continue };
            let (values, other) =
                (file.tensor(name).unwrap(), file.tensor(&format!("{prefix}.{}", parts[1])).unwrap());
            let shape = [values.shape()[0], values.shape()[1] * 2];
            take(prefix, values.dtype(), shape, values.data(), other.data());
            count += 1;
        }
    }
    count
}

#[test]
fn every_format_holds_the_same_weights() {
    let dir = Scratch::new();
    let config = setup(dir.path());
    let (dense, mask) = (dir.join("dense"), dir.join("mask"));
    let export = |format: &str, out: &str| {
        succeeds(args![
            "export",
            dense,
            "--mask",
            mask,
            "--format",
            format,
            "--out",
            dir.join(out),
            "--legacy-ct24"
        ])
    };
    export("hf", "hf");
    let hf = Checkpoint::open(&dir.join("hf"), &config).unwrap();
    let same = |prefix: &str, back: Vec<u8>| {
        assert!(back == hf.tensor(&format!("{prefix}.weight")).unwrap().data, "{prefix}");
    };

    let ran = export("torch24", "torch24");
    let out = dir.join("torch24");
    let count = packed(&out, ["packed", "meta"], |prefix, dtype, [rows, cols], values, meta| {
        same(prefix, torch24::unpack(dtype, rows, cols, values, meta).unwrap());
    });
    let index = read_json(&out.join(torch24::INDEX));
    let told = index["projections"].as_array().unwrap();
    assert_eq!(told.iter().filter(|p| p["packed"] == true).count(), count);
    assert_eq!(count, 12);
    assert_eq!(ran.out.matches("stored dense: ").count(), 14 - count);
    assert!(ran.out.contains("down_proj.weight: 64 x 96 does not fit"), "{}", ran.out);
    assert!(out.join(torch24::LOADER).is_file() && !out.join("model.safetensors.index.json").exists());

    let ran = export("ct24", "ct24");
    mentions(&ran.err, &["0.14.0.1", "RANDOM WEIGHTS"]);
    let out = dir.join("ct24");
    let count = packed(&out, ["compressed", "bitmask"], |prefix, dtype, [rows, cols], values, bits| {
        same(prefix, ct24::decode(dtype, rows, cols, values, bits).unwrap());
    });
    assert_eq!(count, 14);
    assert_eq!(
        read_json(&out.join("config.json"))["quantization_config"]["sparsity_config"]["ignore"],
        json!(["lm_head"])
    );
    let map = &read_json(&out.join("model.safetensors.index.json"))["weight_map"];
    assert_eq!(map.as_object().unwrap().keys().filter(|k| k.ends_with(".bitmask")).count(), 14);

    export("mask", "again");
    assert_eq!(fs::read(dir.join("again")).unwrap(), fs::read(&mask).unwrap());
}

#[test]
fn formats_that_do_not_fit_are_refused() {
    let dir = Scratch::new();
    let config = setup(dir.path());
    let (dense, out) = (dir.join("dense"), dir.join("out"));
    fails(
        args!["export", dense, "--mask", dir.join("mask"), "--format", "ct24", "--out", out],
        &["--legacy-ct24", "0.14.0.1"],
    );
    let checkpoint = Checkpoint::open(&dense, &config).unwrap();
    let set = masks(&checkpoint, &config, "4:8".parse().unwrap());
    MaskFile::new(set, Provenance::new("magnitude", 3), &checkpoint)
        .unwrap()
        .write(&dir.join("mask48"))
        .unwrap();
    for format in ["torch24", "ct24"] {
        fails(
            args![
                "export",
                dense,
                "--mask",
                dir.join("mask48"),
                "--format",
                format,
                "--out",
                out,
                "--legacy-ct24"
            ],
            &[format, "4:8", "2 kept of every 4"],
        );
    }
    assert!(!out.exists());
}

#[test]
fn a_mask_is_imposed_again() {
    let dir = Scratch::new();
    setup(dir.path());
    let (dense, mask, out) = (dir.join("dense"), dir.join("mask"), dir.join("out"));
    let ran = succeeds(args!["apply-mask", dense, "--mask", mask, "--out", out]);
    mentions(&ran.out, &["0 of 14 tensors differ"]);
    assert!(!ran.out.contains("; 0 pruned weights"), "{}", ran.out);
    let again = succeeds(args!["apply-mask", out, "--mask", mask, "--out", dir.join("again")]);
    mentions(&again.out, &["14 of 14 tensors differ", "; 0 pruned weights were not zero"]);
}

/// MaskLLM's mask file is written, and taken wherever a mask file is.
#[test]
fn npz_masks_go_both_ways() {
    let dir = Scratch::new();
    setup(dir.path());
    let (dense, mask, npz) = (dir.join("dense"), dir.join("mask"), dir.join("mask_compressed.npz"));
    let export = |mask: &Path, format: &str, out: &str| {
        succeeds(args!["export", dense, "--mask", mask, "--format", format, "--out", dir.join(out)])
    };
    export(&mask, "maskllm-npz", "mask_compressed.npz");
    export(&npz, "maskllm-npz", "again.npz");
    assert_eq!(fs::read(dir.join("again.npz")).unwrap(), fs::read(&npz).unwrap());
    export(&npz, "mask", "mask2");
    assert_eq!(MaskFile::read(&dir.join("mask2")).unwrap().set, MaskFile::read(&mask).unwrap().set);
    export(&mask, "hf", "hf");
    export(&npz, "hf", "hf2");
    let shard = "model-00001-of-00002.safetensors";
    assert!(fs::read(dir.join("hf").join(shard)).unwrap() == fs::read(dir.join("hf2").join(shard)).unwrap());
    succeeds(args!["verify", dir.join("hf"), "--against", dense, "--mask", npz]);
    let ran = succeeds(args!["apply-mask", dense, "--mask", npz, "--out", dir.join("applied")]);
    mentions(&ran.out, &["does not say which tensors it was made for"]);
    fails(args!["verify", dir.join("hf"), "--mask", npz, "--pattern", "1:4"], &["keeps 2 weights", "1:4"]);
    fails(
        args![
            "export",
            dense,
            "--mask",
            npz,
            "--format",
            "maskllm-npz",
            "--out",
            dir.join("x"),
            "--weights",
            npz
        ],
        &["--weights has no use"],
    );
    fs::write(&npz, &fs::read(&npz).unwrap()[..1000]).unwrap();
    fails(
        args!["export", dense, "--mask", npz, "--out", dir.join("x")],
        &["mask_compressed.npz", "no whole zip file"],
    );
}

#[test]
fn refitted_weights_of_a_run_are_taken() {
    let dir = Scratch::new();
    let config = setup(dir.path());
    let run = dir.join("run");
    fs::create_dir(&run).unwrap();
    fs::copy(dir.join("mask"), run.join("mask.safetensors")).unwrap();
    fs::write(run.join("run.json"), r#"{"kept_weights_changed":true}"#).unwrap();
    let export = |out: &str| {
        args!["export", dir.join("dense"), "--mask", run.join("mask.safetensors"), "--out", dir.join(out)]
            .to_vec()
    };
    fails(&export("lost"), &["--weights", "run"]);
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut changed = tensors(&config);
    changed.get_mut(name).unwrap().data.fill(0x3c);
    fs::create_dir(run.join("model")).unwrap();
    write_shards(&run.join("model"), &changed);
    let ran = succeeds(&export("out"));
    mentions(&ran.err, &["re-fitted weights are taken from", "run/model"]);
    let out = Checkpoint::open(&dir.join("out"), &config).unwrap();
    let mut kept = out.tensor(name).unwrap().data.to_vec();
    kept.retain(|&b| b != 0);
    assert!(!kept.is_empty() && kept.iter().all(|&b| b == 0x3c));
}

/// Weights that several stages of a run changed one after the other, kept block by block where no model is written.
#[test]
fn weights_of_the_last_stage_are_taken() {
    let dir = Scratch::new();
    let prune = |name: &str, more: &[&str]| {
        let mut all =
            args!["prune", village(), "--calib", village_text("calib"), "--out", dir.join(name)].to_vec();
        all.extend(args!["--preset", preset(), "--method", "wanda", "--repair", "lstsq,block"].to_vec());
        let windows = ["--segments", "sequential", "--windows", "8", "--window", "32", "--batch", "4"];
        all.extend(windows.iter().chain(["--repair-steps", "3"].iter()).chain(more).map(|a| a.into()));
        succeeds(&all);
    };
    prune("blocks", &["--no-model"]);
    prune("model", &[]);
    let mask = dir.join("blocks/mask.safetensors");
    succeeds(args!["export", village(), "--mask", mask, "--out", dir.join("out")]);
    let read = |folder: &str| fs::read(dir.join(folder).join("model.safetensors")).unwrap();
    assert!(read("out") == read("model/model"), "other weights than the run's last");
}

/// Killed at any moment, an export leaves a whole folder or none.
#[test]
fn a_killed_export_leaves_nothing_that_looks_finished() {
    let dir = Scratch::new();
    setup(dir.path());
    for format in ["hf", "torch24"] {
        let args = |out: &Path| {
            args!["export", dir.join("dense"), "--mask", dir.join("mask"), "--format", format, "--out", out]
                .to_vec()
        };
        let whole = dir.join(format);
        succeeds(&args(&whole));
        let mut absent = 0;
        for kill in 0..24u64 {
            let out = dir.join(&format!("{format}-{kill}"));
            let mut child = command()
                .args(args(&out))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the command starts");
            std::thread::sleep(Duration::from_micros(500 * kill));
            child.kill().expect("a kill");
            child.wait().expect("an end");
            if !out.exists() {
                absent += 1;
                continue;
            }
            for entry in fs::read_dir(&whole).unwrap() {
                let name = entry.unwrap().file_name();
                let same = fs::read(out.join(&name)).unwrap() == fs::read(whole.join(&name)).unwrap();
                assert!(same, "{format}, kill {kill}: {name:?} is not whole");
            }
        }
        println!("{format}: {absent} of 24 kills came before the end");
        assert!(absent > 0, "every kill came too late");
    }
}

/// Tensors that are no weights, of types that no weight has, go along as they are: through a run and through every format.
#[test]
fn buffers_of_integers_go_along() {
    let dir = Scratch::new();
    let source = dir.join("source");
    copied_village(&source);
    let dense = fs::read(source.join("model.safetensors")).unwrap();
    let places: Vec<u8> = (0..16i64).flat_map(i64::to_le_bytes).collect();
    let buffers = [
        ("model.layers.0.self_attn.rotary_emb.position_ids", Dtype::I64, vec![16], places.as_slice()),
        ("model.layers.0.self_attn.bias", Dtype::BOOL, vec![1, 1, 4, 4], &places[..16]),
    ];
    let file = SafeTensors::deserialize(&dense).unwrap();
    let more = buffers
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let all: Vec<(&str, TensorView<'_>)> = file.iter().chain(more).collect();
    fs::write(source.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();

    let run = dir.join("run");
    succeeds(args!["prune", source, "--method", "magnitude", "--out", run]);
    let mask = run.join("mask.safetensors");
    let kept = |folder: &Path| {
        let weights = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let weights = weights.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
        let bytes = fs::read(weights.last().expect("one file of weights")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, dtype, shape, data) in &buffers {
            let found = file.tensor(name).unwrap();
            assert_eq!((found.dtype(), found.shape(), found.data()), (*dtype, &shape[..], *data), "{name}");
        }
        succeeds(args!["verify", folder, "--against", source]);
    };
    kept(&run.join("model"));
    for (i, from) in [&source, &run.join("model")].into_iter().enumerate() {
        for format in ["hf", "torch24", "ct24", "mask", "maskllm-npz"] {
            let out = dir.join(&format!("{format}{i}"));
            let legacy = if format == "ct24" { args!["--legacy-ct24"].to_vec() } else { Vec::new() };
            let export = args!["export", from, "--mask", mask, "--format", format, "--out", out];
            succeeds(&[export, &legacy].concat());
            if out.is_dir() {
                kept(&out);
            }
        }
    }
}
