//! Ministral: a Mistral in which `layer_types` says which blocks slide; without it all do.

use super::{
    Architecture, Defaults, Family, Keys, MAX_HEAD_DIM, MAX_POSITIONS, ModelError, base, finish, sliding,
};

pub(super) const FAMILY: Family = Family { name: "ministral", read };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("num_key_value_heads", 8), ("sliding_window", 4096)]);
    // The family has no default for it.
    keys.size("head_dim", MAX_HEAD_DIM)?;
    let mut out = base(&keys, FAMILY.name, &Defaults::LLAMA)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    let sliding = sliding(&keys, out.num_layers, |_| true)?;
    out.set_windows(&keys, window, &sliding)?;
    finish(&keys, out)
}
