//! The layers of `docs/architecture.md`: each uses only those before it, and only `gpu` names wgpu; and within a layer no files use each
//! other in a circle.

use std::collections::{BTreeMap, BTreeSet};
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
        "run",
        &[
            "calib", "eval", "export", "folder", "fsio", "gpu", "hub", "kernel", "mask", "model", "nn",
            "prune", "report",
        ],
    ),
    (
        "cli",
        &[
            "calib", "eval", "export", "folder", "fsio", "gpu", "hub", "kernel", "mask", "model", "nn",
            "prune", "report", "run", "verify",
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

/// The code of a file without its comments and its tests.
fn untested(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = code(&text).map(|(_, line)| line).collect();
    let whole = lines.join("\n");
    whole.split("#[cfg(test)]\nmod tests").next().unwrap_or("").to_string()
}

/// Splits `a, b::{c, d}` at the commas that stand in no braces.
fn items(list: &str) -> Vec<&str> {
    let (mut all, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(&list[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    all.push(&list[start..]);
    all.into_iter().map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("")
}

/// The first names behind `prefix` in all paths of a text, those of its lists included.
fn behind<'t>(text: &'t str, prefix: &str) -> Vec<&'t str> {
    let mut all = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        // Not a longer path that ends so.
        if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let end = list.find(';').unwrap_or(list.len());
                all.extend(items(list[..end].trim_end().trim_end_matches('}')).into_iter().map(word));
            }
            None => all.push(word(rest)),
        }
    }
    all
}

/// Which modules of a folder each of them uses; what `mod.rs` gives on counts as the module that it is of.
fn uses(folder: &Path, path: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        let name = entry.file_stem().unwrap().to_string_lossy().into_owned();
        let mut own = Vec::new();
        sources(&entry, &mut own);
        if !own.is_empty() && name != "mod" && name != "tests" {
            files.insert(name, own);
        }
    }
    let given = untested(&folder.join("mod.rs"));
    let mut from: BTreeMap<&str, &str> = files.keys().map(|name| (name.as_str(), name.as_str())).collect();
    for statement in given.split("use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or("");
        let module = word(statement);
        if let Some((name, _)) = files.get_key_value(module) {
            let names = statement.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            names.skip(1).filter(|n| !n.is_empty()).for_each(|n| {
                from.entry(n).or_insert(name);
            });
        }
    }
    let of = |(name, own): (&String, &Vec<PathBuf>)| {
        let mut used = BTreeSet::new();
        for file in own {
            let up = file.strip_prefix(folder).unwrap().components().count();
            let text = untested(file);
            for prefix in ["super::".repeat(up), format!("crate::{path}::")] {
                used.extend(
                    behind(&text, &prefix).into_iter().filter_map(|n| from.get(n)).map(|n| n.to_string()),
                );
            }
        }
        used.remove(name);
        (name.clone(), used)
    };
    files.iter().map(of).collect()
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&src, &mut all);
    let folders: BTreeSet<&Path> =
        all.iter().filter(|p| p.ends_with("mod.rs")).filter_map(|p| p.parent()).collect();
    assert!(folders.len() > 15, "{folders:?}");
    let mut circles = Vec::new();
    for folder in folders {
        let path = folder.strip_prefix(&src).unwrap().to_string_lossy().replace('/', "::");
        let mut reached = uses(folder, &path);
        // All that can be reached, step by step.
        loop {
            let further: BTreeMap<String, BTreeSet<String>> = reached
                .iter()
                .map(|(name, next)| {
                    let more = next.iter().filter_map(|n| reached.get(n)).flatten();
                    (name.clone(), next.iter().chain(more).cloned().collect())
                })
                .collect();
            if further == reached {
                break;
            }
            reached = further;
        }
        let around: Vec<&String> =
            reached.iter().filter(|(name, next)| next.contains(*name)).map(|(name, _)| name).collect();
        if !around.is_empty() {
            circles.push(format!("{path}: {around:?}"));
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

/// What the circle test reads.
#[test]
fn imports_are_taken_apart() {
    assert_eq!(behind("use super::{a::{b, c}, d, e as f};", "super::"), ["a", "d", "e"]);
    assert_eq!(behind("use super::super::a; super::b::c(); x_super::d", "super::"), ["super", "b"]);
    assert_eq!(behind("use crate::nn::{\n    a,\n    b,\n};", "crate::nn::"), ["a", "b"]);
}

/// Functions take few enough arguments everywhere: what belongs together is a struct.
#[test]
fn no_lint_of_arguments_is_switched_off() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    ["src", "tests", "benches", "examples"].iter().for_each(|folder| sources(&root.join(folder), &mut all));
    let lint = ["too_many", "_arguments"].concat();
    let with: Vec<_> = all.iter().filter(|path| fs::read_to_string(path).unwrap().contains(&lint)).collect();
    assert!(with.is_empty(), "{with:?}");
}
