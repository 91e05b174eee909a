//! `maskwright generate`: greedy texts are those of transformers, sampled ones depend on the seed alone, and a file of them calibrates.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::Path;

use cli_tools::{closing_village, fails, json, preset, succeeds, village};
use host_fixture::Scratch;

/// What transformers 5.24 continues "Once upon a time" with, the embedded model in float32 and `generate(do_sample=False)`: dense, and
/// under the 2:4 mask of the largest magnitudes (`tests/interop/check_generate.py` compares further prompts and models).
const DENSE: [u32; 64] = [
    89, 745, 85, 16, 383, 261, 475, 263, 288, 81, 73, 335, 747, 16, 356, 606, 451, 354, 261, 690, 16, 521,
    293, 261, 440, 414, 621, 16, 487, 319, 276, 422, 301, 424, 352, 16, 298, 414, 621, 583, 511, 381, 261,
    475, 16, 393, 521, 14, 364, 289, 274, 425, 14, 388, 28, 369, 88, 286, 278, 87, 312, 283, 572, 86,
];
const MASKED: [u32; 64] = [
    311, 86, 381, 261, 475, 16, 201, 625, 261, 261, 261, 707, 460, 660, 263, 406, 654, 277, 274, 80, 308, 91,
    480, 524, 474, 291, 261, 414, 654, 16, 298, 320, 746, 70, 524, 474, 291, 261, 406, 654, 16, 524, 378,
    261, 642, 643, 77, 273, 434, 92, 75, 280, 660, 263, 591, 91, 344, 360, 14, 388, 28, 400, 74, 601,
];

#[test]
fn greedy_texts_are_those_of_transformers() {
    let dir = Scratch::new();
    let (model, run) = (village(), dir.join("run"));
    succeeds(args!["prune", model, "--method", "magnitude", "--no-model", "--out", run, "--quiet"]);
    let mask = run.join("mask.safetensors");
    let prompt = ["--prompt", "Once upon a time"];
    let shown = succeeds(args!["generate", model, prompt[0], prompt[1], "--mask", mask, "--json", "--quiet"]);
    let shown = json(&shown.out);
    for (name, want) in [("dense", DENSE), ("masked", MASKED)] {
        assert_eq!(shown[name]["ids"], serde_json::json!(want.as_slice()), "{name}");
        assert_eq!(shown[name]["ended"], false);
    }
    // For people: one after the other, each with its prompt.
    let plain =
        succeeds(args!["generate", model, prompt[0], prompt[1], "--tokens", "3", "--mask", mask, "--quiet"]);
    let lines: Vec<&str> = plain.out.lines().collect();
    assert_eq!((lines[0], lines[2]), ("[dense]", "[masked]"), "{}", plain.out);
    assert!(lines[1].starts_with("Once upon a time") && lines[3].starts_with("Once upon a time"));
}

/// Texts in a file: the same for a seed, however many are asked for, others for another seed; and `eval` reads them.
#[test]
fn own_texts() {
    let dir = Scratch::new();
    let model = village();
    let write = |name: &str, count: &str, seed: &str| {
        let out = dir.join(name);
        let at = ["--tokens", "40", "--temperature", "1"];
        succeeds(args![
            "generate",
            model,
            "--out",
            out,
            "--count",
            count,
            "--seed",
            seed,
            at[0],
            at[1],
            at[2],
            at[3],
            "--preset",
            preset(),
            "--quiet",
        ]);
        fs::read_to_string(out).unwrap()
    };
    let five = write("five.jsonl", "5", "3");
    assert_eq!(five.lines().count(), 5);
    let three = write("three.jsonl", "3", "3");
    assert!(five.starts_with(&three), "{five}\n{three}");
    assert_ne!(five, write("other.jsonl", "5", "4"));
    let mut texts: Vec<&str> = five.lines().collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), 5, "sequences do not repeat each other");
    let text = dir.join("five.jsonl");
    succeeds(args!["eval", model, "--text", text, "--window", "16", "--quiet"]);
}

/// Neither a template's end token nor one that the prompt ends with is continued behind, unless asked for; an opening token that is there
/// twice is said.
#[test]
fn prompts_do_not_continue_behind_an_end() {
    let dir = Scratch::new();
    let closing = closing_village(&dir.join("closing"));
    let write = |model: &Path, prompt: &str, more: &[&str]| {
        let mut words = args!["generate", model, "--prompt", prompt, "--tokens", "8", "--json"].to_vec();
        words.extend(more.iter().map(Into::into));
        let ran = succeeds(&words);
        let shown = json(&ran.out);
        (shown["prompt_ids"].clone(), shown["dense"]["ids"].clone(), ran.err)
    };
    let warned = |err: &str, what: &str| err.lines().any(|line| line.contains("WARN") && line.contains(what));
    let once = "Once upon a time";
    let (prompt, ids, err) = write(&village(), once, &[]);
    assert_eq!(ids, serde_json::json!(&DENSE[..8]));
    assert!(!err.contains("WARN"), "{err}");
    // The template's own, without a word.
    let (own, same, err) = write(&closing, once, &[]);
    assert_eq!((&own, &same), (&prompt, &ids));
    assert!(!err.contains("WARN"), "{err}");
    // Written in the prompt.
    let (own, same, err) = write(&village(), "Once upon a time</s></s>", &[]);
    assert_eq!((&own, &same), (&prompt, &ids));
    assert!(warned(&err, "ends with </s>") && warned(&err, "--past-end"), "{err}");
    // Asked for.
    let behind = |prompt: &serde_json::Value| prompt.as_array().expect("ids").last().cloned();
    for (model, text) in [(&closing, once), (&village(), "Once upon a time</s>")] {
        let (own, _, err) = write(model, text, &["--past-end"]);
        assert_eq!(behind(&own), Some(2.into()));
        assert!(!err.contains("WARN"), "{err}");
    }
    // An empty prompt is the opening token alone, whatever stands behind it.
    for (model, text) in [(&village(), ""), (&closing, ""), (&closing, "</s>")] {
        assert_eq!(write(model, text, &[]).0, serde_json::json!([1]), "{text}");
    }
    let (own, _, err) = write(&village(), "<s>Once upon a time", &[]);
    assert_eq!(own[0], own[1]);
    assert!(warned(&err, "begins with <s>"), "{err}");
}

#[test]
fn wrong_use() {
    let dir = Scratch::new();
    let (model, out) = (village(), dir.join("own.jsonl"));
    fails(args!["generate", model, "--temperature=-1"], &["--temperature", "-1", "positive"]);
    fails(args!["generate", model, "--out", out, "--count", "2"], &["--temperature 1"]);
    let text = dir.join("own.txt");
    fails(args!["generate", model, "--out", text, "--count", "1"], &["own.txt", ".jsonl"]);
    assert!(!out.exists() && !text.exists());
}
