//! Allocation with tracked sizes, and chunked upload.

use super::{Buffer, Gpu, GpuError, MemoryItem};

/// Bytes of one upload piece: the driver's staging memory stays bounded while gigabytes pass through.
const UPLOAD_PIECE: usize = 16 << 20;

impl Gpu {
    /// Allocates a zeroed storage buffer of at least `bytes` (rounded up to 16).
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`] when it is larger than the adapter allows or the driver has no room.
    pub fn alloc(&self, label: &str, bytes: u64) -> Result<Buffer, GpuError> {
        use wgpu::BufferUsages as U;
        self.alloc_with(label, bytes, U::STORAGE | U::COPY_SRC | U::COPY_DST)
    }

    pub(super) fn alloc_with(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Buffer, GpuError> {
        let bytes = bytes.max(16).next_multiple_of(16);
        let fail = |reason: String| GpuError::OutOfMemory {
            label: label.to_string(),
            bytes,
            in_use: self.memory_in_use(),
            reason,
        };
        if bytes > self.max_buffer_bytes() {
            return Err(fail(format!(
                "one buffer of this adapter holds at most {} bytes",
                self.max_buffer_bytes()
            )));
        }
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: false,
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(fail(e.to_string()));
        }
        self.check()?;
        Ok(Buffer::new(raw, label, bytes, self.memory.clone()))
    }

    /// Allocates a buffer and fills it with `data`.
    ///
    /// # Errors
    /// As [`Gpu::alloc`] and [`Gpu::upload`].
    pub fn alloc_init<T: bytemuck::NoUninit>(&self, label: &str, data: &[T]) -> Result<Buffer, GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let buffer = self.alloc(label, bytes.len() as u64)?;
        self.upload(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Writes `data` into `buffer` at `offset` (a multiple of 4) before any work submitted later. Work that is
    /// recorded in a [`super::Commands`] but not yet submitted sees the new data: use [`super::Commands::write`] there.
    ///
    /// # Errors
    /// What the device reports while the pieces pass through.
    pub fn upload(&self, buffer: &Buffer, offset: u64, data: &[u8]) -> Result<(), GpuError> {
        let whole = data.len() / 4 * 4;
        for (i, piece) in data[..whole].chunks(UPLOAD_PIECE).enumerate() {
            let at = offset + (i * UPLOAD_PIECE) as u64;
            self.queue().write_buffer(buffer.raw(), at, piece);
            // Some drivers lose writes when hundreds are pending (cubecl#1120): push each large piece through.
            if whole > UPLOAD_PIECE {
                self.queue().submit([]);
                self.wait()?;
            }
        }
        if whole < data.len() {
            let mut last = [0u8; 4];
            last[..data.len() - whole].copy_from_slice(&data[whole..]);
            self.queue().write_buffer(buffer.raw(), offset + whole as u64, &last);
        }
        self.check()
    }

    /// As [`Gpu::upload`] from the buffer's start, without waiting for anything: a large write goes on while the device works. The
    /// driver keeps a copy of the data until then.
    ///
    /// # Errors
    /// What the device has reported so far.
    pub fn upload_queued(&self, buffer: &Buffer, data: &[u8]) -> Result<(), GpuError> {
        debug_assert!(data.len().is_multiple_of(4));
        for (i, piece) in data.chunks(UPLOAD_PIECE).enumerate() {
            self.queue().write_buffer(buffer.raw(), (i * UPLOAD_PIECE) as u64, piece);
        }
        self.check()
    }

    /// Bytes allocated now.
    pub fn memory_in_use(&self) -> u64 {
        self.memory.in_use()
    }

    /// Largest sum of allocations so far.
    pub fn memory_peak(&self) -> u64 {
        self.memory.peak()
    }

    /// What was allocated at the moment of the largest sum, by group.
    pub fn memory_items(&self) -> Vec<MemoryItem> {
        self.memory.at_peak()
    }
}
