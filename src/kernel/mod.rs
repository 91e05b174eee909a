//! One Rust function per shader: it checks shapes, picks constants, cuts what is too large and records dispatches.
//!
//! Activations are feature-major, `[features, tokens]` in f32, so that the lanes of every kernel run along tokens: loads
//! are contiguous on a GPU, and on a software driver the weights' addresses are uniform over a workgroup.

mod activation;
mod adam;
mod attention;
mod attention_backward;
mod backward;
pub mod cut;
mod decode;
mod descent;
mod effective;
mod elementwise;
mod expected;
mod factor;
mod gradient;
mod gram;
mod lstsq;
mod masks;
mod matmul;
mod measure;
mod norm;
mod panel;
mod preset;
mod prox;
mod rotary;
mod score;
mod soft;
mod sparsegpt;
mod table;
mod tensor;
mod vocab;

pub use adam::{Adam, Learn, Soft};
pub use attention::Heads;
pub use attention_backward::AttentionGradient;
pub use backward::Softmax;
pub use cut::f32_bytes;
pub use decode::{Cached, Columns};
pub use descent::Descent;
pub use effective::Masking;
pub use elementwise::Layout;
pub use expected::{Drawn, ExpectedStep};
pub use factor::{Factored, GramFactor};
pub use gradient::TransposedProduct;
pub use gram::{Pieces, Square};
pub use lstsq::{Lstsq, LstsqOptions, LstsqPanel, LstsqReport, LstsqScratch};
pub use masks::{Moments, SampleAt};
pub use matmul::Product;
pub use measure::{choose_preset, product_rate};
pub use norm::Norm;
pub use panel::Part;
pub use preset::Preset;
pub use rotary::Rotary;
pub use score::{AbsSums, Score};
pub use soft::{AdamState, Noise, Relaxation, SoftPatterns, SoftTopN, StateType};
pub use sparsegpt::{SparseGpt, SparseGptScratch};
pub use table::{KERNELS, KernelSource, Variant};
pub use tensor::{Activation, MaskBuffer, Rows, Weight};
pub use vocab::{DIVERGENCE, LogSum, VOCAB_STATE, agrees};

use std::sync::{Arc, Mutex};

use crate::gpu::{Buffer, Commands, Defs, Gpu, GpuError, Limits, Pipeline};

/// The kernels of one device under one preset.
pub struct Kernels<'g> {
    gpu: &'g Gpu,
    preset: Preset,
    scratch: Mutex<Option<Buffer>>,
}

impl<'g> Kernels<'g> {
    /// Kernels for `gpu` under `preset`.
    pub fn new(gpu: &'g Gpu, preset: Preset) -> Self {
        Self { gpu, preset, scratch: Mutex::new(None) }
    }

    /// The device.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// The preset in use.
    pub fn preset(&self) -> &Preset {
        &self.preset
    }

    /// What the device allows of one piece.
    pub fn limits(&self) -> Limits {
        self.gpu.limits()
    }

    fn pipeline(&self, name: &'static str, defs: Defs) -> Result<Arc<Pipeline>, GpuError> {
        self.gpu.pipeline(name, table::source(name)?, &defs)
    }

    /// Workgroups that cover `invocations` with `lanes` each, folded into two dimensions when one is not enough.
    fn fold(&self, invocations: usize, lanes: u32) -> [u32; 3] {
        cut::fold(self.limits(), invocations, lanes)
    }
}

/// A `u32` kernel parameter from a host size.
fn size(kernel: &'static str, value: usize) -> Result<u32, GpuError> {
    u32::try_from(value)
        .map_err(|_| GpuError::Shape { kernel, message: format!("{value} does not fit 32 bits") })
}

fn shape_error(kernel: &'static str, message: String) -> GpuError {
    GpuError::Shape { kernel, message }
}

/// The stream that a kernel records into.
type Stream<'a, 'g> = &'a mut Commands<'g>;
