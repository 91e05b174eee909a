//! Phi 1, 1.5 and 2: attention and a feed-forward layer of two projections read the same norm; biases everywhere; half of each head
//! or less turns.

use super::{
    ActivationKind, Architecture, BlockShape, Defaults, Family, Keys, ModelError, PlaceInTensor,
    ProjectionKind, Ropes, base, finish,
};

pub(super) const FAMILY: Family = Family { name: "phi", read };

const DEFAULTS: Defaults = Defaults {
    eps: (Some("layer_norm_eps"), 1e-5),
    activation: ("hidden_act", ActivationKind::GeluTanh),
    rope: Ropes::part(10_000.0, 0.5),
    ..Defaults::LLAMA
};

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    if keys.flag("qk_layernorm", false)? {
        return Err(keys.unsupported("`qk_layernorm` true", "in this family only models without it are"));
    }
    out.set_layer_norm(true);
    out.block = BlockShape { parallel: true, feed_forward_in: None, ..out.block };
    out.names.set(&[(ProjectionKind::O, PlaceInTensor::whole("self_attn.dense"))]);
    out.set_two_layers(PlaceInTensor::whole("mlp.fc1"), PlaceInTensor::whole("mlp.fc2"));
    out.biases.extend(out.kinds());
    out.output_bias = true;
    out.names.final_norm = "final_layernorm";
    finish(&keys, out)
}
