//! `completions` and `man`, made of the command line's own descriptions.

mod cli_tools;
mod host_fixture;

use std::process::Command;

use cli_tools::{fails, names, run, succeeds};
use host_fixture::Scratch;

const COMMANDS: [&str; 14] = [
    "apply-mask",
    "compare",
    "completions",
    "devices",
    "eval",
    "export",
    "generate",
    "inspect",
    "man",
    "prune",
    "report",
    "variance",
    "verify",
    "help",
];

/// Whether a program is there.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeeds(args!["completions", shell]).out;
        for name in COMMANDS {
            assert!(script.contains(name), "{shell}: no {name}");
        }
        assert!(script.contains("method") && script.contains("sparsegpt"), "{shell}: no --method");
    }
    assert_eq!(run(args!["completions", "tcsh"]).code, Some(2));
}

/// Bash itself completes a command, an option, and the value of one.
#[test]
fn bash_completes() {
    if !has("bash") {
        eprintln!("no bash here");
        return;
    }
    let script = succeeds(args!["completions", "bash"]).out;
    let complete = |words: &str, last: usize| {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}\n_maskwright maskwright \"${{COMP_WORDS[$COMP_CWORD]}}\" \
             \"${{COMP_WORDS[$COMP_CWORD-1]}}\"\necho \"${{COMPREPLY[@]}}\""
        );
        let out = Command::new("bash").args(["--norc", "-c", &ask]).output().expect("bash runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text").trim().to_owned()
    };
    assert_eq!(complete("maskwright pru", 1), "prune");
    assert_eq!(complete("maskwright prune --patt", 2), "--pattern");
    assert_eq!(complete("maskwright prune --method mag", 3), "magnitude");
}

#[test]
fn a_page_for_every_command() {
    let dir = Scratch::new();
    let folder = dir.join("man1");
    let told = succeeds(args!["man", "--out", folder]).out;
    let mut pages: Vec<String> =
        COMMANDS.iter().filter(|name| **name != "help").map(|name| format!("maskwright-{name}.1")).collect();
    pages.push("maskwright.1".into());
    pages.sort();
    assert_eq!(names(&folder), pages);
    assert_eq!(told.lines().count(), pages.len());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a page");
    assert!(read("maskwright.1").contains("maskwright\\-prune(1)"));
    let prune = succeeds(args!["man", "prune"]).out;
    assert_eq!(prune, read("maskwright-prune.1"));
    assert_eq!(succeeds(args!["man"]).out, read("maskwright.1"));
    assert!(prune.contains(".SH OPTIONS") && prune.contains("\\-\\-pattern"), "{prune}");
    // As in the help, without options of the device where none is used.
    assert!(prune.contains("\\-\\-preset") && !read("maskwright-inspect.1").contains("\\-\\-preset"));
    if has("groff") {
        for page in pages {
            let out =
                Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(folder.join(&page)).output();
            let told = out.expect("groff runs").stderr;
            assert!(told.is_empty(), "{page}: {}", String::from_utf8_lossy(&told));
        }
    }
    fails(args!["man", "prun"], &["no command prun", "prune"]);
}
