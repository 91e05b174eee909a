//! The head beside that of the dense model: how far apart the distributions of the next token are, without ever holding all logits.

use super::head::{DenseSide, DenseSpace, losses_of, of_predicted, read_state, shape};
use super::{Batch, HeadPass, HeadSpace, HeadWeights, NnError, Sizes, TokenLoss};
use crate::gpu::{Commands, Gpu};
use crate::kernel::{DIVERGENCE, Layout, LogSum, Rows, Softmax, VOCAB_STATE, agrees};
use crate::model::Architecture;

impl HeadSpace {
    /// Allocates for [`HeadPass::compare`], too, with a model whose residual stream has `hidden` features.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn comparing(gpu: &Gpu, hidden: usize, sizes: &Sizes) -> Result<Self, NnError> {
        let dense = DenseSpace::new(gpu, hidden, sizes.vocab_rows, sizes.layout.t4())?;
        Ok(Self { dense: Some(dense), ..Self::new(gpu, sizes)? })
    }

    /// Bytes of [`HeadSpace::comparing`].
    pub fn comparing_bytes(hidden: usize, sizes: &Sizes) -> u64 {
        Self::bytes(sizes) + DenseSpace::bytes(hidden, sizes.vocab_rows, sizes.layout.t4())
    }
}

/// Divergences and agreement of the predicted tokens of a batch, `[windows, length - 1]`.
pub(super) struct Divergences {
    pub(super) kl: Vec<f64>,
    pub(super) agree: Vec<bool>,
}

impl<'g> DenseSide<'_, 'g> {
    /// Divergences from this side, where `own` is the state of the other; and this side's state.
    pub(super) fn read(
        &self,
        c: &mut Commands<'g>,
        layout: Layout,
        own: &[f32],
    ) -> Result<(Divergences, Vec<f32>), NnError> {
        let tokens = 4 * layout.t4();
        let sums: Vec<f32> = c.read(&self.space.kl, 0, DIVERGENCE * tokens)?;
        let dense = read_state(c, &self.space.state, layout)?;
        let kl = of_predicted(layout, |t| {
            let [own, dense] = [own, dense.as_slice()].map(|state| LogSum::of(state, tokens, t));
            own.divergence(&dense, &sums, tokens, t)
        })?;
        let agree = of_predicted(layout, |t| f64::from(u8::from(agrees(&sums, tokens, t))))?;
        Ok((Divergences { kl, agree: agree.into_iter().map(|a| a > 0.0).collect() }, dense))
    }
}

/// What [`HeadPass::compare`] reports of the predicted tokens of a batch.
#[derive(Clone, Debug)]
pub struct HeadComparison {
    /// Negative log-likelihoods of the model.
    pub tokens: TokenLoss,
    /// Those of the dense model.
    pub dense: TokenLoss,
    /// `sum p_dense * (log p_dense - log p)`, `[windows, length - 1]` in nats.
    pub kl: Vec<f64>,
    /// Whether both models have the same most likely token; equally likely ones count.
    pub agree: Vec<bool>,
}

impl<'g> HeadPass<'_, 'g> {
    /// The dense model's head with `weights`, on its residual stream `x` `[hidden, t]`, if there is room for it.
    pub(super) fn dense_side<'b>(
        &'b self,
        x: Rows<'b>,
        weights: &'b HeadWeights,
    ) -> Option<DenseSide<'b, 'g>> {
        let space = self.ws.dense.as_ref()?;
        Some(DenseSide { pass: HeadPass { weights, ..*self }, space, x })
    }

    /// Adds the chunk's share to the divergences, and leaves `scale` times their gradient in `logits`, which may be padded. The
    /// logits of both sides are made `again` where others have taken their place: then the caller has made this side's.
    pub(super) fn divergence(
        &self,
        c: &mut Commands<'g>,
        logits: Rows<'_>,
        chunk: (usize, usize),
        again: bool,
        dense: &DenseSide<'_, 'g>,
        scale: f32,
    ) -> Result<(), NnError> {
        let (first, rows) = chunk;
        if again {
            dense.logits(c, first, rows)?;
        }
        let of_dense = dense.space.logits.rows(0, logits.count, logits.t4)?;
        let state = self.ws.state.rows(0, VOCAB_STATE, logits.t4)?;
        let (targets, kl) = (&self.ws.targets, &dense.space.kl);
        let own = Softmax { state, cap: self.config.logit_cap };
        let other = Softmax { state: dense.state()?, cap: dense.cap() };
        Ok(self.kernels.vocab_kl(
            c,
            [logits, of_dense],
            first..first + rows,
            [own, other],
            targets,
            (scale, kl),
        )?)
    }

    /// Losses and divergences of `batch` from the residual streams `x` `[hidden, t]` behind the last blocks of this model and of
    /// the dense one, which has a head of its own; `normed` `[hidden, t]` is scratch. Blocks until the result is there.
    ///
    /// # Errors
    /// What the device reports; a space that was not made for this; a loss that is not finite.
    pub fn compare(
        &self,
        c: &mut Commands<'g>,
        batch: &Batch,
        x: Rows<'_>,
        normed: Rows<'_>,
        dense: DenseHead<'_>,
    ) -> Result<HeadComparison, NnError> {
        let missing = || shape("no room for another model: made with HeadSpace::comparing?");
        let mut side = self.dense_side(dense.x, dense.weights).ok_or_else(missing)?;
        side.pass.config = dense.config;
        if dense.config.vocab_size != self.config.vocab_size || dense.x.t4 != x.t4 {
            return Err(shape("two models with other vocabularies or batches"));
        }
        let (ws, rows) = (self.ws, self.ws.vocab_rows);
        self.reduce(c, batch, x, normed, rows, Some(&side))?;
        let again = self.chunks(rows).count() > 1;
        for (first, rows) in self.chunks(rows) {
            let logits = match again {
                true => self.logits_of(c, normed, first, rows, &ws.logits)?,
                false => ws.logits.rows(0, rows, x.t4)?,
            };
            self.divergence(c, logits, (first, rows), again, &side, 0.0)?;
        }
        let own = read_state(c, &ws.state, batch.layout)?;
        let (Divergences { kl, agree }, of_dense) = side.read(c, batch.layout, &own)?;
        Ok(HeadComparison {
            tokens: losses_of(&own, batch.layout)?,
            dense: losses_of(&of_dense, batch.layout)?,
            kl,
            agree,
        })
    }
}

/// The dense model at its head.
#[derive(Clone, Copy)]
pub struct DenseHead<'a> {
    /// Its residual stream behind the last block `[hidden, t]`.
    pub x: Rows<'a>,
    /// Its last norm and output matrix.
    pub weights: &'a HeadWeights,
    /// What it computes.
    pub config: &'a Architecture,
}
