//! Gemma 3: a Gemma 2 without the cap on scores, with normed queries and keys, five of six blocks sliding, and another rotary
//! embedding for those. Of the models that also see, the language part.

use super::gemma2::with_four_norms;
use super::{
    ActivationKind, Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, QkSpread, Ropes, finish,
    gemma, is_last_of, seeing, sliding,
};

pub(super) const TEXT: Family = Family { name: "gemma3_text", read: read_text };
pub(super) const FAMILY: Family = Family { name: "gemma3", read };

const DEFAULTS: Defaults = Defaults {
    activation: ("hidden_activation", ActivationKind::GeluTanh),
    rope: Ropes::ByKind { full: 1e6, sliding: (Some("rope_local_base_freq"), 1e4) },
    ..gemma::DEFAULTS
};

/// The published files of the models that see leave out what is as in the smallest one.
const SIZES: &[(&str, usize)] = &[
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 4096),
    ("sliding_window_pattern", 6),
];

fn read_text(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    language_part(keys, TEXT.name)
}

fn language_part(keys: Keys<'_>, family: &'static str) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], SIZES);
    let mut out = with_four_norms(&keys, family, &DEFAULTS)?;
    out.set_qk_norm(QkSpread::Shared, "self_attn.q_norm", "self_attn.k_norm");
    out.logit_cap = keys.cap("final_logit_softcapping", None)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    let full = is_last_of(keys.size("sliding_window_pattern", MAX_POSITIONS)?);
    let sliding = sliding(&keys, out.num_layers, |block| !full(block))?;
    out.set_windows(&keys, window, &sliding)?;
    keys.pass_over(&[("attn_logit_softcapping", "transformers does not apply it in this family")]);
    finish(&keys, out)
}

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let text = seeing::text(&keys)?;
    text.only(&[("model_type", TEXT.name)])?;
    let mut out = language_part(text, FAMILY.name)?;
    // The whole has no cap on its logits.
    out.logit_cap = None;
    seeing::whole(&keys, out)
}
