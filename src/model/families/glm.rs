//! GLM 4 of 2024: a Llama with gate and up in one tensor, biases on q, k and v, and neighbouring features turning together, in the first
//! half of each head.

use super::{Architecture, Defaults, Family, Keys, ModelError, QKV, Ropes, base, finish};

pub(super) const FAMILY: Family = Family { name: "glm", read };

const DEFAULTS: Defaults =
    Defaults { eps: (Some("rms_norm_eps"), 1.562_5e-7), rope: Ropes::part(10_000.0, 0.5), ..Defaults::LLAMA };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    glm(keys, FAMILY.name)
}

/// What both generations share.
pub(super) fn glm(keys: Keys<'_>, family: &'static str) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 2), ("head_dim", 128)]);
    let mut out = base(&keys, family, &DEFAULTS)?;
    out.rotary.interleaved = true;
    if keys.flag("attention_bias", true)? {
        out.biases.extend(QKV);
    }
    out.fuse_gate_and_up("mlp.gate_up_proj");
    finish(&keys, out)
}
