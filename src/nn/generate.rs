//! Decoding token by token, with the keys and values of all tokens so far kept on the device.

use super::{Decoder, Masks, NnError, PlanItem, Sizes, Workspace};
use crate::gpu::Commands;
use crate::kernel::{Activation, Cached, Columns, Layout, Rows, f32_bytes};
use crate::model::Architecture;

/// Keys and values of one block, each `[kv_heads * head_dim, sequences * capacity]`.
struct Cache {
    keys: Activation,
    values: Activation,
}

/// Sequences of equal length that a decoder goes on with, one token at a time.
pub struct Generator<'a, 'g, 'm> {
    decoder: &'a Decoder<'g, 'm>,
    masks: Masks<'a>,
    caches: Vec<Cache>,
    /// Sequences, and the tokens that each has room for.
    room: Layout,
    /// For one token of every sequence, which are the tokens of a single window there.
    ws: Workspace,
    seen: usize,
    /// The tokens of every sequence, where the cache must be made again when a text outgrows the length that its rotations are
    /// for.
    ids: Vec<Vec<u32>>,
}

impl<'a, 'g, 'm> Generator<'a, 'g, 'm> {
    /// Makes room for `sequences` sequences of at most `capacity` tokens each.
    ///
    /// # Errors
    /// When the device or one binding has no room.
    pub fn new(
        decoder: &'a Decoder<'g, 'm>,
        masks: Masks<'a>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Self, NnError> {
        let (config, gpu) = (decoder.config, decoder.kernels.gpu());
        let room = Layout { windows: sequences, length: capacity };
        let new = |name: &str| Activation::new(gpu, name, config.key_rows(), room.t4());
        let caches = (0..config.num_layers)
            .map(|_| Ok(Cache { keys: new("cache:keys")?, values: new("cache:values")? }))
            .collect::<Result<_, NnError>>()?;
        let sizes = Sizes::new(config, Self::step_layout(sequences), gpu.limits());
        Ok(Self {
            decoder,
            masks,
            caches,
            room,
            ws: Workspace::new(gpu, config, sizes)?,
            seen: 0,
            ids: Vec::new(),
        })
    }

    /// What [`Generator::new`] allocates for the cache.
    pub fn plan(config: &Architecture, sequences: usize, capacity: usize) -> PlanItem {
        let room = Layout { windows: sequences, length: capacity };
        let rows = 2 * config.num_layers * config.key_rows();
        PlanItem::new("keys and values", f32_bytes(rows, 4 * room.t4()))
    }

    /// Tokens of each sequence so far.
    pub fn seen(&self) -> usize {
        self.seen
    }

    fn step_layout(sequences: usize) -> Layout {
        Layout { windows: 1, length: sequences }
    }

    /// Puts `ids` `[sequences, length]` behind what was seen, which must be nothing yet; the logits `[sequences][vocab]` of what comes next.
    /// All tokens pass at once.
    ///
    /// # Errors
    /// [`NnError::Full`], a token outside the vocabulary, what the device reports.
    pub fn prompt(&mut self, c: &mut Commands<'g>, ids: &[u32]) -> Result<Vec<Vec<f32>>, NnError> {
        let (decoder, windows) = (self.decoder, self.room.windows);
        let layout = Layout { windows, length: ids.len() / windows.max(1) };
        if self.seen > 0 || layout.length == 0 || layout.length > self.room.length {
            return Err(NnError::Full { capacity: self.room.length, seen: self.seen, more: layout.length });
        }
        self.ids = ids.chunks(layout.length).map(<[u32]>::to_vec).collect();
        let sizes = Sizes::new(decoder.config, layout, decoder.kernels.limits());
        let ws = Workspace::new(decoder.kernels.gpu(), decoder.config, sizes)?;
        c.write(ws.x.buffer(), 0, &decoder.embedding.gather(ids, layout)?)?;
        let window = 4 * layout.window4();
        decoder.blocks(c, &ws, layout, self.masks, |c, (block, pass), normed, attended| {
            let [q, k, v] = pass.queries_keys_values(c, normed)?;
            let from = |rows| Columns { rows, window, at: 0 };
            self.store(c, block, from(k), from(v), layout.length)?;
            let heads = decoder.config.heads(block, layout.length);
            Ok(pass.kernels.attention(c, [q, k, v], attended, None, heads, layout)?)
        })?;
        self.seen = layout.length;
        // The last token of every sequence, side by side.
        let hidden = decoder.config.hidden_size;
        let from = Columns { rows: ws.x.rows(0, hidden, layout.t4())?, window, at: layout.length - 1 };
        let to = Columns { rows: self.residual()?, window: 1, at: 0 };
        decoder.kernels.copy_columns(c, from, to, windows, 1)?;
        self.logits(c)
    }

    /// Puts one token behind each sequence; the logits `[sequences][vocab]` of what comes next.
    ///
    /// # Errors
    /// [`NnError::Full`], a token outside the vocabulary, what the device reports.
    pub fn step(&mut self, c: &mut Commands<'g>, ids: &[u32]) -> Result<Vec<Vec<f32>>, NnError> {
        let (decoder, windows) = (self.decoder, self.room.windows);
        if self.seen == self.room.length || ids.len() != windows {
            return Err(NnError::Full { capacity: self.room.length, seen: self.seen, more: 1 });
        }
        self.ids.iter_mut().zip(ids).for_each(|(all, &id)| all.push(id));
        if decoder.config.ropes.iter().any(|rope| rope.changes_beyond(self.seen)) {
            let all = self.ids.concat();
            self.seen = 0;
            return self.prompt(c, &all);
        }
        let layout = Self::step_layout(windows);
        self.ws.block.stand_at(c, decoder.config, layout, self.seen)?;
        let seen = self.seen;
        c.write(self.ws.x.buffer(), 0, &decoder.embedding.gather_at(ids, layout, |_| seen)?)?;
        self.seen += 1;
        decoder.blocks(c, &self.ws, layout, self.masks, |c, (block, pass), normed, attended| {
            let [q, k, v] = pass.queries_keys_values(c, normed)?;
            let from = |rows| Columns { rows, window: 1, at: 0 };
            self.store(c, block, from(k), from(v), 1)?;
            let (keys, values) = self.cached(block)?;
            let (window, seen) = (4 * self.room.window4(), self.seen);
            Ok(pass.kernels.attention_step(
                c,
                [q, keys, values],
                attended,
                decoder.config.heads(block, seen),
                Cached { sequences: windows, window, seen },
            )?)
        })?;
        self.logits(c)
    }

    /// Keys and values of block `index`, room included.
    fn cached(&self, index: usize) -> Result<(Rows<'_>, Rows<'_>), NnError> {
        let cache = &self.caches[index];
        let (rows, t4) = cache.keys.shape();
        Ok((cache.keys.rows(0, rows, t4)?, cache.values.rows(0, rows, t4)?))
    }

    /// Keeps the keys and values of the last `length` of the tokens seen, or of the first where none were seen.
    fn store(
        &self,
        c: &mut Commands<'g>,
        block: usize,
        keys: Columns<'_>,
        values: Columns<'_>,
        length: usize,
    ) -> Result<(), NnError> {
        let (to_keys, to_values) = self.cached(block)?;
        let at = self.seen.saturating_sub(length);
        let to = |rows| Columns { rows, window: 4 * self.room.window4(), at };
        let kernels = self.decoder.kernels;
        kernels.copy_columns(c, keys, to(to_keys), self.room.windows, length)?;
        Ok(kernels.copy_columns(c, values, to(to_values), self.room.windows, length)?)
    }

    fn residual(&self) -> Result<Rows<'_>, NnError> {
        let layout = Self::step_layout(self.room.windows);
        Ok(self.ws.x.rows(0, self.decoder.config.hidden_size, layout.t4())?)
    }

    /// Logits of the residual streams in the workspace.
    fn logits(&self, c: &mut Commands<'g>) -> Result<Vec<Vec<f32>>, NnError> {
        let layout = Self::step_layout(self.room.windows);
        let normed = self.ws.block.normed(self.decoder.config, layout)?;
        self.decoder.head(&self.ws).logits(c, layout, self.residual()?, normed)
    }
}
