//! What lies in the place of an input is known for what it is.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use maskwright::model::{Architecture, Checkpoint};

use super::{export, make_pipe, setup};
use crate::args;
use crate::cli_tools::{command, fails, names, run, succeeds};
use crate::host_fixture::{Scratch, edit_tensor, model, tensors, write_safetensors, write_tokenizer};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
                       oid sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\nsize 9085698\n";

/// A whole tiny model in `model/` and a text beside it.
fn tiny() -> Scratch {
    let dir = Scratch::new();
    model(&dir.join("model"));
    fs::write(dir.join("text.txt"), "w2 w3 w5 w7 ".repeat(10)).unwrap();
    dir
}

fn eval(dir: &Scratch, text: &str) -> Vec<OsString> {
    args!["eval", dir.join("model"), "--text", dir.join(text), "--window", "8"].to_vec()
}

#[test]
fn pointers_of_git_lfs_are_known_in_every_file() {
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let dir = tiny();
        fs::write(dir.join("model").join(name), POINTER).unwrap();
        fails(&eval(&dir, "text.txt"), &[name, "is a Git LFS pointer, not the file itself", "git lfs pull"]);
    }
    let dir = tiny();
    let told = ["is a Git LFS pointer", "git lfs pull"];
    for name in
        ["text.jsonl", "text.json", "text.txt.gz", "text.jsonl.zst", "text.parquet", "lfs.txt", "lfs.md"]
    {
        fs::write(dir.join(name), POINTER).unwrap();
        fails(&eval(&dir, name), &[name, told[0], told[1]]);
    }
    let with = |more: &[OsString]| [eval(&dir, "text.txt"), more.to_vec()].concat();
    fails(&with(args!["--mask", dir.join("lfs.txt")]), &told);
    fails(args!["eval", dir.join("model"), "--choices", dir.join("text.jsonl")], &told);
    fails(args!["prune", dir.join("model"), "--config", dir.join("lfs.txt"), "--dry-run"], &told);
    fs::write(dir.join("model/generation_config.json"), POINTER).unwrap();
    fails(args!["generate", dir.join("model"), "--prompt", "w2"], &["generation_config.json", told[0]]);
    // An index, a file of a run, and files that are only copied.
    let dir = setup();
    fs::write(dir.join("run/run.json"), POINTER).unwrap();
    fails(args!["report", dir.join("run"), "--out", dir.join("page")], &["run.json", told[0]]);
    fs::write(dir.join("dense/image.png"), POINTER).unwrap();
    let mask = args!["apply-mask", dir.join("dense"), "--mask", dir.join("mask"), "--out", dir.join("copy")];
    let ran = succeeds(mask);
    assert!(ran.err.contains("image.png") && ran.err.contains(told[0]), "{}", ran.err);
    fs::write(dir.join("dense/tokenizer.model"), POINTER).unwrap();
    fails(&[export(&dir, "hf"), vec![dir.join("copy2").into()]].concat(), &["tokenizer.model", told[0]]);
    assert!(!dir.join("copy2").exists());
    fs::write(dir.join("dense/model.safetensors.index.json"), POINTER).unwrap();
    fails(&[export(&dir, "hf"), vec![dir.join("copy2").into()]].concat(), &["index.json", told[0]]);
}

#[test]
fn answers_of_servers_are_known() {
    let page = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";
    let html = "is a web page in HTML";
    let refused = "is the answer of a server";
    for (content, told) in [
        (page, html),
        ("<html lang=\"en\">", html),
        ("Entry not found", refused),
        ("{\"error\":\"Access to model is restricted\"}", refused),
        ("Invalid username or password.", refused),
    ] {
        for name in ["model.safetensors", "tokenizer.json", "config.json"] {
            let dir = tiny();
            fs::write(dir.join("model").join(name), content).unwrap();
            fails(&eval(&dir, "text.txt"), &[name, told, "download it again"]);
        }
    }
    let dir = tiny();
    for name in ["text.jsonl", "text.txt.gz", "text.parquet", "text.json"] {
        fs::write(dir.join(name), page).unwrap();
        fails(&eval(&dir, name), &[name, html]);
    }
    // Texts about such things are texts.
    fs::write(dir.join("page.txt"), format!("{page} {}", "w2 w3 ".repeat(40))).unwrap();
    succeeds(&eval(&dir, "page.txt"));
    let line = format!("{{\"text\": \"{}\", \"error\": \"none\"}}\n", "w2 w3 ".repeat(40));
    fs::write(dir.join("one.jsonl"), line).unwrap();
    succeeds(&eval(&dir, "one.jsonl"));
}

/// A pipe in a model is refused, not waited for; one that is named as a text is read.
#[test]
fn pipes_are_not_waited_for() {
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let dir = tiny();
        let path = dir.join("model").join(name);
        fs::remove_file(&path).unwrap();
        make_pipe(&path);
        fails(&eval(&dir, "text.txt"), &[name, "it is a pipe, not a plain file"]);
    }
    let dir = tiny();
    make_pipe(&dir.join("mask"));
    let more = args!["--mask", dir.join("mask")];
    fails(&[eval(&dir, "text.txt"), more.to_vec()].concat(), &["mask", "it is a pipe"]);
    let inner = command();
    let mut words = eval(&dir, "text.txt");
    words[3] = "/dev/stdin".into();
    let script = format!("cat {} | \"$@\"", dir.join("text.txt").display());
    let mut piped = Command::new("bash");
    piped.arg("-c").arg(script).arg("bash").arg(inner.get_program()).args(words);
    let ran = piped.output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// A tensor that is in two files: the same is well, another one is refused.
#[test]
fn a_tensor_in_two_files_must_be_the_same() {
    let dir = setup();
    let dense = dir.join("dense");
    let config = Architecture::read(&dense).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let second = dense.join("model-00002-of-00002.safetensors");
    let mut part = tensors(&config);
    part.retain(|key, _| key.contains(".1.") || key == name);
    write_safetensors(&second, &part);
    succeeds(&[export(&dir, "hf"), vec![dir.join("same").into()]].concat());
    edit_tensor(&dense, "model.layers.1.mlp.up_proj.weight", |data| data[0] ^= 1);
    part.get_mut(name).unwrap().data[7] ^= 1;
    write_safetensors(&second, &part);
    let told = fails(
        &[export(&dir, "hf"), vec![dir.join("other").into()]].concat(),
        &[name, "model-00001-of-00002", "model-00002-of-00002", "with other values"],
    );
    assert!(told.contains("remove the one that is left over"), "{told}");
    // Of another shape.
    let tensor = part.get_mut(name).unwrap();
    tensor.shape.reverse();
    write_safetensors(&second, &part);
    assert!(Checkpoint::open(&dense, &config).unwrap_err().to_string().contains("with other values"));
}

/// Tensors of zeros where training leaves none.
#[test]
fn zeros_are_told() {
    let warned = |change: &dyn Fn(&Path), parts: &[&str]| {
        let dir = setup();
        change(&dir.join("dense"));
        let ran = run(&[export(&dir, "mask"), vec![dir.join("out").into()]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        match parts {
            [] => assert!(!ran.err.contains("zeros"), "{}", ran.err),
            parts => parts.iter().for_each(|part| assert!(ran.err.contains(part), "{part}: {}", ran.err)),
        }
    };
    let fill = |tensor: &'static str| move |dense: &Path| edit_tensor(dense, tensor, |data| data.fill(0));
    warned(&|_: &Path| (), &[]);
    warned(&fill("model.norm.weight"), &["model.norm.weight holds only zeros"]);
    warned(&fill("model.layers.1.mlp.down_proj.weight"), &["down_proj.weight holds only zeros: a copy"]);
    warned(
        &|dense: &Path| {
            fill("model.layers.0.input_layernorm.weight")(dense);
            fill("model.layers.0.self_attn.o_proj.weight")(dense);
        },
        &["input_layernorm.weight holds only zeros, and so do 1 others"],
    );
    warned(
        &|dense: &Path| {
            let path = dense.join("model-00002-of-00002.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let half = bytes.len() / 2;
            bytes[half..].fill(0);
            fs::write(&path, bytes).unwrap();
        },
        &["the second half of model-00002-of-00002.safetensors holds only zeros", "download"],
    );
}

/// What cannot be read and nobody needs is left out; what a loader looks for is told before the work.
#[test]
fn unreadable_entries_are_left_out() {
    let dir = setup();
    let dense = dir.join("dense");
    symlink("someone@host.1234:1700000000", dense.join(".#config.json")).unwrap();
    symlink("nowhere", dense.join("README.md")).unwrap();
    symlink("circle", dense.join("circle")).unwrap();
    symlink("../../blobs/none", dense.join("old.bin")).unwrap();
    let _listener = UnixListener::bind(dense.join("socket")).unwrap();
    make_pipe(&dense.join("pipe"));
    fs::create_dir(dense.join("lost+found")).unwrap();
    fs::set_permissions(dense.join("lost+found"), Permissions::from_mode(0o700)).unwrap();
    let ran = succeeds(&[export(&dir, "hf"), vec![dir.join("out").into()]].concat());
    for name in [".#config.json", "README.md", "circle"] {
        assert!(ran.err.contains(&format!("{name} of the model folder is left out")), "{name}: {}", ran.err);
    }
    let copied = names(&dir.join("out"));
    assert!(
        !copied.iter().any(|n| ["README.md", "circle", "socket", "pipe", ".#config.json"].contains(&&**n))
    );
    let ran = succeeds(args!["verify", dir.join("out"), "--against", dense]);
    assert!(ran.out.contains("left out by exports: README.md"), "{}", ran.out);
    for (name, target) in
        [("vocab.json", "nowhere"), ("generation_config.json", "../../blobs/0"), ("modeling_own.py", "x")]
    {
        symlink(target, dense.join(name)).unwrap();
        fails(
            &[export(&dir, "hf"), vec![dir.join("none").into()]].concat(),
            &[name, "whoever loads the model"],
        );
        let prune = args!["prune", dense, "--method", "magnitude", "--out", dir.join("none")];
        if name != "generation_config.json" {
            fails(prune, &[name, "whoever loads the model"]);
        }
        assert!(!dir.join("none").exists());
        fs::remove_file(dense.join(name)).unwrap();
    }
    // An editor's lock beside a run: the run comes to its end.
    write_tokenizer(&dense, 12, 1);
    succeeds(args!["prune", dense, "--method", "magnitude", "--out", dir.join("pruned"), "--quiet"]);
    assert!(dir.join("pruned/run.json").is_file());
}

/// Compressed pointers are no pointers.
#[test]
fn a_text_about_pointers_is_a_text() {
    let dir = tiny();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(format!("w2 {POINTER} {}", "w3 w4 ".repeat(40)).as_bytes()).unwrap();
    fs::write(dir.join("about.txt.gz"), encoder.finish().unwrap()).unwrap();
    succeeds(&eval(&dir, "about.txt.gz"));
}
