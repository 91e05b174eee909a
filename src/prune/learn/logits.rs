//! Logits of one projection under training: where they start, the soft mask they make, and the mask they end with.

use std::ops::Range;

use half::f16;

use super::options::{At, Stage, Trains};
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernel::{
    AdamState, Kernels, Learn, Masking, Noise, Rows, SampleAt, Soft, SoftPatterns, SoftTopN, StateType,
    Weight,
};
use crate::mask::BitMask;
use crate::mask::soft::{best_patterns, logits_of, pattern_logits, top_of};
use crate::nn::NnError;
use crate::prune::PruneError;

/// Logits of a projection `[rows, cols]`, a logit per weight or per pattern, and the moments of their optimiser.
pub(super) struct Logits {
    buffer: Buffer,
    /// None for the policy gradient.
    moments: Option<AdamState>,
    /// Number of the projection among the model's: its noise is its own.
    number: u32,
    shape: (usize, usize),
}

/// Logits of a projection.
fn count(stage: &Stage, rows: usize, cols: usize) -> usize {
    match stage.trains {
        Trains::MaskLlm => rows * (cols / stage.pattern.m()) * stage.pattern.combinations() as usize,
        Trains::Relaxed | Trains::Joint | Trains::MaskPro => rows * cols,
        Trains::ProxSparse | Trains::Weights => 0,
    }
}

/// How they are kept.
fn state_type(stage: &Stage) -> StateType {
    if stage.trains.relaxed() { stage.state } else { StateType::F32 }
}

/// Values as a state of that type holds them.
fn encode(state: StateType, values: &[f32]) -> Vec<u8> {
    match state {
        StateType::F32 => bytemuck::cast_slice(values).to_vec(),
        StateType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
    }
}

impl Logits {
    /// Logits that start from a mask; none where `stage` trains weights.
    ///
    /// # Errors
    /// When the device has no room, or the mask does not fit the pattern.
    pub(super) fn new(
        gpu: &Gpu,
        stage: &Stage,
        name: &str,
        number: u32,
        start: &BitMask,
    ) -> Result<Option<Self>, PruneError> {
        let values = match stage.trains {
            Trains::Relaxed | Trains::Joint | Trains::MaskPro => logits_of(start, stage.logits),
            Trains::MaskLlm => pattern_logits(start, stage.pattern, stage.prior, stage.seed, number)?,
            Trains::ProxSparse | Trains::Weights => return Ok(None),
        };
        let state = state_type(stage);
        let buffer = gpu.alloc_init(&format!("logits:{name}"), &encode(state, &values))?;
        let moments = match stage.trains {
            Trains::MaskPro => None,
            _ => Some(AdamState::new(gpu, &format!("moments:{name}"), values.len(), state)?),
        };
        Ok(Some(Self { buffer, moments, number, shape: (start.rows(), start.cols()) }))
    }

    /// Bytes on the device: of the logits, of the moments.
    pub(super) fn bytes(stage: &Stage, rows: usize, cols: usize) -> (u64, u64) {
        let values = count(stage, rows, cols);
        let bytes = ((values * state_type(stage).size()) as u64).next_multiple_of(16);
        (bytes, if stage.trains == Trains::MaskPro { 0 } else { 2 * bytes })
    }

    /// On the device.
    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The soft mask of step `at`; none for the policy gradient.
    pub(super) fn masking<'a>(&'a self, stage: &Stage, at: &At) -> Option<Masking<'a>> {
        let noise = (at.noise > 0.0).then_some(Noise {
            at: SampleAt { seed: stage.seed, step: at.adam.step, projection: self.number },
            scale: at.noise,
        });
        let (pattern, temperature, logits) = (stage.pattern, at.temperature, &self.buffer);
        match stage.trains {
            Trains::Relaxed | Trains::Joint => {
                let (state, relaxation) = (stage.state, at.relaxation);
                Some(Masking::TopN(SoftTopN { pattern, logits, state, temperature, relaxation, noise }))
            }
            Trains::MaskLlm => {
                Some(Masking::Patterns(SoftPatterns { pattern, logits, temperature, scale: at.kappa, noise }))
            }
            _ => None,
        }
    }

    /// One step of the optimiser on some rows, from the gradient of their effective weights; [`Trains::Joint`] makes of that the gradient
    /// of the weights themselves.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn update(
        &self,
        kernels: &Kernels<'_>,
        c: &mut Commands<'_>,
        (stage, at): (&Stage, &At),
        weight: &Weight,
        gradient: Rows<'_>,
        rows: Range<usize>,
    ) -> Result<(), NnError> {
        let soft = match self.masking(stage, at) {
            Some(Masking::TopN(soft)) => Soft::TopN(soft),
            Some(Masking::Patterns(soft)) => Soft::Patterns(soft, at.regulariser),
            _ => return Ok(()),
        };
        if let Some(moments) = &self.moments {
            let into = match stage.trains {
                Trains::Joint => Learn::Joint(moments, at.adam),
                _ => Learn::Step(moments, at.adam),
            };
            kernels.learn_logits(c, weight, soft, gradient, rows, into)?;
        }
        Ok(())
    }

    /// The mask that they have come to; ties go to the lower index.
    ///
    /// # Errors
    /// What the device reports; a value that is not a number.
    pub(super) fn mask(&self, c: &mut Commands<'_>, stage: &Stage) -> Result<BitMask, PruneError> {
        let (rows, cols) = self.shape;
        let values = count(stage, rows, cols);
        let values: Vec<f32> = match state_type(stage) {
            StateType::F32 => c.read(&self.buffer, 0, values)?,
            StateType::F16 => {
                let bits: Vec<u16> = c.read(&self.buffer, 0, values)?;
                bits.into_iter().map(|b| f16::from_bits(b).to_f32()).collect()
            }
        };
        let mask = match stage.trains {
            Trains::MaskLlm => best_patterns(rows, cols, stage.pattern, &values)?,
            _ => top_of(rows, cols, stage.pattern, &values)?,
        };
        mask.check(stage.pattern)?;
        Ok(mask)
    }

    /// Everything that changes during training, under names that begin with `name`.
    pub(super) fn changing(&self, name: &str) -> Vec<(String, &Buffer)> {
        let mut out = vec![(format!("{name}.logits"), &self.buffer)];
        if let Some(moments) = &self.moments {
            out.push((format!("{name}.mask.first_moment"), &moments.first));
            out.push((format!("{name}.mask.second_moment"), &moments.second));
        }
        out
    }
}
