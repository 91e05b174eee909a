//! Text for calibration and evaluation: a file is tokenized and cut, or drawn from, as the data loaders of GPTQ, SparseGPT
//! and Wanda do it, so that the same file, tokenizer and seed give the same windows as theirs.
//!
//! A file is plain text; or JSON lines (`.jsonl`, or `.json` as C4 is distributed) or a JSON array, of documents with a `text`, a `content` or
//! `messages`; or parquet with such a column. All but parquet may be compressed (`.gz`, `.zst`). A folder of such files is documents, too.

mod chat;
mod documents;
mod error;
mod fields;
mod options;
mod parquet;
mod python_random;
mod questions;
mod segments;
mod source;
mod windows;

pub use error::CalibError;
pub use options::TextOptions;
pub use python_random::PythonRandom;
pub use questions::Question;
pub use segments::{Segments, read_windows, read_windows_of, tokens_of, tokens_of_file};
pub use windows::Windows;
