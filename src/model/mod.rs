//! Models in Hugging Face layout on the host: configuration, weights, tokenizer, and which tensors are projections.
//! No arithmetic and no GPU.

mod architecture;
mod channels;
mod checkpoint;
mod config;
mod ends;
mod error;
mod families;
mod foreign;
mod guard;
mod long_text;
mod ops;
mod overlay;
mod parallel;
mod permutation;
mod permuted;
mod projection;
mod projections;
mod quantization;
mod rope;
mod shard;
mod tensor;
mod tokenizer;
mod writer;
mod zeros;

pub use architecture::{
    Architecture, AttentionShape, BlockShape, FeedForward, Gain, LayerShape, LearnedPositions, Names,
    NormShape, QkNorm, QkSpread, QueryGrowth, RotaryShape, Scales, TensorPart, TensorSpec,
};
pub use channels::Channels;
pub use checkpoint::{Checkpoint, sha256_hex};
pub(crate) use checkpoint::{hexadecimal, is_plain_name};
pub use error::ModelError;
pub use families::family_names;
pub(crate) use foreign::foreign_weights;
pub(crate) use guard::quietly;
pub use ops::{ActivationKind, NormKind};
pub use overlay::Overlay;
pub(crate) use parallel::in_parallel;
pub use permutation::{BlockOrders, Order, Permutation};
pub use projection::{Part, PlaceInTensor, Projection, ProjectionKind};
pub use quantization::stored_plain;
pub use rope::{Llama3, Rope, RopeScaling, Yarn};
pub use shard::{Shard, ShardEntry};
pub use tensor::{Dtype, TensorView, encode};
pub use tokenizer::{OpenText, Tokenizer};
pub(crate) use writer::header_bytes;
pub use writer::{OutTensor, write_safetensors};

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::fsio::{StandIn, open_plain};

/// Opens a model folder: its configuration, and its weights checked against it. Where the configuration ties the output matrix to the
/// embedding and both are stored with different values, both are used, as transformers 5 does, with a note in the log.
///
/// # Errors
/// [`ModelError`] for what [`Architecture::read`] and [`Checkpoint::open`] refuse.
pub fn open(folder: &Path) -> Result<(Architecture, Checkpoint), ModelError> {
    let mut config = Architecture::read(folder)?;
    let checkpoint = Checkpoint::open(folder, &config)?;
    if checkpoint.unties(&config) {
        log::warn!(
            "{}: config.json ties lm_head.weight to the embedding, but both are stored, with different values; both are used as they \
             are stored, as transformers 5 does",
            folder.display()
        );
        config.tie_word_embeddings = false;
    }
    if let Some(told) = zeros::suspicious(&config, &checkpoint) {
        log::warn!("{}: {told}", folder.display());
    }
    Ok((config, checkpoint))
}

/// The most characters of a message of a parser, which may repeat what it found.
pub(crate) const MESSAGE: usize = 400;

/// The first characters of a text that comes from a file and may be long.
pub(crate) fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or("")),
        None => text.into(),
    }
}

/// Reads a whole file of at most `limit` bytes, so that a wrong path to a huge file cannot exhaust the memory. A pipe is not waited for,
/// and what lies in the place of a file is known for what it is.
pub(crate) fn read_limited(path: &Path, limit: u64, remedy: &'static str) -> Result<Vec<u8>, ModelError> {
    let fail = |source| ModelError::Read { path: path.into(), source, remedy };
    let bytes = read_all(path, open_plain(path).map_err(fail)?, limit, remedy)?;
    match StandIn::of(&bytes) {
        Some(found) => Err(ModelError::StandIn { path: path.into(), found }),
        None => Ok(bytes),
    }
}

/// As [`read_limited`] for a file that the user names, which may be a pipe (`<(zcat ...)`) and may hold a web page: only a pointer of Git
/// LFS is known for what it is.
pub(crate) fn read_named(path: &Path, limit: u64, remedy: &'static str) -> Result<Vec<u8>, ModelError> {
    let fail = |source| ModelError::Read { path: path.into(), source, remedy };
    let bytes = read_all(path, File::open(path).map_err(fail)?, limit, remedy)?;
    match StandIn::of(&bytes) {
        Some(found @ StandIn::LfsPointer) => Err(ModelError::StandIn { path: path.into(), found }),
        _ => Ok(bytes),
    }
}

fn read_all(path: &Path, file: File, limit: u64, remedy: &'static str) -> Result<Vec<u8>, ModelError> {
    let fail = |source| ModelError::Read { path: path.into(), source, remedy };
    let size = file.metadata().map_err(fail)?.len();
    if size > limit {
        return Err(ModelError::TooLarge { path: path.into(), found: size, limit });
    }
    let mut bytes = Vec::new();
    // `take` also bounds what is no plain file and states no size (a pipe, a device).
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(ModelError::TooLarge { path: path.into(), found: bytes.len() as u64, limit });
    }
    Ok(bytes)
}

/// Reads a file that must be one JSON object.
pub(crate) fn read_json_object(
    path: &Path,
    limit: u64,
    remedy: &'static str,
) -> Result<serde_json::Map<String, serde_json::Value>, ModelError> {
    let bytes = read_limited(path, limit, remedy)?;
    let problem = |e: serde_json::Error| clip(&e.to_string(), MESSAGE);
    serde_json::from_slice(&bytes).map_err(|e| ModelError::Json { path: path.into(), problem: problem(e) })
}
