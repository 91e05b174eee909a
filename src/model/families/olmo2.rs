//! OLMo 2: a Llama with norms behind each part instead of before it, and normed queries and keys, all heads together.

use super::{Architecture, BlockShape, Defaults, Family, Keys, ModelError, QkSpread, base, finish};

pub(super) const FAMILY: Family = Family { name: "olmo2", read };

const DEFAULTS: Defaults = Defaults { eps: (Some("rms_norm_eps"), 1e-5), ..Defaults::LLAMA };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let out = with_norms_behind(&keys, FAMILY.name, &DEFAULTS)?;
    finish(&keys, out)
}

/// The part that OLMo 2 and 3 share.
pub(super) fn with_norms_behind(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<Architecture, ModelError> {
    let mut out = base(keys, family, defaults)?;
    out.block = BlockShape {
        attention_in: None,
        attention_out: Some("post_attention_layernorm"),
        feed_forward_in: None,
        feed_forward_out: Some("post_feedforward_layernorm"),
        parallel: false,
    };
    out.set_qk_norm(QkSpread::Whole, "self_attn.q_norm", "self_attn.k_norm");
    out.set_attention_bias(keys)?;
    Ok(out)
}
