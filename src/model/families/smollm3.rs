//! SmolLM3: a Llama in which every fourth block has no rotary embedding.

use super::qwen2::switched_windows;
use super::{Architecture, Defaults, Family, Keys, MAX_LAYERS, ModelError, Ropes, base, finish, is_last_of};

pub(super) const FAMILY: Family = Family { name: "smollm3", read };

const DEFAULTS: Defaults = Defaults { rope: Ropes::all(2_000_000.0), tied: true, ..Defaults::LLAMA };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 4), ("no_rope_layer_interval", 4)]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    out.set_attention_bias(&keys)?;
    out.set_mlp_bias(&keys)?;
    let still = still_blocks(&keys, out.num_layers)?;
    switched_windows(&keys, &mut out, |block| still[block])?;
    for (layer, still) in out.layers.iter_mut().zip(&still) {
        layer.rope = layer.rope.filter(|_| !still);
    }
    keys.pass_over(&[("max_window_layers", "transformers does not read it in this family")]);
    finish(&keys, out)
}

/// The blocks without rotary embedding: those with a 0 in `no_rope_layers`, which is called after what it does not say.
fn still_blocks(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let last = is_last_of(keys.size("no_rope_layer_interval", MAX_LAYERS)?);
    match keys.numbers("no_rope_layers", layers)? {
        Some(turns) => Ok(turns.iter().map(|turns| *turns == 0.0).collect()),
        None => Ok((0..layers).map(last).collect()),
    }
}
