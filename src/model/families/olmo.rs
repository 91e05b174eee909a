//! OLMo: a Llama whose norms have no parameters, and which may clip queries, keys and values.

use super::{Architecture, Defaults, Family, Gain, Keys, ModelError, base, finish};

pub(super) const FAMILY: Family = Family { name: "olmo", read };

const DEFAULTS: Defaults = Defaults { eps: (None, 1e-5), ..Defaults::LLAMA };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    out.set_layer_norm(false);
    out.norm.gain = Gain::None;
    out.set_attention_bias(&keys)?;
    out.attention.clip = keys.cap("clip_qkv", None)?;
    finish(&keys, out)
}
