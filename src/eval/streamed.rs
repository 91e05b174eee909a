//! A model beside the dense one, with one block on the device at a time: for models of any depth.

use super::{Perplexity, sizes};
use crate::calib::Windows;
use crate::gpu::{Commands, GpuError};
use crate::kernel::{Activation, Kernels, MaskBuffer};
use crate::mask::MaskSet;
use crate::model::{Architecture, ProjectionKind};
use crate::nn::{
    Access, Activations, Batch, BlockPass, BlockSpace, BlockWeights, DenseHead, Embedding, HeadPass,
    HeadSpace, HeadWeights, Keep, NnError, Place, Sizes, Tensors,
};

/// A model whose blocks are on the device one at a time.
#[derive(Clone, Copy)]
pub struct Streamed<'a, 'g> {
    /// The kernels it runs on.
    pub kernels: &'a Kernels<'g>,
    /// The model's configuration.
    pub config: &'a Architecture,
    /// The model's weights.
    pub tensors: Tensors<'a>,
    /// Its embedding.
    pub embedding: &'a Embedding<'a>,
}

/// Residual streams of all windows behind the last block of a dense model, in host memory: what others are compared with.
pub struct Streams<'a, 'g> {
    model: Streamed<'a, 'g>,
    /// Windows of a batch.
    at_once: usize,
    /// `[hidden, t]` each.
    batches: Vec<Vec<f32>>,
}

/// A model beside the dense one, on the same text.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Of the model.
    pub model: Perplexity,
    /// Of the dense model.
    pub dense: Perplexity,
    /// Mean over the predicted tokens of `sum p_dense * (log p_dense - log p)`, in nats.
    pub kl: f64,
    /// Share of the predicted tokens for which both models have the same most likely token.
    pub top1: f64,
    /// [`Comparison::kl`] of each window.
    pub kl_means: Vec<f64>,
    /// [`Comparison::top1`] of each window.
    pub top1_means: Vec<f64>,
    /// Losses of the predicted tokens in nats, of the model and of the dense one: `[windows, window - 1]` each.
    pub losses: [Vec<f32>; 2],
}

/// The mean; windows have at least one predicted token.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl<'a, 'g> Streamed<'a, 'g> {
    fn sizes(&self, windows: &Windows, most: usize) -> Sizes {
        self.sizes_of(windows.count(), windows.window(), most)
    }

    pub(super) fn sizes_of(&self, windows: usize, window: usize, most: usize) -> Sizes {
        sizes(self.config, windows, window, most, self.kernels.limits())
    }

    /// Runs the blocks under the masks of `set`.
    fn blocks(
        &self,
        c: &mut Commands<'g>,
        windows: &Windows,
        sizes: &Sizes,
        set: Option<&MaskSet>,
        mut progress: impl FnMut(usize),
    ) -> Result<(Activations<'g>, BlockSpace), NnError> {
        let (gpu, config) = (self.kernels.gpu(), self.config);
        let space = BlockSpace::new(gpu, config, sizes)?;
        let mut x = Activations::embed(
            gpu,
            self.embedding,
            windows.tokens(),
            sizes.clone(),
            Place::Host,
            Keep::Inputs,
        )?;
        let access = Access { load_x: true, save_x: true, ..Default::default() };
        let attended_rows = config.query_rows();
        for index in 0..config.num_layers {
            let block = BlockWeights::upload(gpu, self.tensors, config, index)?;
            let mut masks = [const { None }; ProjectionKind::ALL.len()];
            for p in config.block_projections(index) {
                if let Some(mask) = set.and_then(|set| set.get(&p.name)) {
                    let label = format!("masks:{}", p.name);
                    masks[p.kind as usize] = Some(MaskBuffer::upload(gpu, &label, mask)?);
                }
            }
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
                pass.behind_attention(c, attended, batch.x, batch.branch(sizes)?, batch.pieces(sizes)?)
            })?;
            progress(index + 1);
        }
        Ok((x, space))
    }

    /// The residual streams of `windows` behind the last block of this model, which is the dense one, in batches for which `other`,
    /// which will be compared with it, has room, too; `progress` is called with the blocks done.
    ///
    /// # Errors
    /// What the device reports; a token outside the vocabulary.
    pub fn streams(
        self,
        c: &mut Commands<'g>,
        windows: &Windows,
        other: &Streamed<'_, 'g>,
        progress: impl FnMut(usize),
    ) -> Result<Streams<'a, 'g>, NnError> {
        let sizes = self.sizes(windows, other.sizes(windows, usize::MAX).layout.windows);
        let (x, _) = self.blocks(c, windows, &sizes, None, progress)?;
        Ok(Streams { model: self, at_once: sizes.layout.windows, batches: x.into_residuals()? })
    }

    /// This model under the masks of `set` beside the `dense` one, on the `windows` (cut from `tokens` tokens) of its streams;
    /// `progress` is called with the blocks done.
    ///
    /// # Errors
    /// What the device reports; a token outside the vocabulary; a loss that is not finite; streams of other windows.
    pub fn compare(
        &self,
        c: &mut Commands<'g>,
        windows: &Windows,
        tokens: usize,
        set: Option<&MaskSet>,
        dense: &Streams<'_, 'g>,
        progress: impl FnMut(usize),
    ) -> Result<Comparison, NnError> {
        let (gpu, config) = (self.kernels.gpu(), self.config);
        let sizes = self.sizes(windows, dense.at_once);
        let at_once = sizes.layout.windows;
        if at_once != dense.at_once || windows.count().div_ceil(at_once) != dense.batches.len() {
            let message = format!("batches of {at_once} windows, streams of {}", dense.at_once);
            return Err(GpuError::Shape { kernel: "head", message }.into());
        }
        let (mut x, space) = self.blocks(c, windows, &sizes, set, progress)?;
        let weights = HeadWeights::upload(gpu, self.tensors, config)?;
        // A pruned model has the head of the dense one.
        let of_dense = match self.same_head(&dense.model)? {
            true => None,
            false => Some(HeadWeights::upload(gpu, dense.model.tensors, dense.model.config)?),
        };
        let hidden = dense.model.config.hidden_size;
        let ws = HeadSpace::comparing(gpu, hidden, &sizes)?;
        let stream = Activation::new(gpu, "activations:dense residual", hidden, sizes.layout.t4())?;
        let head = HeadPass { kernels: self.kernels, config, weights: &weights, ws: &ws };
        let mut ids = windows.tokens();
        let (mut means, mut dense_means) = (Vec::new(), Vec::new());
        let (mut kl_means, mut top1_means) = (Vec::new(), Vec::new());
        let mut losses = [Vec::new(), Vec::new()];
        x.each(c, Access { load_x: true, ..Default::default() }, |c, batch| {
            let (now, rest) = ids.split_at(batch.layout.windows * batch.layout.length);
            ids = rest;
            let whole = Batch { ids: now.to_vec(), layout: batch.layout };
            c.write(stream.buffer(), 0, &dense.batches[batch.index])?;
            let beside = DenseHead {
                x: stream.rows(0, hidden, batch.layout.t4())?,
                weights: of_dense.as_ref().unwrap_or(&weights),
                config: dense.model.config,
            };
            let normed = space.normed(config, batch.layout)?;
            let found = head.compare(c, &whole, batch.x, normed, beside)?;
            means.extend(found.tokens.window_means());
            dense_means.extend(found.dense.window_means());
            let predicted = batch.layout.length - 1;
            kl_means.extend(found.kl.chunks_exact(predicted).map(mean));
            let agree =
                |window: &[bool]| mean(&window.iter().map(|a| f64::from(u8::from(*a))).collect::<Vec<_>>());
            top1_means.extend(found.agree.chunks_exact(predicted).map(agree));
            for (all, found) in losses.iter_mut().zip([&found.tokens, &found.dense]) {
                all.extend(found.nll.iter().map(|&loss| loss as f32));
            }
            Ok::<(), NnError>(())
        })?;
        Ok(Comparison {
            model: Perplexity::of(means, tokens, windows.window()),
            dense: Perplexity::of(dense_means, tokens, windows.window()),
            kl: mean(&kl_means),
            top1: mean(&top1_means),
            kl_means,
            top1_means,
            losses,
        })
    }

    /// Whether two models have the same last norm and output matrix, byte for byte.
    pub(super) fn same_head(&self, other: &Streamed<'_, '_>) -> Result<bool, NnError> {
        let same = |own: &str, others: &str| -> Result<bool, NnError> {
            let (a, b) = (self.tensors.tensor(own)?, other.tensors.tensor(others)?);
            Ok(a.dtype == b.dtype && a.shape == b.shape && a.data == b.data)
        };
        let tensors = |config: &Architecture| config.head_tensors();
        let (own, others) = (tensors(self.config), tensors(other.config));
        let alike = self.config.norm == other.config.norm
            && self.config.scales.logits == other.config.scales.logits
            && own.len() == others.len();
        own.iter().zip(&others).try_fold(alike, |alike, (a, b)| Ok(alike && same(&a.name, &b.name)?))
    }
}
