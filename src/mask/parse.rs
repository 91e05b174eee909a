//! Which patterns there are, and what they divide.

use std::str::FromStr;

use super::{MaskError, Pattern};

impl Pattern {
    /// Keep `n` of `m`.
    ///
    /// # Errors
    /// [`MaskError::Pattern`] unless `m` is 2, 4, 8 or 16 and `1 <= n < m`.
    pub fn new(n: usize, m: usize) -> Result<Self, MaskError> {
        if matches!(m, 2 | 4 | 8 | 16) && (1..m).contains(&n) {
            Ok(Self { n: n as u8, m: m as u8 })
        } else {
            Err(MaskError::Pattern { found: format!("{n}:{m}") })
        }
    }

    /// Groups in a row of `cols` weights.
    ///
    /// # Errors
    /// [`MaskError::Indivisible`].
    pub fn groups(self, cols: usize) -> Result<usize, MaskError> {
        if cols.is_multiple_of(self.m()) {
            Ok(cols / self.m())
        } else {
            Err(MaskError::Indivisible { cols, pattern: self })
        }
    }
}

impl FromStr for Pattern {
    type Err = MaskError;

    /// `2:4`, digits only.
    fn from_str(text: &str) -> Result<Self, MaskError> {
        let number = |t: &str| match t.len() {
            // Rust would take a plus sign, too.
            1..=2 if t.bytes().all(|b| b.is_ascii_digit()) => t.parse::<usize>().ok(),
            _ => None,
        };
        let parts = text.split_once(':').and_then(|(n, m)| Some((number(n)?, number(m)?)));
        match parts {
            Some((n, m)) => Self::new(n, m),
            None => {
                Err(MaskError::Pattern { found: format!("{:?}", text.chars().take(40).collect::<String>()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_parse_and_print() {
        for (n, m) in [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (8, 16), (15, 16)] {
            let pattern = Pattern::new(n, m).unwrap();
            assert_eq!((pattern.n(), pattern.m()), (n, m));
            assert_eq!(pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        }
        assert_eq!(Pattern::new(8, 16).unwrap().combinations(), 12870);
        assert_eq!(Pattern::default().combinations(), 6);
    }

    #[test]
    fn other_patterns_are_refused_with_the_meaning() {
        for bad in [
            "4:2",
            "4:4",
            "0:4",
            "2:5",
            "2:32",
            "+2:4",
            "2:4:8",
            "",
            "2",
            ":",
            "2:",
            " 2:4",
            "99999999999999999999:4",
        ] {
            let text = bad.parse::<Pattern>().unwrap_err().to_string();
            assert!(text.contains("keeps N of M"), "{text}");
        }
    }
}
