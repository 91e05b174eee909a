//! Errors of building and running a decoder.

use crate::gpu::GpuError;
use crate::model::{ModelError, ProjectionKind};

/// An error of the decoder.
#[derive(Debug, thiserror::Error)]
pub enum NnError {
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The model folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A token that the model has no embedding for.
    #[error(
        "token {token} is outside the model's vocabulary of {vocab}; the tokenizer belongs to another model"
    )]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A position that the model has no embedding for.
    #[error(
        "position {position}: the model has learned embeddings of {positions} positions; use windows of at most {positions} tokens, or a shorter prompt and fewer tokens behind it"
    )]
    Position {
        /// The position.
        position: usize,
        /// Those there are.
        positions: usize,
    },
    /// A projection that the architecture lacks.
    #[error("the model's blocks have no {kind} projection")]
    NoProjection {
        /// Which.
        kind: ProjectionKind,
    },
    /// A width that the kernels cannot read four at a time.
    #[error(
        "{projection} has {cols} input features, which do not divide by 4; such models are not supported"
    )]
    Width {
        /// The projection.
        projection: String,
        /// Its input features.
        cols: usize,
    },
    /// A text that the tokenizer makes nothing of, so that there is nothing to measure or to measure it after.
    #[error(
        "the tokenizer makes no tokens of {text:?}, and there is {lacking}; leave the question out, or word it otherwise"
    )]
    NoTokens {
        /// The text.
        text: String,
        /// What is missing for that.
        lacking: &'static str,
    },
    /// No room for further tokens.
    #[error("{more} more tokens behind {seen}: there is room for {capacity}")]
    Full {
        /// Tokens that a sequence has room for.
        capacity: usize,
        /// Tokens there are.
        seen: usize,
        /// Tokens to be added.
        more: usize,
    },
    /// The loss is not a number.
    #[error(
        "the loss of window {window} is {value}: weights or activations overflow; check the model with f32 weights"
    )]
    NotFinite {
        /// Index of the window in its batch.
        window: usize,
        /// What came out.
        value: f64,
    },
}
