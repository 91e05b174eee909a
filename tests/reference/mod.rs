//! The kernels in f64, one plain function per kernel with the kernel's name, and for every value the unit in which the error
//! of an f32 implementation is measured. (MaskPro's kernels have their twins in `src/mask`: they are part of the product.)
//!
//! Activations are `[features, tokens]`, tokens contiguous, as on the device.
#![allow(dead_code, unused_imports)] // every test binary uses a part of it

mod activation;
mod attention;
mod attention_backward;
mod backward;
mod descent;
mod elementwise;
mod expected;
mod factor;
mod gram;
mod head;
mod inclusion;
pub mod law;
pub mod law_f32;
mod lstsq;
mod matmul;
mod norm;
mod panel;
mod prox;
mod score;
mod soft;
mod sparsegpt;
mod vocab;

pub use activation::{
    activate, activate_backward, add_scaled, clamp_backward, clamp_to, erfc, gated, gated_backward,
};
pub use attention::{attention, attention_lanes, attention_step, copy_columns};
pub use attention_backward::{
    AttentionCase, attention_backward_kv, attention_backward_lanes, attention_backward_q, attention_delta,
    log_sum_exp,
};
pub use backward::squared_error;
pub use descent::{descent, group_gain, row_error};
pub use elementwise::{Rotary, peak, rope, rope_backward};
pub use expected::{ExpectedRow, drawn_noise};
pub use factor::{damp, factor_block, upper_of};
pub use gram::{diagonal, gram, mirror, transpose};
pub use head::{Head, HeadTwin};
pub use inclusion::{inclusion, inclusion_gradient};
pub use lstsq::{LstsqState, LstsqTwin, damped_error, least_squares, lstsq_residual, lstsq_step};
pub use matmul::{Product, mask_apply, matmul_lanes, matmul_rows, matmul_tile};
pub use norm::{Norm, norm, norm_backward, norm_backward_lanes, norm_lanes};
pub use panel::{row_dot, spread};
pub use prox::{prox_objective, prox_sweeps, prox24};
pub use score::{abs_sum_cols, abs_sum_rows, best_exchange, score_mask, scores};
pub use soft::{
    AdamCase, SoftCase, adam_mask, adam_patterns, adam_weight, effective, pattern_noise, relaxations,
    soft_patterns, soft_patterns_gradient, soft_top, soft_top_gradient, weight_noise,
};
pub use sparsegpt::{Pruned, sparsegpt_block};
pub use vocab::{VocabState, vocab_gradient, vocab_kl, vocab_reduce};

/// Spacing of f32 at 1, twice the largest relative rounding error.
pub const EPS: f64 = f32::EPSILON as f64;

/// Exact values and units: for a sum of K products the unit is `sqrt(K) * EPS * sum |a| |b|`, about what the roundings of a
/// sum in any order add up to when their signs are random. Each function says what its unit is.
#[derive(Clone)]
pub struct Twin {
    pub value: Vec<f64>,
    pub unit: Vec<f64>,
    /// Values of one row, for messages.
    pub width: usize,
}

impl Twin {
    pub fn new(width: usize) -> Self {
        Self { value: Vec::new(), unit: Vec::new(), width }
    }

    pub fn push(&mut self, value: f64, unit: f64) {
        self.value.push(value);
        self.unit.push(unit);
    }

    /// Values that must come out bit for bit.
    pub fn exact(values: &[f32], width: usize) -> Self {
        Self { value: values.iter().map(|&v| f64::from(v)).collect(), unit: vec![0.0; values.len()], width }
    }

    /// Overwrites the rows from `first` on with those of `other`.
    pub fn replace_rows(&mut self, first: usize, other: &Twin) {
        assert_eq!(self.width, other.width);
        let at = first * self.width;
        self.value[at..at + other.value.len()].copy_from_slice(&other.value);
        self.unit[at..at + other.unit.len()].copy_from_slice(&other.unit);
    }
}
