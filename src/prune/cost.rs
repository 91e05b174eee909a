//! Operations, for estimates of time.

use crate::model::Architecture;

/// Operations of a block's forward pass: products and attention.
pub(super) fn forward_flops(config: &Architecture, block: usize, windows: usize, window: usize) -> f64 {
    let tokens = (windows * window) as f64;
    let weights: f64 = config.block_projections(block).map(|p| (p.rows * p.cols) as f64).sum();
    let heads = config.query_rows() as f64;
    2.0 * weights * tokens + 2.0 * heads * window as f64 * tokens
}
