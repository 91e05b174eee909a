//! The one error type of the model layer.

use std::io;
use std::path::PathBuf;

use crate::fsio::{FsError, StandIn};

/// What can be wrong with a model folder or its tokenizer. Each message names the file or tensor, what was
/// expected, what was found, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file is missing or the system refuses to read it.
    #[error("cannot read {path}: {source}; {remedy}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Something else lies in the place of a file.
    #[error("{path} {}; {}", .found.what(), .found.remedy())]
    StandIn {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: StandIn,
    },
    /// Two files hold the same tensor with different values.
    #[error(
        "{tensor} is in {first} and in {second}, with other values: the files are not of one model; remove the one that is left over, or \
         download the model again"
    )]
    TwoValues {
        /// The tensor.
        tensor: String,
        /// A weight file.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// A text file is larger than any real one of its kind.
    #[error(
        "{path} has {found} bytes, more than the {limit} that a file of this kind can have; it is not what its name says"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A JSON file is not JSON, or not an object.
    #[error("{path} is not a JSON object: {problem}; download the file again")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// A key of config.json is missing or has a value that cannot be.
    #[error("{path}: `{key}` must be {expected}, found {found}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A model type other than the supported ones.
    #[error("{path}: model type {found} is not supported; supported are {known}")]
    Family {
        /// The file.
        path: PathBuf,
        /// The value of `model_type`.
        found: String,
        /// The supported ones.
        known: String,
    },
    /// A feature of a supported family that is not implemented.
    #[error("{path}: {what} is not supported; {remedy}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature.
        what: String,
        /// What is supported, or what to do.
        remedy: String,
    },
    /// A file of orders of channels that cannot be used.
    #[error(
        "{path} is no usable permutation: {problem}; give the permutation.safetensors of the run that the mask is of"
    )]
    Permutation {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A permutation of another model.
    #[error(
        "the permutation does not fit the model in {folder}: {problem}; give the model that the run was made of"
    )]
    Unfit {
        /// The model folder.
        folder: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A file that cannot be written.
    #[error(transparent)]
    Files(#[from] FsError),
    /// Neither model.safetensors nor an index was found.
    #[error("{folder} holds neither model.safetensors nor model.safetensors.index.json{found}; {remedy}")]
    NoWeights {
        /// The model folder.
        folder: PathBuf,
        /// What is there in their place: empty, or ", but FILE".
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A safetensors file that contradicts itself: cut off, not safetensors at all, or a broken header.
    #[error("{path} is not a whole safetensors file: {problem}; download or write it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What contradicts what.
        problem: String,
    },
    /// The index is not of the expected form.
    #[error("{path}: {problem}; download it again")]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The index names a file that is not there.
    #[error("{index} names the shard {shard}, which is missing from the folder; download it")]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The file's name.
        shard: String,
    },
    /// A tensor that the configuration calls for is in no file.
    #[error(
        "{folder}: config.json calls for the tensor {tensor}, which no weight file holds; the configuration and the weights do not belong together"
    )]
    MissingTensor {
        /// The model folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "{path}: {tensor} has the shape {found:?}, but config.json calls for {expected:?}; the two do not belong together"
    )]
    Shape {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that is not supported.
    #[error(
        "{path}: {tensor} is stored as {found}; supported are F64, F32, F16 and BF16, so use an unquantized copy of the model"
    )]
    Dtype {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{tensor} holds {value} at {position:?}; the model is damaged or its training diverged, use another copy"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// NaN, inf or -inf.
        value: f32,
        /// The indices along the tensor's dimensions.
        position: Vec<usize>,
    },
    /// A tensor was asked for by a name that the checkpoint does not hold.
    #[error("the checkpoint holds no tensor named {name}")]
    UnknownTensor {
        /// The name.
        name: String,
    },
    /// There is no tokenizer.json, but what it is made of.
    #[error(
        "{folder} has no tokenizer.json, only {there}; make one with Python: from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(\"{folder}\").save_pretrained(\"{folder}\")"
    )]
    SlowTokenizer {
        /// The model folder.
        folder: PathBuf,
        /// The file of another kind.
        there: &'static str,
    },
    /// tokenizer.json cannot be used.
    #[error("{path} is not a usable tokenizer: {problem}; download it again from the model's source")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library said.
        problem: String,
    },
    /// The tokenizer knows more tokens than the model has embeddings.
    #[error(
        "{path} has token ids up to {highest}, so {needed} embeddings are needed, but the model has {embeddings} (vocab_size in config.json); the tokenizer belongs to another model"
    )]
    Vocabulary {
        /// The tokenizer file.
        path: PathBuf,
        /// The tokenizer's highest id.
        highest: u32,
        /// Embedding rows that the tokenizer needs.
        needed: u64,
        /// Embedding rows of the model.
        embeddings: usize,
    },
    /// The tokenizer gave an id beyond the embedding.
    #[error(
        "{path} gave the token id {id}, but the model has only {embeddings} embeddings (vocab_size in config.json); the tokenizer belongs to another model"
    )]
    TokenId {
        /// The tokenizer file.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Embedding rows of the model.
        embeddings: usize,
    },
    /// The tokenizer library failed on a text.
    #[error("{path} cannot encode the text: {problem}; download it again from the model's source")]
    Encode {
        /// The tokenizer file.
        path: PathBuf,
        /// What the tokenizer library said.
        problem: String,
    },
    /// The tokenizer cannot turn ids into text.
    #[error(
        "{path} cannot decode what the model wrote: {problem}; save the tokenizer again with transformers"
    )]
    Decode {
        /// The tokenizer file.
        path: PathBuf,
        /// What the tokenizer library said.
        problem: String,
    },
}
