//! The folder of a run through the built command: one process at a time, nothing changed before all is checked, and a resume that is
//! the same run or none.

mod cli_tools;
mod host_fixture;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cli_tools::{command, fails, preset, run, succeeds, village, village_text};
use host_fixture::Scratch;

fn prune(model: &Path, more: &[&str]) -> Vec<OsString> {
    let mut args =
        args!["prune", model, "--calib", village_text("calib"), "--windows", "24", "--window", "64"].to_vec();
    args.extend(args!["--preset", preset(), "--quiet"].to_vec());
    args.extend(more.iter().map(OsString::from));
    args
}

fn into(mut args: Vec<OsString>, flag: &str, run: &Path) -> Vec<OsString> {
    args.extend([OsString::from(flag), run.into()]);
    args
}

/// A copy of the embedded model.
fn model(dir: &Scratch) -> PathBuf {
    let to = dir.join("model of its own");
    fs::create_dir(&to).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(village().join(file), to.join(file)).unwrap();
    }
    to
}

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            out.extend(tree(&entry));
            out.insert(entry, Vec::new());
        } else {
            out.insert(entry.clone(), fs::read(&entry).unwrap());
        }
    }
    out
}

fn start(args: &[OsString]) -> Child {
    command().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command starts")
}

/// Waits until a file is there.
fn until(path: &Path) {
    let begun = Instant::now();
    while !path.exists() && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(path.exists(), "{} did not come", path.display());
}

/// A run that was killed once it had something.
fn begun(args: Vec<OsString>, out: &Path, sign: &str) {
    let mut child = start(&into(args, "--out", out));
    until(&out.join(sign));
    child.kill().expect("a kill");
    child.wait().expect("an end");
    assert!(!out.join("run.json").exists(), "it was to be killed before its end");
}

/// A second process is refused at once with the first one's number, whatever it wants to do in the folder, and changes nothing.
#[test]
fn two_processes_never_write_one_folder() {
    let dir = Scratch::new();
    let out = dir.join("run");
    let args = prune(&village(), &["--method", "relaxed", "--start", "magnitude", "--steps", "2000"]);
    let mut first = start(&into(args.clone(), "--out", &out));
    until(&out.join("stage1/manifest.json"));
    let by = format!("is being written by process {} on ", first.id());
    for flag in ["--out", "--resume"] {
        let begun = Instant::now();
        fails(&into(args.clone(), flag, &out), &[&by]);
        println!("refused after {:.2} s", begun.elapsed().as_secs_f64());
    }
    // Readers never need it.
    succeeds(args!["report", out, "--out", dir.join("page.html")]);
    assert!(first.try_wait().expect("a state").is_none(), "the first goes on");
    first.kill().expect("a kill");
    first.wait().expect("an end");
    // The lock went with its process.
    let ended = run(&into(
        prune(&village(), &["--method", "relaxed", "--start", "wanda", "--steps", "2000"]),
        "--resume",
        &out,
    ));
    assert!(ended.err.contains("cannot resume"), "{}", ended.err);
}

/// Of several that start at the same moment exactly one runs.
#[test]
fn a_race_has_one_winner() {
    let dir = Scratch::new();
    let out = dir.join("a new place").join("run");
    let args = into(prune(&village(), &["--method", "wanda"]), "--out", &out);
    let children: Vec<Child> = (0..12).map(|_| start(&args)).collect();
    let ends: Vec<_> = children.into_iter().map(|child| child.wait_with_output().expect("an end")).collect();
    let won = ends.iter().filter(|end| end.status.success()).count();
    assert_eq!(won, 1);
    for end in ends.iter().filter(|end| !end.status.success()) {
        let text = String::from_utf8_lossy(&end.stderr);
        assert!(text.contains("is being written by") || text.contains("already exists"), "{text}");
    }
    succeeds(args![
        "verify",
        out.join("model"),
        "--against",
        village(),
        "--mask",
        out.join("mask.safetensors")
    ]);
}

/// What is no run, and what cannot go on as asked, is left as it is to the last byte.
#[test]
fn a_refused_resume_changes_nothing() {
    let dir = Scratch::new();
    let magnitude = dir.join("magnitude");
    succeeds(&into(prune(&village(), &["--method", "magnitude", "--no-model"]), "--out", &magnitude));
    let mask = magnitude.join("mask.safetensors");
    let start = mask.to_str().unwrap();
    // A folder that is no run, with something in it that has the name of what a run writes.
    let other = dir.join("precious");
    fs::create_dir_all(other.join("model")).unwrap();
    fs::write(other.join("model/weights"), "mine").unwrap();
    let before = tree(&other);
    for more in [&["--method", "wanda"][..], &["--method", "relaxed", "--start", start, "--steps", "2"]] {
        fails(&into(prune(&village(), more), "--resume", &other), &["nothing to resume"]);
        assert_eq!(tree(&other), before);
    }
    // A run in a stage, with another option.
    let out = dir.join("run");
    let with =
        |steps: &'static str| prune(&village(), &["--method", "relaxed", "--start", start, "--steps", steps]);
    begun(with("400"), &out, "stage1/manifest.json");
    fs::create_dir(out.join("model")).unwrap();
    fs::write(out.join("model/weights"), "mine").unwrap();
    let before = tree(&out);
    assert!(before.keys().any(|path| path.ends_with("metrics.jsonl")));
    fails(&into(with("401"), "--resume", &out), &["cannot resume", "steps", "400", "401"]);
    let mut left = tree(&out);
    // The lock of the process that was killed goes with the next.
    left.remove(&out.join("lock"));
    let mut before = before;
    before.remove(&out.join("lock"));
    assert_eq!(left, before);
}

/// Any tensor, file or text that masks depend on, though it has the same size.
#[test]
fn a_resume_is_the_same_run() {
    let dir = Scratch::new();
    let (model, out) = (model(&dir), dir.join("run"));
    let wanda = prune(&model, &["--method", "sparsegpt"]);
    begun(wanda.clone(), &out, "manifest.json");
    for tensor in ["model.embed_tokens.weight", "model.norm.weight"] {
        let file = model.join("model.safetensors");
        let whole = fs::read(&file).unwrap();
        let checkpoint = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let data = checkpoint.tensor(tensor).unwrap().data();
        let at = data.as_ptr() as usize - whole.as_ptr() as usize;
        let mut changed = whole.clone();
        changed[at] ^= 1;
        // Written anew: the file may be mapped.
        fs::remove_file(&file).unwrap();
        fs::write(&file, changed).unwrap();
        fails(&into(wanda.clone(), "--resume", &out), &["cannot resume", tensor, "not the one"]);
        fs::remove_file(&file).unwrap();
        fs::write(&file, whole).unwrap();
    }
    let file = model.join("tokenizer.json");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{whole}\n")).unwrap();
    fails(&into(wanda.clone(), "--resume", &out), &["cannot resume", "tokenizer.json"]);
    fs::write(&file, whole).unwrap();
    // Another place is no other model.
    let moved = dir.join("moved");
    fs::rename(&model, &moved).unwrap();
    succeeds(&into(prune(&moved, &["--method", "sparsegpt"]), "--resume", &out));
}

/// With inputs of the dense model a resumed run takes dense weights, not those that finished blocks were fitted to.
#[test]
fn dense_inputs_with_repairs_resume_byte_for_byte() {
    let dir = Scratch::new();
    for (name, more) in [
        ("lstsq", &["--method", "wanda", "--repair", "lstsq"][..]),
        ("update", &["--method", "sparsegpt", "--repair", "update"]),
        ("block", &["--method", "descent", "--repair", "block", "--repair-steps", "3", "--batch", "8"]),
    ] {
        let args = prune(&village(), &[more, &["--inputs", "dense"]].concat());
        let (alone, killed) = (dir.join(&format!("{name} alone")), dir.join(name));
        succeeds(&into(args.clone(), "--out", &alone));
        begun(args.clone(), &killed, "blocks/0001.mask.safetensors");
        succeeds(&into(args, "--resume", &killed));
        for file in ["mask.safetensors", "model/model.safetensors"] {
            assert!(
                fs::read(alone.join(file)).unwrap() == fs::read(killed.join(file)).unwrap(),
                "{name}: {file} differs"
            );
        }
        assert!(!killed.join("lock").exists() && !killed.join("manifest.json").exists());
    }
}

/// An error before the first result leaves no folder, so that the corrected command can be given as it is.
#[test]
fn errors_before_the_first_result_leave_no_folder() {
    let dir = Scratch::new();
    let out = dir.join("a").join("run");
    let cases: [(&[&str], &str); 4] = [
        (&["--method", "maskpro", "--steps", "1,5"], "one value"),
        (&["--method", "maskpro", "--steps", "0"], "at least 1"),
        (&["--method", "wanda", "--only", "mlp", "--only", "no such part"], "no such part"),
        (&["--method", "wanda", "--gpu-memory", "0.0001"], "--gpu-memory"),
    ];
    for (more, said) in cases {
        fails(&into(prune(&village(), more), "--out", &out), &[said]);
        assert!(!dir.join("a").exists(), "{more:?}");
    }
    let twice = run(&into(
        prune(&village(), &["--method", "relaxed", "--steps", "2", "--steps", "3"]),
        "--out",
        &out,
    ));
    assert!(twice.code == Some(2) && twice.err.contains("--steps"), "{}", twice.err);
}

/// What stands on the command line goes before the file, also where the two are other words for one thing.
#[test]
fn the_command_line_goes_before_the_file() {
    let dir = Scratch::new();
    let (file, out) = (dir.join("options.toml"), dir.join("run"));
    let text = "method = \"wanda\"\nobjective = [\"block\"]\nsteps = [3, 4]\nwindows = 8\nwindow = 64\n";
    fs::write(&file, text).unwrap();
    let mut args = args!["prune", village(), "--config", file, "--calib", village_text("calib")].to_vec();
    args.extend(args!["--recipe", "fast", "--preset", preset(), "--out", out].to_vec());
    succeeds(&args);
    let told = fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(told.contains("recipe = \"fast\"") && !told.contains("method"), "{told}");
    let run = cli_tools::json_file(&out.join("run.json"));
    assert_eq!((&run["method"], &run["windows"]), (&"descent".into(), &8.into()));
    // The other way round.
    fs::write(&file, "recipe = \"best\"\nwindows = 8\nwindow = 64\n").unwrap();
    let out = dir.join("second");
    let mut args = args!["prune", village(), "--config", file, "--method", "magnitude"].to_vec();
    args.extend(args!["--preset", preset(), "--out", out].to_vec());
    let ran = succeeds(&args);
    assert_eq!(cli_tools::json_file(&out.join("run.json"))["method"], "magnitude");
    // Options that nothing reads are named.
    assert!(ran.err.contains("--windows does nothing in this run"), "{}", ran.err);
}
