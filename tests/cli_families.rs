//! Every family from end to end by the built command: a mask made by descent and learned, weights fitted, the masked model written and
//! verified, and measured as its mask is.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::{Path, PathBuf};

use cli_tools::{json, json_file, perplexity, preset, run, succeeds};
use host_fixture::Scratch;

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

/// A model of every family.
const MODELS: [&str; 27] = [
    "cohere",
    "cohere2",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama_bias",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "olmo_clip",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "phi3_long",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm_parallel",
    "starcoder2",
];
/// Those whose projections are not stored as they are computed, or under another prefix: what is written is also measured.
const MEASURED: [&str; 5] = ["gemma3", "glm4", "gpt2", "gpt_neox", "phi3_long"];

/// No family is left out.
#[test]
fn all_families_are_there() {
    let family = |name: &&str| {
        let config = json_file(&families().join(name).join("config.json"));
        config["model_type"].as_str().expect("a name").to_owned()
    };
    let mut found: Vec<String> = MODELS.iter().map(family).collect();
    let mut known: Vec<String> = maskwright::model::family_names().map(String::from).collect();
    found.sort();
    known.sort();
    assert_eq!(found, known);
}

/// Some hundred tokens of the tokenizer that all of them share.
fn text() -> String {
    let words = "the small model kept two of four and the mask told a story of the other half. ";
    let tail =
        (0..60).map(|i| words.split(' ').nth(i * 7 % 16).unwrap_or("mask")).collect::<Vec<_>>().join(" ");
    words.repeat(12) + &tail
}

/// The model's folder with the tokenizer in it, as a user has it.
fn copy(name: &str, dir: &Scratch) -> PathBuf {
    let to = dir.join(name);
    fs::create_dir(&to).expect("a folder");
    for (from, file) in [
        (families().join(name), "config.json"),
        (families().join(name), "model.safetensors"),
        (families(), "tokenizer.json"),
        (families(), "tokenizer_config.json"),
    ] {
        fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    to
}

fn end_to_end(name: &str, dir: &Scratch) {
    let model = copy(name, dir);
    let text_file = dir.join(&format!("{name}.txt"));
    fs::write(&text_file, text()).expect("a text");
    let out = dir.join(&format!("{name}-run"));
    let common = args!["--preset", preset(), "--quiet"].to_vec();
    let mut prune = args![
        "prune",
        model,
        "--calib",
        text_file,
        "--segments",
        "sequential",
        "--windows",
        "8",
        "--window",
        "12",
        "--recipe",
        "best",
        "--batch",
        "4",
        "--steps",
        "3",
        "--repair",
        "model",
        "--repair-steps",
        "2",
        "--eval",
        text_file,
        "--eval-window",
        "12",
        "--eval-windows",
        "4",
        "--out",
        out,
    ]
    .to_vec();
    prune.extend(common.clone());
    succeeds(&prune);
    let report = json_file(&out.join("run.json"));
    for row in ["dense", "start", "result"] {
        let ppl = perplexity(&report, row);
        assert!(ppl.is_finite() && ppl > 1.0, "{name}: {row} {ppl}");
    }
    let mask = out.join("mask.safetensors");
    succeeds(args!["verify", out.join("model"), "--against", model, "--mask", mask, "--repaired"]);
    // Without the fitted weights, which lie beside a run's mask: strict, and not a bit else touched.
    let alone = dir.join(&format!("{name}.safetensors"));
    fs::copy(mask, &alone).expect("a copy");
    let mask = alone;
    let written = dir.join(&format!("{name}-hf"));
    succeeds(args!["export", model, "--mask", mask, "--format", "hf", "--out", written]);
    succeeds(args!["verify", written, "--against", model, "--mask", mask]);
    println!("{name}: dense {:.3}", perplexity(&report, "dense"));
    if looked_at(name) {
        shown(name, dir, &model, &mask, &written);
    }
    other_method(name, dir, &model, &text_file);
    if !MEASURED.contains(&name) {
        return;
    }
    let measure = |folder: &Path, more: &[std::ffi::OsString]| {
        let mut eval =
            args!["eval", folder, "--text", text_file, "--window", "12", "--windows", "4", "--json"].to_vec();
        eval.extend_from_slice(more);
        eval.extend(common.clone());
        json(&succeeds(&eval).out)
    };
    let (of_mask, of_model) = (measure(&model, args!["--mask", mask]), measure(&written, &[]));
    let value = |v: &serde_json::Value| v["perplexity"].as_f64().expect("a perplexity");
    let (of_mask, of_model) = (value(&of_mask), value(&of_model));
    assert!((of_mask / of_model - 1.0).abs() < 1e-6, "{name}: {of_mask} under the mask, {of_model} written");
}

/// Those of which a text, answers and statistics are held against those of the written model: the ones that are stored in their own way, and
/// others in turn.
fn looked_at(name: &str) -> bool {
    MEASURED.contains(&name) || MODELS.iter().position(|n| *n == name).is_some_and(|i| i.is_multiple_of(4))
}

/// What only looks: a text, answers and statistics under the mask are those of the model that was written.
fn shown(name: &str, dir: &Scratch, model: &Path, mask: &Path, written: &Path) {
    let common = args!["--preset", preset(), "--quiet", "--json"];
    let ask = |words: &[std::ffi::OsString]| json(&succeeds(&[words, common].concat()).out);
    let prompt = args!["--prompt", "the small model", "--tokens", "3"];
    let under = ask(&[args!["generate", model, "--mask", mask], prompt].concat());
    let alone = ask(&[args!["generate", written], prompt].concat());
    assert_eq!(under["masked"]["ids"], alone["dense"]["ids"], "{name}: {under} and {alone}");
    let questions = dir.join(&format!("{name}.jsonl"));
    let line = r#"{"context": "the small model kept", "choices": ["two of four", "the mask"], "answer": 0}"#;
    fs::write(&questions, line).expect("questions");
    let under = ask(args!["eval", model, "--mask", mask, "--choices", questions]);
    let alone = ask(args!["eval", written, "--choices", questions]);
    assert_eq!(under["acc"], alone["acc"], "{name}: {under} and {alone}");
    let found = succeeds(args!["inspect", written, "--json"]);
    assert_eq!(json(&found.out)["pattern"], "2:4", "{name}: {}", found.out);
}

/// The other methods and repairs, one for every third family in turn.
fn other_method(name: &str, dir: &Scratch, model: &Path, text: &Path) {
    const METHODS: [&[&str]; 9] = [
        &["--method", "wanda", "--repair", "lstsq"],
        &["--method", "sparsegpt", "--repair", "update"],
        &["--method", "ria", "--repair", "block", "--repair-steps", "2", "--batch", "4"],
        &["--method", "maskllm", "--steps", "2", "--batch", "4"],
        &["--method", "proxsparse", "--steps", "2", "--batch", "4"],
        &["--method", "maskpro", "--steps", "2", "--batch", "4"],
        &["--method", "maskpro", "--objective", "layer", "--steps", "3", "--polish"],
        &["--method", "maskpro", "--objective", "block", "--steps", "2", "--batch", "4"],
        &["--method", "relaxed", "--objective", "layer", "--steps", "3"],
    ];
    let number = MODELS.iter().position(|n| *n == name).expect("a model");
    // Each method once.
    let Some(method) = METHODS.get(number / 3).filter(|_| number.is_multiple_of(3)) else { return };
    let out = dir.join(&format!("{name}-other"));
    let windows = args!["--calib", text, "--segments", "sequential", "--windows", "4", "--window", "12"];
    let mut prune = [args!["prune", model], windows].concat();
    prune.extend(method.iter().map(std::ffi::OsString::from));
    prune.extend_from_slice(args!["--preset", preset(), "--quiet", "--out", out]);
    succeeds(&prune);
    let verify =
        args!["verify", out.join("model"), "--against", model, "--mask", out.join("mask.safetensors")];
    succeeds(&[verify, args!["--repaired"]].concat());
}

fn half(odd: usize) {
    let dir = Scratch::new();
    for (_, name) in MODELS.iter().enumerate().filter(|(i, _)| i % 2 == odd) {
        end_to_end(name, &dir);
    }
}

#[test]
fn the_first_of_every_two() {
    half(0);
}

#[test]
fn the_second_of_every_two() {
    half(1);
}

/// What the packed formats make of fused and transposed tensors is said by name.
#[test]
fn packed_formats_say_what_becomes_of_fused_tensors() {
    let dir = Scratch::new();
    let model = copy("phi3", &dir);
    let out = dir.join("run");
    succeeds(args!["prune", model, "--method", "magnitude", "--out", out, "--quiet"]);
    let mask = out.join("mask.safetensors");
    for format in ["torch24", "ct24"] {
        let to = dir.join(format);
        let told =
            run(args!["export", model, "--mask", mask, "--format", format, "--legacy-ct24", "--out", to]);
        println!("{}{}", told.out, told.err);
        assert!(told.err.contains("qkv_proj") || told.out.contains("qkv_proj"), "{}{}", told.out, told.err);
    }
    let model = copy("gpt2", &dir);
    let out = dir.join("run of gpt2");
    succeeds(args!["prune", model, "--method", "magnitude", "--out", out, "--quiet"]);
    let told = run(args![
        "export",
        model,
        "--mask",
        out.join("mask.safetensors"),
        "--format",
        "torch24",
        "--out",
        dir.join("none")
    ]);
    assert_eq!(told.code, Some(1));
    assert!(told.err.contains("c_attn") && told.err.contains("[inputs, outputs]"), "{}", told.err);
}
