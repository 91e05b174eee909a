//! Frozen weights on the device.

use super::{HeadWeights, NnError, PlanItem};
use crate::gpu::{Buffer, Gpu};
use crate::kernel::Weight;
use crate::model::{Checkpoint, Config, Dtype, ModelError, Overlay, ProjectionKind, TensorView};

/// Where weights are read from: a checkpoint, or one with some of its tensors replaced.
pub trait TensorSource {
    /// The tensor of that name.
    ///
    /// # Errors
    /// When there is none.
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, ModelError>;
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        Checkpoint::tensor(self, name)
    }
}

impl TensorSource for Overlay<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        Overlay::tensor(self, name)
    }
}

/// As functions take it.
pub type Tensors<'a> = &'a dyn TensorSource;

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
    pub fn upload(gpu: &Gpu, tensors: Tensors<'_>, config: &Config, index: usize) -> Result<Self, NnError> {
        let linears = ProjectionKind::ALL
            .into_iter()
            .map(|kind| {
                let projection = config.projection(index, kind);
                if !projection.cols.is_multiple_of(4) {
                    return Err(NnError::Width { projection: projection.name, cols: projection.cols });
                }
                let view = tensors.tensor(&projection.name)?;
                let weight = Weight::upload(gpu, &format!("weights:{}", projection.name), &view)?;
                let bias = if config.has_bias(kind) {
                    Some(vector(gpu, tensors, &projection.bias_name())?)
                } else {
                    None
                };
                Ok(Linear { weight, bias })
            })
            .collect::<Result<_, NnError>>()?;
        Ok(Self {
            input_norm: vector(gpu, tensors, &Config::input_norm_name(index))?,
            post_norm: vector(gpu, tensors, &Config::post_norm_name(index))?,
            linears,
        })
    }
}

impl BlockWeights {
    /// Bytes of [`BlockWeights::upload`], with the types that `dtype` gives for the projections.
    ///
    /// # Errors
    /// Those of `dtype`.
    pub fn bytes(
        config: &Config,
        index: usize,
        dtype: impl Fn(&str) -> Result<Dtype, ModelError>,
    ) -> Result<u64, NnError> {
        let mut bytes = 2 * vector_bytes(config.hidden_size);
        for p in ProjectionKind::ALL.map(|kind| config.projection(index, kind)) {
            bytes += Weight::device_bytes(p.rows, p.cols, dtype(&p.name)?).next_multiple_of(16);
            if config.has_bias(p.kind) {
                bytes += vector_bytes(p.rows);
            }
        }
        Ok(bytes)
    }
}

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
        config: &Config,
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
    pub fn plan(checkpoint: &Checkpoint, config: &Config) -> Result<PlanItem, NnError> {
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
    pub fn largest_projection(checkpoint: &Checkpoint, config: &Config) -> Result<u64, NnError> {
        let mut largest = 0;
        for p in config.projections() {
            let dtype = checkpoint.tensor(&p.name)?.dtype;
            largest = largest.max(Weight::device_bytes(p.rows, p.cols, dtype));
        }
        Ok(largest)
    }
}

pub(super) fn vector_bytes(len: usize) -> u64 {
    (len as u64 * 4).next_multiple_of(16)
}

pub(super) fn vector(gpu: &Gpu, tensors: Tensors<'_>, name: &str) -> Result<Buffer, NnError> {
    let values = tensors.tensor(name)?.to_f32();
    Ok(gpu.alloc_init(&format!("weights:{name}"), &values)?)
}
