//! `maskwright report`, and the report that `prune` writes and shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::context::DeviceArgs;
use super::{CliError, Outcome, help};
use crate::folder::RunPaths;
use crate::fsio::{FsError, OutputFile};
use crate::report::{Given, Live, Page, ReportError, Run, Server};

#[derive(clap::Args)]
#[command(after_help = help::REPORT)]
pub(super) struct Args {
    /// Folders of runs, also of unfinished ones
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page to write; not in a folder of a run
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that is there already
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, CliError> {
    let runs: Vec<&Path> = args.runs.iter().map(PathBuf::as_path).collect();
    let out = OutputFile::check(&args.out, &runs, args.force)?;
    out.write_bytes(Page::read(&args.runs)?.html().as_bytes())?;
    println!("written: {}", args.out.display());
    Ok(Outcome::Done)
}

/// Writes the report of those of the `runs` that came to an end into `folder`. One that cannot be written is no reason to lose them.
pub(super) fn beside(runs: &[PathBuf], folder: &Path) {
    let finished: Vec<&PathBuf> = runs.iter().filter(|run| RunPaths::new(run).run().is_file()).collect();
    if finished.is_empty() {
        return;
    }
    if let Err(e) = Page::read(&finished).and_then(|page| page.write(&RunPaths::new(folder).report())) {
        log::warn!("the runs are kept, but their report could not be written: {e}");
    }
}

/// Options of a run.
#[derive(clap::Args)]
pub(super) struct ReportArgs {
    /// Do not write report.html
    #[arg(long)]
    no_report: bool,
    /// Show the report in the browser while the run goes on; on this machine only, unless another address is given
    /// [default: it is not shown; without an address 127.0.0.1:8350]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:8350")]
    serve: Option<String>,
}

impl ReportArgs {
    /// Takes the address of `--serve` and begins to answer there, for the run that will write to `folder`.
    pub(super) fn serve(
        &self,
        device: &DeviceArgs,
        folder: &Path,
        config: &str,
    ) -> Result<Reporting, CliError> {
        let live = match &self.serve {
            Some(address) => {
                let server = Server::bind(address)?;
                device.note(|| format!("the report is shown at {}", server.url()));
                let live = Arc::new(Live::new(folder, config));
                server.start(live.clone());
                Some(live)
            }
            None => None,
        };
        Ok(Reporting { write: !self.no_report, config: config.into(), live })
    }
}

/// What becomes of the report of a run.
pub(super) struct Reporting {
    write: bool,
    config: String,
    live: Option<Arc<Live>>,
}

impl Reporting {
    /// What is known of the run, as `run.json` will begin.
    pub(super) fn tell(&self, info: &Map<String, Value>) {
        if let Some(live) = &self.live {
            live.tell(Value::Object(info.clone()));
        }
    }

    /// Writes the report of the run in `folder` before its `run.json`, as whose content, or the first part of it when the run is not
    /// `finished`, stands `info`. A report that cannot be written is no reason to lose the run.
    pub(super) fn write(&self, folder: &Path, info: Value, finished: bool) {
        if !self.write {
            return;
        }
        let given = Given { info, config: self.config.clone(), finished };
        let path = RunPaths::new(folder).report();
        // A name like "." says nothing.
        let folder = folder.canonicalize().map_err(|e| FsError::os("read", folder, e));
        let page = folder.map_err(ReportError::from).and_then(|folder| Run::read(&folder, Some(&given)));
        if let Err(e) = page.and_then(|run| Page::new(vec![run]).write(&path)) {
            log::warn!("the run is kept, but its report could not be written: {e}");
        }
    }
}
