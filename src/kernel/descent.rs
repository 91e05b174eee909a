//! Exact group descent on strict masks in the Gram metric.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::matmul::weight_def;
use super::{Activation, Kernels, MaskBuffer, Square, Stream, Weight, cut, shape_error, size};
use crate::gpu::{Buffer, Defs, Gpu, GpuError, Work};
use crate::mask::Pattern;

/// Operations that a look at one unit takes, about, for cutting dispatches.
const LOOK_FLOPS: f64 = 600.0;

/// One pass of [`Kernels::descent`] over some rows of a projection.
pub struct Descent<'a> {
    /// Weights `[rows, n]`.
    pub weight: &'a Weight,
    /// Gram matrix of the inputs `[n, n]`, whole.
    pub h: &'a Square,
    /// The mask that is improved in place.
    pub mask: &'a MaskBuffer,
    /// Its pattern.
    pub pattern: Pattern,
    /// Rows of the weight that are treated: a panel.
    pub rows: Range<usize>,
    /// `[panel, n]`: on entry the pruned weights times H, kept so while they change.
    pub products: &'a Activation,
    /// Counts of changes, from [`Descent::moves`].
    pub moves: &'a Buffer,
    /// Number of this pass over the same panel. Rows that the pass before left as they were rest.
    pub pass: u32,
    /// Sweeps in this pass, at most, where H is bound whole; else one.
    pub sweeps: u32,
    /// Smallest gain that counts, as a share of the row's error.
    pub tolerance: f32,
}

impl Descent<'_> {
    /// Two counts for each row of a panel: of this pass and of the one before.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn moves(gpu: &Gpu, panel: usize) -> Result<Buffer, GpuError> {
        gpu.alloc("scratch:descent counts", Self::moves_bytes(panel))
    }

    /// Bytes of [`Descent::moves`].
    pub fn moves_bytes(panel: usize) -> u64 {
        8 * panel as u64
    }

    /// Offset in bytes of the counts `[panel]` of a pass in the buffer of counts.
    pub fn counts_of(pass: u32, panel: usize) -> u64 {
        u64::from(pass % 2) * 4 * panel as u64
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n: u32,
    row: u32,
    k4: u32,
    w_first: u32,
    bit_row: u32,
    words: u32,
    first4: u32,
    units: u32,
    sweeps: u32,
    now: u32,
    before: u32,
    tolerance: f32,
    opens: u32,
    pad: [u32; 3],
}

/// Weights of a unit: what one lane looks at together.
fn unit(pattern: Pattern) -> usize {
    pattern.m().max(4)
}

/// Combinations that the search in a unit walks through (of M = 2 also those that are not strict), or 0 for exchanges.
fn combinations((n, m): (u32, u32)) -> u32 {
    let (n, m) = match m {
        2 => (2, 4),
        16 => return 0,
        m => (n, m),
    };
    (0..n).fold(1, |c, i| c * (m - i) / (i + 1))
}

/// Shader defs of the kernel; `chip` vec4s of a row lie in workgroup memory, 0 = none.
pub(super) fn defs(weight: (&'static str, u32), (n, m): (u32, u32), lanes: u32, chip: u32) -> Defs {
    let patterns = combinations((n, m));
    vec![weight, ("N", n), ("M", m), ("PATTERNS", patterns), ("LANES", lanes), ("CHIP", chip)]
}

impl Kernels<'_> {
    /// One pass of exact group descent over a panel of rows: the masks and products change in place, the number of groups
    /// that changed in each row is counted in the pass's half of `moves`. Returns how many sweeps were allowed.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn descent(&self, c: Stream<'_, '_>, d: &Descent<'_>) -> Result<u32, GpuError> {
        const NAME: &str = "descent";
        let (n, panel) = (d.h.n(), d.rows.len());
        let k4 = n / 4;
        let fits = d.weight.cols() == n
            && d.rows.end <= d.weight.rows()
            && d.mask.shape() == (d.weight.rows(), n)
            && n.is_multiple_of(unit(d.pattern))
            && d.moves.bytes() >= Descent::moves_bytes(panel);
        if !fits {
            return Err(shape_error(
                NAME,
                format!("rows {:?} of {} x {}, H of {n} rows", d.rows, d.weight.rows(), d.weight.cols()),
            ));
        }
        d.products.rows(0, panel, k4)?;
        let lanes = self.preset().row;
        let pattern = (d.pattern.n() as u32, d.pattern.m() as u32);
        let defs = defs(weight_def(d.weight.dtype()), pattern, lanes, self.chip(k4));
        let pipeline = self.pipeline(NAME, defs)?;
        let whole = d.h.chunks.len() == 1;
        let sweeps = if whole { d.sweeps } else { 1 };
        let now = d.pass % 2 * size(NAME, panel)?;
        let before = if d.pass == 0 { now } else { (d.pass + 1) % 2 * size(NAME, panel)? };
        for h in &d.h.chunks {
            let units = h.rows / unit(d.pattern);
            // Half of the groups change in a first sweep, few in later ones; a change takes about three columns of H.
            let row_flops =
                f64::from(sweeps) * units as f64 * LOOK_FLOPS + 0.5 * units as f64 * 6.0 * n as f64;
            let most = cut::dispatch_groups(self.limits(), row_flops, c.max_dispatch_flops());
            for chunk in &d.weight.chunks {
                for here in cut::pieces(cut::overlap(&chunk.range(), &d.rows), most) {
                    let (row, rows) = (here.start, here.len());
                    let params = Params {
                        n: size(NAME, rows)?,
                        row: size(NAME, row - d.rows.start)?,
                        k4: size(NAME, k4)?,
                        w_first: size(NAME, (row - chunk.first) * k4)?,
                        bit_row: size(NAME, row)?,
                        words: size(NAME, d.mask.words_per_row())?,
                        first4: size(NAME, h.first / 4)?,
                        units: size(NAME, units)?,
                        sweeps,
                        now,
                        before,
                        tolerance: d.tolerance,
                        opens: u32::from(h.first == 0),
                        pad: [0; 3],
                    };
                    let work = Work { flops: row_flops * rows as f64, bytes: 36.0 * (rows * n) as f64 };
                    let bind = [
                        chunk.buffer.all(),
                        h.buffer.all(),
                        d.mask.buffer.all(),
                        d.products.buffer().all(),
                        d.moves.all(),
                    ];
                    c.dispatch(&pipeline, &params, &bind, self.fold(rows, 1), work)?;
                }
            }
        }
        Ok(sweeps)
    }

    /// vec4s of a row of products that workgroup memory holds beside the kernel's own variables; 0 where it does not.
    fn chip(&self, k4: usize) -> u32 {
        let chip = k4.next_power_of_two().max(64) as u32;
        let own = 4 * self.preset().row + 256;
        if 16 * chip + own <= self.gpu().max_workgroup_bytes() { chip } else { 0 }
    }
}
