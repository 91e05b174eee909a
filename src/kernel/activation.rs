//! Element by element: the nonlinearities of feed-forward layers with their gradients, scaled sums, limits.

use super::{Kernels, Rows, Stream, shape_error, size};
use crate::gpu::{Defs, GpuError, Work};
use crate::model::ActivationKind;

/// The def `KIND` of `shaders/shared/activation.wgsl`.
pub(super) fn kind_def(kind: ActivationKind) -> (&'static str, u32) {
    let number = match kind {
        ActivationKind::Silu => 0,
        ActivationKind::Gelu => 1,
        ActivationKind::GeluTanh => 2,
        ActivationKind::Relu => 3,
        ActivationKind::Relu2 => 4,
    };
    ("KIND", number)
}

/// Floating point operations of a vec4 of a nonlinearity, about.
fn flops(kind: ActivationKind) -> f64 {
    match kind {
        ActivationKind::Silu => 12.0,
        ActivationKind::Gelu => 104.0,
        ActivationKind::GeluTanh => 40.0,
        ActivationKind::Relu => 4.0,
        ActivationKind::Relu2 => 8.0,
    }
}

impl Kernels<'_> {
    /// Runs a kernel with an invocation for each vec4 of its operands, all whole tensors of one shape, with one number; `flops` and
    /// `moved` vec4s each.
    fn each(
        &self,
        c: Stream<'_, '_>,
        name: &'static str,
        mut defs: Defs,
        operands: &[(&'static str, Rows<'_>)],
        number: f32,
        (flops, moved): (f64, f64),
    ) -> Result<(), GpuError> {
        let first = operands[0].1;
        let fits = |r: Rows<'_>| r.first == 0 && r.count == first.count && r.t4 == first.t4;
        if !operands.iter().all(|&(_, r)| fits(r)) {
            let rows: Vec<String> = operands.iter().map(|(of, r)| format!("{of} {} rows", r.count)).collect();
            return Err(shape_error(name, rows.join(", ")));
        }
        let lanes = self.preset().lanes;
        defs.push(("LANES", lanes));
        let pipeline = self.pipeline(name, defs)?;
        let count = first.count * first.t4;
        let params = [size(name, count)?, number.to_bits(), 0, 0];
        let work = Work { flops: flops * count as f64, bytes: 16.0 * moved * count as f64 };
        let bind: Vec<_> = operands.iter().map(|(_, r)| r.buffer.all()).collect();
        c.dispatch(&pipeline, &params, &bind, self.fold(count, lanes), work)
    }

    /// `gate = f(gate) * up` for the nonlinearity `f`, both `[features, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn gated(
        &self,
        c: Stream<'_, '_>,
        kind: ActivationKind,
        gate: Rows<'_>,
        up: Rows<'_>,
    ) -> Result<(), GpuError> {
        let operands = [("gate", gate), ("up", up)];
        self.each(c, "gated", vec![kind_def(kind)], &operands, 0.0, (flops(kind) + 4.0, 3.0))
    }

    /// `out = f(gate) * up`, all `[features, t]`; `gate` stays for the backward pass.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn gated_to(
        &self,
        c: Stream<'_, '_>,
        kind: ActivationKind,
        gate: Rows<'_>,
        up: Rows<'_>,
        out: Rows<'_>,
    ) -> Result<(), GpuError> {
        let operands = [("gate", gate), ("up", up), ("out", out)];
        let defs = vec![kind_def(kind), ("OUT", 1)];
        self.each(c, "gated", defs, &operands, 0.0, (flops(kind) + 4.0, 3.0))
    }

    /// The gradient of `f(gate) * up` in place of its inputs: `gate` (before `f`) becomes the gradient with respect to itself, and so
    /// does `up`; `gate`, `up`, `d_inner` `[features, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn gated_backward(
        &self,
        c: Stream<'_, '_>,
        kind: ActivationKind,
        gate: Rows<'_>,
        up: Rows<'_>,
        d_inner: Rows<'_>,
    ) -> Result<(), GpuError> {
        let operands = [("gate", gate), ("up", up), ("d_inner", d_inner)];
        let work = (2.0 * flops(kind) + 12.0, 5.0);
        self.each(c, "gated_backward", vec![kind_def(kind)], &operands, 0.0, work)
    }

    /// `x = f(x)` for the nonlinearity `f`, `[features, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn activate(&self, c: Stream<'_, '_>, kind: ActivationKind, x: Rows<'_>) -> Result<(), GpuError> {
        self.each(c, "activate", vec![kind_def(kind)], &[("x", x)], 0.0, (flops(kind), 2.0))
    }

    /// `out = f(x)`, both `[features, t]`; `x` stays for the backward pass.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn activate_to(
        &self,
        c: Stream<'_, '_>,
        kind: ActivationKind,
        x: Rows<'_>,
        out: Rows<'_>,
    ) -> Result<(), GpuError> {
        let defs = vec![kind_def(kind), ("OUT", 1)];
        self.each(c, "activate", defs, &[("x", x), ("out", out)], 0.0, (flops(kind), 2.0))
    }

    /// The gradient of `f(x)` in place of its input: `x` (before `f`) becomes the gradient with respect to itself; `x`, `d_inner`
    /// `[features, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn activate_backward(
        &self,
        c: Stream<'_, '_>,
        kind: ActivationKind,
        x: Rows<'_>,
        d_inner: Rows<'_>,
    ) -> Result<(), GpuError> {
        let operands = [("x", x), ("d_inner", d_inner)];
        let work = (2.0 * flops(kind) + 8.0, 3.0);
        self.each(c, "activate_backward", vec![kind_def(kind)], &operands, 0.0, work)
    }

    /// `to += alpha * from`, both `[rows, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn add_scaled(
        &self,
        c: Stream<'_, '_>,
        from: Rows<'_>,
        alpha: f32,
        to: Rows<'_>,
    ) -> Result<(), GpuError> {
        self.each(c, "add_scaled", vec![], &[("from", from), ("to", to)], alpha, (8.0, 3.0))
    }

    /// `y` = `x` within `-limit` and `limit`, both `[rows, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, a limit that is not positive, or what the device reports.
    pub fn clamp_to(&self, c: Stream<'_, '_>, x: Rows<'_>, limit: f32, y: Rows<'_>) -> Result<(), GpuError> {
        const NAME: &str = "clamp_to";
        positive(NAME, "limit", limit)?;
        self.each(c, NAME, vec![], &[("x", x), ("y", y)], limit, (8.0, 2.0))
    }

    /// The gradient of [`Kernels::clamp_to`] in place of that of its result: `d` becomes 0 where `x` is beyond the limit; both
    /// `[rows, t]`.
    ///
    /// # Errors
    /// Shapes that do not fit, a limit that is not positive, or what the device reports.
    pub fn clamp_backward(
        &self,
        c: Stream<'_, '_>,
        x: Rows<'_>,
        limit: f32,
        d: Rows<'_>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "clamp_backward";
        positive(NAME, "limit", limit)?;
        self.each(c, NAME, vec![], &[("x", x), ("d", d)], limit, (4.0, 3.0))
    }
}

/// An error unless `value` is a positive finite number.
pub(super) fn positive(kernel: &'static str, what: &str, value: f32) -> Result<(), GpuError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(shape_error(kernel, format!("a {what} of {value}, where a positive number is needed")))
}
