//! The projections that an architecture has.

use super::{Architecture, Projection, ProjectionKind};

impl Architecture {
    /// The projection of one block, `[out_features, in_features]`.
    ///
    /// # Panics
    /// For a kind that is not among [`Architecture::kinds`].
    pub fn projection(&self, block: usize, kind: ProjectionKind) -> Projection {
        use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
        let (rows, cols) = match kind {
            Q => (self.query_rows(), self.hidden_size),
            K | V => (self.key_rows(), self.hidden_size),
            O => (self.hidden_size, self.query_rows()),
            Gate | Up => (self.intermediate_size, self.hidden_size),
            Down => (self.hidden_size, self.intermediate_size),
        };
        let Some(place) = self.names.places[kind as usize] else {
            unreachable!("an architecture without {kind}");
        };
        let module = self.module(block, place.module);
        let stored = format!("{module}.weight");
        let name = if place.part.is_some() { format!("{module}.{kind}.weight") } else { stored.clone() };
        Projection { name, stored, place, block, kind, rows, cols }
    }

    /// All projections, block by block in the order of [`Architecture::kinds`].
    pub fn projections(&self) -> Vec<Projection> {
        (0..self.num_layers).flat_map(|block| self.block_projections(block)).collect()
    }

    /// Those of one block.
    pub fn block_projections(&self, block: usize) -> impl Iterator<Item = Projection> + '_ {
        self.kinds().map(move |kind| self.projection(block, kind))
    }

    /// The place among [`Architecture::projections`] of a block's projection; nothing where there is none of that kind.
    pub fn projection_index(&self, block: usize, kind: ProjectionKind) -> Option<usize> {
        Some(block * self.kinds_count() + self.kinds().position(|k| k == kind)?)
    }
}
