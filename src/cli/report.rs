//! `maskwright report`, and the report that `prune` writes and shows.

use std::path::{Path, PathBuf};

use super::{CliError, Outcome, help};
use crate::folder::RunPaths;
use crate::fsio::OutputFile;
use crate::report::Page;

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
