//! Layer-by-layer pruning end to end, through the built command: checkpoints and kills, where activations lie, what the plan and
//! the memory are, what each method promises about its errors.

mod cli_tools;
mod host_fixture;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cli_tools::{
    command, fails, json, json_file, names, perplexity, preset, run, shared_model, short_village, succeeds,
    village_text,
};
use host_fixture::{Scratch, config_with, tensors, write_config, write_safetensors, write_tokenizer};
use maskwright::mask::MaskFile;
use maskwright::model::{Architecture, Checkpoint};
use serde_json::{Value, json as value};

/// `prune` of the embedded model's first blocks, layer by layer, on windows of so many tokens.
fn prune_windows(windows: &str, window: &str, more: &[&str]) -> Vec<OsString> {
    let mut args = args!["prune", short_village(), "--calib", village_text("calib")].to_vec();
    args.extend(args!["--windows", windows, "--window", window, "--preset", preset()].to_vec());
    args.extend(more.iter().map(OsString::from));
    args
}

/// The same on few windows.
fn prune(more: &[&str]) -> Vec<OsString> {
    prune_windows("24", "64", more)
}

fn into(mut args: Vec<OsString>, flag: &str, run: &Path) -> Vec<OsString> {
    args.extend([OsString::from(flag), run.into()]);
    args
}

fn bytes(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a run leaves that must not depend on how it came about.
fn outcome(run: &Path) -> [Vec<u8>; 3] {
    ["mask.safetensors", "model/model.safetensors", "metrics.jsonl"].map(|file| {
        let bytes = bytes(run.join(file));
        if file != "metrics.jsonl" {
            return bytes;
        }
        // Seconds differ.
        let text = String::from_utf8(bytes).expect("text");
        let lines = text.lines().map(|l| {
            let mut line = json(l);
            line["seconds"] = 0.into();
            format!("{line}\n")
        });
        lines.collect::<String>().into_bytes()
    })
}

/// Errors of the projections, as `key` names them.
fn errors(run: &Path, key: &str) -> Vec<f64> {
    let all = json_file(&run.join("run.json"));
    let all = all["projections"].as_array().expect("projections").clone();
    all.iter().map(|p| p[key].as_f64().unwrap_or_else(|| panic!("no {key} in {p}"))).collect()
}

/// Killed so many times at random moments and resumed each time, runs of `args` end with the same bytes as one that was left alone.
fn killed_and_resumed(args: &[OsString], most: usize) {
    let dir = Scratch::new();
    let alone = dir.join("alone");
    let begun = Instant::now();
    succeeds(&into(args.to_vec(), "--out", &alone));
    let whole = begun.elapsed();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let (mut kills, mut round) = (0, 0);
    while kills < most {
        let killed = dir.join(&format!("killed{round}"));
        let mut flag = "--out";
        loop {
            let mut child = command()
                .args(into(args.to_vec(), flag, &killed))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the command starts");
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // From at once to nearly the end of a whole run; a resumed one may end before.
            let wait = whole.mul_f64((state % 1000) as f64 / 1000.0);
            std::thread::sleep(if kills < most { wait } else { Duration::ZERO });
            if kills < most && child.try_wait().expect("a state").is_none() {
                child.kill().expect("a kill");
                child.wait().expect("an end");
                kills += 1;
            } else {
                let output = child.wait_with_output().expect("an end");
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "after {kills} kills: {text}");
            }
            if killed.join("run.json").is_file() {
                break;
            }
            flag = if killed.join("manifest.json").is_file() { "--resume" } else { "--out" };
        }
        assert_eq!(outcome(&killed), outcome(&alone), "round {round}");
        // The very last kill may fall between the last removals; metrics before the kills are kept.
        let may_be = ["blocks", "manifest.json", "lock", "earlier"];
        let left: Vec<String> =
            names(&killed).into_iter().filter(|n| !may_be.contains(&n.as_str())).collect();
        assert_eq!(left, names(&alone), "nothing else is left");
        round += 1;
    }
    println!("{most} kills in {round} runs of {:.1} s", whole.as_secs_f64());
}

/// With re-fitted weights, so that these have to survive too.
#[test]
fn twenty_kills() {
    killed_and_resumed(&prune(&["--method", "sparsegpt", "--repair", "update"]), 20);
}

/// Where the inputs are the dense model's, repaired weights of finished blocks must not be taken for dense ones.
#[test]
fn kills_with_dense_inputs_and_each_repair() {
    let steps = ["--repair-steps", "4", "--batch", "4"];
    let repairs: [&[&str]; 4] = [
        &["--method", "descent", "--repair", "lstsq"],
        &["--method", "sparsegpt", "--repair", "update"],
        &["--method", "wanda", "--repair", "block"],
        &["--method", "wanda", "--repair", "model"],
    ];
    for repair in repairs {
        let trained = if repair[1] == "wanda" { &steps[..] } else { &[] };
        let more = [repair, &["--inputs", "dense"], trained].concat();
        killed_and_resumed(&prune_windows("8", "32", &more), 2);
    }
}

/// A run goes on only under the conditions under which it was begun, and the first difference is named.
#[test]
fn other_conditions_are_refused() {
    let dir = Scratch::new();
    let begun = dir.join("begun");
    let wanda = prune(&["--method", "wanda"]);
    let mut child = command()
        .args(into(wanda.clone(), "--out", &begun))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let started = Instant::now();
    while !begun.join("manifest.json").is_file() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("a kill");
    child.wait().expect("an end");
    let resumed = |more: &[&str]| into(prune(more), "--resume", &begun);
    fails(&resumed(&["--method", "ria"]), &["cannot resume", "method", "wanda", "ria"]);
    fails(&resumed(&["--method", "wanda", "--seed", "1"]), &["cannot resume", "calibration tokens"]);
    fails(&resumed(&["--method", "wanda", "--inputs", "dense"]), &["inputs", "pruned", "dense"]);
    fails(&resumed(&["--method", "wanda", "--pattern", "1:4"]), &["pattern", "2:4", "1:4"]);
    fails(&resumed(&["--method", "wanda", "--only", "mlp"]), &["projections"]);
    fails(&into(wanda.clone(), "--out", &begun), &["already exists"]);
    std::fs::write(begun.join("manifest.json"), "{").unwrap();
    fails(&into(wanda.clone(), "--resume", &begun), &["cannot resume", "manifest.json is damaged"]);
    fails(&into(wanda.clone(), "--resume", &dir.join("nowhere")), &["nothing to resume", "--out"]);
    let done = dir.join("done");
    succeeds(&into(wanda.clone(), "--out", &done));
    fails(&into(wanda, "--resume", &done), &["nothing to resume"]);
    let usage = run(&into(prune(&["--method", "maskpro"]), "--resume", &begun));
    assert!(usage.err.contains("--resume does not go on with maskpro"), "{}", usage.err);
}

/// Activations in host memory, through two slots: the same masks to the last bit.
#[test]
fn activations_on_the_device_and_in_host_memory() {
    let dir = Scratch::new();
    for inputs in ["pruned", "dense"] {
        let made = ["gpu", "host"].map(|place| {
            let out = dir.join(&format!("{inputs}-{place}"));
            let more = ["--method", "descent", "--inputs", inputs, "--activations", place, "--no-model"];
            // Several batches, the last of which is smaller.
            succeeds(&into(prune_windows("90", "96", &more), "--out", &out));
            bytes(out.join("mask.safetensors"))
        });
        assert!(made[0] == made[1], "inputs {inputs}");
    }
    let [pruned, dense] = ["pruned-gpu", "dense-gpu"]
        .map(|run| MaskFile::read(&dir.join(run).join("mask.safetensors")).unwrap());
    let first = |file: &MaskFile| file.set.masks["model.layers.0.self_attn.q_proj.weight"].clone();
    assert_eq!(first(&pruned), first(&dense), "the first input has seen no mask");
    assert_ne!(pruned.set, dense.set);
}

/// Descent ends below its start, whatever it starts from, and below SparseGPT's mask on nearly all projections. With dense inputs,
/// so that all errors are measured on the same inputs.
#[test]
fn descent_lowers_every_error() {
    let dir = Scratch::new();
    let run = |name: &str, more: &[&str]| {
        let out = dir.join(name);
        succeeds(&into(prune(&[more, &["--inputs", "dense"]].concat()), "--out", &out));
        out
    };
    let sparsegpt = run("sparsegpt", &["--method", "sparsegpt", "--no-model"]);
    let file = sparsegpt.join("mask.safetensors");
    let theirs = errors(&sparsegpt, "error");
    for start in ["magnitude", "wanda", "ria", file.to_str().unwrap()] {
        let name = format!("from-{}", start.rsplit('/').next().unwrap());
        let ours = run(&name, &["--method", "descent", "--start", start, "--no-model"]);
        let (before, after) = (errors(&ours, "start"), errors(&ours, "error"));
        assert!(before.iter().zip(&after).all(|(b, a)| a < b), "{start}: {before:?} {after:?}");
        if start.ends_with("safetensors") {
            // The same mask on the same inputs has the same error, but for the order of sums.
            assert!(before.iter().zip(&theirs).all(|(b, t)| (b / t - 1.0).abs() < 1e-4));
        }
        let below = after.iter().zip(&theirs).filter(|(a, t)| a < t).count();
        println!("from {start}: below SparseGPT's mask on {below} of {}", after.len());
        assert!(below * 100 >= 95 * after.len(), "{start}: {below} of {}", after.len());
    }
    for (method, error) in [("magnitude", "error"), ("wanda", "error")] {
        let out = run(method, &["--method", method, "--no-model"]);
        assert!(errors(&out, error).iter().all(|e| *e > 0.0 && *e < 1.0));
    }
}

/// Repairs change kept weights only, lower every error, and the run says so; the written model is what was measured.
#[test]
fn repairs() {
    let dir = Scratch::new();
    let heldout = village_text("heldout");
    let heldout = heldout.to_str().unwrap();
    let evaluated = ["--eval", heldout, "--eval-window", "32", "--eval-windows", "8"];
    let source = short_village();
    let source = Checkpoint::open(&source, &Architecture::read(&source).unwrap()).unwrap();
    for (name, more) in [
        ("update", &["--method", "sparsegpt", "--repair", "update"][..]),
        ("lstsq", &["--method", "descent", "--repair", "lstsq"]),
    ] {
        let out = dir.join(name);
        let ran = succeeds(&into(prune(&[more, &evaluated[..]].concat()), "--out", &out));
        assert!(ran.out.contains("kept weights were changed"), "{}", ran.out);
        let info = json_file(&out.join("run.json"));
        assert_eq!(info["kept_weights_changed"], true);
        let (mask, repaired) = (errors(&out, "error"), errors(&out, "repaired"));
        assert!(mask.iter().zip(&repaired).all(|(m, r)| r < m), "{name}: {mask:?} {repaired:?}");
        let report = json_file(&out.join("model/sparsity_report.json"));
        assert_eq!(report["kept_weights"], "re-fitted after pruning");
        let model =
            Checkpoint::open(&out.join("model"), &Architecture::read(&out.join("model")).unwrap()).unwrap();
        let file = MaskFile::read(&out.join("mask.safetensors")).unwrap();
        for (tensor, mask) in &file.set.masks {
            let (new, old) =
                (model.tensor(tensor).unwrap().to_f32(), source.tensor(tensor).unwrap().to_f32());
            let kept = |i: usize| mask.get(i / mask.cols(), i % mask.cols());
            assert!((0..new.len()).all(|i| kept(i) || new[i].to_bits() == 0), "{tensor}");
            assert!((0..new.len()).any(|i| kept(i) && new[i] != old[i]), "{tensor} is as it was");
        }
        let norm = "model.norm.weight";
        assert_eq!(model.tensor(norm).unwrap().data, source.tensor(norm).unwrap().data);
        let measured = json(
            &succeeds(args![
                "eval",
                out.join("model"),
                "--text",
                heldout,
                "--window",
                "32",
                "--windows",
                "8",
                "--json",
                "--preset",
                preset()
            ])
            .out,
        );
        let result = perplexity(&info, "result");
        let other = measured["perplexity"].as_f64().unwrap();
        assert!((result / other - 1.0).abs() < 1e-6, "{name}: {result} and {other}");
        // Without the model's folder the weights stay where the blocks were.
        let bare = dir.join(&format!("{name}-bare"));
        succeeds(&into(prune(&[more, &["--no-model"]].concat()), "--out", &bare));
        assert_eq!(
            names(&bare),
            ["blocks", "config.toml", "mask.safetensors", "metrics.jsonl", "report.html", "run.json"]
        );
        assert_eq!(names(&bare.join("blocks")).len(), 3);
    }
    let wrong = prune(&["--method", "wanda", "--repair", "update"]);
    fails(&into(wrong, "--out", &dir.join("wrong")), &["--repair update belongs to --method sparsegpt"]);
}

/// A random model of so many blocks, with a text for it.
fn random_model(dir: &Path, blocks: usize) -> (PathBuf, PathBuf) {
    random_model_of(
        dir,
        &format!("model{blocks}"),
        value!({ "num_hidden_layers": blocks, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8 }),
    )
}

fn random_model_of(dir: &Path, name: &str, shape: Value) -> (PathBuf, PathBuf) {
    let model = dir.join(name);
    write_config(&model, &config_with(shape));
    let config = Architecture::read(&model).unwrap();
    write_safetensors(&model.join("model.safetensors"), &tensors(&config));
    write_tokenizer(&model, 12, 1);
    (model, random_text(dir))
}

/// Three thousand words that the tokenizer of the random models knows.
fn random_text(dir: &Path) -> PathBuf {
    let text = dir.join("text");
    let words: Vec<String> = (0..3000u32).map(|i| format!("w{}", 2 + (i * i + i / 7) % 10)).collect();
    std::fs::write(&text, words.join(" ")).unwrap();
    text
}

/// Peak device memory is that of one block, and as planned, for every method and place.
#[test]
fn memory_does_not_grow_with_depth() {
    let dir = Scratch::new();
    for more in [
        &["--method", "descent"][..],
        &["--method", "descent", "--activations", "host"],
        &["--method", "sparsegpt", "--repair", "update"],
        &["--method", "ria", "--repair", "lstsq"],
        &["--method", "relaxed", "--objective", "layer", "--steps", "3"],
        &["--method", "relaxed", "--objective", "layer", "--steps", "3", "--start", "ria", "--state", "f16"],
    ] {
        let peaks = [4, 12].map(|blocks| {
            let (model, text) = random_model(dir.path(), blocks);
            let out = dir.join(&format!("out{blocks}{}", more.concat()));
            let common = args![
                "prune",
                model,
                "--calib",
                text,
                "--windows",
                "24",
                "--window",
                "48",
                "--json",
                "--no-model",
                "--preset",
                preset()
            ];
            let mut args = common.to_vec();
            args.extend(more.iter().map(OsString::from));
            let plan = json(&succeeds(&[&args[..], args!["--dry-run"]].concat()).out);
            let run = json(&succeeds(&into(args, "--out", &out)).out);
            let peak = run["memory"]["peak"].as_f64().unwrap();
            let planned = plan["total"].as_f64().unwrap();
            assert!((peak / planned - 1.0).abs() <= 0.05, "{more:?}: planned {planned}, allocated {peak}");
            peak
        });
        println!("{more:?}: {} bytes with 4 blocks, {} with 12", peaks[0], peaks[1]);
        // Blocks take turns in type, so that the largest is in both.
        assert_eq!(peaks[0], peaks[1], "{more:?}");
    }
}

/// A plan needs no weights, and one that does not fit says what to change.
#[test]
fn plans() {
    let dir = Scratch::new();
    let model = dir.join("shape");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), llama_7b().to_string()).unwrap();
    let dry = args!["prune", model, "--method", "descent", "--dry-run", "--preset", preset()];
    let text = succeeds(dry).out;
    for word in ["weights", "statistics", "scratch", "host memory", "224 projections", "a block, 32 blocks"] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    let plan = json(&succeeds(&[dry, args!["--json"]].concat()).out);
    let item = |name: &str| -> u64 {
        let all = plan["plan"].as_array().unwrap();
        all.iter().find(|i| i["item"] == name).unwrap()["bytes"].as_u64().unwrap()
    };
    assert_eq!(item("weights"), 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 4096 * 4);
    assert!(item("statistics") >= 4 * 11008 * 11008);
    let check = |more: &[&str], parts: &[&str]| {
        let ran = run(&[dry, &more.iter().map(OsString::from).collect::<Vec<_>>()].concat());
        assert_eq!(ran.code, Some(1), "{more:?}: {}", ran.out);
        assert!(parts.iter().all(|p| ran.err.contains(p)), "{more:?}: {}", ran.err);
    };
    check(
        &["--gpu-memory", "4", "--activations", "gpu"],
        &["--gpu-memory allows 4.00 GiB", "--activations host"],
    );
    check(&["--gpu-memory", "1", "--window", "65536", "--windows", "1"], &["use a shorter --window"]);
    check(&["--gpu-memory", "0.5", "--window", "128"], &["a device with more memory"]);
    check(&["--activations", "host", "--windows", "1000000"], &["host memory", "use fewer --windows"]);
    let maskpro = args!["prune", model, "--dry-run", "--method", "maskpro"];
    assert!(run(maskpro).err.contains("cannot be planned without weights"));
}

/// So do the plans of what learns by backpropagation: the walk that makes the start mask, then each stage.
#[test]
fn plans_of_stages() {
    let dir = Scratch::new();
    let model = dir.join("shape");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), llama_7b().to_string()).unwrap();
    let dry = args!["prune", model, "--method", "relaxed", "--dry-run", "--preset", preset()];
    let windows = args!["--windows", "32", "--window", "2048", "--batch", "16"];
    // A plan that this machine has no memory for is printed, then refused.
    let planned = |more: &[&str]| {
        let mut more: Vec<OsString> = more.iter().map(OsString::from).collect();
        more.extend(args!["--steps", "200"].to_vec());
        let ran = run(&[dry, windows, &more].concat());
        assert!(ran.code == Some(0) || ran.err.contains("of host memory"), "{}", ran.err);
        ran.out
    };
    let bytes = |plan: &Value, item: &str| -> u64 {
        let all = plan.as_array().expect("a plan");
        all.iter().filter(|i| i["item"] == item).map(|i| i["bytes"].as_u64().expect("bytes")).sum()
    };
    let of_block = 4 * 4096 * 4096 + 3 * 4096 * 11008u64;
    let weights = 2 * of_block + 2 * 4096 * 4;
    let layer = json(&planned(&["--objective", "layer", "--json"]));
    assert_eq!((&layer["stages"], bytes(&layer["walk"], "moments")), (&value!([]), 8 * 11008 * 4096));
    let block = json(&planned(&["--objective", "block", "--json"]));
    let stage = &block["stages"][0];
    assert_eq!(stage["stage"], "relaxed on the block objective");
    assert_eq!(bytes(&stage["plan"], "weights"), weights);
    assert_eq!(
        (bytes(&stage["plan"], "logits"), bytes(&stage["plan"], "moments")),
        (4 * of_block, 8 * of_block)
    );
    assert_eq!(block["total"], stage["total"], "the stage takes more than the walk");
    // 200 steps of 16 windows, forwards and backwards, and four passes over all windows.
    let forward = 2.0 * of_block as f64 * 2048.0 + 2.0 * 4096.0 * 2048.0 * 2048.0;
    let flops = 32.0 * forward * (200.0 * 3.0 * 16.0 + 4.0 * 32.0);
    let close = |flops: &Value, to: f64| (flops.as_f64().expect("operations") / to - 1.0).abs() < 1e-9;
    assert!(close(&stage["flops"], flops), "{} {flops}", stage["flops"]);
    let model = json(&planned(&["--objective", "model", "--blocks", "streamed", "--json"]));
    let stage = &model["stages"][0];
    assert_eq!(bytes(&stage["plan"], "logits"), 4 * of_block, "of one block");
    let waiting = bytes(&stage["host"], "logits") + bytes(&stage["host"], "moments");
    assert_eq!(waiting, 32 * 12 * of_block, "of all blocks");
    let head = 5.0 * 2.0 * 32000.0 * 4096.0 * 2048.0;
    let flops = 200.0 * 16.0 * (4.0 * 32.0 * forward + head) + 32.0 * (3.0 * 32.0 * forward + 2.0 * head);
    assert!(close(&stage["flops"], flops), "{} {flops}", stage["flops"]);
    let resident = json(&planned(&["--objective", "model", "--json"]));
    assert_eq!(bytes(&resident["stages"][0]["plan"], "logits"), 32 * 4 * of_block);
    let text = planned(&["--objective", "block,model", "--blocks", "streamed"]);
    for part in [
        "stage 1: relaxed on the block objective",
        "stage 2: relaxed on the model objective",
        "stage 2: 3.650e17 operations",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    println!("{text}");
}

/// The configuration of Llama-2-7B.
fn llama_7b() -> Value {
    value!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16"
    })
}

/// The real models: from a Wanda start below SparseGPT's mask on at least 95 % of the projections.
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn real_models() {
    let dir = Scratch::new();
    let text = shared_model("../texts/tinystories-train.txt");
    for name in ["stories260K", "stories3M"] {
        let by = |method: &str| {
            let out = dir.join(&format!("{name}-{method}"));
            let mut args = args!["prune", shared_model(name), "--calib", text, "--method", method].to_vec();
            args.extend(
                args!["--windows", "16", "--window", "128", "--inputs", "dense", "--no-model"].to_vec(),
            );
            succeeds(&into(args, "--out", &out));
            errors(&out, "error")
        };
        let (theirs, ours) = (by("sparsegpt"), by("descent"));
        let below = ours.iter().zip(&theirs).filter(|(a, b)| a < b).count();
        println!("{name}: below SparseGPT's mask on {below} of {}", ours.len());
        assert!(below * 100 >= 95 * ours.len(), "{name}: {below} of {}", ours.len());
    }
}

/// The report of a run names every projection once, in order.
#[test]
fn reports_are_in_order() {
    let dir = Scratch::new();
    let out = dir.join("out");
    succeeds(&into(prune(&["--method", "magnitude", "--only", "mlp", "--no-model"]), "--out", &out));
    let run: Value = json_file(&out.join("run.json"));
    let names: Vec<&str> =
        run["projections"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    let all = Architecture::read(&short_village()).unwrap().projections();
    let want: Vec<&str> = all.iter().map(|p| p.name.as_str()).filter(|n| n.contains("mlp")).collect();
    assert_eq!(names, want);
    assert_eq!(
        (&run["segments"], &run["windows"], &run["window"]),
        (&"random".into(), &24.into(), &64.into())
    );
}

/// A random block of Llama-2-7B's shape in f16 goes through one sweep of descent in less than 2 GiB, as planned.
#[test]
#[ignore = "minutes on a software driver: cargo test --test cli_walk a_block_of -- --ignored --nocapture"]
fn a_block_of_seven_billion() {
    let dir = Scratch::new();
    let shape = value!({
        "num_hidden_layers": 1, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128
    });
    let (model, text) = random_model_of(dir.path(), "model", shape);
    let out = dir.join("out");
    let args = args![
        "prune",
        model,
        "--calib",
        text,
        "--method",
        "descent",
        "--max-sweeps",
        "1",
        "--windows",
        "4",
        "--window",
        "64",
        "--json",
        "--no-model"
    ];
    let plan = json(&succeeds(&[args, args!["--dry-run"]].concat()).out);
    let run = json(&succeeds(&[args, args!["--out", out]].concat()).out);
    let (peak, planned) = (run["memory"]["peak"].as_f64().unwrap(), plan["total"].as_f64().unwrap());
    println!("{peak} bytes of {planned} planned, {} s", run["seconds"]);
    assert!(peak < 2f64.powi(31) && (peak / planned - 1.0).abs() < 0.05, "{peak} of {planned}");
    let (before, after) = (errors(&out, "start"), errors(&out, "error"));
    println!("{before:?}\n{after:?}");
    assert!(before.iter().zip(&after).all(|(b, a)| a < b));
}
