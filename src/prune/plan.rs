//! What a walk over the blocks takes: memory of device and host, item by item, and time.

use super::PruneError;
use super::Selection;
use super::cost::forward_flops;
use super::learn::{Objective, Stage, layer};
use super::oneshot::{Input, OneShot, OneShotOptions, Repair};
use super::solver::Solver;
use crate::gpu::{Gpu, PARAMS_BYTES, READ_PIECE};
use crate::kernel::{Kernels, MaskBuffer, Square, Weight, f32_bytes};
use crate::model::{Architecture, Dtype, ModelError};
use crate::nn::{Activations, BlockSpace, BlockWeights, Keep, Place, PlanItem, Sizes, total};

/// Activations of at most this many bytes are kept on the device where nobody says otherwise.
const ON_DEVICE: u64 = 4 << 30;
/// Iterations of the least squares that an estimate counts on.
const ITERATIONS: f64 = 40.0;

/// Windows that a walk carries through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Windows that go through a block together, at most.
    pub together: usize,
    /// Where their activations are kept.
    pub place: Place,
}

impl Carried {
    /// Takes fewer windows together, down to one, until their activations take at most `bytes` on the device.
    pub fn fit(&mut self, gpu: &Gpu, config: &Architecture, bytes: u64) {
        loop {
            let sizes = self.sizes(gpu, config);
            self.together = sizes.layout.windows;
            let taken = Activations::bytes(&sizes, self.windows, self.place, Keep::Inputs).0
                + BlockSpace::bytes(config, &sizes)
                + Activations::staging_bytes(&sizes, self.windows, self.place, Keep::Inputs);
            if taken <= bytes || self.together == 1 {
                return;
            }
            self.together = self.together.div_ceil(2);
        }
    }

    /// Sizes of the batches of a stage, of which whole ones make a minibatch; those of most windows first.
    pub fn sizes_for(&self, gpu: &Gpu, config: &Architecture, stage: &Stage) -> impl Iterator<Item = Sizes> {
        let most = self.sizes(gpu, config).layout.windows.min(stage.batch);
        (1..=most).rev().filter(|together| stage.batch.is_multiple_of(*together)).map(move |together| {
            let sizes = Self { together, ..*self }.sizes(gpu, config);
            match stage.objective {
                Objective::Model => sizes.for_model_training(config, gpu.limits()),
                Objective::Block | Objective::Layer => sizes,
            }
        })
    }

    /// Sizes of the batches.
    pub fn sizes(&self, gpu: &Gpu, config: &Architecture) -> Sizes {
        crate::eval::sizes(config, self.windows, self.window, self.together, gpu.limits())
    }
}

/// What a walk takes.
#[derive(Clone, Debug, serde::Serialize)]
pub struct WalkPlan {
    /// Device memory at its peak, in the step that takes most.
    pub gpu: Vec<PlanItem>,
    /// Host memory, without the mapped files of the model.
    pub host: Vec<PlanItem>,
    /// Operations of one block, and of the whole walk.
    pub block_flops: f64,
    /// Of all blocks.
    pub flops: f64,
}

/// Where activations go when nobody says: on the device up to 4 GiB, or what `budget` leaves for them.
pub fn choose_place(gpu: &Gpu, config: &Architecture, carried: Carried, budget: Option<u64>) -> Place {
    let (bytes, _) =
        Activations::bytes(&carried.sizes(gpu, config), carried.windows, Place::Gpu, Keep::Inputs);
    if bytes <= budget.map_or(ON_DEVICE, |b| b / 2) { Place::Gpu } else { Place::Host }
}

/// Plans a walk with projections stored as `dtype` says.
///
/// # Errors
/// Those of `dtype`.
pub fn walk(
    kernels: &Kernels<'_>,
    config: &Architecture,
    dtype: &dyn Fn(&str) -> Result<Dtype, ModelError>,
    selection: &Selection,
    options: &OneShotOptions,
    carried: Option<Carried>,
) -> Result<WalkPlan, PruneError> {
    let mut plan: Option<WalkPlan> = None;
    let mut flops = 0.0;
    for block in 0..config.num_layers {
        let of_block = Block { kernels, config, dtype, selection, options, carried, block };
        let gpu = of_block.memory()?;
        let block_flops = of_block.flops();
        flops += block_flops;
        if plan.as_ref().is_none_or(|p| total(&p.gpu) < total(&gpu)) {
            plan = Some(WalkPlan { gpu, host: Vec::new(), block_flops, flops: 0.0 });
        }
    }
    let mut plan =
        plan.unwrap_or(WalkPlan { gpu: Vec::new(), host: Vec::new(), block_flops: 0.0, flops: 0.0 });
    plan.flops = flops;
    if let Some(c) = carried {
        let sizes = c.sizes(kernels.gpu(), config);
        let (_, host) = Activations::bytes(&sizes, c.windows, c.place, Keep::Inputs);
        plan.host.push(PlanItem::new("activations", host));
        plan.host.push(PlanItem::new("tokens", 4 * (c.windows * c.window) as u64));
    }
    let masks = selection.pruned.iter().map(|(_, p)| MaskBuffer::device_bytes(p.rows, p.cols)).sum();
    plan.host.push(PlanItem::new("masks", masks));
    Ok(plan)
}

/// One block of a plan.
struct Block<'a, 'g> {
    kernels: &'a Kernels<'g>,
    config: &'a Architecture,
    dtype: &'a dyn Fn(&str) -> Result<Dtype, ModelError>,
    selection: &'a Selection,
    options: &'a OneShotOptions,
    carried: Option<Carried>,
    block: usize,
}

impl Block<'_, '_> {
    /// (rows, columns) of the pruned projections of an input.
    fn pruned(&self, input: Input) -> Vec<(usize, usize)> {
        let all = self.selection.pruned.iter().map(|(_, p)| p);
        all.filter(|p| p.block == self.block && Input::of(p.kind) == input)
            .map(|p| (p.rows, p.cols))
            .collect()
    }

    fn memory(&self) -> Result<Vec<PlanItem>, PruneError> {
        let (gpu, config) = (self.kernels.gpu(), self.config);
        let weights = BlockWeights::bytes(config, self.block, self.dtype)?;
        let mut largest = 0;
        for p in config.block_projections(self.block) {
            largest = largest.max(Weight::device_bytes(p.rows, p.cols, (self.dtype)(&p.name)?));
        }
        let masked = self.kernels.scratch_bytes(largest);
        let (mut activations, mut copies, mut tokens) = (0, 0, 0);
        if let Some(c) = self.carried {
            let sizes = c.sizes(gpu, config);
            activations = Activations::bytes(&sizes, c.windows, c.place, Keep::Inputs).0
                + BlockSpace::bytes(config, &sizes);
            copies = Activations::staging_bytes(&sizes, c.windows, c.place, Keep::Inputs);
            tokens = 4 * sizes.layout.t4();
        }
        let mut worst: Vec<PlanItem> = Vec::new();
        let (mut masks, mut read) = (0, 0);
        let masked = if self.carried.is_some() { masked } else { 0 };
        let mut moment = |statistics: u64, scratch: u64, masks: u64, read: u64, learned: (u64, u64)| {
            let mut items = vec![
                PlanItem::new("weights", weights),
                PlanItem::new("activations", activations),
                PlanItem::new("statistics", statistics),
                PlanItem::new("masks", masks),
                PlanItem::new("scratch", scratch + masked),
                PlanItem::new("staging", PARAMS_BYTES + read.min(READ_PIECE) + copies),
            ];
            if learned.0 > 0 {
                items.push(PlanItem::new("logits", learned.0));
            }
            if learned.1 > 0 {
                items.push(PlanItem::new("moments", learned.1));
            }
            if total(&items) > total(&worst) {
                worst = items;
            }
        };
        for input in Input::ALL {
            let pruned = self.pruned(input);
            let n = input.width(config);
            let rows = pruned.iter().map(|p| p.0).max().unwrap_or(0);
            let counted = self.carried.is_some() && rows > 0;
            let gram = if counted { Square::device_bytes(n) } else { 0 };
            // The input is transposed while its matrix is summed up; then the projections are solved.
            if counted {
                moment(gram, self.kernels.gram_scratch_bytes(n, tokens), masks, read, (0, 0));
            }
            for &(rows, cols) in &pruned {
                let bytes = MaskBuffer::device_bytes(rows, cols);
                masks += bytes.next_multiple_of(16);
                read = read.max(bytes);
            }
            let (own, solver) = if counted { Solver::bytes(gpu, self.options, rows, n) } else { (0, 0) };
            if counted {
                read = read.max(f32_bytes(1, n)).max(f32_bytes(1, rows));
                if self.options.repair != Repair::None {
                    read = read.max(f32_bytes(rows, n));
                }
            }
            let learned = match &self.options.learn {
                Some(stage) if counted => layer::bytes(stage, rows, n),
                _ => (0, 0),
            };
            read = read.max(learned.0);
            moment(gram + own, solver, masks, read, learned);
        }
        Ok(worst)
    }

    /// Operations: products, attention, Gram matrices, the methods' own products.
    fn flops(&self) -> f64 {
        let config = self.config;
        let Some(c) = self.carried else {
            return 0.0;
        };
        let tokens = (c.windows * c.window) as f64;
        let mut flops = forward_flops(config, self.block, c.windows, c.window);
        for input in Input::ALL {
            let pruned = self.pruned(input);
            let n = input.width(config) as f64;
            if pruned.is_empty() {
                continue;
            }
            flops += n * n * tokens;
            let rows: f64 = pruned.iter().map(|p| p.0 as f64).sum();
            let product = 2.0 * rows * n * n;
            // The energy of the output and the error of the mask.
            flops += 2.0 * product;
            flops += match self.options.method {
                OneShot::SparseGpt => n * n * n / 3.0 + 0.5 * product,
                // Products made anew, and the changes of half of the groups.
                OneShot::Descent => 2.0 * product,
                _ => 0.0,
            };
            flops += self.options.learn.as_ref().map_or(0.0, |stage| {
                let polish = if stage.polish { 2.0 * product } else { 0.0 };
                f64::from(stage.steps) * product + polish
            });
            flops += match self.options.repair {
                Repair::Lstsq => ITERATIONS * product,
                Repair::Update => product,
                Repair::None => 0.0,
            };
        }
        flops
    }
}
