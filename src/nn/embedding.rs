//! Embedding rows gathered on the host: the matrix is never bound, however large.

use super::NnError;
use crate::kernel::Layout;
use crate::model::{Checkpoint, Config, TensorView};

/// The embedding matrix in the mapped checkpoint.
pub struct Embedding<'m> {
    view: TensorView<'m>,
    hidden: usize,
}

impl<'m> Embedding<'m> {
    /// Finds the matrix.
    ///
    /// # Errors
    /// When the checkpoint has none.
    pub fn new(checkpoint: &'m Checkpoint, config: &Config) -> Result<Self, NnError> {
        let view = checkpoint.tensor(config.embedding_name())?;
        Ok(Self { view, hidden: config.hidden_size })
    }

    /// Gathers `ids` (the windows of a batch) as `[hidden, tokens]` f32, every window padded with zeros to a multiple of four.
    ///
    /// # Errors
    /// [`NnError::Token`] for an id beyond the matrix.
    pub fn gather(&self, ids: &[u32], layout: Layout) -> Result<Vec<f32>, NnError> {
        let (length, window4) = (layout.length, layout.window4());
        let stride = ids.len() / length * window4 * 4;
        let mut out = vec![0.0; self.hidden * stride];
        // Four tokens at a time, so that a cache line of the transposed output is written at once.
        let mut rows = vec![0.0; 4 * self.hidden];
        for (w, window) in ids.chunks_exact(length).enumerate() {
            for (q, four) in window.chunks(4).enumerate() {
                for (row, &id) in rows.chunks_exact_mut(self.hidden).zip(four) {
                    if !self.view.row_f32(id as usize, row) {
                        return Err(NnError::Token { token: id, vocab: self.view.rows() });
                    }
                }
                let at = (w * window4 + q) * 4;
                for h in 0..self.hidden {
                    for i in 0..four.len() {
                        out[h * stride + at + i] = rows[i * self.hidden + h];
                    }
                }
            }
        }
        Ok(out)
    }
}
