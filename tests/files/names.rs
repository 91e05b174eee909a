//! Names that are not UTF-8, as of a latin-1 disk or an old archive.
#![cfg(target_os = "linux")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::setup;
use crate::args;
use crate::cli_tools::{json, json_file, preset, succeeds};
use crate::host_fixture::{Scratch, write_tokenizer};

/// `caf\xe9` for `caf%`.
fn bad(dir: &Scratch, name: &str) -> PathBuf {
    let bytes = name.bytes().map(|b| if b == b'%' { 0xe9 } else { b }).collect();
    dir.path().join(OsString::from_vec(bytes))
}

#[test]
fn names_that_are_not_utf8_work_everywhere() {
    let dir = setup();
    let model = bad(&dir, "mod%le");
    fs::rename(dir.join("dense"), &model).unwrap();
    write_tokenizer(&model, 12, 1);
    fs::write(bad(&dir, "mod%le/old-caf%.bin"), "an old copy of the weights, which is left out").unwrap();
    fs::write(bad(&dir, "mod%le/not%s.txt"), "notes, which are copied").unwrap();
    let (text, heldout) = (bad(&dir, "caf%.txt"), bad(&dir, "h%ldout.txt"));
    fs::write(&text, "w2 w3 w5 w7 ".repeat(60)).unwrap();
    fs::write(&heldout, "w2 w3 w4 w6 ".repeat(20)).unwrap();
    let out = bad(&dir, "run-%");
    let windows = ["--windows", "4", "--window", "16", "--eval-window", "16"];
    let mut words = args!["prune", model, "--calib", text, "--eval", heldout, "--method", "wanda"].to_vec();
    words.extend(windows.iter().map(OsString::from));
    let quiet = args!["--preset", preset(), "--quiet"];
    let ran = succeeds(&[words.clone(), args!["--out", out, "--json"].to_vec(), quiet.to_vec()].concat());
    assert!(json(&ran.out)["calib"].as_str().unwrap().ends_with("caf\u{fffd}.txt"));
    // The file of options is UTF-8 and names what it cannot hold.
    let options = fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(options.contains("# calib: its name is no UTF-8") && options.contains("# model: "), "{options}");
    let again =
        args!["prune", model, "--calib", text, "--eval", heldout, "--config", out.join("config.toml")];
    let to = args!["--out", bad(&dir, "again-%")];
    succeeds(&[again.to_vec(), to.to_vec(), quiet.to_vec()].concat());

    succeeds(args!["verify", out.join("model"), "--against", model, "--json"]);
    assert_eq!(
        fs::read(out.join(bad(&dir, "model/not%s.txt").strip_prefix(dir.path()).unwrap())).unwrap(),
        b"notes, which are copied"
    );
    let report = json_file(&out.join("model/sparsity_report.json"));
    assert_eq!(report["not_copied"][0], "old-caf\u{fffd}.bin");

    let mask = bad(&dir, "run-%/mask.safetensors");
    for (format, to) in [("hf", "exp-%"), ("torch24", "24-%"), ("mask", "m%sk"), ("maskllm-npz", "m%sk.npz")]
    {
        let words =
            args!["export", model, "--mask", mask, "--format", format, "--out", bad(&dir, to), "--json"];
        let told = json(&succeeds(words).out);
        assert!(told["written"].as_str().unwrap().contains('\u{fffd}'), "{told}");
    }
    for path in [&model, &out, &mask, &bad(&dir, "exp-%")] {
        assert!(
            json(&succeeds(args!["inspect", path, "--json"]).out)["path"]
                .as_str()
                .unwrap()
                .contains('\u{fffd}')
        );
        succeeds(args!["inspect", path]);
    }
    succeeds(args!["report", out, bad(&dir, "again-%"), "--out", bad(&dir, "p%ge.html")]);
    let texts = bad(&dir, "t%xts.jsonl");
    let words = args!["generate", model, "--out", texts, "--count", "1", "--tokens", "2", "--json"];
    let told = json(&succeeds(&[words.to_vec(), quiet.to_vec()].concat()).out);
    assert!(told["written"].as_str().unwrap().ends_with("t\u{fffd}xts.jsonl"), "{told}");
    let words =
        args!["eval", model, "--text", heldout, "--text", text, "--window", "16", "--mask", mask, "--json"];
    succeeds(&[words.to_vec(), quiet.to_vec()].concat());
    let words =
        args!["compare", model, "--calib", text, "--eval", heldout, "--methods", "magnitude,wanda", "--json"];
    let windows = args!["--windows", "4", "--window", "16", "--eval-window", "16", "--steps", "1"];
    let to = args!["--out", bad(&dir, "comp%re")];
    let told = json(&succeeds(&[words.to_vec(), windows.to_vec(), to.to_vec(), quiet.to_vec()].concat()).out);
    assert!(told["model"].as_str().unwrap().ends_with("mod\u{fffd}le"), "{told}");
}
