//! Each system call that changes a file fails once, in turn: afterwards the inputs are as they were, the target is whole or absent, and
//! the message names it.

use std::fs;
use std::path::{Path, PathBuf};

use maskwright::export::{ExportError, MaskedModel, ct24, hf, torch24};
use maskwright::fsio::{self, Destination, OutputFile};
use maskwright::mask::{MaskFile, MaskReader, npz};
use maskwright::model::{Architecture, Checkpoint, Overlay};

use super::{hashes, setup, temporaries};
use crate::host_fixture::Scratch;

type Write<'a> = &'a dyn Fn(&Path) -> Result<(), String>;

/// Lets every call fail once while `write` writes `name`; `old` is there before, a file or an empty folder.
fn each_call_fails(dir: &Scratch, name: &str, old: Option<&[u8]>, folder: bool, write: Write<'_>) {
    let place = |number: u64| dir.join(&format!("{number}-{name}"));
    let prepare = |out: &Path| match old {
        Some(_) if folder => fs::create_dir(out).unwrap(),
        Some(bytes) => fs::write(out, bytes).unwrap(),
        None => {}
    };
    let content = |out: &Path| -> Vec<(PathBuf, String)> {
        let all = if out.is_dir() { hashes(out) } else { Vec::new() };
        all.into_iter().map(|(path, hash)| (path.strip_prefix(out).unwrap().into(), hash)).collect()
    };
    let bytes = |out: &Path| if out.is_file() { fs::read(out).unwrap() } else { Vec::new() };
    let reference = place(0);
    prepare(&reference);
    write(&reference).unwrap();
    let inputs = || [hashes(&dir.join("dense")), hashes(&dir.join("run"))];
    let before = inputs();
    let (mut number, mut failed) = (0, 0);
    loop {
        number += 1;
        let out = place(number);
        prepare(&out);
        fsio::fail_at(number);
        let done = write(&out);
        let past = fsio::fault_is_due();
        fsio::fail_at(0);
        let now = (bytes(&out), content(&out));
        match &done {
            Ok(()) => assert_eq!(now, (bytes(&reference), content(&reference)), "{name}, call {number}"),
            Err(told) => {
                failed += 1;
                assert!(told.contains(&*out.file_name().unwrap().to_string_lossy()), "call {number}: {told}");
                assert!(told.contains("a fault for a test"), "call {number}: {told}");
                assert_eq!(
                    now,
                    (old.unwrap_or_default().to_vec(), Vec::new()),
                    "{name}, call {number}: {told}"
                );
                assert_eq!(out.exists(), old.is_some(), "{name}, call {number}: {told}");
            }
        }
        assert_eq!(temporaries(dir.path()), [""; 0], "{name}, call {number}");
        assert!(inputs() == before, "{name}, call {number}: an input changed");
        if past {
            break;
        }
    }
    assert!(failed >= 3, "{name}: only {failed} of {number} calls failed");
    println!("{name}: {failed} of {number} calls ended in an error");
}

#[test]
fn files_are_whole_or_as_they_were() {
    let dir = setup();
    let config = Architecture::read(&dir.join("dense")).unwrap();
    let mask = MaskFile::read(&dir.join("mask")).unwrap();
    let words = |e: &dyn std::fmt::Display| e.to_string();
    let masks = |out: &Path| mask.write(out).map_err(|e| words(&e));
    let packed = |out: &Path| npz::write(&mask.set, &config.projections(), out).map_err(|e| words(&e));
    let checked = |out: &Path| {
        let file = OutputFile::check(out, &[dir.join("dense").as_path()], true).map_err(|e| words(&e))?;
        file.write_bytes(&[7; 3 << 20]).map_err(|e| words(&e))
    };
    for old in [None, Some(&b"old"[..])] {
        each_call_fails(&dir, if old.is_some() { "mask2" } else { "mask1" }, old, false, &masks);
        each_call_fails(&dir, if old.is_some() { "npz2" } else { "npz1" }, old, false, &packed);
        each_call_fails(&dir, if old.is_some() { "file2" } else { "file1" }, old, false, &checked);
    }
    let once = |out: &Path| {
        let file = OutputFile::check(out, &[], false).map_err(|e| words(&e))?;
        file.write_bytes(b"texts").map_err(|e| words(&e))
    };
    each_call_fails(&dir, "texts", None, false, &once);
}

#[test]
fn folders_are_whole_or_absent() {
    let dir = setup();
    let source = dir.join("dense");
    let config = Architecture::read(&source).unwrap();
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let file = MaskReader::open(&dir.join("mask"), &config.projections(), None).unwrap();
    type Format = fn(&MaskedModel<'_>, &Path) -> Result<hf::Summary, ExportError>;
    for (name, format) in [("hf", hf::write as Format), ("torch24", torch24::write), ("ct24", ct24::write)] {
        let write = |out: &Path| {
            let tensors = Overlay::new(&checkpoint);
            let model = MaskedModel {
                tensors: &tensors,
                config: &config,
                masks: &file,
                provenance: &file.provenance,
            };
            format(&model, out).map(|_| ()).map_err(|e| e.to_string())
        };
        each_call_fails(&dir, name, None, true, &write);
        each_call_fails(&dir, &format!("{name}-empty"), Some(b""), true, &write);
    }
}

/// What came to be there since the check is not replaced, whatever is written.
#[test]
fn a_file_that_appears_meanwhile_stays() {
    let dir = setup();
    let config = Architecture::read(&dir.join("dense")).unwrap();
    let mask = MaskFile::read(&dir.join("mask")).unwrap();
    for (name, force) in [("late.safetensors", false), ("late.npz", false), ("forced.npz", true)] {
        let path = dir.join(name);
        let file = OutputFile::check(&path, &[], force).unwrap();
        fs::write(&path, "theirs").unwrap();
        let done = match name.ends_with(".npz") {
            true => npz::write(&mask.set, &config.projections(), &file),
            false => mask.write(&file),
        };
        let told = done.map_or_else(|e| e.to_string(), |()| String::new());
        assert_eq!(told.contains(&format!("{name} exists")), !force, "{told}");
        assert_eq!(fs::read(&path).unwrap() == b"theirs", !force, "{name}");
    }
    let path = dir.join("texts.jsonl");
    let file = OutputFile::check(&path, &[], false).unwrap();
    let mut begun = file.begin().unwrap();
    begun.put(b"ours").unwrap();
    fs::write(&path, "theirs").unwrap();
    let told = begun.commit().unwrap_err().to_string();
    assert!(told.contains("texts.jsonl exists"), "{told}");
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
    assert_eq!(temporaries(dir.path()), [""; 0]);
}
