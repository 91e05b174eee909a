//! The layers of `docs/architecture.md`: each uses only those before it, and only `gpu` names wgpu.

use std::fs;
use std::path::{Path, PathBuf};

/// Folder or file of `src`, and which of the others it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("fsio", &[]),
    ("folder", &["fsio"]),
    ("model", &["fsio"]),
    ("mask", &["fsio", "model"]),
    ("calib", &["fsio", "model"]),
    ("hub", &["fsio", "model"]),
    ("export", &["fsio", "model", "mask"]),
    ("verify", &["export", "fsio", "mask", "model"]),
    ("gpu", &[]),
    ("kernel", &["gpu", "mask", "model"]),
    ("nn", &["gpu", "kernel", "mask", "model"]),
    ("eval", &["calib", "gpu", "kernel", "mask", "model", "nn"]),
    ("prune", &["calib", "eval", "export", "folder", "fsio", "gpu", "kernel", "mask", "model", "nn"]),
    ("report", &["folder", "fsio"]),
    (
        "cli",
        &[
            "calib", "eval", "export", "folder", "fsio", "gpu", "hub", "kernel", "mask", "model", "nn",
            "prune", "report", "verify",
        ],
    ),
];

fn sources(path: &Path, into: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), into);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        into.push(path.to_owned());
    }
}

/// Lines of code with their numbers, comments taken away.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line.split("//").next().unwrap_or("")))
}

#[test]
fn each_layer_uses_only_those_before_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (layer, allowed) in LAYERS {
        let (folder, file) = (src.join(layer), src.join(format!("{layer}.rs")));
        let mut files = Vec::new();
        sources(if folder.is_dir() { &folder } else { &file }, &mut files);
        for path in files {
            seen += 1;
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in code(&text) {
                for used in line.split("crate::").skip(1) {
                    let used =
                        used.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("");
                    if known.contains(&used) && used != *layer && !allowed.contains(&used) {
                        wrong.push(format!("{}:{number}: {layer} names {used}", path.display()));
                    }
                    // `crate::{a, b}` would hide from this test.
                    if used.is_empty() {
                        wrong.push(format!("{}:{number}: import one layer a line", path.display()));
                    }
                }
                if *layer != "gpu" && (line.contains("wgpu::") || line.contains("use wgpu")) {
                    wrong.push(format!("{}:{number}: only gpu names wgpu", path.display()));
                }
            }
        }
    }
    let mut all = Vec::new();
    sources(&src, &mut all);
    // main.rs and lib.rs belong to no layer.
    assert_eq!(seen, all.len() - 2, "a file of src belongs to no layer: add it to LAYERS");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
