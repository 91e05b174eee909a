//! Which adapters there are, and which one is used.

use super::GpuError;

/// What kind of machine an adapter is, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DeviceKind {
    /// A card of its own.
    Discrete,
    /// Part of the processor, with its memory.
    Integrated,
    /// A virtual machine's share of a GPU.
    Virtual,
    /// The driver does not say.
    Other,
    /// A software driver: no GPU at all.
    Cpu,
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Virtual => "virtual GPU",
            Self::Other => "unknown kind",
            Self::Cpu => "CPU (software)",
        })
    }
}

/// What `maskwright devices` shows of one adapter.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    /// Number for `--device`.
    pub index: usize,
    /// Name given by the driver.
    pub name: String,
    /// Vulkan, Metal or DX12.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// Kind of device, in words.
    pub kind: String,
    /// Most bytes of one storage binding.
    pub max_binding_bytes: u64,
    /// Most bytes of one buffer.
    pub max_buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Most invocations of a workgroup.
    pub max_invocations: u32,
    /// Subgroup sizes the driver may use (smallest, largest).
    pub subgroup: (u32, u32),
    /// Features this program uses when present.
    pub features: Vec<&'static str>,
    /// Whether it would be chosen without `--device`.
    pub chosen: bool,
    /// Why it is, or is not, chosen.
    pub reason: String,
}

pub(super) fn kind_of(info: &wgpu::AdapterInfo) -> DeviceKind {
    let name = info.name.to_lowercase();
    let software = ["llvmpipe", "lavapipe", "swiftshader", "basic render", "warp"];
    match info.device_type {
        wgpu::DeviceType::Cpu => DeviceKind::Cpu,
        _ if software.iter().any(|s| name.contains(s)) => DeviceKind::Cpu,
        wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceKind::Virtual,
        wgpu::DeviceType::Other => DeviceKind::Other,
    }
}

/// The features that are asked for when the adapter has them: none is needed.
pub(super) fn wanted_features() -> wgpu::Features {
    wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP
}

pub(super) fn instance() -> (wgpu::Instance, wgpu::Backends) {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    desc.backends &= wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Out of memory is reported while the driver still answers, instead of losing the device later.
    desc.memory_budget_thresholds.for_resource_creation = Some(95);
    let backends = desc.backends;
    (wgpu::Instance::new(desc), backends)
}

pub(super) fn enumerate(
    instance: &wgpu::Instance,
    backends: wgpu::Backends,
) -> Result<Vec<wgpu::Adapter>, GpuError> {
    let adapters = pollster::block_on(instance.enumerate_adapters(backends));
    if adapters.is_empty() {
        return Err(GpuError::NoAdapter { backends: format!("{backends:?}") });
    }
    Ok(adapters)
}

/// The index of the adapter to use, and why. `wanted` is `--device`: a number or a part of a name. Without it
/// `WGPU_ADAPTER_NAME` counts, and without both the best kind wins (the first of equals).
pub(super) fn choose(infos: &[wgpu::AdapterInfo], wanted: Option<&str>) -> Result<(usize, String), GpuError> {
    let from_env = std::env::var("WGPU_ADAPTER_NAME").ok().filter(|s| !s.is_empty());
    let (wanted, source) = match (wanted, &from_env) {
        (Some(w), _) => (Some(w), "--device"),
        (None, Some(w)) => (Some(w.as_str()), "WGPU_ADAPTER_NAME"),
        (None, None) => (None, ""),
    };
    let Some(wanted) = wanted else {
        let best = (0..infos.len()).min_by_key(|&i| (kind_of(&infos[i]), i));
        let Some(best) = best else {
            return Err(GpuError::NoAdapter { backends: "all".into() });
        };
        let kind = kind_of(&infos[best]);
        let reason = if kind == DeviceKind::Cpu {
            "software driver: chosen because no GPU was found".to_string()
        } else if infos.len() == 1 {
            "the only adapter".to_string()
        } else {
            format!("best kind ({kind})")
        };
        return Ok((best, reason));
    };
    let by_number = wanted.parse::<usize>().ok().filter(|&i| i < infos.len());
    let lower = wanted.to_lowercase();
    let by_name = || {
        (0..infos.len())
            .filter(|&i| infos[i].name.to_lowercase().contains(&lower))
            .min_by_key(|&i| (kind_of(&infos[i]), i))
    };
    match by_number.or_else(by_name) {
        Some(i) => Ok((i, format!("selected by {source}"))),
        None => Err(GpuError::NoSuchAdapter {
            wanted: wanted.to_string(),
            found: infos
                .iter()
                .enumerate()
                .map(|(i, a)| format!("{i}: {} ({:?})", a.name, a.backend))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// All adapters of the compiled-in backends, with the one that `wanted` (or the default rule) selects marked.
///
/// # Errors
/// [`GpuError::NoAdapter`] when there is none, [`GpuError::NoSuchAdapter`] when `wanted` fits none.
pub fn list_adapters(wanted: Option<&str>) -> Result<Vec<AdapterReport>, GpuError> {
    let (instance, backends) = instance();
    let adapters = enumerate(&instance, backends)?;
    let infos: Vec<_> = adapters.iter().map(wgpu::Adapter::get_info).collect();
    let (chosen, why) = choose(&infos, wanted)?;
    let best = kind_of(&infos[chosen]);
    Ok(adapters
        .iter()
        .zip(&infos)
        .enumerate()
        .map(|(index, (adapter, info))| {
            let limits = adapter.limits();
            let kind = kind_of(info);
            let mut features = Vec::new();
            if adapter.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
                features.push("timestamp-query");
            }
            if adapter.features().contains(wgpu::Features::SUBGROUP) {
                features.push("subgroup");
            }
            AdapterReport {
                index,
                name: info.name.clone(),
                backend: format!("{:?}", info.backend),
                driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
                kind: kind.to_string(),
                max_binding_bytes: limits.max_storage_buffer_binding_size,
                max_buffer_bytes: limits.max_buffer_size,
                workgroup_bytes: limits.max_compute_workgroup_storage_size,
                max_invocations: limits.max_compute_invocations_per_workgroup,
                subgroup: (info.subgroup_min_size, info.subgroup_max_size),
                features,
                chosen: index == chosen,
                reason: if index == chosen {
                    why.clone()
                } else if kind == DeviceKind::Cpu {
                    "software driver: used only when nothing else is there or when asked for".into()
                } else if kind > best {
                    format!("{best} preferred")
                } else {
                    "another adapter was selected".into()
                },
            }
        })
        .collect())
}
