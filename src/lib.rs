//! Learns strict N:M sparsity masks (keep N of M consecutive weights) for decoder language models on any GPU, through wgpu.
//!
//! [`prune::Session`] is the library in short: it opens a model, takes windows of text, chooses and learns masks, measures them, and writes
//! the masked model. The crate's `examples` do the same with a word on every step.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use maskwright::calib::Segments;
//! use maskwright::gpu::GpuOptions;
//! use maskwright::mask::{Pattern, Provenance};
//! use maskwright::prune::learn::{Objective, Stage, Trains};
//! use maskwright::prune::{OneShot, OneShotOptions, PruneError, Session};
//!
//! # fn main() -> Result<(), PruneError> {
//! let model = Session::open(Path::new("models/village"), GpuOptions::default())?;
//! let text = model.sample(Path::new("models/village/calib.txt"), Segments::Random { seed: 0 }, 64, 256)?;
//! let pattern = Pattern::TWO_OF_FOUR;
//! let start = model.choose(&OneShotOptions::new(pattern, OneShot::Descent), &text, |_| ())?;
//! let stage = Stage::new(pattern, Trains::Relaxed, Objective::Block);
//! let masks = model.learn(&stage, &start, &text, |_| ControlFlow::Continue(()))?;
//! let heldout = model.sample(Path::new("models/village/heldout.txt"), Segments::Sequential, usize::MAX, 256)?;
//! let found = model.evaluate(&masks, &heldout)?;
//! println!("{} dense, {} under the mask", found.dense.perplexity, found.model.perplexity);
//! model.export(&masks, &Provenance::new("relaxed", 0), Path::new("village-24"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! Each uses only those named before it: [`fsio`] (files that appear whole or not at all), [`folder`] (the folder of a run), [`model`] and [`mask`] (folders, tensors, patterns, the
//! sampling law; no GPU), [`calib`] (windows of texts), [`hub`] (models by their names on the
//! Hugging Face hub), [`export`] (what is written), [`verify`] (whether it is right), [`gpu`] (the only one that
//! names wgpu), [`kernel`] (one function per shader), [`nn`] (the decoder), [`eval`] and [`prune`] (what a mask costs, and how one is chosen),
//! [`report`] (runs as a page), [`cli`] (the command).
//!
//! Errors are one enum for each layer; their messages name the file or tensor, what was expected and what to do. A number is in the
//! units that its documentation says: losses in nats per token, memory in bytes, time in seconds.
#![warn(missing_docs)]

pub mod calib;
pub mod cli;
pub mod eval;
pub mod export;
pub mod folder;
pub mod fsio;
pub mod gpu;
pub mod hub;
pub mod kernel;
pub mod mask;
pub mod model;
pub mod nn;
pub mod prune;
pub mod report;
pub mod run;
pub mod verify;
