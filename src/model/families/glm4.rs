//! GLM 4 of 2025: the GLM before it with norms also behind each part.

use super::{Architecture, BlockShape, Family, Keys, ModelError, glm};

pub(super) const FAMILY: Family = Family { name: "glm4", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let mut out = glm::glm(keys, FAMILY.name)?;
    out.block = BlockShape {
        attention_in: Some("input_layernorm"),
        attention_out: Some("post_self_attn_layernorm"),
        feed_forward_in: Some("post_attention_layernorm"),
        feed_forward_out: Some("post_mlp_layernorm"),
        parallel: false,
    };
    Ok(out)
}
