//! One opened device: limits, caches, the first error it reported.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::adapter::{choose, enumerate, instance, kind_of, wanted_features};
use super::memory::MemoryTracker;
use super::profile::Profiler;
use super::sync::lock;
use super::{Defs, DeviceKind, GpuError, Pipeline};

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Adapter number or a part of its name; `None` = the best one.
    pub device: Option<String>,
    /// Forces a smaller binding limit than the adapter's, in bytes (tests, and drivers that lie).
    pub max_binding_bytes: Option<u64>,
    /// Forces less workgroup memory than the adapter's, in bytes (tests).
    pub max_workgroup_bytes: Option<u32>,
    /// Forces fewer workgroups along a dimension of a dispatch than the adapter's (tests).
    pub max_workgroups: Option<u32>,
    /// Divides what is held at once of panels, strips, copies and logits, so that small models are cut as large ones are (tests); 0 = 1.
    pub shrink: u32,
    /// Measures each dispatch with timestamp queries.
    pub profile: bool,
    /// Keeps naga's bounds and loop checks in the shaders (slower; the tests use it).
    pub checked: bool,
    /// Target length of one submit in milliseconds; 0 = 100.
    pub max_submit_ms: u32,
}

/// The first error that wgpu reported outside of an error scope.
#[derive(Default)]
pub(super) struct Reported {
    pub(super) first: Option<(bool, String)>,
    /// Kernels of the submits in flight, for the message.
    pub(super) during: String,
}

type PipelineCache = HashMap<(&'static str, Defs), Arc<Pipeline>>;

/// An opened device with its queue, caches and accounting.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    kind: DeviceKind,
    reason: String,
    limits: wgpu::Limits,
    options: GpuOptions,
    pipelines: Mutex<PipelineCache>,
    reported: Arc<Mutex<Reported>>,
    pub(super) memory: Arc<MemoryTracker>,
    pub(super) profiler: Option<Mutex<Profiler>>,
    /// Measured against assumed duration of submits; see `Commands`.
    pub(super) pace: Mutex<f64>,
    pub(super) staging: Mutex<Option<super::Buffer>>,
    pub(super) submits: Mutex<Submits>,
}

/// How long submits took, as the host saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Submits {
    /// Number of submits waited for.
    pub count: u64,
    /// The longest, in milliseconds.
    pub longest_ms: f64,
}

impl Gpu {
    /// Opens the device that `options` select.
    ///
    /// # Errors
    /// [`GpuError::NoAdapter`], [`GpuError::NoSuchAdapter`], or [`GpuError::Open`] when the driver refuses.
    pub fn open(options: GpuOptions) -> Result<Self, GpuError> {
        let (instance, backends) = instance();
        let adapters = enumerate(&instance, backends)?;
        let infos: Vec<_> = adapters.iter().map(wgpu::Adapter::get_info).collect();
        let (index, reason) = choose(&infos, options.device.as_deref())?;
        let (adapter, info) = (&adapters[index], infos[index].clone());
        let mut limits = adapter.limits();
        if let Some(bytes) = options.max_binding_bytes {
            let bytes = bytes.max(super::OFFSET_ALIGNMENT);
            limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(bytes);
        }
        if let Some(bytes) = options.max_workgroup_bytes {
            let most = &mut limits.max_compute_workgroup_storage_size;
            *most = bytes.min(*most);
        }
        if let Some(groups) = options.max_workgroups {
            let most = &mut limits.max_compute_workgroups_per_dimension;
            *most = groups.min(*most);
        }
        let mut features = wanted_features() & adapter.features();
        if !options.profile {
            features.remove(wgpu::Features::TIMESTAMP_QUERY);
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("maskwright"),
            required_features: features,
            required_limits: limits.clone(),
            // The big tensors live as long as the run; small ones are few.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        }))
        .map_err(|e| GpuError::Open { adapter: info.name.clone(), reason: e.to_string() })?;
        let reported = Arc::new(Mutex::new(Reported::default()));
        let sink = reported.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            record(&sink, false, error.to_string());
        }));
        let sink = reported.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                record(&sink, true, message);
            }
        });
        let profiler = if features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            Some(Mutex::new(Profiler::new(&device, &queue)))
        } else {
            if options.profile {
                log::warn!("{} has no timestamp queries: no kernel times", info.name);
            }
            None
        };
        Ok(Self {
            kind: kind_of(&info),
            device,
            queue,
            info,
            reason,
            limits,
            options,
            pipelines: Mutex::default(),
            reported,
            memory: Arc::default(),
            profiler,
            pace: Mutex::new(1.0),
            staging: Mutex::new(None),
            submits: Mutex::default(),
        })
    }

    /// "llvmpipe (Vulkan, Mesa 22.3.6)": what results are reported with.
    pub fn describe(&self) -> String {
        let driver = format!("{} {}", self.info.driver, self.info.driver_info);
        format!("{} ({:?}, {})", self.info.name, self.info.backend, driver.trim())
    }

    /// Why this adapter was chosen.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What kind of device this is.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Most bytes of one storage binding.
    pub fn max_binding_bytes(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }

    /// Most bytes of one buffer.
    pub fn max_buffer_bytes(&self) -> u64 {
        self.limits.max_buffer_size
    }

    /// Most workgroups along one dimension of a dispatch.
    pub fn max_workgroups(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// Bytes of workgroup memory, at most.
    pub fn max_workgroup_bytes(&self) -> u32 {
        self.limits.max_compute_workgroup_storage_size
    }

    /// Invocations of a subgroup, where there are subgroups and all have the same size.
    pub fn subgroup_size(&self) -> Option<u32> {
        let fixed = self.info.subgroup_min_size == self.info.subgroup_max_size;
        (fixed && self.device.features().contains(wgpu::Features::SUBGROUP))
            .then_some(self.info.subgroup_min_size)
    }

    /// Number and longest duration of the submits so far.
    pub fn submits(&self) -> Submits {
        *lock(&self.submits)
    }

    /// Frees the buffer that results are read through; the next read allocates one of its size.
    pub fn release_staging(&self) {
        *lock(&self.staging) = None;
    }

    /// The options it was opened with.
    pub fn options(&self) -> &GpuOptions {
        &self.options
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    pub(super) fn pipelines(&self) -> MutexGuard<'_, PipelineCache> {
        lock(&self.pipelines)
    }

    pub(super) fn set_during(&self, during: String) {
        lock(&self.reported).during = during;
    }

    /// The first error that the device reported since the last call, if any.
    ///
    /// # Errors
    /// [`GpuError::Lost`] or [`GpuError::Device`], naming the kernels that ran.
    pub fn check(&self) -> Result<(), GpuError> {
        let mut reported = lock(&self.reported);
        let Some((lost, message)) = reported.first.take() else {
            return Ok(());
        };
        let during = reported.during.clone();
        Err(if lost { GpuError::Lost { during, message } } else { GpuError::Device { during, message } })
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// What the device reported.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    pub(super) fn poll(&self, what: wgpu::PollType) -> Result<(), GpuError> {
        let polled = self.device.poll(what);
        self.check()?;
        polled.map(|_| ()).map_err(|e| GpuError::Device {
            during: lock(&self.reported).during.clone(),
            message: e.to_string(),
        })
    }
}

fn record(sink: &Mutex<Reported>, lost: bool, message: String) {
    let mut reported = lock(sink);
    if reported.first.is_none() {
        reported.first = Some((lost, message));
    }
}
