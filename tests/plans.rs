//! Plans against what is allocated, for every command that uses a device: of the device's memory as it counts it, and of the host's by an
//! allocator that counts. (`prune` layer by layer and by stages: `cli_prune.rs`, `cli_walk.rs`, `cli_learn.rs`.)

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cli_tools::{copied_village, fails, json_file, preset, succeeds, village, village_text};
use host_fixture::{
    Scratch, config_with, edit_tensor, tensors, write_config, write_safetensors, write_tokenizer,
};
use maskwright::cli;
use maskwright::model::Architecture;
use peak_alloc::PeakAlloc;
use serde_json::json;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Held by whoever counts.
static COUNTING: Mutex<()> = Mutex::new(());

/// A mask of the embedded model, and questions on it.
fn setup() -> (Scratch, PathBuf, PathBuf) {
    let dir = Scratch::new();
    let run = dir.join("run");
    succeeds(args!["prune", village(), "--method", "magnitude", "--no-model", "--out", run, "--quiet"]);
    let questions = dir.join("questions.jsonl");
    let line = r#"{"context": "Once upon a time there was a miller who had", "choices": ["a cart", "nothing at all to eat"], "answer": 0}"#;
    let long = r#"{"context": "The mill stood by the river, and the river ran past the village and the fields to the sea, and all who lived there knew the sound of its wheel and came with their corn", "choices": ["in autumn", "by night"], "answer": 0}"#;
    fs::write(&questions, format!("{line}\n{long}\n{line}\n")).unwrap();
    (dir, run.join("mask.safetensors"), questions)
}

/// The memory that a result tells of, and how far the plan may be from the peak.
#[track_caller]
fn close(what: &str, memory: &serde_json::Value) {
    let number = |key: &str| memory[key].as_f64().expect("bytes");
    let (plan, peak) = (number("plan_total"), number("peak"));
    println!("{what}: planned {plan}, allocated {peak}");
    assert!((plan / peak - 1.0).abs() <= 0.05, "{what}: planned {plan}, allocated {peak}: {memory}");
}

#[test]
fn device_memory_is_as_planned() {
    let (dir, mask, questions) = setup();
    // A dense model with another last norm has a head of its own.
    let other = copied_village(&dir.join("other"));
    edit_tensor(&other, "model.norm.weight", |bytes| bytes[0] ^= 1);
    let (model, text) = (village(), village_text("heldout"));
    let measured = args!["eval", model, "--text", text, "--window", "128"];
    let some = args!["--windows", "64"];
    let corpus = args!["--out", dir.join("texts.jsonl"), "--count", "5", "--temperature", "1"];
    let learned = args!["--calib", text, "--windows", "8", "--window", "64", "--batch", "4"];
    let cases: [(&str, Vec<OsString>); 9] = [
        ("eval", [measured, some].concat()),
        ("eval of a mask", [measured, some, args!["--mask", mask]].concat()),
        ("eval of one window", [measured, args!["--windows", "1"]].concat()),
        ("eval beside the dense model", [measured, some, args!["--against", model, "--mask", mask]].concat()),
        ("eval beside a dense model with another head", [measured, some, args!["--against", other]].concat()),
        ("choices", args!["eval", model, "--choices", questions, "--mask", mask].to_vec()),
        (
            "generate",
            args!["generate", model, "--prompt", "Once upon", "--tokens", "40", "--mask", mask].to_vec(),
        ),
        ("generate into a file", [args!["generate", model, "--tokens", "30"], corpus].concat()),
        (
            "variance",
            [args!["variance", model, "--samples", "2", "--warm-up", "1", "--start", "wanda"], learned]
                .concat(),
        ),
    ];
    for (what, words) in cases {
        let ran = succeeds(&[&words[..], args!["--json", "--quiet", "--preset", preset()]].concat());
        close(what, &cli_tools::json(&ran.out)["memory"]);
    }
    let run = dir.join("maskpro");
    let policy =
        args!["prune", model, "--method", "maskpro", "--steps", "2", "--out", run, "--no-model", "--quiet"];
    succeeds(&[policy, learned, args!["--preset", preset()]].concat());
    close("prune by maskpro", &json_file(&run.join("run.json"))["memory"]);
}

/// Runs a command line here; the most bytes that it held at once beyond those before.
fn peak(words: &[OsString]) -> f64 {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    cli::run([args!["maskwright"], words].concat()).unwrap();
    (HEAP.peak_usage() - before) as f64
}

/// What more windows take on the host is as planned: weights, programs and tables that any number of windows need cancel out. A wide model of
/// one block, so that windows take more than those.
#[test]
fn host_memory_is_as_planned() {
    let dir = Scratch::new();
    let (model, text) = (dir.join("wide"), dir.join("text.txt"));
    let sizes = json!({"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 64});
    write_config(&model, &config_with(sizes));
    write_safetensors(&model.join("model.safetensors"), &tensors(&Architecture::read(&model).unwrap()));
    write_tokenizer(&model, 12, 1);
    fs::write(&text, "w2 w3 w4 w5 w6 w7 w8 w9 ".repeat(2500)).unwrap();
    let common = args!["--json", "--quiet", "--preset", preset(), "--window", "64"];
    let against = |windows: usize| {
        let words =
            args!["eval", model, "--text", text, "--against", model, "--windows", windows.to_string()];
        let words = [words, common].concat();
        let planned = cli_tools::json(&succeeds(&words).out)["memory"]["host_total"].as_f64().expect("bytes");
        (planned, peak(&words))
    };
    let wanda = |windows: usize| {
        let out = dir.join(&format!("run{windows}"));
        let words = args![
            "prune",
            model,
            "--method",
            "wanda",
            "--calib",
            text,
            "--no-model",
            "--activations",
            "host"
        ];
        let words = [words, common, args!["--windows", windows.to_string()]].concat();
        let plan = cli_tools::json(&succeeds(&[&words[..], args!["--dry-run"]].concat()).out);
        let items = plan["host"].as_array().expect("a plan");
        let planned: f64 = items.iter().map(|item| item["bytes"].as_f64().expect("bytes")).sum();
        (planned, peak(&[&words[..], args!["--out", out]].concat()))
    };
    // What is made once in a process is there before anything is counted.
    against(10);
    wanda(10);
    let cases = [
        ("eval beside the dense model", against(100), against(300)),
        ("prune by wanda", wanda(100), wanda(300)),
    ];
    for (what, few, many) in cases {
        let (planned, held) = (many.0 - few.0, many.1 - few.1);
        println!("{what}: {planned} bytes more are planned, {held} more were held");
        assert!(planned > 2e7 && (held / planned - 1.0).abs() < 0.1, "{what}: {few:?}, {many:?}");
    }
}

/// One window of a long text takes the memory of the text and of a piece of it, not that of all its tokens.
#[test]
fn a_long_text_is_read_as_far_as_needed() {
    let dir = Scratch::new();
    let text = dir.join("long.txt");
    let part = fs::read_to_string(village_text("calib")).unwrap();
    fs::write(&text, part.repeat(60)).unwrap();
    let size = fs::metadata(&text).unwrap().len() as f64;
    let eval = |text: &Path, windows: &str| {
        let words =
            args!["eval", village(), "--text", text, "--window", "64", "--windows", windows, "--quiet"];
        peak(&[words, args!["--json", "--preset", preset()]].concat())
    };
    let (short, long) = (eval(&village_text("calib"), "1"), eval(&text, "1"));
    println!("{size} bytes of text: {short} bytes for a short one, {long} for the long one");
    assert!(size > 19e6 && long - short < size + 20e6, "{short} and {long} bytes");
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_change() {
    let (_dir, mask, questions) = setup();
    let (model, text) = (village(), village_text("heldout"));
    let eval = args!["eval", model, "--text", text, "--windows", "40", "--window", "64"];
    let tiny = |option: &str| args![option, "0.0001"].to_vec();
    for (words, remedy) in [
        (eval.to_vec(), "shorter --window"),
        ([eval, args!["--against", model]].concat(), "shorter --window"),
        (args!["eval", model, "--choices", questions].to_vec(), "shorter questions"),
        (args!["generate", model, "--mask", mask].to_vec(), "fewer --tokens"),
        (args!["variance", model, "--calib", text, "--windows", "32", "--window", "64"].to_vec(), "--batch"),
    ] {
        fails(
            &[&words[..], &tiny("--gpu-memory")].concat(),
            &["of device memory, --gpu-memory allows", remedy],
        );
        fails(
            &[&words[..], args!["--host-memory", "0"]].concat(),
            &["--host-memory must be a positive number"],
        );
    }
    let against = [eval, args!["--against", model]].concat();
    fails(
        &[&against[..], &tiny("--host-memory")].concat(),
        &["of host memory, --host-memory allows", "fewer --windows"],
    );
    let out = Scratch::new();
    let prune = args!["prune", model, "--method", "magnitude", "--out", out.join("run"), "--eval", text];
    fails(
        &[prune, args!["--eval-window", "64"], &tiny("--host-memory")].concat(),
        &["measuring on the text of --eval takes", "--host-memory allows", "fewer --eval-windows"],
    );
    assert!(!out.join("run").exists());
}
