//! Orders of a model's channels, and the file that keeps them: safetensors with an I32 tensor for each order, in which element `i` says
//! which channel of the source comes to place `i`, and these strings in `__metadata__`:
//!
//! | key | value |
//! |---|---|
//! | `format` | `maskwright-permutation` |
//! | `format_version` | `1` |
//! | `meaning` | `channel i of the permuted model is channel order[i] of the source` |
//! | `hash` | SHA-256 of the orders, by which mask files name it |
//! | `written_by` | `maskwright` and its version |
//!
//! Tensors: `residual` `[hidden]`, `blocks.B.ffn` `[inner]`, `blocks.B.heads` `[key heads * head size]`, each where there is one.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype as StoredDtype;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Architecture, Channels, MESSAGE, ModelError, OutTensor, Shard, clip, write_safetensors};
use crate::fsio::Destination;

const FORMAT: &str = "maskwright-permutation";
const VERSION: &str = "1";
const MEANING: &str = "channel i of the permuted model is channel order[i] of the source";
/// More channels than any model has in one place.
const MAX_CHANNELS: usize = 1 << 24;

/// An order of channels: element `i` is the channel of the source that comes to place `i`.
pub type Order = Vec<u32>;

/// The orders of a block's channels.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BlockOrders {
    /// Of the features inside the feed-forward layer, `[intermediate_size]`.
    pub ffn: Option<Order>,
    /// Of the outputs of v, `[num_kv_heads * head_dim]`, each within its head.
    pub heads: Option<Order>,
}

/// New orders of a model's channels; what has none stays as it is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Permutation {
    /// Of the residual stream, `[hidden_size]`.
    pub residual: Option<Order>,
    /// Of each block, by its number; blocks beyond the last stay as they are.
    pub blocks: Vec<BlockOrders>,
}

impl Permutation {
    /// Which kinds of channels have an order in it.
    pub fn channels(&self) -> Vec<Channels> {
        let there = |channels: &Channels| match channels {
            Channels::Ffn => self.blocks.iter().any(|b| b.ffn.is_some()),
            Channels::Heads => self.blocks.iter().any(|b| b.heads.is_some()),
            Channels::Residual => self.residual.is_some(),
        };
        Channels::ALL.into_iter().filter(there).collect()
    }

    /// The orders by their names in the file.
    fn named(&self) -> BTreeMap<String, &Order> {
        let mut all = BTreeMap::new();
        all.extend(self.residual.as_ref().map(|order| ("residual".to_string(), order)));
        for (number, block) in self.blocks.iter().enumerate() {
            all.extend(block.ffn.as_ref().map(|order| (format!("blocks.{number}.ffn"), order)));
            all.extend(block.heads.as_ref().map(|order| (format!("blocks.{number}.heads"), order)));
        }
        all
    }

    /// SHA-256 of the orders and their names, as 64 lowercase hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        for (name, order) in self.named() {
            sha.update(format!("{name}:{}\n", order.len()));
            order.iter().for_each(|channel| sha.update(channel.to_le_bytes()));
        }
        super::hexadecimal(&sha.finalize())
    }

    /// The permutation that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let of = |order: &Option<Order>| order.as_ref().map(|order| inverse(order));
        let block = |b: &BlockOrders| BlockOrders { ffn: of(&b.ffn), heads: of(&b.heads) };
        Self { residual: of(&self.residual), blocks: self.blocks.iter().map(block).collect() }
    }

    /// What is wrong with it for a model, in words.
    pub fn problem(&self, config: &Architecture) -> Option<String> {
        if let Some((channels, reason)) =
            self.channels().into_iter().find_map(|channels| Some((channels, config.binds(channels)?)))
        {
            return Some(format!("it moves channels ({channels}) that are bound: {reason}"));
        }
        if self.blocks.len() > config.num_layers {
            return Some(format!(
                "it is for {} blocks, the model has {}",
                self.blocks.len(),
                config.num_layers
            ));
        }
        for (name, order) in self.named() {
            let (channels, runs) = match name.rsplit('.').next() {
                Some("ffn") => (Channels::Ffn, 1),
                Some("heads") => (Channels::Heads, config.num_kv_heads),
                _ => (Channels::Residual, 1),
            };
            let run = config.channel_count(channels);
            if order.len() != run * runs {
                return Some(format!("{name} orders {} channels, the model has {}", order.len(), run * runs));
            }
            let each = order.chunks_exact(run.max(1)).enumerate();
            for (first, own) in each.map(|(number, own)| (number * run, own)) {
                let mut seen = vec![false; run];
                for &channel in own {
                    let place = (channel as usize).checked_sub(first).and_then(|at| seen.get_mut(at));
                    match place {
                        Some(seen) if !*seen => *seen = true,
                        _ => {
                            return Some(format!(
                                "{name} is no order: channel {channel} is out of place or there twice"
                            ));
                        }
                    }
                }
            }
        }
        None
    }

    /// Writes the file at once and whole.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write(&self, to: &(impl Destination + ?Sized)) -> Result<(), ModelError> {
        let mut metadata = Map::new();
        for (key, value) in [
            ("format", FORMAT.into()),
            ("format_version", VERSION.into()),
            ("meaning", MEANING.into()),
            ("hash", self.hash()),
            ("written_by", concat!("maskwright ", env!("CARGO_PKG_VERSION")).into()),
        ] {
            metadata.insert(key.into(), Value::String(value));
        }
        let named = self.named();
        let bytes: Vec<Vec<u8>> = named
            .values()
            .map(|order| order.iter().flat_map(|channel| channel.to_le_bytes()).collect())
            .collect();
        let tensors: Vec<OutTensor<'_>> = named
            .iter()
            .zip(&bytes)
            .map(|((name, order), data)| OutTensor { name, dtype: "I32", shape: vec![order.len()], data })
            .collect();
        Ok(write_safetensors(to, metadata, &tensors)?)
    }

    /// Reads a file. Whether it fits a model, [`Permutation::problem`] tells.
    ///
    /// # Errors
    /// [`ModelError::Permutation`] for a file that is none or is damaged, and those of [`Shard::open`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let shard = Shard::open(path)?;
        let unusable =
            |problem: String| ModelError::Permutation { path: path.into(), problem: clip(&problem, MESSAGE) };
        let metadata: BTreeMap<&str, &str> =
            shard.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        for (key, expected) in [("format", FORMAT), ("format_version", VERSION)] {
            let found = metadata.get(key).copied().unwrap_or("");
            if found != expected {
                return Err(unusable(format!("its `{key}` is {found:?}, expected {expected:?}")));
            }
        }
        let mut out = Self::default();
        for entry in shard.entries() {
            let wrong = |problem: &str| unusable(format!("{}: {problem}", entry.name));
            if entry.dtype != StoredDtype::I32 || entry.shape.len() != 1 || entry.shape[0] > MAX_CHANNELS {
                return Err(wrong("expected I32 and one dimension"));
            }
            let order: Order =
                shard.data(entry).as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            let parts: Vec<&str> = entry.name.split('.').collect();
            let slot = match parts.as_slice() {
                ["residual"] => Some(&mut out.residual),
                ["blocks", number, kind] => out.block_slot(number, kind),
                _ => None,
            };
            *slot.ok_or_else(|| wrong("no order of channels has this name"))? = Some(order);
        }
        let (told, hash) = (metadata.get("hash").copied().unwrap_or(""), out.hash());
        if told != hash {
            return Err(unusable(
                "its `hash` is not that of its orders: it was changed or is damaged".into(),
            ));
        }
        Ok(out)
    }

    /// Where the order `kind` of block `number` belongs.
    fn block_slot(&mut self, number: &str, kind: &str) -> Option<&mut Option<Order>> {
        let number: usize = number.parse().ok().filter(|n| *n < 1 << 16)?;
        if number >= self.blocks.len() {
            self.blocks.resize_with(number + 1, BlockOrders::default);
        }
        let block = self.blocks.get_mut(number)?;
        match kind {
            "ffn" => Some(&mut block.ffn),
            "heads" => Some(&mut block.heads),
            _ => None,
        }
    }
}

impl Architecture {
    /// Why these channels are bound to their order; nothing where they are free.
    ///
    /// Free is what only element by element arithmetic and sums stand between. Outputs of q and k are no channels of any kind here: rotary
    /// embeddings pair them, and norms of queries and keys have gains of their own for them; neither touches values. Norms over the
    /// residual stream, with mean or without, are sums over all of it, and their gains and biases move along. An architecture in which
    /// something else has an order of its own says so in [`Architecture::bound`].
    pub fn binds(&self, channels: Channels) -> Option<&'static str> {
        self.bound.iter().find(|(bound, _)| *bound == channels).map(|(_, reason)| *reason)
    }

    /// How many channels of a kind change places among each other: hidden features, inner features, features of a value head.
    pub fn channel_count(&self, channels: Channels) -> usize {
        match channels {
            Channels::Ffn => self.intermediate_size,
            Channels::Heads => self.head_dim,
            Channels::Residual => self.hidden_size,
        }
    }
}

/// The order that undoes `order`, as far as that is one.
fn inverse(order: &[u32]) -> Order {
    let mut out = vec![0; order.len()];
    for (place, &channel) in (0u32..).zip(order) {
        if let Some(slot) = out.get_mut(channel as usize) {
            *slot = place;
        }
    }
    out
}
