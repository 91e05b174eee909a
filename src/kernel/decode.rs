//! Kernels of decoding token by token: keys and values into a cache, and attention of one token over it.

use bytemuck::{Pod, Zeroable};

use super::{Heads, Kernels, Rows, Stream, shape_error, size};
use crate::gpu::{GpuError, Work};

/// A run of columns (tokens) in each of several windows of an activation `[rows, tokens]`, which is used from its first row.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// All rows.
    pub rows: Rows<'a>,
    /// Tokens from the start of one window to that of the next.
    pub window: usize,
    /// First token of the run in its window.
    pub at: usize,
}

impl Columns<'_> {
    /// Whether the last run of `length` tokens ends within the tensor.
    fn holds(&self, windows: usize, length: usize) -> bool {
        self.rows.first == 0
            && (windows == 0 || (windows - 1) * self.window + self.at + length <= 4 * self.rows.t4)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StepParams {
    q_tokens: u32,
    kv4: u32,
    window4: u32,
    seen: u32,
    group: u32,
    scale: f32,
    cap: f32,
    reach: u32,
}

/// Keys and values of sequences, side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cached {
    /// How many sequences.
    pub sequences: usize,
    /// Columns of a sequence, a multiple of four.
    pub window: usize,
    /// Tokens of each so far, the one at work included.
    pub seen: usize,
}

impl Kernels<'_> {
    /// Copies `length` columns of each of `windows` windows.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn copy_columns(
        &self,
        c: Stream<'_, '_>,
        from: Columns<'_>,
        to: Columns<'_>,
        windows: usize,
        length: usize,
    ) -> Result<(), GpuError> {
        const NAME: &str = "copy_columns";
        let rows = from.rows.count;
        if rows != to.rows.count || !from.holds(windows, length) || !to.holds(windows, length) {
            let message = format!(
                "{rows} rows, {windows} runs of {length} from {} of {}, to {} rows, {} of {}",
                from.at,
                4 * from.rows.t4,
                to.rows.count,
                to.at,
                4 * to.rows.t4
            );
            return Err(shape_error(NAME, message));
        }
        let count = rows * windows * length;
        if count == 0 {
            return Ok(());
        }
        let lanes = self.preset().lanes;
        let pipeline = self.pipeline(NAME, vec![("LANES", lanes)])?;
        let sizes = [
            count,
            windows * length,
            length,
            4 * from.rows.t4,
            from.window,
            from.at,
            4 * to.rows.t4,
            to.window,
            to.at,
        ];
        let mut params = [0; 12];
        for (param, value) in params.iter_mut().zip(sizes) {
            *param = size(NAME, value)?;
        }
        let work = Work { flops: 0.0, bytes: 8.0 * count as f64 };
        let bind = [from.rows.buffer.all(), to.rows.buffer.all()];
        c.dispatch(&pipeline, &params, &bind, self.fold(count, lanes), work)
    }

    /// Attention of one token of each of the cached sequences over the tokens seen so far of its window in `k` and `v`, of which the
    /// token itself is the last (or over the last of them that `heads.window` lets it see): `q`, `o` `[heads * head_dim, t]` with sequence `i` in column `i`, `k`, `v` `[kv_heads * head_dim, t]`
    /// with the columns of a window for each sequence.
    ///
    /// # Errors
    /// Shapes that do not fit, or what the device reports.
    pub fn attention_step(
        &self,
        c: Stream<'_, '_>,
        [q, k, v]: [Rows<'_>; 3],
        o: Rows<'_>,
        heads: Heads,
        Cached { sequences, window, seen }: Cached,
    ) -> Result<(), GpuError> {
        const NAME: &str = "attention_step";
        let Heads { heads: h, kv_heads, head_dim, .. } = heads;
        let cached = |rows| Columns { rows, window, at: 0 };
        let fits = heads.valid()
            && window.is_multiple_of(4)
            && (1..=window).contains(&seen)
            && q.count == h * head_dim
            && k.count == kv_heads * head_dim
            && (o.count, v.count, o.t4, v.t4) == (q.count, k.count, q.t4, k.t4)
            && (q.first, o.first) == (0, 0)
            && sequences <= 4 * q.t4
            && cached(k).holds(sequences, seen)
            && cached(v).holds(sequences, seen);
        if !fits {
            let message = format!(
                "q {} k {} v {} o {} rows for {heads:?}, {sequences} sequences of {seen} in {window}",
                q.count, k.count, v.count, o.count
            );
            return Err(shape_error(NAME, message));
        }
        let shape = vec![("WG", self.preset().attention.0), ("HEAD_DIM", size(NAME, head_dim)?)];
        let defs = [shape, heads.defs(seen)].concat();
        let pipeline = self.pipeline(NAME, defs)?;
        let params = StepParams {
            q_tokens: size(NAME, 4 * q.t4)?,
            kv4: size(NAME, k.t4)?,
            window4: size(NAME, window / 4)?,
            seen: size(NAME, seen)?,
            group: size(NAME, h / kv_heads)?,
            scale: heads.scale,
            cap: heads.cap.unwrap_or(0.0),
            reach: size(NAME, heads.reach(seen).unwrap_or(0))?,
        };
        let values = (sequences * heads.reach(seen).unwrap_or(seen)) as f64;
        let work = Work { flops: 4.0 * values * q.count as f64, bytes: 8.0 * values * k.count as f64 };
        let bind = [q.buffer.all(), k.buffer.all(), v.buffer.all(), o.buffer.all()];
        c.dispatch(&pipeline, &params, &bind, [size(NAME, sequences)?, size(NAME, h)?, 1], work)
    }
}
