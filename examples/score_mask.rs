//! Reads a mask file, checks it against the model that it is for, and says how much of the weights it keeps:
//!
//!     cargo run --example score_mask -- models/village runs/first/mask.safetensors
//!
//! No GPU is used.

use std::error::Error;
use std::path::Path;

use maskwright::mask::MaskFile;
use maskwright::model::{Architecture, Checkpoint};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, mask] = &args[..] else {
        return Err("give a model folder and a mask file".into());
    };
    for (name, share) in score_mask(Path::new(model), Path::new(mask))? {
        println!("{:.1} % of the magnitude of {name} is kept", 100.0 * share);
    }
    Ok(())
}

/// The share of each projection's summed magnitudes that its mask keeps, in the model's order.
pub fn score_mask(model: &Path, mask: &Path) -> Result<Vec<(String, f64)>, Box<dyn Error>> {
    let config = Architecture::read(model)?;
    let checkpoint = Checkpoint::open(model, &config)?;
    let projections = config.projections();
    // The tool's own files, and the .npz of MaskLLM's tools.
    let file = MaskFile::open(mask, &projections, None)?;
    // Exactly N of every M weights, for projections of this model, in its shapes.
    file.set.check()?;
    file.set.check_model(&config)?;
    let differing = file.differing_sources(&checkpoint)?;
    println!(
        "{} by {}, made for {} other tensors",
        file.set.pattern,
        file.provenance.method,
        differing.len()
    );

    let mut shares = Vec::new();
    for projection in projections {
        // A projection without a mask is dense.
        let Some(mask) = file.set.get(&projection.name) else { continue };
        let weights = checkpoint.tensor(&projection.name)?.to_f32();
        let (mut kept, mut all) = (0.0, 0.0);
        for (i, weight) in weights.iter().enumerate() {
            let magnitude = f64::from(weight.abs());
            all += magnitude;
            if mask.get(i / projection.cols, i % projection.cols) {
                kept += magnitude;
            }
        }
        shares.push((projection.name, kept / all));
    }
    Ok(shares)
}
