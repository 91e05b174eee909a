//! `compare` through the built command, on the embedded model with few windows and steps.

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::fs::read_to_string;
use std::path::Path;

use cli_tools::{
    command, fails, fails_in, json, json_file, names, perplexity, preset, run, succeeds, village,
    village_text,
};
use host_fixture::Scratch;
use maskwright::mask::MaskFile;
use serde_json::Value;

/// `compare` on eight short windows, into `out`; `more` stands behind it.
fn compare(out: &Path, methods: &str, more: &[&str]) -> Vec<OsString> {
    let (calib, heldout) = (village_text("calib"), village_text("heldout"));
    let few = args![
        "compare",
        village(),
        "--calib",
        calib,
        "--eval",
        heldout,
        "--out",
        out,
        "--methods",
        methods,
        "--windows",
        "8",
        "--window",
        "32",
        "--eval-window",
        "32",
        "--eval-windows",
        "8",
        "--preset",
        preset()
    ];
    [few, &more.iter().map(OsString::from).collect::<Vec<_>>()].concat()
}

fn row<'a>(found: &'a Value, method: &str) -> &'a Value {
    let rows = found["methods"].as_array().expect("rows");
    rows.iter().find(|r| r["method"] == method).unwrap_or_else(|| panic!("no {method} in {found}"))
}

/// One table of what the runs say, which are runs as `prune` makes them; learning methods get as many steps as fit.
#[test]
fn methods_side_by_side() {
    let dir = Scratch::new();
    let out = dir.join("all");
    let more = ["--budget", "0.5", "--json", "--quiet", "--", "--batch", "4"];
    let ran = succeeds(&compare(&out, "magnitude,best,maskpro", &more));
    let found = json(&ran.out);
    assert_eq!(found, json_file(&out.join("compare.json")));
    assert_eq!(names(&out), ["best", "compare.json", "compare.md", "magnitude", "maskpro", "report.html"]);
    assert_eq!(
        (&found["pattern"], &found["windows"], &found["budget"]),
        (&"2:4".into(), &8.into(), &0.5.into())
    );
    assert_eq!((&found["dense"]["windows"], &found["preset"]), (&8.into(), &preset().into()));
    let dense = found["dense"]["perplexity"].as_f64().expect("a number");
    for (method, stages) in [("magnitude", 0), ("best", 2), ("maskpro", 1)] {
        let (row, told) = (row(&found, method), json_file(&out.join(method).join("run.json")));
        assert_eq!(row["perplexity"], perplexity(&told, "result"), "{method}");
        assert_eq!(dense, perplexity(&told, "dense"), "{method}");
        let ratio = perplexity(&told, "result") / dense;
        assert!((row["perplexity_ratio"].as_f64().expect("a number") - ratio).abs() < 1e-9, "{row}");
        assert_eq!((&row["strict"], &row["interrupted"]), (&true.into(), &false.into()));
        assert_eq!(row["peak_bytes"], told["memory"]["peak"]);
        let bytes = |key: &str| told["memory"][key].as_f64().expect("bytes");
        let (plan, peak) = (bytes("plan_total"), bytes("peak"));
        println!("{method}: planned {plan}, allocated {peak}");
        assert!((plan / peak - 1.0).abs() <= 0.05, "{method}: planned {plan}, allocated {peak}");
        assert_eq!(row["steps"].as_array().map(Vec::len), Some(stages), "{row}");
        for key in ["kl_to_dense", "top1_agreement", "method_seconds"] {
            assert!(row[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {row}");
        }
        assert!(row["seconds"].as_f64() > row["method_seconds"].as_f64(), "{row}");
    }
    let table = read_to_string(out.join("compare.md")).expect("a table");
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("| method | perplexity | ratio |"), "{table}");
    for (line, name) in lines[2..].iter().zip(["dense", "magnitude", "best", "maskpro"]) {
        assert!(line.starts_with(&format!("| {name} | ")), "{table}");
        assert_eq!(line.matches('|').count(), lines[0].matches('|').count(), "{table}");
    }
    assert!(table.contains("8 windows of 32 tokens of heldout.txt"), "{table}");

    // The file of options of a run repeats it, with the steps that were chosen.
    let (again, config) = (dir.join("again"), out.join("maskpro/config.toml"));
    succeeds(args!["prune", "--config", config, "--out", again, "--quiet"]);
    let mask = |run: &Path| MaskFile::read(&run.join("mask.safetensors")).expect("a mask");
    assert_eq!(mask(&again), mask(&out.join("maskpro")));
}

/// What fails is a row with its reason, and the rest is done.
#[test]
fn a_method_that_fails_is_a_row() {
    let dir = Scratch::new();
    let out = dir.join("some");
    let more = ["--pattern", "1:4", "--steps", "1", "--no-model", "--", "--batch", "4"];
    let ran = run(&compare(&out, "proxsparse,magnitude,magnitude", &more));
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let last = ran.err.lines().last().expect("an error");
    assert!(last.starts_with("error: 1 of 2 methods") && last.contains("2:4 only"), "{last}");
    let line =
        |name: &str| ran.out.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{}", ran.out));
    assert!(line("proxsparse ").ends_with("failed") && line("magnitude").ends_with("strict 1:4"));
    assert!(line("proxsparse: ").contains("2:4 only"), "{}", ran.out);
    let found = json_file(&out.join("compare.json"));
    assert!(row(&found, "proxsparse")["error"].as_str().is_some_and(|e| e.contains("2:4 only")), "{found}");
    assert!(row(&found, "proxsparse")["perplexity"].is_null() && row(&found, "magnitude")["error"].is_null());
    assert_eq!(names(&out), ["compare.json", "compare.md", "magnitude", "report.html"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_finished() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let dir = Scratch::new();
    let out = dir.join("out");
    let more = ["--steps", "1000000", "--no-model", "--", "--batch", "4", "--start", "magnitude"];
    let args = compare(&out, "magnitude,maskpro,wanda", &more);
    let child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start");
    let began = Instant::now();
    let metrics = out.join("maskpro/metrics.jsonl");
    while read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 2 {
        assert!(began.elapsed() < Duration::from_secs(120), "no step in two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().expect("a kill");
    assert!(killed.success());
    let ran: cli_tools::Ran = child.wait_with_output().expect("an end").into();
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    let found = json_file(&out.join("compare.json"));
    assert_eq!(found["methods"].as_array().map(Vec::len), Some(2), "{found}");
    assert_eq!(row(&found, "magnitude")["interrupted"], false);
    assert_eq!(row(&found, "maskpro")["interrupted"], true);
    assert!(ran.out.contains("strict 2:4, interrupted"), "{}", ran.out);
}

#[test]
fn what_cannot_be_compared() {
    let dir = Scratch::new();
    let out = dir.join("out");
    for (methods, more, words) in [
        ("wanda,wande", &[][..], "magnitude"),
        ("given", &[][..], "possible values"),
        ("wanda", &["--steps", "0"][..], "default"),
        ("wanda", &["--", "--no-such-option"][..], "--no-such-option"),
    ] {
        let ran = run(&compare(&out, methods, more));
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(ran.err.contains(words), "{words}: {}", ran.err);
    }
    fails(&compare(&out, "wanda", &["--budget", "0"]), &["--budget"]);
    let mut command = command();
    command.args(compare(dir.path(), "wanda", &[]));
    std::fs::write(dir.join("file"), "").expect("a file");
    fails_in(command, 1, &["exists and is not empty (it holds file)"]);
    assert!(!out.exists());
}
