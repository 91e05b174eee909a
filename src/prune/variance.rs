//! Mean and variance of the three policy-gradient estimators at fixed logits, measured over K samples of one model.
//!
//! All three estimate the same gradient (MaskPro, theorem 2: unbiased; Var tracked <= Var residual < Var loss as long as
//! f(m) > f(m_0) / 2). The tracker is warmed up on samples that are not counted, then goes on as in training.

use super::maskpro::{Learner, Step};
use super::{PruneError, Selection};
use crate::kernel::{Moments, f32_bytes};
use crate::mask::Pattern;
use crate::model::Projection;
use crate::nn::{MemoryPlan, PlanItem};

/// Result for one estimator.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EstimatorMoments {
    /// "loss", "residual" or "tracked".
    pub estimator: &'static str,
    /// Norm of the mean estimate: the gradient, plus what is left of the noise.
    pub mean_norm: f64,
    /// Total variance of one estimate: sum over all logits.
    pub variance: f64,
    /// Standard error of the mean in the same norm, sqrt(variance / samples).
    pub standard_error: f64,
    /// Mean of the advantages.
    pub advantage_mean: f64,
    /// Standard deviation of the advantages.
    pub advantage_sd: f64,
    /// Mean estimate of every logit, projection by projection.
    #[serde(skip)]
    pub mean: Vec<f64>,
}

/// The names of the estimators, in the order of the moments.
pub const ESTIMATORS: [&str; 3] = ["loss", "residual", "tracked"];

/// What measuring takes beside the run's own plan `gpu` and `host`: two sums of every logit and estimator on the device, their means in f64
/// on the host.
pub fn plan(mut gpu: Vec<PlanItem>, mut host: Vec<PlanItem>, selection: &Selection) -> MemoryPlan {
    let pruned = selection.projections();
    let sums = |p: &Projection| 2 * ESTIMATORS.len() as u64 * f32_bytes(p.rows, p.cols);
    let all: u64 = pruned.iter().map(sums).sum();
    gpu.push(PlanItem::new("statistics", all));
    host.push(PlanItem::new("statistics", all + pruned.iter().map(sums).max().unwrap_or(0)));
    MemoryPlan { gpu, host }
}

fn advantages(step: &Step) -> [f64; 3] {
    [step.loss, step.residual, step.residual - step.tracker]
}

/// Draws `warm_up` masks for the tracker, then `samples` that are counted; `progress` is called with the number drawn.
///
/// # Errors
/// What the device reports; tensors too large to bind at once (this is for small models).
pub fn measure(
    learner: &mut Learner<'_, '_, '_>,
    pattern: Pattern,
    warm_up: u32,
    samples: u32,
    mut progress: impl FnMut(u32),
) -> Result<Vec<EstimatorMoments>, PruneError> {
    for i in 0..warm_up {
        learner.measure()?;
        progress(i + 1);
    }
    let moments = {
        let (decoder, _, _, _, selection) = learner.parts();
        let gpu = decoder.kernels.gpu();
        let new = |p: &Projection| {
            let bytes = 12 * p.rows as u64 * p.cols as u64;
            let sums = gpu.alloc("statistics:gradient sums", bytes)?;
            let squares = gpu.alloc("statistics:gradient squares", bytes)?;
            Ok(Moments { sums, squares })
        };
        selection.pruned.iter().map(|(_, p)| new(p)).collect::<Result<Vec<_>, PruneError>>()?
    };
    let mut scalars = [[0.0f64; 2]; 3];
    for i in 0..samples {
        let step = learner.measure()?;
        let a = advantages(&step);
        for (s, a) in scalars.iter_mut().zip(a) {
            s[0] += a;
            s[1] += a * a;
        }
        let (decoder, commands, logits, bank, selection) = learner.parts();
        for (((index, _), logits), moments) in selection.pruned.iter().zip(logits).zip(&moments) {
            if let Some(mask) = bank.get(*index) {
                let a = a.map(|v| v as f32);
                decoder.kernels.score_moments(commands, pattern, logits, mask, a, moments)?;
            }
        }
        progress(warm_up.saturating_add(i).saturating_add(1));
    }
    read(learner, &moments, &scalars, samples)
}

fn read(
    learner: &mut Learner<'_, '_, '_>,
    moments: &[Moments],
    scalars: &[[f64; 2]; 3],
    samples: u32,
) -> Result<Vec<EstimatorMoments>, PruneError> {
    let k = f64::from(samples.max(1));
    let mut means: [Vec<f64>; 3] = Default::default();
    let mut variances = [0.0f64; 3];
    let (_, commands, _, _, selection) = learner.parts();
    for ((_, p), m) in selection.pruned.iter().zip(moments) {
        let len = p.rows * p.cols;
        let sums: Vec<f32> = commands.read(&m.sums, 0, 3 * len)?;
        let squares: Vec<f32> = commands.read(&m.squares, 0, 3 * len)?;
        for e in 0..3 {
            for (s, q) in sums[e * len..(e + 1) * len].iter().zip(&squares[e * len..(e + 1) * len]) {
                let mean = f64::from(*s) / k;
                means[e].push(mean);
                variances[e] += (f64::from(*q) / k - mean * mean).max(0.0) * k / (k - 1.0).max(1.0);
            }
        }
    }
    let row = |e: usize, mean: Vec<f64>| {
        let advantage_mean = scalars[e][0] / k;
        EstimatorMoments {
            estimator: ESTIMATORS[e],
            mean_norm: mean.iter().map(|v| v * v).sum::<f64>().sqrt(),
            variance: variances[e],
            standard_error: (variances[e] / k).sqrt(),
            advantage_mean,
            advantage_sd: (scalars[e][1] / k - advantage_mean * advantage_mean).max(0.0).sqrt(),
            mean,
        }
    };
    Ok(means.into_iter().enumerate().map(|(e, mean)| row(e, mean)).collect())
}
