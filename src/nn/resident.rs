//! All weights of a decoder on the device.

use super::{BlockWeights, HeadWeights, NnError, PlanItem, Tensors};
use crate::gpu::Gpu;
use crate::kernel::Weight;
use crate::model::{Architecture, Checkpoint};

/// All weights of a decoder, resident.
pub struct DecoderWeights {
    /// The blocks.
    pub blocks: Vec<BlockWeights>,
    /// Last norm and output matrix.
    pub head: HeadWeights,
}

impl DecoderWeights {
    /// Uploads the whole model; `progress` is called before each block.
    ///
    /// # Errors
    /// What the checkpoint or the device report.
    pub fn upload(
        gpu: &Gpu,
        tensors: Tensors<'_>,
        config: &Architecture,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, NnError> {
        let blocks = (0..config.num_layers)
            .map(|i| {
                progress(i);
                BlockWeights::upload(gpu, tensors, config, i)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { blocks, head: HeadWeights::upload(gpu, tensors, config)? })
    }

    /// What [`DecoderWeights::upload`] allocates.
    ///
    /// # Errors
    /// A tensor that the checkpoint lacks.
    pub fn plan(checkpoint: &Checkpoint, config: &Architecture) -> Result<PlanItem, NnError> {
        let mut bytes = HeadWeights::bytes(checkpoint, config)?;
        for block in 0..config.num_layers {
            let dtype = |name: &str| Ok(checkpoint.tensor(name)?.dtype);
            bytes += BlockWeights::bytes(config, block, dtype)?;
        }
        Ok(PlanItem::new("weights", bytes))
    }

    /// Bytes of the largest projection as stored.
    ///
    /// # Errors
    /// A tensor that the checkpoint lacks.
    pub fn largest_projection(checkpoint: &Checkpoint, config: &Architecture) -> Result<u64, NnError> {
        let mut largest = 0;
        for p in config.projections() {
            let dtype = checkpoint.tensor(&p.name)?.dtype;
            largest = largest.max(Weight::device_bytes(p.rows, p.cols, dtype));
        }
        Ok(largest)
    }
}
