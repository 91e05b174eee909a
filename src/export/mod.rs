//! Writing what a deployment needs. No GPU.

pub(crate) mod copy;
mod error;
pub mod hf;

pub use error::ExportError;
