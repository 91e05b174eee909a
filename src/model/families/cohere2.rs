//! Command R7B and A: a Command R with three of four blocks sliding; only those have a rotary embedding.

use super::{
    Architecture, Defaults, Family, Keys, MAX_LAYERS, MAX_POSITIONS, ModelError, Ropes, cohere, finish,
    is_last_of, sliding,
};

pub(super) const FAMILY: Family = Family { name: "cohere2", read };

const DEFAULTS: Defaults = Defaults { rope: Ropes::all(10_000.0), free_heads: false, ..cohere::DEFAULTS };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("sliding_window", 4096), ("sliding_window_pattern", 4)]);
    let mut out = cohere::cohere(&keys, FAMILY.name, &DEFAULTS)?;
    let full = is_last_of(keys.size("sliding_window_pattern", MAX_LAYERS)?);
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    let sliding = sliding(&keys, out.num_layers, |block| !full(block))?;
    out.set_windows(&keys, window, &sliding)?;
    for (layer, slides) in out.layers.iter_mut().zip(&sliding) {
        layer.rope = layer.rope.filter(|_| *slides);
    }
    keys.only(&[
        ("position_embedding_type", "rope_gptj"),
        ("rotary_pct", "1"),
        ("use_embedding_sharing", "true"),
        ("use_gated_activation", "true"),
        ("use_parallel_block", "true"),
        ("order_of_interleaved_layers", "local_attn_first"),
    ])?;
    keys.pass_over(&[
        ("use_qk_norm", "transformers does not read it in this family"),
        ("use_parallel_embedding", "how it was cut among devices"),
        ("layer_switch", "an older name of sliding_window_pattern, which stands beside it"),
    ]);
    finish(&keys, out)
}
