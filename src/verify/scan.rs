//! One projection, row by row: which weights are kept, and whether each is what it may be.
//!
//! A weight counts as pruned when all its bits are zero. -0.0 is therefore a kept weight, as the consumers that look at the
//! bytes see it.

use crate::mask::{BitMask, MaskError, Pattern};

/// What is wrong with a group of weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// More than N weights of the group are not zero: how many.
    TooMany(u32),
    /// More than N weights of the group are not +0.0, and some of them are -0.0.
    NegativeZero,
    /// A weight is not zero where the mask prunes.
    AgainstMask,
    /// A kept weight has other bits than in the source.
    Changed,
    /// More weights than the pattern prunes are zero here and not in the source.
    Lost,
}

impl Fault {
    /// In words; `pattern` is the one that was asked for.
    pub fn words(self, pattern: Pattern) -> String {
        match self {
            Self::TooMany(kept) => format!("keeps {kept} weights, but the pattern is {pattern}"),
            Self::NegativeZero => "holds -0.0 at a pruned place, which must be +0.0".into(),
            Self::AgainstMask => "keeps a weight that the mask prunes".into(),
            Self::Changed => "has a kept weight whose bits are not those of the source".into(),
            Self::Lost => format!("has lost kept weights: more are zero than {pattern} prunes"),
        }
    }
}

/// What to hold a projection against.
#[derive(Clone, Copy)]
pub struct Reference<'a> {
    /// The pattern.
    pub pattern: Pattern,
    /// The stored bytes of the dense tensor, of the same shape and type.
    pub source: Option<&'a [u8]>,
    /// The mask, of the same shape.
    pub mask: Option<&'a BitMask>,
    /// Whether kept weights may differ from the source's.
    pub repaired: bool,
    /// Whether the data was unpacked, which may take the sign of a zero away.
    pub unpacked: bool,
}

/// What was found in a projection.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Scan {
    /// Weights that are not +0.0.
    pub kept: u64,
    /// Groups with fewer than N kept weights.
    pub short_groups: u64,
    /// Groups with something wrong.
    pub violations: u64,
    /// Groups that keep more than N weights, for telling a dense tensor.
    pub loose_groups: u64,
    /// Groups of all rows that are not entirely zero.
    pub used_groups: u64,
    /// Whether all bytes are those of the source.
    pub equals_source: bool,
    /// The first fault: row, group of the row, what.
    pub first: Option<(usize, usize, Fault)>,
}

/// Scans `data`, rows of `cols` weights of `size` bytes (2, 4 or 8), without any allocation.
pub fn scan(data: &[u8], cols: usize, size: usize, reference: &Reference<'_>) -> Scan {
    match size {
        2 => rows::<2>(data, cols, reference),
        8 => rows::<8>(data, cols, reference),
        _ => rows::<4>(data, cols, reference),
    }
}

fn rows<const S: usize>(data: &[u8], cols: usize, reference: &Reference<'_>) -> Scan {
    let mut found = Scan { equals_source: reference.source.is_some(), ..Scan::default() };
    // Of a tensor without elements `cols` may be any number.
    let row_bytes = cols.saturating_mul(S).max(1);
    let words_per_row = cols.div_ceil(32).max(1);
    for (row, bytes) in data.chunks_exact(row_bytes).enumerate() {
        let source = reference.source.and_then(|s| s.get(row * row_bytes..(row + 1) * row_bytes));
        let mask = reference.mask.and_then(|m| m.words().get(row * words_per_row..(row + 1) * words_per_row));
        for (word, chunk) in bytes.chunks(32 * S).enumerate() {
            let kept = non_zero::<S>(chunk);
            let source = source.and_then(|s| s.get(word * 32 * S..)).and_then(|s| s.get(..chunk.len()));
            let mut differs = source.map(|source| differing::<S>(chunk, source));
            if reference.unpacked {
                differs =
                    differs.zip(source).map(|(differs, source)| differs & !both_zero::<S>(chunk, source));
            }
            let place = Place { row, word, chunk, source, size: S };
            let mask = mask.and_then(|m| m.get(word).copied());
            check_word(kept, differs, mask, &place, reference, &mut found);
        }
    }
    found
}

/// The mask of the weights that are not +0.0; `data` holds `rows x cols` weights of `size` bytes (2, 4 or 8).
///
/// # Errors
/// [`MaskError::Words`] for another number of weights, [`MaskError::Size`].
pub(super) fn kept_mask(data: &[u8], rows: usize, cols: usize, size: usize) -> Result<BitMask, MaskError> {
    let words_of = |row: &[u8]| -> Vec<u32> {
        match size {
            2 => row.chunks(64).map(non_zero::<2>).collect(),
            8 => row.chunks(256).map(non_zero::<8>).collect(),
            _ => row.chunks(128).map(non_zero::<4>).collect(),
        }
    };
    let words = data.chunks((cols * size).max(1)).flat_map(words_of).collect();
    BitMask::from_words(rows, cols, words)
}

/// Where a word of 32 weights lies, and its bytes.
struct Place<'a> {
    row: usize,
    word: usize,
    chunk: &'a [u8],
    source: Option<&'a [u8]>,
    size: usize,
}

fn check_word(
    kept: u32,
    differs: Option<u32>,
    mask: Option<u32>,
    place: &Place<'_>,
    reference: &Reference<'_>,
    found: &mut Scan,
) {
    let (n, m) = (reference.pattern.n() as u32, reference.pattern.m());
    let weights = place.chunk.len() / place.size;
    found.kept += u64::from(kept.count_ones());
    found.equals_source &= differs == Some(0) || reference.source.is_none();
    let changed = if reference.repaired { 0 } else { kept & differs.unwrap_or(0) };
    let outside = mask.map_or(0, |mask| kept & !mask);
    // A place that the mask keeps must hold the source's weight even where it is zero now.
    let lost = match (differs, mask, reference.repaired) {
        (Some(differs), Some(mask), false) => differs & !kept & mask,
        _ => 0,
    };
    if weights == 32 && changed | outside | lost == 0 && exactly(kept, reference.pattern) {
        let all = 32 / m as u64;
        found.used_groups += all;
        return;
    }
    // Pruned although the source has a weight.
    let zeroed = if reference.repaired { 0 } else { differs.unwrap_or(0) & !kept };
    let bits = reference.pattern.group_bits();
    for group in 0..weights.div_ceil(m) {
        let of = |word: u32| (word >> (group * m)) & bits;
        let count = of(kept).count_ones();
        found.used_groups += u64::from(count > 0);
        found.short_groups += u64::from(count < n);
        found.loose_groups += u64::from(count > n);
        let fault = if count > n {
            Some(match negative_zeros(place, group * m, m) {
                zeros if zeros > 0 && count - zeros <= n => Fault::NegativeZero,
                _ => Fault::TooMany(count),
            })
        } else if of(outside) != 0 {
            let zeros = negative_zeros(place, group * m, m);
            Some(if zeros > 0 { Fault::NegativeZero } else { Fault::AgainstMask })
        } else if of(changed) != 0 {
            let zeros = negative_zeros(place, group * m, m);
            Some(if zeros > 0 { Fault::NegativeZero } else { Fault::Changed })
        } else if of(lost) != 0 || of(zeroed).count_ones() > m as u32 - n {
            Some(Fault::Lost)
        } else {
            None
        };
        if let Some(fault) = fault {
            found.violations += 1;
            found.first.get_or_insert((place.row, place.word * 32 / m + group, fault));
        }
    }
}

/// Weights of a group that are -0.0 and were not so in the source.
fn negative_zeros(place: &Place<'_>, first: usize, m: usize) -> u32 {
    let size = place.size;
    let weight = |bytes: &[u8], i: usize| bytes.get(i * size..(i + 1) * size).map(<[u8]>::to_vec);
    let is =
        |bytes: &[u8]| bytes.split_last().is_some_and(|(l, rest)| *l == 0x80 && rest.iter().all(|b| *b == 0));
    let here = (first..first + m).filter(|&i| {
        let own = weight(place.chunk, i);
        own.as_deref().is_some_and(is) && place.source.is_none_or(|s| weight(s, i) != own)
    });
    here.count() as u32
}

/// Whether every group of a full word keeps exactly N: the sums of the bits, side by side in fields of M bits.
fn exactly(kept: u32, pattern: Pattern) -> bool {
    let mut sums = kept - ((kept >> 1) & 0x5555_5555);
    let mut ones = 0x5555_5555;
    if pattern.m() >= 4 {
        sums = (sums & 0x3333_3333) + ((sums >> 2) & 0x3333_3333);
        ones = 0x1111_1111;
    }
    if pattern.m() >= 8 {
        sums = (sums + (sums >> 4)) & 0x0f0f_0f0f;
        ones = 0x0101_0101;
    }
    if pattern.m() >= 16 {
        sums = (sums + (sums >> 8)) & 0x00ff_00ff;
        ones = 0x0001_0001;
    }
    sums == ones * pattern.n() as u32
}

/// Bit `i`: weight `i` of up to 32 is not all zero bits.
fn non_zero<const S: usize>(bytes: &[u8]) -> u32 {
    let weights = bytes.chunks_exact(S).zip(0..32);
    weights.fold(0, |word, (weight, i)| word | u32::from(weight != [0; S].as_slice()) << i)
}

/// Bit `i`: weight `i` of up to 32 has other bits in `b`.
fn differing<const S: usize>(a: &[u8], b: &[u8]) -> u32 {
    let pairs = a.chunks_exact(S).zip(b.chunks_exact(S)).zip(0..32);
    pairs.fold(0, |word, ((a, b), i)| word | u32::from(a != b) << i)
}

/// Bit `i`: weight `i` of up to 32 is 0.0 or -0.0 in both.
fn both_zero<const S: usize>(a: &[u8], b: &[u8]) -> u32 {
    let zero = |weight: &[u8]| {
        weight.split_last().is_some_and(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|b| *b == 0))
    };
    let pairs = a.chunks_exact(S).zip(b.chunks_exact(S)).zip(0..32);
    pairs.fold(0, |word, ((a, b), i)| word | u32::from(zero(a) && zero(b)) << i)
}
