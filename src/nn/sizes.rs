//! How large the activations of a forward pass are.

use crate::gpu::Limits;
use crate::kernel::{Layout, cut};
use crate::model::Architecture;

/// Rows of every activation for a batch of `layout`, under a binding limit.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// The batch.
    pub layout: Layout,
    /// Features of the feed-forward layer held at once: all of them, or pieces that fit a binding.
    pub ffn_rows: usize,
    /// Vocabulary rows held at once.
    pub vocab_rows: usize,
    pub(super) hidden: usize,
    pub(super) queries: usize,
    pub(super) ffn: usize,
    pub(super) parallel: bool,
}

impl Sizes {
    /// Sizes for `config` and `layout` on an adapter of these limits, or where one binding holds so many bytes.
    pub fn new(config: &Architecture, layout: Layout, limits: impl Into<Limits>) -> Self {
        let (limits, tokens) = (limits.into(), 4 * layout.t4());
        Self {
            layout,
            ffn_rows: cut::feature_rows(limits, config.intermediate_size, tokens),
            vocab_rows: cut::vocabulary_rows(limits, config.vocab_size, tokens),
            hidden: config.hidden_size,
            queries: config.query_rows(),
            ffn: config.intermediate_size,
            parallel: config.block.parallel,
        }
    }

    /// The same for training on the loss of the model.
    #[must_use]
    pub fn for_model_training(self, config: &Architecture, limits: impl Into<Limits>) -> Self {
        let vocab_rows = cut::trained_vocabulary_rows(limits.into(), config.vocab_size, 4 * self.layout.t4());
        Self { vocab_rows, ..self }
    }

    /// The most windows of `length` tokens, up to `most`, of which every activation fits one binding. At
    /// least one: a single window that does not fit is reported when it is allocated.
    pub fn windows_that_fit(
        config: &Architecture,
        length: usize,
        most: usize,
        limits: impl Into<Limits>,
    ) -> usize {
        let widest = config.hidden_size.max(config.query_rows());
        cut::windows(limits.into(), widest, length, most)
    }

    /// First feature and number of features of the pieces of the feed-forward layer.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        cut::pieces(0..self.ffn, self.ffn_rows).map(|r| (r.start, r.len()))
    }

    /// Features of the residual stream.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Rows of the buffers that keep the input of o, or the pieces of the input of down, between two steps: as [`Sizes::pieces`],
    /// the first with room for the input of o. Where both parts of a block read its input, one more keeps what the attention adds.
    pub fn kept_pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        let queries = self.queries;
        let pieces = self
            .pieces()
            .map(move |(first, rows)| (first, if first == 0 { rows.max(queries) } else { rows }));
        pieces.chain(self.parallel.then_some((self.ffn, self.hidden)))
    }

    /// Whether both parts of a block read its input.
    pub fn parallel(&self) -> bool {
        self.parallel
    }

    /// All rows of the kept buffers.
    pub fn kept_rows(&self) -> usize {
        self.kept_pieces().map(|(_, rows)| rows).sum()
    }
}
