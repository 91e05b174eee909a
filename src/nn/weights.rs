//! Frozen weights on the device.

use super::{NnError, PlanItem};
use crate::gpu::{Buffer, Gpu};
use crate::kernel::Weight;
use crate::model::{Checkpoint, Config, ProjectionKind};

/// One projection: matrix and optional bias (f32).
pub struct Linear {
    /// `[out_features, in_features]` in the stored type.
    pub weight: Weight,
    /// `[out_features]` f32.
    pub bias: Option<Buffer>,
}

/// The weights of one decoder block.
pub struct BlockWeights {
    /// Gain of the norm before attention.
    pub input_norm: Buffer,
    /// Gain of the norm before the feed-forward layer.
    pub post_norm: Buffer,
    /// q k v o gate up down, in the order of [`ProjectionKind::ALL`].
    pub linears: Vec<Linear>,
}

impl BlockWeights {
    /// Uploads block `index`.
    ///
    /// # Errors
    /// What the checkpoint or the device report.
    pub fn upload(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        config: &Config,
        index: usize,
    ) -> Result<Self, NnError> {
        let linears = ProjectionKind::ALL
            .into_iter()
            .map(|kind| {
                let projection = config.projection(index, kind);
                if !projection.cols.is_multiple_of(4) {
                    return Err(NnError::Width { projection: projection.name, cols: projection.cols });
                }
                let view = checkpoint.tensor(&projection.name)?;
                let weight = Weight::upload(gpu, &format!("weights:{}", projection.name), &view)?;
                let bias = if config.has_bias(kind) {
                    Some(vector(gpu, checkpoint, &projection.bias_name())?)
                } else {
                    None
                };
                Ok(Linear { weight, bias })
            })
            .collect::<Result<_, NnError>>()?;
        Ok(Self {
            input_norm: vector(gpu, checkpoint, &Config::input_norm_name(index))?,
            post_norm: vector(gpu, checkpoint, &Config::post_norm_name(index))?,
            linears,
        })
    }
}

/// All weights of a decoder, resident.
pub struct DecoderWeights {
    /// The blocks.
    pub blocks: Vec<BlockWeights>,
    /// Gain of the last norm.
    pub final_norm: Buffer,
    /// Output matrix `[vocab, hidden]` (the embedding when tied).
    pub output: Weight,
}

impl DecoderWeights {
    /// Uploads the whole model; `progress` is called before each block.
    ///
    /// # Errors
    /// What the checkpoint or the device report.
    pub fn upload(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        config: &Config,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, NnError> {
        let blocks = (0..config.num_layers)
            .map(|i| {
                progress(i);
                BlockWeights::upload(gpu, checkpoint, config, i)
            })
            .collect::<Result<_, _>>()?;
        let output = checkpoint.tensor(config.output_name())?;
        Ok(Self {
            blocks,
            final_norm: vector(gpu, checkpoint, config.final_norm_name())?,
            output: Weight::upload(gpu, "weights:output", &output)?,
        })
    }

    /// What [`DecoderWeights::upload`] allocates.
    ///
    /// # Errors
    /// A tensor that the checkpoint lacks.
    pub fn plan(checkpoint: &Checkpoint, config: &Config) -> Result<PlanItem, NnError> {
        let mut bytes = vector_bytes(config.hidden_size) * (2 * config.num_layers as u64 + 1);
        for p in config.projections() {
            let dtype = checkpoint.tensor(&p.name)?.dtype;
            bytes += Weight::device_bytes(p.rows, p.cols, dtype).next_multiple_of(16);
            if config.has_bias(p.kind) {
                bytes += vector_bytes(p.rows);
            }
        }
        let output = checkpoint.tensor(config.output_name())?;
        bytes +=
            Weight::device_bytes(config.vocab_size, config.hidden_size, output.dtype).next_multiple_of(16);
        Ok(PlanItem::new("weights", bytes))
    }

    /// Bytes of the largest projection as stored.
    ///
    /// # Errors
    /// A tensor that the checkpoint lacks.
    pub fn largest_projection(checkpoint: &Checkpoint, config: &Config) -> Result<u64, NnError> {
        let mut largest = 0;
        for p in config.projections() {
            let dtype = checkpoint.tensor(&p.name)?.dtype;
            largest = largest.max(Weight::device_bytes(p.rows, p.cols, dtype));
        }
        Ok(largest)
    }
}

fn vector_bytes(len: usize) -> u64 {
    (len as u64 * 4).next_multiple_of(16)
}

fn vector(gpu: &Gpu, checkpoint: &Checkpoint, name: &str) -> Result<Buffer, NnError> {
    let values = checkpoint.tensor(name)?.to_f32();
    Ok(gpu.alloc_init(&format!("weights:{name}"), &values)?)
}
