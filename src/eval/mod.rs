//! What a mask costs: perplexity by the convention of GPTQ, SparseGPT and Wanda.

use crate::calib::Windows;
use crate::gpu::Commands;
use crate::kernel::{Kernels, Layout, MaskBuffer};
use crate::mask::MaskSet;
use crate::model::{Config, ProjectionKind};
use crate::nn::{
    Access, Activations, Batch, BlockPass, BlockSpace, BlockWeights, Decoder, Embedding, HeadPass, HeadSpace,
    HeadWeights, Keep, Masks, NnError, Place, Sizes, Tensors, Workspace,
};

/// Tokens that go through the model together.
const BATCH_TOKENS: usize = 4096;

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
/// binding holds `limit` bytes.
pub fn sizes(config: &Config, windows: usize, window: usize, most: usize, limit: u64) -> Sizes {
    let most = (BATCH_TOKENS / window.max(1)).clamp(1, windows.clamp(1, most.max(1)));
    let layout = Layout { windows: Sizes::windows_that_fit(config, window, most, limit), length: window };
    Sizes::new(config, layout, limit)
}

/// A workspace for running `windows`, at most `most` at a time.
///
/// # Errors
/// When the device has no room for one window.
pub fn workspace(decoder: &Decoder<'_, '_>, windows: &Windows, most: usize) -> Result<Workspace, NnError> {
    let gpu = decoder.kernels.gpu();
    let sizes = sizes(decoder.config, windows.count(), windows.window(), most, gpu.max_binding_bytes());
    Workspace::new(gpu, decoder.config, sizes)
}

/// Perplexity as [`perplexity`] gives it, with one block on the device at a time: for models of any depth.
#[derive(Clone, Copy)]
pub struct Streamed<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Config,
    /// The model's weights.
    pub tensors: Tensors<'a>,
    /// Its embedding.
    pub embedding: &'a Embedding<'a>,
}

impl<'g> Streamed<'_, 'g> {
    /// Perplexity of `windows` (cut from `tokens` tokens) under the masks of `set`; `progress` is called with the blocks done.
    ///
    /// # Errors
    /// As [`perplexity`].
    pub fn perplexity(
        &self,
        c: &mut Commands<'g>,
        windows: &Windows,
        tokens: usize,
        set: Option<&MaskSet>,
        mut progress: impl FnMut(usize),
    ) -> Result<Perplexity, NnError> {
        let (gpu, config) = (self.kernels.gpu(), self.config);
        let sizes = sizes(config, windows.count(), windows.window(), usize::MAX, gpu.max_binding_bytes());
        let space = BlockSpace::new(gpu, config, &sizes)?;
        let mut x = Activations::embed(
            gpu,
            config,
            self.embedding,
            windows.tokens(),
            sizes.clone(),
            Place::Host,
            Keep::Inputs,
        )?;
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        let attended_rows = config.num_heads * config.head_dim;
        for index in 0..config.num_layers {
            let block = BlockWeights::upload(gpu, self.tensors, config, index)?;
            let masks = ProjectionKind::ALL.map(|kind| config.projection(index, kind)).map(|p| {
                let mask = set.and_then(|set| set.get(&p.name));
                mask.map(|m| MaskBuffer::upload(gpu, &format!("masks:{}", p.name), m)).transpose()
            });
            let masks: Vec<Option<MaskBuffer>> = masks.into_iter().collect::<Result<_, _>>()?;
            x.each(c, access, |c, batch| {
                let masks = std::array::from_fn(|i| masks[i].as_ref());
                let pass = BlockPass {
                    kernels: self.kernels,
                    config,
                    ws: &space,
                    layout: batch.layout,
                    block: &block,
                    masks,
                };
                let attended = batch.kept(attended_rows)?;
                let normed = pass.attention_input(c, batch.x)?;
                pass.attend(c, normed, attended)?;
                pass.attention_output(c, attended, batch.x)?;
                let normed = pass.feed_forward_input(c, batch.x)?;
                for (first, piece) in batch.pieces(&sizes)? {
                    pass.inner(c, normed, first, piece)?;
                    pass.down(c, piece, first, batch.x)?;
                }
                Ok::<(), NnError>(())
            })?;
            progress(index + 1);
        }
        let weights = HeadWeights::upload(gpu, self.tensors, config)?;
        let ws = HeadSpace::new(gpu, &sizes)?;
        let head = HeadPass { kernels: self.kernels, config, weights: &weights, ws: &ws };
        let mut ids = windows.tokens();
        let mut means = Vec::with_capacity(windows.count());
        x.each(c, Access { load_x: true, ..Default::default() }, |c, batch| {
            let (now, rest) = ids.split_at(batch.layout.windows * batch.layout.length);
            ids = rest;
            let whole = Batch { ids: now.to_vec(), layout: batch.layout };
            let normed = space.normed(config, batch.layout)?;
            means.extend(head.losses(c, &whole, batch.x, normed)?.window_means());
            Ok::<(), NnError>(())
        })?;
        Ok(Perplexity::of(means, tokens, windows.window()))
    }
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
