//! `verify`, `inspect` and `export` take the memory of a tensor, not of the model: what they hold is far below the size
//! of the folder.
#![cfg(target_os = "linux")]

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cli_tools::command;
use host_fixture::{Scratch, config_with, write_config};
use maskwright::mask::{BitMask, MaskFile, MaskSet, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint};
use serde_json::{Map, json};

/// The largest tensor, an up projection in F16: 4096 x 1024.
const LARGEST: u64 = 8 << 20;
const BLOCKS: u64 = 8;

/// What is allowed beside tensors and masks, in bytes: half of what all masks take.
const CONSTANT: u64 = 8 << 20;

/// A model of zeros in a file with a hole in the place of its data, and a 2:4 mask of all projections.
fn setup(dir: &Path) {
    let dense = dir.join("dense");
    write_config(
        &dense,
        &config_with(json!({ "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": BLOCKS,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64, "vocab_size": 1000 })),
    );
    let config = Architecture::read(&dense).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    for spec in config.tensors() {
        let begin = end;
        end += 2 * spec.shape.iter().product::<usize>();
        header.insert(spec.name, json!({"dtype": "F16", "shape": spec.shape, "data_offsets": [begin, end]}));
    }
    let mut header = json!(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = File::create(dense.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();

    let checkpoint = Checkpoint::open(&dense, &config).unwrap();
    let mut set = MaskSet::new(Pattern::TWO_OF_FOUR);
    for p in config.projections() {
        let words = vec![0x5a5a_9c9c; p.rows * p.cols / 32];
        set.masks.insert(p.name, BitMask::from_words(p.rows, p.cols, words).unwrap());
    }
    let file = MaskFile::new(set, Provenance::new("magnitude", 0), &checkpoint).unwrap();
    file.write(&dir.join("mask")).unwrap();
}

/// Runs the command to a good end; the most private memory that it held, looked at every millisecond, in bytes.
#[track_caller]
fn peak(args: &[OsString]) -> u64 {
    let mut child = command().args(args).stdout(Stdio::null()).spawn().expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        if let Some(end) = child.try_wait().expect("a child") {
            assert!(end.success(), "{args:?}: {end}");
            return most;
        }
        // Mapped files are not in it: their pages can be taken away at any time.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
        most = most.max(kibibytes << 10);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn memory_is_that_of_a_tensor() {
    let dir = Scratch::new();
    setup(dir.path());
    let (dense, mask) = (dir.join("dense"), dir.join("mask"));
    let size = fs::metadata(dense.join("model.safetensors")).unwrap().len();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let fits = |what: &str, bytes: u64, args: &[OsString]| {
        let (found, allowed) = (peak(args), CONSTANT + bytes);
        println!(
            "{what}: {:.1} MiB, {:.1} allowed, {:.1} MiB of weights",
            mib(found),
            mib(allowed),
            mib(size)
        );
        assert!(found <= allowed, "{what}: {found} bytes, but only {allowed} are allowed");
        assert!(allowed < size / 2, "the model is too small to tell");
    };
    let npz = args!["export", dense, "--mask", mask, "--format", "maskllm-npz", "--out", dir.join("npz")];
    fits("export maskllm-npz", LARGEST / 8, npz);
    fits("inspect a mask file", LARGEST / 8, args!["inspect", mask, mask]);
    for format in ["hf", "torch24", "ct24"] {
        let out = dir.join(format);
        let export =
            args!["export", dense, "--mask", mask, "--format", format, "--out", out, "--legacy-ct24"];
        // One mask; of a packed weight the bytes with zeros and the parts made of them.
        let tensors = if format == "hf" { 0 } else { 2 * LARGEST };
        fits(&format!("export {format}"), LARGEST / 16 + tensors, export);
        let tensors = if format == "hf" { 0 } else { LARGEST };
        fits(&format!("verify {format}"), tensors, args!["verify", out, "--against", dense]);
        let by_mask = args!["verify", out, "--mask", mask];
        fits(&format!("verify {format} by the mask"), tensors + threads * LARGEST / 16, by_mask);
        // And the bits of two masks.
        let other = args!["inspect", out, dense];
        fits(&format!("inspect {format}"), tensors + LARGEST / 8, other);
        fs::remove_dir_all(out).unwrap();
    }
}
