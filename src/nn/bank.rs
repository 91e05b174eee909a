//! The masks of all projections on the device.

use super::{NnError, PlanItem};
use crate::gpu::Gpu;
use crate::kernel::MaskBuffer;
use crate::mask::MaskSet;
use crate::model::{Architecture, Projection};

/// Masks of all projections in the order of [`Architecture::projections`]; `None` = dense.
pub type Masks<'a> = &'a [Option<&'a MaskBuffer>];

/// One mask buffer per projection, in the order of [`Architecture::projections`]; `None` = dense.
pub struct MaskBank {
    buffers: Vec<Option<MaskBuffer>>,
}

impl MaskBank {
    /// No masks: the dense model.
    pub fn dense(config: &Architecture) -> Self {
        Self { buffers: config.projections().iter().map(|_| None).collect() }
    }

    /// Uploads the masks of `set`; projections it does not name stay dense.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload(gpu: &Gpu, config: &Architecture, set: &MaskSet) -> Result<Self, NnError> {
        let one = |p: &Projection| match set.masks.get(&p.name) {
            Some(mask) => Ok(Some(MaskBuffer::upload(gpu, &format!("masks:{}", p.name), mask)?)),
            None => Ok(None),
        };
        let buffers = config.projections().iter().map(one).collect::<Result<_, NnError>>()?;
        Ok(Self { buffers })
    }

    /// Overwrites the buffers with the masks of `set`, which has the same projections.
    ///
    /// # Errors
    /// What the device reports.
    pub fn fill(&self, gpu: &Gpu, config: &Architecture, set: &MaskSet) -> Result<(), NnError> {
        for (p, buffer) in config.projections().iter().zip(&self.buffers) {
            if let (Some(buffer), Some(mask)) = (buffer, set.masks.get(&p.name)) {
                gpu.upload(buffer.buffer(), 0, bytemuck::cast_slice(mask.words()))?;
            }
        }
        Ok(())
    }

    /// What [`MaskBank::upload`] allocates for masks of `projections`.
    pub fn plan(projections: &[Projection]) -> PlanItem {
        let bytes = |p: &Projection| MaskBuffer::device_bytes(p.rows, p.cols).next_multiple_of(16);
        PlanItem::new("masks", projections.iter().map(bytes).sum())
    }

    /// The mask of projection `index`.
    pub fn get(&self, index: usize) -> Option<&MaskBuffer> {
        self.buffers.get(index).and_then(Option::as_ref)
    }

    /// As the forward pass takes them: keep the vector, pass a slice of it as [`Masks`].
    pub fn refs(&self) -> Vec<Option<&MaskBuffer>> {
        self.buffers.iter().map(Option::as_ref).collect()
    }
}

/// A dense forward pass.
pub const DENSE: Masks<'static> = &[];
