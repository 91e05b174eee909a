//! What each consumer of 2:4 weights accepts, and the bytes of each representation.
//!
//! The shape rules are those of PyTorch's `SparseSemiStructuredTensor` classes (`_DTYPE_SHAPE_CONSTRAINTS`), and for
//! TensorRT those by which ModelOpt chooses layers (rows of 8, columns of 16).

use serde::Serialize;

use crate::export::torch24;
use crate::mask::Pattern;
use crate::mask::rank::Packing;
use crate::model::Dtype;

const NOT_PRUNED: &str = "not pruned";

/// A projection's fitness for each backend: `None`, or why not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fitness {
    /// PyTorch, `SparseSemiStructuredTensorCUTLASS`.
    pub cutlass: Option<String>,
    /// PyTorch, `SparseSemiStructuredTensorCUSPARSELT`.
    pub cusparselt: Option<String>,
    /// TensorRT with sparse weights.
    pub tensorrt: Option<String>,
}

/// Fitness of a projection `[rows, cols]` of `dtype` under `pattern`; `dense` when it is not pruned. Readers of dense
/// weights take every projection.
pub fn fitness(pattern: Pattern, dense: bool, dtype: Dtype, rows: usize, cols: usize) -> Fitness {
    let refused = |dtypes: &[Dtype], sides: [usize; 2]| {
        if dense {
            return Some(NOT_PRUNED.to_string());
        }
        if !torch24::qualifies(pattern) {
            return Some(format!("{pattern} is not what 2:4 hardware runs"));
        }
        if !dtypes.contains(&dtype) {
            return Some(format!("{dtype} is not supported"));
        }
        let fits = rows.is_multiple_of(sides[0]) && cols.is_multiple_of(sides[1]);
        (!fits).then(|| format!("{rows} x {cols} is no multiple of {} x {}", sides[0], sides[1]))
    };
    let half = [Dtype::F16, Dtype::BF16];
    Fitness {
        cutlass: match dense {
            true => Some(NOT_PRUNED.into()),
            false => torch24::fits(pattern, dtype, rows, cols).err(),
        },
        cusparselt: refused(&half, [16, 16]),
        tensorrt: refused(&half, [8, 16]),
    }
}

/// Bytes of all projections in each representation; those that a form does not take stay dense in it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Sizes {
    /// Dense with zeros: what the folder holds.
    pub dense: u64,
    /// Packed values and metadata in the CUTLASS layout.
    pub torch24: u64,
    /// compressed-tensors `sparse-24-bitmask`.
    pub ct24: u64,
    /// The masks alone.
    pub mask_file: u64,
    /// cuSPARSELt's buffer, an estimate: 9/16 of the elements.
    pub cusparselt_estimate: u64,
}

impl Sizes {
    /// Adds a projection.
    pub fn add(&mut self, pattern: Pattern, dense: bool, dtype: Dtype, rows: usize, cols: usize) {
        let fit = fitness(pattern, dense, dtype, rows, cols);
        let weights = rows as u64 * cols as u64;
        let bytes = weights * dtype.size() as u64;
        let packed = bytes / 16 * 9;
        self.dense += bytes;
        self.torch24 += if fit.cutlass.is_none() { packed } else { bytes };
        self.cusparselt_estimate += if fit.cusparselt.is_none() { packed } else { bytes };
        let by_pairs = !dense && torch24::qualifies(pattern) && cols.is_multiple_of(8);
        self.ct24 += if by_pairs { bytes / 2 + weights / 8 + 16 } else { bytes };
        if !dense && let Some(bytes) = Packing::of(pattern).bytes(rows * (cols / pattern.m())) {
            self.mask_file += bytes as u64;
        }
    }
}
