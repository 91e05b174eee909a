//! What training keeps of one block: logits, weights, moments of the optimiser; and what of it makes the effective weights.

use std::collections::BTreeMap;
use std::ops::Range;

use super::logits::Logits;
use super::options::{At, Stage, Trains};
use super::run::StageRun;
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernel::{AdamState, Kernels, MaskBuffer, Masking, Rows, SampleAt, StateType, Weight, f32_bytes};
use crate::mask::soft::top_of;
use crate::mask::{BitMask, MaskSet};
use crate::model::{Architecture, Dtype, Projection, ProjectionKind, TensorView};
use crate::nn::{BlockWeights, NnError, Tensors, TrainLinears};
use crate::prune::stored::stored;
use crate::prune::{PruneError, Selection};

/// Number of projections of a block.
const KINDS: usize = ProjectionKind::ALL.len();

/// One projection under training.
struct Trained {
    projection: Projection,
    /// Number among the model's projections: its noise is its own.
    number: u32,
    logits: Option<Logits>,
    /// The weights under training, in f32.
    weight: Option<Weight>,
    weight_moments: Option<AdamState>,
    /// The fixed mask, or the one drawn last.
    mask: Option<MaskBuffer>,
}

/// One block under training.
pub(super) struct BlockState {
    trained: [Option<Trained>; KINDS],
    /// Masks of projections that the stage does not train.
    fixed: [Option<MaskBuffer>; KINDS],
}

/// Bytes of one projection's part of a [`BlockState`]: logits, weights and moments, masks.
fn projection_bytes(stage: &Stage, rows: usize, cols: usize) -> [(&'static str, u64); 4] {
    let align = |bytes: u64| bytes.next_multiple_of(16);
    let weights = align(f32_bytes(rows, cols));
    let (logits, of_logits) = Logits::bytes(stage, rows, cols);
    let trained = match stage.trains {
        Trains::Weights | Trains::ProxSparse | Trains::Joint => weights,
        _ => 0,
    };
    let moments = of_logits + 2 * trained;
    let masks = match stage.trains {
        Trains::Weights | Trains::MaskPro => align(MaskBuffer::device_bytes(rows, cols)),
        _ => 0,
    };
    [("logits", logits), ("moments", moments), ("weights", trained), ("masks", masks)]
}

impl BlockState {
    /// State of block `index` at the first step of `run`. Weights under training start as `run.tensors` has them.
    ///
    /// # Errors
    /// A mask that `run.start` lacks, or no room on the device.
    pub fn new(run: &StageRun<'_, '_>, index: usize) -> Result<Self, PruneError> {
        let StageRun { kernels, config, tensors, selection, stage, start, .. } = *run;
        let gpu = kernels.gpu();
        let mut out = Self { trained: Default::default(), fixed: Default::default() };
        for p in config.block_projections(index) {
            let kind = p.kind;
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
        config: &Architecture,
        index: usize,
        selection: &Selection,
    ) -> BTreeMap<&'static str, u64> {
        let mut out = BTreeMap::new();
        for p in config.block_projections(index) {
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
    pub fn linears<'a>(&'a self, stage: &'a Stage, at: &At, weights: &'a BlockWeights) -> TrainLinears<'a> {
        let mut out = weights.train_linears(|kind| Masking::from(self.fixed[kind as usize].as_ref()));
        for kind in ProjectionKind::ALL {
            if let (Some(t), Some(linear)) = (&self.trained[kind as usize], &mut out[kind as usize]) {
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
                kernels.mask_sample(c, stage.pattern, logits.buffer(), mask, at)?;
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
                kernels.mask_update(c, stage.pattern, logits.buffer(), mask, step_size)?;
            }
        }
        Ok(())
    }

    /// One step of the optimiser on some rows of a projection, from the gradient of their effective weights.
    ///
    /// # Errors
    /// What the device reports.
    pub fn update(
        &self,
        kernels: &Kernels<'_>,
        c: &mut Commands<'_>,
        (stage, at): (&Stage, &At),
        weights: &BlockWeights,
        kind: ProjectionKind,
        (gradient, rows): (Rows<'_>, Range<usize>),
    ) -> Result<(), NnError> {
        let Some(t) = &self.trained[kind as usize] else {
            return Ok(());
        };
        let weight = &weights.linear(kind)?.weight;
        if let Some(logits) = &t.logits {
            let of = t.weight.as_ref().unwrap_or(weight);
            logits.update(kernels, c, (stage, at), of, gradient, rows.clone())?;
        }
        if let (Some(own), Some(moments)) = (&t.weight, &t.weight_moments) {
            // Together with a mask the gradient is now the one by these weights.
            let adam = if stage.trains == Trains::Joint { at.weights } else { at.adam };
            kernels.adam_weight(c, own, t.mask.as_ref(), gradient, rows.clone(), (moments, adam))?;
            if stage.trains == Trains::ProxSparse {
                kernels.prox24(c, own, rows, stage.lambda)?;
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
            let mask = match (stage.trains, &t.logits, &t.weight) {
                (_, Some(logits), _) => logits.mask(c, stage)?,
                (Trains::ProxSparse, None, Some(weight)) => {
                    let sizes: Vec<f32> = weight.read(c)?.into_iter().map(f32::abs).collect();
                    let mask = top_of(t.projection.rows, t.projection.cols, stage.pattern, &sizes)?;
                    mask.check(stage.pattern)?;
                    mask
                }
                _ => continue,
            };
            out.insert(t.projection.name.clone(), mask);
        }
        Ok(out)
    }

    /// The weights under training in the types of `tensors`, pruned where `masks` prunes.
    ///
    /// # Errors
    /// What the device reports; a weight that is not finite, or that its type cannot hold ([`PruneError::Unstorable`]).
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
            let bytes = stored(&p.name, dtype, [p.rows, p.cols], &values, stage.clamp)?;
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
        let logits = Logits::new(gpu, stage, &name, number, mask)?;
        let weight = match stage.trains {
            Trains::Weights | Trains::ProxSparse | Trains::Joint => {
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
        Ok(Self { projection, number, logits, weight, weight_moments, mask })
    }

    /// What its weights are multiplied with in step `at`.
    fn masking<'a>(&'a self, stage: &Stage, at: &At) -> Masking<'a> {
        let soft = self.logits.as_ref().and_then(|logits| logits.masking(stage, at));
        // The policy gradient draws a mask; trained weights are zero where they are pruned.
        soft.unwrap_or(match (stage.trains, &self.mask) {
            (Trains::MaskPro, Some(mask)) => Masking::Bits(mask),
            _ => Masking::Dense,
        })
    }

    fn changing(&self) -> Vec<(String, &Buffer)> {
        let name = &self.projection.name;
        let mut out = self.logits.as_ref().map_or(Vec::new(), |logits| logits.changing(name));
        if let Some(moments) = &self.weight_moments {
            out.push((format!("{name}.weight.first_moment"), &moments.first));
            out.push((format!("{name}.weight.second_moment"), &moments.second));
        }
        if let Some(weight) = &self.weight {
            out.extend(weight.buffers().enumerate().map(|(i, b)| (format!("{name}.weight.{i}"), b)));
        }
        out
    }
}
