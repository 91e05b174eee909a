//! Granite: a Llama with constants on embeddings, scores, what each part adds, and logits.

use super::{Architecture, Defaults, Family, Keys, ModelError, base, finish};

pub(super) const FAMILY: Family = Family { name: "granite", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let mut out = base(&keys, FAMILY.name, &Defaults::LLAMA)?;
    out.set_attention_bias(&keys)?;
    out.set_mlp_bias(&keys)?;
    let constant = |key: &str| keys.positive(key, 1.0, 1e6);
    out.scales.embedding = constant("embedding_multiplier")? as f32;
    out.scales.residual = constant("residual_multiplier")? as f32;
    out.scales.logits = (1.0 / constant("logits_scaling")?) as f32;
    // Where it is missing it is 1, too, and not what is usual.
    out.attention.scale = constant("attention_multiplier")? as f32;
    finish(&keys, out)
}
