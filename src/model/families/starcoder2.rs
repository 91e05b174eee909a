//! StarCoder 2: a Llama with mean-free norms, a feed-forward layer of two projections, and biases everywhere.

use super::{
    ActivationKind, Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, PlaceInTensor, base,
    finish,
};

pub(super) const FAMILY: Family = Family { name: "starcoder2", read };

const DEFAULTS: Defaults = Defaults {
    eps: (Some("norm_epsilon"), 1e-5),
    activation: ("hidden_act", ActivationKind::GeluTanh),
    tied: true,
    ..Defaults::LLAMA
};

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 2)]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    out.set_layer_norm(true);
    out.set_two_layers(PlaceInTensor::whole("mlp.c_fc"), PlaceInTensor::whole("mlp.c_proj"));
    if keys.flag("use_bias", true)? {
        out.biases.extend(out.kinds());
    }
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    out.set_window(&keys, window)?;
    keys.only(&[("mlp_type", "default"), ("norm_type", "layer_norm"), ("scale_attn_weights", "true")])?;
    keys.pass_over(&[
        ("activation_function", "transformers reads hidden_act"),
        ("layer_norm_epsilon", "transformers reads norm_epsilon"),
        ("attention_softmax_in_fp32", "all is in f32 here"),
        ("scale_attention_softmax_in_fp32", "all is in f32 here"),
    ]);
    finish(&keys, out)
}
