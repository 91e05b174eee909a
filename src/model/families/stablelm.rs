//! StableLM: a Llama with mean-free norms that turns a quarter of each head. Some norm every head of queries and keys with gains of its
//! own, some compute both parts of a block from one norm.

use super::{
    Architecture, BlockShape, Defaults, Family, Keys, ModelError, QKV, QkSpread, Ropes, base, finish,
};

pub(super) const FAMILY: Family = Family { name: "stablelm", read };

const DEFAULTS: Defaults = Defaults {
    eps: (Some("layer_norm_eps"), 1e-5),
    rope: Ropes::part(10_000.0, 0.25),
    free_heads: false,
    ..Defaults::LLAMA
};

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 32)]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    out.set_layer_norm(true);
    if keys.flag("use_qkv_bias", false)? {
        out.biases.extend(QKV);
    }
    if keys.flag("use_parallel_residual", false)? {
        out.block = BlockShape { parallel: true, feed_forward_in: None, ..out.block };
    }
    if keys.flag("qk_layernorm", false)? {
        out.set_qk_norm(QkSpread::Tensors, "self_attn.q_layernorm", "self_attn.k_layernorm");
    }
    finish(&keys, out)
}
