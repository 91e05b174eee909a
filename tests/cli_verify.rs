//! `maskwright verify`: a good folder passes, and each kind of fault is found where it is.

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use cli_tools::{Ran, json, run};
use host_fixture::{
    Scratch, config_with, edit_tensor, export_hf, magnitude_masks, mentions, tensors, write_config,
    write_shards,
};
use maskwright::export::hf;
use maskwright::mask::{MaskFile, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint};
use maskwright::prune::Selection;
use maskwright::verify::{Options, verify};
use serde_json::json;

const Q0: &str = "model.layers.0.self_attn.q_proj.weight";
const UP1: &str = "model.layers.1.mlp.up_proj.weight";

/// `source`, `out` (masked, without UP1) and `mask.safetensors` in a folder.
fn exported(pattern: &str, tied: bool) -> Scratch {
    let dir = Scratch::new();
    let source = dir.join("source");
    write_config(&source, &config_with(json!({"tie_word_embeddings": tied})));
    let config = Architecture::read(&source).unwrap();
    write_shards(&source, &tensors(&config));
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let pattern: Pattern = pattern.parse().unwrap();
    let selection =
        Selection { pruned: config.projections().into_iter().enumerate().collect(), skipped: vec![] };
    let mut set = magnitude_masks(&checkpoint, &selection, pattern);
    set.masks.remove(UP1);
    let provenance = Provenance::new("magnitude", 7);
    export_hf(&checkpoint, &config, &set, &dir.join("out")).unwrap();
    MaskFile::new(set, provenance, &checkpoint).unwrap().write(&dir.join("mask.safetensors")).unwrap();
    dir
}

/// Changes the stored bytes of a tensor of the masked folder.
fn edit(dir: &Scratch, tensor: &str, change: impl Fn(&mut [u8])) {
    edit_tensor(&dir.join("out"), tensor, change);
}

fn verify_with(dir: &Scratch, more: &[&str]) -> Ran {
    let mut args: Vec<OsString> = vec!["verify".into(), dir.join("out").into()];
    for word in more {
        let path = matches!(*word, "source" | "mask.safetensors");
        args.push(if path { dir.join(word).into() } else { word.into() });
    }
    run(&args)
}

#[track_caller]
fn wrong(dir: &Scratch, more: &[&str], parts: &[&str]) {
    let ran = verify_with(dir, more);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let error = ran.err.lines().find(|l| l.starts_with("error: ")).unwrap();
    mentions(error, parts);
    assert!(!ran.err.contains("panicked"));
}

/// The index in row 2 of the first weight of group 1 that is zero, or not; 16 columns of 2 bytes.
fn place(zero: bool) -> impl Fn(&mut [u8]) -> &mut [u8] {
    move |data| {
        let start = (2 * 16 + 4) * 2;
        let at = (0..4).find(|i| (data[start + 2 * i..start + 2 * i + 2] == [0, 0]) == zero).unwrap();
        &mut data[start + 2 * at..start + 2 * at + 2]
    }
}

#[test]
fn good_folders_pass() {
    for (pattern, tied) in [("2:4", true), ("2:4", false), ("1:2", true), ("4:8", true), ("1:4", false)] {
        let dir = exported(pattern, tied);
        let ways: [&[&str]; 5] = [
            &[],
            &["--against", "source"],
            &["--mask", "mask.safetensors"],
            &["--against", "source", "--mask", "mask.safetensors", "--pattern", pattern],
            &["--against", "source", "--repaired"],
        ];
        for way in ways {
            let ran = verify_with(&dir, way);
            assert_eq!(ran.code, Some(0), "{pattern} {way:?}\n{}{}", ran.out, ran.err);
            assert!(ran.out.contains(&format!("right: 13 projections are strictly {pattern}, 1 dense")));
        }
        let found = json(&verify_with(&dir, &["--against", "source", "--json"]).out);
        assert_eq!((found["ok"].as_bool(), found["pattern"].as_str()), (Some(true), Some(pattern)));
        assert_eq!(found["projections"].as_array().unwrap().len(), 14);
        assert!(found["bytes"]["mask_file"].as_u64().unwrap() > 0);
    }
}

#[test]
fn each_fault_is_found_where_it_is() {
    let against: &[&str] = &["--against", "source"];
    let masked: &[&str] = &["--mask", "mask.safetensors"];
    let spot = "group 1 of row 2";

    let dir = exported("2:4", true);
    edit(&dir, Q0, |data| place(true)(data).copy_from_slice(&[0, 0x3c]));
    for way in [&[], against, masked] {
        wrong(&dir, way, &[Q0, spot, "keeps 3 weights"]);
    }
    let dir = exported("2:4", true);
    edit(&dir, Q0, |data| place(true)(data).copy_from_slice(&[0, 0x80]));
    for way in [&[], against, masked] {
        wrong(&dir, way, &[Q0, spot, "-0.0"]);
    }
    let dir = exported("2:4", true);
    edit(&dir, Q0, |data| place(false)(data)[0] ^= 1);
    wrong(&dir, against, &[Q0, spot, "bits are not those of the source"]);
    assert_eq!(verify_with(&dir, &["--against", "source", "--repaired"]).code, Some(0));
    let dir = exported("2:4", true);
    edit(&dir, Q0, |data| place(false)(data).fill(0));
    wrong(&dir, against, &[Q0, spot, "lost"]);
    // The same number of weights, others than the mask keeps.
    edit(&dir, Q0, |data| {
        let start = (2 * 16 + 4) * 2;
        let other: Vec<usize> = (0..4).filter(|i| data[start + 2 * i..start + 2 * i + 2] == [0, 0]).collect();
        data[start + 2 * other[0]..][..2].copy_from_slice(&[1, 0x3c]);
        data[start + 2 * other[1]..][..2].copy_from_slice(&[1, 0x3c]);
        data[start + 2 * other[2]..][..2].fill(0);
        (0..4).filter(|i| !other.contains(i)).for_each(|i| data[start + 2 * i..][..2].fill(0));
    });
    wrong(&dir, masked, &[Q0, spot, "mask prunes"]);
}

#[test]
fn what_must_stay_dense_is_guarded() {
    let against: &[&str] = &["--against", "source"];
    let halve4 = |data: &mut [u8]| data.chunks_exact_mut(16).for_each(|group| group[..8].fill(0));
    for tensor in ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] {
        let dir = exported("2:4", false);
        edit(&dir, tensor, halve4);
        wrong(&dir, &[], &[tensor, "must stay dense"]);
        wrong(&dir, against, &[tensor, "differs from the source"]);
    }
    let dir = exported("2:4", true);
    edit(&dir, UP1, |data| data.chunks_exact_mut(8).for_each(|group| group[..4].fill(0)));
    wrong(&dir, &[], &[UP1, "must be dense"]);
    wrong(&dir, against, &[UP1, "differs from the source"]);
    // A dense projection passes only where something says so.
    let dir = exported("2:4", true);
    fs::remove_file(dir.join("out").join(hf::REPORT)).unwrap();
    wrong(&dir, &[], &["--pattern"]);
    wrong(&dir, &["--pattern", "2:4"], &[UP1, "group 0 of row 0", "whole projection is dense"]);
    assert_eq!(verify_with(&dir, &["--pattern", "2:4", "--allow-dense"]).code, Some(0));
    wrong(&dir, &["--pattern", "1:4", "--allow-dense"], &[Q0, "keeps 2 weights"]);
}

#[test]
fn files_and_layout_are_held_against_the_source() {
    let against: &[&str] = &["--against", "source"];
    let change = |name: &str, bytes: &[u8], parts: &[&str]| {
        let dir = exported("2:4", true);
        fs::write(dir.join("out").join(name), bytes).unwrap();
        wrong(&dir, against, parts);
    };
    let config = config_with(json!({"rms_norm_eps": 1e-6})).to_string();
    change("config.json", config.as_bytes(), &["config.json", "differs"]);
    change("pytorch_model.bin", b"dense", &["pytorch_model.bin", "another weight file"]);
    change(hf::REPORT, b"{}", &["sparsity_report.json", "`pattern`"]);
    let dir = exported("2:4", true);
    fs::write(dir.join("source/vocab.json"), "{}").unwrap();
    wrong(&dir, against, &["vocab.json", "missing"]);
    // An output matrix where the embedding is tied.
    let dir = exported("2:4", false);
    let tied = config_with(json!({"tie_word_embeddings": true}));
    write_config(&dir.join("out"), &tied);
    wrong(&dir, &[], &["lm_head.weight", "ties"]);
    // Re-fitted weights must be allowed.
    let dir = exported("2:4", true);
    let path = dir.join("out").join(hf::REPORT);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("bit-identical to the source", "re-fitted after pruning")).unwrap();
    wrong(&dir, against, &["sparsity_report.json", "--repaired"]);
    assert_eq!(verify_with(&dir, &["--against", "source", "--repaired"]).code, Some(0));
}

#[test]
fn backends_are_told_by_shape_type_and_pattern() {
    let dir = exported("2:4", true);
    let found = verify(&dir.join("out"), &Options::default()).unwrap();
    let line = |name: &str| found.projections.iter().find(|l| l.name == name).unwrap();
    let q = &line(Q0).backends;
    assert!(
        q.cutlass
            .as_deref()
            .unwrap()
            .contains("16 x 16 does not fit: in F16, rows must be a multiple of 32 and columns of 64")
    );
    assert_eq!((&q.cusparselt, &q.tensorrt), (&None, &None));
    assert_eq!(line(UP1).backends.tensorrt.as_deref(), Some("not pruned"));
    let dir = exported("4:8", true);
    let found = verify(&dir.join("out"), &Options::default()).unwrap();
    assert!(found.projections.iter().all(|l| l.backends.tensorrt.is_some()));
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn a_real_model_passes() {
    let dir = Scratch::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260K");
    let config = Architecture::read(&source).unwrap();
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let selection =
        Selection { pruned: config.projections().into_iter().enumerate().collect(), skipped: vec![] };
    let set = magnitude_masks(&checkpoint, &selection, Pattern::TWO_OF_FOUR);
    let out = dir.join("out");
    export_hf(&checkpoint, &config, &set, &out).unwrap();
    let options = Options { mask: Some(&set), against: Some(&source), ..Options::default() };
    assert!(verify(&out, &options).unwrap().ok);
}

/// Files that nobody but an export may add, and what is said of the rest.
#[test]
fn added_files_are_found() {
    let against: &[&str] = &["--against", "source"];
    let dir = exported("2:4", true);
    let ran = verify_with(&dir, against);
    mentions(&ran.out, &["nothing else touched", "added, as exports write it: sparsity_report.json"]);
    assert!(!verify_with(&dir, &[]).out.contains("nothing else touched"));
    assert!(!verify_with(&dir, &["--against", "source", "--repaired"]).out.contains("nothing else touched"));
    for name in ["modeling_llama.py", "README.md", "torch24.json.bak", "deep/er/tokenizer.json"] {
        let dir = exported("2:4", true);
        let path = dir.join("out").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
        wrong(&dir, against, &[name, "is not in the source, and no export writes it"]);
        let ran = verify_with(&dir, against);
        mentions(&ran.out, &[&format!("added: {name}"), "wrong: 1 tensors or files"]);
        assert!(!ran.out.contains("nothing else touched"));
        let found = json(&verify_with(&dir, &["--against", "source", "--json"]).out);
        assert_eq!(found["entries"]["added"], json!([name]));
    }
    // An index beside a single file describes other files; one that the packed format does not write.
    let dir = exported("2:4", true);
    fs::write(dir.join("out/load_torch24.py"), "").unwrap();
    wrong(&dir, against, &["load_torch24.py", "no export writes it"]);
    // Removed, changed, and left out by the export.
    let dir = exported("2:4", true);
    fs::write(dir.join("source/vocab.json"), "{}").unwrap();
    fs::write(dir.join("source/pytorch_model.bin"), "dense").unwrap();
    fs::write(dir.join("out/config.json"), config_with(json!({"rms_norm_eps": 1e-6})).to_string()).unwrap();
    let ran = verify_with(&dir, against);
    mentions(
        &ran.out,
        &["removed: vocab.json", "changed: config.json", "left out by exports: pytorch_model.bin"],
    );
    // A hidden folder is not looked into, and nothing is said of it.
    let dir = exported("2:4", true);
    fs::create_dir_all(dir.join("out/.git")).unwrap();
    let ran = verify_with(&dir, against);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    mentions(&ran.out, &["not compared: .git", "but for what was not compared"]);
    assert!(!ran.out.contains("nothing else touched"));
}
