//! Tables, progress and numbers for people.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::context::DeviceArgs;
use crate::eval::Estimate;
use crate::gpu::Gpu;

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

/// "1.23 MiB (1289748 bytes)".
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.2} {} ({n} bytes)", units[unit]) }
}

/// With `--profile` the kernel times, as a table on standard error; where JSON is printed they are in it ([`with_profile`]).
pub(super) fn show_profile(device: &DeviceArgs, gpu: &Gpu, json: bool) {
    if device.profile && !json {
        eprintln!("{}", profile(gpu));
    }
}

/// `out`, with `--profile` also the kernel times.
pub(super) fn with_profile(mut out: Value, device: &DeviceArgs, gpu: &Gpu) -> Value {
    if device.profile {
        let submits = gpu.submits();
        out["profile"] = gpu.profile().into_iter().map(|row| json!(row)).collect();
        out["submits"] = json!({ "count": submits.count, "longest_ms": submits.longest_ms });
    }
    out
}

/// The kernel times of `--profile`.
pub(super) fn profile(gpu: &Gpu) -> String {
    let (rows, submits) = (gpu.profile(), gpu.submits());
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
    /// Progress over `total` units of `what`.
    pub(super) fn new(what: &str, total: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let plain = !quiet && !terminal;
        Self::with(MultiProgress::new(), what.into(), total, quiet || !terminal, plain)
    }

    /// A bar below this one.
    pub(super) fn inner(&self, what: String, total: u64) -> Self {
        Self::with(self.all.clone(), what, total, self.bar.is_hidden(), self.plain)
    }

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

    /// A line that stays, above the bars.
    pub(super) fn line(&self, text: impl FnOnce() -> String) {
        if self.plain {
            eprintln!("{}", text());
        } else if !self.bar.is_hidden() {
            // Nothing is lost where the terminal is gone.
            let _ = self.all.println(text());
        }
    }

    /// `done` units are done; `message` says how it goes.
    pub(super) fn at(&mut self, done: u64, message: impl FnOnce() -> String) {
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

    /// Removes the bar.
    pub(super) fn end(self) {
        self.bar.finish_and_clear();
    }
}
