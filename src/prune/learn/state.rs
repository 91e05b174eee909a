//! What training keeps of one block: logits, weights, moments of the optimiser; and what of it makes the effective weights.

use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;

use super::options::{At, Stage, Trains};
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernel::{
    AdamState, Kernels, MaskBuffer, Masking, Noise, Rows, SampleAt, SoftPatterns, SoftTopN, StateType,
    Weight, f32_bytes,
};
use crate::mask::soft::{best_patterns, logits_of, pattern_logits, top_of};
use crate::mask::{BitMask, MaskSet};
use crate::model::{Config, Dtype, Projection, ProjectionKind, TensorView, encode};
use crate::nn::{BlockWeights, NnError, Tensors, TrainLinear};
use crate::prune::{PruneError, Selection};

/// Number of projections of a block.
const KINDS: usize = ProjectionKind::ALL.len();

/// One projection under training.
struct Trained {
    projection: Projection,
    /// Number among the model's projections: its noise is its own.
    number: u32,
    logits: Option<Buffer>,
    moments: Option<AdamState>,
    /// The weights under training, in f32.
    weight: Option<Weight>,
    weight_moments: Option<AdamState>,
    /// The fixed mask, or the one drawn last.
    mask: Option<MaskBuffer>,
}

/// One block under training.
pub struct BlockState {
    trained: [Option<Trained>; KINDS],
    /// Masks of projections that the stage does not train.
    fixed: [Option<MaskBuffer>; KINDS],
}

/// Values as a state of that type holds them.
fn encode_state(state: StateType, values: &[f32]) -> Vec<u8> {
    match state {
        StateType::F32 => bytemuck::cast_slice(values).to_vec(),
        StateType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
    }
}

fn read_state(
    c: &mut Commands<'_>,
    state: StateType,
    buffer: &Buffer,
    values: usize,
) -> Result<Vec<f32>, PruneError> {
    Ok(match state {
        StateType::F32 => c.read(buffer, 0, values)?,
        StateType::F16 => {
            let bits: Vec<u16> = c.read(buffer, 0, values)?;
            bits.into_iter().map(|b| f16::from_bits(b).to_f32()).collect()
        }
    })
}

/// Patterns of a group.
fn combinations(stage: &Stage) -> usize {
    stage.pattern.combinations() as usize
}

/// Bytes of one projection's part of a [`BlockState`]: logits, weights and moments, masks.
fn projection_bytes(stage: &Stage, rows: usize, cols: usize) -> [(&'static str, u64); 4] {
    let align = |bytes: u64| bytes.next_multiple_of(16);
    let weights = align(f32_bytes(rows, cols));
    let logits = match stage.trains {
        Trains::Relaxed => align((rows * cols * stage.state.size()) as u64),
        Trains::MaskLlm => align(f32_bytes(rows * cols / stage.pattern.m(), combinations(stage))),
        Trains::MaskPro => weights,
        Trains::ProxSparse | Trains::Weights => 0,
    };
    let moments = match stage.trains {
        Trains::MaskPro => 0,
        Trains::ProxSparse | Trains::Weights => 2 * weights,
        Trains::Relaxed | Trains::MaskLlm => 2 * logits,
    };
    let trained = match stage.trains {
        Trains::Weights | Trains::ProxSparse => weights,
        _ => 0,
    };
    let masks = match stage.trains {
        Trains::Weights | Trains::MaskPro => align(MaskBuffer::device_bytes(rows, cols)),
        _ => 0,
    };
    [("logits", logits), ("moments", moments), ("weights", trained), ("masks", masks)]
}

impl BlockState {
    /// State of block `index` at the first step. Weights under training start as `tensors` has them.
    ///
    /// # Errors
    /// A mask that `start` lacks, or no room on the device.
    pub fn new(
        gpu: &Gpu,
        stage: &Stage,
        config: &Config,
        index: usize,
        tensors: Tensors<'_>,
        selection: &Selection,
        start: &MaskSet,
    ) -> Result<Self, PruneError> {
        let mut out = Self { trained: Default::default(), fixed: Default::default() };
        for kind in ProjectionKind::ALL {
            let p = config.projection(index, kind);
            let mask = start.get(&p.name);
            let Some(&(number, _)) = selection.pruned.iter().find(|(_, s)| s.name == p.name) else {
                let label = format!("masks:{}", p.name);
                let upload = |m| MaskBuffer::upload(gpu, &label, m);
                out.fixed[kind as usize] = mask.map(upload).transpose()?;
                continue;
            };
            let Some(mask) = mask else {
                let reason = format!("the start mask lacks {}", p.name);
                return Err(PruneError::NothingToPrune { reason });
            };
            out.trained[kind as usize] = Some(Trained::new(gpu, stage, p, number as u32, tensors, mask)?);
        }
        Ok(out)
    }

    /// Bytes of [`BlockState::new`] by plan item.
    pub fn bytes(
        stage: &Stage,
        config: &Config,
        index: usize,
        selection: &Selection,
    ) -> BTreeMap<&'static str, u64> {
        let mut out = BTreeMap::new();
        for kind in ProjectionKind::ALL {
            let p = config.projection(index, kind);
            if selection.pruned.iter().any(|(_, s)| s.name == p.name) {
                for (item, bytes) in projection_bytes(stage, p.rows, p.cols) {
                    *out.entry(item).or_default() += bytes;
                }
            }
        }
        out
    }

    /// Whether the projection is under training.
    pub fn trains(&self, kind: ProjectionKind) -> bool {
        self.trained[kind as usize].is_some()
    }

    /// (rows, columns) of the projections under training.
    pub fn shapes(&self) -> impl Iterator<Item = (ProjectionKind, usize, usize)> + '_ {
        let shape = |kind: ProjectionKind| {
            let t = self.trained[kind as usize].as_ref()?;
            Some((kind, t.projection.rows, t.projection.cols))
        };
        ProjectionKind::ALL.into_iter().filter_map(shape)
    }

    /// The projections as step `at` sees them.
    pub fn linears<'a>(
        &'a self,
        stage: &'a Stage,
        at: &At,
        weights: &'a BlockWeights,
    ) -> [TrainLinear<'a>; KINDS] {
        let mut out = weights.train_linears(|kind| Masking::from(self.fixed[kind as usize].as_ref()));
        for kind in ProjectionKind::ALL {
            if let Some(t) = &self.trained[kind as usize] {
                let linear = &mut out[kind as usize];
                linear.masking = t.masking(stage, at);
                if let Some(weight) = &t.weight {
                    linear.weight = weight;
                }
            }
        }
        out
    }

    /// Draws the masks of a step of the policy gradient.
    ///
    /// # Errors
    /// What the device reports.
    pub fn sample(
        &self,
        kernels: &Kernels<'_>,
        c: &mut Commands<'_>,
        stage: &Stage,
        step: u32,
    ) -> Result<(), PruneError> {
        for t in self.trained.iter().flatten() {
            if let (Some(logits), Some(mask)) = (&t.logits, &t.mask) {
                let at = SampleAt { seed: stage.seed, step, projection: t.number };
                kernels.mask_sample(c, stage.pattern, logits, mask, at)?;
            }
        }
        Ok(())
    }

    /// Moves the logits by the policy gradient.
    ///
    /// # Errors
    /// What the device reports.
    pub fn reinforce(
        &self,
        kernels: &Kernels<'_>,
        c: &mut Commands<'_>,
        stage: &Stage,
        step_size: f32,
    ) -> Result<(), PruneError> {
        for t in self.trained.iter().flatten() {
            if let (Some(logits), Some(mask)) = (&t.logits, &t.mask) {
                kernels.mask_update(c, stage.pattern, logits, mask, step_size)?;
            }
        }
        Ok(())
    }

    /// One step of the optimiser on some rows of a projection, from the gradient of their effective weights.
    ///
    /// # Errors
    /// What the device reports.
    #[allow(clippy::too_many_arguments)] // what a step is made of
    pub fn update(
        &self,
        kernels: &Kernels<'_>,
        c: &mut Commands<'_>,
        stage: &Stage,
        at: &At,
        weights: &BlockWeights,
        kind: ProjectionKind,
        gradient: Rows<'_>,
        rows: Range<usize>,
    ) -> Result<(), NnError> {
        let Some(t) = &self.trained[kind as usize] else {
            return Ok(());
        };
        let weight = &weights.linears[kind as usize].weight;
        match (t.masking(stage, at), &t.moments) {
            (Masking::TopN(soft), Some(moments)) => {
                kernels.adam_mask(c, weight, soft, gradient, rows, moments, at.adam)?;
            }
            (Masking::Patterns(soft), Some(moments)) => {
                kernels.adam_patterns(c, weight, soft, at.regulariser, gradient, rows, moments, at.adam)?;
            }
            _ => {
                if let (Some(own), Some(moments)) = (&t.weight, &t.weight_moments) {
                    let mask = t.mask.as_ref();
                    kernels.adam_weight(c, own, mask, gradient, rows.clone(), moments, at.adam)?;
                    if stage.trains == Trains::ProxSparse {
                        kernels.prox24(c, own, rows, stage.lambda)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything that changes during training, by name: for checkpoints, and for blocks that wait in host memory.
    ///
    /// # Errors
    /// What the device reports.
    pub fn snapshot(&self, c: &mut Commands<'_>) -> Result<BTreeMap<String, Vec<u8>>, PruneError> {
        let mut out = BTreeMap::new();
        for t in self.trained.iter().flatten() {
            for (name, buffer) in t.changing() {
                out.insert(name, c.read(buffer, 0, buffer.bytes() as usize)?);
            }
        }
        Ok(out)
    }

    /// Takes back a snapshot.
    ///
    /// # Errors
    /// [`PruneError::Snapshot`] for one of other tensors, or what the device reports.
    pub fn restore(
        &self,
        c: &mut Commands<'_>,
        snapshot: &BTreeMap<String, Vec<u8>>,
    ) -> Result<(), PruneError> {
        for t in self.trained.iter().flatten() {
            for (name, buffer) in t.changing() {
                match snapshot.get(&name) {
                    Some(data) if data.len() as u64 == buffer.bytes() => c.write(buffer, 0, data)?,
                    _ => return Err(PruneError::Snapshot { tensor: name }),
                }
            }
        }
        Ok(())
    }

    /// The masks that the logits or the weights have come to; ties go to the lower index.
    ///
    /// # Errors
    /// What the device reports; a value that is not a number.
    pub fn masks(
        &self,
        c: &mut Commands<'_>,
        stage: &Stage,
    ) -> Result<BTreeMap<String, BitMask>, PruneError> {
        let mut out = BTreeMap::new();
        for t in self.trained.iter().flatten() {
            let (rows, cols) = (t.projection.rows, t.projection.cols);
            let top = |values: &[f32]| top_of(rows, cols, stage.pattern, values);
            let mask = match (stage.trains, &t.logits, &t.weight) {
                (Trains::MaskLlm, Some(logits), _) => {
                    let count = rows * (cols / stage.pattern.m()) * combinations(stage);
                    let values: Vec<f32> = c.read(logits, 0, count)?;
                    best_patterns(rows, cols, stage.pattern, &values)?
                }
                (_, Some(logits), _) => top(&read_state(c, stage.state, logits, rows * cols)?)?,
                (Trains::ProxSparse, None, Some(weight)) => {
                    let sizes: Vec<f32> = weight.read(c)?.into_iter().map(f32::abs).collect();
                    top(&sizes)?
                }
                _ => continue,
            };
            mask.check(stage.pattern)?;
            out.insert(t.projection.name.clone(), mask);
        }
        Ok(out)
    }

    /// The weights under training in the types of `tensors`, pruned where `masks` prunes.
    ///
    /// # Errors
    /// What the device reports; a weight that is not finite.
    pub fn weights(
        &self,
        c: &mut Commands<'_>,
        stage: &Stage,
        tensors: Tensors<'_>,
        masks: &MaskSet,
    ) -> Result<BTreeMap<String, Vec<u8>>, PruneError> {
        let mut out = BTreeMap::new();
        for t in self.trained.iter().flatten().filter(|_| stage.trains.weights()) {
            let (Some(weight), p) = (&t.weight, &t.projection) else {
                continue;
            };
            let mut values = weight.read(c)?;
            if let Some(mask) = masks.get(&p.name) {
                for (i, value) in values.iter_mut().enumerate() {
                    if !mask.get(i / p.cols, i % p.cols) {
                        *value = 0.0;
                    }
                }
            }
            let dtype = tensors.tensor(&p.name)?.dtype;
            let bytes = encode(dtype, &values);
            let shape = [p.rows, p.cols];
            TensorView { name: &p.name, dtype, shape: &shape, data: &bytes }.check_finite()?;
            out.insert(p.name.clone(), bytes);
        }
        Ok(out)
    }
}

impl Trained {
    fn new(
        gpu: &Gpu,
        stage: &Stage,
        projection: Projection,
        number: u32,
        tensors: Tensors<'_>,
        mask: &BitMask,
    ) -> Result<Self, PruneError> {
        let name = projection.name.clone();
        let (rows, cols) = (projection.rows, projection.cols);
        let label = |item: &str| format!("{item}:{name}");
        let logits = match stage.trains {
            Trains::Relaxed => {
                let values = logits_of(mask, stage.logits);
                Some(gpu.alloc_init(&label("logits"), &encode_state(stage.state, &values))?)
            }
            Trains::MaskPro => Some(gpu.alloc_init(&label("logits"), &logits_of(mask, stage.logits))?),
            Trains::MaskLlm => {
                let values = pattern_logits(mask, stage.pattern, stage.prior, stage.seed, number)?;
                Some(gpu.alloc_init(&label("logits"), &values)?)
            }
            Trains::ProxSparse | Trains::Weights => None,
        };
        let moments = match (&logits, stage.trains) {
            (Some(_), Trains::Relaxed) => {
                Some(AdamState::new(gpu, &label("moments"), rows * cols, stage.state)?)
            }
            (Some(_), Trains::MaskLlm) => {
                let values = rows * (cols / stage.pattern.m()) * combinations(stage);
                Some(AdamState::new(gpu, &label("moments"), values, StateType::F32)?)
            }
            _ => None,
        };
        let weight = match stage.trains {
            Trains::Weights | Trains::ProxSparse => {
                let mut values = tensors.tensor(&name)?.to_f32();
                if stage.trains == Trains::Weights {
                    for (i, value) in values.iter_mut().enumerate() {
                        if !mask.get(i / cols, i % cols) {
                            *value = 0.0;
                        }
                    }
                }
                let shape = [rows, cols];
                let data = bytemuck::cast_slice(&values);
                let view = TensorView { name: &name, dtype: Dtype::F32, shape: &shape, data };
                Some(Weight::upload(gpu, &label("weights"), &view)?)
            }
            _ => None,
        };
        let weight_moments = match &weight {
            Some(_) => Some(AdamState::new(gpu, &label("moments"), rows * cols, StateType::F32)?),
            None => None,
        };
        let mask = match stage.trains {
            Trains::Weights | Trains::MaskPro => Some(MaskBuffer::upload(gpu, &label("masks"), mask)?),
            _ => None,
        };
        Ok(Self { projection, number, logits, moments, weight, weight_moments, mask })
    }

    /// What its weights are multiplied with in step `at`.
    fn masking<'a>(&'a self, stage: &'a Stage, at: &At) -> Masking<'a> {
        let noise = (at.noise > 0.0).then(|| Noise {
            at: SampleAt { seed: stage.seed, step: at.adam.step, projection: self.number },
            scale: at.noise,
        });
        let (pattern, temperature) = (stage.pattern, at.temperature);
        match (stage.trains, &self.logits, &self.mask) {
            (Trains::Relaxed, Some(logits), _) => {
                let (state, relaxation) = (stage.state, at.relaxation);
                Masking::TopN(SoftTopN { pattern, logits, state, temperature, relaxation, noise })
            }
            (Trains::MaskLlm, Some(logits), _) => {
                Masking::Patterns(SoftPatterns { pattern, logits, temperature, scale: at.kappa, noise })
            }
            (Trains::MaskPro, _, Some(mask)) => Masking::Bits(mask),
            // Trained weights are zero where they are pruned.
            _ => Masking::Dense,
        }
    }

    fn changing(&self) -> Vec<(String, &Buffer)> {
        let name = &self.projection.name;
        let mut out = Vec::new();
        if let Some(logits) = &self.logits {
            out.push((format!("{name}.logits"), logits));
        }
        for (what, moments) in [("mask", &self.moments), ("weight", &self.weight_moments)] {
            if let Some(moments) = moments {
                out.push((format!("{name}.{what}.first_moment"), &moments.first));
                out.push((format!("{name}.{what}.second_moment"), &moments.second));
            }
        }
        if let Some(weight) = &self.weight {
            out.extend(weight.buffers().enumerate().map(|(i, b)| (format!("{name}.weight.{i}"), b)));
        }
        out
    }
}
