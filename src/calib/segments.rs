//! Which windows of a file are taken: those at its start, or random ones as Python tools draw them.
//!
//! The random ones follow the data loaders of SparseGPT (`datautils.py` of IST-DASLab/sparsegpt) and Wanda (`lib/data.py` of
//! locuslab/wanda), which GPTQ began: `get_wikitext2` for a text, `get_c4` for documents. Both seed Python's `random` once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZero;
use std::path::Path;

use super::documents::{Documents, Text};
use super::fields::Fields;
use super::source::Source;
use super::{CalibError, PythonRandom, TextOptions, Windows};
use crate::model::{ModelError, Tokenizer};

/// The most tokens of all random windows together; a hundred thousand windows of 2048 have a fifth of that.
const LIMIT_TOKENS: usize = 1 << 30;

/// Which windows are taken from a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segments {
    /// Those at its start, one behind the other without overlap: the convention of perplexity.
    ///
    /// Documents are tokenized one by one, each with the special tokens that the tokenizer adds, and joined in their order;
    /// a window may then span several documents.
    Sequential,
    /// Random ones, those of SparseGPT and Wanda for the same seed: the convention of calibration.
    ///
    /// - From a text of `T` tokens, each window of `L` starts at token `randint(0, T - L - 1)`. As there, the last
    ///   possible window is never drawn.
    /// - From documents, each window comes from a random document: `randint(0, documents - 1)` is drawn until the document
    ///   has more than `L` tokens, then the start as above. (Some versions of SparseGPT also accept a document of exactly `L`
    ///   tokens, and then fail for want of a start. Where they do not fail, they draw the same.)
    ///
    /// Windows may overlap or repeat.
    Random {
        /// What Python's `random.seed` is given.
        seed: u64,
    },
}

/// Reads a file and takes `count` windows of `length` tokens from it; less than one window counts as one.
///
/// The file's name says what it holds: `.jsonl` is documents, one JSON object a line; `.json` the same, or an array of them; `.parquet` a table
/// with a column of them; all else is one text. All may be compressed and then end in `.gz` or `.zst`. A folder of such files is documents.
///
/// With [`Segments::Sequential`] there may be fewer windows than `count`, where the file has no more; `usize::MAX` takes all.
///
/// # Errors
/// [`CalibError`] when the file is missing, damaged, empty, not UTF-8 or too large, when a line of documents is bad, when the
/// text or all documents are too short, or when the length is below 2.
pub fn read_windows(
    tokenizer: &Tokenizer,
    path: &Path,
    segments: Segments,
    count: usize,
    length: usize,
) -> Result<Windows, CalibError> {
    read_windows_of(tokenizer, path, &TextOptions::default(), segments, count, length)
}

/// As [`read_windows`], with options that say where the text is in the file.
///
/// # Errors
/// As there.
pub fn read_windows_of(
    tokenizer: &Tokenizer,
    path: &Path,
    options: &TextOptions,
    segments: Segments,
    count: usize,
    length: usize,
) -> Result<Windows, CalibError> {
    if length < 2 {
        return Err(CalibError::Window { window: length });
    }
    let count = count.max(1);
    let wanted = count.saturating_mul(length);
    let tokens = match segments {
        Segments::Sequential => first_tokens(tokenizer, &source(tokenizer, path, options)?, wanted)?,
        Segments::Random { .. } if wanted > LIMIT_TOKENS => {
            return Err(CalibError::TooMany { count, window: length, limit: LIMIT_TOKENS });
        }
        Segments::Random { seed } => {
            let mut rng = PythonRandom::new(seed);
            match source(tokenizer, path, options)? {
                Source::Text(text) => {
                    let tokens = tokenizer.encode_first(&text, usize::MAX)?;
                    draw_from_text(&mut rng, path, tokens, count, length)?
                }
                Source::Documents(documents) => {
                    draw_from_documents(&mut rng, tokenizer, &documents, count, length)?
                }
            }
        }
    };
    Ok(Windows::new(tokens, length)?.first(count))
}

/// Reads a file as [`read_windows`] does and gives all its tokens, with the special tokens that the tokenizer adds: to a
/// text once, to documents each.
///
/// # Errors
/// [`CalibError`] when it is missing, damaged, not UTF-8, empty, too large, or cannot be tokenized.
pub fn tokens_of_file(tokenizer: &Tokenizer, path: &Path) -> Result<Vec<u32>, CalibError> {
    tokens_of(tokenizer, path, &TextOptions::default(), usize::MAX)
}

/// At least the first `wanted` tokens of a file, or all where there are fewer, as [`tokens_of_file`] gives them, with options that say where the
/// text is in the file. No more of it is tokenized than is needed.
///
/// # Errors
/// As there.
pub fn tokens_of(
    tokenizer: &Tokenizer,
    path: &Path,
    options: &TextOptions,
    wanted: usize,
) -> Result<Vec<u32>, CalibError> {
    first_tokens(tokenizer, &source(tokenizer, path, options)?, wanted)
}

/// A file for the model that the tokenizer belongs to, whose chat template may be needed.
fn source(tokenizer: &Tokenizer, path: &Path, options: &TextOptions) -> Result<Source, CalibError> {
    let folder = tokenizer.path().parent().map(Into::into);
    Source::read(path, &mut Fields::new(options, folder))
}

/// At least the first `wanted` tokens of a document, or all.
fn encoded(tokenizer: &Tokenizer, document: &Text<'_>, wanted: usize) -> Result<Vec<u32>, ModelError> {
    match document.chat {
        true => tokenizer.encode_bare(&document.text),
        false => tokenizer.encode_first(&document.text, wanted),
    }
}

/// At least the first `wanted` tokens, or all where there are fewer.
fn first_tokens(tokenizer: &Tokenizer, source: &Source, wanted: usize) -> Result<Vec<u32>, CalibError> {
    match source {
        Source::Text(text) => Ok(tokenizer.encode_first(text, wanted)?),
        Source::Documents(documents) => {
            let mut tokens = Vec::new();
            for i in 0..documents.len() {
                if tokens.len() >= wanted {
                    break;
                }
                tokens.extend(encoded(tokenizer, &documents.text(i)?, wanted - tokens.len())?);
            }
            Ok(tokens)
        }
    }
}

/// The tokens of a text or document that windows can be drawn from.
struct Drawable {
    tokens: Vec<u32>,
    length: usize,
    /// How many starts the originals draw from: one fewer than there are windows.
    starts: NonZero<u64>,
}

impl Drawable {
    /// None where the tokens are too few: there must be more than a window has.
    fn new(tokens: Vec<u32>, length: usize) -> Option<Self> {
        let starts = NonZero::new(tokens.len().saturating_sub(length) as u64)?;
        Some(Self { tokens, length, starts })
    }

    fn draw(&self, rng: &mut PythonRandom) -> &[u32] {
        let start = rng.randbelow(self.starts) as usize;
        &self.tokens[start..start + self.length]
    }
}

fn draw_from_text(
    rng: &mut PythonRandom,
    path: &Path,
    tokens: Vec<u32>,
    count: usize,
    length: usize,
) -> Result<Vec<u32>, CalibError> {
    let too_short = CalibError::TooShortToDraw { path: path.into(), tokens: tokens.len(), window: length };
    let text = Drawable::new(tokens, length).ok_or(too_short)?;
    let mut drawn = Vec::with_capacity(count * length);
    for _ in 0..count {
        drawn.extend_from_slice(text.draw(rng));
    }
    Ok(drawn)
}

fn draw_from_documents(
    rng: &mut PythonRandom,
    tokenizer: &Tokenizer,
    documents: &Documents,
    count: usize,
    length: usize,
) -> Result<Vec<u32>, CalibError> {
    let mut pool = Pool { tokenizer, documents, length, longest: 0, known: HashMap::new() };
    let all = pool.check()?;
    let mut drawn = Vec::with_capacity(count * length);
    while drawn.len() < count * length {
        let i = rng.randbelow(all) as usize;
        if let Some(document) = pool.get(i)? {
            drawn.extend_from_slice(document.draw(rng));
        }
    }
    Ok(drawn)
}

/// Documents that are tokenized when they are first drawn.
struct Pool<'a> {
    tokenizer: &'a Tokenizer,
    documents: &'a Documents,
    length: usize,
    /// Tokens of the longest document so far.
    longest: usize,
    /// The documents that were drawn, none where one is too short.
    known: HashMap<usize, Option<Drawable>>,
}

impl Pool<'_> {
    /// Makes sure that one document is long enough, without which drawing would never end, and gives the number of documents.
    ///
    /// The document with the longest text nearly always is long enough. Only to prove that none is are all tokenized.
    fn check(&mut self) -> Result<NonZero<u64>, CalibError> {
        for i in self.documents.longest_first() {
            if self.get(i)?.is_some()
                && let Some(all) = NonZero::new(self.documents.len() as u64)
            {
                return Ok(all);
            }
        }
        Err(CalibError::NoLongDocument {
            path: self.documents.path().into(),
            documents: self.documents.len(),
            longest: self.longest,
            window: self.length,
        })
    }

    /// Document `i`, or none where it is too short.
    fn get(&mut self, i: usize) -> Result<Option<&Drawable>, CalibError> {
        let known = match self.known.entry(i) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let tokens = encoded(self.tokenizer, &self.documents.text(i)?, usize::MAX)?;
                self.longest = self.longest.max(tokens.len());
                entry.insert(Drawable::new(tokens, self.length))
            }
        };
        Ok(known.as_ref())
    }
}
