//! Llama 1 to 3, TinyLlama, SmolLM2 and all that share their architecture: the family that the others are told by.

use super::{Architecture, Defaults, Family, Keys, ModelError, base, finish};

pub(super) const FAMILY: Family = Family { name: "llama", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let mut out = base(&keys, FAMILY.name, &Defaults::LLAMA)?;
    out.set_window(&keys, None)?;
    out.set_attention_bias(&keys)?;
    out.set_mlp_bias(&keys)?;
    finish(&keys, out)
}
