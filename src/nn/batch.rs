//! Windows that go through a model together, and what comes out.

use crate::kernel::Layout;

/// Windows of tokens that go through the model together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[windows, length]` token ids.
    pub ids: Vec<u32>,
    /// Number and length of the windows.
    pub layout: Layout,
}

/// Loss of every predicted token of a batch.
#[derive(Clone, Debug)]
pub struct TokenLoss {
    /// `[windows, length - 1]` negative log-likelihoods in nats.
    pub nll: Vec<f64>,
    /// Number and length of the windows.
    pub layout: Layout,
}

impl TokenLoss {
    /// Mean over the predictions of each window.
    pub fn window_means(&self) -> Vec<f64> {
        let n = self.layout.length - 1;
        self.nll.chunks_exact(n).map(|w| w.iter().sum::<f64>() / n as f64).collect()
    }

    /// Mean over all predictions.
    pub fn mean(&self) -> f64 {
        self.nll.iter().sum::<f64>() / self.nll.len().max(1) as f64
    }
}
