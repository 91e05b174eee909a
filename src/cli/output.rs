//! Tables, progress and numbers for people.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::eval::Estimate;
use crate::gpu::Gpu;
use crate::mask::MaskSet;
use crate::model::{Architecture, Projection};
use crate::nn::{MemoryPlan, PlanItem, total};
use crate::run::{DeviceSpec, Profile, Task};

/// A table with a header; the first column is left-aligned, the others right-aligned.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let mut out = String::new();
        for (i, (cell, &w)) in cells.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(w - cell.chars().count());
            match i {
                0 => out.push_str(&format!("{cell}{gap}")),
                _ => out.push_str(&format!("  {gap}{cell}")),
            }
        }
        out.trim_end().to_string()
    };
    let head: Vec<String> = header.iter().map(ToString::to_string).collect();
    let mut lines = vec![line(&head), "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1))];
    lines.extend(rows.iter().map(|r| line(r)));
    lines.join("\n")
}

/// "1.23 [1.20, 1.26]", all times `by`.
pub(super) fn shown(e: Estimate, by: f64, digits: usize) -> String {
    format!("{:.digits$} [{:.digits$}, {:.digits$}]", by * e.value, by * e.low, by * e.high)
}

/// A plan beside what was allocated, for a JSON result.
pub(super) fn planned(plan: &MemoryPlan, gpu: &Gpu) -> Value {
    json!({
        "plan": plan.gpu, "plan_total": total(&plan.gpu), "host": plan.host, "host_total": total(&plan.host),
        "peak": gpu.memory_peak(), "at_peak": gpu.memory_items(),
    })
}

/// The projections that a set masks.
pub(super) fn masked(config: &Architecture, set: Option<&MaskSet>) -> Vec<Projection> {
    let has = |p: &Projection| set.is_some_and(|set| set.get(&p.name).is_some());
    config.projections().into_iter().filter(has).collect()
}

/// With `--profile` the kernel times, as a table on standard error; where JSON is printed they are in it ([`with_profile`]).
pub(super) fn show_profile(device: &DeviceSpec, gpu: &Gpu, json: bool) {
    if device.profile && !json {
        eprintln!("{}", profile(&Profile::of(gpu)));
    }
}

/// `out`, with `--profile` also the kernel times.
pub(super) fn with_profile(mut out: Value, device: &DeviceSpec, gpu: &Gpu) -> Value {
    if device.profile {
        let Profile { rows, submits } = Profile::of(gpu);
        out["profile"] = json!(rows);
        out["submits"] = json!({ "count": submits.count, "longest_ms": submits.longest_ms });
    }
    out
}

/// The kernel times of `--profile`.
pub(super) fn profile(Profile { rows, submits }: &Profile) -> String {
    let total: f64 = rows.iter().map(|r| r.ms).sum();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            vec![
                r.kernel.to_string(),
                r.calls.to_string(),
                format!("{:.1}", r.ms),
                format!("{:.1}", 100.0 * r.ms / total.max(1e-9)),
                format!("{:.2}", r.gflops),
                format!("{:.2}", r.gbytes),
            ]
        })
        .collect();
    let table = table(&["kernel", "calls", "ms", "%", "GFLOP/s", "GB/s"], &cells);
    format!("{table}\n{} submits, the longest {:.0} ms", submits.count, submits.longest_ms)
}

/// Rows of a plan for a table.
pub(super) fn plan_rows(items: &[PlanItem]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> =
        items.iter().map(|i| vec![i.item.to_string(), i.bytes.to_string()]).collect();
    rows.push(vec!["total".into(), total(items).to_string()]);
    rows
}

/// A bar on a terminal; elsewhere a line every ten seconds, so that logs stay readable.
pub(super) struct Progress {
    bar: ProgressBar,
    /// The bars that are shown together.
    all: MultiProgress,
    what: String,
    total: u64,
    plain: bool,
    started: Instant,
    last: Instant,
}

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    fn with(all: MultiProgress, what: String, total: u64, hidden: bool, plain: bool) -> Self {
        let bar = if hidden { ProgressBar::hidden() } else { all.add(ProgressBar::new(total)) };
        let template = "{prefix} [{bar:30}] {pos}/{len} {per_sec} left {eta}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.clone());
        let now = Instant::now();
        Self { bar, all, what, total, plain, started: now, last: now }
    }
}

/// Progress over `total` units of `what`.
pub(super) fn show_progress(what: &str, total: u64, quiet: bool) -> Progress {
    let terminal = std::io::stderr().is_terminal();
    let plain = !quiet && !terminal;
    Progress::with(MultiProgress::new(), what.into(), total, quiet || !terminal, plain)
}

impl Task for Progress {
    fn line(&self, text: &dyn Fn() -> String) {
        if self.plain {
            eprintln!("{}", text());
        } else if !self.bar.is_hidden() {
            // Nothing is lost where the terminal is gone.
            let _ = self.all.println(text());
        }
    }

    fn at(&mut self, done: u64, message: &dyn Fn() -> String) {
        if self.plain {
            if self.last.elapsed() >= LINE_EVERY {
                self.last = Instant::now();
                let rate = done as f64 / self.started.elapsed().as_secs_f64();
                let left = (self.total - done.min(self.total)) as f64 / rate.max(1e-9);
                let (what, total) = (&self.what, self.total);
                eprintln!("{what} {done}/{total}  {rate:.2}/s  {left:.0} s left  {}", message());
            }
        } else if !self.bar.is_hidden() {
            self.bar.set_message(message());
            self.bar.set_position(done);
        }
    }

    fn inner(&self, what: &str, total: u64) -> Box<dyn Task> {
        Box::new(Self::with(self.all.clone(), what.into(), total, self.bar.is_hidden(), self.plain))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
