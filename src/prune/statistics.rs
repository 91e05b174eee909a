//! What a solver knows of the input of some projections, and its room to work with it.

use std::ops::Range;

use super::PruneError;
use super::learn::layer;
use super::oneshot::{OneShot, OneShotOptions, Repair};
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernel::{
    Activation, Descent, GramFactor, Kernels, LstsqScratch, SparseGptScratch, Square, Weight, cut, f32_bytes,
};

/// What is known of the input, and room to work with it.
pub(super) struct Statistics<'a> {
    pub(super) h: &'a Square,
    pub(super) diagonal: Buffer,
    pub(super) factor: Option<(GramFactor, f64)>,
    pub(super) products: Activation,
    pub(super) change: Activation,
    pub(super) errors: Buffer,
    pub(super) moves: Option<Buffer>,
    pub(super) sparsegpt: Option<SparseGptScratch>,
    pub(super) lstsq: Option<LstsqScratch>,
    /// Rows that there is room for.
    panel: usize,
}

impl<'a> Statistics<'a> {
    /// Makes them.
    ///
    /// # Errors
    /// When the device has no room, or the matrix cannot be factored.
    pub(super) fn new<'g>(
        kernels: &Kernels<'g>,
        c: &mut Commands<'g>,
        options: &OneShotOptions,
        h: &'a Square,
        rows: usize,
    ) -> Result<Self, PruneError> {
        let (gpu, n) = (kernels.gpu(), h.n());
        let panel = cut::panel_rows(gpu.limits(), rows, n);
        let diagonal = gpu.alloc("statistics:squared norms", f32_bytes(1, n))?;
        kernels.diagonal(c, h, &diagonal)?;
        let (factor, sparsegpt) = if options.method == OneShot::SparseGpt {
            let factor = GramFactor::new(gpu, "statistics:factor", n)?;
            let used = kernels.factor(c, h, options.damp, &factor)?;
            (Some((factor, used)), Some(SparseGptScratch::new(gpu, panel, n)?))
        } else {
            (None, None)
        };
        let moves = match options.descends() {
            true => Some(Descent::moves(gpu, panel)?),
            false => None,
        };
        Ok(Self {
            h,
            diagonal,
            factor,
            products: Activation::new(gpu, "scratch:products", panel, n / 4)?,
            change: Activation::new(gpu, "scratch:change", panel, n / 4)?,
            errors: gpu.alloc("scratch:row errors", f32_bytes(1, panel))?,
            moves,
            sparsegpt,
            lstsq: match options.repair {
                Repair::Lstsq => Some(LstsqScratch::new(gpu, panel, n)?),
                _ => None,
            },
            panel,
        })
    }

    /// The rows of a projection, panel by panel.
    pub(super) fn panels(&self, weight: &Weight) -> impl Iterator<Item = Range<usize>> + use<> {
        cut::pieces(0..weight.rows(), self.panel)
    }

    /// Bytes of statistics (without `h` itself) and of scratch that [`Statistics::new`] takes.
    pub(super) fn bytes(gpu: &Gpu, options: &OneShotOptions, rows: usize, n: usize) -> (u64, u64) {
        let panel = cut::panel_rows(gpu.limits(), rows, n);
        let mut scratch = 2 * f32_bytes(panel, n) + f32_bytes(1, panel).next_multiple_of(16);
        if let Some(stage) = &options.learn {
            scratch += layer::scratch_bytes(stage, panel, n);
        }
        if options.descends() {
            scratch += Descent::moves_bytes(panel).next_multiple_of(16);
        }
        let mut statistics = f32_bytes(1, n).next_multiple_of(16);
        if options.method == OneShot::SparseGpt {
            statistics += GramFactor::device_bytes(gpu, n);
            scratch += SparseGptScratch::bytes(panel, n);
        }
        if options.repair == Repair::Lstsq {
            scratch += LstsqScratch::bytes(panel, n);
        }
        (statistics, scratch)
    }
}
