//! Walks over a model's blocks by its description, without a GPU: what a block computes, and its largest weights:
//!
//!     cargo run --example walk_blocks -- models/village

use std::error::Error;
use std::path::Path;

use maskwright::model;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("give a model folder")?;
    for (name, largest) in largest_weights(Path::new(&folder))? {
        println!("{name}: {largest:.4}");
    }
    Ok(())
}

/// The largest magnitude of every projection that is stored as a tensor of its own, block by block.
pub fn largest_weights(folder: &Path) -> Result<Vec<(String, f32)>, Box<dyn Error>> {
    let (architecture, checkpoint) = model::open(folder)?;
    let mut out = Vec::new();
    for block in 0..architecture.num_layers {
        let projections: Vec<_> = architecture.block_projections(block).collect();
        println!("block {block}: {} projections, {} features", projections.len(), architecture.hidden_size);
        for projection in projections {
            let Ok(tensor) = checkpoint.tensor(&projection.name) else { continue };
            let weights = tensor.to_f32();
            out.push((projection.name, weights.iter().fold(0.0, |most, w| w.abs().max(most))));
        }
    }
    Ok(out)
}
