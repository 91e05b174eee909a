//! What an adapter allows of one piece of something large.

use super::Gpu;

/// All that cutting depends on: two adapters with equal limits cut everything alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one storage binding.
    pub binding: u64,
    /// Most bytes of one buffer.
    pub buffer: u64,
    /// Most workgroups along one dimension of a dispatch.
    pub groups: u32,
    /// What the bytes held at once are divided by: 1, but in tests, where small models take the paths of large ones.
    pub shrink: u64,
}

impl Limits {
    /// Most bytes of a buffer that is bound whole.
    pub fn piece(self) -> u64 {
        self.binding.min(self.buffer)
    }
}

/// A binding limit, with WebGPU's default of workgroups.
impl From<u64> for Limits {
    fn from(binding: u64) -> Self {
        Self { binding, buffer: u64::MAX, groups: 65_535, shrink: 1 }
    }
}

impl Gpu {
    /// What it allows of one piece.
    pub fn limits(&self) -> Limits {
        Limits {
            binding: self.max_binding_bytes(),
            buffer: self.max_buffer_bytes(),
            groups: self.max_workgroups(),
            shrink: u64::from(self.options().shrink.max(1)),
        }
    }
}
