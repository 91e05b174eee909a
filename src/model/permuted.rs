//! A checkpoint whose channels are in another order: a copy of its files in a scratch file, which everything reads as it reads the source.

use std::collections::BTreeMap;
use std::path::Path;

use super::permutation::Order;
use super::{
    Architecture, Checkpoint, Dtype, ModelError, Permutation, ProjectionKind, Shard, ShardEntry, TensorPart,
};
use crate::fsio::ScratchWriter;

/// What moves in a stored matrix `[r, c]`: element `(i, j)` comes from `(rows[i], cols[j])`. A vector is one row.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Moves {
    rows: Option<Order>,
    cols: Option<Order>,
}

impl Moves {
    /// The moved bytes of a row, whose elements have `size` bytes.
    fn row(&self, from: &[u8], size: usize, into: &mut Vec<u8>) {
        into.clear();
        match (&self.cols, size) {
            (None, _) => into.extend_from_slice(from),
            (Some(cols), 2) => gather::<2>(from, cols, into),
            (Some(cols), 4) => gather::<4>(from, cols, into),
            (Some(cols), 8) => gather::<8>(from, cols, into),
            (Some(cols), _) => {
                for &col in cols {
                    let at = col as usize * size;
                    into.extend_from_slice(from.get(at..at + size).unwrap_or(&[]));
                }
            }
        }
    }
}

/// Elements of `S` bytes in the order `cols`.
fn gather<const S: usize>(from: &[u8], cols: &[u32], into: &mut Vec<u8>) {
    let elements = from.as_chunks::<S>().0;
    cols.iter().for_each(|&col| into.extend_from_slice(elements.get(col as usize).map_or(&[], |e| &e[..])));
}

/// The order of the inputs of o: that of the values, for each query head that reads them.
fn of_queries(config: &Architecture, values: &[u32]) -> Order {
    let (head, shared) = (config.head_dim, config.num_heads / config.num_kv_heads.max(1));
    let of_head = |query: usize| {
        let key = query / shared.max(1);
        let own = values.get(key * head..(key + 1) * head).unwrap_or(&[]);
        own.iter().map(move |&value| value + ((query - key) * head) as u32)
    };
    (0..config.num_heads).flat_map(of_head).collect()
}

/// What moves in each stored tensor.
fn moves(config: &Architecture, permutation: &Permutation) -> BTreeMap<String, Moves> {
    let mut all: BTreeMap<String, Moves> = BTreeMap::new();
    if let Some(residual) = &permutation.residual {
        for name in config.stream_tensors() {
            all.entry(name).or_default().cols = Some(residual.clone());
        }
    }
    for (number, block) in permutation.blocks.iter().enumerate().take(config.num_layers) {
        let queries = block.heads.as_ref().map(|values| of_queries(config, values));
        projections(
            config,
            number,
            [permutation.residual.as_ref(), block.ffn.as_ref(), block.heads.as_ref(), queries.as_ref()],
            &mut all,
        );
    }
    for number in permutation.blocks.len()..config.num_layers {
        projections(config, number, [permutation.residual.as_ref(), None, None, None], &mut all);
    }
    all
}

/// Adds the moves of a block's projections and their biases, by the orders of the residual stream, the inner features, values and queries.
fn projections(
    config: &Architecture,
    block: usize,
    [residual, ffn, values, queries]: [Option<&Order>; 4],
    all: &mut BTreeMap<String, Moves>,
) {
    use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
    for p in config.block_projections(block) {
        let (outputs, inputs) = match p.kind {
            Q | K => (None, residual),
            V => (values, residual),
            O => (residual, queries),
            Gate | Up => (ffn, residual),
            Down => (residual, ffn),
        };
        let (part, transposed) = (p.place.part, p.place.transposed);
        let place = TensorPart {
            name: String::new(),
            stored: String::new(),
            shape: vec![p.rows, p.cols],
            part,
            transposed,
        };
        // Other parts of a fused tensor may stay where they are.
        let put = |slot: &mut Option<Order>| {
            if let Some(outputs) = outputs {
                let whole = slot.get_or_insert_with(|| (0..place.stored_outputs() as u32).collect());
                for (to, &from) in outputs.iter().enumerate() {
                    if let Some(slot) = whole.get_mut(place.stored_output(to)) {
                        *slot = place.stored_output(from as usize) as u32;
                    }
                }
            }
        };
        let weight = all.entry(p.stored.clone()).or_default();
        let (of_outputs, of_inputs) = if transposed {
            (&mut weight.cols, &mut weight.rows)
        } else {
            (&mut weight.rows, &mut weight.cols)
        };
        put(of_outputs);
        if inputs.is_some() {
            *of_inputs = inputs.cloned();
        }
        if config.has_bias(p.kind) {
            put(&mut all.entry(p.stored_bias()).or_default().cols);
        }
    }
}

impl Architecture {
    /// The names of the tensors whose last dimension is the residual stream, but for the projections: embeddings, norms, the output matrix,
    /// also where it is tied and stored all the same.
    fn stream_tensors(&self) -> Vec<String> {
        let mut all = vec![self.embedding_name(), self.own_output_name()];
        all.extend(self.positions_name());
        let blocks = (0..self.num_layers).flat_map(|b| self.block.norms().map(move |norm| (b, norm)));
        let modules = blocks.map(|(block, norm)| self.module(block, norm)).chain([self.final_norm_module()]);
        all.extend(modules.flat_map(|module| self.norm_tensors(&module)).map(|spec| spec.name));
        all
    }
}

impl Checkpoint {
    /// The same weights with their channels in the order of `permutation`, in a scratch file as large as the weights (on Unix in the
    /// folder `near`, where it has no name; else in the system's folder for temporary files). Tensors that the architecture does not call
    /// for stay as they are.
    ///
    /// # Errors
    /// [`ModelError::Unfit`] where the permutation is not for this architecture; what the system refuses.
    pub fn permuted(
        &self,
        config: &Architecture,
        permutation: &Permutation,
        near: &Path,
    ) -> Result<Self, ModelError> {
        if let Some(problem) = permutation.problem(config) {
            return Err(ModelError::Unfit { folder: self.folder().into(), problem });
        }
        let moves = moves(config, permutation);
        let shards =
            self.files().iter().map(|shard| permuted(shard, &moves, near)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.with_files(shards, permutation.hash()))
    }
}

/// A copy of a file in which the tensors have moved.
fn permuted(shard: &Shard, moves: &BTreeMap<String, Moves>, near: &Path) -> Result<Shard, ModelError> {
    let mut out = ScratchWriter::create(near)?;
    out.put(shard.header_bytes())?;
    // The entries cover the data without a gap and in order.
    for entry in shard.entries() {
        match (moves.get(&entry.name), Dtype::from_stored(entry.dtype)) {
            (Some(moves), Some(dtype)) => put_moved(shard, entry, moves, dtype.size(), &mut out)?,
            _ => out.put(shard.data(entry))?,
        }
    }
    shard.with_data(out.finish()?)
}

fn put_moved(
    shard: &Shard,
    entry: &ShardEntry,
    moves: &Moves,
    size: usize,
    out: &mut ScratchWriter,
) -> Result<(), ModelError> {
    let (data, length) = (shard.data(entry), entry.shape.last().copied().unwrap_or(1) * size);
    let rows = data.len().checked_div(length).unwrap_or(0);
    let mut row = Vec::with_capacity(length);
    for place in 0..rows {
        let from =
            moves.rows.as_ref().map_or(place, |rows| rows.get(place).map_or(place, |&from| from as usize));
        moves.row(data.get(from * length..(from + 1) * length).unwrap_or(&[]), size, &mut row);
        out.put(&row)?;
    }
    Ok(())
}
