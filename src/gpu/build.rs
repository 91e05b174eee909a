//! Compute pipelines: composed, reflected, built once and cached by (kernel, shader defs).

use std::sync::Arc;

use super::{Defs, Gpu, GpuError, Pipeline, compose};

impl Gpu {
    /// The pipeline of kernel `name` under `defs`, from the cache or built now.
    ///
    /// # Errors
    /// [`GpuError::Shader`] when the WGSL does not compose or the driver rejects it.
    pub fn pipeline(
        &self,
        name: &'static str,
        source: &'static str,
        defs: &Defs,
    ) -> Result<Arc<Pipeline>, GpuError> {
        let key = (name, defs.clone());
        if let Some(found) = self.pipelines().get(&key) {
            return Ok(found.clone());
        }
        let built = Arc::new(self.build(name, source, defs)?);
        self.pipelines().insert(key, built.clone());
        Ok(built)
    }

    /// How many pipelines have been built so far.
    pub fn pipelines_built(&self) -> usize {
        self.pipelines().len()
    }

    fn build(&self, name: &'static str, source: &'static str, defs: &Defs) -> Result<Pipeline, GpuError> {
        let composed = compose(name, source, defs)?;
        let reflected = reflect(name, &composed.module)?;

        let scope = self.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device().push_error_scope(wgpu::ErrorFilter::Internal);
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(composed.module)),
        };
        let module = if self.options().checked {
            self.device().create_shader_module(desc)
        } else {
            // SAFETY: the kernels clamp every index they read or write themselves (the test suite runs them in the
            // checked mode too), every loop has a bound that comes from the parameter block, and integer divisors
            // are non-zero shape parameters checked by the caller of each kernel.
            unsafe {
                self.device().create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
            }
        };
        let mut entries = vec![wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: None,
            },
            count: None,
        }];
        for &(binding, written) in &reflected.storage {
            entries.push(wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !written },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            });
        }
        let layout = self.device().create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &entries,
        });
        let pipeline_layout = self.device().create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let raw = self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        // Scopes nest: the inner one is popped first.
        let inner = pollster::block_on(internal.pop());
        if let Some(error) = inner.or(pollster::block_on(scope.pop())) {
            return Err(GpuError::Shader { kernel: name.to_string(), message: error.to_string() });
        }
        Ok(Pipeline { name, raw, layout, params_bytes: reflected.params_bytes, storage: reflected.storage })
    }
}

struct Reflected {
    params_bytes: u64,
    storage: Vec<(u32, bool)>,
}

/// Reads the bind group layout off the module: a uniform at binding 0 and at most eight storage buffers.
fn reflect(name: &str, module: &naga::Module) -> Result<Reflected, GpuError> {
    let fail = |message: &str| GpuError::Shader { kernel: name.to_string(), message: message.to_string() };
    let mut params_bytes = None;
    let mut storage = Vec::new();
    for (_, var) in module.global_variables.iter() {
        let Some(binding) = &var.binding else {
            continue;
        };
        match var.space {
            naga::AddressSpace::Uniform if binding.binding == 0 => {
                let size = module.types[var.ty].inner.size(module.to_ctx());
                params_bytes = Some(u64::from(size).next_multiple_of(16));
            }
            naga::AddressSpace::Storage { access } => {
                storage.push((binding.binding, access.contains(naga::StorageAccess::STORE)));
            }
            _ => return Err(fail("unexpected resource")),
        }
    }
    storage.sort_unstable();
    if storage.len() > 8 {
        return Err(fail("more than eight storage buffers"));
    }
    Ok(Reflected {
        params_bytes: params_bytes.ok_or_else(|| fail("no parameter block at binding 0"))?,
        storage,
    })
}
