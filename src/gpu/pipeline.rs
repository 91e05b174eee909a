//! A compute pipeline.

/// One built compute pipeline. Binding 0 is the parameter block (a uniform with a dynamic offset), the storage
/// buffers follow.
pub struct Pipeline {
    pub(super) name: &'static str,
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Bytes of the parameter block.
    pub(super) params_bytes: u64,
    /// Storage bindings: binding number and whether it is written.
    pub(super) storage: Vec<(u32, bool)>,
}

impl Pipeline {
    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        self.name
    }
}
