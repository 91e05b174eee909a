//! Text for calibration and evaluation: a file is tokenized and cut, or drawn from, as the data loaders of GPTQ, SparseGPT
//! and Wanda do it, so that the same file, tokenizer and seed give the same windows as theirs.
//!
//! A file is plain text, or JSON lines (`.jsonl`, or `.json` as C4 is distributed), each line a document with a `text`;
//! either may be compressed (`.gz`).

mod documents;
mod error;
mod python_random;
mod questions;
mod segments;
mod source;
mod windows;

pub use error::CalibError;
pub use python_random::PythonRandom;
pub use questions::Question;
pub use segments::{Segments, read_windows, tokens_of_file};
pub use windows::Windows;
