//! Gemma 2: a Gemma with norms also behind each part, capped scores and logits, and every other block sliding.

use super::{
    ActivationKind, Architecture, BlockShape, Defaults, Family, Keys, MAX_POSITIONS, ModelError, finish,
    gemma, sliding,
};

pub(super) const FAMILY: Family = Family { name: "gemma2", read };

const DEFAULTS: Defaults =
    Defaults { activation: ("hidden_activation", ActivationKind::GeluTanh), ..gemma::DEFAULTS };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 4), ("head_dim", 256), ("sliding_window", 4096)]);
    let mut out = with_four_norms(&keys, FAMILY.name, &DEFAULTS)?;
    out.attention.cap = keys.cap("attn_logit_softcapping", Some(50.0))?;
    out.logit_cap = keys.cap("final_logit_softcapping", Some(30.0))?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    let sliding = sliding(&keys, out.num_layers, |block| block.is_multiple_of(2))?;
    out.set_windows(&keys, window, &sliding)?;
    keys.pass_over(&[("sliding_window_size", "an older name of sliding_window, which stands beside it")]);
    finish(&keys, out)
}

/// The part that Gemma 2 and 3 share.
pub(super) fn with_four_norms(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<Architecture, ModelError> {
    let mut out = gemma::gemma(keys, family, defaults)?;
    out.attention.scale = (1.0 / keys.positive("query_pre_attn_scalar", 256.0, 1e9)?.sqrt()) as f32;
    out.block = BlockShape {
        attention_in: Some("input_layernorm"),
        attention_out: Some("post_attention_layernorm"),
        feed_forward_in: Some("pre_feedforward_layernorm"),
        feed_forward_out: Some("post_feedforward_layernorm"),
        parallel: false,
    };
    keys.pass_over(&[("hidden_act", "transformers reads hidden_activation")]);
    Ok(out)
}
