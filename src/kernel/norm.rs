//! Norms over all rows or groups of them, and their gradients.

use bytemuck::{Pod, Zeroable};

use super::elementwise::sliced_defs;
use super::preset::SUBGROUP;
use super::{Kernels, Rows, Stream, shape_error, size};
use crate::gpu::{Buffer, Defs, GpuError, Work};
use crate::model::NormKind;

/// A norm with its weights: per token, the rows of each group are scaled, multiplied by the gains, and shifted by the biases.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// What the features are scaled by.
    pub kind: NormKind,
    /// Gains: one per row, or per row of a group where they are shared.
    pub gain: &'a Buffer,
    /// As many biases.
    pub bias: Option<&'a Buffer>,
    /// What is added to the mean square or the variance.
    pub eps: f32,
    /// The rows are this many groups, each normed by itself (the heads, say).
    pub groups: usize,
    /// Whether all groups have the same gains and biases.
    pub shared: bool,
}

impl<'a> Norm<'a> {
    /// The root mean square norm of all rows.
    pub fn rms(gain: &'a Buffer, eps: f32) -> Self {
        Self { kind: NormKind::Rms, gain, bias: None, eps, groups: 1, shared: false }
    }

    /// Rows of a group where the rows are as many, and the gains are enough.
    fn features(&self, rows: usize) -> Option<usize> {
        if self.groups == 0 || !rows.is_multiple_of(self.groups) {
            return None;
        }
        let features = rows / self.groups;
        let weights = 4 * if self.shared { features } else { rows } as u64;
        let enough = self.gain.bytes() >= weights && self.bias.is_none_or(|b| b.bytes() >= weights);
        enough.then_some(features)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    features: u32,
    t4: u32,
    eps: f32,
    stride: u32,
}

/// What a norm of a shape is dispatched with.
struct Launch {
    name: &'static str,
    defs: Defs,
    params: NormParams,
    grid: [u32; 3],
}

impl Kernels<'_> {
    /// `names` are those of the kernels with and without subgroups, `rows` all operands of the shape of `x`.
    fn norm_launch(
        &self,
        names: [&'static str; 2],
        norm: &Norm<'_>,
        rows: &[(&'static str, Rows<'_>)],
    ) -> Result<Launch, GpuError> {
        let (preset, x) = (self.preset(), rows[0].1);
        let alike = rows.iter().all(|(_, r)| r.first == 0 && r.count == x.count && r.t4 == x.t4);
        let Some(features) = norm.features(x.count).filter(|_| alike) else {
            let rows: Vec<String> = rows.iter().map(|(name, r)| format!("{name} {} rows", r.count)).collect();
            let weights = norm.gain.bytes() / 4;
            let biases = norm.bias.map(|b| format!(" and {} biases", b.bytes() / 4)).unwrap_or_default();
            let groups = if norm.shared { "groups that share" } else { "groups with" };
            let message = format!("{}; {} {groups} {weights} gains{biases}", rows.join(", "), norm.groups);
            return Err(shape_error(names[1], message));
        };
        // With subgroups the gains are loaded by eight.
        let (name, tile, mut defs) = if preset.subgroups() && features.is_multiple_of(SUBGROUP as usize) {
            (names[0], 2 * SUBGROUP, vec![("SUBGROUP", SUBGROUP)])
        } else {
            let (lanes, slices) = preset.reduce;
            (names[1], lanes, sliced_defs(lanes, slices))
        };
        if norm.kind == NormKind::Layer {
            defs.push(("LAYER", 1));
        }
        if norm.groups > self.gpu().max_workgroups() as usize {
            return Err(shape_error(name, format!("{} groups are more than a grid is high", norm.groups)));
        }
        let features = size(name, features)?;
        let stride = if norm.shared { 0 } else { features };
        Ok(Launch {
            name,
            defs,
            params: NormParams { features, t4: size(name, x.t4)?, eps: norm.eps, stride },
            grid: [x.t4.div_ceil(tile as usize) as u32, size(name, norm.groups)?, 1],
        })
    }

    /// `y` = the norm of `x` per token and group of rows, both `[rows, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn norm(&self, c: Stream<'_, '_>, x: Rows<'_>, norm: &Norm<'_>, y: Rows<'_>) -> Result<(), GpuError> {
        let mut launch = self.norm_launch(["norm_lanes", "norm"], norm, &[("x", x), ("y", y)])?;
        let mut bind = vec![x.buffer.all(), norm.gain.all(), y.buffer.all()];
        if let Some(bias) = norm.bias {
            launch.defs.push(("BIAS", 1));
            bind.push(bias.all());
        }
        let pipeline = self.pipeline(launch.name, launch.defs)?;
        let values = (x.count * x.t4 * 4) as f64;
        let work = match norm.kind {
            NormKind::Rms => Work { flops: 4.0 * values, bytes: 12.0 * values },
            NormKind::Layer => Work { flops: 8.0 * values, bytes: 16.0 * values },
        };
        c.dispatch(&pipeline, &launch.params, &bind, launch.grid, work)
    }

    /// The gradient of [`Kernels::norm`] with respect to `x`: `d_x` becomes it, or with `accumulate` gets it added; `x`, `d_y`, `d_x`
    /// `[rows, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn norm_backward(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        norm: &Norm<'_>,
        d_y: Rows<'_>,
        d_x: Rows<'_>,
        accumulate: bool,
    ) -> Result<(), GpuError> {
        let names = ["norm_backward_lanes", "norm_backward"];
        let mut launch = self.norm_launch(names, norm, &[("x", x), ("d_y", d_y), ("d_x", d_x)])?;
        if accumulate {
            launch.defs.push(("ACCUMULATE", 1));
        }
        let pipeline = self.pipeline(launch.name, launch.defs)?;
        let values = (x.count * x.t4 * 4) as f64;
        let work = match norm.kind {
            NormKind::Rms => Work { flops: 10.0 * values, bytes: 24.0 * values },
            NormKind::Layer => Work { flops: 17.0 * values, bytes: 32.0 * values },
        };
        let bind = [x.buffer.all(), norm.gain.all(), d_y.buffer.all(), d_x.buffer.all()];
        c.dispatch(&pipeline, &launch.params, &bind, launch.grid, work)
    }
}
