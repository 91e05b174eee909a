//! Scores on the host, for logits that start from them.

use std::collections::BTreeMap;

use super::PruneError;
use super::oneshot::Input;
use crate::mask::Pattern;
use crate::model::{Checkpoint, Projection, ProjectionKind, TensorView};

/// How a weight is scored.
#[derive(Clone, Copy)]
pub enum Score<'a> {
    /// `|W_ij|`.
    Magnitude,
    /// `|W_ij| * ||X_j||` (Sun et al. 2023, arXiv 2306.11695).
    Wanda(&'a InputNorms),
}

/// Euclidean norms of the input features of projections over the calibration tokens.
#[derive(Default)]
pub struct InputNorms {
    of_inputs: BTreeMap<(usize, usize), Vec<f32>>,
}

impl InputNorms {
    /// Takes the squared norms of each input of a block, where there are any.
    pub fn insert(&mut self, block: usize, squared: [Option<Vec<f32>>; 4]) {
        for (input, squares) in squared.into_iter().enumerate() {
            if let Some(squares) = squares {
                let norms = squares.into_iter().map(|s| s.max(0.0).sqrt()).collect();
                self.of_inputs.insert((block, input), norms);
            }
        }
    }

    /// The norms of a projection's inputs `[in_features]`; empty where they were not taken.
    pub fn of(&self, block: usize, kind: ProjectionKind) -> &[f32] {
        self.of_inputs.get(&(block, Input::of(kind) as usize)).map_or(&[], Vec::as_slice)
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
