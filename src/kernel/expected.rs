//! Masks in expectation under MaskPro's law in the Gram metric: the expected pruned weights, and a step on the expected error.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::matmul::weight_def;
use super::soft::Strip;
use super::{Activation, Kernels, Rows, SampleAt, Square, Stream, Weight, cut, shape_error, size};
use crate::gpu::{Buffer, Defs, GpuError, Work};
use crate::mask::Pattern;

/// The law of the masks of a projection: N draws without replacement from the softmax of each group's logits (MaskPro, arXiv 2506.12876).
#[derive(Clone, Copy)]
pub struct Drawn<'a> {
    /// Keep N of M.
    pub pattern: Pattern,
    /// `[rows, cols]` f32, within the range of the sampler (+-100).
    pub logits: &'a Buffer,
    /// Draws of each group where M is above [`Drawn::EXACT`], at least 1.
    pub draws: u32,
    /// Which random numbers they take.
    pub at: SampleAt,
}

impl Drawn<'_> {
    /// The greatest M for which expectations are exact: sums over all sets of weights of a group.
    pub const EXACT: usize = 8;

    /// Rows of `weight` and their logits that a dispatch takes together.
    fn strips<'w>(
        &self,
        kernels: &Kernels<'_>,
        name: &'static str,
        weight: &'w Weight,
        rows: &Range<usize>,
    ) -> Result<Vec<Strip<'w>>, GpuError> {
        let (cols, m) = (weight.cols(), self.pattern.m());
        let bytes = 4 * (weight.rows() * cols) as u64;
        if !cols.is_multiple_of(m) || self.logits.bytes() < bytes || self.draws == 0 {
            return Err(shape_error(
                name,
                format!(
                    "{} draws of {} for {cols} columns, {} bytes of logits for {bytes}",
                    self.draws,
                    self.pattern,
                    self.logits.bytes()
                ),
            ));
        }
        kernels.strips(name, weight, rows, self.row_bytes(weight), 1)
    }

    /// Whether columns of `cols` are whole spans.
    fn takes(&self, columns: &Range<usize>, cols: usize) -> bool {
        let span = self.pattern.m().max(4);
        let ends = columns.end == cols || columns.end.is_multiple_of(span);
        columns.start < columns.end && columns.end <= cols && columns.start.is_multiple_of(span) && ends
    }

    fn row_bytes(&self, weight: &Weight) -> u64 {
        4 * weight.cols() as u64
    }

    fn defs(&self, weight: &Weight) -> Defs {
        let (n, m) = (self.pattern.n() as u32, self.pattern.m() as u32);
        defs(weight_def(weight.dtype()), (n, m))
    }

    /// Operations for a group, about: of its expected mask, and of a step.
    fn group_flops(&self) -> (f64, f64) {
        let (n, m) = (self.pattern.n(), self.pattern.m());
        if m > Self::EXACT {
            let draws = f64::from(self.draws);
            return (400.0 * draws, 2000.0 * draws);
        }
        let sets = |n: usize| crate::mask::rank::binomial(m, n) as f64;
        let open: f64 = (0..n).map(sets).sum();
        let walk = 6.0 * m as f64 * open;
        (walk, 2.0 * walk + 2.0 * (m * m) as f64 * sets(n))
    }
}

/// One step of [`Kernels::expected_step`] on a panel of rows.
pub struct ExpectedStep<'a> {
    /// Weights `[rows, n]`.
    pub weight: &'a Weight,
    /// Gram matrix of the inputs `[n, n]`, whole.
    pub h: &'a Square,
    /// The law, whose logits move in place.
    pub law: Drawn<'a>,
    /// Rows of the weight that are treated: a panel.
    pub rows: Range<usize>,
    /// Columns whose logits move: whole spans of max(M, 4).
    pub columns: Range<usize>,
    /// `[panel, n]`: what [`Kernels::expected_pruned`] made by the same law,
    pub pruned: &'a Activation,
    /// and its product with H.
    pub products: &'a Activation,
    /// `[panel]`: what the gradient of each row is multiplied by.
    pub scales: &'a Buffer,
    /// Learning rate.
    pub rate: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PrunedParams {
    rows: u32,
    cols: u32,
    k4: u32,
    w_first: u32,
    logits_at: u32,
    out_at: u32,
    first_row: u32,
    draws: u32,
    step: u32,
    projection: u32,
    seed: [u32; 2],
    first_span: u32,
    spans: u32,
    change_at: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StepParams {
    rows: u32,
    groups: u32,
    first_group: u32,
    h_first: u32,
    cols: u32,
    k4: u32,
    w_first: u32,
    logits_at: u32,
    panel_row: u32,
    first_row: u32,
    draws: u32,
    step: u32,
    projection: u32,
    seed: [u32; 2],
    rate: f32,
}

const WG: u32 = 64;

/// Shader defs of both kernels; PAIR: 2:4, which is written out.
pub(super) fn defs(weight: (&'static str, u32), (n, m): (u32, u32)) -> Defs {
    vec![weight, ("WG", WG), ("N", n), ("M", m), ("PAIR", u32::from((n, m) == (2, 4)))]
}

impl Kernels<'_> {
    /// The expected pruned weights `W * (1 - inclusion probability)` of the rows `rows`, in the columns `columns` of `out` `[rows, cols]`
    /// f32; the new values less the old ones into `change` `[rows, columns]`, if given. For M above [`Drawn::EXACT`] they are an estimate
    /// without bias from the law's draws.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn expected_pruned(
        &self,
        c: Stream<'_, '_>,
        weight: &Weight,
        law: &Drawn<'_>,
        (rows, columns): (Range<usize>, Range<usize>),
        out: Rows<'_>,
        change: Option<Rows<'_>>,
    ) -> Result<(), GpuError> {
        const NAME: &str = "expected_pruned";
        let (k4, m, cols) = (weight.k4(), law.pattern.m(), weight.cols());
        let span = m.max(4);
        let written = columns.len().div_ceil(4);
        let fits = |out: &Rows<'_>, t4: usize| out.count == rows.len() && out.t4 == t4 && out.stride == t4;
        if !fits(&out, k4) || !law.takes(&columns, cols) || !change.iter().all(|change| fits(change, written))
        {
            return Err(shape_error(
                NAME,
                format!(
                    "rows {rows:?} and columns {columns:?} of {} x {cols} into {} rows",
                    weight.rows(),
                    out.count
                ),
            ));
        }
        let mut defs = law.defs(weight);
        defs.extend(change.map(|_| ("CHANGE", 1)));
        let pipeline = self.pipeline(NAME, defs)?;
        let spans = columns.len().div_ceil(span);
        let row_flops = law.group_flops().0 * (columns.len() / m) as f64;
        let most = cut::dispatch_groups(self.limits(), row_flops, c.max_dispatch_flops());
        for strip in law.strips(self, NAME, weight, &rows)? {
            let (logits, skipped) = strip.bind(law.logits, law.row_bytes(weight));
            for here in cut::pieces(strip.from..strip.to, most) {
                let (row, count) = (here.start, here.len());
                let starts = |out: Rows<'_>| size(NAME, out.at + (out.first + row - rows.start) * out.stride);
                let params = PrunedParams {
                    rows: size(NAME, count)?,
                    cols: size(NAME, cols)?,
                    k4: size(NAME, k4)?,
                    w_first: size(NAME, (row - strip.chunk.first) * k4)?,
                    logits_at: size(NAME, skipped as usize / 4 + (row - strip.from) * cols)?,
                    out_at: starts(out)?,
                    first_row: size(NAME, row)?,
                    draws: law.draws,
                    step: law.at.step,
                    projection: law.at.projection,
                    seed: crate::mask::philox::key(law.at.seed),
                    first_span: size(NAME, columns.start / span)?,
                    spans: size(NAME, spans)?,
                    change_at: change.map_or(Ok(0), starts)?,
                    pad: 0,
                };
                let values = 4.0 * (count * written) as f64;
                let bytes = values * (8.0 + weight.dtype().size() as f64);
                let work = Work { flops: row_flops * count as f64, bytes };
                let mut bind = vec![strip.chunk.buffer.all(), logits, out.buffer.all()];
                bind.extend(change.map(|change| change.buffer.all()));
                c.dispatch(&pipeline, &params, &bind, self.fold(count * spans, WG), work)?;
            }
        }
        Ok(())
    }

    /// `logits -= rate * scale * d E[z H z] / d logits` for some columns of the rows of a panel, clamped to the range of the sampler; z
    /// are the pruned weights of a row under a mask drawn by the law. For M above [`Drawn::EXACT`] the gradient is an estimate without bias from the
    /// law's draws.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn expected_step(&self, c: Stream<'_, '_>, s: &ExpectedStep<'_>) -> Result<(), GpuError> {
        const NAME: &str = "expected_step";
        let (weight, law, n, panel) = (s.weight, &s.law, s.h.n(), s.rows.len());
        let (k4, m) = (n / 4, law.pattern.m());
        let room = s.scales.bytes() >= 4 * panel as u64 && law.takes(&s.columns, n);
        if weight.cols() != n || s.rows.end > weight.rows() || !room {
            return Err(shape_error(
                NAME,
                format!(
                    "rows {:?} and columns {:?} of {} x {}, H of {n} rows",
                    s.rows,
                    s.columns,
                    weight.rows(),
                    weight.cols()
                ),
            ));
        }
        s.pruned.rows(0, panel, k4)?;
        s.products.rows(0, panel, k4)?;
        let pipeline = self.pipeline(NAME, law.defs(weight))?;
        for strip in law.strips(self, NAME, weight, &s.rows)? {
            let (logits, skipped) = strip.bind(law.logits, law.row_bytes(weight));
            for h in &s.h.chunks {
                let columns = cut::overlap(&h.range(), &s.columns);
                if columns.is_empty() {
                    continue;
                }
                let groups = columns.len() / m;
                let row_flops = law.group_flops().1 * groups as f64;
                let most = cut::dispatch_groups(self.limits(), row_flops, c.max_dispatch_flops());
                for here in cut::pieces(strip.from..strip.to, most) {
                    let (row, count) = (here.start, here.len());
                    let params = StepParams {
                        rows: size(NAME, count)?,
                        groups: size(NAME, groups)?,
                        first_group: size(NAME, columns.start / m)?,
                        h_first: size(NAME, h.first)?,
                        cols: size(NAME, n)?,
                        k4: size(NAME, k4)?,
                        w_first: size(NAME, (row - strip.chunk.first) * k4)?,
                        logits_at: size(NAME, skipped as usize / 4 + (row - strip.from) * n)?,
                        panel_row: size(NAME, row - s.rows.start)?,
                        first_row: size(NAME, row)?,
                        draws: law.draws,
                        step: law.at.step,
                        projection: law.at.projection,
                        seed: crate::mask::philox::key(law.at.seed),
                        rate: s.rate,
                    };
                    let values = (count * columns.len()) as f64;
                    let bytes = values * (16.0 + weight.dtype().size() as f64);
                    let work = Work { flops: row_flops * count as f64, bytes };
                    let bind = [
                        strip.chunk.buffer.all(),
                        h.buffer.all(),
                        s.pruned.buffer().all(),
                        s.products.buffer().all(),
                        s.scales.all(),
                        logits,
                    ];
                    c.dispatch(&pipeline, &params, &bind, self.fold(count * groups, WG), work)?;
                }
            }
        }
        Ok(())
    }
}
