//! Learns strict N:M sparsity masks (keep N of M consecutive weights) for decoder language models on any GPU, through wgpu.
//!
//! The layers, each of which uses only those named before it: [`model`] and [`mask`] (files, patterns, the sampling law; no GPU),
//! [`export`] (what is written), [`verify`] (whether it is right), [`gpu`] (the only one that names wgpu), [`kernel`] (one function per shader), [`nn`] (the
//! decoder), [`eval`] and [`prune`] (what a mask costs, and how one is chosen), [`cli`].
#![warn(missing_docs)]

pub mod calib;
pub mod cli;
pub mod eval;
pub mod export;
pub mod fsio;
pub mod gpu;
pub mod kernel;
pub mod mask;
pub mod model;
pub mod nn;
pub mod prune;
pub mod verify;
