//! Tile shapes.

use crate::gpu::{DeviceKind, Gpu};

/// Which product kernel a preset uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matmul {
    /// `matmul_rows` with this many rows per invocation: software drivers.
    Rows(u32),
    /// `matmul_lanes` with this many rows per invocation: software drivers with subgroups of `SUBGROUP`.
    Lanes(u32),
    /// `matmul_tile`: GPUs.
    Tile,
}

/// The subgroup size that the kernels `*_lanes` are written for: 256 bits of f32.
pub(super) const SUBGROUP: u32 = 8;

/// Tile shapes of all kernels. Changing it changes summation orders, so a run records its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// "tile64", "rows8", "rows16", "rows32", "lanes16" or "lanes32".
    pub name: &'static str,
    pub(super) matmul: Matmul,
    /// Invocations of a workgroup of element-wise kernels.
    pub(super) lanes: u32,
    /// Lanes along tokens and slices along rows of the reducing kernels.
    pub(super) reduce: (u32, u32),
    /// Lanes along tokens and keys a step of attention.
    pub(super) attention: (u32, u32),
    /// Lanes that share one row of a matrix, in kernels that give each row a workgroup.
    pub(super) row: u32,
}

impl Preset {
    /// All presets, also those that only some devices run.
    pub fn all() -> Vec<Self> {
        let software =
            |name, matmul| Self { name, matmul, lanes: 64, reduce: (8, 1), attention: (8, 32), row: 8 };
        vec![
            Self {
                name: "tile64",
                matmul: Matmul::Tile,
                lanes: 256,
                reduce: (16, 16),
                attention: (32, 16),
                row: 128,
            },
            software("rows8", Matmul::Rows(8)),
            software("rows16", Matmul::Rows(16)),
            software("rows32", Matmul::Rows(32)),
            software("lanes16", Matmul::Lanes(16)),
            software("lanes32", Matmul::Lanes(32)),
        ]
    }

    /// Those of all presets that `gpu` runs.
    pub fn offered(gpu: &Gpu) -> Vec<Self> {
        Self::all().into_iter().filter(|p| p.needs_met(gpu.subgroup_size())).collect()
    }

    /// Whether it runs where subgroups have this many invocations (`None` = no subgroups, or of several sizes).
    pub(super) fn needs_met(&self, subgroup: Option<u32>) -> bool {
        !self.subgroups() || subgroup == Some(SUBGROUP)
    }

    /// The preset of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|p| p.name == name)
    }

    /// The preset of a kind of device before anything is measured.
    pub fn of_kind(kind: DeviceKind) -> Self {
        let name = if kind == DeviceKind::Cpu { "rows16" } else { "tile64" };
        Self::all().into_iter().find(|p| p.name == name).unwrap_or_else(|| Self::all().swap_remove(0))
    }

    /// Whether kernels may use subgroups of `SUBGROUP` invocations.
    pub(super) fn subgroups(&self) -> bool {
        matches!(self.matmul, Matmul::Lanes(_))
    }

    /// Rows of the output that one workgroup of the product makes.
    pub(super) fn row_unit(&self) -> usize {
        match self.matmul {
            Matmul::Rows(rows) | Matmul::Lanes(rows) => rows as usize,
            Matmul::Tile => 64,
        }
    }
}
