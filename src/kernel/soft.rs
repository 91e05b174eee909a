//! What the kernels that learn masks by backpropagation share: soft masks, states of optimisers, cuts along the rows.

use std::ops::Range;

use super::tensor::Chunk;
use super::{Kernels, SampleAt, Weight, cut, shape_error};
use crate::gpu::{Binding, Buffer, Gpu, GpuError};
use crate::mask::Pattern;

/// How the logits of a top-N mask and their moments are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StateType {
    /// 32 bits.
    F32,
    /// 16 bits, rounded at random (`shaders/shared/adam.wgsl`): parameters up to 65 504, moments of gradients from 1e-12 to 1.
    F16,
}

impl StateType {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Gumbel noise that is added to logits: exact in integers (`shaders/shared/gumbel.wgsl`) up to one conversion to f32.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// Which random numbers.
    pub at: SampleAt,
    /// What the noise is multiplied by.
    pub scale: f32,
}

/// How keys `a = (logit + noise) / temperature` become a soft top-N mask. For N = 1 all are the softmax.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Relaxation {
    /// N times `mu = softmax(a)`, `mask += mu`, `a += removal * log(1 - mu)` (`shaders/shared/soft.wgsl`; Xie and Ermon 2019).
    Rounds {
        /// 1 / tau where keys that are divided by tau get `log(1 - mu)` added before the division (Xie and Ermon; RoI): with
        /// `logit / lambda + Gumbel` as keys, `temperature` = lambda * tau, the noise's scale = lambda, `removal` = 1 / tau. From 1 on.
        /// With 1, a key that has won shares the next draw evenly with all others: masks do not become hard as the temperature falls.
        removal: f32,
    },
    /// The probability that a subset S of N keys has the key, `P(S)` proportional to `exp(sum of a over S)`: the law of greatest entropy
    /// (`shaders/shared/inclusion.wgsl`; SIMPLE, Ahmed et al., ICLR 2023).
    FixedSize,
    /// The probability that N draws without replacement, each by the softmax of the keys that are left, take the key
    /// (`shaders/shared/inclusion.wgsl`; Plackett and Luce, MaskPro). N at most [`Relaxation::MOST_DRAWS`].
    Draws,
}

impl Relaxation {
    /// The greatest N of [`Relaxation::Draws`].
    pub const MOST_DRAWS: usize = 2;

    /// The kernels' def: that of the rounds where all are the softmax.
    pub(super) fn def(self, pattern: Pattern) -> u32 {
        match self {
            _ if pattern.n() == 1 => 0,
            Self::Rounds { .. } => 0,
            Self::FixedSize => 1,
            Self::Draws => 2,
        }
    }

    pub(super) fn removal(self) -> f32 {
        match self {
            Self::Rounds { removal } => removal,
            Self::FixedSize | Self::Draws => 0.0,
        }
    }
}

/// A soft top-N mask.
#[derive(Clone, Copy)]
pub struct SoftTopN<'a> {
    /// Keep N of M.
    pub pattern: Pattern,
    /// `[rows, cols]`, unpadded.
    pub logits: &'a Buffer,
    /// Their type.
    pub state: StateType,
    /// What keys are divided by.
    pub temperature: f32,
    /// What makes a mask of the keys.
    pub relaxation: Relaxation,
    /// Added to the logits.
    pub noise: Option<Noise>,
}

/// A soft mask of explicit patterns: `y = softmax((scale * logit + noise) / temperature)`, mask = `sum_k y_k S_k` (MaskLLM).
#[derive(Clone, Copy)]
pub struct SoftPatterns<'a> {
    /// Keep N of M; at most [`SoftPatterns::MOST`] combinations.
    pub pattern: Pattern,
    /// `[rows, groups, combinations]`, patterns as `mask::rank` numbers them.
    pub logits: &'a Buffer,
    /// What keys are divided by.
    pub temperature: f32,
    /// MaskLLM's kappa.
    pub scale: f32,
    /// Added after the scale.
    pub noise: Option<Noise>,
}

impl SoftPatterns<'_> {
    /// Combinations of a group that the kernels hold.
    pub const MOST: u64 = 128;

    /// Combinations, and pairs of logits in a row of `weight`.
    pub(super) fn row_pairs(
        &self,
        kernel: &'static str,
        weight: &Weight,
    ) -> Result<(usize, usize), GpuError> {
        let (rows, cols, pattern) = (weight.rows(), weight.cols(), self.pattern);
        let count = pattern.combinations();
        if count > Self::MOST {
            return Err(shape_error(
                kernel,
                format!("{count} masks of a group of {pattern}: {} are the most", Self::MOST),
            ));
        }
        let values = count as usize * (cols / pattern.m());
        check(kernel, self.temperature, pattern, cols, self.logits, 4 * rows * values)?;
        Ok((count as usize, values / 2))
    }
}

impl SoftTopN<'_> {
    /// Elements of a row of the states of `weight`: groups of two, or quads.
    pub(super) fn row_elements(&self, kernel: &'static str, weight: &Weight) -> Result<usize, GpuError> {
        let (rows, cols) = (weight.rows(), weight.cols());
        if self.relaxation == Relaxation::Draws && self.pattern.n() > Relaxation::MOST_DRAWS {
            let most = Relaxation::MOST_DRAWS;
            return Err(shape_error(
                kernel,
                format!("draws for {}: N is at most {most}; use a subset of fixed size", self.pattern),
            ));
        }
        check(kernel, self.temperature, self.pattern, cols, self.logits, rows * cols * self.state.size())?;
        Ok(cols / element(self.pattern))
    }
}

fn check(
    kernel: &'static str,
    temperature: f32,
    pattern: Pattern,
    cols: usize,
    logits: &Buffer,
    bytes: usize,
) -> Result<(), GpuError> {
    if !cols.is_multiple_of(pattern.m()) || logits.bytes() < bytes as u64 || temperature <= 0.0 {
        return Err(shape_error(
            kernel,
            format!(
                "{pattern} for {cols} columns, {} bytes of logits for {bytes}, temperature {temperature}",
                logits.bytes()
            ),
        ));
    }
    Ok(())
}

/// The two moments of Adam for one tensor, in its layout.
pub struct AdamState {
    /// Mean of the gradients.
    pub first: Buffer,
    /// Mean of their squares (16 bits: its root).
    pub second: Buffer,
}

impl AdamState {
    /// Zeros for `values` values.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(gpu: &Gpu, label: &str, values: usize, state: StateType) -> Result<Self, GpuError> {
        let bytes = (values * state.size()) as u64;
        Ok(Self { first: gpu.alloc(label, bytes)?, second: gpu.alloc(label, bytes)? })
    }

    /// Bytes on the device.
    pub fn device_bytes(values: usize, state: StateType) -> u64 {
        2 * (values * state.size()) as u64
    }
}

/// Rows of one dispatch: in one chunk of the weight, and few enough to bind the states.
pub(super) struct Strip<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Strip<'_> {
    pub(super) fn rows(&self) -> usize {
        self.to - self.from
    }

    /// Its rows of a tensor with rows of `row_bytes`, and the bytes from the binding's start to the first row.
    pub(super) fn bind<'a>(&self, buffer: &'a Buffer, row_bytes: u64) -> (Binding<'a>, u64) {
        let bound = cut::bound(&(self.from..self.to), row_bytes, buffer.bytes());
        (buffer.range(bound.offset, bound.bytes), bound.skipped)
    }
}

impl Kernels<'_> {
    /// Cuts `rows` of a weight at its chunks, and where `row_bytes` bytes a row no longer fit one binding; at multiples of
    /// `unit` rows.
    pub(super) fn strips<'a>(
        &self,
        kernel: &'static str,
        weight: &'a Weight,
        rows: &Range<usize>,
        row_bytes: u64,
        unit: usize,
    ) -> Result<Vec<Strip<'a>>, GpuError> {
        let even = |chunk: &Chunk| chunk.first.is_multiple_of(unit);
        let inside = rows.end <= weight.rows() && rows.start <= rows.end && weight.chunks.iter().all(even);
        let Some(most) = cut::bound_rows(self.limits(), rows.len(), row_bytes, unit).filter(|_| inside)
        else {
            return Err(shape_error(
                kernel,
                format!("rows {rows:?} of {} with {row_bytes} bytes each, {unit} at once", weight.rows()),
            ));
        };
        let strips = |chunk| {
            let here = cut::pieces(cut::overlap(&Chunk::range(chunk), rows), most);
            here.map(move |r| Strip { chunk, from: r.start, to: r.end })
        };
        Ok(weight.chunks.iter().flat_map(strips).collect())
    }
}

/// Step, projection and seed of a noise, and its factor for noise in Q8.24 with the temperature in `gain`.
pub(super) struct NoiseParams {
    pub(super) step: u32,
    pub(super) projection: u32,
    pub(super) seed: [u32; 2],
    pub(super) factor: f32,
}

/// 1 / ln 2: the kernels' keys are in units of ln 2.
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;

pub(super) fn noise_params(noise: Option<Noise>, temperature: f32) -> NoiseParams {
    let at = noise.map_or(SampleAt { seed: 0, step: 0, projection: 0 }, |n| n.at);
    NoiseParams {
        step: at.step,
        projection: at.projection,
        seed: crate::mask::philox::key(at.seed),
        factor: noise.map_or(0.0, |n| n.scale) * LOG2_E / temperature / crate::mask::gumbel::FIXED_ONE as f32,
    }
}

pub(super) fn state_def(state: StateType) -> (&'static str, u32) {
    ("STATE", u32::from(state == StateType::F16))
}

/// Values of one element of the bound states: a quad, or a group of two.
pub(super) fn element(pattern: Pattern) -> usize {
    pattern.m().min(4)
}
