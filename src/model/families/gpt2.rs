//! GPT-2: learned positions instead of a rotary embedding, mean-free norms, two projections in the feed-forward layer, biases
//! everywhere; all projections are stored `[inputs, outputs]`, q, k and v in one tensor.

use super::{
    ActivationKind, Architecture, BlockShape, Defaults, Family, Keys, ModelError, PlaceInTensor,
    ProjectionKind, Ropes, base, finish,
};
use crate::model::LearnedPositions;

pub(super) const FAMILY: Family = Family { name: "gpt2", read };

const DEFAULTS: Defaults = Defaults {
    eps: (Some("layer_norm_epsilon"), 1e-5),
    activation: ("activation_function", ActivationKind::GeluTanh),
    rope: Ropes::None,
    tied: true,
    free_heads: false,
    grouped: false,
    times: Some(4),
};

/// What the keys are called here.
const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
    ("intermediate_size", "n_inner"),
    ("max_position_embeddings", "n_positions"),
];

/// As OpenAI published it, and as transformers writes it.
const PREFIXES: &[(&str, &str)] = &[("", "lm_head"), ("transformer.", "lm_head")];

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(ALIASES, &[]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    out.set_layer_norm(true);
    out.block = BlockShape::before("ln_1", "ln_2");
    out.positions = Some(LearnedPositions { name: "wpe.weight", offset: 0 });
    if !keys.flag("scale_attn_weights", true)? {
        out.attention.scale = 1.0;
    }
    if keys.flag("scale_attn_by_inverse_layer_idx", false)? {
        let remedy = "only models whose blocks all scale alike are";
        return Err(keys.unsupported("`scale_attn_by_inverse_layer_idx` true", remedy));
    }
    let (rows, of) = (out.query_rows(), 3 * out.query_rows());
    let third = |i| PlaceInTensor::rows("attn.c_attn", i * rows, rows, of).transposed();
    out.names.set(&[
        (ProjectionKind::Q, third(0)),
        (ProjectionKind::K, third(1)),
        (ProjectionKind::V, third(2)),
        (ProjectionKind::O, PlaceInTensor::whole("attn.c_proj").transposed()),
    ]);
    let whole = |module| PlaceInTensor::whole(module).transposed();
    out.set_two_layers(whole("mlp.c_fc"), whole("mlp.c_proj"));
    out.biases.extend(out.kinds());
    out.names.embedding = "wte.weight";
    out.names.final_norm = "ln_f";
    out.names.blocks = "h";
    out.names.set_prefixes(PREFIXES);
    keys.pass_over(&[
        ("n_ctx", "an older name of n_positions, which stands beside it"),
        ("reorder_and_upcast_attn", "all is in f32 here"),
        ("output_past", "what transformers returns"),
        ("summary_activation", "another head"),
        ("summary_first_dropout", "another head"),
        ("summary_proj_to_labels", "another head"),
        ("summary_type", "another head"),
        ("summary_use_proj", "another head"),
    ]);
    finish(&keys, out)
}
