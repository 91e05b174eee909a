//! Command R and Aya: both parts of a block read one mean-free norm; neighbouring features turn together; a constant on the logits. Some
//! norm every head of queries and keys with gains of its own.

use super::{Architecture, BlockShape, Defaults, Family, Keys, ModelError, QkSpread, Ropes, base, finish};

pub(super) const FAMILY: Family = Family { name: "cohere", read };

/// What both generations share.
pub(super) const DEFAULTS: Defaults = Defaults {
    eps: (Some("layer_norm_eps"), 1e-5),
    rope: Ropes::all(500_000.0),
    tied: true,
    ..Defaults::LLAMA
};

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let mut out = cohere(&keys, FAMILY.name, &DEFAULTS)?;
    if keys.flag("use_qk_norm", false)? {
        out.set_qk_norm(QkSpread::Matrix, "self_attn.q_norm", "self_attn.k_norm");
    }
    finish(&keys, out)
}

/// The part that both generations share.
pub(super) fn cohere(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<Architecture, ModelError> {
    let mut out = base(keys, family, defaults)?;
    out.set_layer_norm(false);
    out.block = BlockShape { parallel: true, feed_forward_in: None, ..out.block };
    out.rotary.interleaved = true;
    out.scales.logits = keys.positive("logit_scale", 0.0625, 1e6)? as f32;
    out.set_attention_bias(keys)?;
    Ok(out)
}
