//! What becomes of files: outputs replace nothing that a user would miss, inputs are known for what they are, signals leave nothing half
//! done, and a failure of any system call leaves the target whole or absent.
#![cfg(unix)]

#[path = "../cli_tools/mod.rs"]
mod cli_tools;
#[path = "../host_fixture/mod.rs"]
mod host_fixture;

mod faults;
mod inputs;
mod names;
mod outputs;
mod runs;
mod signals;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use host_fixture::{Scratch, packable};
use maskwright::mask::Pattern;
use maskwright::model::sha256_hex;

/// The model `dense` with its mask, and a run `run` with the same mask.
fn setup() -> Scratch {
    let dir = Scratch::new();
    packable(dir.path(), Pattern::TWO_OF_FOUR, &[]);
    fs::create_dir(dir.join("run")).unwrap();
    fs::copy(dir.join("mask"), dir.join("run/mask.safetensors")).unwrap();
    fs::write(dir.join("run/run.json"), "{\"method\": \"magnitude\"}").unwrap();
    fs::write(dir.join("run/metrics.jsonl"), "{\"step\":0,\"loss\":0.5}\n").unwrap();
    dir
}

/// `export` of the model of [`setup`] in a format, all but the destination.
fn export(dir: &Scratch, format: &str) -> Vec<OsString> {
    let mask = dir.join("run/mask.safetensors");
    args!["export", dir.join("dense"), "--mask", mask, "--format", format, "--legacy-ct24", "--out"].to_vec()
}

/// Names and hashes of all files below a folder, sorted.
fn hashes(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(hashes(&path));
        } else if path.is_file() {
            all.push((path.clone(), sha256_hex(&fs::read(&path).unwrap())));
        }
    }
    all.sort();
    all
}

/// Hidden names that a write leaves behind, in a folder.
fn temporaries(folder: &Path) -> Vec<String> {
    cli_tools::names(folder).into_iter().filter(|name| name.contains(".tmp-")).collect()
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}
