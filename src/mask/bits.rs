//! One bit per weight.

use super::{MaskError, Pattern};

/// The mask of one projection. Bit `c % 32` of word `row * words_per_row + c / 32` stands for the weight `(row, c)`, 1 =
/// kept; every row starts a new word and the bits behind its last column are 0. That is also the layout on the GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitMask {
    rows: usize,
    cols: usize,
    words: Vec<u32>,
}

impl BitMask {
    /// All weights pruned.
    ///
    /// # Panics
    /// When the words overflow the address space; use [`BitMask::try_zeros`] for sizes that come from a file.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, words: vec![0; rows * cols.div_ceil(32)] }
    }

    /// As [`BitMask::zeros`], with an error instead of a panic where the sizes cannot be.
    pub fn try_zeros(rows: usize, cols: usize) -> Result<Self, MaskError> {
        let size = || MaskError::Size { rows, cols };
        let count = rows.checked_mul(cols.div_ceil(32)).filter(|&n| n > 0).ok_or_else(size)?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| size())?;
        words.resize(count, 0);
        Ok(Self { rows, cols, words })
    }

    /// All weights kept.
    ///
    /// # Panics
    /// As [`BitMask::zeros`].
    pub fn ones(rows: usize, cols: usize) -> Self {
        let mut mask = Self::zeros(rows, cols);
        let per_row = mask.words_per_row();
        let tail = mask.tail_bits();
        if per_row > 0 {
            for row in mask.words.chunks_exact_mut(per_row) {
                row.fill(u32::MAX);
                row[per_row - 1] = tail;
            }
        }
        mask
    }

    /// From words in the layout above, as they come from the GPU.
    ///
    /// # Errors
    /// [`MaskError::Words`] for a wrong number of them, [`MaskError::TailBit`].
    pub fn from_words(rows: usize, cols: usize, words: Vec<u32>) -> Result<Self, MaskError> {
        if rows == 0 || cols == 0 {
            return Err(MaskError::Size { rows, cols });
        }
        let expected = rows.checked_mul(cols.div_ceil(32)).ok_or(MaskError::Size { rows, cols })?;
        if words.len() != expected {
            return Err(MaskError::Words { rows, cols, expected, found: words.len() });
        }
        let mask = Self { rows, cols, words };
        match mask.first_tail_bit() {
            Some(row) => Err(MaskError::TailBit { row }),
            None => Ok(mask),
        }
    }

    /// Keeps the N highest scores of every group; of equal ones the lower index. `row_scores(row, scores)` fills in the
    /// `cols` scores of a row; rows are asked for in order.
    ///
    /// # Errors
    /// [`MaskError::Indivisible`], [`MaskError::NotANumber`] for a NaN score, [`MaskError::Size`].
    pub fn top_n(
        rows: usize,
        cols: usize,
        pattern: Pattern,
        mut row_scores: impl FnMut(usize, &mut [f32]),
    ) -> Result<Self, MaskError> {
        pattern.groups(cols)?;
        let mut mask = Self::try_zeros(rows, cols)?;
        let mut scores = vec![0.0f32; cols];
        for row in 0..rows {
            row_scores(row, &mut scores);
            if let Some(col) = scores.iter().position(|s| s.is_nan()) {
                return Err(MaskError::NotANumber { row, col });
            }
            for (group, scores) in scores.chunks_exact(pattern.m()).enumerate() {
                mask.or_group(row, group, pattern, top_n_of_group(scores, pattern.n()));
            }
        }
        Ok(mask)
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The words, `rows * words_per_row` of them.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Words of a row: `ceil(cols / 32)`.
    pub fn words_per_row(&self) -> usize {
        self.cols.div_ceil(32)
    }

    /// Whether a weight is kept.
    ///
    /// # Panics
    /// Outside the mask.
    pub fn get(&self, row: usize, col: usize) -> bool {
        let (word, bit) = self.place(row, col);
        self.words[word] >> bit & 1 == 1
    }

    /// Keeps or prunes a weight.
    ///
    /// # Panics
    /// Outside the mask.
    pub fn set(&mut self, row: usize, col: usize, kept: bool) {
        let (word, bit) = self.place(row, col);
        self.words[word] = self.words[word] & !(1 << bit) | u32::from(kept) << bit;
    }

    /// Takes over row `r` of a mask of the same shape.
    ///
    /// # Panics
    /// When the shapes differ or there is no such row.
    pub fn copy_row(&mut self, other: &Self, r: usize) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "masks of one projection");
        let row = r * self.words_per_row()..(r + 1) * self.words_per_row();
        self.words[row.clone()].copy_from_slice(&other.words[row]);
    }

    /// Kept weights.
    pub fn count_ones(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Checks that every group holds exactly N ones and nothing else is set.
    ///
    /// # Errors
    /// [`MaskError::NotStrict`] with the first bad row and group, [`MaskError::Indivisible`], [`MaskError::TailBit`].
    pub fn check(&self, pattern: Pattern) -> Result<(), MaskError> {
        let per_row = pattern.groups(self.cols)?;
        if let Some(row) = self.first_tail_bit() {
            return Err(MaskError::TailBit { row });
        }
        for (i, bits) in self.groups(pattern).enumerate() {
            let kept = bits.count_ones() as usize;
            if kept != pattern.n() {
                return Err(MaskError::NotStrict { row: i / per_row, group: i % per_row, kept, pattern });
            }
        }
        Ok(())
    }

    /// The number of groups in which two masks of one shape differ.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn groups_changed(&self, other: &Self, pattern: Pattern) -> u64 {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "masks of one projection");
        let group = pattern.group_bits();
        let per_word = 32 / pattern.m();
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a ^ b).filter(|&w| w != 0);
        words.map(|w| (0..per_word).filter(|g| w >> (g * pattern.m()) & group != 0).count() as u64).sum()
    }

    /// The bits of every group, row by row: bit `i` is the group's weight `i`. Columns behind the last whole group
    /// are left out.
    pub fn groups(&self, pattern: Pattern) -> impl Iterator<Item = u32> {
        let (m, bits) = (pattern.m(), pattern.group_bits());
        let per_row = self.cols / m;
        let words = self.words.chunks_exact(self.words_per_row().max(1));
        words.flat_map(move |row| (0..per_row).map(move |g| row[g * m / 32] >> (g * m % 32) & bits))
    }

    /// Sets bits of a group that must lie inside the mask. Groups never straddle a word, since M divides 32.
    pub(super) fn or_group(&mut self, row: usize, group: usize, pattern: Pattern, bits: u32) {
        let (word, bit) = self.place(row, group * pattern.m());
        self.words[word] |= bits << bit;
    }

    fn place(&self, row: usize, col: usize) -> (usize, usize) {
        assert!(
            row < self.rows && col < self.cols,
            "({row}, {col}) is outside {} x {}",
            self.rows,
            self.cols
        );
        (row * self.words_per_row() + col / 32, col % 32)
    }

    /// The bits of a row's last word that stand for columns.
    fn tail_bits(&self) -> u32 {
        match self.cols % 32 {
            0 => u32::MAX,
            n => (1 << n) - 1,
        }
    }

    fn first_tail_bit(&self) -> Option<usize> {
        let outside = !self.tail_bits();
        let rows = self.words.chunks_exact(self.words_per_row().max(1));
        rows.enumerate().find(|(_, row)| row.last().is_some_and(|w| w & outside != 0)).map(|(row, _)| row)
    }
}

/// The bits of the `n` highest scores; of equal ones the lower index. No score is NaN.
fn top_n_of_group(scores: &[f32], n: usize) -> u32 {
    let mut bits = 0;
    for (i, &score) in scores.iter().enumerate() {
        // How many come before this one.
        let higher = scores.iter().enumerate();
        let before = higher.filter(|&(j, &s)| s > score || (s == score && j < i)).count();
        bits |= u32::from(before < n) << i;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_and_bits_agree() {
        for cols in [1, 4, 31, 32, 33, 64, 172] {
            let mut mask = BitMask::ones(3, cols);
            assert_eq!(mask.count_ones(), 3 * cols as u64);
            assert!(BitMask::from_words(3, cols, mask.words().to_vec()).is_ok());
            assert!(mask.get(2, cols - 1));
            mask.set(2, cols - 1, false);
            assert!(!mask.get(2, cols - 1));
            assert_eq!(mask.count_ones(), 3 * cols as u64 - 1);
        }
        assert_eq!(BitMask::ones(2, 33).words(), [u32::MAX, 1, u32::MAX, 1]);
    }

    #[test]
    fn words_are_checked() {
        assert!(matches!(
            BitMask::from_words(2, 40, vec![0; 3]),
            Err(MaskError::Words { expected: 4, found: 3, .. })
        ));
        assert!(matches!(BitMask::from_words(2, 40, vec![0, 0, 0, 256]), Err(MaskError::TailBit { row: 1 })));
        assert!(BitMask::from_words(0, 4, vec![]).is_err());
        assert!(BitMask::from_words(usize::MAX, usize::MAX, vec![]).is_err());
        assert!(BitMask::try_zeros(usize::MAX, 4).is_err());
    }

    #[test]
    fn top_n_breaks_ties_towards_the_lower_index() {
        let pattern = Pattern::TWO_OF_FOUR;
        let inf = f32::INFINITY;
        let rows: [([f32; 4], u32); 6] = [
            ([1.0, 1.0, 1.0, 1.0], 0b0011),
            ([0.0, 1.0, 1.0, 1.0], 0b0110),
            ([-0.0, -1.0, 0.0, 0.0], 0b0101),
            ([-inf, -inf, -inf, 1.0], 0b1001),
            ([1.0, inf, 3.0, inf], 0b1010),
            ([1e-40, 0.0, -0.0, 1e-39], 0b1001),
        ];
        let mask = BitMask::top_n(rows.len(), 4, pattern, |r, s| s.copy_from_slice(&rows[r].0)).unwrap();
        assert_eq!(mask.words(), rows.map(|r| r.1));
        mask.check(pattern).unwrap();
    }

    #[test]
    fn top_n_equals_a_sort_for_every_pattern() {
        let mut state = 7u32;
        for (n, m) in [(1, 2), (1, 4), (3, 4), (2, 8), (4, 8), (1, 16), (8, 16), (15, 16)] {
            let pattern = Pattern::new(n, m).unwrap();
            let scores: Vec<f32> = (0..3 * 7 * m)
                .map(|_| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    (state >> 28) as f32 // few values, many ties
                })
                .collect();
            let cols = 7 * m;
            let mask =
                BitMask::top_n(3, cols, pattern, |r, s| s.copy_from_slice(&scores[r * cols..][..cols]))
                    .unwrap();
            mask.check(pattern).unwrap();
            for (g, group) in scores.chunks(m).enumerate() {
                let mut order: Vec<usize> = (0..m).collect();
                order.sort_by(|&a, &b| group[b].total_cmp(&group[a]).then(a.cmp(&b)));
                for (place, &i) in order.iter().enumerate() {
                    assert_eq!(mask.get(g / 7, g % 7 * m + i), place < n, "{pattern}");
                }
            }
        }
    }

    #[test]
    fn bad_scores_and_shapes_are_errors() {
        let pattern = Pattern::TWO_OF_FOUR;
        let nan = BitMask::top_n(2, 8, pattern, |r, s| {
            s.fill(1.0);
            if r == 1 {
                s[5] = f32::NAN;
            }
        });
        assert!(matches!(nan, Err(MaskError::NotANumber { row: 1, col: 5 })));
        assert!(matches!(
            BitMask::top_n(2, 6, pattern, |_, _| ()),
            Err(MaskError::Indivisible { cols: 6, .. })
        ));
    }

    #[test]
    fn the_first_loose_group_is_named() {
        let pattern = Pattern::TWO_OF_FOUR;
        let mut mask = BitMask::top_n(3, 40, pattern, |_, s| s.fill(0.0)).unwrap();
        let strict = mask.clone();
        mask.set(1, 37, false);
        let text = mask.check(pattern).unwrap_err().to_string();
        assert_eq!(text, "group 9 of row 1 keeps 1 weights, but the pattern is 2:4");
        assert_eq!(mask.groups_changed(&strict, pattern), 1);
        mask.set(1, 38, true);
        mask.set(2, 0, false);
        assert_eq!(mask.groups_changed(&strict, pattern), 2);
        assert_eq!(mask.groups_changed(&strict, Pattern::new(4, 8).unwrap()), 2);
        assert!(strict.check(Pattern::new(1, 4).unwrap()).is_err());
    }
}
