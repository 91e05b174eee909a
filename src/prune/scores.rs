//! One-shot scores: magnitude and Wanda. Masks are made on the host, so they are exactly reproducible.

use std::collections::BTreeMap;

use super::{PruneError, Selection};
use crate::calib::Windows;
use crate::gpu::{Buffer, Commands};
use crate::kernel::Layout;
use crate::mask::{BitMask, MaskSet, Pattern};
use crate::model::{Checkpoint, Config, Projection, ProjectionKind, TensorView};
use crate::nn::{Batch, DENSE, Decoder, Observed, Workspace};

/// How a weight is scored.
#[derive(Clone, Copy)]
pub enum Score<'a> {
    /// `|W_ij|`.
    Magnitude,
    /// `|W_ij| * ||X_j||` (Sun et al. 2023, arXiv 2306.11695).
    Wanda(&'a InputNorms),
}

/// Euclidean norms of every input feature of every projection over the calibration tokens, under the dense model.
pub struct InputNorms {
    /// Per block: inputs of q k v, of o, of gate and up, of down.
    blocks: Vec<[Vec<f32>; 4]>,
}

fn input_of(kind: ProjectionKind) -> usize {
    use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
    match kind {
        Q | K | V => 0,
        O => 1,
        Gate | Up => 2,
        Down => 3,
    }
}

impl InputNorms {
    /// Runs the dense model over `windows` and collects the norms; `progress` is called with the windows done.
    ///
    /// # Errors
    /// What the device reports.
    pub fn collect<'g>(
        decoder: &Decoder<'g, '_>,
        c: &mut Commands<'g>,
        ws: &Workspace,
        windows: &Windows,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, PruneError> {
        let config = decoder.config;
        let queries = config.num_heads * config.head_dim;
        let widths = [config.hidden_size, queries, config.hidden_size, config.intermediate_size];
        let gpu = decoder.kernels.gpu();
        let sums: Vec<Buffer> = (0..config.num_layers)
            .flat_map(|_| widths)
            .map(|w| gpu.alloc("statistics:input norms", w as u64 * 4))
            .collect::<Result<_, _>>()?;
        let length = windows.window();
        let mut done = 0;
        for ids in windows.tokens().chunks(ws.sizes.layout.windows * length) {
            let layout = Layout { windows: ids.len() / length, length };
            let batch = Batch { ids: ids.to_vec(), layout };
            decoder.observe(c, ws, &batch, DENSE, &mut |c, block, which, x| {
                let (input, row) = match which {
                    Observed::Attention => (0, 0),
                    Observed::AttentionOutput => (1, 0),
                    Observed::FeedForward => (2, 0),
                    Observed::Down(first) => (3, first),
                };
                Ok(decoder.kernels.row_sumsq(c, x, layout, &sums[block * 4 + input], row)?)
            })?;
            c.finish()?;
            done += layout.windows;
            progress(done);
        }
        let mut blocks = Vec::with_capacity(config.num_layers);
        for four in sums.chunks_exact(4) {
            let mut norms: [Vec<f32>; 4] = Default::default();
            for ((norm, sum), width) in norms.iter_mut().zip(four).zip(widths) {
                let squares: Vec<f32> = c.read(sum, 0, width)?;
                *norm = squares.into_iter().map(f32::sqrt).collect();
            }
            blocks.push(norms);
        }
        Ok(Self { blocks })
    }

    /// The norms of a projection's inputs `[in_features]`.
    pub fn of(&self, block: usize, kind: ProjectionKind) -> &[f32] {
        &self.blocks[block][input_of(kind)]
    }

    /// What [`InputNorms::collect`] allocates.
    pub fn device_bytes(config: &Config) -> u64 {
        let queries = config.num_heads * config.head_dim;
        let widths = [config.hidden_size, queries, config.hidden_size, config.intermediate_size];
        let block: u64 = widths.iter().map(|&w| (w as u64 * 4).next_multiple_of(16)).sum();
        block * config.num_layers as u64
    }
}

/// Scores of one row of a projection, into `out` `[in_features]`.
fn score_row(view: &TensorView<'_>, p: &Projection, score: Score<'_>, row: usize, out: &mut [f32]) {
    if !view.row_f32(row, out) {
        out.fill(f32::NAN);
    }
    match score {
        Score::Magnitude => out.iter_mut().for_each(|w| *w = w.abs()),
        Score::Wanda(norms) => {
            for (w, n) in out.iter_mut().zip(norms.of(p.block, p.kind)) {
                *w = w.abs() * n;
            }
        }
    }
}

/// Start logits that know how sure the score is: `sharpness * ln(score / boundary)`, clamped to `+-limit / 2`, where the boundary
/// is the geometric mean of the lowest kept and the highest pruned score of the group. The most probable mask is the
/// score's; groups whose scores are close are drawn differently often, clear ones almost never.
///
/// # Errors
/// A tensor that the checkpoint lacks.
pub fn score_logits(
    checkpoint: &Checkpoint,
    p: &Projection,
    pattern: Pattern,
    score: Score<'_>,
    sharpness: f32,
    limit: f32,
) -> Result<Vec<f32>, PruneError> {
    let view = checkpoint.tensor(&p.name)?;
    let mut logits = vec![0.0; p.rows * p.cols];
    for (row, out) in logits.chunks_exact_mut(p.cols).enumerate() {
        score_row(&view, p, score, row, out);
        for group in out.chunks_exact_mut(pattern.m()) {
            // Zero scores become the smallest positive number: their logarithm is finite, and clamped.
            group.iter_mut().for_each(|s| *s = s.max(f32::MIN_POSITIVE).ln());
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let boundary = (sorted[pattern.n() - 1] + sorted[pattern.n()]) / 2.0;
            for s in group {
                *s = (sharpness * (*s - boundary)).clamp(-limit / 2.0, limit / 2.0);
            }
        }
    }
    Ok(logits)
}

/// The masks that keep the N highest scores of each group, ties to the lower index.
///
/// # Errors
/// A tensor that the checkpoint lacks; a NaN weight.
pub fn score_masks(
    checkpoint: &Checkpoint,
    selection: &Selection,
    pattern: Pattern,
    score: Score<'_>,
) -> Result<MaskSet, PruneError> {
    let mut masks = BTreeMap::new();
    for (_, p) in &selection.pruned {
        let view = checkpoint.tensor(&p.name)?;
        let mask = BitMask::top_n(p.rows, p.cols, pattern, |row, out| score_row(&view, p, score, row, out))?;
        masks.insert(p.name.clone(), mask);
    }
    Ok(MaskSet { pattern, masks })
}
