//! Phi 3 and 4: a Llama with q, k and v in one tensor, gate and up in another; some turn only a part of each head, some with
//! LongRoPE.

use super::{
    Architecture, Defaults, Family, Keys, MAX_POSITIONS, ModelError, PlaceInTensor, ProjectionKind, Ropes,
    base, finish,
};

pub(super) const FAMILY: Family = Family { name: "phi3", read };

const DEFAULTS: Defaults =
    Defaults { eps: (Some("rms_norm_eps"), 1e-5), rope: Ropes::part(10_000.0, 1.0), ..Defaults::LLAMA };

fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    let keys = keys.with(&[], &[("original_max_position_embeddings", 4096)]);
    let mut out = base(&keys, FAMILY.name, &DEFAULTS)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS)?;
    out.set_window(&keys, window)?;
    let (q, k) = (out.query_rows(), out.key_rows());
    let place = |first, rows| PlaceInTensor::rows("self_attn.qkv_proj", first, rows, q + 2 * k);
    out.names.set(&[
        (ProjectionKind::Q, place(0, q)),
        (ProjectionKind::K, place(q, k)),
        (ProjectionKind::V, place(q + k, k)),
    ]);
    out.fuse_gate_and_up("mlp.gate_up_proj");
    keys.only(&[("full_attn_mod", "1"), ("interpolate_factor", "1")])?;
    finish(&keys, out)
}
