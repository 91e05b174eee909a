//! What a mask costs: perplexity by the convention of GPTQ, SparseGPT and Wanda, the divergence from the dense model, and what the model
//! writes.

mod choices;
mod generate;
pub mod plan;
mod streamed;
mod summary;
mod worst;

pub use choices::{Accuracy, Answered, Candidates};
pub use generate::{Choice, Continuation, Generation, generate};
pub use streamed::{Comparison, Streamed, Streams};
pub use summary::{BesideSummary, Estimate, OVERFLOW, Summary, WindowMeans};
pub use worst::Rise;

use crate::calib::Windows;
use crate::gpu::{Commands, Limits};
use crate::kernel::{Layout, cut};
use crate::model::Architecture;
use crate::nn::{Batch, Decoder, Masks, NnError, Sizes, Workspace};

/// Perplexity of a text.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Perplexity {
    /// exp of the mean over windows of the window means.
    pub perplexity: f64,
    /// That mean, in nats per token.
    pub nll: f64,
    /// Windows measured.
    pub windows: usize,
    /// Tokens of the whole text, the dropped tail included.
    pub tokens: usize,
    /// Tokens of a window; one less is predicted in each.
    pub window: usize,
    /// Mean of each window, in order.
    #[serde(skip)]
    pub window_means: Vec<f64>,
}

/// Sizes for running `windows` windows of `window` tokens, at most `most` of them and about 4096 tokens at a time, where one
/// adapter allows `limits`.
pub fn sizes(
    config: &Architecture,
    windows: usize,
    window: usize,
    most: usize,
    limits: impl Into<Limits>,
) -> Sizes {
    let (limits, most) = (limits.into(), cut::together(window, windows.min(most)));
    let layout = Layout { windows: Sizes::windows_that_fit(config, window, most, limits), length: window };
    Sizes::new(config, layout, limits)
}

/// A workspace for running `windows`, at most `most` at a time.
///
/// # Errors
/// When the device has no room for one window.
pub fn workspace(decoder: &Decoder<'_, '_>, windows: &Windows, most: usize) -> Result<Workspace, NnError> {
    let gpu = decoder.kernels.gpu();
    let sizes = sizes(decoder.config, windows.count(), windows.window(), most, gpu.limits());
    Workspace::new(gpu, decoder.config, sizes)
}

impl Perplexity {
    fn of(window_means: Vec<f64>, tokens: usize, window: usize) -> Self {
        let nll = window_means.iter().sum::<f64>() / window_means.len().max(1) as f64;
        Self { perplexity: nll.exp(), nll, windows: window_means.len(), tokens, window, window_means }
    }
}

/// Perplexity of `windows` (cut from `tokens` tokens) under `masks`; `progress` is called with the windows done.
///
/// The text was tokenised once, windows do not overlap and the tail is dropped; each window's loss is the mean over its
/// `window - 1` predictions, and the perplexity is exp of the mean of these (notes of GPTQ's, SparseGPT's and Wanda's code).
///
/// # Errors
/// What the device reports; a token outside the vocabulary; a loss that is not finite.
pub fn perplexity<'g>(
    decoder: &Decoder<'g, '_>,
    c: &mut Commands<'g>,
    ws: &Workspace,
    windows: &Windows,
    tokens: usize,
    masks: Masks<'_>,
    mut progress: impl FnMut(usize),
) -> Result<Perplexity, NnError> {
    let mut means = Vec::with_capacity(windows.count());
    let per_batch = ws.sizes.layout.windows;
    for ids in windows.tokens().chunks(per_batch * windows.window()) {
        let layout = Layout { windows: ids.len() / windows.window(), length: windows.window() };
        let batch = Batch { ids: ids.to_vec(), layout };
        means.extend(decoder.losses(c, ws, &batch, masks)?.window_means());
        progress(means.len());
    }
    Ok(Perplexity::of(means, tokens, windows.window()))
}
