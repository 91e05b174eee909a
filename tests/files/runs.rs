//! Each system call that changes a file fails once, in turn, while a run is made: afterwards the inputs are as they were, and the run is whole, or
//! goes on with `--resume`, or nothing of it is left and the same command can be given again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use maskwright::{cli, fsio};

use super::{hashes, temporaries};
use crate::args;
use crate::cli_tools::preset;
use crate::host_fixture::{Scratch, model};

/// Hashes of all that a run brings, but of what tells of times and places, and of a lock that nobody holds.
fn result(run: &Path) -> BTreeMap<PathBuf, String> {
    let told = ["run.json", "metrics.jsonl", "config.toml", "windows.json", "report.html", "lock"];
    let all =
        hashes(run).into_iter().map(|(path, hash)| (path.strip_prefix(run).unwrap().to_path_buf(), hash));
    all.filter(|(path, _)| !path.starts_with("earlier") && told.iter().all(|name| path != Path::new(name)))
        .collect()
}

/// Names of what differs.
fn differing(a: &BTreeMap<PathBuf, String>, b: &BTreeMap<PathBuf, String>) -> Vec<PathBuf> {
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

/// What became of a run whose `number`-th call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It is there as without the fault.
    Whole,
    /// It went on with `--resume`, to what it would have been; or could have.
    Resumable,
    /// Nothing is left of it.
    Absent,
}

struct Trial<'a> {
    dir: Scratch,
    options: &'a [&'a str],
    whole: BTreeMap<PathBuf, String>,
}

impl<'a> Trial<'a> {
    fn new(options: &'a [&'a str]) -> Self {
        let dir = Scratch::new();
        model(&dir.join("dense"));
        fs::write(dir.join("text.txt"), "w2 w3 w4 w5 w6 w7 w8 w9 ".repeat(12)).unwrap();
        let mut trial = Self { dir, options, whole: BTreeMap::new() };
        let reference = trial.dir.join("reference");
        trial.prune("--out", &reference).unwrap();
        trial.whole = result(&reference);
        trial
    }

    fn prune(&self, flag: &str, run: &Path) -> Result<(), String> {
        let (dense, text) = (self.dir.join("dense"), self.dir.join("text.txt"));
        let common = args!["maskwright", "prune", dense, "--preset", preset(), "--quiet", "--calib", text];
        let sizes = ["--windows", "2", "--window", "8"].iter().chain(self.options).map(OsString::from);
        cli::run(common.iter().cloned().chain(sizes).chain([flag.into(), run.into()]).collect())
    }

    /// Lets one call fail; whether there were so many, and what became of the run. With `go_on` it is resumed or given again.
    fn fault(&self, number: u64, go_on: bool) -> (bool, End) {
        let run = self.dir.join(&format!("run{number}"));
        let inputs = || (hashes(&self.dir.join("dense")), fs::read(self.dir.join("text.txt")).unwrap());
        let before = inputs();
        fsio::fail_at(number);
        let done = self.prune("--out", &run);
        let came = !fsio::fault_is_due();
        fsio::fail_at(0);
        assert!(inputs() == before, "call {number}: an input changed");
        let told = done.clone().err().unwrap_or_default();
        let named = told.contains(&format!("run{number}")) && told.contains("a fault for a test");
        assert!(done.is_ok() || named, "call {number}: {told}");
        let same = |what: &str, among: fn(&Path) -> bool| {
            let mut found = result(&run);
            found.retain(|path, _| among(path));
            assert_eq!(
                differing(&found, &self.whole),
                [""; 0].map(PathBuf::from),
                "call {number}, {what}: {told}"
            );
        };
        let end = if done.is_ok() {
            same("without an error", |_| true);
            End::Whole
        } else if run.join("run.json").exists() {
            // What was kept for a resume could not all be removed.
            same("at its end", |path| {
                let kept = ["manifest.json", "blocks", "stage1"];
                !kept.iter().any(|name| path.starts_with(name))
            });
            End::Whole
        } else if run.join("manifest.json").exists() {
            if go_on {
                self.prune("--resume", &run).unwrap_or_else(|e| panic!("call {number}, {told}: {e}"));
                same("resumed", |_| true);
            }
            End::Resumable
        } else {
            let left = if run.exists() { result(&run) } else { BTreeMap::new() };
            assert!(left.is_empty(), "call {number}, {told}: {left:?}");
            if go_on {
                self.prune("--out", &run).unwrap();
                same("given again", |_| true);
            }
            End::Absent
        };
        let _ = fs::remove_dir_all(&run);
        assert_eq!(temporaries(self.dir.path()), [""; 0], "call {number}");
        (came, end)
    }

    /// Every `step`-th call from `first` on; of the runs that are not whole then every third is gone on with.
    fn faults(&self, first: usize, step: usize) {
        let mut ends = Vec::new();
        for number in (first..).step_by(step) {
            let (came, end) = self.fault(number as u64, (number / step).is_multiple_of(3));
            if !came {
                break;
            }
            ends.push(end);
        }
        let count = |end: End| ends.iter().filter(|&&e| e == end).count();
        let [whole, resumable, absent] = [End::Whole, End::Resumable, End::Absent].map(count);
        println!("{:?}: {whole} whole, {resumable} resumable, {absent} absent", self.options);
        assert!(resumable > 10 / step && absent > 0, "{ends:?}");
    }
}

#[test]
fn a_run_layer_by_layer_is_whole_or_goes_on() {
    Trial::new(&["--method", "descent", "--start", "wanda", "--repair", "lstsq"]).faults(1, 3);
}

#[test]
fn a_run_of_stages_is_whole_or_goes_on() {
    let stages = [
        "--method",
        "relaxed",
        "--objective",
        "block",
        "--start",
        "magnitude",
        "--steps",
        "2",
        "--batch",
        "1",
    ];
    Trial::new(&[&stages[..], &["--keep-every", "1e-9"]].concat()).faults(2, 7);
}
