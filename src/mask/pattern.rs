//! The pattern: keep N of M.

use std::fmt;

/// Keep N of every M consecutive weights of a row. M is 2, 4, 8 or 16, so a group never straddles a mask word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pattern {
    pub(super) n: u8,
    pub(super) m: u8,
}

impl Pattern {
    /// Keep 2 of 4, what NVIDIA's sparse tensor cores run.
    pub const TWO_OF_FOUR: Self = Self { n: 2, m: 4 };

    /// Weights kept in a group.
    pub fn n(self) -> usize {
        usize::from(self.n)
    }

    /// Weights of a group.
    pub fn m(self) -> usize {
        usize::from(self.m)
    }

    /// The number of different group masks, M over N: at most 12870 (8:16).
    pub fn combinations(self) -> u64 {
        binomial(self.m(), self.n())
    }

    /// Weights pruned of `weights` that lie under a strict mask.
    pub fn pruned(self, weights: u64) -> u64 {
        weights / self.m() as u64 * (self.m() - self.n()) as u64
    }

    /// In words, since other tools write what they prune: `keep 2 of 4`.
    pub fn words(self) -> String {
        format!("keep {} of {}", self.n, self.m)
    }

    /// M ones, the bits of the first group of a mask word.
    pub(crate) fn group_bits(self) -> u32 {
        (1 << self.m) - 1
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self::TWO_OF_FOUR
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.n, self.m)
    }
}

impl serde::Serialize for Pattern {
    /// As "2:4".
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// M over N. Exact for the sizes of a pattern.
pub fn binomial(m: usize, n: usize) -> u64 {
    if n > m {
        return 0;
    }
    (0..n as u64).fold(1, |product, i| product * (m as u64 - i) / (i + 1))
}
