//! Frozen weights on the device.

use super::NnError;
use crate::gpu::{Buffer, Gpu};
use crate::kernel::{Norm, Weight};
use crate::model::{
    Architecture, Checkpoint, Dtype, Gain, ModelError, NormShape, Overlay, ProjectionKind, QkNorm, QkSpread,
    TensorView,
};

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

/// Gains and bias of a norm, f32.
pub struct NormWeights {
    /// `[features]`; ones where the architecture has none.
    pub gain: Buffer,
    /// `[features]`.
    pub bias: Option<Buffer>,
}

impl NormWeights {
    /// Uploads those of `module`, a norm over the residual stream; both multiplied with `scale`.
    pub(super) fn upload(
        gpu: &Gpu,
        tensors: Tensors<'_>,
        config: &Architecture,
        module: &str,
        scale: f32,
    ) -> Result<Self, NnError> {
        let scaled = |mut values: Vec<f32>| {
            values.iter_mut().for_each(|v| *v *= scale);
            values
        };
        let stored = |part: &str| Ok::<_, NnError>(tensors.tensor(&format!("{module}.{part}"))?.to_f32());
        let gain = match config.norm.gain {
            Gain::None => vec![1.0; config.hidden_size],
            gain => shifted(stored("weight")?, gain),
        };
        let bias = if config.norm.bias { Some(scaled(stored("bias")?)) } else { None };
        let upload = |part: &str, values: &[f32]| gpu.alloc_init(&format!("weights:{module}.{part}"), values);
        Ok(Self {
            gain: upload("weight", &scaled(gain))?,
            bias: bias.map(|bias| upload("bias", &bias)).transpose()?,
        })
    }

    /// Bytes of [`NormWeights::upload`].
    pub(super) fn bytes(config: &Architecture) -> u64 {
        vector_bytes(config.hidden_size) * if config.norm.bias { 2 } else { 1 }
    }

    /// The norm of queries or keys whose module within the block is `module`, over `heads` heads.
    fn upload_qk(
        gpu: &Gpu,
        tensors: Tensors<'_>,
        config: &Architecture,
        (norm, block): (&QkNorm, usize),
        module: &str,
        heads: usize,
    ) -> Result<Self, NnError> {
        let mut gain = Vec::new();
        for spec in config.qk_norm_tensors(norm, block, module, heads) {
            gain.extend(tensors.tensor(&spec.name)?.to_f32());
        }
        let label = format!("weights:{}", config.module(block, module));
        Ok(Self { gain: gpu.alloc_init(&label, &shifted(gain, norm.gain))?, bias: None })
    }

    /// As the kernels take a norm over the residual stream.
    pub(super) fn over_stream(&self, config: &Architecture) -> Norm<'_> {
        let NormShape { kind, eps, .. } = config.norm;
        Norm { kind, gain: &self.gain, bias: self.bias.as_ref(), eps, groups: 1, shared: false }
    }

    /// As the kernels take a norm of `heads` heads of queries or keys.
    pub(super) fn over_heads(&self, norm: &QkNorm, heads: usize) -> Norm<'_> {
        let (groups, shared) = match norm.spread {
            QkSpread::Whole => (1, false),
            QkSpread::Shared => (heads, true),
            QkSpread::Matrix | QkSpread::Tensors => (heads, false),
        };
        Norm { kind: norm.kind, gain: &self.gain, bias: None, eps: norm.eps, groups, shared }
    }
}

/// Gains as they are multiplied in.
fn shifted(mut gain: Vec<f32>, how: Gain) -> Vec<f32> {
    if how == Gain::OnePlus {
        gain.iter_mut().for_each(|g| *g += 1.0);
    }
    gain
}

/// The weights of one decoder block; norms that the architecture lacks are none.
pub struct BlockWeights {
    /// The block's number.
    pub index: usize,
    /// The norm before attention.
    pub attention_in: Option<NormWeights>,
    /// That on what attention adds, with the architecture's scale on it.
    pub attention_out: Option<NormWeights>,
    /// The norm before the feed-forward layer.
    pub feed_forward_in: Option<NormWeights>,
    /// That on what the feed-forward layer adds, with the architecture's scale on it.
    pub feed_forward_out: Option<NormWeights>,
    /// The norms of queries and keys.
    pub qk_norm: Option<[NormWeights; 2]>,
    /// q k v o gate up down, in the order of [`ProjectionKind::ALL`]; none where there is no such projection.
    pub linears: [Option<Linear>; ProjectionKind::ALL.len()],
}

impl BlockWeights {
    /// Uploads block `index`.
    ///
    /// # Errors
    /// What the checkpoint or the device report.
    pub fn upload(
        gpu: &Gpu,
        tensors: Tensors<'_>,
        config: &Architecture,
        index: usize,
    ) -> Result<Self, NnError> {
        let mut linears = [const { None }; ProjectionKind::ALL.len()];
        for projection in config.block_projections(index) {
            if !projection.cols.is_multiple_of(4) {
                return Err(NnError::Width { projection: projection.name, cols: projection.cols });
            }
            let view = tensors.tensor(&projection.name)?;
            let weight = Weight::upload(gpu, &format!("weights:{}", projection.name), &view)?;
            let bias = if config.has_bias(projection.kind) {
                Some(vector(gpu, tensors, &projection.bias_name())?)
            } else {
                None
            };
            linears[projection.kind as usize] = Some(Linear { weight, bias });
        }
        let norm = |module: Option<&str>, scale: f32| match module {
            Some(module) => {
                NormWeights::upload(gpu, tensors, config, &config.module(index, module), scale).map(Some)
            }
            None => Ok(None),
        };
        let qk_norm = match &config.qk_norm {
            Some(qk) => {
                let one =
                    |module, heads| NormWeights::upload_qk(gpu, tensors, config, (qk, index), module, heads);
                Some([one(qk.q, config.num_heads)?, one(qk.k, config.num_kv_heads)?])
            }
            None => None,
        };
        Ok(Self {
            index,
            attention_in: norm(config.block.attention_in, 1.0)?,
            attention_out: norm(config.block.attention_out, config.scales.residual)?,
            feed_forward_in: norm(config.block.feed_forward_in, 1.0)?,
            feed_forward_out: norm(config.block.feed_forward_out, config.scales.residual)?,
            qk_norm,
            linears,
        })
    }

    /// A projection.
    ///
    /// # Errors
    /// [`NnError::NoProjection`] for a kind that the architecture lacks.
    pub fn linear(&self, kind: ProjectionKind) -> Result<&Linear, NnError> {
        self.linears[kind as usize].as_ref().ok_or(NnError::NoProjection { kind })
    }
}

impl BlockWeights {
    /// Bytes of [`BlockWeights::upload`], with the types that `dtype` gives for the projections.
    ///
    /// # Errors
    /// Those of `dtype`.
    pub fn bytes(
        config: &Architecture,
        index: usize,
        dtype: impl Fn(&str) -> Result<Dtype, ModelError>,
    ) -> Result<u64, NnError> {
        let mut bytes = config.block.norms().count() as u64 * NormWeights::bytes(config);
        if let Some(norm) = &config.qk_norm {
            for heads in [config.num_heads, config.num_kv_heads] {
                let gains = if norm.spread == QkSpread::Shared { 1 } else { heads };
                bytes += vector_bytes(gains * config.head_dim);
            }
        }
        for p in config.block_projections(index) {
            bytes += Weight::device_bytes(p.rows, p.cols, dtype(&p.name)?).next_multiple_of(16);
            if config.has_bias(p.kind) {
                bytes += vector_bytes(p.rows);
            }
        }
        Ok(bytes)
    }
}

pub(super) fn vector_bytes(len: usize) -> u64 {
    (len as u64 * 4).next_multiple_of(16)
}

pub(super) fn vector(gpu: &Gpu, tensors: Tensors<'_>, name: &str) -> Result<Buffer, NnError> {
    let values = tensors.tensor(name)?.to_f32();
    Ok(gpu.alloc_init(&format!("weights:{name}"), &values)?)
}
