//! Ctrl-C and SIGTERM: what is finished is kept, nothing half done is left, and the exit code is 130.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{setup, temporaries};
use crate::args;
use crate::cli_tools::{command, json, names, village, village_text};
use crate::host_fixture::Scratch;

/// More than any of these takes.
const LONG: Duration = Duration::from_secs(60);

fn signal(child: &Child, name: &str) {
    Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
}

fn ends(mut child: Child) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < LONG {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it goes on after a signal");
}

/// Starts a command; returns once it has said `sign` on standard error, whose rest nobody reads.
fn started(arguments: &[OsString], sign: &str) -> Child {
    let mut child = command().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(sign) {
        line.clear();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended before it said {sign}");
    }
    // It must not block, nor die of a closed pipe.
    std::thread::spawn(move || told.lines().count());
    child
}

#[test]
fn finished_texts_are_kept() {
    let dir = Scratch::new();
    let out = dir.join("own.jsonl");
    let words = args![
        "generate",
        village(),
        "--out",
        out,
        "--count",
        "4000000",
        "--tokens",
        "2",
        "--temperature",
        "1"
    ];
    for (name, times) in [("INT", 1), ("TERM", 1), ("INT", 2)] {
        let child = started(words, "texts at a time");
        // Until a mebibyte of texts is there, or for some seconds.
        sleep(Duration::from_secs(4));
        (0..times).for_each(|_| signal(&child, name));
        assert_eq!(ends(child), Some(130), "{name}");
        assert_eq!(temporaries(dir.path()), [""; 0], "{name}");
        if times == 1 {
            let text = fs::read_to_string(&out).unwrap();
            assert!(text.lines().count() > 0 && text.ends_with('\n'), "{name}");
            text.lines().for_each(|line| assert!(json(line)["text"].is_string(), "{line}"));
        }
        let _ = fs::remove_file(&out);
    }
    // Before the first text is finished.
    let mut child = command().args(words).stderr(Stdio::null()).spawn().unwrap();
    sleep(Duration::from_millis(150));
    signal(&child, "INT");
    assert!(child.try_wait().unwrap().is_none_or(|status| status.code() == Some(130)));
    assert_eq!(ends(child), Some(130));
    assert_eq!(temporaries(dir.path()), [""; 0]);
}

/// Waits for a temporary in a folder.
fn begun(folder: &Path, child: &mut Child) {
    while temporaries(folder).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote");
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_millis(30));
}

/// With a file of the model that takes long to copy, and for which there is room.
#[test]
fn a_stopped_export_leaves_nothing() {
    let dir = setup();
    let room = fs4::available_space(dir.path()).unwrap();
    fs::File::create(dir.join("dense/long.dat")).unwrap().set_len(room / 2).unwrap();
    let before = names(dir.path());
    fs::create_dir(dir.join("there")).unwrap();
    for (i, name) in ["INT", "TERM", "HUP"].into_iter().enumerate() {
        for (kind, out) in [("export", "out"), ("apply-mask", "out"), ("export", "there")] {
            let mut child = command()
                .args(args![kind, dir.join("dense"), "--mask", dir.join("mask"), "--out", dir.join(out)])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            begun(&if out == "there" { dir.join(out) } else { dir.path().into() }, &mut child);
            (0..=i).for_each(|_| signal(&child, name));
            assert_eq!(ends(child), Some(130), "{kind} {out} {name}");
            assert_eq!(names(&dir.join("there")), [""; 0], "{kind} {out} {name}");
            let mut now = names(dir.path());
            now.retain(|name| name != "there");
            assert_eq!(now, before, "{kind} {out} {name}");
        }
    }
}

/// Commands that keep nothing end at the first signal.
#[test]
fn the_first_signal_ends_what_keeps_nothing() {
    let (calib, text) = (village_text("calib"), village_text("heldout"));
    let variance = args!["variance", village(), "--calib", calib, "--samples", "100000", "--window", "64"];
    let eval = args!["eval", village(), "--text", text, "--window", "64"];
    for (words, name) in [(variance, "INT"), (variance, "TERM"), (eval, "INT")] {
        let child = started(words, "preset: ");
        let began = Instant::now();
        signal(&child, name);
        assert_eq!(ends(child), Some(130), "{words:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{words:?}");
    }
}

/// A run that is told to end while it sets itself up: its folder is not there, or goes on with `--resume`.
#[test]
fn a_run_ends_from_its_first_second() {
    let dir = Scratch::new();
    let calib = village_text("calib");
    for (i, sign) in ["adapter: ", "preset: ", "plan: "].into_iter().enumerate() {
        for method in ["relaxed", "maskpro"] {
            let out = dir.join(&format!("{method}-{i}"));
            let words = args![
                "prune",
                village(),
                "--method",
                method,
                "--calib",
                calib,
                "--window",
                "64",
                "--windows",
                "32",
                "--steps",
                "5000",
                "--no-model",
                "--out",
                out
            ];
            let child = started(words, sign);
            signal(&child, "TERM");
            assert_eq!(ends(child), Some(130), "{method} {sign}");
            let left = if out.exists() { names(&out) } else { Vec::new() };
            let whole =
                left.is_empty() || ["manifest.json", "run.json"].iter().any(|n| left.contains(&(*n).into()));
            assert!(whole, "{method} {sign}: {left:?}");
            assert!(left.iter().all(|name| !name.contains(".tmp-")), "{method} {sign}: {left:?}");
        }
    }
}
