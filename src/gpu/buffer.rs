//! Buffers with a label, and ranges of them.

use std::sync::Arc;

use super::OFFSET_ALIGNMENT;
use super::memory::{MemoryTracker, group};

/// A storage buffer on the device. Its label starts with the group it is counted under: `weights:lm_head`.
pub struct Buffer {
    raw: wgpu::Buffer,
    label: String,
    bytes: u64,
    memory: Arc<MemoryTracker>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.change(group(&self.label), self.bytes, false);
    }
}

impl Buffer {
    /// Takes a buffer into the books.
    pub(super) fn new(raw: wgpu::Buffer, label: &str, bytes: u64, memory: Arc<MemoryTracker>) -> Self {
        memory.change(group(label), bytes, true);
        Self { raw, label: label.to_string(), bytes, memory }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its label.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.raw
    }

    /// The whole buffer as a binding.
    pub fn all(&self) -> Binding<'_> {
        Binding { buffer: self, offset: 0, bytes: self.bytes }
    }

    /// `bytes` from `offset` on as a binding; `offset` must be a multiple of [`OFFSET_ALIGNMENT`].
    pub fn range(&self, offset: u64, bytes: u64) -> Binding<'_> {
        debug_assert!(offset.is_multiple_of(OFFSET_ALIGNMENT));
        Binding { buffer: self, offset, bytes }
    }
}

/// A range of a buffer, bound to one storage binding of a kernel.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}
