//! The norms of the features that projections read, in one pass of the dense model over calibration windows.

use super::stop::Stop;
use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::Pattern;
use crate::model::{Architecture, Checkpoint, Overlay};
use crate::nn::{Activations, Embedding, Keep};
use crate::prune::plan::Carried;
use crate::prune::{
    BlockResult, InputNorms, Inputs, OneShot, OneShotOptions, PruneError, Schedule, Selection, Watch,
};

/// Tokens that are enough: norms are means over all of them.
const TOKENS: usize = 1 << 16;
/// Windows that are taken all the same, where they are long.
const WINDOWS: usize = 16;

/// How many of `count` windows of `window` tokens the norms are taken from.
pub fn windows_for_norms(count: usize, window: usize) -> usize {
    (TOKENS / window.max(1)).max(WINDOWS).min(count)
}

/// The walk that takes them: Wanda's, of which only the norms are used.
pub fn norms_options(pattern: Pattern) -> OneShotOptions {
    OneShotOptions { inputs: Inputs::Dense, ..OneShotOptions::new(pattern, OneShot::Wanda) }
}

/// Takes the norms of the inputs of the selected projections on `windows`, carried as said; `progress` is told of parts done of all, and
/// `stop` ends it.
///
/// # Errors
/// What the device reports; [`PruneError::Stopped`].
pub fn input_norms<'g>(
    kernels: &Kernels<'g>,
    (config, checkpoint): (&Architecture, &Checkpoint),
    selection: &Selection,
    (windows, carried): (&Windows, Carried),
    pattern: Pattern,
    stop: &Stop<'_>,
    progress: impl FnMut(usize),
) -> Result<InputNorms, PruneError> {
    let gpu = kernels.gpu();
    let (sizes, embedding) = (carried.sizes(gpu, config), Embedding::new(checkpoint, config)?);
    let activations =
        Activations::embed(gpu, &embedding, windows.tokens(), sizes, carried.place, Keep::Inputs)?;
    let (tensors, options) = (Overlay::new(checkpoint), norms_options(pattern));
    let schedule =
        Schedule { kernels, config, tensors: &tensors, selection, options: &options, starts: None };
    let mut keeper = Keeper { norms: InputNorms::default(), stop, progress };
    schedule.run(&mut Commands::new(gpu)?, Some(activations), &[], &mut keeper)?;
    Ok(keeper.norms)
}

struct Keeper<'a, P> {
    norms: InputNorms,
    stop: &'a Stop<'a>,
    progress: P,
}

impl<P: FnMut(usize)> Watch for Keeper<'_, P> {
    fn stop(&self) -> bool {
        (self.stop)()
    }

    fn block(&mut self, result: BlockResult) -> Result<(), PruneError> {
        self.norms.insert(result.block, result.squared_norms);
        (self.progress)(result.block + 1);
        Ok(())
    }
}
