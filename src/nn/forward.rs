//! The forward pass and the loss of every token.

use super::block::{BlockPass, block_masks};
use super::{Batch, DecoderWeights, Embedding, HeadPass, Masks, NnError, TokenLoss, Workspace};
use crate::gpu::Commands;
use crate::kernel::{Kernels, Layout, Rows};
use crate::model::Architecture;

/// A decoder whose blocks are all resident.
pub struct Decoder<'g, 'm> {
    /// The kernels it runs on.
    pub kernels: &'m Kernels<'g>,
    /// What the model computes.
    pub config: &'m Architecture,
    /// Its weights.
    pub weights: &'m DecoderWeights,
    /// Its embedding, on the host.
    pub embedding: Embedding<'m>,
}

/// Attention within each window.
fn attend<'g>(
    c: &mut Commands<'g>,
    (_, pass): (usize, &BlockPass<'_, 'g>),
    normed: Rows<'_>,
    attended: Rows<'_>,
) -> Result<(), NnError> {
    pass.attend(c, normed, attended)
}

impl<'g> Decoder<'g, '_> {
    /// Losses of `batch` under `masks`, as [`TokenLoss`]. Blocks until the result is there.
    ///
    /// # Errors
    /// What the device reports; a token outside the vocabulary; a loss that is not finite.
    pub fn losses(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        batch: &Batch,
        masks: Masks<'_>,
    ) -> Result<TokenLoss, NnError> {
        self.embed(c, ws, batch)?;
        self.blocks(c, ws, batch.layout, masks, attend)?;
        let (hidden, t4) = (self.config.hidden_size, batch.layout.t4());
        let normed = ws.block.normed(self.config, batch.layout)?;
        self.head(ws).losses(c, batch, ws.x.rows(0, hidden, t4)?, normed)
    }

    /// Builds every pipeline that [`Decoder::losses`] needs under `masks`, by running a batch of one window, and waits for the
    /// driver's compiler. The workspace must hold one window of its layout.
    ///
    /// # Errors
    /// A kernel that does not compile here.
    pub fn warm_up(&self, c: &mut Commands<'g>, ws: &Workspace, masks: Masks<'_>) -> Result<(), NnError> {
        let layout = Layout { windows: 1, length: ws.sizes.layout.length };
        let batch = Batch { ids: vec![0; layout.length], layout };
        self.losses(c, ws, &batch, masks).map(|_| ())
    }

    /// Writes the residual stream in front of the first block.
    fn embed(&self, c: &mut Commands<'g>, ws: &Workspace, batch: &Batch) -> Result<(), NnError> {
        let x = self.embedding.gather(&batch.ids, batch.layout)?;
        Ok(c.write(ws.x.buffer(), 0, &x)?)
    }

    /// All blocks; `attend` gets the block's number and its pass, and makes the third, the attention's result, of the second, its
    /// normed input.
    pub(super) fn blocks<F>(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        layout: Layout,
        masks: Masks<'_>,
        attend: F,
    ) -> Result<(), NnError>
    where
        F: Fn(&mut Commands<'g>, (usize, &BlockPass<'_, 'g>), Rows<'_>, Rows<'_>) -> Result<(), NnError>,
    {
        let (config, t4) = (self.config, layout.t4());
        let x = ws.x.rows(0, config.hidden_size, t4)?;
        let attended = ws.attended.rows(0, config.query_rows(), t4)?;
        let branch = ws.branch.as_ref().map(|b| b.rows(0, config.hidden_size, t4)).transpose()?;
        let piece = |(first, rows)| Ok((first, ws.inner.rows(0, rows, t4)?));
        let pieces = ws.sizes.pieces().map(piece).collect::<Result<Vec<_>, NnError>>()?;
        for (i, block) in self.weights.blocks.iter().enumerate() {
            let masks = block_masks(config, masks, i);
            let pass = BlockPass { kernels: self.kernels, config, ws: &ws.block, layout, block, masks };
            let normed = pass.attention_input(c, x)?;
            attend(c, (i, &pass), normed, attended)?;
            pass.behind_attention(c, attended, x, branch, pieces.iter().copied())?;
        }
        Ok(())
    }

    pub(super) fn head<'a>(&'a self, ws: &'a Workspace) -> HeadPass<'a, 'g> {
        let weights = &self.weights.head;
        HeadPass { kernels: self.kernels, config: self.config, weights, ws: &ws.head }
    }

    /// All logits `[tokens, vocab]` of a small batch: for tests and fixtures, since the product never needs them at once.
    ///
    /// # Errors
    /// What the device reports.
    pub fn logits(
        &self,
        c: &mut Commands<'g>,
        ws: &Workspace,
        batch: &Batch,
        masks: Masks<'_>,
    ) -> Result<Vec<Vec<f32>>, NnError> {
        let (layout, t4) = (batch.layout, batch.layout.t4());
        self.embed(c, ws, batch)?;
        self.blocks(c, ws, layout, masks, attend)?;
        let x = ws.x.rows(0, self.config.hidden_size, t4)?;
        let normed = ws.block.normed(self.config, layout)?;
        self.head(ws).logits(c, layout, x, normed)
    }
}
