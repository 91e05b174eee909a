//! Numbers for group masks, and their packing into bytes.
//!
//! The rank of a group mask is its place in the lexicographic order of the kept positions; for 2:4 that is
//! 1100 1010 1001 0110 0101 0011 = 0..5 (first weight on the left), the order that MaskLLM's `mask_options` has.
//! Groups are numbered along the flattened tensor, row-major.
//!
//! Two packings:
//! - six combinations (2:4): base 6, three groups to a byte, `i0 + 6 i1 + 36 i2`; missing groups of the last byte count 0;
//! - others: `ceil(log2 combinations)` bits a group, one after another, the least significant bit first, in bytes
//!   filled from their least significant bit; missing bits of the last byte are 0.

use super::{BitMask, MaskError, Pattern};

pub use super::pattern::binomial;

/// The rank of a group mask: bit `i` of `bits` is the group's weight `i`.
pub fn rank(pattern: Pattern, bits: u32) -> u32 {
    let mut left = pattern.n();
    let mut rank = 0;
    for position in 0..pattern.m() {
        if left == 0 {
            break;
        }
        let behind = pattern.m() - 1 - position;
        if bits >> position & 1 == 1 {
            left -= 1;
        } else {
            // All masks that keep this position come before the ones that do not.
            rank += binomial(behind, left - 1) as u32;
        }
    }
    rank
}

/// The group mask of a rank, or none when there are not so many.
pub fn unrank(pattern: Pattern, rank: u32) -> Option<u32> {
    if u64::from(rank) >= pattern.combinations() {
        return None;
    }
    let (mut rank, mut left, mut bits) = (rank, pattern.n(), 0);
    for position in 0..pattern.m() {
        if left == 0 {
            break;
        }
        let keeping = binomial(pattern.m() - 1 - position, left - 1) as u32;
        if rank < keeping {
            bits |= 1 << position;
            left -= 1;
        } else {
            rank -= keeping;
        }
    }
    Some(bits)
}

/// How ranks are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// Three groups to a byte in base 6.
    Base6,
    /// This many bits a group.
    Bits(u32),
}

impl Packing {
    /// The packing of a pattern's masks.
    pub fn of(pattern: Pattern) -> Self {
        match pattern.combinations() {
            6 => Self::Base6,
            combinations => Self::Bits(combinations.next_power_of_two().trailing_zeros()),
        }
    }

    /// The name in the mask file.
    pub fn name(self) -> String {
        match self {
            Self::Base6 => "base6: i0 + 6*i1 + 36*i2 per byte".into(),
            Self::Bits(bits) => format!("bits: {bits} per group, least significant first"),
        }
    }

    /// Bytes for `groups` groups; none when they overflow.
    pub fn bytes(self, groups: usize) -> Option<usize> {
        match self {
            Self::Base6 => Some(groups.div_ceil(3)),
            Self::Bits(bits) => Some(groups.checked_mul(bits as usize)?.div_ceil(8)),
        }
    }
}

/// Packs a mask.
///
/// # Errors
/// [`MaskError::NotStrict`] and [`MaskError::Indivisible`]: only strict masks have ranks.
pub fn pack(mask: &BitMask, pattern: Pattern) -> Result<Vec<u8>, MaskError> {
    mask.check(pattern)?;
    let groups = mask.rows() * pattern.groups(mask.cols())?;
    let packing = Packing::of(pattern);
    let size = MaskError::Size { rows: mask.rows(), cols: mask.cols() };
    let mut bytes = vec![0u8; packing.bytes(groups).ok_or(size)?];
    // All group masks at once: at most 2^16 entries, filled in the order of the ranks.
    let mut ranks = vec![0u16; 1 << pattern.m()];
    for (r, bits) in table(pattern).into_iter().enumerate() {
        ranks[bits as usize] = r as u16;
    }
    let ranks = mask.groups(pattern).map(|bits| ranks[bits as usize]);
    match packing {
        Packing::Base6 => {
            let mut weight = 1;
            let mut at = 0;
            for rank in ranks {
                bytes[at] += weight * rank as u8;
                (weight, at) = if weight == 36 { (1, at + 1) } else { (weight * 6, at) };
            }
        }
        Packing::Bits(width) => {
            let mut pending = 0u32;
            let mut filled = 0;
            let mut at = 0;
            for rank in ranks {
                pending |= u32::from(rank) << filled;
                filled += width;
                while filled >= 8 {
                    bytes[at] = pending as u8;
                    (pending, filled, at) = (pending >> 8, filled - 8, at + 1);
                }
            }
            if filled > 0 {
                bytes[at] = pending as u8;
            }
        }
    }
    Ok(bytes)
}

/// Unpacks a mask of `rows x cols`; the inverse of [`pack`]. The result is strict by construction.
///
/// # Errors
/// In words: a wrong number of bytes, a rank that does not exist, a padding that is not 0.
pub fn unpack(rows: usize, cols: usize, pattern: Pattern, bytes: &[u8]) -> Result<BitMask, String> {
    let per_row = pattern.groups(cols).map_err(|e| e.to_string())?;
    let packing = Packing::of(pattern);
    let expected = rows.checked_mul(per_row).and_then(|groups| packing.bytes(groups));
    // Before any allocation: it is then bounded by a multiple of the bytes given.
    if expected != Some(bytes.len()) {
        return Err(format!(
            "{rows} x {cols} under {pattern} takes {} bytes, but {} are there",
            expected.map_or("too many".into(), |n| n.to_string()),
            bytes.len()
        ));
    }
    let masks = table(pattern);
    let mut mask = BitMask::try_zeros(rows, cols).map_err(|e| e.to_string())?;
    let mut ranks = Unpacker { packing, bytes: bytes.iter(), pending: 0, left: 0 };
    for row in 0..rows {
        for group in 0..per_row {
            let rank = ranks.next_rank().ok_or("it ends early")?;
            let bits = masks.get(rank as usize).copied().ok_or_else(|| {
                format!("group {group} of row {row} has the rank {rank}, but there are only {}", masks.len())
            })?;
            mask.or_group(row, group, pattern, bits);
        }
    }
    if ranks.pending != 0 {
        return Err("its padding is not 0".into());
    }
    Ok(mask)
}

/// The group masks in the order of their ranks.
fn table(pattern: Pattern) -> Vec<u32> {
    (0..pattern.combinations() as u32).filter_map(|rank| unrank(pattern, rank)).collect()
}

/// Reads ranks one after another.
struct Unpacker<'a> {
    packing: Packing,
    bytes: std::slice::Iter<'a, u8>,
    /// What is left of the bytes read: a number in base 6, or bits.
    pending: u32,
    /// Digits or bits in it.
    left: u32,
}

impl Unpacker<'_> {
    fn next_rank(&mut self) -> Option<u32> {
        match self.packing {
            Packing::Base6 => {
                if self.left == 0 {
                    self.pending = u32::from(*self.bytes.next()?);
                    self.left = 3;
                }
                self.left -= 1;
                // The last digit takes all that is left, so that a byte above 215 gives a rank above 5.
                let rank = if self.left == 0 { self.pending } else { self.pending % 6 };
                self.pending = if self.left == 0 { 0 } else { self.pending / 6 };
                Some(rank)
            }
            Packing::Bits(width) => {
                while self.left < width {
                    self.pending |= u32::from(*self.bytes.next()?) << self.left;
                    self.left += 8;
                }
                let rank = self.pending & ((1 << width) - 1);
                self.pending >>= width;
                self.left -= width;
                Some(rank)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns() -> impl Iterator<Item = Pattern> {
        [2, 4, 8, 16].into_iter().flat_map(|m| (1..m).map(move |n| Pattern::new(n, m).unwrap()))
    }

    /// A mask whose ranks run through a fixed pseudo-random order.
    fn sample(rows: usize, cols: usize, pattern: Pattern) -> BitMask {
        let mut state = 1u64;
        BitMask::top_n(rows, cols, pattern, |_, scores| {
            for s in scores {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *s = (state >> 40) as f32;
            }
        })
        .unwrap()
    }

    #[test]
    fn ranks_are_lexicographic_and_invertible() {
        for pattern in patterns() {
            let masks = table(pattern);
            assert_eq!(masks.len() as u64, pattern.combinations());
            for (r, &bits) in masks.iter().enumerate() {
                assert_eq!(bits.count_ones() as usize, pattern.n());
                assert_eq!(rank(pattern, bits), r as u32);
            }
            // Kept positions in lexicographic order: the bits, read from the first weight on, descend.
            assert!(masks.windows(2).all(|w| w[0].reverse_bits() > w[1].reverse_bits()));
            assert_eq!(unrank(pattern, pattern.combinations() as u32), None);
        }
        let order: Vec<u32> = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100].into();
        assert_eq!(table(Pattern::TWO_OF_FOUR), order);
    }

    #[test]
    fn packing_is_invertible_and_strictly_read() {
        for pattern in patterns() {
            for (rows, groups) in [(1, 1), (3, 5), (7, 9)] {
                let cols = groups * pattern.m();
                let mask = sample(rows, cols, pattern);
                let bytes = pack(&mask, pattern).unwrap();
                assert_eq!(unpack(rows, cols, pattern, &bytes).unwrap(), mask, "{pattern}");
                assert!(unpack(rows, cols, pattern, &bytes[1..]).is_err());
                assert!(unpack(rows + 8, cols, pattern, &bytes).is_err());
            }
        }
        assert!(unpack(usize::MAX, 4, Pattern::TWO_OF_FOUR, &[]).is_err());
        assert!(unpack(1 << 60, 1 << 60, Pattern::TWO_OF_FOUR, &[]).is_err());
    }

    #[test]
    fn ranks_and_paddings_that_do_not_exist_are_refused() {
        let pattern = Pattern::TWO_OF_FOUR;
        assert!(unpack(1, 12, pattern, &[215]).is_ok());
        for byte in 216..=255 {
            assert!(unpack(1, 12, pattern, &[byte]).unwrap_err().contains("has the rank"));
        }
        // Two groups: the third digit must be 0.
        assert!(unpack(1, 8, pattern, &[35]).is_ok());
        assert!(unpack(1, 8, pattern, &[36]).unwrap_err().contains("padding"));
        // 4:8 has 70 masks in 7 bits.
        let pattern = Pattern::new(4, 8).unwrap();
        assert!(unpack(1, 8, pattern, &[69]).is_ok());
        assert!(unpack(1, 8, pattern, &[70]).unwrap_err().contains("rank 70"));
        assert!(unpack(1, 8, pattern, &[0x80]).unwrap_err().contains("padding"));
    }

    #[test]
    fn bit_packing_is_little_endian() {
        // 1:4 has 2 bits a group: ranks 1, 2, 3, 0, 2 -> 0b00_11_10_01, 0b10.
        let pattern = Pattern::new(1, 4).unwrap();
        let mask = unpack(1, 20, pattern, &[0b0011_1001, 0b10]).unwrap();
        let kept: Vec<usize> = (0..20).filter(|&c| mask.get(0, c)).map(|c| c % 4).collect();
        assert_eq!(kept, [1, 2, 3, 0, 2]);
    }

    #[test]
    #[cfg_attr(not(have_shared), ignore = "needs ../shared")]
    fn ranks_and_base6_equal_the_stored_vectors() {
        use serde_json::Value;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors/mask/masks.json");
        let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let int = |v: &Value| v.as_u64().unwrap() as usize;
        let list = all["nm_ranks"].as_array().unwrap();
        assert!(list.len() > 100);
        for entry in list {
            let pattern = Pattern::new(int(&entry["n"]), int(&entry["m"])).unwrap();
            let kept = entry["kept"].as_array().unwrap();
            let bits = kept.iter().fold(0, |bits, p| bits | 1 << int(p));
            assert_eq!(rank(pattern, bits), int(&entry["rank"]) as u32, "{entry}");
            assert_eq!(unrank(pattern, int(&entry["rank"]) as u32), Some(bits), "{entry}");
        }
        for case in all["cases"].as_array().unwrap() {
            let rows = case["mask_rows"].as_array().unwrap();
            let cols = rows[0].as_str().unwrap().len();
            let mut mask = BitMask::zeros(rows.len(), cols);
            for (r, row) in rows.iter().enumerate() {
                for (c, bit) in row.as_str().unwrap().bytes().enumerate() {
                    mask.set(r, c, bit == b'1');
                }
            }
            let pattern = Pattern::TWO_OF_FOUR;
            let index: Vec<u32> = mask.groups(pattern).map(|bits| rank(pattern, bits)).collect();
            let expected = case["group_index_rowmajor"].as_array().unwrap();
            assert_eq!(index, expected.iter().map(|v| int(v) as u32).collect::<Vec<_>>());
            let bytes = pack(&mask, pattern).unwrap();
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, case["base6_3_per_byte_hex"].as_str().unwrap());
        }
    }
}
