//! The order that the channels of a run's model were put into.

use serde_json::{Value, json};

use crate::model::{Channels, Permutation};
use crate::prune::permute::Gain;

/// The order of a run, and what is told of it.
pub(super) struct Order {
    pub(super) permutation: Permutation,
    /// For `run.json`.
    pub(super) told: Value,
}

impl Order {
    pub(super) fn new(permutation: Permutation, gains: &[Gain], seconds: Option<f64>) -> Self {
        let channels: Vec<&str> = permutation.channels().into_iter().map(Channels::name).collect();
        let told = json!({
            "hash": permutation.hash(), "channels": channels, "kept_score": gains, "seconds": seconds,
        });
        Self { permutation, told }
    }
}
