//! Writing what a deployment needs. No GPU.

mod copy;
mod error;
pub mod hf;

pub use error::ExportError;
