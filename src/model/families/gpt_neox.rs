//! GPT-NeoX and Pythia: two projections in the feed-forward layer, mean-free norms, biases everywhere, both parts of a block read its
//! input, each with a norm of its own, and q, k and v lie in one tensor, head by head.

use super::{
    ActivationKind, Architecture, Defaults, Family, Keys, ModelError, PlaceInTensor, ProjectionKind, QKV,
    Ropes, base, finish,
};
use crate::model::Part;

pub(super) const FAMILY: Family = Family { name: "gpt_neox", read };

const DEFAULTS: Defaults = Defaults {
    eps: (Some("layer_norm_eps"), 1e-5),
    activation: ("hidden_act", ActivationKind::Gelu),
    rope: Ropes::part(10_000.0, 0.25),
    free_heads: false,
    grouped: false,
    ..Defaults::LLAMA
};

/// What the keys are called here.
const ALIASES: &[(&str, &str)] =
    &[("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")];

/// Transformers 5 keeps the output matrix in memory under the second name.
const PREFIXES: &[(&str, &str)] = &[("gpt_neox.", "embed_out"), ("gpt_neox.", "lm_head")];

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(ALIASES, &[]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    out.set_layer_norm(true);
    out.block.parallel = keys.flag("use_parallel_residual", true)?;
    let (run, of) = (out.head_dim, 3 * out.query_rows());
    // The rows of a head: its queries, its keys, its values.
    let place = |first| {
        let part = Some(Part { first, run, stride: 3 * run, of });
        PlaceInTensor { part, ..PlaceInTensor::whole("attention.query_key_value") }
    };
    out.names.set(&[
        (ProjectionKind::Q, place(0)),
        (ProjectionKind::K, place(run)),
        (ProjectionKind::V, place(2 * run)),
        (ProjectionKind::O, PlaceInTensor::whole("attention.dense")),
    ]);
    let whole = PlaceInTensor::whole;
    out.set_two_layers(whole("mlp.dense_h_to_4h"), whole("mlp.dense_4h_to_h"));
    if keys.flag("attention_bias", true)? {
        out.biases.extend(QKV);
        out.biases.push(ProjectionKind::O);
    }
    out.biases.extend([ProjectionKind::Up, ProjectionKind::Down]);
    // Some versions of transformers wrote these, too; they are not read.
    let (theta, turned, width) = (out.ropes[0].theta, out.rotary.turned, out.head_dim as f64);
    keys.only_number("rope_theta", |n| n == theta)?;
    keys.only_number("partial_rotary_factor", |n| (width * n) as usize == turned)?;
    out.names.embedding = "embed_in.weight";
    out.names.final_norm = "final_layer_norm";
    out.names.set_prefixes(PREFIXES);
    finish(&keys, out)
}
