//! The report: what it embeds, of whole, old and unfinished runs, and its errors. The page in a browser: tests/browser.rs.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::{Path, PathBuf};

use cli_tools::{fails, json, succeeds};
use host_fixture::Scratch;
use serde_json::{Value, json as value};

/// What no page may take for its own markup.
const HOSTILE: &str = "</script><!--<img src=x onerror=alert(1)>&\"'";

/// The files of a run of two stages with everything in it.
fn whole_run(folder: &Path) -> Vec<Value> {
    fs::create_dir_all(folder).unwrap();
    let projection = |block: u64, kind: &str, error: f64| value!({"name": format!("model.layers.{block}.mlp.{kind}.weight"), "start": null, "error": error, "seconds": 0.5});
    let mut lines = vec![
        projection(0, "up_proj", 0.25),
        projection(0, "down_proj", 0.125),
        projection(1, "up_proj", 0.5),
    ];
    for block in 0..2 {
        for step in 0..3 {
            let loss = 0.5 / f64::from(1 << step) + f64::from(block);
            lines.push(value!({"block": block, "step": step, "steps": 3, "loss": loss, "temperature": 0.75, "seconds": 0.1, "stage": 1}));
        }
        lines.push(value!({"block": block, "start": 0.5, "error": 0.25, "kept": true, "groups_changed": 7, "seconds": 1.5, "stage": 1}));
    }
    for step in 0..4 {
        let loss = 2.0 - 0.25 * f64::from(step);
        lines.push(value!({"step": step, "steps": 4, "loss": loss, "seconds": 0.2, "stage": 2}));
    }
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    fs::write(folder.join("metrics.jsonl"), text).unwrap();
    fs::write(folder.join("config.toml"), format!("# {HOSTILE}\nseed = 5\n")).unwrap();
    let stage = |objective: &str| value!({"trains": "relaxed", "objective": objective});
    let run = value!({
        "version": "0.1.0", "adapter": HOSTILE, "preset": "tile64", "model": "m", "method": "relaxed", "pattern": "2:4",
        "options": {"walk": {}, "stages": [stage("block"), stage("model")]},
        "projections": lines[..3], "seconds": 60.0,
        "moved": [{"name": "model.layers.0.mlp.up_proj.weight", "groups": 40, "changed": 10}],
        "results": [
            {"model": "dense", "perplexity": 5.0, "nll": 1.609, "windows": 2, "window": 8},
            {"model": "result", "perplexity": 9.0, "nll": 2.197, "windows": 2, "window": 8, "kl_to_dense": 0.5, "top1_agreement": 0.75},
        ],
        "memory": {"plan": [{"item": "weights", "bytes": 100}], "plan_total": 100, "peak": 110, "at_peak": [{"item": "weights", "bytes": 110}]},
        "phases": [{"phase": "walk over the blocks", "seconds": 20.0}], "kernels": null,
    });
    fs::write(folder.join("run.json"), run.to_string()).unwrap();
    let windows = value!({
        "text": "t", "window": 8, "windows": 2, "loss": {"dense": [1.5, 1.7], "result": [2.0, 2.4]}, "kl_to_dense": [0.4, 0.6],
        "worst": [{"window": 1, "position": 3, "id": 9, "token": HOSTILE, "before": "a <b>", "after": "c", "dense": 0.5, "result": 6.0, "rise": 5.5}],
    });
    fs::write(folder.join("windows.json"), windows.to_string()).unwrap();
    lines
}

/// The page of the runs, and the data in it.
#[track_caller]
fn report(dir: &Scratch, runs: &[PathBuf]) -> (String, Value) {
    let out = dir.join("report.html");
    let mut args = args!["report"].to_vec();
    args.extend(runs.iter().map(Into::into));
    args.extend(args!["--out", out, "--force"].to_vec());
    assert!(succeeds(&args).out.contains("written: "));
    let page = fs::read_to_string(out).unwrap();
    let data = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next());
    let data = json(data.expect("data in the page"));
    (page, data)
}

#[test]
fn a_page_holds_the_run_and_nothing_breaks_out_of_it() {
    let dir = Scratch::new();
    let folder = dir.join("a <b>&run");
    let lines = whole_run(&folder);
    let (page, data) = report(&dir, &[folder]);
    // One file: nothing is loaded, and the policy forbids it.
    for outside in ["src=\"", "href=\"http", "@import", "url(", "<img", "<link rel=\"stylesheet"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    assert!(page.contains("default-src 'none'") && page.contains("connect-src 'none'"));
    assert_eq!(page.matches("</script").count(), 3, "data, charts, page");
    assert!(page.contains("<title>a &lt;b&gt;&amp;run - maskwright</title>"));
    assert!(page.len() < 120_000, "{} bytes", page.len());

    let run = &data["runs"][0];
    assert!(data["versus"].is_null() && data["live"].is_null());
    assert_eq!((&run["name"], &run["finished"]), (&"a <b>&run".into(), &true.into()));
    assert_eq!(run["info"]["adapter"], HOSTILE);
    assert!(run["config"].as_str().unwrap().contains("seed = 5"));
    // The curves are the lines of the steps.
    let curves = run["curves"].as_array().unwrap();
    assert_eq!(curves[0]["title"], "stage 1: relaxed on the block objective");
    assert_eq!(curves[1]["title"], "stage 2: relaxed on the model objective");
    for (curve, stage) in curves.iter().zip(1..) {
        let steps: Vec<&Value> = lines.iter().filter(|l| l["stage"] == stage && l["step"].is_u64()).collect();
        let of = |key: &str| steps.iter().map(|l| l[key].clone()).collect::<Vec<_>>();
        assert_eq!(curve["columns"]["loss"], Value::from(of("loss")));
        assert_eq!(curve["columns"]["seconds"], Value::from(of("seconds")));
        assert_eq!(curve["block"], Value::from(of("block")));
        assert_eq!((&curve["steps"], &curve["every"]), (&steps.len().into(), &1.into()));
    }
    assert_eq!(curves[0]["columns"]["temperature"], value!([0.75, 0.75, 0.75, 0.75, 0.75, 0.75]));
    assert!(curves[1]["columns"]["temperature"].is_null());
    let cells = run["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 3);
    let cell = |key: &str| cells.iter().map(|c| c[key].clone()).collect::<Vec<_>>();
    assert_eq!(cell("error"), [0.25, 0.125, 0.5]);
    assert_eq!(cell("kind"), ["up_proj", "down_proj", "up_proj"]);
    assert_eq!((&cells[0]["groups"], &cells[0]["changed"]), (&40.into(), &10.into()));
    assert_eq!(run["learned"].as_array().unwrap().len(), 2);
    assert_eq!((&run["phases"][0]["seconds"], &run["summed"]), (&20.0.into(), &false.into()));
    assert_eq!(run["windows"]["worst"][0]["token"], HOSTILE);
    assert_eq!(run["missing"], value!([]), "all is there");
}

#[test]
fn several_runs_and_their_front() {
    let dir = Scratch::new();
    let run = |name: &str, perplexity: f64, seconds: f64, dense: f64| {
        let folder = dir.join(name);
        whole_run(&folder);
        let mut run = cli_tools::json_file(&folder.join("run.json"));
        run["seconds"] = seconds.into();
        run["results"][0]["perplexity"] = dense.into();
        run["results"][1]["perplexity"] = perplexity.into();
        fs::write(folder.join("run.json"), run.to_string()).unwrap();
        folder
    };
    let all = [run("x/same", 9.0, 60.0, 5.0), run("y/same", 20.0, 5.0, 5.0), run("worse", 21.0, 70.0, 5.0)];
    let (page, data) = report(&dir, &all);
    let names: Vec<&str> =
        data["runs"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["same (1)", "same (2)", "worse"]);
    assert!(page.contains("<title>same (1), same (2), worse - maskwright"));
    let front = |by: &str| {
        let points = data["versus"][by].as_array().unwrap();
        points.iter().map(|p| (p["run"].as_u64().unwrap(), p["front"] == true)).collect::<Vec<_>>()
    };
    assert_eq!(front("time"), [(1, true), (0, true), (2, false)]);
    // All take as much memory.
    assert_eq!(front("memory"), [(0, true), (1, false), (2, false)]);
    assert_eq!(data["versus"]["notes"], value!([]));
    let (_, data) = report(&dir, &[all[0].clone(), run("other text", 3.0, 1.0, 2.0)]);
    assert!(data["versus"]["notes"][0].as_str().unwrap().contains("cannot be compared"));
}

#[test]
fn old_and_unfinished_runs_say_what_is_missing() {
    let dir = Scratch::new();
    let says = |data: &Value, part: &str| {
        let missing = data["runs"][0]["missing"].as_array().unwrap();
        assert!(missing.iter().any(|m| m.as_str().unwrap().contains(part)), "{part:?} in {missing:?}");
    };
    // As runs were once: nothing measured, no projections, no phases, no options as a file.
    let old = dir.join("old");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("run.json"), "{\"method\": \"maskpro\", \"projections\": [], \"results\": []}")
        .unwrap();
    let steps = "{\"step\":1,\"loss\":2.5,\"residual\":0.5,\"tracker\":0.25,\"seconds\":0.5}\n{\"step\":2,\"loss\":2.25,\"resid";
    fs::write(old.join("metrics.jsonl"), steps).unwrap();
    let (_, data) = report(&dir, std::slice::from_ref(&old));
    for part in [
        "Nothing was measured",
        "no config.toml",
        "No error of the projections",
        "How far the mask moved",
        "no JSON: 1",
    ] {
        says(&data, part);
    }
    let run = &data["runs"][0];
    assert_eq!(run["curves"][0]["title"], "maskpro");
    assert_eq!(run["curves"][0]["columns"]["residual"], value!([0.5]));
    assert_eq!(
        (&run["phases"], &run["summed"]),
        (&value!([{"phase": "maskpro", "seconds": 0.5}]), &true.into())
    );
    // Only the closing file.
    fs::remove_file(old.join("metrics.jsonl")).unwrap();
    fs::write(old.join("windows.json"), "{").unwrap();
    let (_, data) = report(&dir, std::slice::from_ref(&old));
    says(&data, "no metrics.jsonl");
    says(&data, "windows.json is damaged");
    // Under way or interrupted.
    let unfinished = dir.join("unfinished");
    whole_run(&unfinished);
    for name in ["run.json", "config.toml", "windows.json"] {
        fs::remove_file(unfinished.join(name)).unwrap();
    }
    let manifest =
        value!({"conditions": {"adapter": "some card", "method": "descent", "calibration tokens": "00"}});
    fs::write(unfinished.join("manifest.json"), manifest.to_string()).unwrap();
    let (_, data) = report(&dir, &[unfinished]);
    says(&data, "not finished");
    let run = &data["runs"][0];
    assert_eq!(run["info"], value!({"adapter": "some card", "method": "descent"}));
    assert_eq!(run["finished"], false);
    assert_eq!((run["cells"].as_array().unwrap().len(), &run["summed"]), (3, &true.into()));
}

#[test]
fn folders_that_are_no_runs() {
    let dir = Scratch::new();
    let out = dir.join("out.html");
    let none = dir.join("none");
    for folder in [&none, &dir.join("empty")] {
        fails(
            args!["report", folder, "--out", out],
            &["is no folder of a run", "give a folder that prune wrote"],
        );
        fs::create_dir_all(dir.join("empty")).unwrap();
    }
    let run = dir.join("run");
    whole_run(&run);
    fails(args!["report", run, none, "--out", out], &["none is no folder of a run"]);
    fails(args!["report", run, "--out", dir.join("nowhere/out.html")], &["nowhere/out.html", "cannot write"]);
    for broken in ["{\"seed\": ", "[]"] {
        fs::write(run.join("run.json"), broken).unwrap();
        fails(args!["report", run, "--out", out], &["run.json is damaged", "remove the file"]);
    }
    assert!(!out.exists());
}
