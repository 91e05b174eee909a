//! Embedding rows gathered on the host: the matrix is never bound, however large.

use super::NnError;
use crate::kernel::Layout;
use crate::model::{Architecture, Checkpoint, TensorView};

/// The embedding matrix in the mapped checkpoint, and what is made of its rows.
pub struct Embedding<'m> {
    view: TensorView<'m>,
    hidden: usize,
    scale: f32,
    /// Learned embeddings of positions, and the row of the first one.
    positions: Option<(TensorView<'m>, usize)>,
}

impl<'m> Embedding<'m> {
    /// Finds the matrices.
    ///
    /// # Errors
    /// When the checkpoint lacks one.
    pub fn new(checkpoint: &'m Checkpoint, config: &Architecture) -> Result<Self, NnError> {
        let view = checkpoint.tensor(&config.embedding_name())?;
        let positions = match (config.positions, config.positions_name()) {
            (Some(positions), Some(name)) => Some((checkpoint.tensor(&name)?, positions.offset)),
            _ => None,
        };
        Ok(Self { view, hidden: config.hidden_size, scale: config.scales.embedding, positions })
    }

    /// Gathers `ids` (the windows of a batch) as `[hidden, tokens]` f32, every window padded with zeros to a multiple of four.
    ///
    /// # Errors
    /// [`NnError::Token`] for an id beyond the matrix, [`NnError::Position`] for a window longer than the learned positions.
    pub fn gather(&self, ids: &[u32], layout: Layout) -> Result<Vec<f32>, NnError> {
        self.gather_at(ids, layout, |i| i)
    }

    /// The same where token `i` of every window stands at `position(i)`.
    ///
    /// # Errors
    /// As [`Embedding::gather`].
    pub fn gather_at(
        &self,
        ids: &[u32],
        layout: Layout,
        position: impl Fn(usize) -> usize,
    ) -> Result<Vec<f32>, NnError> {
        let (length, window4) = (layout.length, layout.window4());
        let stride = ids.len() / length * window4 * 4;
        let mut out = vec![0.0; self.hidden * stride];
        // Four tokens at a time, so that a cache line of the transposed output is written at once.
        let mut rows = vec![0.0; 4 * self.hidden];
        let mut place = vec![0.0; self.hidden];
        for (w, window) in ids.chunks_exact(length).enumerate() {
            for (q, four) in window.chunks(4).enumerate() {
                for (i, (row, &id)) in rows.chunks_exact_mut(self.hidden).zip(four).enumerate() {
                    if !self.view.row_f32(id as usize, row) {
                        return Err(NnError::Token { token: id, vocab: self.view.rows() });
                    }
                    if self.scale != 1.0 {
                        row.iter_mut().for_each(|x| *x *= self.scale);
                    }
                    if let Some((positions, offset)) = &self.positions {
                        let position = position(4 * q + i);
                        if !positions.row_f32(position + offset, &mut place) {
                            let positions = positions.rows().saturating_sub(*offset);
                            return Err(NnError::Position { position, positions });
                        }
                        row.iter_mut().zip(&place).for_each(|(x, p)| *x += p);
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
