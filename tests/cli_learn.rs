//! Learning by backpropagation end to end, through the built command: what it brings, what a kill leaves, what it takes.

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cli_tools::{
    command, copied_village, fails, json, json_file, perplexity, preset, run, short_village, succeeds,
    village, village_text,
};
use half::f16;
use host_fixture::{Scratch, edit_tensor};
use maskwright::mask::MaskFile;
use serde_json::Value;

/// `prune` of the embedded model's first blocks on a few short windows.
fn prune(more: &[&str]) -> Vec<OsString> {
    prune_of(&short_village(), more)
}

/// The same of another model with its tokenizer.
fn prune_of(model: &Path, more: &[&str]) -> Vec<OsString> {
    let mut args = args!["prune", model, "--calib", village_text("calib")].to_vec();
    let windows = ["--segments", "sequential", "--windows", "16", "--window", "32", "--batch", "4"];
    args.extend(windows.iter().map(OsString::from));
    args.extend(args!["--preset", preset()].to_vec());
    args.extend(more.iter().map(OsString::from));
    args
}

fn into(mut args: Vec<OsString>, flag: &str, run: &Path) -> Vec<OsString> {
    args.extend([OsString::from(flag), run.into()]);
    args
}

fn mask(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("mask.safetensors")).expect("a mask")
}

/// Lines of the metrics without the seconds.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let line = |l| {
        let mut line = json(l);
        line["seconds"] = 0.into();
        line
    };
    text.lines().map(line).collect()
}

/// Lines about how blocks or the model came out.
fn learned(run: &Path) -> Vec<Value> {
    metrics(run)
        .into_iter()
        .filter(|l| l.get("groups_changed").is_some() && l.get("kept").is_some())
        .collect()
}

const BLOCK: [&str; 6] = ["--method", "relaxed", "--start", "wanda", "--steps", "12"];

/// What nothing in a run reads is named, with what it is for; what is read is not.
#[test]
fn options_without_effect_are_named() {
    let told = |more: &[&str]| -> Vec<String> {
        let ran = succeeds(&prune(&[more, &["--dry-run"]].concat()));
        let lines = ran.err.lines().filter(|line| line.contains("does nothing in this run"));
        lines
            .filter_map(|line| line.split_whitespace().find(|w| w.starts_with("--")).map(String::from))
            .collect()
    };
    let learned =
        ["--temperature", "1:0.1", "--noise", "0.1", "--rate", "0.1", "--steps", "5", "--logits", "2"];
    let weights = ["--warm-up", "3", "--repair-steps", "5", "--repair-rate", "1e-3"];
    assert_eq!(
        told(&[&["--method", "wanda"], &learned[..], &weights[..]].concat()),
        [
            "--batch",
            "--logits",
            "--noise",
            "--rate",
            "--repair-rate",
            "--repair-steps",
            "--steps",
            "--temperature",
            "--warm-up",
        ]
    );
    let repaired = [&["--method", "relaxed", "--repair", "block"], &learned[..], &weights[..]].concat();
    assert_eq!(told(&repaired), [""; 0]);
    let relaxed =
        ["--lambda", "1", "--kappa", "1:2", "--loss", "kl", "--alpha", "0.9", "--blocks", "streamed"];
    assert_eq!(told(&relaxed), ["--alpha", "--blocks", "--kappa", "--lambda", "--loss"]);
    let proxsparse =
        ["--method", "proxsparse", "--lambda", "1", "--warm-up", "3", "--loss", "lm", "--logits", "2"];
    assert_eq!(told(&proxsparse), ["--logits"]);
}

#[test]
fn every_method_lowers_its_loss() {
    let dir = Scratch::new();
    let cases: [(&str, &[&str]); 7] = [
        ("relaxed", &["--method", "relaxed", "--steps", "20", "--rate", "0.1"]),
        ("maskllm", &["--method", "maskllm", "--objective", "block", "--steps", "20", "--rate", "0.02"]),
        (
            "proxsparse",
            &[
                "--method",
                "proxsparse",
                "--objective",
                "block",
                "--steps",
                "20",
                "--rate",
                "0.001",
                "--lambda",
                "0.1",
            ],
        ),
        ("policy", &["--method", "maskpro", "--objective", "block", "--steps", "12", "--logits", "6"]),
        ("model", &["--method", "relaxed", "--objective", "model", "--steps", "25"]),
        ("joint", &["--objective", "block,model", "--steps", "10,40", "--joint", "--weight-rate", "3e-4"]),
        ("repair", &["--method", "wanda", "--repair", "block,model", "--repair-steps", "15"]),
    ];
    for (name, more) in cases {
        let out = dir.join(name);
        let mut args = prune(more);
        if name != "repair" {
            args.extend(args!["--start", "wanda"].to_vec());
        }
        succeeds(&into(args, "--out", &out));
        let lines = learned(&out);
        let stages = if name == "repair" || name == "joint" {
            4
        } else if name == "model" {
            1
        } else {
            3
        };
        assert_eq!(lines.len(), stages, "{name}: {lines:?}");
        let number = |l: &Value, key: &str| l[key].as_f64().expect("a number");
        for line in &lines {
            println!("{name}: {line}");
            if line["kept"] == true {
                assert!(number(line, "error") <= number(line, "start"), "{name}: {line}");
            }
        }
        let better = lines.iter().filter(|l| number(l, "error") < number(l, "start")).count();
        let forward_only = name == "policy" || name == "proxsparse";
        assert!(forward_only || better * 2 > lines.len(), "{name}: {better} of {} are better", lines.len());
        MaskFile::read(&out.join("mask.safetensors")).expect("a whole mask").set.check().expect("strict");
        let all = json_file(&out.join("run.json"));
        assert_eq!(all["kept_weights_changed"], name == "repair" || name == "joint", "{name}");
    }
}

/// Killed at random moments and resumed, inside a block and inside a model run, a run ends with the same mask, weights and metrics.
#[test]
fn kills_inside_a_block_and_inside_a_model_run() {
    let dir = Scratch::new();
    let more =
        [&BLOCK[..], &["--objective", "block,model", "--joint", "--repair", "block", "--repair-steps", "6"]]
            .concat();
    let more = [&more[..], &["--rate", "0.1,0.02", "--keep-every", "0.02"]].concat();
    let alone = dir.join("alone");
    let begun = Instant::now();
    succeeds(&into(prune(&more), "--out", &alone));
    let whole = begun.elapsed();
    let killed = dir.join("killed");
    let (mut state, mut kills, mut inside, mut flag) = (0x9e37_79b9_7f4a_7c15u64, 0, 0, "--out");
    loop {
        let mut child = command()
            .args(into(prune(&more), flag, &killed))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = 0.1 + 0.4 * (state >> 40) as f64 / (1u64 << 24) as f64;
        let wait = whole.mul_f64(share);
        let begun = Instant::now();
        while kills < 8 && begun.elapsed() < wait && child.try_wait().expect("a state").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if kills < 8 && child.try_wait().expect("a state").is_none() {
            child.kill().expect("a kill");
            child.wait().expect("an end");
            kills += 1;
        } else {
            let output = child.wait_with_output().expect("an end");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            break;
        }
        if killed.join("run.json").is_file() {
            break;
        }
        inside +=
            usize::from((1..=3).any(|n| killed.join(format!("stage{n}/training.safetensors")).is_file()));
        flag = if killed.join("manifest.json").is_file() { "--resume" } else { "--out" };
    }
    println!("{kills} kills, {inside} of them inside a stage, in a run of {:.1} s", whole.as_secs_f64());
    assert!(inside > 0, "no kill came while a stage was under way");
    assert_eq!(mask(&killed), mask(&alone));
    assert!((1..=3).all(|n| !alone.join(format!("stage{n}")).exists()), "nothing is left of the stages");
    let weights = |run: &Path| std::fs::read(run.join("model/model.safetensors")).expect("weights");
    assert!(weights(&killed) == weights(&alone), "weights differ");
    let (a, b) = (metrics(&killed), metrics(&alone));
    assert_eq!(a.len(), b.len(), "lines of metrics");
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a, b);
    }
}

/// Device memory at its peak is what the plan says, for each kind of stage.
#[test]
fn memory_is_as_planned() {
    let dir = Scratch::new();
    let cases: [(&str, &[&str]); 10] = [
        ("maskpro", &["--method", "maskpro", "--objective", "layer", "--polish"]),
        ("layer", &["--method", "relaxed", "--objective", "layer"]),
        ("layer,block", &["--method", "relaxed", "--objective", "layer,block"]),
        ("block", &["--method", "relaxed"]),
        ("block16", &["--method", "relaxed", "--state", "f16"]),
        ("maskllm", &["--method", "maskllm", "--objective", "block"]),
        ("model", &["--method", "relaxed", "--objective", "model"]),
        ("streamed", &["--method", "relaxed", "--objective", "model", "--blocks", "streamed"]),
        ("joint", &["--method", "relaxed", "--objective", "model", "--joint"]),
        ("repair", &["--method", "magnitude", "--repair", "model", "--repair-steps", "2"]),
    ];
    let mut peaks = std::collections::BTreeMap::new();
    for (name, more) in cases {
        let out = dir.join(name);
        let mut args = prune(more);
        if name != "repair" {
            args.extend(args!["--start", "magnitude", "--steps", "2"].to_vec());
        }
        args.extend(args!["--no-model"].to_vec());
        succeeds(&into(args, "--out", &out));
        let memory = &json_file(&out.join("run.json"))["memory"];
        let (plan, peak) =
            (memory["plan_total"].as_f64().expect("bytes"), memory["peak"].as_f64().expect("bytes"));
        println!("{name}: planned {plan}, peak {peak}: {}", memory["plan"]);
        assert!((plan / peak - 1.0).abs() <= 0.05, "{name}: planned {plan}, peak {peak}: {memory}");
        peaks.insert(name, peak);
    }
    assert!(peaks["streamed"] < peaks["model"], "{peaks:?}");
    assert!(peaks["block16"] < peaks["block"], "{peaks:?}");
}

/// Blocks that stream, activations in host memory, and minibatches in parts change nothing but the order of some sums.
#[test]
fn places_and_parts() {
    let dir = Scratch::new();
    let model =
        ["--method", "relaxed", "--objective", "model", "--start", "wanda", "--steps", "4", "--rate", "0.05"];
    let losses = |more: &[&str], name: &str| {
        let out = dir.join(name);
        succeeds(&into(prune(&[&model[..], more, &["--no-model"]].concat()), "--out", &out));
        let steps: Vec<f64> = metrics(&out).iter().filter_map(|l| l["loss"].as_f64()).collect();
        (steps, mask(&out))
    };
    let resident = losses(&[], "resident");
    assert_eq!(losses(&["--blocks", "streamed"], "streamed"), resident, "streamed");
    assert_eq!(losses(&["--activations", "host"], "host"), resident, "host");
    // One window at a time: gradients add up over four parts.
    let (parts, _) = losses(&["--gpu-memory", "0.006", "--blocks", "streamed"], "parts");
    println!("{parts:?} {:?}", resident.0);
    for (a, b) in parts.iter().zip(&resident.0) {
        assert!((a / b - 1.0).abs() < 2e-4, "{parts:?} {:?}", resident.0);
    }
}

/// On the layer objective no projection ends above its start, whatever it starts from, and most end below; another stage goes on from
/// there; a run that was killed ends with the same mask.
#[test]
fn the_layer_objective() {
    let dir = Scratch::new();
    let layer = ["--method", "relaxed", "--steps", "25", "--no-model", "--objective"];
    let run = |name: &str, more: &[&str]| {
        let out = dir.join(name);
        succeeds(&into(prune(&[&layer[..], more].concat()), "--out", &out));
        out
    };
    let errors = |run: &Path| -> Vec<(f64, f64)> {
        let all = json_file(&run.join("run.json"));
        let number = |p: &Value, key: &str| p[key].as_f64().unwrap_or_else(|| panic!("no {key} in {p}"));
        all["projections"]
            .as_array()
            .expect("projections")
            .iter()
            .map(|p| (number(p, "start"), number(p, "error")))
            .collect()
    };
    let wanda = run("wanda", &["layer", "--start", "wanda"]);
    let file = wanda.join("mask.safetensors");
    for start in ["wanda", "magnitude", "sparsegpt", "descent", file.to_str().expect("a path")] {
        let out = match start {
            "wanda" => wanda.clone(),
            _ if start.ends_with("safetensors") => run("file", &["layer", "--start", start]),
            _ => run(start, &["layer", "--start", start]),
        };
        let all = errors(&out);
        let below = all.iter().filter(|(start, error)| error < start).count();
        println!("from {start}: {below} of {} are better", all.len());
        assert!(all.iter().all(|(start, error)| error <= start), "{start}: {all:?}");
        assert!(below * 2 > all.len(), "{start}: {below} of {}", all.len());
        MaskFile::read(&out.join("mask.safetensors")).expect("a whole mask").set.check().expect("strict");
    }
    let expected = |name: &str, more: &[&str]| {
        let out = dir.join(name);
        let maskpro = ["--method", "maskpro", "--objective", "layer", "--steps", "25", "--no-model"];
        succeeds(&into(prune(&[&maskpro[..], more].concat()), "--out", &out));
        out
    };
    let (drawn, polished) = (expected("drawn", &[]), expected("polished", &["--polish"]));
    let mean = |run: &Path| errors(run).iter().map(|(_, error)| error).sum::<f64>();
    println!("sums of errors: {} {} {}", mean(&wanda), mean(&drawn), mean(&polished));
    assert!(errors(&drawn).iter().all(|(start, error)| error <= start), "{:?}", errors(&drawn));
    assert!(mean(&drawn) < mean(&wanda) && mean(&polished) < mean(&drawn));
    let f16 = run("f16", &["layer", "--start", "wanda", "--state", "f16"]);
    assert!(errors(&f16).iter().all(|(start, error)| error <= start), "{:?}", errors(&f16));
    let repaired = run("repaired", &["layer", "--start", "wanda", "--repair", "lstsq"]);
    assert_eq!(json_file(&repaired.join("run.json"))["kept_weights_changed"], true);
    // The block objective behind it has the three blocks' results. The walk takes other batches: other orders of sums.
    let both = run("both", &["layer,block", "--start", "wanda"]);
    assert_eq!(learned(&both).len(), 3);
    for (a, b) in errors(&both).iter().zip(&errors(&wanda)) {
        assert!((a.1 / b.1 - 1.0).abs() < 0.01, "{a:?} {b:?}");
    }
    let killed = dir.join("killed");
    let args = prune(&[&layer[..], &["layer", "--start", "wanda"]].concat());
    let mut child = command()
        .args(into(args.clone(), "--out", &killed))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let begun = Instant::now();
    while std::fs::read_dir(killed.join("blocks")).map_or(0, Iterator::count) == 0
        && child.try_wait().expect("a state").is_none()
        && begun.elapsed() < Duration::from_secs(120)
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("a kill");
    child.wait().expect("an end");
    assert!(!killed.join("run.json").is_file(), "the kill came too late");
    succeeds(&into(args, "--resume", &killed));
    assert_eq!(mask(&killed), mask(&wanda));
}

#[test]
fn what_does_not_fit_together() {
    let dir = Scratch::new();
    let refused = |more: &[&str], parts: &[&str]| {
        fails(&into(prune(more), "--out", &dir.join("refused")), parts);
    };
    refused(&["--method", "proxsparse", "--pattern", "1:4"], &["2:4 only", "relaxed"]);
    refused(&["--method", "maskllm", "--pattern", "8:16"], &["12870 patterns", "relaxed"]);
    refused(&["--method", "wanda", "--objective", "block"], &["does not learn"]);
    for other in ["maskllm", "proxsparse", "descent"] {
        refused(&["--method", other, "--objective", "layer"], &["--objective"]);
    }
    refused(&["--method", "relaxed", "--objective", "block,layer"], &["layer comes first"]);
    let both = ["--method", "relaxed", "--objective", "layer,block", "--repair", "lstsq"];
    refused(&both, &["a start mask keeps the weights"]);
    let update =
        ["--method", "relaxed", "--objective", "layer", "--start", "sparsegpt", "--repair", "update"];
    refused(&update, &["a start mask keeps the weights"]);
    for other in [["maskllm", "model"], ["relaxed", "layer"]] {
        refused(
            &["--joint", "--method", other[0], "--objective", other[1]],
            &["--joint is for --method relaxed"],
        );
    }
    refused(&["--method", "relaxed", "--joint", "--state", "f16"], &["without --joint"]);
    refused(&["--method", "relaxed", "--steps", "1,2,3"], &["--steps has 3 values"]);
    refused(&["--method", "relaxed", "--gpu-memory", "0.0001"], &["--gpu-memory"]);
    let out =
        run(&into(prune(&["--method", "relaxed", "--temperature", "1:x"]), "--out", &dir.join("refused")));
    assert_eq!(out.code, Some(2));
}

/// A mask that was learned goes on from its file.
#[test]
fn stages_chain_over_files() {
    let dir = Scratch::new();
    let (first, second) = (dir.join("first"), dir.join("second"));
    let eval = village_text("heldout");
    let eval = ["--eval", eval.to_str().expect("a path"), "--eval-windows", "20", "--no-model"];
    succeeds(&into(prune(&[&BLOCK[..], &eval].concat()), "--out", &first));
    let file = first.join("mask.safetensors");
    let more = ["--method", "relaxed", "--objective", "model", "--steps", "4", "--rate", "0.02", "--start"];
    let more = [&more[..], &[file.to_str().expect("a path")], &eval].concat();
    succeeds(&into(prune(&more), "--out", &second));
    // A mask file as it is, its weights repaired.
    let repaired = dir.join("repaired");
    let more = ["--method", "given", "--repair", "model", "--repair-steps", "3", "--start"];
    let more = [&more[..], &[file.to_str().expect("a path"), "--no-model"]].concat();
    succeeds(&into(prune(&more), "--out", &repaired));
    let masks = |run: &Path| MaskFile::read(&run.join("mask.safetensors")).expect("a mask").set.masks;
    assert_eq!(masks(&repaired), masks(&first));
    let result = |run: &Path, row: &str| perplexity(&json_file(&run.join("run.json")), row);
    assert_eq!(result(&second, "start"), result(&first, "result"));
}

/// A block that adds nothing to the residual stream (a model was expanded by it, or it is switched off) has no update that an error could be
/// a share of: it keeps its start mask, says so, and the others learn.
#[test]
fn a_block_without_an_update_keeps_its_start_mask() {
    let dir = Scratch::new();
    let model = copied_village(&dir.join("model"));
    for name in ["self_attn.o_proj", "mlp.down_proj"] {
        edit_tensor(&model, &format!("model.layers.2.{name}.weight"), |bytes| bytes.fill(0));
    }
    let kinds: [(&str, &[&str]); 4] = [
        ("relaxed", &["--method", "relaxed", "--steps", "3", "--keep-every", "1e20"]),
        ("joint", &["--method", "relaxed", "--steps", "2", "--joint"]),
        ("maskpro", &["--method", "maskpro", "--objective", "block", "--steps", "2"]),
        ("repair", &["--method", "wanda", "--repair", "block", "--repair-steps", "2"]),
    ];
    for (name, more) in kinds {
        let run = dir.join(name);
        let ran = succeeds(&into(prune_of(&model, &[more, &["--start", "wanda"]].concat()), "--out", &run));
        let said = ran.err.lines().filter(|l| l.contains("WARN") && l.contains("adds nothing")).count();
        assert!(said == 1 && ran.err.contains("block 2 adds nothing"), "{name}: {}", ran.err);
        let blocks = learned(&run);
        assert_eq!(blocks.len(), 5, "{name}");
        for line in &blocks {
            let skipped = line["block"] == 2;
            assert_eq!(line["skipped"] == true, skipped, "{name}: {line}");
            let errors = [&line["start"], &line["error"]].map(|e| e.as_f64().expect("a number"));
            assert!(if skipped { errors == [0.0; 2] } else { errors[0] > 0.0 }, "{name}: {line}");
        }
        for moved in json_file(&run.join("run.json"))["moved"].as_array().expect("projections") {
            if moved["name"].as_str().expect("a name").contains("layers.2.") {
                assert_eq!(moved["changed"], 0, "{name}: {moved}");
            }
        }
    }
}

/// Re-fitted weights beyond the end of the stored type: named as that, kept out of files, and clamped only where asked for; a run that ended
/// there goes on.
#[test]
fn weights_that_their_type_cannot_hold() {
    let dir = Scratch::new();
    let model = copied_village(&dir.join("model"));
    let scaled = |name: String, by: f32| {
        edit_tensor(&model, &name, |bytes| {
            for half in bytes.as_chunks_mut::<2>().0 {
                *half = f16::from_f32(f16::from_le_bytes(*half).to_f32() * by).to_le_bytes();
            }
        });
    };
    // Up as far as it goes in the last blocks, and down by as much: the model stays about what it was.
    for block in [3, 4] {
        let mut most = 0.0f32;
        edit_tensor(&model, &format!("model.layers.{block}.mlp.up_proj.weight"), |bytes| {
            let halves = bytes.as_chunks::<2>().0.iter();
            most = halves.fold(most, |most, half| most.max(f16::from_le_bytes(*half).to_f32().abs()));
        });
        scaled(format!("model.layers.{block}.mlp.up_proj.weight"), 65_000.0 / most);
        scaled(format!("model.layers.{block}.mlp.down_proj.weight"), most / 65_000.0);
    }
    let repair = ["--method", "descent", "--repair", "lstsq"];
    let run = dir.join("run");
    let words = |more: &[&str]| prune_of(&model, &[&repair, more].concat());
    let told = fails(
        &into(words(&[]), "--out", &run),
        &["model.layers.3.mlp.up_proj.weight", "do not fit in F16", "65504", "--clamp-weights", "--resume"],
    );
    assert!(!told.contains("inf"), "{told}");
    assert!(!run.join("run.json").exists() && run.join("manifest.json").exists());
    // With the option it goes on with the blocks that are finished.
    let ran = succeeds(&into(words(&["--clamp-weights"]), "--resume", &run));
    assert!(ran.err.contains("3 blocks are finished"), "{}", ran.err);
    assert!(ran.err.lines().any(|l| l.contains("WARN") && l.contains("clamped")), "{}", ran.err);
    succeeds(args!["verify", run.join("model"), "--quiet"]);
    // Weights that are trained are named in the same way.
    let trained = ["--method", "wanda", "--repair", "block", "--repair-steps", "3", "--repair-rate", "60000"];
    let told = fails(&into(prune_of(&village(), &trained), "--out", &dir.join("trained")), &[]);
    assert!(told.contains("do not fit in F16") || told.contains("lower --rate"), "{told}");
}
