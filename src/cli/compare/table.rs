//! The comparison: as JSON, as a table, as Markdown.

use std::path::Path;
use std::time::Instant;

use super::row::{Dense, Found, Row};
use super::{Job, file_name};
use crate::cli::CliError;
use crate::cli::output::table;
use crate::fsio::{shown, write_bytes};
use crate::mask::Pattern;

const HEAD: [&str; 9] = [
    "method",
    "perplexity",
    "ratio",
    "KL to dense",
    "top-1 as dense",
    "steps",
    "seconds",
    "peak MiB",
    "mask",
];

/// What compare.json holds.
#[derive(serde::Serialize)]
pub(super) struct Comparison {
    version: &'static str,
    adapter: String,
    preset: &'static str,
    model: String,
    calib: String,
    eval: String,
    pattern: Pattern,
    windows: usize,
    window: usize,
    segments: &'static str,
    seed: u64,
    /// Seconds for the steps of a learning method, where they were chosen by time.
    budget: Option<f64>,
    dense: Option<Dense>,
    methods: Vec<Row>,
    /// Since the beginning.
    seconds: f64,
}

impl Comparison {
    pub(super) fn new(job: &Job<'_>, adapter: String, preset: &'static str) -> Self {
        let args = job.args;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            adapter,
            preset,
            model: shown(&args.model),
            calib: shown(&args.calib),
            eval: shown(&args.eval),
            pattern: args.select.pattern,
            windows: job.calib.count(),
            window: job.calib.window(),
            segments: job.choice.name(),
            seed: args.windows.seed,
            budget: args.steps.is_none().then_some(args.budget),
            dense: None,
            methods: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Takes in a line of a comparison that was `started` then.
    pub(super) fn add(&mut self, row: Row, started: Instant) {
        self.dense = self.dense.or(row.found.as_ref().map(|found| found.dense));
        self.methods.push(row);
        self.seconds = started.elapsed().as_secs_f64();
    }

    /// Methods without a good result, and why.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.methods.iter().filter_map(|row| Some((row.method.as_str(), row.error.as_deref()?)))
    }

    /// Writes compare.json and compare.md.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CliError> {
        let json = format!("{:#}\n", serde_json::json!(self));
        write_bytes(&folder.join("compare.json"), json.as_bytes())?;
        let mut lines = vec![HEAD.map(str::to_string).join(" | ")];
        // The first column is left-aligned, the others right-aligned.
        lines.push(format!("---{}", " | ---:".repeat(HEAD.len() - 1)));
        lines.extend(self.rows().iter().map(|row| row.join(" | ")));
        let mut text: String = lines.iter().map(|line| format!("| {line} |\n")).collect();
        for note in self.notes() {
            text.push_str(&format!("\n{note}\n"));
        }
        Ok(write_bytes(&folder.join("compare.md"), text.as_bytes())?)
    }

    /// For a terminal.
    pub(super) fn text(&self) -> String {
        format!("{}\n{}", table(&HEAD, &self.rows()), self.notes().join("\n"))
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let words = |words: [&str; 9]| words.map(str::to_string).to_vec();
        let mut out = Vec::new();
        if let Some(dense) = self.dense {
            let mut row = words(["dense", "", "1", "0", "100 %", "", "", "", ""]);
            if let Some(cell) = row.get_mut(1) {
                *cell = format!("{:.4}", dense.perplexity);
            }
            out.push(row);
        }
        out.extend(self.methods.iter().map(|row| match &row.found {
            Some(found) => self.row(&row.method, found),
            None => words([&row.method, "-", "-", "-", "-", "-", "-", "-", "failed"]),
        }));
        out
    }

    fn row(&self, method: &str, found: &Found) -> Vec<String> {
        let mask = match (found.strict, found.interrupted) {
            (true, false) => format!("strict {}", self.pattern),
            (true, true) => format!("strict {}, interrupted", self.pattern),
            (false, _) => "wrong".to_string(),
        };
        vec![
            method.to_string(),
            format!("{:.4}", found.perplexity),
            format!("{:.4}", found.perplexity_ratio),
            format!("{:.4}", found.kl_to_dense),
            format!("{:.1} %", 100.0 * found.top1_agreement),
            found.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            format!("{:.1}", found.method_seconds),
            format!("{:.1}", found.peak_bytes as f64 / f64::from(1 << 20)),
            mask,
        ]
    }

    /// What all have in common, and what went wrong.
    fn notes(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(dense) = self.dense {
            let learned = self.budget.map_or(String::new(), |s| format!(", learned in {s} s of steps"));
            out.push(format!(
                "measured on {} windows of {} tokens of {}; masks from {} {} windows of {} tokens of {}{learned}; {:.0} s in all",
                dense.windows,
                dense.window,
                file_name(Path::new(&self.eval)),
                self.windows,
                self.segments,
                self.window,
                file_name(Path::new(&self.calib)),
                self.seconds
            ));
        }
        out.push(format!("{}, preset {}", self.adapter, self.preset));
        out.extend(self.failed().map(|(method, reason)| format!("{method}: {reason}")));
        out
    }
}
