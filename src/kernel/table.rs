//! The table of all kernels: their sources and the variants that tests, benches and the portability check walk.

use crate::gpu::{Defs, GpuError};

/// One shader file.
pub struct KernelSource {
    /// Kernel and file name (`shaders/<name>.wgsl`).
    pub name: &'static str,
    /// Its WGSL before composition.
    pub source: &'static str,
}

/// One kernel under one set of shader defs.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Kernel name.
    pub kernel: &'static str,
    /// Its shader defs.
    pub defs: Defs,
}

macro_rules! kernels {
    ($($name:literal),* $(,)?) => {
        &[$(KernelSource {
            name: $name,
            source: include_str!(concat!("../../shaders/", $name, ".wgsl")),
        }),*]
    };
}

/// Every shader of the project.
pub const KERNELS: &[KernelSource] = kernels![
    "attention",
    "mask_apply",
    "mask_sample",
    "mask_top",
    "mask_update",
    "matmul_rows",
    "matmul_tile",
    "peak",
    "rms_norm",
    "rope",
    "row_sumsq",
    "score_moments",
    "swiglu",
    "vocab_reduce",
];

pub(super) fn source(name: &'static str) -> Result<&'static str, GpuError> {
    KERNELS
        .iter()
        .find(|k| k.name == name)
        .map(|k| k.source)
        .ok_or_else(|| GpuError::Shader {
            kernel: name.to_string(),
            message: "not in the kernel table".to_string(),
        })
}

impl KernelSource {
    /// The variants of this kernel that the product can ask for: all storage types, presets and switches, and for the mask
    /// kernels a sample of patterns that has every code path.
    pub fn variants(&self) -> Vec<Variant> {
        let one = |defs: Defs| Variant {
            kernel: self.name,
            defs,
        };
        let slices = [(8, 1), (16, 16)];
        match self.name {
            "matmul_rows" | "matmul_tile" => {
                let rows: &[u32] = if self.name == "matmul_rows" { &[8, 16, 32] } else { &[0] };
                let mut out = Vec::new();
                for &r in rows {
                    for weight in 0..3 {
                        for bits in 0..8u32 {
                            let mut defs = vec![("WEIGHT", weight)];
                            if r > 0 {
                                defs.extend([("LANES", 8), ("ROWS", r)]);
                            }
                            for (i, name) in ["BIAS", "ACCUMULATE", "MASK"].into_iter().enumerate() {
                                if bits >> i & 1 == 1 && (r == 0 || name != "MASK") {
                                    defs.push((name, 1));
                                }
                            }
                            out.push(one(defs));
                        }
                    }
                }
                out
            }
            "mask_apply" => (0..3).map(|w| one(vec![("WEIGHT", w), ("LANES", 64)])).collect(),
            "attention" => [(8, 32), (32, 16)]
                .into_iter()
                .flat_map(|(lanes, keys)| {
                    [8, 64, 128].map(|d| one(vec![("LANES", lanes), ("KEYS", keys), ("HEAD_DIM", d)]))
                })
                .collect(),
            "rms_norm" | "vocab_reduce" => slices
                .into_iter()
                .map(|(lanes, slices)| one(super::elementwise::sliced_defs(lanes, slices)))
                .collect(),
            "mask_sample" | "mask_top" | "mask_update" | "score_moments" => {
                [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (8, 16), (12, 16), (15, 16)]
                    .map(|(n, m)| one(vec![("WG", 64), ("N", n), ("M", m)]))
                    .to_vec()
            }
            _ => vec![one(vec![("LANES", 64)])],
        }
    }
}
