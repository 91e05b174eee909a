//! Exports onto a disk that fills up: an error, and nothing is left that looks finished.
#![cfg(unix)]

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli_tools::{command, fails, fails_in, names, succeeds, village, village_text};
use host_fixture::{Scratch, config_with, masks, tensors, write_config, write_shards, write_tokenizer};
use maskwright::mask::{MaskFile, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint};
use serde_json::json;

/// A model in two shards beside its 2:4 mask.
fn setup(dir: &Path) {
    let source = dir.join("dense");
    write_config(
        &source,
        &config_with(json!({ "hidden_size": 64, "intermediate_size": 96, "head_dim": 16 })),
    );
    let config = Architecture::read(&source).unwrap();
    write_shards(&source, &tensors(&config));
    write_tokenizer(&source, 12, 1);
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let file = MaskFile::new(set, Provenance::new("magnitude", 3), &checkpoint).unwrap();
    file.write(&dir.join("mask")).unwrap();
}

/// Every way to write something: a name and the arguments, without the destination.
fn ways(dir: &Path) -> Vec<(&'static str, Vec<OsString>)> {
    let export = |format: &str| {
        args![
            "export",
            dir.join("dense"),
            "--mask",
            dir.join("mask"),
            "--format",
            format,
            "--legacy-ct24",
            "--out"
        ]
        .to_vec()
    };
    let mut all: Vec<_> = ["hf", "torch24", "ct24", "mask", "maskllm-npz"].map(|f| (f, export(f))).into();
    let apply = args!["apply-mask", dir.join("dense"), "--mask", dir.join("mask"), "--out"];
    all.push(("apply-mask", apply.to_vec()));
    all
}

/// Bytes of a file, or of all files of a folder.
fn size(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|e| size(&e.unwrap().path())).sum(),
        Err(_) => fs::metadata(path).unwrap().len(),
    }
}

/// A small file system in memory, taken away at the end.
struct Disk(PathBuf);

impl Disk {
    /// Mounts it; an error where this user must not (only root may) or the system has none.
    fn mount(at: PathBuf, options: &str) -> Result<Self, String> {
        if !cfg!(target_os = "linux") {
            return Err("only Linux has tmpfs".into());
        }
        fs::create_dir_all(&at).unwrap();
        let ran = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at).output();
        match ran {
            Ok(done) if done.status.success() => Ok(Self(at)),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().into()),
            Err(e) => Err(e.to_string()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The arguments with a destination on a disk whose room is said by mount options; `None` where no disk can be mounted.
fn on_a_disk(dir: &Path, options: &str, arguments: &[OsString]) -> Option<()> {
    let disk = Disk::mount(dir.join("disk"), options)
        .map_err(|e| println!("no disk is mounted ({e}); a limit on the size of files stands for it"))
        .ok()?;
    let out = disk.0.join("out");
    let mut command = command();
    command.args(arguments).arg(&out);
    fails_in(command, 1, &["cannot write", "disk/out", "free some space"]);
    assert_eq!(names(&disk.0), [""; 0], "left behind on the full disk");
    Some(())
}

/// The same with a limit on the size of a file, which takes no rights: the write fails in the middle.
fn under_a_limit(dir: &Path, kib: u64, arguments: &[OsString]) {
    let folder = dir.join("limited");
    fs::create_dir_all(&folder).unwrap();
    let inner = command();
    let mut limited = Command::new("bash");
    // With the signal ignored the write fails instead.
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"")).arg("bash");
    limited.arg(inner.get_program()).args(arguments).arg(folder.join("out")).env_remove("RUST_LOG");
    fails_in(limited, 1, &["cannot write", "limited/out"]);
    assert_eq!(names(&folder), [""; 0], "left behind after a failed write");
}

/// Wherever in the export the disk is full: nothing is left, not even a temporary.
#[test]
fn an_export_onto_a_full_disk_leaves_nothing() {
    let dir = Scratch::new();
    setup(dir.path());
    for (name, arguments) in ways(dir.path()) {
        let whole = dir.join(&format!("whole-{name}"));
        succeeds(&[arguments.clone(), vec![whole.clone().into()]].concat());
        // Whole pages of 4 KiB, as tmpfs counts, up to a page less than the files take.
        let pages = size(&whole).div_ceil(4096) - 1;
        let mut rooms: Vec<u64> = (0..6).map(|i| (1 + (pages - 1) * i / 5).max(1)).collect();
        rooms.dedup();
        let mounted = rooms.iter().all(|room| {
            let options = format!("size={}k", room * 4);
            on_a_disk(dir.path(), &options, &arguments).is_some()
        });
        if mounted {
            on_a_disk(dir.path(), "size=16m,nr_inodes=1", &arguments);
        }
        let largest = if whole.is_dir() { 16 } else { pages * 4 };
        for kib in [1, largest] {
            under_a_limit(dir.path(), kib, &arguments);
        }
        println!("{name}: {} sizes of a disk, mounted: {mounted}", rooms.len());
    }
}

/// A file that is replaced stays as it was when there is no room for the new one.
#[test]
fn a_mask_that_cannot_be_replaced_stays() {
    let dir = Scratch::new();
    setup(dir.path());
    let Ok(disk) = Disk::mount(dir.join("disk"), "size=8k") else {
        // Without a disk of its own: a limit below the size of the mask.
        let out = dir.join("old");
        fs::write(&out, "old").unwrap();
        let inner = command();
        let mut limited = Command::new("bash");
        limited.arg("-c").arg("trap '' XFSZ; ulimit -f 1; exec \"$@\"").arg("bash").arg(inner.get_program());
        limited.args(&ways(dir.path())[3].1).arg(&out).arg("--force").env_remove("RUST_LOG");
        fails_in(limited, 1, &["cannot write"]);
        assert_eq!(fs::read(&out).unwrap(), b"old");
        return;
    };
    let out = disk.0.join("mask.safetensors");
    fs::write(&out, "old").unwrap();
    let mut command = command();
    command.args(&ways(dir.path())[3].1).arg(&out).arg("--force");
    fails_in(command, 1, &["cannot write", "free some space"]);
    assert_eq!(fs::read(&out).unwrap(), b"old");
    assert_eq!(names(&disk.0), ["mask.safetensors"]);
}

/// A disk without room, or one that cannot be written, is found before the work.
#[test]
fn a_full_disk_is_found_before_the_work() {
    let dir = Scratch::new();
    for (options, why) in [("size=4k", "free some space"), ("size=4k,ro", "read-only")] {
        let Ok(disk) = Disk::mount(dir.join("disk"), options) else {
            println!("no disk is mounted");
            return;
        };
        let _ = fs::write(disk.0.join("full"), [1; 4096]);
        let before = names(&disk.0);
        let text = village_text("calib");
        let generate = args!["generate", village(), "--count", "1", "--out", disk.0.join("own.jsonl")];
        let prune =
            args!["prune", village(), "--method", "wanda", "--calib", text, "--out", disk.0.join("deep/run")];
        let compare =
            args!["compare", village(), "--calib", text, "--eval", text, "--out", disk.0.join("all")];
        for (arguments, out) in
            [(generate, "disk/own.jsonl"), (prune, "disk/deep/run"), (compare, "disk/all")]
        {
            let mut command = command();
            command.args(arguments);
            let ran = command.output().unwrap();
            let told = String::from_utf8(ran.stderr).unwrap();
            assert_eq!(ran.status.code(), Some(1), "{told}");
            for part in ["cannot write", out, if out.ends_with("jsonl") { why } else { "--out" }] {
                assert!(told.contains(part), "{part}: {told}");
            }
            assert!(!told.contains("adapter:"), "after the work began: {told}");
            assert_eq!(names(&disk.0), before);
        }
    }
}

/// A model that the disk cannot hold is refused before the work, by what is free on the disk.
#[test]
fn a_disk_too_small_for_the_model_is_found_before_the_work() {
    let dir = Scratch::new();
    setup(dir.path());
    let source = dir.join("dense");
    let sparse = fs::File::create(source.join("notes.txt")).unwrap();
    // It takes no room where it is; as much as a file of ext4 may hold, and more than disks of tests have.
    if let Err(e) = sparse.set_len(15 << 40) {
        println!("no file of 15 TiB can be made here: {e}");
        return;
    }
    drop(sparse);
    let out = dir.join("deep/out");
    let prune = args!["prune", source, "--method", "magnitude", "--out"];
    // A mask is written without the model.
    let models =
        ways(dir.path()).into_iter().filter(|(name, _)| !name.contains("mask") || *name == "apply-mask");
    for arguments in models.map(|(_, arguments)| arguments).chain([prune.to_vec()]) {
        let mut command = command();
        command.args(&arguments).arg(&out);
        let ran = command.output().unwrap();
        let told = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{told}");
        for part in ["cannot write", "deep/out", "it takes 1649267", "MB free", "free some space"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("adapter:"), "after the work began: {told}");
        assert!(!dir.join("deep").exists(), "{arguments:?}");
        assert_eq!(told.contains("--no-model"), arguments[0] == "prune", "{told}");
    }
    let text = village_text("calib");
    let compare =
        args!["compare", source, "--calib", text, "--eval", text, "--methods", "magnitude", "--out", out];
    fails(compare, &["it takes 1649267", "MB free"]);
    assert!(!dir.join("deep").exists());
    let told = succeeds(&[&prune[..2], args!["--method", "magnitude", "--dry-run"]].concat());
    assert!(told.out.contains("the masked model takes 15.00 TiB"), "{}", told.out);
}
