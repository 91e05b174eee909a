//! The loop of the fuzz tests: mutates one file of a folder, hands it to a target, and watches memory, time and panics.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod models;
pub mod mutate;
pub mod npz;
pub mod oracle;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mutate::{Kind, Rng, mutate};

/// The seed of all cases. `MASKWRIGHT_FUZZ_SEED` gives another.
const SEED: u64 = 0x6d61_736b_7772_6974;
/// What a target may allocate beyond the bytes of the files it reads: the buffers of writers (1 MiB each), and the descriptions of
/// 4096 layers, the most that config.json may name.
const SPARE: usize = 16 << 20;
/// The longest that a case may take.
const LIMIT: Duration = Duration::from_secs(5);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static PAUSED: AtomicBool = AtomicBool::new(false);

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    if !PAUSED.load(Ordering::Relaxed) {
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

fn shrunk(bytes: usize) {
    LIVE.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        shrunk(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Runs the check of a result: what it allocates does not count.
pub fn unmeasured<T>(check: impl FnOnce() -> T) -> T {
    PAUSED.store(true, Ordering::Relaxed);
    let result = check();
    PAUSED.store(false, Ordering::Relaxed);
    result
}

/// One file that is mutated.
struct Seed {
    path: PathBuf,
    kind: Kind,
    bytes: Vec<u8>,
}

/// A folder with files to be mutated.
pub struct Corpus {
    folder: PathBuf,
    seeds: Vec<Seed>,
    /// Bytes of all of them.
    total: usize,
}

impl Corpus {
    /// Those files of a folder; what they are is told by their ending.
    pub fn of(folder: &Path, files: &[&str]) -> Self {
        let seed = |file: &&str| {
            let path = folder.join(file);
            let kind = match path.extension().and_then(|e| e.to_str()) {
                Some("json") => Kind::Json,
                Some("safetensors") => Kind::Safetensors,
                Some("npz") => Kind::Npz,
                _ => Kind::Plain,
            };
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            Seed { path, kind, bytes }
        };
        let seeds: Vec<Seed> = files.iter().map(seed).collect();
        let total = seeds.iter().map(|s| s.bytes.len()).sum();
        Self { folder: folder.into(), seeds, total }
    }

    /// The bytes that a file has when it is not mutated.
    pub fn original(&self, path: &Path) -> &[u8] {
        self.seeds.iter().find(|s| s.path == path).map_or(&[], |s| &s.bytes)
    }
}

/// What a target is given.
pub struct Case<'a> {
    /// The folder, in which one file is mutated.
    pub folder: &'a Path,
    /// That file.
    pub file: &'a Path,
    /// The number of the case, for taking turns.
    pub number: u64,
}

/// A right end of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The file was read, and what was read is right.
    Accepted,
    /// An error that says something.
    Refused,
}

/// An error of the library as the end of a case: it must say something, in a line of bearable length.
pub fn refused(error: &dyn std::fmt::Display) -> Result<End, String> {
    let text = error.to_string();
    if text.is_empty() || text.len() > 4000 {
        return Err(format!("an error of {} characters", text.len()));
    }
    Ok(End::Refused)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

/// Watches the time of the case that is running; a case that does not end cannot be told by the thread that runs it.
struct Watch {
    target: String,
    case: AtomicU64,
    /// Milliseconds since the start, plus one; 0 while none runs.
    started: AtomicU64,
    done: AtomicBool,
}

impl Watch {
    fn watch(&self, start: Instant) {
        while !self.done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            let began = self.started.load(Ordering::Relaxed);
            let now = start.elapsed().as_millis() as u64 + 1;
            // Ten times the limit: what merely ran slowly is reported as such at its end.
            if began > 0 && now.saturating_sub(began) > 10 * LIMIT.as_millis() as u64 {
                let case = self.case.load(Ordering::Relaxed);
                let text = format!("fuzzing: {}\n", reproduce(&self.target, case, "does not end"));
                let _ = std::io::stderr().write_all(text.as_bytes());
                std::process::exit(101);
            }
        }
    }
}

/// Lets the watch end, whatever happens.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn reproduce(target: &str, case: u64, what: &str) -> String {
    let seed = number("MASKWRIGHT_FUZZ_SEED").map_or(String::new(), |s| format!("MASKWRIGHT_FUZZ_SEED={s} "));
    format!(
        "{target}, case {case}: {what}; again with {seed}MASKWRIGHT_FUZZ_CASE={case} cargo test --test {} -- \
         --exact {target} --nocapture",
        env!("CARGO_CRATE_NAME")
    )
}

/// One target at a time, since memory is counted for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `cases` cases of `target`, which must have the name of the test. Panics with the first failures. `MASKWRIGHT_FUZZ_CASES`
/// gives another number of cases; `MASKWRIGHT_FUZZ_CASE` runs one of them and keeps its file.
pub fn fuzz(
    target: &str,
    corpus: &Corpus,
    cases: u64,
    mut work: impl FnMut(&Case<'_>) -> Result<End, String>,
) {
    let _alone = alone();
    let seed = number("MASKWRIGHT_FUZZ_SEED").unwrap_or(SEED);
    let only = number("MASKWRIGHT_FUZZ_CASE");
    let range = match only {
        Some(case) => case..case + 1,
        None => 0..number("MASKWRIGHT_FUZZ_CASES").unwrap_or(cases),
    };
    let start = Instant::now();
    let watch = Watch {
        target: target.into(),
        case: AtomicU64::new(0),
        started: AtomicU64::new(0),
        done: AtomicBool::new(false),
    };
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        scope.spawn(|| watch.watch(start));
        let _ended = Ended(&watch.done);
        for case in range.clone() {
            if tally.failures.len() >= 5 {
                break;
            }
            one(corpus, (seed, case), target, (&watch, start), &mut work, &mut tally, only.is_some());
        }
    });
    println!(
        "{target}: {} accepted, {} refused; at most {} bytes beyond the files, {} ms for a case; {:.1} s",
        tally.accepted,
        tally.refused,
        tally.peak,
        tally.slowest.as_millis(),
        start.elapsed().as_secs_f64()
    );
    assert!(tally.failures.is_empty(), "\n{}", tally.failures.join("\n"));
    let enough = range.end - range.start < 1000 || (tally.accepted > 0 && tally.refused > 0);
    assert!(enough, "all cases ended alike: the mutations are of no use");
}

#[derive(Default)]
struct Tally {
    accepted: u64,
    refused: u64,
    peak: usize,
    slowest: Duration,
    failures: Vec<String>,
}

fn one(
    corpus: &Corpus,
    (seed, case): (u64, u64),
    target: &str,
    (watch, start): (&Watch, Instant),
    work: &mut impl FnMut(&Case<'_>) -> Result<End, String>,
    tally: &mut Tally,
    keep: bool,
) {
    let mut rng = Rng::new(seed, case);
    let chosen = &corpus.seeds[rng.below(corpus.seeds.len())];
    let donor = &corpus.seeds[rng.below(corpus.seeds.len())];
    let bytes = mutate(&mut rng, chosen.kind, &chosen.bytes, &donor.bytes);
    fs::write(&chosen.path, &bytes).unwrap();
    if keep {
        let name = chosen.path.file_name().unwrap_or_default().to_string_lossy();
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}-{case}-{name}"));
        fs::write(&kept, &bytes).unwrap();
        println!("the mutated file: {}", kept.display());
    }
    let files = corpus.total - chosen.bytes.len() + bytes.len();
    drop(bytes);
    let given = Case { folder: &corpus.folder, file: &chosen.path, number: case };

    let base = LIVE.load(Ordering::Relaxed);
    PEAK.store(base, Ordering::Relaxed);
    watch.case.store(case, Ordering::Relaxed);
    watch.started.store(start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| work(&given)));
    let took = began.elapsed();
    watch.started.store(0, Ordering::Relaxed);
    PAUSED.store(false, Ordering::Relaxed);
    let used = PEAK.load(Ordering::Relaxed).saturating_sub(base);

    let mut fail = |what: &str| tally.failures.push(reproduce(target, case, what));
    match result {
        Ok(Ok(End::Accepted)) => tally.accepted += 1,
        Ok(Ok(End::Refused)) => tally.refused += 1,
        Ok(Err(what)) => fail(&what),
        Err(_) => fail("a panic"),
    }
    if used > files + SPARE {
        fail(&format!("{used} bytes of memory for files of {files}"));
    }
    if took > LIMIT {
        fail(&format!("took {} ms", took.as_millis()));
    }
    tally.peak = tally.peak.max(used.saturating_sub(files));
    tally.slowest = tally.slowest.max(took);
    fs::write(&chosen.path, &chosen.bytes).unwrap();
}
