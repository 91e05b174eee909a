//! Mistral: a Llama all of whose blocks may slide.

use super::{Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, base, finish};

pub(super) const FAMILY: Family = Family { name: "mistral", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    language_part(keys, FAMILY.name)
}

/// One that stands alone, or in a model of the family `family`.
pub(super) fn language_part(keys: Keys<'_>, family: &'static str) -> Result<Architecture, ModelError> {
    // A window of 4096 where the key is missing altogether, none where it is null.
    let keys = keys.with(&[], &[("num_key_value_heads", 8), ("sliding_window", 4096)]);
    let mut out = base(&keys, family, &Defaults::LLAMA)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    out.set_window(&keys, window)?;
    finish(&keys, out)
}
