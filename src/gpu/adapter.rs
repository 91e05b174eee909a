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
    let names: Vec<(&str, String)> =
        infos.iter().map(|info| (info.name.as_str(), format!("{:?}", info.backend))).collect();
    named(&names, wanted).map(|i| (i, format!("selected by {source}")))
}

/// Which of the adapters, by name and backend, is `wanted`: the number where it is one, else the one with this part of a name.
fn named(adapters: &[(&str, String)], wanted: &str) -> Result<usize, GpuError> {
    let told = |which: &[usize]| {
        let one = |&i: &usize| adapters.get(i).map(|(name, backend)| format!("{i}: {name} ({backend})"));
        which.iter().filter_map(one).collect::<Vec<_>>().join(", ")
    };
    let all: Vec<usize> = (0..adapters.len()).collect();
    let lower = wanted.trim().to_lowercase();
    let fits: Vec<usize> = match lower.parse::<usize>() {
        Ok(number) => all.iter().copied().filter(|&i| i == number).collect(),
        // As long a number as it may be, it is none of a name.
        Err(_) if !lower.is_empty() && lower.bytes().all(|b| b.is_ascii_digit()) => Vec::new(),
        Err(_) => {
            let is_part =
                |i: &usize| adapters.get(*i).is_some_and(|(name, _)| name.to_lowercase().contains(&lower));
            all.iter().copied().filter(is_part).collect()
        }
    };
    match fits.as_slice() {
        [only] => Ok(*only),
        [] => Err(GpuError::NoSuchAdapter { wanted: wanted.into(), found: told(&all) }),
        several => Err(GpuError::SeveralAdapters { wanted: wanted.into(), found: told(several) }),
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

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_number_is_an_index_and_a_name_must_fit_one() {
        let cards = [
            ("NVIDIA GeForce RTX 3080", "Vulkan".to_string()),
            ("Intel(R) UHD Graphics 770", "Vulkan".into()),
            ("NVIDIA GeForce RTX 4090", "Vulkan".into()),
            ("llvmpipe (LLVM 15.0.7, 256 bits)", "Vulkan".into()),
        ];
        let find = |wanted: &str| named(&cards, wanted).map_err(|e| e.to_string());
        assert_eq!(find("0"), Ok(0));
        assert_eq!(find("3"), Ok(3));
        assert_eq!(find("rtx 4090"), Ok(2));
        assert_eq!(find("UHD"), Ok(1));
        assert_eq!(find("LLVMPIPE"), Ok(3));
        // Parts of names, but numbers: of the cards and of the driver.
        for number in ["4", "7", "15", "256", "770", "3080", "99999999999999999999999999"] {
            let told = find(number).unwrap_err();
            assert!(
                told.contains("no adapter") && told.contains("2: NVIDIA GeForce RTX 4090 (Vulkan)"),
                "{told}"
            );
        }
        for part in ["nvidia", "RTX", "", "e"] {
            let told = find(part).unwrap_err();
            assert!(
                told.contains("several adapters") && told.contains("0: NVIDIA GeForce RTX 3080"),
                "{told}"
            );
        }
        let told = find("rtx").unwrap_err();
        assert!(told.contains("2: NVIDIA") && !told.contains("llvmpipe"), "{told}");
        // One card under two backends.
        let twice = [("Radeon", "Vulkan".to_string()), ("Radeon", "Dx12".into())];
        let told = named(&twice, "radeon").unwrap_err().to_string();
        assert!(told.contains("0: Radeon (Vulkan), 1: Radeon (Dx12)"), "{told}");
        assert_eq!(named(&twice, "1").ok(), Some(1));
    }
}
