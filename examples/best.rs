//! The best recipe, as `maskwright prune --recipe best` runs it, with a line for every block:
//!
//!     cargo run --example best -- models/village runs/best-example

use std::error::Error;
use std::path::Path;

use maskwright::run::{Finished, Observer, Recipe, RunPlan, RunSpec, Task, Unwatched};

/// Prints what goes on; of a task only the lines that stay.
struct Lines;

impl Observer for Lines {
    fn note(&self, text: &str) {
        println!("{text}");
    }

    fn task(&self, _: &str, _: u64) -> Box<dyn Task> {
        Box::new(Self)
    }
}

impl Task for Lines {
    fn at(&mut self, _: u64, _: &dyn Fn() -> String) {}

    fn line(&self, text: &dyn Fn() -> String) {
        println!("{}", text());
    }

    fn inner(&self, _: &str, _: u64) -> Box<dyn Task> {
        Box::new(Unwatched)
    }
}

/// Learns with `steps` steps of each objective on `windows` windows of the folder's calib.txt, measured on `measured` windows of
/// its heldout.txt (none: all).
pub fn best(
    folder: &Path,
    out: &Path,
    windows: usize,
    steps: u32,
    measured: Option<usize>,
) -> Result<Finished, Box<dyn Error>> {
    let mut spec = RunSpec::new(folder);
    spec.recipe = Some(Recipe::Best);
    spec.calib = Some(folder.join("calib.txt"));
    spec.eval = Some(folder.join("heldout.txt"));
    spec.eval_windows = measured;
    spec.out = Some(out.into());
    spec.windows.windows = Some(windows);
    spec.windows.window = Some(128);
    spec.learn.steps = vec![steps];
    let finished = RunPlan::new(spec, &Lines)?.execute()?;
    for row in &finished.results {
        println!("{}: perplexity {:.3}", row.model, row.perplexity);
    }
    Ok(finished)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = &args[..] else {
        return Err("give a model folder with calib.txt and heldout.txt in it, and a new folder".into());
    };
    best(Path::new(model), Path::new(out), 128, 60, None)?;
    Ok(())
}
