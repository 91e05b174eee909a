//! Learns a 2:4 mask for a model, measures it, and writes it with the masked model:
//!
//!     cargo run --example learn_mask -- models/village village-24

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use maskwright::calib::Segments;
use maskwright::gpu::GpuOptions;
use maskwright::mask::{Pattern, Provenance};
use maskwright::prune::learn::{Objective, Stage, Trains};
use maskwright::prune::{OneShot, OneShotOptions, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = &args[..] else {
        return Err("give a model folder with calib.txt and heldout.txt in it, and a new folder".into());
    };
    learn_mask(Path::new(model), Path::new(out), 256, 60)?;
    Ok(())
}

/// Learns from `windows` windows in `steps` steps a block. Returns the perplexities: dense, of the start mask, of the learned one.
pub fn learn_mask(folder: &Path, out: &Path, windows: usize, steps: u32) -> Result<[f64; 3], Box<dyn Error>> {
    let model = Session::open(folder, GpuOptions::default())?;
    println!("{}", model.gpu().describe());

    // Random windows of 128 tokens to learn on, and other text, from its start, to measure on.
    let text = model.sample(&folder.join("calib.txt"), Segments::Random { seed: 0 }, windows, 128)?;
    let heldout = model.sample(&folder.join("heldout.txt"), Segments::Sequential, windows, 128)?;

    // A start mask by exact group descent on each projection's output error.
    let pattern = Pattern::new(2, 4)?;
    let start = model.choose(&OneShotOptions::new(pattern, OneShot::Descent), &text, |projection| {
        println!("{}: {:.4}", projection.name, projection.error.unwrap_or(f64::NAN));
    })?;

    // One logit per weight, trained block by block.
    let stage = Stage { steps, ..Stage::new(pattern, Trains::Relaxed, Objective::Block) };
    let masks = model.learn(&stage, &start, &text, |step| {
        if step.step + 1 == step.steps {
            println!("block {}: loss {:.4}", step.block.unwrap_or(0), step.loss);
        }
        ControlFlow::Continue(())
    })?;

    let found = model.evaluate(&masks, &heldout)?;
    let before = model.evaluate(&start, &heldout)?.model.perplexity;
    println!(
        "perplexity {:.3} dense, {before:.3} under the start mask, {:.3} under the learned one; {:.4} nats from dense",
        found.dense.perplexity, found.model.perplexity, found.kl
    );

    let provenance = Provenance::new("relaxed", stage.seed);
    model.export(&masks, &provenance, &out.join("model"))?;
    model.write_mask(&masks, &provenance, &out.join("mask.safetensors"))?;
    Ok([found.dense.perplexity, before, found.model.perplexity])
}
