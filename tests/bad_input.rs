//! Bad input through the built command: one clear error line that names the thing and what to do, the right exit code, no
//! panic, and nothing left that looks like a result.
//!
//! Everything but the output and adapter cases is refused before a device is opened.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::Path;

use cli_tools::{command, fails, fails_in, names, village, village_text};
use host_fixture::{
    Scratch, config, config_with, magnitude_masks, model, tensors, write_config, write_safetensors,
    write_shards, write_tokenizer,
};
use maskwright::mask::{MaskFile, Pattern, Provenance};
use maskwright::model::Checkpoint;
use maskwright::prune::select;
use serde_json::json;

/// A whole tiny model in `model/` and a text of 40 words beside it.
fn setup() -> Scratch {
    let dir = Scratch::new();
    model(&dir.join("model"));
    fs::write(dir.join("text"), "w2 w3 w5 w7 ".repeat(10)).unwrap();
    dir
}

/// `eval` of the folder's model on its text must fail, and so must `prune`, which may then leave nothing.
#[track_caller]
fn refused(dir: &Scratch, parts: &[&str]) {
    let (model, text, out) = (dir.join("model"), dir.join("text"), dir.join("out"));
    let line = fails(args!["eval", model, "--text", text, "--window", "8"], parts);
    let prune = args![
        "prune",
        model,
        "--calib",
        text,
        "--window",
        "8",
        "--windows",
        "4",
        "--batch",
        "2",
        "--method",
        "maskpro",
        "--out",
        out
    ];
    assert_eq!(fails(prune, parts), line, "both commands say the same");
    assert!(!out.exists(), "an error before any work leaves no folder");
}

#[test]
fn a_truncated_weight_file() {
    let dir = setup();
    let path = dir.join("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 9, 0] {
        fs::write(&path, &bytes[..length]).unwrap();
        refused(&dir, &["model.safetensors is not a whole safetensors file", "download or write it again"]);
    }
    fs::remove_file(&path).unwrap();
    refused(&dir, &["model", "holds neither model.safetensors nor"]);
}

#[test]
fn an_index_that_points_to_a_missing_shard() {
    let dir = setup();
    let folder = dir.join("model");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    write_shards(&folder, &tensors(&maskwright::model::Architecture::read(&folder).unwrap()));
    let shard = "model-00002-of-00002.safetensors";
    fs::remove_file(folder.join(shard)).unwrap();
    refused(&dir, &["model.safetensors.index.json", shard, "missing", "download it"]);
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let dir = setup();
    let mut all = tensors(&maskwright::model::Architecture::read(&dir.join("model")).unwrap());
    all.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().shape.reverse();
    write_safetensors(&dir.join("model/model.safetensors"), &all);
    refused(&dir, &["model.layers.1.mlp.up_proj.weight", "[16, 24]", "[24, 16]", "do not belong together"]);
}

#[test]
fn a_weight_that_is_not_a_number() {
    let dir = setup();
    let mut all = tensors(&maskwright::model::Architecture::read(&dir.join("model")).unwrap());
    // bf16 [24, 16]; element (2, 3).
    let at = 2 * (2 * 16 + 3);
    let data = &mut all.get_mut("model.layers.1.mlp.gate_proj.weight").unwrap().data;
    data[at..at + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    write_safetensors(&dir.join("model/model.safetensors"), &all);
    refused(&dir, &["model.layers.1.mlp.gate_proj.weight", "NaN", "[2, 3]", "use another copy"]);
}

#[test]
fn an_unknown_family_and_a_broken_configuration() {
    let dir = setup();
    let folder = dir.join("model");
    write_config(&folder, &config_with(json!({"model_type": "bert"})));
    refused(&dir, &["config.json", "bert", "llama, mistral, ministral"]);
    write_config(&folder, &config_with(json!({"hidden_size": "many"})));
    refused(&dir, &["config.json", "hidden_size", "many"]);
    fs::write(folder.join("config.json"), "{").unwrap();
    refused(&dir, &["config.json is not a JSON object", "download the file again"]);
    fs::remove_file(folder.join("config.json")).unwrap();
    refused(&dir, &["config.json"]);
    write_config(&folder, &config());
    let missing = dir.join("nowhere");
    fails(args!["eval", missing, "--text", dir.join("text")], &["nowhere"]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let dir = setup();
    let folder = dir.join("model");
    write_tokenizer(&folder, 13, 1);
    refused(&dir, &["tokenizer.json", "13 embeddings are needed", "has 12", "belongs to another model"]);
    // The opening token is in no vocabulary, so it only shows when a text is encoded.
    write_tokenizer(&folder, 12, 40);
    refused(&dir, &["tokenizer.json", "40", "12 embeddings", "belongs to another model"]);
    fs::write(folder.join("tokenizer.json"), "not JSON").unwrap();
    refused(&dir, &["tokenizer.json is not a usable tokenizer", "download it again"]);
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    refused(&dir, &["tokenizer.json", "AutoTokenizer"]);
}

/// The tokenizer library panics over such a file; that must stay inside.
#[test]
fn a_tokenizer_that_contradicts_itself() {
    let dir = setup();
    let path = dir.join("model/tokenizer.json");
    let mut tokenizer = cli_tools::json_file(&path);
    tokenizer["post_processor"]["special_tokens"] = json!({});
    fs::write(&path, tokenizer.to_string()).unwrap();
    refused(&dir, &["tokenizer.json cannot encode the text", "contradict each other", "download it again"]);
}

#[test]
fn texts_that_are_missing_empty_binary_or_too_short() {
    let dir = setup();
    let text = dir.join("text");
    for empty in ["", " \n\t\n"] {
        fs::write(&text, empty).unwrap();
        refused(&dir, &["text is empty", "give a file with text in it"]);
    }
    fs::write(&text, "w2 w3").unwrap();
    refused(&dir, &["3 tokens", "window of 8", "longer text or a shorter window"]);
    fs::write(&text, b"w2 w3 \xff\xfe w5").unwrap();
    refused(&dir, &["text", "not a text in UTF-8", "byte 6"]);
    fs::remove_file(&text).unwrap();
    refused(&dir, &["cannot read", "text", "give a text"]);
    let line =
        fails(args!["eval", village(), "--text", village_text("heldout"), "--window", "1"], &["at least 2"]);
    assert!(line.contains("windows of 1 tokens"), "{line}");
}

#[test]
fn a_batch_larger_than_the_text() {
    let dir = setup();
    let (model, text, out) = (dir.join("model"), dir.join("text"), dir.join("out"));
    let args = args![
        "prune", model, "--calib", text, "--window", "8", "--batch", "6", "--method", "maskpro", "--out", out
    ];
    fails(args, &["5 windows", "takes 6", "smaller --batch"]);
    assert!(!out.exists());
}

/// Wrong usage: exit code 2, by the argument parser.
#[test]
fn wrong_options() {
    let dir = setup();
    let out = dir.join("out");
    let base =
        ["prune".into(), dir.join("model"), "--calib".into(), dir.join("text"), "--out".into(), out.clone()];
    let wrong: &[(&[&str], &[&str])] = &[
        (&["--pattern", "4:2"], &["--pattern", "4:2 is not supported", "keeps N of M"]),
        (&["--pattern", "2:5"], &["--pattern", "2:5", "2, 4, 8, 16"]),
        (&["--pattern", "half"], &["--pattern", "half"]),
        (&["--method", "luck"], &["--method", "luck"]),
        (&["--steps", "-1"], &["-1"]),
        (&["--stps", "1"], &["--stps"]),
    ];
    for (more, parts) in wrong {
        let mut command = command();
        command.args(&base).args(*more);
        fails_in(command, 2, parts);
    }
    let mut without_out = command();
    without_out.args(&base[..4]);
    let ran = without_out.output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("--out"));
    // Refused by the program: values the parser cannot judge.
    let refused: &[(&[&str], &[&str])] = &[
        (&["--alpha", "1"], &["--alpha", "below 1"]),
        (&["--rate", "nan"], &["--rate"]),
        (&["--logits", "0"], &["--logits"]),
        (&["--sharpness", "30", "--objective", "block"], &["--sharpness", "model's loss"]),
        (&["--sharpness", "30", "--start", "descent"], &["--sharpness", "magnitude or wanda"]),
        (&["--method", "maskpro", "--repair", "model"], &["--repair", "--method given"]),
        (&["--only", "no_such"], &["no projection", "no_such"]),
        (&["--pattern", "4:16", "--window", "8"], &["down_proj", "24 input features", "--skip-indivisible"]),
    ];
    for (more, parts) in refused {
        let mut command = command();
        command.args(&base).args(*more);
        fails_in(command, 1, parts);
    }
    fails(&base[..2].iter().cloned().chain(["--out".into(), out.clone()]).collect::<Vec<_>>(), &["--calib"]);
    assert!(!out.exists());
}

/// A magnitude mask of the folder's model, as a mask file.
fn write_mask(folder: &Path, path: &Path) {
    let config = maskwright::model::Architecture::read(folder).unwrap();
    let checkpoint = Checkpoint::open(folder, &config).unwrap();
    let pattern = Pattern::new(2, 4).unwrap();
    let selection = select(&config, pattern, &[], false).unwrap();
    let set = magnitude_masks(&checkpoint, &selection, pattern);
    MaskFile::new(set, Provenance::new("magnitude", 0), &checkpoint).unwrap().write(path).unwrap();
}

#[test]
fn masks_that_are_damaged_or_of_another_model() {
    let dir = setup();
    let (tiny, text, mask) = (dir.join("model"), dir.join("text"), dir.join("mask.safetensors"));
    let eval = args!["eval", tiny, "--text", text, "--window", "8", "--mask", mask];
    fails(eval, &["cannot read", "mask.safetensors"]);
    write_mask(&village(), &mask);
    fails(eval, &["model.layers.", "belongs to another model"]);
    write_mask(&tiny, &mask);
    let bytes = fs::read(&mask).unwrap();
    fs::write(&mask, &bytes[..bytes.len() - 3]).unwrap();
    fails(eval, &["mask.safetensors"]);
    fs::write(&mask, "not a mask").unwrap();
    fails(eval, &["mask.safetensors"]);
    // A model's weights are safetensors too, but no mask.
    let weights = tiny.join("model.safetensors");
    fails(
        args!["eval", tiny, "--text", text, "--window", "8", "--mask", weights],
        &["not a usable mask file"],
    );
}

// From here on a device is opened.

/// Options that make a run of the tiny model short.
const SHORT: [&str; 14] = [
    "--method",
    "maskpro",
    "--window",
    "8",
    "--windows",
    "4",
    "--batch",
    "2",
    "--steps",
    "1",
    "--start",
    "magnitude",
    "--preset",
    "rows16",
];

fn prune(dir: &Scratch, out: &Path) -> std::process::Command {
    let mut command = command();
    command
        .arg("prune")
        .arg(dir.join("model"))
        .arg("--calib")
        .arg(dir.join("text"))
        .arg("--out")
        .arg(out)
        .args(SHORT);
    command
}

#[test]
fn an_output_folder_that_cannot_be_written() {
    let dir = setup();
    fails_in(prune(&dir, &dir.join("text/run")), 1, &["cannot write the run folder", "text/run", "--out"]);
    let full = dir.join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    fails_in(prune(&dir, &full), 1, &["full already exists and is not empty", "--out"]);
    assert_eq!(names(&full), ["precious"]);
    let inside = dir.join("model/run");
    fails_in(prune(&dir, &inside), 1, &["lies inside the model folder", "somewhere else"]);
    assert!(!inside.join("run.json").exists());
    #[cfg(target_os = "linux")]
    fails_in(prune(&dir, Path::new("/proc/run")), 1, &["cannot write the run folder /proc/run", "--out"]);
}

/// The port of the live report is taken before any work, or the run does not begin.
#[test]
fn an_address_that_cannot_be_served() {
    let dir = setup();
    let out = dir.join("out");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [taken.local_addr().unwrap().to_string(), "nowhere.invalid:80".into(), "words".into()] {
        let mut command = prune(&dir, &out);
        command.arg(format!("--serve={address}"));
        fails_in(command, 1, &["cannot show the report at", &address, "--serve=127.0.0.1:0"]);
        assert!(!out.exists());
    }
}

/// Where rights count (not for root), a folder without the right to write.
#[cfg(unix)]
#[test]
fn an_output_folder_without_the_right_to_write() {
    use std::os::unix::fs::PermissionsExt;
    let dir = setup();
    let locked = dir.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let root = fs::write(locked.join("probe"), "x").is_ok();
    if !root {
        fails_in(prune(&dir, &locked.join("run")), 1, &["cannot write the run folder", "--out"]);
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The run folder after a write that failed: perhaps metrics and a whole mask, never run.json, half a model or a temporary.
fn looks_unfinished(out: &Path) {
    let left = if out.exists() { names(out) } else { Vec::new() };
    let allowed = ["config.toml", "mask.safetensors", "metrics.jsonl"];
    assert!(left.iter().all(|n| allowed.contains(&n.as_str())), "left behind: {left:?}");
    if left.iter().any(|n| n == "mask.safetensors") {
        MaskFile::read(&out.join("mask.safetensors")).expect("a whole mask, or none");
    }
}

/// A limit on the size of files stands for a disk that fills up in the middle of a file: no root is needed for it.
#[cfg(unix)]
#[test]
fn a_write_that_fails_in_the_middle() {
    let dir = setup();
    let out = dir.join("out");
    let inner = prune(&dir, &out);
    let mut limited = std::process::Command::new("bash");
    // Blocks of 1024 bytes: room for the mask, not for the model. With the signal ignored the write fails instead.
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 8; exec \"$@\"").arg("bash");
    limited.arg(inner.get_program()).args(inner.get_args());
    limited.env("MASKWRIGHT_CACHE", env!("CARGO_TARGET_TMPDIR")).env_remove("RUST_LOG");
    fails_in(limited, 1, &["cannot write", "out/model/model.safetensors"]);
    looks_unfinished(&out);
}

/// The real thing: a file system of 16 KiB.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "mounts a tmpfs, which takes root: run with `cargo test --test bad_input -- --ignored`"]
fn a_full_disk() {
    let dir = setup();
    let disk = dir.join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |args: &[&str]| {
        std::process::Command::new(args[0]).args(&args[1..]).arg(&disk).status().unwrap().success()
    };
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs"]), "a tmpfs could not be mounted");
    let result = std::panic::catch_unwind(|| {
        fails_in(prune(&dir, &disk.join("out")), 1, &["cannot write", "disk/out", "free some space"]);
        looks_unfinished(&disk.join("out"));
    });
    assert!(mount(&["umount"]));
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn an_adapter_that_does_not_exist() {
    let dir = setup();
    let out = dir.join("out");
    let mut command = prune(&dir, &out);
    command.args(["--device", "no such adapter"]);
    fails_in(command, 1, &["no adapter matches `no such adapter`", "there are", "Choose one"]);
    assert!(!out.exists(), "so that the same command can be given again");
    // A number is an index, though drivers have numbers in their names: "llvmpipe (LLVM 15.0.6, 256 bits)".
    for number in ["256", "15", "1000"] {
        let mut devices = self::command();
        devices.args(["devices", "--device", number]);
        fails_in(devices, 1, &[&format!("no adapter matches `{number}`"), "there are: 0: "]);
    }
}

/// DX12 is not there on Linux, and a Vulkan loader without drivers finds nothing.
#[cfg(target_os = "linux")]
#[test]
fn no_adapter_at_all() {
    let dir = setup();
    let without: [(&str, &str); 2] = [("WGPU_BACKEND", "dx12"), ("VK_DRIVER_FILES", "/nonexistent.json")];
    for (name, value) in without {
        let hide = |mut command: std::process::Command| {
            command.env(name, value);
            // The name of older loaders.
            if name == "VK_DRIVER_FILES" {
                command.env("VK_ICD_FILENAMES", value);
            }
            command
        };
        let parts = ["no GPU adapter found", "Install a Vulkan driver", "mesa-vulkan-drivers"];
        let out = dir.join("out");
        fails_in(hide(prune(&dir, &out)), 1, &parts);
        assert!(!out.exists(), "so that the same command can be given again");
        let mut devices = command();
        devices.arg("devices");
        fails_in(hide(devices), 1, &parts);
        let mut eval = command();
        eval.arg("eval").arg(dir.join("model")).arg("--text").arg(dir.join("text")).args(["--window", "8"]);
        fails_in(hide(eval), 1, &parts);
    }
}

#[test]
fn an_unknown_preset() {
    let dir = setup();
    let mut eval = command();
    eval.arg("eval").arg(dir.join("model")).arg("--text").arg(dir.join("text"));
    eval.args(["--window", "8", "--preset", "fast"]);
    fails_in(eval, 1, &["there is no preset `fast`", "tile64", "rows16"]);
}
