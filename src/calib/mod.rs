//! Text for calibration and evaluation: a file is tokenized once as a whole and cut into windows of equal length that do
//! not overlap, the tail dropped (the convention of GPTQ, SparseGPT and Wanda; only the first window holds the opening token).

use std::path::{Path, PathBuf};

use crate::model::{ModelError, Tokenizer, read_limited};

/// More text than one file is meant to hold: it is tokenized in memory, at about a hundred bytes a character.
const LIMIT_BYTES: u64 = 1 << 30;

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
    /// Nothing in it but white space.
    #[error("{path} is empty; give a file with text in it")]
    Empty {
        /// The file.
        path: PathBuf,
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
}

/// Reads a text file and tokenizes it once, with the special tokens that the tokenizer adds.
///
/// # Errors
/// [`CalibError`] when it is missing, not UTF-8, empty, or cannot be tokenized.
pub fn tokens_of_file(tokenizer: &Tokenizer, path: &Path) -> Result<Vec<u32>, CalibError> {
    let bytes = read_limited(path, LIMIT_BYTES, "give a plain text file")?;
    let text = String::from_utf8(bytes)
        .map_err(|e| CalibError::NotUtf8 { path: path.into(), at: e.utf8_error().valid_up_to() })?;
    if text.trim().is_empty() {
        return Err(CalibError::Empty { path: path.into() });
    }
    Ok(tokenizer.encode(&text)?)
}

/// A text cut into windows of equal length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Windows {
    tokens: Vec<u32>,
    len: usize,
}

impl Windows {
    /// Cuts `tokens` into windows of `len` tokens that do not overlap. The tail is dropped.
    ///
    /// # Errors
    /// [`CalibError::Window`] for a length below 2, [`CalibError::TooShort`] when there is no whole window.
    pub fn new(mut tokens: Vec<u32>, len: usize) -> Result<Self, CalibError> {
        if len < 2 {
            return Err(CalibError::Window { window: len });
        }
        if tokens.len() < len {
            return Err(CalibError::TooShort { tokens: tokens.len(), window: len });
        }
        tokens.truncate(tokens.len() / len * len);
        Ok(Self { tokens, len })
    }

    /// Only the first `count` windows, or all where there are fewer (but at least one).
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.tokens.truncate(count.max(1).saturating_mul(self.len));
        self
    }

    /// The number of windows, at least 1.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.len
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.len
    }

    /// Window `i`.
    pub fn get(&self, i: usize) -> Option<&[u32]> {
        self.iter().nth(i)
    }

    /// The windows in their order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, u32> {
        self.tokens.chunks_exact(self.len)
    }

    /// All tokens of all windows, one window behind the other.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

impl<'a> IntoIterator for &'a Windows {
    type Item = &'a [u32];
    type IntoIter = std::slice::ChunksExact<'a, u32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_drop_the_tail() {
        let windows = Windows::new((0..11).collect(), 4).unwrap();
        assert_eq!(windows.iter().collect::<Vec<_>>(), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!((windows.count(), windows.window(), windows.tokens().len()), (2, 4, 8));
        assert_eq!(windows.get(1), Some(&[4, 5, 6, 7][..]));
        assert_eq!(windows.get(2), None);
        assert_eq!(windows.clone().first(1).count(), 1);
        assert_eq!(windows.clone().first(0).count(), 1);
        assert_eq!(windows.first(usize::MAX).count(), 2);
    }

    #[test]
    fn short_texts_and_windows_are_refused_with_both_numbers() {
        let text = Windows::new(vec![1; 7], 8).unwrap_err().to_string();
        assert!(text.contains("7 tokens") && text.contains("window of 8"), "{text}");
        assert!(Windows::new(vec![1; 7], 1).is_err());
        assert!(Windows::new(vec![1; 7], 0).is_err());
        assert!(Windows::new(vec![], 2).is_err());
    }
}
