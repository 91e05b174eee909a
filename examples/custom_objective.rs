//! Learns a mask for an objective that the crate does not have: Huber's loss of the blocks' outputs, in which outliers count for less than
//! in their squared error. It is computed on the host, which takes no shader; one made of the kernels of `maskwright::kernel` stays on the
//! device.
//!
//!     cargo run --example custom_objective -- models/village

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use maskwright::calib::Segments;
use maskwright::gpu::{Commands, GpuOptions};
use maskwright::kernel::Kernels;
use maskwright::mask::Pattern;
use maskwright::prune::learn::{BlockObjective, BlockOutput, Objective, Stage, Trains};
use maskwright::prune::{OneShot, OneShotOptions, PruneError, Session};

/// The square of an error up to `limit`, a straight line beyond it.
struct Huber {
    limit: f32,
    /// Of each block the values that were asked for without a derivative: under its start mask, then under what was learned.
    measured: RefCell<BTreeMap<usize, Vec<f64>>>,
}

impl BlockObjective for Huber {
    fn measure<'g>(
        &self,
        _: &Kernels<'g>,
        c: &mut Commands<'g>,
        output: BlockOutput<'_>,
        share: f32,
    ) -> Result<f64, PruneError> {
        let (mut y, target) = (output.y.download(c)?, output.target.download(c)?);
        let (row, mut value) = (4 * output.y.t4, 0.0);
        for (i, (y, target)) in y.iter_mut().zip(target).enumerate() {
            let off = if output.layout.is_padding(i % row) { 0.0 } else { *y - target };
            let inside = off.clamp(-self.limit, self.limit);
            value += f64::from(inside * (2.0 * off - inside));
            *y = share * 2.0 * inside;
        }
        if share == 0.0 {
            self.measured.borrow_mut().entry(output.block).or_default().push(value);
        } else {
            output.y.upload(c, &y)?;
        }
        Ok(value)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("give a model folder with calib.txt in it")?;
    custom_objective(Path::new(&model), 64, 40)?;
    Ok(())
}

/// Learns from `windows` windows in `steps` steps a block. Returns each block's loss under its start mask and under the learned one.
pub fn custom_objective(folder: &Path, windows: usize, steps: u32) -> Result<Vec<[f64; 2]>, Box<dyn Error>> {
    let model = Session::open(folder, GpuOptions::default())?;
    let text = model.sample(&folder.join("calib.txt"), Segments::Sequential, windows, 64)?;
    let pattern = Pattern::new(2, 4)?;
    let start = model.choose(&OneShotOptions::new(pattern, OneShot::Wanda), &text, |_| ())?;

    let huber = Huber { limit: 0.1, measured: RefCell::default() };
    let stage = Stage { steps, ..Stage::new(pattern, Trains::Relaxed, Objective::Block) };
    model.learn_toward(&stage, &huber, &start, &text, |_| ControlFlow::Continue(()))?;

    let mut losses = Vec::new();
    for (block, values) in huber.measured.into_inner() {
        let (before, after) = values.split_at(values.len() / 2);
        let [before, after] = [before, after].map(|values| values.iter().sum::<f64>());
        println!("block {block}: {before:.3} under the start mask, {after:.3} under the learned one");
        losses.push([before, after]);
    }
    Ok(losses)
}
