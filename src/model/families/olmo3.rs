//! OLMo 3: an OLMo 2 with three of four blocks sliding; what rescales the rotary embedding is for the others only.

use super::olmo2::with_norms_behind;
use super::{
    Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, Ropes, finish, is_last_of, sliding,
};

pub(super) const FAMILY: Family = Family { name: "olmo3", read };

const THETA: f64 = 500_000.0;

const DEFAULTS: Defaults = Defaults {
    eps: (Some("rms_norm_eps"), 1e-5),
    rope: Ropes::ByKind { full: THETA, sliding: (None, THETA) },
    ..Defaults::LLAMA
};

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("sliding_window", 4096)]);
    let mut out = with_norms_behind(&keys, FAMILY.name, &DEFAULTS)?;
    let full = is_last_of(4);
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    let sliding = sliding(&keys, out.num_layers, |block| !full(block))?;
    out.set_windows(&keys, window, &sliding)?;
    // Versions of transformers differ in whether such a base is that of the sliding blocks, too.
    let one_for_all = keys.number("rope_theta")?.filter(|theta| *theta != THETA);
    if let (Some(theta), None) = (one_for_all, keys.rope_part_of("sliding_attention")?.number("rope_theta")?)
    {
        let expected = format!("{THETA}, or `rope_parameters` with an object for each kind of block");
        return Err(keys.wrong("rope_theta", expected, theta));
    }
    finish(&keys, out)
}
