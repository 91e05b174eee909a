//! Mistral 3: a Mistral or a Ministral 3 that also sees.

use super::{Architecture, Family, Keys, ModelError, ministral3, mistral, seeing};

pub(super) const FAMILY: Family = Family { name: "mistral3", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let text = seeing::text(&keys)?;
    let of = text.get("model_type").and_then(|name| name.as_str()).unwrap_or(mistral::FAMILY.name);
    let out = if of == ministral3::FAMILY.name {
        ministral3::language_part(text, FAMILY.name)?
    } else {
        text.only(&[("model_type", mistral::FAMILY.name)])?;
        mistral::language_part(text, FAMILY.name)?
    };
    seeing::whole(&keys, out)
}
