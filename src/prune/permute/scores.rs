//! The scores by which orders are judged: (|w| times the norm of its input) squared, of each projection as a share of all of its own.

use super::search::Columns;
use crate::model::{Architecture, Checkpoint, Projection, ProjectionKind};
use crate::prune::{InputNorms, PruneError, Selection};

/// The most scores that the search of one order of many looks at, and of the one of the residual stream: of larger matrices every second
/// row, or fewer.
const MOST: usize = 1 << 24;
const MOST_OF_STREAM: usize = 1 << 26;

/// What scores are made of.
pub(super) struct Scorer<'a> {
    pub(super) config: &'a Architecture,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) selection: &'a Selection,
    /// Norms of the inputs; without them weights count alone.
    pub(super) norms: Option<&'a InputNorms>,
}

impl Scorer<'_> {
    /// The selected projection of a kind of a block.
    pub(super) fn selected(&self, block: usize, kind: ProjectionKind) -> Option<&Projection> {
        let of = |(_, p): &(usize, Projection)| p.block == block && p.kind == kind;
        self.selection.pruned.iter().find(|entry| of(entry)).map(|(_, p)| p)
    }

    /// Those that read the residual stream.
    pub(super) fn readers(&self) -> Vec<&Projection> {
        use ProjectionKind::{Down, O};
        let all = self.selection.pruned.iter().map(|(_, p)| p);
        all.filter(|p| !matches!(p.kind, O | Down)).collect()
    }

    /// Of down: the columns are the inner features.
    pub(super) fn of_down(&self, p: &Projection) -> Result<Columns, PruneError> {
        let step = (p.rows * p.cols).div_ceil(MOST);
        let mut columns = Columns::new(p.cols, p.rows.div_ceil(step));
        self.rows(p, step, |row, scale| columns.push(row, scale))?;
        columns.pad();
        Ok(columns)
    }

    /// Of o: for each key head the features of its values, with rows for each query head that shares it.
    pub(super) fn of_heads(&self, p: &Projection) -> Result<Vec<Columns>, PruneError> {
        let (head, keys) = (self.config.head_dim, self.config.num_kv_heads.max(1));
        let shared = self.config.num_heads / keys;
        let step = (p.rows * p.cols).div_ceil(MOST);
        let rows = p.rows.div_ceil(step) * shared;
        let mut all: Vec<Columns> = (0..keys).map(|_| Columns::new(head, rows)).collect();
        self.rows(p, step, |row, scale| {
            for (columns, own) in all.iter_mut().zip(row.chunks_exact((head * shared).max(1))) {
                own.chunks_exact(head).for_each(|query| columns.push(query, scale));
            }
        })?;
        all.iter_mut().for_each(Columns::pad);
        Ok(all)
    }

    /// Of all that read the residual stream: the columns are its features.
    pub(super) fn of_stream(&self) -> Result<Columns, PruneError> {
        let (readers, hidden) = (self.readers(), self.config.hidden_size);
        let rows: usize = readers.iter().map(|p| p.rows).sum();
        let step = (rows * hidden).div_ceil(MOST_OF_STREAM).max(1);
        let mut columns = Columns::new(hidden, rows.div_ceil(step) + readers.len());
        for p in readers {
            self.rows(p, step, |row, scale| columns.push(row, scale))?;
        }
        columns.pad();
        Ok(columns)
    }

    /// Hands on the scores of every `step`-th row of a projection, and what makes all of them one.
    fn rows(&self, p: &Projection, step: usize, mut take: impl FnMut(&[f32], f32)) -> Result<(), PruneError> {
        let view = self.checkpoint.tensor(&p.name)?;
        let norms = self.norms.map_or(&[][..], |norms| norms.of(p.block, p.kind));
        let squares: Vec<f32> = norms.iter().map(|n| n * n).collect();
        let mut row = vec![0.0; p.cols];
        let mut score = |number: usize, take: &mut dyn FnMut(&[f32])| {
            if view.row_f32(number, &mut row) {
                row.iter_mut().for_each(|w| *w *= *w);
                row.iter_mut().zip(&squares).for_each(|(w, square)| *w *= square);
                take(&row);
            }
        };
        let mut sum = 0.0;
        for number in (0..p.rows).step_by(step.max(1)) {
            score(number, &mut |row| sum += row.iter().map(|s| f64::from(*s)).sum::<f64>());
        }
        let scale = if sum > 0.0 { (1.0 / sum) as f32 } else { 0.0 };
        for number in (0..p.rows).step_by(step.max(1)) {
            score(number, &mut |row| take(row, scale));
        }
        Ok(())
    }
}
