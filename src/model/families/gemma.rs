//! Gemma: a Llama with one more than the stored gains, embeddings times the root of their width, and GELU by tanh.

use super::{ActivationKind, Architecture, Defaults, Family, Gain, Keys, ModelError, base, finish};

pub(super) const FAMILY: Family = Family { name: "gemma", read };

/// What all Gemmas share.
pub(super) const DEFAULTS: Defaults =
    Defaults { activation: ("hidden_act", ActivationKind::GeluTanh), tied: true, ..Defaults::LLAMA };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 16), ("head_dim", 256)]);
    let mut out = gemma(&keys, FAMILY.name, &DEFAULTS)?;
    // The first files say gelu and mean the other one, as transformers knows.
    if out.feed_forward.activation == ActivationKind::Gelu {
        out.feed_forward.activation = ActivationKind::GeluTanh;
    }
    keys.pass_over(&[("hidden_activation", "transformers reads hidden_act")]);
    finish(&keys, out)
}

/// The part that all Gemmas share.
pub(super) fn gemma(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<Architecture, ModelError> {
    let mut out = base(keys, family, defaults)?;
    out.norm.gain = Gain::OnePlus;
    out.scales.embedding = (out.hidden_size as f64).sqrt() as f32;
    out.set_attention_bias(keys)?;
    if keys.flag("use_bidirectional_attention", false)? {
        let remedy = "only models that see what came before are";
        return Err(keys.unsupported("`use_bidirectional_attention` true", remedy));
    }
    Ok(out)
}
