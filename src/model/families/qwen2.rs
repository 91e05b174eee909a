//! Qwen2 and 2.5: a Llama with biases on q, k and v, whose later blocks may slide.

use super::{Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, QKV, base, finish, sliding};

pub(super) const FAMILY: Family = Family { name: "qwen2", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 32), ("sliding_window", 4096)]);
    let mut out = base(&keys, FAMILY.name, &Defaults::LLAMA)?;
    out.biases.extend(QKV);
    later_blocks_slide(&keys, &mut out)?;
    finish(&keys, out)
}

/// With `use_sliding_window`, blocks from `max_window_layers` on slide, or those that `layer_types` names.
pub(super) fn later_blocks_slide(keys: &Keys<'_>, out: &mut Architecture) -> Result<(), ModelError> {
    let from = keys.number("max_window_layers")?.unwrap_or(28.0);
    switched_windows(keys, out, |block| block as f64 >= from)
}

/// Windows that `use_sliding_window` switches on: in the blocks that `layer_types` names, or in those of `otherwise`.
pub(super) fn switched_windows(
    keys: &Keys<'_>,
    out: &mut Architecture,
    otherwise: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let on = keys.flag("use_sliding_window", false)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?.filter(|_| on);
    let sliding = sliding(keys, out.num_layers, |block| window.is_some() && otherwise(block))?;
    if !on && sliding.contains(&true) {
        let expected = "true, as `layer_types` names blocks that slide".into();
        return Err(keys.wrong("use_sliding_window", expected, on));
    }
    out.set_windows(keys, window, &sliding)
}
