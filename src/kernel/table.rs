//! The table of all kernels: their sources and the variants that tests, benches and the portability check walk.

use super::StateType;
use super::adam::Goal;
use super::preset::{Matmul, Preset, SUBGROUP};
use crate::gpu::{Defs, GpuError};
use crate::model::ActivationKind;

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
    "abs_sum_cols",
    "abs_sum_rows",
    "activate",
    "activate_backward",
    "adam_mask",
    "adam_patterns",
    "adam_weight",
    "add_scaled",
    "attention",
    "attention_backward_kv",
    "attention_backward_lanes",
    "attention_backward_q",
    "attention_delta",
    "attention_lanes",
    "attention_step",
    "clamp_backward",
    "clamp_to",
    "copy_columns",
    "damp",
    "descent",
    "diagonal",
    "effective",
    "expected_pruned",
    "expected_step",
    "factor_block",
    "gated",
    "gated_backward",
    "lstsq_residual",
    "lstsq_step",
    "mask_apply",
    "mask_sample",
    "mask_top",
    "mask_update",
    "matmul_lanes",
    "matmul_rows",
    "matmul_tile",
    "mirror",
    "norm",
    "norm_backward",
    "norm_backward_lanes",
    "norm_lanes",
    "peak",
    "prox24",
    "rope",
    "row_dot",
    "score_mask",
    "score_moments",
    "sparsegpt_block",
    "spread",
    "squared_error",
    "transpose",
    "vocab_gradient",
    "vocab_kl",
    "vocab_reduce",
];

/// Patterns (N, M) that have every code path of the kernels that are built for one.
const PATTERNS: [(u32, u32); 9] =
    [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (8, 16), (12, 16), (15, 16)];

/// The same for soft top-N masks with the def of their relaxation, and for soft patterns with their number of combinations.
const RELAXED: [((u32, u32), u32); 16] = [
    ((1, 2), 0),
    ((1, 4), 0),
    ((2, 4), 0),
    ((3, 4), 0),
    ((4, 8), 0),
    ((8, 16), 0),
    ((2, 4), 1),
    ((3, 4), 1),
    ((2, 8), 1),
    ((7, 8), 1),
    ((2, 16), 1),
    ((8, 16), 1),
    ((15, 16), 1),
    ((2, 4), 2),
    ((2, 8), 2),
    ((2, 16), 2),
];
const COUNTED: [(u32, u32, u32); 4] = [(1, 2, 2), (2, 4, 6), (4, 8, 70), (2, 16, 120)];

/// Defs of all kinds of masking of the kernel `effective`.
fn maskings() -> Vec<Defs> {
    let defs = super::effective::defs_of;
    let mut out = vec![defs(0, 1, 4, 4, StateType::F32, false), defs(1, 1, 4, 4, StateType::F32, false)];
    for noise in [false, true] {
        for (p, relaxation) in RELAXED {
            let top = |state| super::effective::top_defs(p, relaxation, state, noise);
            out.extend([StateType::F32, StateType::F16].map(top));
        }
        out.extend(COUNTED.map(|(n, m, count)| defs(3, n, m, count, StateType::F32, noise)));
    }
    out
}

/// Head sizes that stand for all.
const HEAD_DIMS: [u32; 4] = [8, 20, 64, 256];

pub(super) fn source(name: &'static str) -> Result<&'static str, GpuError> {
    KERNELS.iter().find(|k| k.name == name).map(|k| k.source).ok_or_else(|| GpuError::Shader {
        kernel: name.to_string(),
        message: "not in the kernel table".to_string(),
    })
}

/// The different values of a field of the presets.
fn of_presets<T: PartialEq>(field: impl Fn(&Preset) -> T) -> Vec<T> {
    let mut out = Vec::new();
    for value in Preset::all().iter().map(field) {
        if !out.contains(&value) {
            out.push(value);
        }
    }
    out
}

/// Every subset of `switches` added to `defs`.
fn switched(defs: &Defs, switches: &[&'static str]) -> Vec<Defs> {
    (0..1u32 << switches.len())
        .map(|bits| {
            let on = switches.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
            defs.iter().copied().chain(on.map(|(_, &name)| (name, 1))).collect()
        })
        .collect()
}

/// Defs of all nonlinearities.
fn activations(lanes: Vec<u32>) -> Vec<Defs> {
    let kinds = ActivationKind::ALL.map(super::activation::kind_def);
    lanes.into_iter().flat_map(|lanes| kinds.map(|kind| vec![kind, ("LANES", lanes)])).collect()
}

impl KernelSource {
    /// The variants of this kernel that the product can ask for: all storage types, presets and switches; of the mask kernels'
    /// patterns and of attention's head sizes a sample that has every code path.
    pub fn variants(&self) -> Vec<Variant> {
        let lanes = || of_presets(|p| p.lanes);
        let sliced = || -> Vec<Defs> {
            let shapes = of_presets(|p| p.reduce).into_iter();
            shapes.map(|(lanes, slices)| super::elementwise::sliced_defs(lanes, slices)).collect()
        };
        let defs: Vec<Defs> = match self.name {
            "matmul_rows" => of_presets(|p| p.matmul)
                .into_iter()
                .filter_map(|m| match m {
                    Matmul::Rows(rows) => Some(rows),
                    Matmul::Lanes(_) | Matmul::Tile => None,
                })
                .flat_map(|rows| (0..3).map(move |w| vec![("WEIGHT", w), ("LANES", 8), ("ROWS", rows)]))
                .flat_map(|defs| switched(&defs, &["BIAS", "ACCUMULATE"]))
                .collect(),
            "matmul_lanes" => of_presets(|p| p.matmul)
                .into_iter()
                .filter_map(|m| match m {
                    Matmul::Lanes(rows) => Some(rows),
                    Matmul::Rows(_) | Matmul::Tile => None,
                })
                .flat_map(|rows| {
                    (0..3).map(move |w| vec![("WEIGHT", w), ("SUBGROUP", SUBGROUP), ("ROWS", rows)])
                })
                .flat_map(|defs| switched(&defs, &["BIAS", "ACCUMULATE"]))
                .collect(),
            "matmul_tile" => {
                (0..3).flat_map(|w| switched(&vec![("WEIGHT", w)], &["BIAS", "ACCUMULATE", "MASK"])).collect()
            }
            "mask_apply" | "abs_sum_rows" => lanes()
                .into_iter()
                .flat_map(|lanes| (0..3).map(move |w| vec![("WEIGHT", w), ("LANES", lanes)]))
                .collect(),
            "effective" => lanes()
                .into_iter()
                .flat_map(|lanes| (0..3).map(move |w| vec![("WEIGHT", w), ("LANES", lanes)]))
                .flat_map(|defs| switched(&defs, &["TRANSPOSED"]))
                .flat_map(|defs| maskings().into_iter().map(move |more| [defs.clone(), more].concat()))
                .collect(),
            "adam_mask" => lanes()
                .into_iter()
                .flat_map(|lanes| (0..3).map(move |w| vec![("WEIGHT", w), ("LANES", lanes)]))
                .flat_map(|defs| {
                    let all = RELAXED.into_iter().flat_map(|p| [false, true].map(|noise| (p, noise)));
                    all.flat_map(move |((p, relaxation), noise)| {
                        [
                            (StateType::F32, Goal::Step),
                            (StateType::F32, Goal::Joint),
                            (StateType::F32, Goal::Gradient),
                            (StateType::F16, Goal::Step),
                            (StateType::F16, Goal::Gradient),
                        ]
                        .map(|(state, goal)| {
                            [defs.clone(), super::adam::mask_defs(p, relaxation, state, noise, goal)].concat()
                        })
                    })
                })
                .collect(),
            "adam_patterns" => lanes()
                .into_iter()
                .flat_map(|lanes| (0..3).map(move |w| vec![("WEIGHT", w), ("LANES", lanes)]))
                .flat_map(|defs| {
                    let all = COUNTED.into_iter().flat_map(|p| [false, true].map(|noise| (p, noise)));
                    all.flat_map(move |((n, m, count), noise)| {
                        [Goal::Step, Goal::Gradient].map(|goal| {
                            [defs.clone(), super::adam::patterns_defs((n, m), count, noise, goal)].concat()
                        })
                    })
                })
                .collect(),
            "adam_weight" => {
                lanes().into_iter().flat_map(|lanes| switched(&vec![("LANES", lanes)], &["MASK"])).collect()
            }
            "spread" => lanes()
                .into_iter()
                .flat_map(|lanes| (0..3).map(move |w| vec![("WEIGHT", w), ("LANES", lanes)]))
                .flat_map(|defs| {
                    [
                        defs.clone(),
                        [defs.clone(), vec![("MASK", 1)]].concat(),
                        [defs, vec![("MINUS", 1)]].concat(),
                    ]
                })
                .collect(),
            "descent" => of_presets(|p| p.row)
                .into_iter()
                .flat_map(|lanes| (0..3).map(move |w| (("WEIGHT", w), lanes)))
                .flat_map(|(weight, lanes)| PATTERNS.map(|p| (weight, lanes, p)))
                .flat_map(|(weight, lanes, p)| {
                    [0, 512].map(|chip| super::descent::defs(weight, p, lanes, chip))
                })
                .collect(),
            "expected_step" => {
                (0..3).flat_map(|w| PATTERNS.map(|p| super::expected::defs(("WEIGHT", w), p))).collect()
            }
            "expected_pruned" => (0..3)
                .flat_map(|w| PATTERNS.map(|p| super::expected::defs(("WEIGHT", w), p)))
                .flat_map(|defs| switched(&defs, &["CHANGE"]))
                .collect(),
            "attention" => of_presets(|p| p.attention)
                .into_iter()
                .flat_map(|(lanes, keys)| {
                    HEAD_DIMS.map(|d| vec![("LANES", lanes), ("KEYS", keys), ("HEAD_DIM", d)])
                })
                .flat_map(|defs| switched(&defs, &["LSE", "CAP", "WINDOW"]))
                .collect(),
            "attention_lanes" => switched(&vec![("SUBGROUP", SUBGROUP)], &["LSE", "CAP", "WINDOW"]),
            "attention_step" => of_presets(|p| p.attention.0)
                .into_iter()
                .flat_map(|wg| HEAD_DIMS.map(|d| vec![("WG", wg), ("HEAD_DIM", d)]))
                .flat_map(|defs| switched(&defs, &["CAP", "WINDOW"]))
                .collect(),
            "attention_backward_q" | "attention_backward_kv" => of_presets(|p| p.attention.0)
                .into_iter()
                .flat_map(|lanes| HEAD_DIMS.map(|d| vec![("LANES", lanes), ("HEAD_DIM", d)]))
                .flat_map(|defs| switched(&defs, &["CAP", "WINDOW"]))
                .collect(),
            "attention_backward_lanes" => switched(&vec![("SUBGROUP", SUBGROUP)], &["CAP", "WINDOW"]),
            "norm_lanes" => switched(&vec![("SUBGROUP", SUBGROUP)], &["LAYER", "BIAS"]),
            "norm_backward_lanes" => switched(&vec![("SUBGROUP", SUBGROUP)], &["LAYER", "ACCUMULATE"]),
            "norm" => sliced().iter().flat_map(|defs| switched(defs, &["LAYER", "BIAS"])).collect(),
            "norm_backward" => {
                sliced().iter().flat_map(|defs| switched(defs, &["LAYER", "ACCUMULATE"])).collect()
            }
            "vocab_gradient" | "vocab_reduce" => {
                sliced().iter().flat_map(|defs| switched(defs, &["CAP"])).collect()
            }
            "vocab_kl" => sliced().iter().flat_map(|defs| switched(defs, &["CAP", "DENSE_CAP"])).collect(),
            "squared_error" => sliced().iter().flat_map(|defs| switched(defs, &["WEIGHTS"])).collect(),
            "gated" | "activate" => {
                activations(lanes()).iter().flat_map(|defs| switched(defs, &["OUT"])).collect()
            }
            "gated_backward" | "activate_backward" => activations(lanes()),
            "rope" => {
                lanes().into_iter().flat_map(|n| switched(&vec![("LANES", n)], &["BACKWARD"])).collect()
            }
            "abs_sum_cols" => of_presets(|p| p.reduce)
                .into_iter()
                .flat_map(|(lanes, slices)| {
                    (0..3).map(move |w| {
                        let mut defs = vec![("WEIGHT", w)];
                        defs.extend(super::elementwise::sliced_defs(lanes, slices));
                        defs
                    })
                })
                .collect(),
            "score_mask" => (0..3)
                .flat_map(|w| (0..3).map(move |s| vec![("WEIGHT", w), ("SCORE", s), ("WG", 64)]))
                .flat_map(|defs| {
                    [(1, 2), (2, 4), (4, 8), (8, 16)]
                        .map(|(n, m)| [defs.clone(), vec![("N", n), ("M", m)]].concat())
                })
                .collect(),
            "mask_sample" | "mask_top" | "mask_update" | "score_moments" | "sparsegpt_block" => {
                PATTERNS.map(|(n, m)| vec![("WG", 64), ("N", n), ("M", m)]).to_vec()
            }
            _ => lanes().into_iter().map(|lanes| vec![("LANES", lanes)]).collect(),
        };
        defs.into_iter().map(|defs| Variant { kernel: self.name, defs }).collect()
    }
}
