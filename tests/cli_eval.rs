//! `maskwright eval` over several texts, with confidence intervals.

mod cli_tools;
mod host_fixture;

use std::path::Path;

use cli_tools::{fails, json, json_file, preset, succeeds, village, village_text};
use host_fixture::Scratch;
use serde_json::Value;

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
