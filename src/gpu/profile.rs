//! Kernel times by timestamp queries.

use std::collections::BTreeMap;

/// What a dispatch costs, for cutting submits and for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that have to be read or written at least once.
    pub bytes: f64,
}

/// Dispatches measured per submit: two queries each; WebGPU allows 4096 queries in a set.
pub(super) const SLOTS: u32 = 256;

/// Sums over all dispatches of one kernel.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProfileRow {
    /// Kernel name.
    pub kernel: &'static str,
    /// Number of dispatches.
    pub calls: u64,
    /// Milliseconds on the device.
    pub ms: f64,
    /// Floating-point operations per second, in units of 1e9.
    pub gflops: f64,
    /// Bytes read and written per second (least traffic), in units of 1e9.
    pub gbytes: f64,
}

#[derive(Default)]
struct Sum {
    calls: u64,
    seconds: f64,
    work: Work,
}

pub(super) struct Profiler {
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolve: wgpu::Buffer,
    pub(super) read: wgpu::Buffer,
    seconds_per_tick: f64,
    sums: BTreeMap<&'static str, Sum>,
}

impl Profiler {
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let size = u64::from(SLOTS) * 2 * 8;
        let buffer = |label, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        use wgpu::BufferUsages as U;
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: SLOTS * 2,
            }),
            resolve: buffer("profile:resolve", U::QUERY_RESOLVE | U::COPY_SRC),
            read: buffer("profile:read", U::COPY_DST | U::MAP_READ),
            seconds_per_tick: f64::from(queue.get_timestamp_period()) * 1e-9,
            sums: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, kernel: &'static str, work: Work, begin: u64, end: u64) {
        let sum = self.sums.entry(kernel).or_default();
        sum.calls += 1;
        sum.seconds += end.saturating_sub(begin) as f64 * self.seconds_per_tick;
        sum.work.flops += work.flops;
        sum.work.bytes += work.bytes;
    }

    pub(super) fn rows(&self) -> Vec<ProfileRow> {
        let mut rows: Vec<_> = self
            .sums
            .iter()
            .map(|(&kernel, s)| ProfileRow {
                kernel,
                calls: s.calls,
                ms: s.seconds * 1e3,
                gflops: s.work.flops / s.seconds.max(1e-12) * 1e-9,
                gbytes: s.work.bytes / s.seconds.max(1e-12) * 1e-9,
            })
            .collect();
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        rows
    }

    pub(super) fn clear(&mut self) {
        self.sums.clear();
    }
}
