//! A stream of dispatches, copies and writes, cut into short submits.
//!
//! A submit ends when its estimated time reaches the target (about 100 ms: watchdogs of Windows and macOS reset the
//! device after seconds) or its parameter blocks fill one page. The estimate starts from the kind of device and is
//! corrected by what submits really took. At most [`OUTSTANDING`] submits are in flight.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::profile::SLOTS;
use super::sync::lock;
use super::{Binding, Buffer, DeviceKind, Gpu, GpuError, OFFSET_ALIGNMENT, Pipeline, Work};

/// Submits in flight before the host waits for the oldest.
const OUTSTANDING: usize = 3;
/// Parameter blocks of one submit.
const PAGE_SLOTS: u64 = 256;
/// Most bytes of one read-back piece.
pub const READ_PIECE: u64 = 16 << 20;
/// Bytes of parameter blocks that every stream allocates.
pub const PARAMS_BYTES: u64 = PAGE_SLOTS * OFFSET_ALIGNMENT;

struct Dispatch {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    slot: u32,
    grid: [u32; 3],
    work: Work,
}

struct InFlight {
    index: wgpu::SubmissionIndex,
    at: Instant,
    assumed: f64,
}

/// A read-back under way: see [`Commands::start_read`].
pub struct Reading {
    staging: Buffer,
    bytes: u64,
    index: wgpu::SubmissionIndex,
    mapped: Arc<AtomicBool>,
    label: String,
}

/// Records work for one device. Dropping it without [`Commands::finish`] discards what was not submitted.
pub struct Commands<'g> {
    gpu: &'g Gpu,
    params: Buffer,
    page: Vec<u8>,
    recorded: Vec<Dispatch>,
    assumed: f64,
    in_flight: VecDeque<InFlight>,
    last_done: Instant,
    /// Staging buffers of finished readings.
    spare: Vec<Buffer>,
}

impl<'g> Commands<'g> {
    /// An empty stream.
    ///
    /// # Errors
    /// When the parameter page cannot be allocated.
    pub fn new(gpu: &'g Gpu) -> Result<Self, GpuError> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        Ok(Self {
            gpu,
            params: gpu.alloc_with("staging:params", PARAMS_BYTES, usage)?,
            page: Vec::new(),
            recorded: Vec::new(),
            assumed: 0.0,
            in_flight: VecDeque::new(),
            last_done: Instant::now(),
            spare: Vec::new(),
        })
    }

    /// The device it records for.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Operations that one dispatch may hold so that it stays within the submit target: kernels that can cut their
    /// rows ask for it.
    pub fn max_dispatch_flops(&self) -> f64 {
        let (flops, _) = assumed_rates(self.gpu.kind());
        flops * self.target() / *lock(&self.gpu.pace)
    }

    fn target(&self) -> f64 {
        match self.gpu.options().max_submit_ms {
            0 => 0.1,
            ms => f64::from(ms) * 1e-3,
        }
    }

    /// Records one dispatch of `grid` workgroups with the parameter block `params` and the storage `bindings` in the
    /// order of their binding numbers.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the number of bindings or the parameter size is not the shader's,
    /// [`GpuError::BindingTooLarge`] when a binding exceeds the adapter's limit, and what a submit reports.
    pub fn dispatch<P: bytemuck::NoUninit>(
        &mut self,
        pipeline: &Arc<Pipeline>,
        params: &P,
        bindings: &[Binding<'_>],
        grid: [u32; 3],
        work: Work,
    ) -> Result<(), GpuError> {
        let fail = |message| GpuError::Shape { kernel: pipeline.name, message };
        if grid.contains(&0) {
            return Ok(());
        }
        if grid.iter().any(|&g| g > self.gpu.max_workgroups()) {
            return Err(fail(format!("grid {grid:?} is too large")));
        }
        if bindings.len() != pipeline.storage.len() {
            return Err(fail(format!("{} bindings for {}", bindings.len(), pipeline.storage.len())));
        }
        let block = bytemuck::bytes_of(params);
        if (block.len() as u64).next_multiple_of(16) != pipeline.params_bytes {
            return Err(fail(format!(
                "parameter block of {} bytes, the shader has {}",
                block.len(),
                pipeline.params_bytes
            )));
        }
        for b in bindings {
            if b.bytes > self.gpu.max_binding_bytes() {
                return Err(GpuError::BindingTooLarge {
                    label: b.buffer.label().to_string(),
                    bytes: b.bytes,
                    limit: self.gpu.max_binding_bytes(),
                    remedy: "use a smaller batch or window".into(),
                });
            }
        }
        if self.page.len() as u64 >= PARAMS_BYTES || self.recorded.len() as u32 >= SLOTS {
            self.submit()?;
        }
        let slot = self.page.len();
        self.page.extend_from_slice(block);
        self.page.resize(slot + OFFSET_ALIGNMENT as usize, 0);
        let group = self.bind(pipeline, bindings);
        self.recorded.push(Dispatch { pipeline: pipeline.clone(), group, slot: slot as u32, grid, work });
        let (flops, bytes) = assumed_rates(self.gpu.kind());
        self.assumed += (work.flops / flops).max(work.bytes / bytes) + 2e-6;
        if self.assumed * *lock(&self.gpu.pace) >= self.target() {
            self.submit()?;
        }
        Ok(())
    }

    fn bind(&self, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: self.params.raw(),
                offset: 0,
                size: std::num::NonZeroU64::new(pipeline.params_bytes),
            }),
        }];
        for (&(binding, _), b) in pipeline.storage.iter().zip(bindings) {
            entries.push(wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: b.buffer.raw(),
                    offset: b.offset,
                    size: std::num::NonZeroU64::new(b.bytes),
                }),
            });
        }
        self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.name),
            layout: &pipeline.layout,
            entries: &entries,
        })
    }

    /// Copies `bytes` between buffers, after the dispatches recorded so far.
    ///
    /// # Errors
    /// What a submit reports.
    pub fn copy(
        &mut self,
        from: &Buffer,
        from_offset: u64,
        to: &Buffer,
        to_offset: u64,
        bytes: u64,
    ) -> Result<(), GpuError> {
        let mut encoder = self.encode()?;
        encoder.copy_buffer_to_buffer(from.raw(), from_offset, to.raw(), to_offset, bytes);
        self.push(encoder).map(|_| ())
    }

    /// Zeroes the first `bytes` of `buffer`, after the dispatches recorded so far.
    ///
    /// # Errors
    /// What a submit reports.
    pub fn clear(&mut self, buffer: &Buffer, bytes: u64) -> Result<(), GpuError> {
        let mut encoder = self.encode()?;
        encoder.clear_buffer(buffer.raw(), 0, Some(bytes));
        self.push(encoder).map(|_| ())
    }

    /// Writes `data` into `buffer`, after the dispatches recorded so far.
    ///
    /// # Errors
    /// What a submit reports.
    pub fn write<T: bytemuck::NoUninit>(
        &mut self,
        buffer: &Buffer,
        offset: u64,
        data: &[T],
    ) -> Result<(), GpuError> {
        self.submit()?;
        self.gpu.upload(buffer, offset, bytemuck::cast_slice(data))
    }

    /// Reads `count` values of `buffer` from byte `offset` on, after everything recorded so far; waits for it. Large reads
    /// pass through a staging buffer of at most [`READ_PIECE`] bytes.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read<T: bytemuck::Pod>(
        &mut self,
        buffer: &Buffer,
        offset: u64,
        count: usize,
    ) -> Result<Vec<T>, GpuError> {
        let mut out = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        for (i, piece) in bytes.chunks_mut(READ_PIECE as usize).enumerate() {
            self.read_piece(buffer, offset + i as u64 * READ_PIECE, piece)?;
        }
        Ok(out)
    }

    fn read_piece(&mut self, buffer: &Buffer, offset: u64, out: &mut [u8]) -> Result<(), GpuError> {
        let padded = (out.len() as u64).next_multiple_of(16).min(buffer.bytes() - offset);
        let staging = self.take_staging(padded)?;
        let mut encoder = self.encode()?;
        encoder.copy_buffer_to_buffer(buffer.raw(), offset, staging.raw(), 0, padded);
        self.push(encoder)?;
        staging.raw().map_async(wgpu::MapMode::Read, 0..padded, |_| ());
        self.drain()?;
        // The callback of a mapping runs in a poll of its own when the submit was waited for before.
        self.gpu.wait()?;
        {
            let view = staging.raw().get_mapped_range(0..padded).map_err(|e| GpuError::Device {
                during: format!("reading `{}`", buffer.label()),
                message: e.to_string(),
            })?;
            out.copy_from_slice(&view[..out.len()]);
        }
        staging.raw().unmap();
        *lock(&self.gpu.staging) = Some(staging);
        Ok(())
    }

    /// Starts to read the first `bytes` of `buffer` as they are after everything recorded so far, and goes on. The copy is
    /// submitted; [`Commands::finish_read`] waits for it.
    ///
    /// # Errors
    /// What the device reports, or no room for the copy.
    pub fn start_read(&mut self, buffer: &Buffer, bytes: u64) -> Result<Reading, GpuError> {
        let bytes = bytes.next_multiple_of(16).min(buffer.bytes());
        let staging = match self.spare.iter().position(|s| s.bytes() >= bytes) {
            Some(i) => self.spare.swap_remove(i),
            None => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                self.gpu.alloc_with("staging:batch", bytes, usage)?
            }
        };
        let mut encoder = self.encode()?;
        encoder.copy_buffer_to_buffer(buffer.raw(), 0, staging.raw(), 0, bytes);
        let index = self.push(encoder)?;
        let mapped = Arc::new(AtomicBool::new(false));
        let flag = mapped.clone();
        staging.raw().map_async(wgpu::MapMode::Read, 0..bytes, move |_| flag.store(true, Ordering::Release));
        Ok(Reading { staging, bytes, index, mapped, label: buffer.label().to_string() })
    }

    /// Waits for a reading, but not for what was submitted after it, and copies its start into `out`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish_read(&mut self, reading: Reading, out: &mut [u8]) -> Result<(), GpuError> {
        let Reading { staging, bytes, index, mapped, label } = reading;
        self.gpu.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None })?;
        // The callback of a mapping may take a poll of its own.
        while !mapped.load(Ordering::Acquire) {
            self.gpu.poll(wgpu::PollType::Poll)?;
        }
        {
            let fail = |message: String| GpuError::Device { during: format!("reading `{label}`"), message };
            let view = staging.raw().get_mapped_range(0..bytes).map_err(|e| fail(e.to_string()))?;
            if out.len() > view.len() {
                return Err(fail(format!("{} bytes wanted of {bytes}", out.len())));
            }
            out.copy_from_slice(&view[..out.len()]);
        }
        staging.raw().unmap();
        self.spare.push(staging);
        Ok(())
    }

    fn take_staging(&self, bytes: u64) -> Result<Buffer, GpuError> {
        if let Some(old) = lock(&self.gpu.staging).take()
            && old.bytes() >= bytes
        {
            return Ok(old);
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        self.gpu.alloc_with("staging:read", bytes, usage)
    }

    /// Submits what is recorded.
    ///
    /// # Errors
    /// What the device has reported so far.
    pub fn submit(&mut self) -> Result<(), GpuError> {
        if self.recorded.is_empty() {
            return Ok(());
        }
        let encoder = self.encode()?;
        self.push(encoder).map(|_| ())
    }

    /// Submits what is recorded and waits until all of it is done.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(&mut self) -> Result<(), GpuError> {
        self.submit()?;
        self.drain()
    }

    /// An encoder that holds all recorded dispatches.
    fn encode(&mut self) -> Result<wgpu::CommandEncoder, GpuError> {
        if !self.page.is_empty() {
            self.gpu.queue().write_buffer(self.params.raw(), 0, &self.page);
            self.page.clear();
        }
        let mut encoder =
            self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        if let Some(profiler) = &self.gpu.profiler {
            let profiler = lock(profiler);
            for (i, d) in (0u32..).zip(&self.recorded) {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some(d.pipeline.name),
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &profiler.queries,
                        beginning_of_pass_write_index: Some(2 * i),
                        end_of_pass_write_index: Some(2 * i + 1),
                    }),
                });
                record(&mut pass, d);
            }
            if !self.recorded.is_empty() {
                let n = 2 * self.recorded.len() as u32;
                encoder.resolve_query_set(&profiler.queries, 0..n, &profiler.resolve, 0);
                encoder.copy_buffer_to_buffer(&profiler.resolve, 0, &profiler.read, 0, u64::from(n) * 8);
            }
        } else if !self.recorded.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for d in &self.recorded {
                record(&mut pass, d);
            }
        }
        Ok(encoder)
    }

    fn push(&mut self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex, GpuError> {
        let recorded = std::mem::take(&mut self.recorded);
        let mut names: Vec<_> = recorded.iter().map(|d| d.pipeline.name).collect();
        names.dedup();
        names.truncate(12);
        self.gpu.set_during(names.join(", "));
        let index = self.gpu.queue().submit([encoder.finish()]);
        self.in_flight.push_back(InFlight {
            index: index.clone(),
            at: Instant::now(),
            assumed: std::mem::take(&mut self.assumed),
        });
        if self.gpu.profiler.is_some() && !recorded.is_empty() {
            self.drain()?;
            self.collect_times(&recorded)?;
        }
        while self.in_flight.len() > OUTSTANDING {
            self.wait_oldest()?;
        }
        self.gpu.check()?;
        Ok(index)
    }

    fn drain(&mut self) -> Result<(), GpuError> {
        while !self.in_flight.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }

    fn wait_oldest(&mut self) -> Result<(), GpuError> {
        let Some(oldest) = self.in_flight.pop_front() else {
            return Ok(());
        };
        self.gpu.poll(wgpu::PollType::Wait { submission_index: Some(oldest.index), timeout: None })?;
        let took = oldest.at.max(self.last_done).elapsed().as_secs_f64();
        self.last_done = Instant::now();
        {
            let mut submits = lock(&self.gpu.submits);
            submits.count += 1;
            submits.longest_ms = submits.longest_ms.max(took * 1e3);
        }
        // Short submits are mostly overhead and say nothing about the rates.
        if oldest.assumed > 1e-3 {
            let mut pace = lock(&self.gpu.pace);
            let ratio = (took / oldest.assumed).clamp(0.02, 50.0);
            *pace = (*pace).powf(0.7) * ratio.powf(0.3);
        }
        Ok(())
    }

    fn collect_times(&self, recorded: &[Dispatch]) -> Result<(), GpuError> {
        let Some(profiler) = &self.gpu.profiler else {
            return Ok(());
        };
        let mut profiler = lock(profiler);
        let bytes = recorded.len() as u64 * 16;
        let read = profiler.read.clone();
        read.map_async(wgpu::MapMode::Read, 0..bytes, |_| ());
        self.gpu.wait()?;
        {
            let view = read.get_mapped_range(0..bytes).map_err(|e| GpuError::Device {
                during: "reading timestamps".into(),
                message: e.to_string(),
            })?;
            for (d, pair) in recorded.iter().zip(view.chunks_exact(16)) {
                let tick = |b: &[u8]| b.iter().rev().fold(0u64, |acc, &byte| acc << 8 | u64::from(byte));
                profiler.add(d.pipeline.name, d.work, tick(&pair[..8]), tick(&pair[8..]));
            }
        }
        read.unmap();
        Ok(())
    }
}

fn record(pass: &mut wgpu::ComputePass<'_>, d: &Dispatch) {
    pass.set_pipeline(&d.pipeline.raw);
    pass.set_bind_group(0, &d.group, &[d.slot]);
    pass.dispatch_workgroups(d.grid[0], d.grid[1], d.grid[2]);
}

/// (operations, bytes) per second assumed before anything was measured.
fn assumed_rates(kind: DeviceKind) -> (f64, f64) {
    match kind {
        DeviceKind::Cpu => (5e9, 3e9),
        DeviceKind::Discrete => (2e12, 2e11),
        _ => (3e11, 3e10),
    }
}

impl Gpu {
    /// Kernel times since the device was opened or [`Gpu::clear_profile`], slowest first; empty without `profile`.
    pub fn profile(&self) -> Vec<super::ProfileRow> {
        self.profiler.as_ref().map(|p| lock(p).rows()).unwrap_or_default()
    }

    /// Forgets the kernel times so far.
    pub fn clear_profile(&self) {
        if let Some(p) = &self.profiler {
            lock(p).clear();
        }
    }
}
