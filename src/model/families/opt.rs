//! OPT: learned positions instead of a rotary embedding, mean-free norms, two projections with ReLU between them in the feed-forward
//! layer, biases everywhere. The smallest but one, whose norms come behind the sum, is not supported.

use super::{
    ActivationKind, Architecture, BlockShape, Defaults, Family, Gain, Keys, MAX_WIDTH, ModelError,
    PlaceInTensor, ProjectionKind, Ropes, base, finish,
};
use crate::model::LearnedPositions;

pub(super) const FAMILY: Family = Family { name: "opt", read };

const DEFAULTS: Defaults = Defaults {
    eps: (None, 1e-5),
    activation: ("activation_function", ActivationKind::Relu),
    rope: Ropes::None,
    tied: true,
    free_heads: false,
    grouped: false,
    times: None,
};

/// Some files lack the outer module.
const PREFIXES: &[(&str, &str)] = &[("model.decoder.", "lm_head"), ("decoder.", "lm_head")];

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[("intermediate_size", "ffn_dim")], &[]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    refuse_norms_behind(&keys, &out)?;
    out.set_layer_norm(true);
    if !keys.flag("layer_norm_elementwise_affine", true)? {
        (out.norm.gain, out.norm.bias) = (Gain::None, false);
    }
    out.block = BlockShape::before("self_attn_layer_norm", "final_layer_norm");
    // The first two rows were those of padding.
    out.positions = Some(LearnedPositions { name: "embed_positions.weight", offset: 2 });
    out.names.set(&[(ProjectionKind::O, PlaceInTensor::whole("self_attn.out_proj"))]);
    out.set_two_layers(PlaceInTensor::whole("fc1"), PlaceInTensor::whole("fc2"));
    if keys.flag("enable_bias", true)? {
        out.biases.extend(out.kinds());
    }
    out.names.final_norm = "final_layer_norm";
    out.names.set_prefixes(PREFIXES);
    keys.pass_over(&[("init_std", "before training")]);
    finish(&keys, out)
}

fn refuse_norms_behind(keys: &Keys<'_>, out: &Architecture) -> Result<(), ModelError> {
    let refuse = |what: &str| {
        Err(keys.unsupported(what, "of this family, only models with norms before each part are"))
    };
    if !keys.flag("do_layer_norm_before", true)? {
        return refuse("`do_layer_norm_before` false");
    }
    if keys.flag("_remove_final_layer_norm", false)? {
        return refuse("`_remove_final_layer_norm` true");
    }
    match keys.size_or("word_embed_proj_dim", MAX_WIDTH)? {
        Some(width) if width != out.hidden_size => {
            let what = format!("`word_embed_proj_dim` {width} other than `hidden_size` {}", out.hidden_size);
            Err(keys.unsupported(what, "only models without projections around the blocks are"))
        }
        _ => Ok(()),
    }
}
