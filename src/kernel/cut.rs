//! How large things are cut: the one place that knows into how many rows a matrix, a vocabulary or a batch goes at once.
//!
//! Everything here is arithmetic on sizes, without a device. What runs and what plans a run ask the same functions, so that a plan
//! is what will be allocated, and a test walks the shapes of published models through all of them (`tests/cuts.rs`).
//!
//! Three things bound a piece: what the adapter binds, stores and dispatches ([`Limits`]), what is worth holding at once (the budgets
//! below), and the multiple of rows at which a kernel can start (units). A piece is all rows where they fit; else a multiple of its
//! unit; and never less than one unit, even where that does not fit: allocating or binding it is then refused with its name.

use std::ops::Range;

use crate::gpu::{Limits, OFFSET_ALIGNMENT};

/// Bytes of an f32 tensor.
pub fn f32_bytes(rows: usize, cols: usize) -> u64 {
    rows as u64 * cols as u64 * 4
}

/// Rows at which kernels that take vec4s of rows can start.
pub const QUAD: usize = 4;
/// The largest group: columns of a mask at which a chunk of a square matrix starts and ends.
pub const GROUP: usize = 16;
/// Features of a piece of the feed-forward layer: a word of mask bits.
const FEATURES: usize = 32;
/// Rows of a piece of the vocabulary.
const VOCABULARY: usize = 64;

/// Bytes of a panel of a projection that a method works on, at most.
const PANEL: u64 = 64 << 20;
/// Bytes of effective weights, of masked copies, and of a strip of a gradient, that are made at once.
const EFFECTIVE: u64 = 32 << 20;
const MASKED: u64 = 32 << 20;
const GRADIENT: u64 = 32 << 20;
/// Bytes of the vocabulary logits kept at once; more where gradients are made: logits of a single chunk need not be made again.
const LOGITS: u64 = 16 << 20;
const TRAINED_LOGITS: u64 = 128 << 20;
/// Tokens that go through a model together, about.
const BATCH_TOKENS: usize = 4096;
/// Tokens added up in one product of a Gram matrix: its sums are blocked by it, so that their rounding errors grow with the root
/// of the number of blocks and of a block's tokens, not of all tokens.
const BLOCK_TOKENS: usize = 512;
/// Rows of a block of a Cholesky factor: what one workgroup can hold.
pub const FACTOR: usize = 64;
/// Rows of a triangle that are multiplied as one rectangle.
const TRIANGLE: Range<usize> = 64..512;

/// Bytes of a budget here: no more than one binding or one buffer holds.
fn budget(limits: Limits, bytes: u64) -> u64 {
    (bytes / limits.shrink.max(1)).min(limits.piece())
}

/// The most of `rows` rows of `row` bytes that `bytes` hold: all, or a multiple of `unit`; at least `unit`, or all where there are
/// fewer. Never 0, so that it can be stepped by.
pub fn fitting(rows: usize, row: u64, bytes: u64, unit: usize) -> usize {
    let most = usize::try_from(bytes / row.max(1)).unwrap_or(usize::MAX);
    if most >= rows { rows.max(1) } else { (most / unit * unit).max(unit).min(rows) }
}

/// `all` in pieces of `most`, the last one what is left.
pub fn pieces(all: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (most, end) = (most.max(1), all.end);
    all.step_by(most).map(move |first| first..first.saturating_add(most).min(end))
}

/// What two ranges of rows share; empty where they share nothing.
pub fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Rows of a chunk of a frozen matrix whose rows take `row` bytes: one buffer, bound whole. Chunks start at multiples of four rows, so
/// that blocks of 4 x 4 do not straddle two.
pub fn weight_rows(limits: Limits, rows: usize, row: u64) -> usize {
    fitting(rows, row, limits.piece(), QUAD)
}

/// Rows of a chunk of a square f32 matrix of `n` rows: one buffer, bound whole. Chunks start at multiples of the largest group, since
/// descent treats the groups whose columns are a chunk's rows.
pub fn square_rows(limits: Limits, n: usize) -> usize {
    fitting(n, f32_bytes(1, n), limits.piece(), GROUP)
}

/// Rows of a panel of a projection `[rows, n]`, in f32, that a method works on.
pub fn panel_rows(limits: Limits, rows: usize, n: usize) -> usize {
    fitting(rows, f32_bytes(1, n), budget(limits, PANEL), QUAD)
}

/// Rows of effective weights `[rows, cols]` that are made at once, as they lie or transposed; their columns are padded to vec4s.
pub fn effective_rows(limits: Limits, rows: usize, cols: usize) -> usize {
    let row = f32_bytes(1, cols.next_multiple_of(QUAD));
    fitting(rows.next_multiple_of(QUAD), row, budget(limits, EFFECTIVE), QUAD)
}

/// Rows of the masked copy of a matrix of `rows` rows of `row` bytes that are made at once.
pub fn masked_rows(limits: Limits, rows: usize, row: u64) -> usize {
    fitting(rows, row, budget(limits, MASKED), 1)
}

/// Bytes that the masked copies of matrices of at most `largest` bytes take.
pub fn masked_bytes(limits: Limits, largest: u64) -> u64 {
    largest.min(budget(limits, MASKED))
}

/// Rows of the gradient of a projection `[rows, cols]` that are made at once.
pub fn gradient_rows(limits: Limits, rows: usize, cols: usize) -> usize {
    fitting(rows, f32_bytes(1, cols), budget(limits, GRADIENT), QUAD)
}

/// Features of a piece of a feed-forward layer of `features`, for `tokens` tokens.
pub fn feature_rows(limits: Limits, features: usize, tokens: usize) -> usize {
    fitting(features, f32_bytes(1, tokens), limits.piece(), FEATURES)
}

/// Rows of a chunk of a vocabulary of `rows`, for `tokens` tokens.
pub fn vocabulary_rows(limits: Limits, rows: usize, tokens: usize) -> usize {
    fitting(rows, f32_bytes(1, tokens), budget(limits, LOGITS), VOCABULARY)
}

/// The same where gradients are made: the products behind them take four rows at a time, the last ones padded with zeros.
pub fn trained_vocabulary_rows(limits: Limits, rows: usize, tokens: usize) -> usize {
    fitting(rows.next_multiple_of(QUAD), f32_bytes(1, tokens), budget(limits, TRAINED_LOGITS), VOCABULARY)
}

/// The most windows of `length` tokens, up to `most`, of which an activation of `widest` features fits one binding. At least one: a
/// single window that does not fit is reported when it is allocated.
pub fn windows(limits: Limits, widest: usize, length: usize, most: usize) -> usize {
    fitting(most, f32_bytes(widest, length.next_multiple_of(QUAD)), limits.piece(), 1)
}

/// Windows of `length` tokens that go through a model together: about 4096 tokens, and no more than `most`.
pub fn together(length: usize, most: usize) -> usize {
    (BATCH_TOKENS / length.max(1)).clamp(1, most.max(1))
}

/// Tokens of a block of a Gram matrix of `n` features, of an input of `tokens` tokens: the block is transposed into one buffer.
pub fn block_tokens(limits: Limits, n: usize, tokens: usize) -> usize {
    let most = BLOCK_TOKENS.min(tokens.next_multiple_of(QUAD));
    fitting(most, f32_bytes(1, n), limits.piece(), QUAD)
}

/// Rows of a block of the Cholesky factor of an `[n, n]` matrix. No block crosses a chunk, and a panel of a block's rows fits
/// wherever a chunk does.
pub fn factor_rows(limits: Limits, n: usize) -> usize {
    FACTOR.min(square_rows(limits, n))
}

/// Rows of a triangle of `n` rows that are multiplied as one rectangle, about `1 / parts` of it, by products of `unit` rows.
pub fn triangle_rows(n: usize, parts: usize, unit: usize) -> usize {
    let unit = unit.max(QUAD);
    (n / parts).next_multiple_of(unit).clamp(unit.max(TRIANGLE.start), TRIANGLE.end.max(unit))
}

/// Rows of one dispatch of workgroups of `unit` rows, of which a row takes `row_flops` operations and a dispatch may hold `flops`.
pub fn dispatch_rows(limits: Limits, row_flops: f64, flops: f64, unit: usize) -> usize {
    let most = (flops / row_flops.max(1.0)) as usize / unit * unit;
    most.clamp(unit, unit.saturating_mul(limits.groups.max(1) as usize))
}

/// Rows, one workgroup each, of one dispatch with a folded grid.
pub fn dispatch_groups(limits: Limits, row_flops: f64, flops: f64) -> usize {
    let most = limits.groups.max(1) as usize;
    ((flops / row_flops.max(1.0)) as usize).clamp(1, most.saturating_mul(most).min(1 << 24))
}

/// Workgroups that cover `invocations` with `lanes` each, folded into two dimensions when one is not enough. Those of the last row of
/// the grid that are too many do nothing.
pub fn fold(limits: Limits, invocations: usize, lanes: u32) -> [u32; 3] {
    let groups = invocations.div_ceil(lanes.max(1) as usize);
    let y = groups.div_ceil(limits.groups.max(1) as usize).max(1);
    [groups.div_ceil(y) as u32, y as u32, 1]
}

/// Rows of `row` bytes of a buffer of any size that one binding takes: a multiple of `unit`, or all `rows`; none where not even a
/// unit fits. A binding starts at the multiple of [`OFFSET_ALIGNMENT`] at or below its first row, which costs it up to as much.
pub fn bound_rows(limits: Limits, rows: usize, row: u64, unit: usize) -> Option<usize> {
    if row == 0 {
        return Some(rows.max(1));
    }
    let room = limits.binding.saturating_sub(OFFSET_ALIGNMENT);
    let most = fitting(rows, row, room, unit);
    (most as u64 * row <= room).then_some(most)
}

/// A range of a buffer that is bound for some of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Byte at which the binding starts.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes from its start to the first row.
    pub skipped: u64,
}

/// The binding of `rows` of `row` bytes each of a buffer of `bytes`.
pub fn bound(rows: &Range<usize>, row: u64, bytes: u64) -> Bound {
    let start = rows.start as u64 * row;
    let offset = start / OFFSET_ALIGNMENT * OFFSET_ALIGNMENT;
    let skipped = start - offset;
    let length = (skipped + rows.len() as u64 * row).next_multiple_of(16).min(bytes.saturating_sub(offset));
    Bound { offset, bytes: length, skipped }
}
