//! What every command has in common: `--json`, `--quiet`, exit codes, help texts, and plain output where there is no terminal.

mod cli_tools;
mod host_fixture;

use std::process::Command;

use cli_tools::{Ran, command, fails, fails_in, json, preset, run, succeeds, village, village_text};
use host_fixture::Scratch;

/// Whether a text has what only a terminal understands.
fn has_escapes(text: &str) -> bool {
    text.contains(['\x1b', '\r', '\x08'])
}

/// Lines of standard error, but for what Mesa says where it has no folder for its sockets.
fn said(ran: &Ran) -> Vec<&str> {
    ran.err.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect()
}

/// `--json` prints one JSON value and nothing else; `--quiet` leaves standard error empty.
#[test]
fn json_and_quiet_on_all_that_print_tables() {
    let dir = Scratch::new();
    let (model, heldout, calib) = (village(), village_text("heldout"), village_text("calib"));
    let run = dir.join("run");
    let (mask, masked) = (run.join("mask.safetensors"), run.join("model"));
    let short = args!["--window", "32", "--windows", "8"].to_vec();
    let device = args!["--preset", preset()].to_vec();
    let on_device = |args: &[std::ffi::OsString]| [args, &short, &device].concat();
    let commands = [
        args!["devices"].to_vec(),
        [args!["prune", model, "--method", "magnitude", "--out", run], &device].concat(),
        on_device(args!["prune", model, "--method", "descent", "--calib", calib, "--dry-run"]),
        on_device(args!["prune", model, "--recipe", "best", "--dry-run"]),
        on_device(args!["eval", model, "--text", heldout, "--mask", mask]),
        [args!["generate", model, "--tokens", "2"], &device[..]].concat(),
        [
            args!["generate", model, "--tokens", "2", "--count", "1", "--out", dir.join("own.jsonl")],
            &device[..],
        ]
        .concat(),
        on_device(args![
            "variance",
            model,
            "--calib",
            calib,
            "--batch",
            "4",
            "--samples",
            "2",
            "--warm-up",
            "1"
        ]),
        args!["export", model, "--mask", mask, "--format", "torch24", "--out", dir.join("packed")].to_vec(),
        args!["export", model, "--mask", mask, "--format", "mask", "--out", dir.join("copy.safetensors")]
            .to_vec(),
        args!["apply-mask", model, "--mask", mask, "--out", dir.join("again")].to_vec(),
        args!["verify", masked, "--against", model].to_vec(),
        args!["inspect", run].to_vec(),
    ];
    for command in commands {
        let ran = succeeds(&[&command[..], args!["--json", "--quiet"]].concat());
        assert_eq!(ran.out.lines().count(), 1, "{command:?} prints\n{}", ran.out);
        json(&ran.out);
        assert!(said(&ran).is_empty(), "{command:?} says\n{}", ran.err);
    }
    let told =
        json(&succeeds(args!["apply-mask", model, "--mask", mask, "--out", dir.join("third"), "--json"]).out);
    assert_eq!((told["differing_tensors"].as_u64(), told["source_tensors"].as_u64()), (Some(0), Some(35)));
    assert!(told["nonzero_pruned"].as_u64() > Some(100_000), "{told}");
    let profiled = on_device(args!["eval", model, "--text", heldout, "--json", "--quiet", "--profile"]);
    let ran = succeeds(&profiled);
    assert!(json(&ran.out)["profile"][0]["kernel"].is_string(), "{}", ran.out);
    assert!(said(&ran).is_empty(), "{}", ran.err);
}

/// Into a pipe go no colours and no bars, and lines of progress only every ten seconds.
#[test]
fn piped_output_is_plain() {
    let dir = Scratch::new();
    let (model, heldout, calib) = (village(), village_text("heldout"), village_text("calib"));
    // Windows longer than the model was made for give a warning.
    let evaluated =
        args!["eval", model, "--text", heldout, "--window", "300", "--windows", "2", "--preset", preset()];
    let pruned = args![
        "prune",
        model,
        "--method",
        "descent",
        "--calib",
        calib,
        "--windows",
        "8",
        "--window",
        "32",
        "--out",
        dir.join("run"),
        "--eval",
        heldout,
        "--eval-windows",
        "2",
        "--preset",
        preset()
    ];
    let runs = [
        succeeds(evaluated),
        succeeds(pruned),
        succeeds(&["--help"]),
        run(&["prune"]),
        run(&["devices", "--jsno"]),
    ];
    for ran in &runs {
        assert!(!has_escapes(&ran.out) && !has_escapes(&ran.err), "{:?} {:?}", ran.out, ran.err);
    }
    assert!(runs[0].err.contains("longer than"), "a warning: {}", runs[0].err);
    for ran in &runs[..2] {
        let progress = ran.err.lines().filter(|line| line.contains(" s left")).count();
        assert!(progress <= 1, "too much progress for a log:\n{}", ran.err);
    }
    // One line for each projection, and a handful of notes.
    assert!(runs[1].err.lines().count() < 35 + 12, "{}", runs[1].err);
}

/// What `program` writes on a terminal, which `script` makes for it.
fn on_a_terminal(line: &str, no_color: bool) -> String {
    let mut script = Command::new("script");
    script
        .args(["-qec", line, "/dev/null"])
        .env("TERM", "xterm")
        .env("MASKWRIGHT_CACHE", env!("CARGO_TARGET_TMPDIR"));
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RUST_LOG"] {
        script.env_remove(name);
    }
    if no_color {
        script.env("NO_COLOR", "1");
    }
    let output = script.output().expect("util-linux's script");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether there is a change of colour or weight in it: ESC [ numbers m.
fn has_colours(text: &str) -> bool {
    text.split("\x1b[")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

/// Colours are for terminals, and not even there with `NO_COLOR`.
#[test]
#[cfg_attr(not(have_script), ignore = "needs util-linux's script, which makes a terminal")]
fn colours_only_on_a_terminal_and_without_no_color() {
    let binary = env!("CARGO_BIN_EXE_maskwright");
    let (model, text) = (village(), village_text("heldout"));
    let (model, text) = (model.display(), text.display());
    let help = format!("'{binary}' --help");
    let warns =
        format!("'{binary}' eval '{model}' --text '{text}' --window 300 --windows 2 --preset {}", preset());
    for line in [&help, &warns] {
        let (coloured, plain) = (on_a_terminal(line, false), on_a_terminal(line, true));
        assert!(has_colours(&coloured), "{line}: no colours on a terminal:\n{coloured:?}");
        assert!(!has_colours(&plain), "{line}: colours although NO_COLOR is set:\n{plain:?}");
    }
}

/// 0, 1 and 2; `cli_prune.rs` has 130.
#[test]
fn exit_codes() {
    let dir = Scratch::new();
    succeeds(&["--version"]);
    let missing = dir.join("missing");
    fails(args!["verify", missing], &["cannot read"]);
    let masked = dir.join("run");
    succeeds(args![
        "prune",
        village(),
        "--method",
        "magnitude",
        "--out",
        masked,
        "--quiet",
        "--preset",
        preset()
    ]);
    // A folder that is not right: also 1, but with the verdict on standard output.
    let wrong = run(args!["verify", masked.join("model"), "--pattern", "1:4", "--json"]);
    assert_eq!((wrong.code, json(&wrong.out)["ok"].as_bool()), (Some(1), Some(false)), "{}", wrong.err);
    for bad in [
        &["prune", "--jsno"][..],
        &["no-such-command"],
        &["prune", "models/village", "--method", "guess"],
        &[],
    ] {
        let mut command = command();
        command.args(bad);
        if bad.is_empty() {
            // The help, since nothing was asked for.
            assert_eq!(command.output().expect("a start").status.code(), Some(2));
        } else {
            fails_in(command, 2, &[]);
        }
    }
}
