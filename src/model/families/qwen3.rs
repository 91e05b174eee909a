//! Qwen3: a Llama whose queries and keys are normed, each head by itself with the same gains.

use super::qwen2::later_blocks_slide;
use super::{Architecture, Defaults, Family, Keys, ModelError, QkSpread, base, finish};

pub(super) const FAMILY: Family = Family { name: "qwen3", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 32), ("head_dim", 128), ("sliding_window", 4096)]);
    let mut out = base(&keys, FAMILY.name, &Defaults::LLAMA)?;
    out.set_attention_bias(&keys)?;
    out.set_qk_norm(QkSpread::Shared, "self_attn.q_norm", "self_attn.k_norm");
    later_blocks_slide(&keys, &mut out)?;
    finish(&keys, out)
}
