//! The one error type of the calibration layer.

use std::io;
use std::path::PathBuf;

use crate::model::ModelError;

/// What can be wrong with a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibError {
    /// The text cannot be read or tokenized.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Not UTF-8.
    #[error("{path} is not a text in UTF-8: byte {at} does not fit; convert it, or give a plain text file")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that does not fit.
        at: usize,
    },
    /// A file of another kind.
    #[error("{path} is no text: it begins as {what} does; {remedy}")]
    Binary {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Nothing in it but white space.
    #[error("{path} is empty; give a file with text in it")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line that is no question.
    #[error(
        "{path}, line {line}: {problem}; a line is such as {{\"context\": \"The sky is\", \"choices\": [\"blue\", \"red\"], \"answer\": 0}}"
    )]
    Question {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A window that holds no prediction.
    #[error(
        "windows of {window} tokens are not possible: a window needs at least 2 (one to predict from, one to predict)"
    )]
    Window {
        /// The length asked for.
        window: usize,
    },
    /// Not one whole window.
    #[error(
        "the text has {tokens} tokens, fewer than one window of {window}; give a longer text or a shorter window"
    )]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// Too few tokens to draw a window at random.
    #[error(
        "{path} has {tokens} tokens, but random windows of {window} tokens need a text of more than {window}; give a longer text or a shorter window"
    )]
    TooShortToDraw {
        /// The file.
        path: PathBuf,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// No document from which a window can be drawn.
    #[error(
        "none of the {documents} documents of {path} is long enough for a random window of {window} tokens: each must have more than {window}, the longest has {longest}; give longer documents or a shorter window"
    )]
    NoLongDocument {
        /// The file.
        path: PathBuf,
        /// Documents of the file.
        documents: usize,
        /// Tokens of the longest document.
        longest: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// More random windows than memory is meant for.
    #[error("{count} random windows of {window} tokens are more than {limit} tokens; ask for fewer windows")]
    TooMany {
        /// The windows asked for.
        count: usize,
        /// Tokens of a window.
        window: usize,
        /// The most tokens that are drawn.
        limit: usize,
    },
    /// A file named .gz is damaged or no gzip.
    #[error(
        "{path} is not a whole gzip file: {source}; download or compress it again, or take the .gz off its name if it is not compressed"
    )]
    Gzip {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// A file named .zst is damaged or no zstd.
    #[error(
        "{path} is not a whole zstd file: {source}; download or compress it again, or take the .zst off its name if it is not compressed"
    )]
    Zstd {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// A compressed file holds more than is read.
    #[error(
        "{path} holds more than {limit} bytes when decompressed, the most that is read; give a part of it"
    )]
    Inflated {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// A line is not a document.
    #[error(
        r#"{path}, line {line}: {problem}; each line must be one JSON object that holds the document's text, such as {{"text": "Once upon a time"}}"#
    )]
    Document {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An element of a JSON array, or a row of a table, is not a document.
    #[error("{path}, {what} {number}: {problem}")]
    Element {
        /// The file.
        path: PathBuf,
        /// "element" or "row".
        what: &'static str,
        /// Its number, the first being 1.
        number: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that begins as a JSON array and does not go on as one.
    #[error("{path} is not a whole JSON array: {problem}; download or write it again")]
    Array {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// A parquet file that cannot be read.
    #[error(
        "{path} is not a whole parquet file, or of a kind that is not read: {problem}; download it again, or write it with snappy, gzip or zstd"
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        problem: String,
    },
    /// A parquet file without the column.
    #[error("{path} {problem}; it has {there}; --column names the one with the text")]
    Column {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        problem: String,
        /// Its columns.
        there: String,
    },
    /// A folder without texts.
    #[error(
        "{path} is a folder without a text in it (.txt, .md, .jsonl, .json or .parquet, or compressed with .gz or .zst); give a text file, or a folder of them"
    )]
    NoTexts {
        /// The folder.
        path: PathBuf,
    },
    /// Messages, but no template.
    #[error(
        "{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), without which messages are no text; give documents with a `text`, or name a field that holds one with --field"
    )]
    NoTemplate {
        /// The model folder.
        folder: PathBuf,
    },
    /// A chat template that cannot be used.
    #[error(
        "{path} is not a usable chat template: {problem}; download it again, or give documents with a `text`"
    )]
    Template {
        /// The file that holds it.
        path: PathBuf,
        /// What the template library said.
        problem: String,
    },
}
