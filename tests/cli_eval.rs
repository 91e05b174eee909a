//! `maskwright eval` over several texts, with confidence intervals.

mod cli_tools;
mod host_fixture;

use std::path::Path;

use cli_tools::{
    closing_village, copied_village, fails, json, json_file, preset, succeeds, village, village_text,
};
use half::f16;
use host_fixture::{Scratch, edit_tensor};
use serde_json::Value;

/// Mean loss of the embedded model on four windows of 64 tokens of its held-out text with the gains of its last norm times 30 000, in
/// transformers 5.24 and float32.
const LOST: f64 = 8262.052;

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// Each text as if it were alone, all of them as the mean over their windows; intervals around every number.
#[test]
fn several_texts() {
    let dir = Scratch::new();
    let (model, run) = (village(), dir.join("run"));
    succeeds(args!["prune", model, "--method", "magnitude", "--no-model", "--out", run, "--quiet"]);
    let mask = run.join("mask.safetensors");
    let (one, two) = (village_text("heldout"), village_text("calib"));
    let measure = |texts: &[&std::path::Path]| {
        let mut all =
            args!["eval", model, "--mask", mask, "--against", model, "--window", "32", "--windows", "8"]
                .to_vec();
        all.extend(args!["--preset", preset(), "--json", "--quiet"].to_vec());
        for text in texts {
            all.extend(args!["--text", text].to_vec());
        }
        json(&succeeds(&all).out)
    };
    let (both, first, second) = (measure(&[&one, &two]), measure(&[&one]), measure(&[&two]));
    for (part, alone) in both["texts"].as_array().expect("texts").iter().zip([&first, &second]) {
        for key in [
            "perplexity",
            "nll",
            "windows",
            "dense_perplexity",
            "kl_to_dense",
            "top1_agreement",
            "intervals_95",
        ] {
            assert_eq!(part[key], alone[key], "{key}");
        }
    }
    assert!(first["texts"].is_null());
    for key in ["nll", "kl_to_dense", "top1_agreement"] {
        let mean = (number(&first, key) + number(&second, key)) / 2.0;
        assert!((number(&both, key) - mean).abs() < 1e-9, "{key}: {both}");
    }
    assert_eq!(both["windows"], 16);
    let ratio = number(&both, "perplexity") / number(&both, "dense_perplexity");
    assert!((number(&both, "perplexity_ratio") - ratio).abs() < 1e-9);
    for (key, bounds) in both["intervals_95"].as_object().expect("intervals") {
        let (low, high) = (bounds[0].as_f64().unwrap(), bounds[1].as_f64().unwrap());
        assert!(low < number(&both, key) && number(&both, key) < high, "{key}: {bounds}");
    }
    // For people: a row for each, and one for all.
    let shown = succeeds(args![
        "eval",
        model,
        "--text",
        one,
        "--text",
        two,
        "--window",
        "32",
        "--windows",
        "2",
        "--quiet"
    ]);
    let lines: Vec<&str> = shown.out.lines().collect();
    assert!(lines[0].starts_with("text") && lines[0].ends_with("perplexity"), "{}", shown.out);
    assert!(
        lines[2].contains("heldout.txt") && lines[3].contains("calib.txt") && lines[4].starts_with("all")
    );
}

/// Log-likelihoods, acc and acc_norm of lm-evaluation-harness 0.4.13 (`tests/fixtures/make_choices.py`): contexts that end in a blank, contexts
/// longer than the model's window, choices of several lengths.
#[test]
fn choices_as_in_the_harness() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let want = json_file(&fixtures.join("expected/choices.json"));
    let got =
        json(&succeeds(args!["eval", village(), "--choices", fixtures.join("choices.jsonl"), "--json"]).out);
    for key in ["acc", "acc_norm"] {
        assert!((number(&got, key) - number(&want, key)).abs() < 1e-12, "{key}: {got}");
        let bounds = &got["intervals_95"][key];
        assert!(bounds[0].as_f64() < got[key].as_f64() && got[key].as_f64() < bounds[1].as_f64(), "{got}");
    }
    let flat = |value: &Value| -> Vec<f64> {
        let rows = value["log_likelihoods"].as_array().expect("questions").iter();
        rows.flat_map(|row| row.as_array().expect("choices").iter().map(|v| v.as_f64().expect("a number")))
            .collect()
    };
    let (got, want) = (flat(&got), flat(&want));
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() < 1e-4, "choice {i}: {g} for {w}");
    }
}

/// A template that closes a text changes no likelihood; shares are reported over characters, bytes and tokens.
#[test]
fn closing_tokens_are_no_part_of_an_answer() {
    let dir = Scratch::new();
    let file = dir.join("questions.jsonl");
    let line = r#"{"context": "Once upon a time", "choices": ["there", "café", "the the the"], "answer": 0}"#;
    std::fs::write(&file, format!("{line}\n")).unwrap();
    let answer = |model: &Path| {
        let words = args!["eval", model, "--choices", file, "--preset", preset(), "--json", "--quiet"];
        json(&succeeds(words).out)
    };
    let (plain, closing) = (answer(&village()), answer(&closing_village(&dir.join("closing"))));
    for key in ["log_likelihoods", "tokens", "acc", "acc_norm", "acc_bytes", "acc_tokens"] {
        assert!(!plain[key].is_null(), "{key}");
        assert_eq!(plain[key], closing[key], "{key}");
    }
    let (likelihoods, tokens) = (&plain["log_likelihoods"][0], &plain["tokens"][0]);
    let right = |lengths: [f64; 3]| {
        let score = |i: usize| likelihoods[i].as_f64().expect("a number") / lengths[i];
        f64::from(u8::from(score(0) > score(1) && score(0) > score(2)))
    };
    assert_eq!(number(&plain, "acc"), right([1.0; 3]));
    assert_eq!(number(&plain, "acc_norm"), right([5.0, 4.0, 11.0]));
    assert_eq!(number(&plain, "acc_bytes"), right([5.0, 5.0, 11.0]));
    assert_eq!(number(&plain, "acc_tokens"), right([0, 1, 2].map(|i| tokens[i].as_f64().expect("a number"))));
}

#[test]
fn bad_questions() {
    let dir = Scratch::new();
    let file = dir.join("questions.jsonl");
    let eval = || args!["eval", village(), "--choices", file].to_vec();
    let good = r#"{"context": "The sky is", "choices": ["blue", "red"], "answer": 0}"#;
    for (line, words) in [
        (r#"{"context": "The sky is", "choices": ["blue", "red"], "answer": 2}"#, "answer"),
        (r#"{"context": "The sky is", "choices": [], "answer": 0}"#, "choices"),
        ("blue", "expected value"),
    ] {
        std::fs::write(&file, format!("{good}\n\n{line}\n")).unwrap();
        fails(&eval(), &["questions.jsonl, line 3", words, "such as {"]);
    }
    std::fs::write(&file, "\n").unwrap();
    fails(&eval(), &["questions.jsonl", "empty"]);
}

#[test]
fn a_text_is_needed() {
    let ran = cli_tools::run(args!["eval", village()]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("--text"), "{}", ran.err);
    fails(args!["eval", village(), "--text", village_text("nowhere")], &["nowhere.txt"]);
}

/// A model so broken that exp of its loss overflows: the loss is still what transformers 5.24 gives in float32, and the perplexity null with
/// a note.
#[test]
fn losses_beyond_what_a_perplexity_holds() {
    let dir = Scratch::new();
    let model = copied_village(&dir.join("model"));
    edit_tensor(&model, "model.norm.weight", |bytes| {
        for half in bytes.as_chunks_mut::<2>().0 {
            *half = f16::from_f32(f16::from_le_bytes(*half).to_f32() * 30_000.0).to_le_bytes();
        }
    });
    let text = village_text("heldout");
    let words = |more: &[&str]| {
        let mut all = args!["eval", model, "--text", text, "--window", "64", "--windows", "4"].to_vec();
        all.extend(args!["--preset", preset(), "--quiet"].to_vec());
        all.extend(more.iter().map(Into::into));
        all
    };
    let got = json(&succeeds(&words(&["--json"])).out);
    let nll = number(&got, "nll");
    assert!((nll - LOST).abs() < 1e-3 * LOST, "{nll}");
    assert!(got["perplexity"].is_null() && got["intervals_95"]["perplexity"][1].is_null(), "{got}");
    assert!(got["note"].as_str().expect("a note").contains("nll"));
    let shown = succeeds(&words(&[])).out;
    assert!(
        shown.contains("beyond the largest number") && shown.contains(&format!("{nll:.5} nats")),
        "{shown}"
    );
    // A run says the same of its results.
    let run = dir.join("run");
    let mut all = args!["prune", model, "--method", "magnitude", "--no-model", "--out", run].to_vec();
    all.extend(args!["--eval", text, "--eval-windows", "2", "--eval-window", "64", "--quiet"].to_vec());
    succeeds(&all);
    let results = &json_file(&run.join("run.json"))["results"];
    for row in results.as_array().expect("rows") {
        assert!(row["perplexity"].is_null() && number(row, "nll") > 1000.0, "{row}");
        assert!(row["note"].as_str().is_some_and(|note| note.contains("nll")), "{row}");
    }
}

/// A text with fewer windows than asked for: said, and in `run.json` and on the page beside what was asked for.
#[test]
fn fewer_windows_than_asked_for() {
    let dir = Scratch::new();
    let text = dir.join("short.txt");
    std::fs::write(&text, "Once upon a time. ".repeat(5)).unwrap();
    let run = dir.join("run");
    let mut prune = args!["prune", village(), "--method", "wanda", "--no-model", "--calib", text].to_vec();
    let windows = ["--segments", "sequential", "--window", "8", "--windows", "128"];
    prune.extend(windows.iter().map(Into::into));
    prune.extend(args!["--out", run, "--preset", preset()].to_vec());
    let ran = succeeds(&prune);
    let found = json_file(&run.join("run.json"));
    let (windows, asked) = (found["windows"].as_u64().expect("a number"), &found["windows_asked"]);
    assert!((1..10).contains(&windows) && asked == 128, "{found}");
    let said = format!("gives {windows} windows of 8 tokens, not the 128 asked for");
    assert!(ran.err.lines().any(|l| l.contains("WARN") && l.contains(&said)), "{}", ran.err);
    let page = std::fs::read_to_string(run.join("report.html")).expect("a page");
    assert!(page.contains("\"windows_asked\":128"));
    let eval = |more: &[&str]| {
        let mut words = args!["eval", village(), "--text", text, "--window", "8", "--json"].to_vec();
        words.extend(args!["--preset", preset()].to_vec());
        words.extend(more.iter().map(Into::into));
        succeeds(&words)
    };
    let short = eval(&["--windows", "50"]);
    assert!(short.err.contains("not the 50 asked for"), "{}", short.err);
    let all = eval(&[]);
    assert!(!all.err.contains("asked for"), "{}", all.err);
    assert_eq!(json(&short.out)["windows"], json(&all.out)["windows"]);
    assert_eq!(json(&short.out)["windows_asked"], 50);
}
