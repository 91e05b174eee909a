//! Which pattern a mask has, found from the mask itself.

use super::{BitMask, Pattern};

/// The group sizes that there are.
const SIZES: [usize; 4] = [2, 4, 8, 16];

/// Patterns that a model is named after, the strictest first; of equally strict ones the smaller group is stricter.
const USUAL: [(usize, usize); 10] =
    [(1, 8), (1, 4), (2, 8), (4, 16), (1, 2), (2, 4), (4, 8), (8, 16), (3, 4), (6, 8)];

/// The fewest and the most kept weights of any group, for each group size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Census {
    /// None for a group size that does not divide every row.
    counts: [Option<(u32, u32)>; SIZES.len()],
}

impl Default for Census {
    fn default() -> Self {
        Self { counts: [Some((u32::MAX, 0)); SIZES.len()] }
    }
}

impl Census {
    /// Of one mask.
    pub fn of(mask: &BitMask) -> Self {
        let mut census = Self::default();
        census.add(mask);
        census
    }

    /// Counts the groups of a mask, too.
    pub fn add(&mut self, mask: &BitMask) {
        for (count, size) in self.counts.iter_mut().zip(SIZES) {
            // The pattern stands for the size of the groups alone.
            let groups = Pattern::new(1, size).ok().filter(|p| p.groups(mask.cols()).is_ok());
            *count = count.zip(groups).map(|((fewest, most), p)| {
                let kept = mask.groups(p).map(u32::count_ones);
                kept.fold((fewest, most), |(low, high), n| (low.min(n), high.max(n)))
            });
        }
    }

    /// Takes what another has counted, too.
    pub fn join(&mut self, other: &Self) {
        for (count, other) in self.counts.iter_mut().zip(other.counts) {
            *count = count.zip(other).map(|((a, b), (c, d))| (a.min(c), b.max(d)));
        }
    }

    /// The fewest and the most kept weights of a group of `m`; none where rows do not divide into such groups.
    pub fn kept(&self, m: usize) -> Option<(u32, u32)> {
        let found = self.counts.iter().zip(SIZES).find(|(_, size)| *size == m)?.0;
        found.filter(|(fewest, most)| fewest <= most)
    }

    /// The pattern with the smallest groups of which each keeps exactly N.
    pub fn strict(&self) -> Option<Pattern> {
        SIZES.into_iter().find_map(|m| match self.kept(m) {
            Some((fewest, most)) if fewest == most => Pattern::new(most as usize, m).ok(),
            _ => None,
        })
    }

    /// The strictest of the usual patterns that every group obeys: none keeps more than N.
    pub fn obeyed(&self) -> Option<Pattern> {
        let mut usual = USUAL.into_iter().filter_map(|(n, m)| Pattern::new(n, m).ok());
        usual.find(|p| self.kept(p.m()).is_some_and(|(_, most)| most as usize <= p.n()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> BitMask {
        let cols = rows[0].len();
        let mut mask = BitMask::zeros(rows.len(), cols);
        for (r, row) in rows.iter().enumerate() {
            row.bytes().enumerate().for_each(|(c, bit)| mask.set(r, c, bit == b'1'));
        }
        mask
    }

    #[test]
    fn patterns_are_found_in_masks() {
        for (rows, strict, obeyed) in [
            (&["1100101001100011", "1010010111000011"][..], "2:4", "2:4"),
            (&["1001101010010110", "0110010110010101"], "1:2", "1:2"),
            (&["1100000000001100", "1000000110000001"], "2:8", "2:8"),
            (&["1111000011110000", "1110000101011010"], "4:8", "4:8"),
            (&["1100100000010000", "0000000011110000"], "4:16", "4:16"),
            // One group keeps fewer.
            (&["1100101001100011", "1010000111000011"], "", "2:4"),
            (&["1101101101110111"], "3:4", "3:4"),
            (&["1111101101110111", "1111111111111111"], "", ""),
            (&["1111"], "", ""),
            // 12 columns have no groups of 8.
            (&["110010100110"], "2:4", "2:4"),
            (&["101"], "", ""),
        ] {
            let census = Census::of(&mask(rows));
            let text = |p: Option<Pattern>| p.map(|p| p.to_string()).unwrap_or_default();
            assert_eq!(
                (text(census.strict()), text(census.obeyed())),
                (strict.into(), obeyed.into()),
                "{rows:?}"
            );
        }
        let mut both = Census::of(&mask(&["10010101"]));
        both.add(&mask(&["11000011"]));
        assert_eq!(
            (both.strict(), both.kept(2), both.kept(4)),
            (Some(Pattern::TWO_OF_FOUR), Some((0, 2)), Some((2, 2)))
        );
        assert_eq!(Census::default().strict(), None);
        assert_eq!(Census::default().kept(4), None);
    }
}
