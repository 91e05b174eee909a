//! `maskwright eval` over several texts, with confidence intervals.

mod cli_tools;
mod host_fixture;

use cli_tools::{fails, json, preset, succeeds, village, village_text};
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

#[test]
fn a_text_is_needed() {
    let ran = cli_tools::run(args!["eval", village()]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("--text"), "{}", ran.err);
    fails(args!["eval", village(), "--text", village_text("nowhere")], &["nowhere.txt"]);
}
