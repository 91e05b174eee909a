//! Adam on the logits of masks and on weights, from the gradient by the effective weights.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::matmul::weight_def;
use super::soft::{LOG2_E, element, noise_params, state_def};
use super::{AdamState, Kernels, MaskBuffer, Rows, SoftPatterns, SoftTopN, StateType, Stream, Weight};
use super::{shape_error, size};
use crate::gpu::{Binding, Buffer, Defs, GpuError, Work};
use crate::model::Dtype;

/// A step of Adam (Kingma and Ba 2014) with decoupled decay (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Learning rate of this step.
    pub rate: f32,
    /// Decay of the mean of the gradients.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Weight decay: values shrink by `rate * decay` of themselves.
    pub decay: f32,
    /// Number of this step, from 1 on.
    pub step: u32,
}

/// A soft mask that is being learned.
#[derive(Clone, Copy)]
pub enum Soft<'a> {
    /// From a logit per weight.
    TopN(SoftTopN<'a>),
    /// From a logit per pattern; `- factor * sum (W mask)^2` is added to the loss. Logits and moments are f32.
    Patterns(SoftPatterns<'a>, f32),
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdamParams {
    beta1: f32,
    beta2: f32,
    rate: f32,
    root: f32,
    eps: f32,
    left: f32,
    step: u32,
    pad: u32,
}

impl Adam {
    fn params(&self) -> AdamParams {
        let corrected = |beta: f32| 1.0 - f64::from(beta).powf(f64::from(self.step.max(1)));
        AdamParams {
            beta1: self.beta1,
            beta2: self.beta2,
            rate: (f64::from(self.rate) / corrected(self.beta1)) as f32,
            root: (1.0 / corrected(self.beta2).sqrt()) as f32,
            eps: self.eps,
            left: (1.0 - f64::from(self.rate) * f64::from(self.decay)) as f32,
            step: self.step,
            pad: 0,
        }
    }
}

/// Of `adam_mask` and `adam_patterns`; they differ in the last words before Adam's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    k4: u32,
    w_first: u32,
    g_at: u32,
    g_stride: u32,
    first_row: u32,
    state_at: u32,
    state_stride: u32,
    out_at: u32,
    step: u32,
    projection: u32,
    seed: [u32; 2],
    gain: f32,
    noise: f32,
    removal_or_pull: f32,
    slope: f32,
    groups: u32,
    fours: u32,
    pad: u32,
    adam: AdamParams,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WeightParams {
    rows: u32,
    k4: u32,
    w_first: u32,
    g_at: u32,
    g_stride: u32,
    first_row: u32,
    state_at: u32,
    words: u32,
    adam: AdamParams,
}

/// What becomes of the gradient by the effective weights, in [`Kernels::learn_logits`].
#[derive(Clone, Copy)]
pub enum Learn<'a> {
    /// A step of Adam on the logits, in place.
    Step(&'a AdamState, Adam),
    /// The same; the gradient becomes that by the weights themselves, the one by the effective weights times the soft mask: what
    /// [`Kernels::adam_weight`] takes where mask and weights are trained together. For [`Soft::TopN`].
    Joint(&'a AdamState, Adam),
    /// The gradient by the logits, in f32 and the layout of the logits.
    Gradient(&'a Buffer),
}

/// What a kernel of logits makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// A step.
    Step,
    /// A step, and the gradient by the weights.
    Joint,
    /// The gradient by the logits.
    Gradient,
}

impl Goal {
    fn defs(self) -> Option<(&'static str, u32)> {
        match self {
            Self::Step => None,
            Self::Joint => Some(("JOINT", 1)),
            Self::Gradient => Some(("ONLY_GRADIENT", 1)),
        }
    }
}

impl Learn<'_> {
    fn goal(&self) -> Goal {
        match self {
            Self::Step(..) => Goal::Step,
            Self::Joint(..) => Goal::Joint,
            Self::Gradient(_) => Goal::Gradient,
        }
    }
}

pub(super) fn mask_defs(
    pattern: (u32, u32),
    relaxation: u32,
    state: StateType,
    noise: bool,
    goal: Goal,
) -> Defs {
    let mut out = vec![("N", pattern.0), ("M", pattern.1), ("RELAXATION", relaxation), state_def(state)];
    out.extend((relaxation == 1).then_some(("DUAL", 1)));
    out.extend(noise.then_some(("NOISE", 1)));
    out.extend(goal.defs());
    out
}

pub(super) fn patterns_defs(pattern: (u32, u32), count: u32, noise: bool, goal: Goal) -> Defs {
    let mut out = vec![("N", pattern.0), ("M", pattern.1), ("COUNT", count)];
    out.extend(noise.then_some(("NOISE", 1)));
    out.extend(goal.defs());
    out
}

fn check_gradient(
    kernel: &'static str,
    weight: &Weight,
    g: &Rows<'_>,
    rows: &Range<usize>,
) -> Result<(), GpuError> {
    if g.count != rows.len() || g.t4 != weight.k4() || rows.end > weight.rows() {
        return Err(shape_error(
            kernel,
            format!(
                "a gradient [{}, {}] for rows {rows:?} of [{}, {}]",
                g.count,
                4 * g.t4,
                weight.rows(),
                weight.cols()
            ),
        ));
    }
    Ok(())
}

impl Kernels<'_> {
    /// From the gradient by the effective weights, `[rows, cols]`, of the rows `rows` to their logits: what `into` says. `soft` made the
    /// effective weights of `weight`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn learn_logits(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        soft: Soft<'_>,
        gradient: Rows<'_>,
        rows: Range<usize>,
        into: Learn<'_>,
    ) -> Result<(), GpuError> {
        let goal = into.goal();
        let (name, logits, size_of, per_element, stride, span, mut params, mut defs);
        match soft {
            Soft::TopN(soft) => {
                name = "adam_mask";
                let (n, m) = (soft.pattern.n() as u32, soft.pattern.m() as u32);
                (logits, size_of, per_element) = (soft.logits, soft.state.size(), element(soft.pattern));
                stride = soft.row_elements(name, weight)?;
                span = (soft.pattern.m() / 4).max(1);
                let relaxation = soft.relaxation.def(soft.pattern);
                defs = mask_defs((n, m), relaxation, soft.state, soft.noise.is_some(), goal);
                let noise = noise_params(soft.noise, soft.temperature);
                params = Params {
                    step: noise.step,
                    projection: noise.projection,
                    seed: noise.seed,
                    gain: LOG2_E / soft.temperature,
                    noise: noise.factor,
                    removal_or_pull: soft.relaxation.removal(),
                    slope: 1.0 / soft.temperature,
                    ..Params::zeroed()
                };
            }
            Soft::Patterns(soft, regulariser) => {
                name = "adam_patterns";
                let (n, m) = (soft.pattern.n() as u32, soft.pattern.m() as u32);
                let (count, pairs) = soft.row_pairs(name, weight)?;
                (logits, size_of, per_element, stride, span) = (soft.logits, 4, 2, pairs, 1);
                defs = patterns_defs((n, m), count as u32, soft.noise.is_some(), goal);
                let noise = noise_params(soft.noise, soft.temperature);
                params = Params {
                    step: noise.step,
                    projection: noise.projection,
                    seed: noise.seed,
                    gain: soft.scale * LOG2_E / soft.temperature,
                    noise: noise.factor,
                    removal_or_pull: 2.0 * regulariser,
                    slope: soft.scale / soft.temperature,
                    groups: size(name, weight.cols() / soft.pattern.m())?,
                    fours: count.div_ceil(4) as u32,
                    ..Params::zeroed()
                };
            }
        }
        check_gradient(name, weight, &gradient, &rows)?;
        let k4 = weight.k4();
        let row_bytes = (stride * per_element * size_of) as u64;
        let out_bytes = (stride * per_element * 4) as u64;
        let all = weight.rows() as u64;
        let room = match into {
            Learn::Step(moments, _) | Learn::Joint(moments, _) => {
                moments.first.bytes().min(moments.second.bytes()) >= all * row_bytes
            }
            Learn::Gradient(out) => out.bytes() >= all * out_bytes,
        };
        if !room {
            return Err(shape_error(
                name,
                format!("moments or gradients of {all} rows of {row_bytes} bytes"),
            ));
        }
        if let Learn::Step(_, adam) | Learn::Joint(_, adam) = into {
            params.adam = adam.params();
        }
        let lanes = self.preset().lanes;
        defs.extend([weight_def(weight.dtype()), ("LANES", lanes)]);
        let pipeline = self.pipeline(name, defs)?;
        let widest = if goal == Goal::Gradient { row_bytes.max(out_bytes) } else { row_bytes };
        for strip in self.strips(name, weight, &rows, widest, 1)? {
            let (state, skipped) = strip.bind(logits, row_bytes);
            let mut bind: Vec<Binding<'_>> = vec![strip.chunk.buffer.all(), gradient.buffer.all(), state];
            match into {
                Learn::Step(moments, _) | Learn::Joint(moments, _) => {
                    bind.push(strip.bind(&moments.first, row_bytes).0);
                    bind.push(strip.bind(&moments.second, row_bytes).0);
                }
                Learn::Gradient(out) => {
                    let (binding, skipped) = strip.bind(out, out_bytes);
                    bind.push(binding);
                    params.out_at = size(name, skipped as usize / (per_element * 4))?;
                }
            }
            let done = strip.from - rows.start;
            params = Params {
                rows: size(name, strip.rows())?,
                k4: size(name, k4)?,
                w_first: size(name, (strip.from - strip.chunk.first) * k4)?,
                g_at: size(name, gradient.at + (gradient.first + done) * gradient.stride)?,
                g_stride: size(name, gradient.stride)?,
                first_row: size(name, strip.from)?,
                state_at: size(name, skipped as usize / (per_element * size_of))?,
                state_stride: size(name, stride)?,
                ..params
            };
            let values = (strip.rows() * 4 * k4) as f64;
            let states = strip.rows() as f64 * row_bytes as f64;
            let work = Work {
                flops: 100.0 * values,
                bytes: values * (4.0 + weight.dtype().size() as f64)
                    + if goal == Goal::Gradient { 2.0 } else { 6.0 } * states,
            };
            let units = if params.groups > 0 { params.groups as usize } else { k4 / span };
            c.dispatch(&pipeline, &params, &bind, self.fold(strip.rows() * units, lanes), work)?;
        }
        Ok(())
    }

    /// A step of AdamW on the rows `rows` of an f32 weight, in place; with a mask on the weights that it keeps, while the others and
    /// their moments are not touched. `gradient` `[rows, cols]`; the moments have the weight's layout, rows padded to a multiple of 4.
    ///
    /// # Errors
    /// Shapes or types that do not fit, or what the device reports.
    pub fn adam_weight(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        mask: Option<&MaskBuffer>,
        gradient: Rows<'_>,
        rows: Range<usize>,
        (moments, adam): (&AdamState, Adam),
    ) -> Result<(), GpuError> {
        const NAME: &str = "adam_weight";
        check_gradient(NAME, weight, &gradient, &rows)?;
        let k4 = weight.k4();
        let row_bytes = 16 * k4 as u64;
        let held = moments.first.bytes().min(moments.second.bytes());
        let shape = (weight.rows(), weight.cols());
        if weight.dtype() != Dtype::F32
            || held < row_bytes * weight.rows() as u64
            || mask.is_some_and(|m| m.shape() != shape)
        {
            return Err(shape_error(
                NAME,
                format!(
                    "a {} weight {shape:?}, mask {:?}, moments of {held} bytes",
                    weight.dtype(),
                    mask.map(MaskBuffer::shape)
                ),
            ));
        }
        let lanes = self.preset().lanes;
        let mut defs = vec![("LANES", lanes)];
        defs.extend(mask.map(|_| ("MASK", 1)));
        let pipeline = self.pipeline(NAME, defs)?;
        for strip in self.strips(NAME, weight, &rows, row_bytes, 1)? {
            let (first, skipped) = strip.bind(&moments.first, row_bytes);
            let (second, _) = strip.bind(&moments.second, row_bytes);
            let done = strip.from - rows.start;
            let params = WeightParams {
                rows: size(NAME, strip.rows())?,
                k4: size(NAME, k4)?,
                w_first: size(NAME, (strip.from - strip.chunk.first) * k4)?,
                g_at: size(NAME, gradient.at + (gradient.first + done) * gradient.stride)?,
                g_stride: size(NAME, gradient.stride)?,
                first_row: size(NAME, strip.from)?,
                state_at: size(NAME, skipped as usize / 16)?,
                words: size(NAME, mask.map_or(0, MaskBuffer::words_per_row))?,
                adam: adam.params(),
            };
            let mut bind = vec![strip.chunk.buffer.all(), gradient.buffer.all(), first, second];
            bind.extend(mask.map(|m| m.buffer.all()));
            let values = (strip.rows() * 4 * k4) as f64;
            let work = Work { flops: 12.0 * values, bytes: 28.0 * values };
            c.dispatch(&pipeline, &params, &bind, self.fold(strip.rows() * k4, lanes), work)?;
        }
        Ok(())
    }
}
