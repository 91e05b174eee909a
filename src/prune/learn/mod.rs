//! Learning by backpropagation through masks, block by block or through the whole model.

mod blockwise;
mod dispatch;
mod endtoend;
pub(super) mod layer;
mod learn_loop;
mod logits;
mod objective;
mod options;
pub mod plan;
mod run;
mod sink;
mod state;
mod steps;
mod tokens;
mod walk;

pub use learn_loop::{LearnLoop, Learning, State};
pub use objective::{BlockObjective, BlockOutput};
pub use options::{At, ModelLoss, Objective, Relaxing, Residency, Stage, TokenWeights, Trains};
pub use run::StageRun;

use std::collections::BTreeMap;
use std::num::NonZero;

use crate::calib::{PythonRandom, Windows};
use crate::gpu::Commands;
use crate::kernel::{Activation, Kernels, Masking, Rows, f32_bytes};
use crate::model::{Architecture, Checkpoint, ModelError, TensorView};
use crate::nn::{Access, Activations, BlockWeights, TensorSource, Tensors, TrainPass, TrainSpace};
use crate::prune::PruneError;

/// Windows, in whole batches, on which a stage compares what it started from with what it came to.
const MEASURED: usize = 128;

/// Replaces the residual stream of all windows by what the dense model's last block puts out.
///
/// # Errors
/// What the device reports.
pub fn dense_outputs<'g>(
    kernels: &Kernels<'g>,
    c: &mut Commands<'g>,
    config: &Architecture,
    dense: &Checkpoint,
    stream: &mut Activations<'g>,
) -> Result<(), PruneError> {
    let (gpu, sizes) = (kernels.gpu(), stream.sizes().clone());
    let ws = TrainSpace::new(gpu, config, &sizes)?;
    let y = Activation::new(gpu, "activations:output", config.hidden_size, sizes.layout.t4())?;
    for index in 0..config.num_layers {
        let block = BlockWeights::upload(gpu, dense, config, index)?;
        let linears = block.train_linears(|_| Masking::Dense);
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        stream.each(c, access, |c, batch| {
            let layout = batch.layout;
            let pass = TrainPass { kernels, config, ws: &ws, layout, block: &block, linears };
            let y = y.rows(0, config.hidden_size, layout.t4())?;
            pass.forward(c, batch.x, y)?;
            copy_rows(c, y, batch.x)
        })?;
    }
    Ok(())
}

fn copy_rows(c: &mut Commands<'_>, from: Rows<'_>, to: Rows<'_>) -> Result<(), PruneError> {
    Ok(c.copy(from.buffer, 0, to.buffer, 0, f32_bytes(from.count, 4 * from.t4))?)
}

/// A checkpoint with some tensors replaced in memory.
struct Fitted<'a> {
    base: Tensors<'a>,
    weights: &'a BTreeMap<String, Vec<u8>>,
}

impl TensorSource for Fitted<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let view = self.base.tensor(name)?;
        Ok(match self.weights.get(name) {
            Some(data) => TensorView { data, ..view },
            None => view,
        })
    }
}

/// Numbers `0..count` in an order that depends on the seed (Fisher and Yates).
fn permutation(seed: u64, count: usize) -> Vec<usize> {
    let mut random = PythonRandom::new(seed);
    let mut out: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        if let Some(n) = NonZero::new(i as u64 + 1) {
            out.swap(i, random.randbelow(n) as usize);
        }
    }
    out
}

/// The minibatch of a step: every epoch takes each once, in an order of its own.
fn minibatch_order(seed: u64, block: usize, step: u32, minibatches: usize) -> usize {
    let epoch = step as usize / minibatches;
    let seed = seed ^ ((block as u64 + 1) << 40) ^ ((epoch as u64 + 1) << 20);
    permutation(seed, minibatches)[step as usize % minibatches]
}

/// Windows in whole minibatches.
///
/// # Errors
/// [`PruneError::TooFewWindows`] for less than one minibatch.
pub fn whole_minibatches(windows: usize, batch: usize) -> Result<usize, PruneError> {
    match windows.checked_div(batch) {
        None | Some(0) => Err(PruneError::TooFewWindows { windows, batch }),
        Some(whole) => Ok(whole * batch),
    }
}

/// The windows in an order that depends on the seed, so that a minibatch is not one piece of text; without those behind the last whole
/// minibatch.
///
/// # Errors
/// [`PruneError::TooFewWindows`] for less than one minibatch.
pub fn shuffled(windows: &Windows, seed: u64, batch: usize) -> Result<Windows, PruneError> {
    let whole = whole_minibatches(windows.count(), batch)?;
    if whole < windows.count() {
        let all = windows.count();
        log::warn!(
            "training takes {whole} of the {all} calibration windows: they go in whole minibatches of {batch}"
        );
    }
    let order = permutation(seed, windows.count());
    let tokens = order.iter().take(whole).filter_map(|&i| windows.get(i)).flatten().copied().collect();
    Ok(Windows::new(tokens, windows.window())?)
}
