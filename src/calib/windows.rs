//! Windows of equal length, one behind the other in memory.

use super::CalibError;

/// Windows of equal length: a text cut into them, or pieces drawn from it.
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
