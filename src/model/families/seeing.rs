//! Models that also see: the language part is one of the other families, in `text_config`; the part that sees stays as it is.

use super::{Architecture, Keys, ModelError, finish, token_ids};
use crate::model::Channels;

/// Under the second prefix transformers 5 keeps them in memory.
const PREFIXES: &[(&str, &str)] = &[
    ("language_model.model.", "language_model.lm_head"),
    ("model.language_model.", "lm_head"),
    ("model.", "lm_head"),
];

/// The part that sees, and how its features get into the stream of the text.
const UNTOUCHED: &[&str] = &[
    "vision_config",
    "mm_tokens_per_image",
    "image_token_index",
    "image_token_id",
    "boi_token_index",
    "eoi_token_index",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "spatial_merge_size",
    "vision_feature_layer",
];

/// The object that describes the language part.
pub(super) fn text<'a>(keys: &Keys<'a>) -> Result<Keys<'a>, ModelError> {
    keys.nested("text_config")?.ok_or_else(|| keys.wrong("text_config", "an object".into(), "nothing"))
}

/// The language part that `out` describes, as it stands in the whole: what is said beside `text_config` decides.
pub(super) fn whole(keys: &Keys<'_>, mut out: Architecture) -> Result<Architecture, ModelError> {
    out.tie_word_embeddings = keys.flag("tie_word_embeddings", true)?;
    out.names.set_prefixes(PREFIXES);
    out.bound
        .push((Channels::Residual, "the part that sees writes into the residual stream in its own order"));
    out.bos_token_id = token_ids(keys.get("bos_token_id")).first().copied().or(out.bos_token_id);
    let ends = token_ids(keys.get("eos_token_id"));
    if !ends.is_empty() {
        out.eos_token_ids = ends;
    }
    out.dtype = keys.dtype().or(out.dtype);
    for key in UNTOUCHED {
        keys.pass_over(&[(key, "the part that sees stays as it is")]);
    }
    finish(keys, out)
}
