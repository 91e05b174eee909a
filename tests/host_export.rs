//! Mask files and masked models on the host.

mod host_fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use host_fixture::{Scratch, export_hf, masks, mentions, model, tensors, write_config, write_shards};
use maskwright::export::hf;
use maskwright::mask::{BitMask, MaskFile, MaskSet, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint};
use serde_json::Value;

/// Every file below a folder with its bytes.
fn listing(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(listing(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            all.insert(name, fs::read(path).unwrap());
        }
    }
    all
}

#[test]
fn mask_files_come_back_as_written() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    for pattern in ["2:4", "1:2", "4:8", "3:8", "1:4"] {
        let pattern: Pattern = pattern.parse().unwrap();
        let set = masks(&checkpoint, &config, pattern);
        let file = MaskFile::new(set, Provenance::new("magnitude", u64::MAX), &checkpoint).unwrap();
        let path = dir.join("mask.safetensors");
        file.write(&path).unwrap();
        let back = MaskFile::read(&path).unwrap();
        assert_eq!(back, file);
        back.set.check_model(&config).unwrap();
        assert!(back.differing_sources(&checkpoint).unwrap().is_empty());
    }
    let names: Vec<_> = listing(dir.path()).into_keys().collect();
    assert_eq!(names, ["config.json", "mask.safetensors", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn masks_of_another_model_are_told_apart() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let file = MaskFile::new(set, Provenance::new("magnitude", 0), &checkpoint).unwrap();

    // One weight differs.
    let other = Scratch::new();
    let mut changed = tensors(&config);
    let name = "model.layers.1.mlp.up_proj.weight";
    changed.get_mut(name).unwrap().data[0] ^= 1;
    write_shards(other.path(), &changed);
    let tuned = Checkpoint::open(other.path(), &config).unwrap();
    assert_eq!(file.differing_sources(&tuned).unwrap(), [name]);

    // Another shape, another name.
    let mut wrong = file.set.clone();
    wrong.masks.insert(name.into(), BitMask::top_n(4, 8, wrong.pattern, |_, s| s.fill(0.0)).unwrap());
    let text = wrong.check_model(&config).unwrap_err().to_string();
    mentions(&text, &[name, "[4, 8]", "[24, 16]"]);
    assert!(MaskFile::new(wrong, Provenance::new("x", 0), &checkpoint).is_err());
    let mut wrong = file.set.clone();
    wrong.masks.insert("lm_head.weight".into(), wrong.masks[name].clone());
    mentions(&wrong.check_model(&config).unwrap_err().to_string(), &["lm_head.weight", "no projection"]);
}

#[test]
fn damaged_mask_files_are_refused() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let path = dir.join("mask.safetensors");
    MaskFile::new(set, Provenance::new("magnitude", 1), &checkpoint).unwrap().write(&path).unwrap();
    let whole = fs::read(&path).unwrap();

    // A model is no mask file.
    let text = MaskFile::read(&dir.join("model.safetensors")).unwrap_err().to_string();
    mentions(&text, &["model.safetensors", "not a usable mask file"]);
    mentions(&MaskFile::read(&dir.join("absent")).unwrap_err().to_string(), &["absent"]);
    // A rank above 5: the last byte but one, since the last is not full.
    let mut bytes = whole.clone();
    let at = bytes.len() - 2;
    bytes[at] = 0xff;
    fs::write(&path, &bytes).unwrap();
    mentions(&MaskFile::read(&path).unwrap_err().to_string(), &["mask.safetensors", "nm_index", "rank"]);

    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(whole[8..8 + header].to_vec()).unwrap();
    for (from, to) in [
        ("\"2:4\"", "\"4:2\""),
        ("\"2:4\"", "\"1:4\""),
        ("maskwright-mask", "maskwright-cask"),
        ("\"format_version\":\"1\"", "\"format_version\":\"2\""),
        ("lexicographic", "Lexicographic"),
        ("base6:", "base7:"),
        ("\"seed\":\"1\"", "\"seed\":\"x\""),
        ("up_proj.weight.nm_index", "up_proj.weight.nm_indey"),
        ("up_proj.weight.nm_index", "ap_proj.weight.nm_index"),
        ("[24,16]", "[16,24]"),
        ("[24,16]", "[25,16]"),
        ("[24,16]", "[ 0,16]"),
        ("\\\"source_sha256\\\"", "\\\"source_sha257\\\""),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = text.replacen(from, to, 1);
        let mut bytes = (changed.len() as u64).to_le_bytes().to_vec();
        bytes.extend(changed.as_bytes());
        bytes.extend(&whole[8 + header..]);
        fs::write(&path, bytes).unwrap();
        match (to, MaskFile::read(&path)) {
            // The same number of weights in another shape: only the model can tell.
            ("[16,24]", Ok(file)) => assert!(file.set.check_model(&config).is_err()),
            (_, Ok(_)) => panic!("{from} -> {to} was accepted"),
            (_, Err(e)) => assert!(!e.to_string().is_empty()),
        }
    }
    for i in (0..whole.len()).step_by(5) {
        let mut bytes = whole.clone();
        bytes[i] ^= 1 << (i % 8);
        fs::write(&path, &bytes).unwrap();
        if let Ok(file) = MaskFile::read(&path) {
            file.set.check().unwrap();
        }
    }
}

#[test]
fn unwritable_mask_paths_are_named() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let file = MaskFile::new(set, Provenance::new("magnitude", 1), &checkpoint).unwrap();
    for bad in [dir.join("no/such/folder/mask.st"), dir.join("config.json/mask.st"), dir.path().to_path_buf()]
    {
        let text = file.write(&bad).unwrap_err().to_string();
        mentions(&text, &["cannot write", &bad.display().to_string()]);
    }
    let mut loose = file;
    loose.set.masks.values_mut().next().unwrap().set(0, 0, true);
    loose.set.masks.values_mut().next().unwrap().set(0, 1, true);
    loose.set.masks.values_mut().next().unwrap().set(0, 2, true);
    let text = loose.write(&dir.join("m.st")).unwrap_err().to_string();
    mentions(&text, &["model.layers.0.mlp.down_proj.weight", "group 0 of row 0"]);
    assert!(!dir.join("m.st").exists());
}

/// Checks every byte of an exported folder against its source.
fn check_export(source: &Path, out: &Path, config: &Architecture, set: &MaskSet) {
    let (before, after) = (listing(source), listing(out));
    for (name, bytes) in &after {
        if !name.ends_with(".safetensors") && name != hf::REPORT {
            assert_eq!(Some(bytes), before.get(name), "{name}");
        }
    }
    let (dense, masked) = (Checkpoint::open(source, config).unwrap(), Checkpoint::open(out, config).unwrap());
    assert_eq!(dense.files().len(), masked.files().len());
    for (a, b) in dense.files().iter().zip(masked.files()) {
        assert_eq!(a.file_name(), b.file_name());
        assert_eq!(a.header_bytes(), b.header_bytes());
        for (x, y) in a.entries().iter().zip(b.entries()) {
            let (p, q) = (a.data(x), b.data(y));
            let Some(mask) = set.get(&x.name) else {
                assert_eq!(p, q, "{}", x.name);
                continue;
            };
            let size = p.len() / mask.rows() / mask.cols();
            for (i, (p, q)) in p.chunks(size).zip(q.chunks(size)).enumerate() {
                match mask.get(i / mask.cols(), i % mask.cols()) {
                    true => assert_eq!(p, q, "{} {i}", x.name),
                    false => assert!(q.iter().all(|&b| b == 0), "{} {i}", x.name),
                }
            }
        }
    }
}

#[test]
fn exported_models_differ_only_in_pruned_weights() {
    let dir = Scratch::new();
    let source = dir.join("source");
    write_config(&source, &host_fixture::config());
    let config = Architecture::read(&source).unwrap();
    write_shards(&source, &tensors(&config));
    fs::create_dir_all(source.join("additional_chat_templates")).unwrap();
    fs::create_dir_all(source.join("original")).unwrap();
    fs::create_dir_all(source.join(".git")).unwrap();
    for (name, text) in [
        ("generation_config.json", "{}"),
        ("LICENSE", "free"),
        ("additional_chat_templates/tool.jinja", "{{ x }}"),
        (".gitattributes", "*"),
        // Other copies of the dense weights, and what must not be copied.
        ("pytorch_model.bin", "dense"),
        ("consolidated.safetensors", "dense"),
        ("original/consolidated.00.pth", "dense"),
        (".git/config", "x"),
        ("sparsity_report.json", "old"),
    ] {
        fs::write(source.join(name), text).unwrap();
    }
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let mut set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    set.masks.remove("model.layers.0.self_attn.q_proj.weight");
    // An empty folder may be written to; parents are made.
    let out = dir.join("runs/a/model");
    fs::create_dir_all(&out).unwrap();
    let summary = export_hf(&checkpoint, &config, &set, &out).unwrap();
    check_export(&source, &out, &config, &set);
    let names: Vec<_> = listing(&out).into_keys().collect();
    assert_eq!(
        names,
        [
            ".gitattributes",
            "LICENSE",
            "additional_chat_templates/tool.jinja",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "sparsity_report.json"
        ]
    );
    let left: Vec<_> = summary.left_out.iter().map(|p| p.display().to_string()).collect();
    assert_eq!(
        left,
        [".git", "consolidated.safetensors", "original/consolidated.00.pth", "pytorch_model.bin"]
    );
    assert!(!out.join("original").exists());
    let report: Value = serde_json::from_slice(&fs::read(out.join(hf::REPORT)).unwrap()).unwrap();
    assert_eq!((report["pattern"].as_str(), report["seed"].as_u64()), (Some("2:4"), Some(7)));
    assert_eq!(report["projections"].as_array().unwrap().len(), 14);
    assert_eq!(report["projections"][0]["sparsity"].as_f64(), Some(0.0));
    assert_eq!(report["projections"][1]["sparsity"].as_f64(), Some(0.5));
    assert_eq!(report["pruned_weights"].as_u64(), Some(summary.pruned_weights));
    assert_eq!(summary.pruned_weights, set.weights() / 2);
    // Nothing temporary is left beside it.
    assert_eq!(fs::read_dir(dir.join("runs/a")).unwrap().count(), 1);
}

#[test]
fn places_that_must_not_be_written_are_refused() {
    let dir = Scratch::new();
    let source = dir.join("source");
    let config = model(&source);
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let before = listing(dir.path());
    let refuse = |out: &Path, parts: &[&str]| {
        let result = export_hf(&checkpoint, &config, &set, out);
        let text = result.unwrap_err().to_string();
        mentions(&text, &[&out.display().to_string()]);
        mentions(&text, parts);
    };
    refuse(&source, &["inside the model folder"]);
    refuse(&source.join("out/deep"), &["inside the model folder"]);
    refuse(&dir.join("source/../source/out"), &["inside the model folder"]);
    refuse(dir.path(), &["not empty"]);
    refuse(&source.join("config.json"), &["inside"]);
    let file = dir.join("file");
    fs::write(&file, "x").unwrap();
    refuse(&file, &["cannot write folder"]);
    refuse(&file.join("below"), &["cannot", "file"]);
    fs::remove_file(&file).unwrap();
    #[cfg(target_os = "linux")]
    refuse(Path::new("/proc/maskwright-out"), &["cannot write folder"]);
    // A mask that is not strict is refused before anything is written.
    let mut loose = set.clone();
    loose.masks.values_mut().next().unwrap().set(1, 2, false);
    loose.masks.values_mut().next().unwrap().set(1, 3, false);
    loose.masks.values_mut().next().unwrap().set(1, 0, false);
    assert!(export_hf(&checkpoint, &config, &loose, &dir.join("out")).is_err());
    assert_eq!(listing(dir.path()), before);
}

/// A file of the source that cannot be read stops the export, which then leaves nothing.
#[test]
#[cfg(unix)]
fn a_failed_export_cleans_up() {
    let dir = Scratch::new();
    let source = dir.join("source");
    let config = model(&source);
    std::os::unix::fs::symlink("/nonexistent/file", source.join("vocab.json")).unwrap();
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let result = export_hf(&checkpoint, &config, &set, &dir.join("out"));
    mentions(&result.unwrap_err().to_string(), &["vocab.json", "cannot read"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // A link to a file, as the Hugging Face cache has them, is followed.
    fs::remove_file(source.join("vocab.json")).unwrap();
    std::os::unix::fs::symlink(source.join("config.json"), source.join("vocab.json")).unwrap();
    export_hf(&checkpoint, &config, &set, &dir.join("out")).unwrap();
    assert!(dir.join("out/vocab.json").symlink_metadata().unwrap().is_file());
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn a_real_model_is_exported() {
    let dir = Scratch::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260K");
    let config = Architecture::read(&source).unwrap();
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let out = dir.join("out");
    export_hf(&checkpoint, &config, &set, &out).unwrap();
    check_export(&source, &out, &config, &set);
}
