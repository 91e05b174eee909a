//! Where outputs may go.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use super::{export, hashes, make_pipe, setup, temporaries};
use crate::args;
use crate::cli_tools::{command, fails, names, run, succeeds, village};
use crate::host_fixture::Scratch;

/// Every command that writes one file: its name and its arguments, without the destination.
fn ways(dir: &Scratch) -> Vec<(&'static str, Vec<OsString>)> {
    vec![
        ("mask", export(dir, "mask")),
        ("maskllm-npz", export(dir, "maskllm-npz")),
        ("report", args!["report", dir.join("run"), "--out"].to_vec()),
        (
            "generate",
            args!["generate", village(), "--count", "1", "--tokens", "1", "--quiet", "--out"].to_vec(),
        ),
    ]
}

fn to(way: &[OsString], out: &Path, force: bool) -> Vec<OsString> {
    let mut all = way.to_vec();
    all.push(out.into());
    all.extend(force.then(|| "--force".into()));
    all
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_that_are_read_are_never_replaced() {
    let dir = setup();
    let before = hashes(dir.path());
    for force in [false, true] {
        for format in ["mask", "maskllm-npz"] {
            for target in [
                "dense/model-00001-of-00002.safetensors",
                "dense/config.json",
                "dense/new.jsonl",
                "run/mask.safetensors",
                "run/new",
                "dense/../dense/new",
            ] {
                fails(
                    &to(&export(&dir, format), &dir.join(target), force),
                    &["belongs to", "which this command reads"],
                );
            }
        }
        let report = args!["report", dir.join("run"), "--out"].to_vec();
        for target in ["run/report.html", "run/run.json", "run/metrics.jsonl"] {
            fails(&to(&report, &dir.join(target), force), &["belongs to", "run, which this command reads"]);
        }
    }
    // A run without a masked model, too.
    let run = args![
        "prune",
        dir.join("dense"),
        "--method",
        "magnitude",
        "--no-model",
        "--out",
        dir.join("dense/run")
    ];
    fails(run, &["dense/run lies inside the model folder", "somewhere else"]);
    let texts = ways(&dir).remove(3).1;
    fails(&to(&texts, &village().join("own.jsonl"), true), &["own.jsonl belongs to"]);
    // By way of links: to the folder, to a file of it, and from it, as in the hub's cache.
    symlink(dir.join("dense"), dir.join("linked")).unwrap();
    symlink(dir.join("dense/config.json"), dir.join("to-config")).unwrap();
    fs::create_dir(dir.join("blobs")).unwrap();
    fs::rename(dir.join("dense/config.json"), dir.join("blobs/0123")).unwrap();
    symlink("../blobs/0123", dir.join("dense/config.json")).unwrap();
    for target in ["linked/new", "to-config", "blobs/0123"] {
        fails(&to(&export(&dir, "mask"), &dir.join(target), true), &["belongs to"]);
    }
    fs::remove_file(dir.join("dense/config.json")).unwrap();
    fs::rename(dir.join("blobs/0123"), dir.join("dense/config.json")).unwrap();
    fs::remove_file(dir.join("linked")).unwrap();
    fs::remove_file(dir.join("to-config")).unwrap();
    assert_eq!(hashes(dir.path()), before);
}

#[test]
fn what_is_there_is_replaced_only_when_asked() {
    let dir = setup();
    for (name, way) in ways(&dir) {
        let out = dir.join(&format!("{name}.jsonl"));
        fs::write(&out, "days of work").unwrap();
        // Another one, where that may be.
        let _ = chown(&out, Some(65534), None);
        fs::set_permissions(&out, Permissions::from_mode(0o640)).unwrap();
        let owner = fs::metadata(&out).unwrap().uid();
        fails(&to(&way, &out, false), &["exists", "--force"]);
        assert_eq!(fs::read(&out).unwrap(), b"days of work", "{name}");
        succeeds(&to(&way, &out, true));
        assert_ne!(fs::read(&out).unwrap(), b"days of work", "{name}");
        assert_eq!(mode(&out), 0o640, "{name}: the mode stays");
        assert_eq!(fs::metadata(&out).unwrap().uid(), owner, "{name}: the owner stays");
    }
    // Pages of the manual, of which one is there already: none is written.
    let man = dir.join("man1");
    fs::create_dir(&man).unwrap();
    fs::write(man.join("maskwright-prune.1"), "mine").unwrap();
    fails(args!["man", "--out", man], &["maskwright-prune.1 exists", "--force"]);
    assert_eq!(names(&man), ["maskwright-prune.1"]);
    succeeds(args!["man", "--out", man, "--force"]);
    assert!(names(&man).len() > 10 && fs::read(man.join("maskwright-prune.1")).unwrap() != b"mine");
    assert_eq!(temporaries(dir.path()), [""; 0]);
}

#[test]
fn only_plain_files_are_written() {
    let dir = setup();
    make_pipe(&dir.join("pipe.jsonl"));
    let _listener = UnixListener::bind(dir.join("socket.jsonl")).unwrap();
    fs::create_dir(dir.join("folder.jsonl")).unwrap();
    symlink("/dev/null", dir.join("null.jsonl")).unwrap();
    for (_, way) in ways(&dir) {
        for (target, kind) in [
            ("pipe.jsonl", "a pipe"),
            ("socket.jsonl", "a socket"),
            ("folder.jsonl", "a folder"),
            ("null.jsonl", "a device"),
        ] {
            fails(&to(&way, &dir.join(target), true), &[target, kind, "plain file"]);
        }
    }
    for target in ["/dev/null", "/dev/full"] {
        fails(&to(&export(&dir, "mask"), Path::new(target), true), &[target, "a device"]);
        assert!(fs::metadata(target).unwrap().file_type().is_char_device());
    }
    fails(&to(&export(&dir, "mask"), &dir.join("none/out"), false), &["none/out", "check the spelling"]);
    symlink("circle", dir.join("circle")).unwrap();
    fails(&to(&export(&dir, "mask"), &dir.join("circle"), false), &["circle"]);
    assert_eq!(temporaries(dir.path()), [""; 0]);
}

#[test]
fn links_are_followed_and_stay() {
    let dir = setup();
    fs::create_dir(dir.join("elsewhere")).unwrap();
    fs::write(dir.join("elsewhere/old"), "old").unwrap();
    fs::set_permissions(dir.join("elsewhere/old"), Permissions::from_mode(0o600)).unwrap();
    for (link, target) in [("a", "elsewhere/old"), ("b", "a"), ("c", "elsewhere/new")] {
        symlink(target, dir.join(link)).unwrap();
    }
    fails(&to(&export(&dir, "mask"), &dir.join("b"), false), &["/b exists"]);
    for link in ["a", "b", "c"] {
        succeeds(&to(&export(&dir, "mask"), &dir.join(link), true));
        assert!(dir.join(link).symlink_metadata().unwrap().is_symlink(), "{link} is no link any more");
    }
    let mask = fs::read(dir.join("mask")).unwrap();
    assert_eq!(fs::read(dir.join("elsewhere/old")).unwrap(), mask);
    assert_eq!(fs::read(dir.join("elsewhere/new")).unwrap(), mask);
    assert_eq!(mode(&dir.join("elsewhere/old")), 0o600);
    assert_eq!(names(&dir.join("elsewhere")), ["new", "old"]);
    // A folder at a link to nothing.
    symlink("elsewhere/folder", dir.join("d")).unwrap();
    succeeds(&to(&export(&dir, "hf"), &dir.join("d"), false));
    assert!(dir.join("elsewhere/folder/config.json").is_file());
    assert!(dir.join("d").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn new_files_have_the_mode_of_the_umask() {
    let dir = setup();
    for (umask, file, folder) in [("027", 0o640, 0o750), ("002", 0o664, 0o775), ("077", 0o600, 0o700)] {
        for format in ["mask", "maskllm-npz", "hf", "torch24"] {
            let out = dir.join(&format!("{format}-{umask}"));
            let inner = command();
            let mut limited = Command::new("bash");
            limited.arg("-c").arg(format!("umask {umask}; exec \"$@\"")).arg("bash").arg(inner.get_program());
            assert!(limited.args(to(&export(&dir, format), &out, false)).output().unwrap().status.success());
            let whole = out.is_dir();
            assert_eq!(mode(&out), if whole { folder } else { file }, "{format} {umask}");
            for name in if whole { names(&out) } else { Vec::new() } {
                assert_eq!(mode(&out.join(&name)), file, "{format} {umask}: {name}");
            }
        }
    }
}

/// A folder that is there and empty is written into: it may be a disk, or somebody's with rights of its own.
#[test]
fn an_empty_folder_stays_the_folder_it_is() {
    let dir = setup();
    succeeds(&to(&export(&dir, "hf"), &dir.join("whole"), false));
    let whole = names(&dir.join("whole"));
    for format in ["hf", "torch24", "ct24"] {
        let out = dir.join(&format!("empty-{format}"));
        fs::create_dir(&out).unwrap();
        fs::set_permissions(&out, Permissions::from_mode(0o2770)).unwrap();
        let before = fs::metadata(&out).unwrap().ino();
        symlink(&out, dir.join(&format!("link-{format}"))).unwrap();
        succeeds(&to(&export(&dir, format), &dir.join(&format!("link-{format}")), false));
        assert_eq!((fs::metadata(&out).unwrap().ino(), mode(&out)), (before, 0o2770));
        if format == "hf" {
            assert_eq!(names(&out), whole);
        }
        assert_eq!(temporaries(&out), [""; 0]);
        succeeds(args!["verify", out, "--against", dir.join("dense")]);
        // A second time it is not empty, and one entry is named.
        fails(&to(&export(&dir, format), &out, false), &["is not empty (it holds ", "give a new folder"]);
    }
    // The root of a disk, which has a folder of the system's.
    fs::create_dir_all(dir.join("disk/lost+found")).unwrap();
    succeeds(&to(&export(&dir, "hf"), &dir.join("disk"), false));
    assert_eq!(names(&dir.join("disk")).len(), whole.len() + 1);
    let mounted = dir.join("mounted");
    fs::create_dir(&mounted).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&mounted).output();
    if mount.is_ok_and(|done| done.status.success()) {
        let ran = run(&to(&export(&dir, "hf"), &mounted, false));
        let found = names(&mounted);
        Command::new("umount").arg(&mounted).status().unwrap();
        assert_eq!((ran.code, found), (Some(0), whole), "{}", ran.err);
    }
    fs::write(dir.join("file"), "").unwrap();
    fails(
        &to(&export(&dir, "hf"), &dir.join("file"), false),
        &["file: it is there already and is no folder"],
    );
    fails(&to(&export(&dir, "hf"), &dir.join("new"), true), &["--force replaces a file"]);
}

/// A folder that one may write to, but not read; one that one may not write to.
#[test]
fn odd_modes_of_the_parent() {
    let dir = setup();
    let inner = command();
    let as_other = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        command
    };
    let may_run = as_other().arg(inner.get_program()).arg("--version").output();
    let may_read = as_other().arg("ls").arg(dir.join("dense")).output();
    if !(may_run.is_ok_and(|o| o.status.success()) && may_read.is_ok_and(|o| o.status.success())) {
        println!("no other user here");
        return;
    }
    for (name, parent_mode, good) in [("blind", 0o333, true), ("closed", 0o555, false)] {
        let parent = dir.join(name);
        fs::create_dir(&parent).unwrap();
        fs::set_permissions(&parent, Permissions::from_mode(parent_mode)).unwrap();
        for format in ["mask", "hf"] {
            let mut command = as_other();
            command.arg(inner.get_program()).args(to(&export(&dir, format), &parent.join(format), false));
            let ran = command.output().unwrap();
            let told = String::from_utf8(ran.stderr).unwrap();
            assert_eq!(ran.status.success(), good, "{name} {format}: {told}");
            assert_eq!(good, !told.contains("choose a place you may write to"), "{told}");
            assert!(!told.contains("flush"), "{told}");
        }
        fs::set_permissions(&parent, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(names(&parent), if good { vec!["hf", "mask"] } else { Vec::new() });
    }
}
