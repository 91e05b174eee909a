//! The only layer that names wgpu: adapters, the device, buffers, shaders, pipelines, command streams, read-back, timing.
//!
//! A [`Gpu`] is one opened device. Kernels (the layer above) ask it for a [`Pipeline`] and record dispatches into
//! [`Commands`], which cuts them into short submits and keeps only a few outstanding.

mod adapter;
mod alloc;
mod buffer;
mod build;
mod commands;
mod device;
mod error;
mod limits;
mod memory;
mod pipeline;
mod profile;
mod shader;
mod sync;

pub use adapter::{AdapterReport, DeviceKind, list_adapters};
pub use buffer::{Binding, Buffer};
pub use commands::{Commands, PARAMS_BYTES, READ_PIECE, Reading};
pub use device::{Gpu, GpuOptions, Submits};
pub use error::GpuError;
pub use limits::Limits;
pub use memory::MemoryItem;
pub use pipeline::Pipeline;
pub use profile::{ProfileRow, Work};
pub use shader::{Composed, Defs, compose};

/// Dynamic offsets of the parameter block and chunk boundaries of bound tensors are multiples of this many bytes:
/// the largest `min_*_buffer_offset_alignment` WebGPU allows an adapter to ask for.
pub const OFFSET_ALIGNMENT: u64 = 256;
