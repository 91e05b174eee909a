//! Ministral 3: a Mistral whose queries grow with their position, by `1 + beta * ln(1 + floor(position / original))`, which is 1 up to the
//! original length.

use crate::model::QueryGrowth;

use super::{Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, Ropes, base, finish};

pub(super) const FAMILY: Family = Family { name: "ministral3", read };

const BETA: &str = "llama_4_scaling_beta";
const ORIGINAL: &str = "original_max_position_embeddings";

const DEFAULTS: Defaults = Defaults {
    eps: (Some("rms_norm_eps"), 1e-5),
    rope: Ropes::One { theta: 1e6, partial: None, own: &[BETA] },
    ..Defaults::LLAMA
};

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    language_part(keys, FAMILY.name)
}

/// One that stands alone, or in a model of the family `family`.
pub(super) fn language_part(keys: Keys<'_>, family: &'static str) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 8), ("head_dim", 128)]);
    let mut out = base(&keys, family, &DEFAULTS)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    out.set_window(&keys, window)?;
    let rope = keys.rope_part()?;
    let Some(beta) = rope.number(BETA)? else {
        return Err(rope.wrong(BETA, "a number", "nothing"));
    };
    if beta != 0.0 {
        out.attention.growth = Some(QueryGrowth { beta, original: rope.at_least(ORIGINAL, 1.0)? });
    }
    finish(&keys, out)
}
