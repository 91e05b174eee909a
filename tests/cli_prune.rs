//! `prune`, `eval`, `devices` and `variance` end to end, through the built command, on the embedded model with few steps.

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cli_tools::{
    command, fails, json, json_file, names, perplexity, preset, run, shared_model, succeeds, village,
    village_text,
};
use host_fixture::Scratch;
use maskwright::mask::MaskFile;
use serde_json::Value;

/// `prune` of the embedded model on few short windows, by MaskPro where `more` does not say otherwise.
fn prune(out: &Path, more: &[&str]) -> Vec<String> {
    let text = |p: PathBuf| p.to_str().expect("a path in UTF-8").to_owned();
    let mut args = vec!["prune".to_owned(), text(village()), "--calib".into(), text(village_text("calib"))];
    args.extend(["--windows", "8", "--batch", "4", "--window", "32"].map(String::from));
    args.extend(["--preset", preset(), "--out"].map(String::from));
    args.push(text(out.to_owned()));
    args.extend(more.iter().map(ToString::to_string));
    if !more.contains(&"--method") {
        args.extend(["--method", "maskpro"].map(String::from));
    }
    args
}

fn mask(run: &Path) -> MaskFile {
    let file = MaskFile::read(&run.join("mask.safetensors")).expect("a mask file");
    file.set.check().expect("a strict mask");
    file
}

/// What `eval` says about eight windows of the held-out text.
fn eval(model: &Path, mask: Option<&Path>) -> Value {
    let mut args =
        args!["eval", model, "--text", village_text("heldout"), "--window", "32", "--windows", "8", "--json"]
            .to_vec();
    args.extend(["--preset".into(), preset().into()]);
    if let Some(mask) = mask {
        args.extend(["--mask".into(), mask.into()]);
    }
    json(&succeeds(&args).out)
}

/// What `eval --against` says about the same windows.
fn against(model: &Path, dense: &Path) -> Value {
    let heldout = village_text("heldout");
    let args = args![
        "eval",
        model,
        "--text",
        heldout,
        "--window",
        "32",
        "--windows",
        "8",
        "--against",
        dense,
        "--json"
    ];
    json(&succeeds(&[args, args!["--preset", preset()]].concat()).out)
}

#[track_caller]
fn same(a: f64, b: f64, relative: f64) {
    assert!((a / b - 1.0).abs() <= relative, "{a} and {b} differ by more than {relative:e}");
}

/// The folder of a run holds what the help says, its numbers agree with `eval`, and the written model is the masked one.
#[test]
fn every_method_writes_a_whole_run() {
    let dir = Scratch::new();
    let heldout = village_text("heldout");
    let heldout = heldout.to_str().unwrap();
    let evaluated = ["--eval", heldout, "--eval-window", "32", "--eval-windows", "8"];
    let dense = eval(&village(), None);
    for (method, more) in [
        ("magnitude", &[][..]),
        ("wanda", &[][..]),
        ("ria", &[][..]),
        ("sparsegpt", &[][..]),
        ("descent", &[][..]),
        ("maskpro", &["--steps", "3", "--logits", "2", "--rate", "100", "--seed", "9"][..]),
    ] {
        let out = dir.join(method);
        let args = prune(&out, &[&["--method", method], &evaluated[..], more].concat());
        let ran = succeeds(&args);
        assert!(ran.err.contains("adapter: "), "{}", ran.err);
        for word in
            ["model", "perplexity", "KL to dense", "dense", "result", "8 windows of 32 tokens", "written: "]
        {
            assert!(ran.out.contains(word), "{method}: no {word:?} in\n{}", ran.out);
        }
        assert_eq!(
            names(&out),
            [
                "config.toml",
                "mask.safetensors",
                "metrics.jsonl",
                "model",
                "report.html",
                "run.json",
                "windows.json"
            ],
            "{method}"
        );
        windows_json(&out);
        for file in ["config.json", "model.safetensors", "sparsity_report.json", "tokenizer.json"] {
            assert!(out.join("model").join(file).is_file(), "{method}: model/{file}");
        }
        let file = mask(&out);
        assert_eq!(
            (file.provenance.method.as_str(), file.set.pattern.to_string()),
            (method, "2:4".to_owned())
        );
        assert_eq!(file.set.masks.len(), 35, "5 blocks of 7 projections");

        let run = json_file(&out.join("run.json"));
        assert_eq!(run["method"], method);
        assert_eq!(run["interrupted"], false);
        same(perplexity(&run, "dense"), dense["perplexity"].as_f64().unwrap(), 1e-9);
        let under_mask = eval(&village(), Some(&out.join("mask.safetensors")));
        same(perplexity(&run, "result"), under_mask["perplexity"].as_f64().unwrap(), 1e-9);
        // The zeros are in the weights now; only the order of sums might differ.
        same(
            perplexity(&run, "result"),
            eval(&out.join("model"), None)["perplexity"].as_f64().unwrap(),
            1e-5,
        );
        let row = |model: &str| {
            run["results"].as_array().unwrap().iter().find(|r| r["model"] == model).unwrap().clone()
        };
        assert!(row("dense")["kl_to_dense"].is_null(), "the dense model has no divergence");
        let kl = row("result")["kl_to_dense"].as_f64().expect("a divergence");
        let against = against(&out.join("model"), &village());
        assert!(kl > 0.01);
        same(kl, against["kl_to_dense"].as_f64().unwrap(), 1e-4);
        same(perplexity(&run, "dense"), against["dense_perplexity"].as_f64().unwrap(), 1e-9);
        assert_eq!(row("result")["top1_agreement"], against["top1_agreement"]);
        assert!(perplexity(&run, "result") > 1.05 * perplexity(&run, "dense"), "half of the weights matter");

        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = metrics.lines().map(json).collect();
        if method != "maskpro" {
            assert_eq!(lines.len(), 35, "a line for each projection");
            assert!(lines.iter().all(|l| l["error"].as_f64().is_some_and(|e| e > 0.0 && e < 1.0)));
            assert_eq!(lines, *run["projections"].as_array().unwrap());
            continue;
        }
        assert_eq!(lines.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
        for key in ["loss", "residual", "tracker", "advantage", "seconds"] {
            assert!(lines.iter().all(|l| l[key].is_f64()), "{key} in {metrics}");
        }
        let changed = run["groups_changed"].as_u64().expect("a count");
        assert!(changed > 0, "so steep a rate moves some group");
        assert_eq!(lines[2]["groups_changed"], changed, "the device counts what the host does");
        assert!(ran.out.contains(&format!("{changed} of 76800 groups differ")), "{}", ran.out);
        perplexity(&run, "start");
        assert_eq!((&run["options"]["seed"], &run["options"]["steps"]), (&9.into(), &3.into()));
    }
}

#[test]
fn a_run_continues_from_a_mask_file() {
    let dir = Scratch::new();
    let (first, second) = (dir.join("first"), dir.join("second"));
    succeeds(&prune(&first, &["--method", "magnitude", "--no-model", "--no-report"]));
    assert_eq!(names(&first), ["config.toml", "mask.safetensors", "metrics.jsonl", "run.json"]);
    let file = first.join("mask.safetensors");
    let start = ["--start", file.to_str().unwrap(), "--no-model"];
    // A step that moves nothing gives back the start.
    succeeds(&prune(&second, &[&start[..], &["--steps", "1", "--rate", "0"]].concat()));
    assert_eq!(mask(&second).set, mask(&first).set);
    assert_eq!(json_file(&second.join("run.json"))["groups_changed"], 0);
    let other = dir.join("other");
    let args = prune(&other, &[&start[..], &["--pattern", "1:4"]].concat());
    fails(&args, &["mask.safetensors", "keeps 2:4", "--pattern is 1:4"]);
    assert!(!other.exists());
}

#[test]
fn other_patterns() {
    let dir = Scratch::new();
    for pattern in ["1:4", "4:8", "2:8"] {
        let out = dir.join(&pattern.replace(':', "of"));
        let args =
            ["--pattern", pattern, "--steps", "2", "--start", "magnitude", "--logits", "2", "--no-model"];
        succeeds(&prune(&out, &args));
        let set = mask(&out).set;
        assert_eq!(set.pattern.to_string(), pattern);
        let kept = set.count_ones() as usize * set.pattern.m();
        assert_eq!(kept, set.weights() as usize * set.pattern.n());
    }
}

/// The feed-forward width of stories260K is 172, which does not divide by 8.
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared/models")]
fn indivisible_projections_stop_the_run_or_stay_dense() {
    let dir = Scratch::new();
    let model = shared_model("stories260K");
    let out = dir.join("out");
    let args = args!["prune", model, "--method", "magnitude", "--pattern", "4:8", "--out", out];
    fails(
        args,
        &["model.layers.0.mlp.down_proj.weight has 172 input features", "groups of 8", "--skip-indivisible"],
    );
    assert!(!out.exists());
    let ran = succeeds(&[args, args!["--skip-indivisible"]].concat());
    assert!(ran.err.contains("left dense: model.layers.0.mlp.down_proj.weight"), "{}", ran.err);
    let set = mask(&out).set;
    assert!(set.masks.keys().all(|name| !name.contains("down_proj")));
    let run = json_file(&out.join("run.json"));
    assert_eq!(run["left_dense"].as_array().map(Vec::len), Some(5));
    let report = json_file(&out.join("model/sparsity_report.json"));
    let left = report["projections"].as_array().unwrap().iter().filter(|p| p["masked"] == false);
    assert!(left.clone().count() == 5 && left.clone().all(|p| p["pruned"] == 0));
}

#[test]
fn the_seed_decides() {
    let dir = Scratch::new();
    let learn = |name: &str, seed: &str| {
        let out = dir.join(name);
        let steps = ["--steps", "3", "--start", "magnitude", "--logits", "2", "--rate", "200", "--no-model"];
        succeeds(&prune(&out, &[&steps[..], &["--seed", seed]].concat()));
        out
    };
    let bytes = |run: &Path| std::fs::read(run.join("mask.safetensors")).unwrap();
    let (a, b, c) = (learn("a", "5"), learn("b", "5"), learn("c", "6"));
    assert!(bytes(&a) == bytes(&b), "the same seed gives the same file");
    assert_ne!(mask(&a).set, mask(&c).set, "another seed gives another mask");
}

/// `windows.json` agrees with `run.json`, and its worst tokens are in the text.
fn windows_json(run: &Path) {
    let (info, windows) = (json_file(&run.join("run.json")), json_file(&run.join("windows.json")));
    let mean = |model: &str| {
        let all: Vec<f64> =
            windows["loss"][model].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(all.len(), 8);
        all.iter().sum::<f64>() / 8.0
    };
    for model in ["dense", "result"] {
        same(mean(model).exp(), perplexity(&info, model), 1e-9);
    }
    let text = fs::read_to_string(village_text("heldout")).unwrap();
    let worst = windows["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 20);
    let mut last = f64::INFINITY;
    for token in worst {
        let number = |key: &str| token[key].as_f64().unwrap();
        assert!(number("rise") > 0.0 && number("rise") <= last, "{token}");
        last = number("rise");
        assert!((number("result") - number("dense") - last).abs() < 1e-4, "{token}");
        assert!((1.0..32.0).contains(&number("position")) && number("window") < 8.0, "{token}");
        let part = |key: &str| token[key].as_str().unwrap();
        let around = [part("before"), part("token"), part("after")].concat();
        assert!(text.contains(around.trim()), "{around:?} is not in the text");
    }
    let phases = info["phases"].as_array().unwrap();
    let seconds: f64 = phases.iter().map(|p| p["seconds"].as_f64().unwrap()).sum();
    let all = info["seconds"].as_f64().unwrap();
    assert!(seconds > 0.9 * all && seconds <= all, "{phases:?} of {all}");
}

/// Starts a run and presses Ctrl-C when `steps` steps are told, after `meanwhile`; how it ended.
#[cfg(unix)]
fn interrupted(out: &Path, more: &[&str], steps: usize, meanwhile: impl FnOnce()) -> cli_tools::Ran {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let args = prune(out, more);
    let child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let told = || {
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"step\"")).count()
    };
    while told() < steps {
        assert!(began.elapsed() < Duration::from_secs(120), "no step in two minutes");
        std::thread::sleep(Duration::from_millis(50));
    }
    meanwhile();
    let killed = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(killed.success());
    let ran: cli_tools::Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    ran
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_usable_mask() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    let dir = Scratch::new();
    let out = dir.join("out");
    // Shown while it runs, at a port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serve = format!("--serve={address}");
    let more = ["--steps", "1000000", "--start", "magnitude", "--logits", "2", &serve];
    let ran = interrupted(&out, &more, 2, || {
        let mut browser = TcpStream::connect(address).expect("the report is served");
        write!(browser, "GET /data.json HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let mut shown = String::new();
        browser.read_to_string(&mut shown).unwrap();
        let shown = &json(shown.split("\r\n\r\n").nth(1).expect("a body"))["runs"][0];
        assert!(shown["curves"][0]["steps"].as_u64().unwrap() >= 2);
        assert_eq!((&shown["info"]["method"], &shown["finished"]), (&"maskpro".into(), &false.into()));
    });
    assert!(ran.err.contains("interrupted: writing the mask learned so far"), "{}", ran.err);
    let all = ["config.toml", "mask.safetensors", "metrics.jsonl", "model", "report.html", "run.json"];
    assert_eq!(names(&out), all);
    assert_eq!(json_file(&out.join("run.json"))["interrupted"], true);
    mask(&out);
    eval(&village(), Some(&out.join("mask.safetensors")));
}

/// What can be resumed has its report, too.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_report() {
    let dir = Scratch::new();
    let out = dir.join("out");
    let more = ["--method", "relaxed", "--start", "magnitude", "--objective", "block", "--steps", "1000000"];
    let ran = interrupted(&out, &more, 2, || ());
    assert!(ran.err.contains("--resume"), "{}", ran.err);
    assert!(!out.join("run.json").exists());
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for part in ["The run is not finished", "stage 1: relaxed on the block objective", "\"adapter\":"] {
        assert!(page.contains(part), "{part}");
    }
}

/// The plan of `--dry-run` against what was allocated, item by item: at the size of a real batch, with a small batch (the start
/// mask must not take more than the learning), and for Wanda alone.
#[test]
fn memory_is_as_planned() {
    for options in [
        args!["--method", "maskpro", "--windows", "32", "--steps", "1"],
        args!["--method", "maskpro", "--windows", "32", "--steps", "1", "--batch", "4"],
        args!["--windows", "32", "--method", "wanda"],
        args!["--method", "magnitude"],
    ] {
        planned(options);
    }
    let (model, calib) = (village(), village_text("calib"));
    let text = succeeds(args!["prune", model, "--calib", calib, "--dry-run", "--preset", preset()]).out;
    for word in ["weights", "logits", "masks", "activations", "total", "35 projections", "307200 weights"] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
}

#[test]
fn devices_and_eval_in_json() {
    let list = json(&succeeds(args!["devices", "--json"]).out);
    let list = list.as_array().expect("a list");
    assert_eq!(list.iter().filter(|a| a["chosen"] == true).count(), 1);
    let mut wanted =
        vec!["index", "name", "backend", "driver", "kind", "max_binding_bytes", "max_buffer_bytes"];
    wanted.extend(["workgroup_bytes", "max_invocations", "subgroup", "features", "reason"]);
    for adapter in list {
        assert!(wanted.iter().all(|key| !adapter[key].is_null()), "{adapter}");
    }
    let text = succeeds(args!["devices"]).out;
    let chosen = list.iter().find(|a| a["chosen"] == true).unwrap();
    assert!(
        text.contains(chosen["name"].as_str().unwrap()) && text.contains(chosen["reason"].as_str().unwrap())
    );

    let result = eval(&village(), None);
    for key in ["perplexity", "nll", "windows", "tokens", "window", "adapter"] {
        assert!(!result[key].is_null(), "{key} in {result}");
    }
    same(result["nll"].as_f64().unwrap().exp(), result["perplexity"].as_f64().unwrap(), 1e-12);
    assert_eq!(
        (&result["windows"], &result["window"], &result["masked"]),
        (&8.into(), &32.into(), &false.into())
    );
    // By number and by a part of the name, the same adapter.
    let index = chosen["index"].to_string();
    let by_number = json(&succeeds(args!["devices", "--json", "--device", index]).out);
    assert_eq!(by_number[chosen["index"].as_u64().unwrap() as usize]["chosen"], true);
}

/// A model is no distance from itself; one with another vocabulary is refused.
#[test]
fn eval_against_a_dense_model() {
    let itself = against(&village(), &village());
    assert_eq!((&itself["kl_to_dense"], &itself["top1_agreement"]), (&0.0.into(), &1.0.into()));
    same(
        itself["perplexity"].as_f64().unwrap(),
        eval(&village(), None)["perplexity"].as_f64().unwrap(),
        1e-9,
    );
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/mistral_bf16");
    let args =
        args!["eval", village(), "--text", village_text("heldout"), "--window", "32", "--against", other];
    fails(args, &["mistral_bf16", "cannot be compared", "130 and 768", "same tokenizer and vocabulary"]);
}

/// MaskPro's theorem 2, on a real model: same mean, and tracked <= residual < loss in variance.
#[test]
fn variance_of_the_estimators() {
    let (model, calib) = (village(), village_text("calib"));
    let common =
        args!["variance", model, "--calib", calib, "--windows", "8", "--batch", "4", "--window", "32"];
    let few = args![
        "--logits",
        "4",
        "--start",
        "magnitude",
        "--samples",
        "40",
        "--warm-up",
        "40",
        "--preset",
        preset()
    ];
    let all = [common, few, args!["--json"]].concat();
    let out = json(&succeeds(&all).out);
    let rows = out["estimators"].as_array().unwrap();
    let variance: Vec<f64> = rows.iter().map(|r| r["variance"].as_f64().unwrap()).collect();
    let names: Vec<&str> = rows.iter().map(|r| r["estimator"].as_str().unwrap()).collect();
    assert_eq!(names, ["loss", "residual", "tracked"]);
    println!("variances {variance:?}");
    assert!(variance[2] <= variance[1] && variance[1] < variance[0], "{variance:?}");
    let text =
        succeeds(&[common, args!["--start", "magnitude", "--samples", "2", "--warm-up", "1"]].concat()).out;
    assert!(["loss", "residual", "tracked", "variance"].iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn help_and_version() {
    let help = succeeds(args!["--help"]).out;
    for word in ["devices", "eval", "prune", "variance", "N:M"] {
        assert!(help.contains(word), "no {word:?} in\n{help}");
    }
    let prune = succeeds(args!["prune", "--help"]).out;
    for word in ["mask.safetensors", "Ctrl-C", "--skip-indivisible", "--dry-run", "keep N of M"] {
        assert!(prune.contains(word), "no {word:?} in\n{prune}");
    }
    assert!(succeeds(args!["--version"]).out.starts_with("maskwright "));
    assert_eq!(run::<&str>(&[]).code, Some(2), "no command is wrong usage");
}

/// Holds the plan of one set of options against the peak of the run.
fn planned(options: &[OsString]) {
    let dir = Scratch::new();
    let out = dir.join("out");
    let (model, calib) = (village(), village_text("calib"));
    let common = args!["prune", model, "--calib", calib, "--window", "64", "--json", "--preset", preset()];
    let common = [common, options].concat();
    let plan = json(&succeeds(&[common.as_slice(), args!["--dry-run"]].concat()).out);
    assert!(!out.exists(), "a dry run writes nothing");
    let run = json(&succeeds(&[common.as_slice(), args!["--no-model", "--out", out]].concat()).out);
    assert_eq!(run, json_file(&out.join("run.json")), "--json prints what is kept");
    let memory = &run["memory"];
    assert_eq!((&memory["plan"], &memory["plan_total"]), (&plan["plan"], &plan["total"]));
    let close = |name: &str, planned: f64, real: f64| {
        let off = (real / planned - 1.0).abs();
        assert!(off <= 0.05, "{options:?} {name}: planned {planned}, allocated {real} bytes");
    };
    close("total", memory["plan_total"].as_f64().unwrap(), memory["peak"].as_f64().unwrap());
    for item in plan["plan"].as_array().unwrap() {
        let (name, planned) = (item["item"].as_str().unwrap(), item["bytes"].as_f64().unwrap());
        let at_peak = memory["at_peak"].as_array().unwrap().iter().find(|i| i["item"] == name);
        let real = at_peak.unwrap_or_else(|| panic!("no {name} in {memory}"))["bytes"].as_f64().unwrap();
        close(name, planned, real);
    }
}

/// The options that a run leaves repeat it to the last bit, from another folder's command line; those given go before the file's.
#[test]
fn options_as_a_file() {
    let dir = Scratch::new();
    let (model, calib) = (village(), village_text("calib"));
    let (first, again, other) = (dir.join("first"), dir.join("again"), dir.join("other"));
    succeeds(args![
        "prune",
        model,
        "--calib",
        calib,
        "--method",
        "relaxed",
        "--start",
        "magnitude",
        "--objective",
        "block,model",
        "--steps",
        "2,1",
        "--batch",
        "2",
        "--windows",
        "4",
        "--window",
        "16",
        "--seed",
        "5",
        "--only",
        "q_proj",
        "--only",
        "down_proj",
        "--rate",
        "0.1",
        "--no-model",
        "--preset",
        preset(),
        "--out",
        first,
        "--quiet"
    ]);
    let file = first.join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    for line in
        ["seed = 5", "no-model = true", "only = [\"q_proj\", \"down_proj\"]", "rate = 0.1", "batch = 2"]
    {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    for unsaid in ["out", "quiet", "config"] {
        assert!(!text.lines().any(|l| l.starts_with(&format!("{unsaid} "))), "{unsaid} in\n{text}");
    }
    let mask = |run: &Path| fs::read(run.join("mask.safetensors")).unwrap();
    succeeds(args!["prune", "--config", file, "--out", again, "--quiet"]);
    assert_eq!(mask(&first), mask(&again));
    assert_eq!(text, fs::read_to_string(again.join("config.toml")).unwrap());
    succeeds(args!["prune", "--config", file, "--seed", "6", "--out", other, "--quiet"]);
    assert_ne!(mask(&first), mask(&other));
    assert!(fs::read_to_string(other.join("config.toml")).unwrap().contains("seed = 6\n"));
    let bad = dir.join("bad.toml");
    for (text, parts) in [
        ("sed = 6", ["`sed`", "no option"]),
        ("out = \"x\"", ["`out`", "no option"]),
        ("seed = [", ["bad.toml", "no TOML"]),
        ("no-model = 1", ["`no-model`", "true or false"]),
        ("seed = 1979-05-27", ["`seed`", "a number"]),
    ] {
        fs::write(&bad, text).unwrap();
        fails(args!["prune", village(), "--config", bad, "--out", dir.join("none")], &parts);
    }
    assert!(!dir.join("none").exists());
}

/// MaskLLM's .npz in the places that take a mask file: measured, started from, taken as it is.
#[test]
fn masks_of_maskllm_are_taken() {
    let dir = Scratch::new();
    let (model, run, npz) = (village(), dir.join("run"), dir.join("mask.npz"));
    succeeds(&prune(&run, &["--method", "magnitude", "--no-model", "--quiet"]));
    let own = run.join("mask.safetensors");
    succeeds(args!["export", model, "--mask", own, "--format", "maskllm-npz", "--out", npz]);
    let (by_own, by_npz) = (eval(&village(), Some(&own)), eval(&village(), Some(&npz)));
    assert_eq!(by_npz["perplexity"], by_own["perplexity"]);
    let start = npz.to_str().expect("a path in UTF-8");
    for (method, more) in [("given", &[][..]), ("descent", &[][..]), ("relaxed", &["--steps", "1"][..])] {
        let out = dir.join(method);
        let args = ["--method", method, "--start", start, "--no-model", "--quiet"];
        succeeds(&prune(&out, &[&args[..], more].concat()));
        let changed = mask(&out).set != mask(&run).set;
        assert_eq!(
            changed,
            method == "descent",
            "{method}: one step of learning moves no mask, descent does"
        );
    }
}
