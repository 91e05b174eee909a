//! Writing what a deployment needs. No GPU.

pub(crate) mod copy;
pub mod ct24;
mod error;
pub mod hf;
mod packed;
pub mod torch24;

pub use error::ExportError;
